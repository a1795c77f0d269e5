"""Random tensors drawn inside the model: dropout masks and noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import latents
from isometry.moments.axes import Array
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule


@rule("bernoulli_", "bernoulli", accuracy="exact")
def bernoulli(ctx: Context, m: Moments, p: Any = None, **_: Any) -> Moments:
    """Independent draws of 0 and 1 with probability p (a number)."""
    share = p if isinstance(p, int | float) else float(m.mean.mean())
    values = latents.quantiles(np.array([0.0, 1.0]), np.array([1.0 - share, share]))
    if share in (0.0, 1.0):
        return alg.constant(ctx.shape, share)
    dims = alg.plain_dims(ctx.shape)
    count = sum(len(d) for d in dims)
    table = np.full([2] * count, share * share)
    table[(0,) * count] = share
    return alg.with_marginal(dims, table, np.full([1] * count, share), values.reshape([1] * count + [-1]))


@rule("normal_", "randn", "randn_like", "normal", accuracy="exact")
def normal(ctx: Context, *args: Any, **_: Any) -> Moments:
    """Independent normal draws."""
    numbers = [float(x) for x in args if isinstance(x, int | float)]
    mean, std = (*numbers, 0.0, 1.0)[:2] if ctx.op.startswith("normal_") and len(numbers) == 2 else (0.0, 1.0)
    return alg.normal(ctx.shape, mean, std)


@rule("uniform_", "rand", "rand_like", accuracy="exact")
def uniform(ctx: Context, *args: Any, **_: Any) -> Moments:
    """Independent uniform draws."""
    numbers = [float(x) for x in args if isinstance(x, int | float)]
    low, high = (numbers[0], numbers[1]) if ctx.op == "uniform_" and len(numbers) == 2 else (0.0, 1.0)
    return alg.independent(ctx.shape, uniform_values(low, high))


def uniform_values(low: float, high: float) -> Array:
    """Return the quantile function of a uniform distribution at the nodes."""
    ladder = np.linspace(0.0, 1.0, 2001)
    return low + (high - low) * latents.quantiles(ladder, np.full(ladder.size, 1.0 / ladder.size))
