"""Softmax over a dim, forward and backward: the heart of attention.

Scores are s + w with s random (normal) and w known (masks and biases; none is all zero). A softmax does not
see what all
scores of a row share, so that only the covariance c that varies along the row counts. With u = softmax(w) row
by row,

    E[a_k a′_k′] = u_k u′_k′ e^{c(k, k′)} / Σ_{jj′} u_j u′_j′ e^{c(j, j′)}

for any two rows (asymptotic in the number of keys; exact in that Σa = 1). Rows of a causal mask are not
alike: queries
and keys are cut into blocks that double in size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments, Term
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.pointwise import as_moments

ROWS = 3  # rows sampled per block of queries


@dataclass(frozen=True)
class Rows:
    """What sampled pairs of rows give to the blocks of keys, by pair class of the queries.

    Attributes:
        first: Share of u in each key block for the pair's first row, shape (query classes, samples, key
        blocks).
        second: Likewise for its second row.
        overlap: Σ_k u_k u′_k over each key block, same shape.
    """

    first: Array
    second: Array
    overlap: Array


def doubling(n: int) -> Axis:
    """Return blocks of sizes 1, 1, 2, 4, … that add up to n."""
    sizes, rest, step = [1], n - 1, 1
    while rest > 0:
        sizes.append(min(step, rest))
        rest -= sizes[-1]
        step *= 2
    return tuple(sizes)


@rule("_softmax", "_safe_softmax", accuracy="asymptotic", raw=(0,))
def softmax(ctx: Context, x: Any, dim: int, *_: Any) -> Moments:
    """Softmax; see the module. Assumes normal scores, independent of what they weigh."""
    shift = x.shift.tensor if isinstance(x, Shifted) else None
    scores = x.random if isinstance(x, Shifted) else as_moments(x)
    rank = len(ctx.shape)
    dim %= rank
    scores = reg.single_axis(scores, dim)
    if not scores.dims[dim]:
        return alg.constant(ctx.shape, 1.0)
    (key,) = scores.positions(dim)
    if shift is None:
        rows = _uniform(scores.axes[key])
        return _weights(scores, key, None, rows)
    if dim != rank - 1 or rank < 2:
        raise NoRule("a mask over another dim than the last")
    pattern = _pattern(shift, ctx.shape)
    scores = reg.single_axis(scores, dim - 1)
    uneven = bool(pattern.shape[1] > 1)
    if not uneven:
        key_axis = _key_blocks(pattern)
        scores = reg.recut_axis(scores, key, ax.common_blocks(scores.axes[key], key_axis))
        return _weights(scores, key, None, _sampled_rows(pattern, None, scores.axes[key]))
    (query,) = scores.positions(dim - 1)
    scores = reg.recut_axis(scores, query, ax.common_blocks(scores.axes[query], doubling(ctx.shape[dim - 1])))
    scores = reg.recut_axis(scores, key, ax.common_blocks(scores.axes[key], doubling(ctx.shape[dim])))
    return _weights(scores, key, query, _sampled_rows(pattern, scores.axes[query], scores.axes[key]))


def _uniform(keys: Axis) -> Rows:
    share = np.asarray(keys, dtype=np.float64) / ax.size(keys)
    return Rows(share[None, None], share[None, None], (share / ax.size(keys))[None, None])


def _pattern(shift: Tensor, shape: tuple[int, ...]) -> Array:
    """Return u = softmax(shift) as (samples of the leading dims, queries or 1, keys)."""
    shift = shift.reshape([1] * (len(shape) - shift.dim()) + list(shift.shape))
    for d, step in enumerate(shift.stride()):
        if step == 0 and d < len(shape) - 1:
            shift = shift.narrow(d, 0, 1)
    shift = shift.expand(*shift.shape[:-1], shape[-1])
    u = torch.softmax(shift.to(torch.float64), -1).nan_to_num(0.0).reshape(-1, shift.shape[-2], shape[-1])
    if u.shape[1] > 1 and bool((u == u[:, :1]).all()):
        u = u[:, :1]
    return u[torch.linspace(0, u.shape[0] - 1, min(u.shape[0], 4)).long()].numpy()


def _key_blocks(pattern: Array) -> Axis:
    """Cut keys where the weights of a mask that is the same for all queries jump, up to 8 blocks."""
    mean = pattern.mean((0, 1))
    edges = np.flatnonzero(np.abs(np.diff(mean)) > 1e-9 * mean.max()) + 1
    if len(edges) == 0 or len(edges) > 7:
        return (pattern.shape[-1],)
    cuts = [0, *edges.tolist(), pattern.shape[-1]]
    return tuple(b - a for a, b in itertools.pairwise(cuts))


def _sampled_rows(pattern: Array, queries: Axis | None, keys: Axis) -> Rows:
    """Sample pairs of rows for every pair class of the queries; samples of the leading dims are further samples."""
    starts = np.cumsum([0, *keys[:-1]])
    if queries is None:
        u = pattern[:, 0]
        share = np.add.reduceat(u, starts, axis=-1)[None]
        return Rows(share, share, np.add.reduceat(u * u, starts, axis=-1)[None])
    edges = np.cumsum([0, *queries])
    picks = [
        np.unique(np.linspace(lo, hi - 1, min(ROWS, hi - lo) + 2)[1:-1].round().astype(int))
        if hi - lo > ROWS
        else np.arange(lo, hi)
        for lo, hi in itertools.pairwise(edges)
    ]
    left, right = ax.sides(queries)
    pairs = []
    for k, (b, c) in enumerate(zip(left, right, strict=True)):
        same = k < len(queries)
        chosen = (
            [(t, t) for t in picks[b]] if same else [(s, t) for s in picks[b] for t in picks[c] if s != t]
        )
        chosen = chosen or [(picks[b][0], picks[c][0])]
        pairs.append(
            np.resize(np.asarray(chosen), (ROWS * ROWS, 2))
            if len(chosen) <= ROWS * ROWS
            else np.asarray(chosen)
        )
    index = np.stack(pairs)  # (classes, samples, 2)
    first, second = pattern[:, index[..., 0]], pattern[:, index[..., 1]]  # (leading, classes, samples, keys)
    parts = [np.add.reduceat(a, starts, axis=-1) for a in (first, second, first * second)]
    one, two, both = (np.moveaxis(p, 0, 1).reshape(p.shape[1], -1, len(keys)) for p in parts)
    return Rows(one, two, both)


def _weights(scores: Moments, key: int, query: int | None, rows: Rows) -> Moments:
    """Return the attention weights' record from the scores' and the rows' pattern."""
    axes = scores.axes
    keys = axes[key]
    b = len(keys)
    table = np.moveaxis(
        np.broadcast_to(
            scores.table,
            [
                len(a) * (len(a) + 1) if k in (key, query) else n
                for k, (a, n) in enumerate(zip(axes, scores.table.shape, strict=True))
            ],
        ),
        key,
        -1,
    )
    if query is not None:
        query_at = query - (query > key)
        table = np.moveaxis(table, query_at, -2)
    else:
        table = table[..., None, :]
    same, differ = table[..., None, :b], table[..., None, b:].reshape((*table.shape[:-1], 1, b, b))
    both = rows.first[..., :, None] * rows.second[..., None, :] - rows.overlap[..., None] * np.eye(b)
    top = np.maximum(same.max(-1), differ.max((-1, -2)))
    p_same = rows.overlap * np.exp(same - top[..., None])
    p_differ = np.maximum(both, 0.0) * np.exp(differ - top[..., None, None])
    z = p_same.sum(-1) + p_differ.sum((-1, -2))
    z = np.where(z > 0, z, 1.0)
    p_same = (p_same / z[..., None]).mean(-2)
    p_differ = (p_differ / z[..., None, None]).mean(-3).reshape((*p_differ.shape[:-3], b * b))
    counts = np.maximum(ax.pair_counts(keys), 1.0)
    out = np.concatenate([p_same, p_differ], axis=-1) / counts
    share = rows.first.mean(1) / np.asarray(keys)  # (query classes, key blocks)
    mean_shape = [1] * len(axes)
    if query is None:
        out = np.moveaxis(out[..., 0, :], -1, key)
        mean_shape[key] = b
        mean = share[0].reshape(mean_shape)
    else:
        out = np.moveaxis(np.moveaxis(out, -2, query_at), -1, key)
        n = len(axes[query])
        mean_shape[key], mean_shape[query] = b, n
        mean = (share[:n] if query < key else share[:n].T).reshape(mean_shape)
    return lognormal(scores.dims, out, mean)


