"""Random tensors drawn inside the model: dropout masks and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments.concrete import Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule

# The quantile function of a uniform variable at the nodes, kept off 0 and 1: erfinv and log stay finite.
UNIFORM = torch.special.ndtr(torch.from_numpy(latents.NODES)).clamp(2.0**-53, 1.0 - 2.0**-53).numpy()


@rule("bernoulli_", "bernoulli", accuracy="exact")
def bernoulli(ctx: Context, m: Moments, p: Any = None, **_: Any) -> Moments:
    """Independent draws of 0 and 1 with probability p (a number)."""
    if p is None and ctx.op == "bernoulli_":
        p = 0.5  # its default, which is not dispatched
    odds = p if isinstance(p, Moments) else m
    share = float(p) if isinstance(p, int | float) else rec.average(odds.mean, odds.axes)
    values = latents.quantiles(np.array([0.0, 1.0]), np.array([1.0 - share, share]))
    if share in (0.0, 1.0):
        return alg.constant(ctx.shape, share)
    dims = alg.plain_dims(ctx.shape)
    count = sum(len(d) for d in dims)
    table = np.full([2] * count, share * share)
    table[(0,) * count] = share
    return alg.with_marginal(dims, table, np.full([1] * count, share), values.reshape([1] * count + [-1]))


def _filled(given: list[float], first: float, second: float) -> tuple[float, float]:
    """Return two arguments of which the positional ones were given; trailing defaults are not dispatched."""
    return (given[0] if given else first), (given[1] if len(given) > 1 else second)


@rule("normal_", "randn", "randn_like", "normal", accuracy="exact")
def normal(ctx: Context, *args: Any, mean: float = 0.0, std: float = 1.0, **_: Any) -> Moments:
    """Independent normal draws."""
    if ctx.op in ("normal_", "normal"):
        given = [float(x) for x in args if isinstance(x, int | float)]
        mean, std = _filled(given, mean, std)
    return alg.normal(ctx.shape, mean, std)


@rule("uniform_", "rand", "rand_like", accuracy="exact")
def uniform(ctx: Context, *args: Any, **named: float) -> Moments:
    """Independent uniform draws."""
    low, high = 0.0, 1.0
    if ctx.op == "uniform_":
        given = [float(x) for x in args if isinstance(x, int | float)]
        low, high = _filled(given, named.get("from", 0.0), named.get("to", 1.0))
    return alg.independent(ctx.shape, low + (high - low) * UNIFORM)


@rule("exponential_", accuracy="exact")
def exponential(ctx: Context, m: Moments, rate: float = 1.0, **_: Any) -> Moments:
    """Independent exponential draws."""
    return alg.independent(ctx.shape, -np.log1p(-UNIFORM) / rate)


@rule("log_normal_", accuracy="exact")
def log_normal(ctx: Context, m: Moments, mean: float = 1.0, std: float = 2.0, **_: Any) -> Moments:
    """Independent log-normal draws."""
    return alg.independent(ctx.shape, np.exp(mean + std * latents.NODES))


@rule("randint", "randint_like", "randperm", accuracy="approximate")
def integers(ctx: Context, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> Concrete:
    """Random whole numbers: one draw, as what they choose depends on their values."""
    ctx.note("random whole numbers are one typical draw")
    generator = torch.Generator().manual_seed(1)
    if ctx.op == "randperm":
        return Concrete(torch.randperm(args[0], generator=generator).to(dtype or torch.int64))
    bounds = [x for x in args if isinstance(x, int) and not isinstance(x, bool)]
    low, high = bounds if len(bounds) == 2 else (0, bounds[0])
    return Concrete(torch.randint(low, high, ctx.shape, generator=generator).to(dtype or torch.int64))


@rule("fill_", "zero_", "fill", accuracy="exact")
def fill(ctx: Context, m: Moments, value: Any = 0.0) -> Moments:
    """One number everywhere."""
    number = float(value.mean.reshape(-1)[0]) if isinstance(value, Moments) else float(value)
    return alg.constant(ctx.shape, number)
