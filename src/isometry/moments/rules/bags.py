"""Sums of looked-up rows, and distances between all rows of two tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import contract as con
from isometry.moments import regrouping as reg
from isometry.moments.averages import one_block
from isometry.moments.axes import Array
from isometry.moments.concrete import Concrete
from isometry.moments.latents import Latent
from isometry.moments.record import Moments
from isometry.moments.resampling import resampled, scattered
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.index import positions
from isometry.moments.rules.linear import plus
from isometry.moments.rules.pointwise import powered, times

# --- bags of rows -----------------------------------------------------------------------------------------


LARGEST = 1 << 26  # entries of the matrix from rows to bags


def _sums(ids: Tensor, bags: Tensor, count: int, mode: int) -> Array:
    """Return the matrix (bags, rows that occur) that sums the rows of a bag, or takes their mean."""
    if mode == 2:
        raise NoRule("the largest of a bag of rows")
    rows, which = torch.unique(ids, return_inverse=True)
    if rows.numel() * count > LARGEST:
        raise NoRule("bags of too many different rows")
    matrix = torch.zeros(count, rows.numel(), dtype=torch.float64)
    matrix.index_put_((bags.long(), which), torch.ones(1, dtype=torch.float64), accumulate=True)
    if mode == 1:
        matrix /= matrix.sum(1, keepdim=True).clamp_(min=1.0)
    return matrix.numpy()


def _bags(count: int, offsets: Tensor) -> Tensor:
    """Return the bag of each id."""
    return torch.searchsorted(offsets.long(), torch.arange(count), right=True) - 1


@rule("_embedding_bag", "_embedding_bag_forward_only", accuracy="exact", raw=(1, 2))
def embedding_bag(
    ctx: Context,
    w: Moments,
    ids: Any,
    offsets: Any,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Any = None,
    last: bool = False,
    padding: int = -1,
) -> tuple[Any, ...]:
    """Sums or means of rows of a table by known ids. Exact second moments for rows that are alike."""
    if weights is not None or padding >= 0:
        raise NoRule("a bag of rows with weights or padding")
    known, starts = positions(ctx, ids), positions(ctx, offsets)
    starts = starts[:-1] if last else starts
    bags = _bags(known.numel(), starts)
    matrix = _sums(known, bags, starts.numel(), mode)
    rows = reg.sliced(one_block(reg.single_axis(w, 0), (0,)), 0, 0, matrix.shape[1], 1)
    counts = torch.bincount(bags, minlength=starts.numel())
    return resampled(rows, {0: matrix}), Concrete(bags), Concrete(counts), None


@rule("_embedding_bag_backward", "_embedding_bag_dense_backward", accuracy="exact", raw=(1, 2, 3, 4, 5))
def embedding_bag_backward(ctx: Context, g: Moments, ids: Any, *args: Any) -> Moments:
    """Gradients of bags, summed into the rows they are made of. Exact second moments of the whole."""
    dense = ctx.op == "_embedding_bag_dense_backward"
    bag, mode, weights = (args[0], args[5], args[6]) if dense else (args[1], args[6], args[8])
    if weights is not None:
        raise NoRule("the gradient of a bag of rows with weights")
    matrix = _sums(positions(ctx, ids), positions(ctx, bag), g.shape[0], mode)
    made = resampled(g, {0: matrix.T})
    if not made.dims[0] or matrix.shape[1] == ctx.shape[0]:
        return made
    return scattered(made, made.positions(0)[0], ctx.shape[0])


# --- distances --------------------------------------------------------------------------------------------


def _differences(x: Moments, y: Moments) -> Moments:
    """Return x_i − y_j for all pairs of rows, (…, i, j, features)."""
    own = replace(x, dims=(*x.dims[:-1], (), x.dims[-1]))
    other = replace(y, dims=(*y.dims[:-2], (), *y.dims[-2:]))
    return plus(own, alg.scale(other, -1.0))


def _distances(differences: Moments, p: float) -> Moments:
    powers = powered(differences, 2.0) if p == 2.0 else alg.apply(differences, lambda v: np.abs(v) ** p)
    summed = con.total(powers, (len(differences.dims) - 1,))
    return alg.apply(summed, lambda v: np.maximum(v, 0.0) ** (1.0 / p))


@rule("_cdist_forward", "_euclidean_dist", accuracy="asymptotic")
def cdist(ctx: Context, x: Moments, y: Moments, p: float = 2.0, mode: int | None = None) -> Moments:
    """Distances |x_i − y_j|_p of all pairs of rows, concentrated in the number of features.

    Among the distances of rows of one tensor the zeros count by their share.
    """
    if not 0.0 < p < np.inf:
        raise NoRule("distances by the largest difference, or by their number")
    zeros_count = all(isinstance(f.latent, Latent) for t in x.terms for f in t.factors)  # see `elsewhere`
    return alg.scale(_distances(_differences(x, y), p), 1.0 if zeros_count else _others(x, y))


def _others(x: Moments, y: Moments) -> float:
    """Return the root of the share of pairs that are not a row and itself."""
    n = x.shape[-2]
    return (1.0 - 1.0 / n) ** 0.5 if n == y.shape[-2] and con.shares_latents(x, y) else 1.0


@rule("_cdist_backward", accuracy="asymptotic")
def cdist_backward(ctx: Context, g: Moments, x: Moments, y: Moments, p: float, distances: Any) -> Moments:
    """Gradient Σ_j g_ij (x_i − y_j)/|x_i − y_j| at x, for p = 2."""
    if p != 2.0:
        raise NoRule("the gradient of other distances than Euclidean ones")
    differences = _differences(x, y)
    inverse = alg.apply(_distances(differences, p), lambda v: 1.0 / np.maximum(v, 1e-300))
    unit = times(differences, replace(inverse, dims=(*inverse.dims, ())))
    made = con.total(times(replace(g, dims=(*g.dims, ())), unit), (len(x.dims) - 1,))
    return alg.scale(made, _others(x, y))