def lognormal(dims: rec.Dims, table: Array, mean: Array) -> Moments:
    """Return positive entries with these moments; correlations of the latent are taken from the entries' own."""
    axes = tuple(a for d in dims for a in d)
    square = rec.diagonal(table, axes)
    ratio = np.divide(
        square, mean**2, out=np.ones(np.broadcast_shapes(square.shape, mean.shape)), where=mean > 0
    )
    spread = np.sqrt(np.log(np.maximum(ratio, 1.0)))
    values = mean[..., None] * np.exp(spread[..., None] * latents.NODES - 0.5 * spread[..., None] ** 2)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    size = rec.outer(std, std, axes)
    centred = table - rec.outer(mean, mean, axes)
    rho = np.clip(
        np.divide(
            centred, size, out=np.zeros(np.broadcast_shapes(centred.shape, size.shape)), where=size > 0
        ),
        -1,
        1,
    )
    factor = alg.new_factor(axes, rho, values, table)
    return Moments(dims, (Term(np.ones([1] * len(axes)), (factor,)),), table, mean)


@rule("_softmax_backward_data", accuracy="approximate")
def softmax_backward(ctx: Context, g: Moments, a: Moments, dim: int, *_: Any) -> Moments:
    """dS_k = a_k (g_k − Σ_j a_j g_j), with g independent of a:

    E[dS_k dS′_k′] = E[a_k a′_k′]·(G(k,k′) − m_k − m′_k′ + s), m_k = Σ_j y′_j G(k,j), s = Σ E[a_j a′_j′]
    G(j,j′).
    Approximate: y is the mean weight, which holds while no row is dominated by one key.
    """
    dim %= len(g.dims)
    g, a = reg.aligned(reg.single_axis(g, dim), reg.single_axis(a, dim))
    if not g.dims[dim]:
        return alg.constant(ctx.shape, 0.0)
    (key,) = g.positions(dim)
    keys = g.axes[key]
    n, b = np.asarray(keys, dtype=np.float64), len(keys)
    full = len(keys) * (len(keys) + 1)
    big_g, weights = (
        np.moveaxis(np.broadcast_to(t, (*t.shape[:key], full, *t.shape[key + 1 :])), key, -1)
        for t in (g.table, a.table)
    )
    g_same, g_differ = big_g[..., :b], big_g[..., b:].reshape((*big_g.shape[:-1], b, b))
    counted = weights * ax.pair_counts(keys)
    p_same, p_differ = counted[..., :b], counted[..., b:].reshape((*weights.shape[:-1], b, b))
    y1, y2 = p_same + p_differ.sum(-1), p_same + p_differ.sum(-2)
    s = (p_same * g_same).sum(-1) + (p_differ * g_differ).sum((-1, -2))
    m1 = y2 / n * (g_same - np.diagonal(g_differ, axis1=-2, axis2=-1)) + (g_differ * y2[..., None, :]).sum(-1)
    m2 = y1 / n * (g_same - np.diagonal(g_differ, axis1=-2, axis2=-1)) + (g_differ * y1[..., :, None]).sum(-2)
    e_same = g_same - m1 - m2 + s[..., None]
    e_differ = g_differ - m1[..., :, None] - m2[..., None, :] + s[..., None, None]
    e = np.concatenate([e_same, e_differ.reshape((*e_differ.shape[:-2], b * b))], axis=-1)
    e = e - (counted * e).sum(-1, keepdims=True)  # Σ_k dS_k = 0 for every row, exactly
    table = np.moveaxis(weights * e, -1, key)
    return alg.gaussian(g.dims, table, np.zeros([1] * len(g.axes)))
