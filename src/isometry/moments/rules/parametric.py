"""Operations with parameters of their own: prelu, rrelu, weight normalisation, sampling on a grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.averages import mean_over
from isometry.moments.axes import Array, Axis
from isometry.moments.concrete import Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.linear import plus
from isometry.moments.rules.pointwise import times

# --- prelu ------------------------------------------------------------------------------------------------


@rule("_prelu_kernel", accuracy="exact")
def prelu(ctx: Context, x: Moments, w: Moments) -> Moments:
    """max(x, 0) + w·min(x, 0), both on the latent of x. Exact for slopes that are independent of x."""
    above = alg.apply(x, lambda v: np.maximum(v, 0.0))
    return plus(above, times(alg.apply(x, lambda v: np.minimum(v, 0.0)), w))


@rule("_prelu_kernel_backward", accuracy="exact")
def prelu_backward(ctx: Context, g: Moments, x: Moments, w: Moments) -> tuple[Moments, Moments]:
    """Gradients of `prelu`: g·(1 where x > 0, w elsewhere) and g·min(x, 0).

    Exact for an independent gradient.
    """
    slope = plus(
        alg.apply(x, lambda v: (v > 0).astype(np.float64)),
        times(alg.apply(x, lambda v: (v <= 0).astype(np.float64)), w),
    )
    return times(g, slope), times(g, alg.apply(x, lambda v: np.minimum(v, 0.0)))


@rule("rrelu_with_noise", accuracy="exact")
def rrelu(
    ctx: Context,
    x: Moments,
    noise: Moments,
    low: float = 0.125,
    high: float = 1 / 3,
    training: bool = False,
    *_: Any,
) -> Moments:
    """max(x, 0) + u·min(x, 0) with u drawn evenly from [low, high] in training, else their mean."""
    below = alg.apply(x, lambda v: np.minimum(v, 0.0))
    return plus(alg.apply(x, lambda v: np.maximum(v, 0.0)), times(below, _slopes(x, low, high, training)))


@rule("rrelu_with_noise_backward", accuracy="exact")
def rrelu_backward(
    ctx: Context,
    g: Moments,
    x: Moments,
    noise: Moments,
    low: float,
    high: float,
    training: bool = False,
    *_: Any,
) -> Moments:
    """Gradient of `rrelu`: g·(1 where x > 0, u elsewhere). Exact for an independent gradient.

    That u is the one which the output was made with is not kept.
    """
    below = alg.apply(x, lambda v: (v <= 0).astype(np.float64))
    above = alg.apply(x, lambda v: (v > 0).astype(np.float64))
    return times(g, plus(above, times(below, _slopes(x, low, high, training))))


def _slopes(x: Moments, low: float, high: float, training: bool) -> Moments:
    if not training:
        return alg.constant((), 0.5 * (low + high))
    ranks = torch.special.ndtr(torch.from_numpy(latents.NODES)).numpy()
    return alg.independent(x.shape, low + (high - low) * ranks)


# --- weight normalisation ---------------------------------------------------------------------------------


def _other_dims(m: Moments, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(len(m.dims)) if d != dim % len(m.dims))


def _norm(v: Moments, dim: int) -> tuple[Array, tuple[int, ...]]:
    """Return E|v|² over all dims but one, as a block array, and those dims."""
    over = _other_dims(v, dim)
    square = rec.diagonal(v.table, v.axes)
    for p in (p for d in over for p in v.positions(d)):
        sizes = np.asarray(v.axes[p], dtype=np.float64)
        weights = sizes if square.shape[p] > 1 else np.array([sizes.sum()])
        square = np.expand_dims(np.tensordot(square, weights, axes=(p, 0)), p)
    return np.maximum(square, 1e-300), over


@rule("_weight_norm_interface", accuracy="asymptotic")
def weight_norm(ctx: Context, v: Moments, g: Moments, dim: int = 0) -> tuple[Moments, Moments]:
    """W = g·v/|v| and |v|. Asymptotic.

    Norms are taken as their root mean square, as many entries are summed.
    """
    square, _ = _norm(v, dim)
    norms = alg.constant(ctx.shapes[1], float(np.sqrt(np.mean(square))))
    return times(alg.scale(v, 1.0 / np.sqrt(square)), g), norms


@rule("_weight_norm_interface_backward", accuracy="asymptotic", raw=(3,))
def weight_norm_backward(
    ctx: Context, gw: Moments, v: Moments, g: Moments, norms: Any, dim: int
) -> tuple[Moments, Moments]:
    """Dv = g/|v|·(dw − u (u·dw)) and dg = u·dw with u = v/|v|.

    Assumes a gradient independent of v; asymptotic.
    """
    square, over = _norm(v, dim)
    unit = alg.scale(v, 1.0 / np.sqrt(square))
    gw, unit = reg.aligned(gw, unit)
    product = alg.multiply(gw, unit)
    count = float(np.prod([ax.size(a) for d in over for a in gw.dims[d]]))
    along = mean_over(product.table, gw, over) * count**2
    table = gw.table - unit.table * along
    scaled = times(alg.gaussian(gw.dims, table, gw.mean), g)
    dg = con.total(product, over)
    kept: list[tuple[Axis, ...]] = [()] * len(gw.dims)
    kept[dim % len(kept)] = dg.dims[0]
    return alg.scale(scaled, float(np.mean(1.0 / np.sqrt(square)))), replace(dg, dims=tuple(kept))


# --- sampling on a grid -----------------------------------------------------------------------------------


def _squares(mode: int, rank: int) -> float:
    """Return Σw² of an interpolation at uniformly spread places: per dim E[(1−u)² + u²] = 2/3 if linear."""
    if mode == 2:
        raise NoRule("bicubic sampling on a grid")
    return (2.0 / 3.0) ** rank if mode == 0 else 1.0


def _inside(grid: Any, padding: int) -> float:
    """Return the share of sampled places that lie inside, where the grid is known; else all."""
    if padding != 0 or not isinstance(grid, Concrete):
        return 1.0
    return float((grid.tensor.abs() <= 1).all(-1).to(torch.float64).mean())


def _sampled(ctx: Context, x: Moments, grid: Any, mode: int, padding: int) -> Moments:
    """Return the record of entries that are means of neighbours at places spread uniformly and independently.

    Eturn the record of entries that are means of neighbours at places spread uniformly and independently.
    """
    ctx.note("sampling on a grid takes the places as uniformly spread over the input")
    rank = len(x.dims) - 2
    squares = _squares(mode, rank)
    share = _inside(grid, padding)
    spatial = tuple(range(2, rank + 2))
    same, any_ = x.table, mean_over(x.table, x, spatial)
    for p in reversed([p for d in spatial for p in x.positions(d)]):
        counts = ax.same_classes(x.axes[p]) * ax.pair_counts(x.axes[p])
        full = np.broadcast_to(same, (*same.shape[:p], len(counts), *same.shape[p + 1 :]))
        same = np.expand_dims(np.tensordot(full, counts / counts.sum(), axes=(p, 0)), p)
    axes = [p for d in spatial for p in x.positions(d)]
    lead = min(axes, default=same.ndim)
    same, any_ = (np.asarray(t).reshape(t.shape[:lead]) for t in (same, any_))
    at_one = share * (squares * same + (1.0 - squares) * any_)
    table = np.multiply.outer(share**2 * any_, np.ones([2] * rank))
    table.reshape((*at_one.shape, -1))[..., 0] = at_one
    mean = x.mean
    for p in reversed(axes):
        sizes = np.asarray(x.axes[p], dtype=np.float64)
        weights = sizes / sizes.sum() if mean.shape[p] > 1 else np.ones(1)
        mean = np.tensordot(mean, weights, axes=(p, 0))
    out = tuple(((n,),) for n in ctx.shape[2:])
    made = alg.gaussian((*x.dims[:2], *out), table, share * mean.reshape((*mean.shape, *[1] * rank)))
    return _drop(made)


def _drop(m: Moments) -> Moments:
    for d in range(len(m.dims)):
        if m.dims[d] and m.shape[d] == 1:
            m = reg.selected(m, d, 0, keep=True)
    return m


@rule("grid_sampler_2d", "grid_sampler_3d", accuracy="approximate", raw=(1,))
def grid_sampler(ctx: Context, x: Moments, grid: Any, mode: int, padding: int, corners: bool) -> Moments:
    """Interpolation at given places.

    Approximate: the places are taken as uniformly spread and independent.
    """
    return _sampled(ctx, x, grid, mode, padding)


@rule("grid_sampler_2d_backward", "grid_sampler_3d_backward", accuracy="approximate", raw=(2,))
def grid_sampler_backward(
    ctx: Context, g: Moments, x: Moments, grid: Any, mode: int, padding: int, corners: bool, mask: Any
) -> tuple[Moments | None, Moments | None]:
    """Gradient of `grid_sampler` at its input: what was sampled near it, as independent entries.

    Approximate.
    """
    ctx.note("sampling on a grid takes the places as uniformly spread over the input")
    rank = len(x.dims) - 2
    squares = _squares(mode, rank)
    share = _inside(grid, padding)
    inputs, outputs = float(np.prod(x.shape[2:])), float(np.prod(g.shape[2:]))
    if mask[1]:
        raise NoRule("the gradient at the places of sampling")
    variance = share * outputs / inputs * squares * rec.average(g.square, g.axes)
    return (alg.normal(x.shape, 0.0, variance**0.5) if mask[0] else None), None
