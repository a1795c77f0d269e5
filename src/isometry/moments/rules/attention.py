"""Softmax over a dim, forward and backward: the heart of attention.

Scores are s + w with s random (normal) and w known (masks and biases; none is all zero). A softmax does not
see what all scores of a row share, so that only the covariance c that varies along the row counts. With
u = softmax(w) row by row,

    E[a_k a′_k′] = u_k u′_k′ e^{c(k, k′)} / Σ_{jj′} u_j u′_j′ e^{c(j, j′)}

for any two rows (asymptotic in the number of keys; exact in that Σa = 1). Rows of a causal mask are not
alike: queries and keys are cut into blocks that double in size (see `mask_rows`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents, lengths, lineage, origins, saturation
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.mask_rows import Rows, doubling, edge_blocks, reach, rows_of, uniform
from isometry.moments.record import Gram, Keys, Leaning, Moments, Part, Run, Term
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.pointwise import as_moments
from isometry.moments.symbolic import Known


@rule("_softmax", "_safe_softmax", accuracy="asymptotic", raw=(0,))
def softmax(ctx: Context, x: Any, dim: int, *_: Any) -> Moments:
    """Softmax; see the module. Assumes normal scores, independent of what they weigh."""
    shift = x.shift if isinstance(x, Shifted) else None
    scores = x.random if isinstance(x, Shifted) else as_moments(x)
    rank = len(ctx.shape)
    dim %= rank
    scores = reg.single_axis(scores, dim)
    if not scores.dims[dim]:
        return alg.constant(ctx.shape, 1.0)
    if not np.isfinite(scores.table).all():
        raise NoRule("scores whose variance is beyond all numbers")
    (key,) = scores.positions(dim)
    if shift is None:
        rows = uniform(scores.axes[key])
        return _weights(scores, key, None, rows)
    if dim != rank - 1 or rank < 2:
        raise NoRule("a mask over another dim than the last")
    scores = reg.single_axis(scores, dim - 1)
    (key,) = scores.positions(dim)
    edge = edge_blocks(shift, ctx.shape)
    if edge is not None:
        scores = reg.recut_axis(scores, key, ax.common_blocks(scores.axes[key], edge))
        return _weights(scores, key, None, rows_of(shift, ctx.shape, None, scores.axes[key]), shift)
    (query,) = scores.positions(dim - 1)
    limit = reach(shift, ctx.shape)
    for p, n in ((query, ctx.shape[dim - 1]), (key, ctx.shape[dim])):
        scores = reg.recut_axis(scores, p, ax.common_blocks(scores.axes[p], doubling(n, limit)))
    return _weights(
        scores, key, query, rows_of(shift, ctx.shape, scores.axes[query], scores.axes[key]), shift
    )


def _weights(scores: Moments, key: int, query: int | None, rows: Rows, shift: Known | None = None) -> Moments:
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
    kappa = _damped(table, rows, b, lengths.excess(scores, [key]) if len(scores.terms) == 1 else 0.0)
    table = table * kappa
    same, differ = table[..., None, :b], table[..., None, b:].reshape((*table.shape[:-1], 1, b, b))
    differ = differ + _unlike_keys(scores, key, same, differ)
    top = np.maximum(same.max(-1), differ.max((-1, -2)))
    p_same = rows.overlap * np.exp(same - top[..., None])
    p_differ = rows.pairs * np.exp(differ - top[..., None, None])
    z = p_same.sum(-1) + p_differ.sum((-1, -2))
    z = np.where(z > 0, z, 1.0)
    p_same = rows.mean(p_same / z[..., None])
    p_differ = rows.mean((p_differ / z[..., None, None]).reshape((*p_differ.shape[:-2], b * b)))
    counts = np.maximum(ax.pair_counts(keys), 1.0)
    out = np.concatenate([p_same, p_differ], axis=-1) / counts
    share = rows.mean(rows.first) / np.asarray(keys)  # (query classes, key blocks)
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
    made = lognormal(scores.dims, out, mean)
    blocks = mean_shape[query] if query is not None else 1
    shape = [n if k == query else 1 for k, n in enumerate(mean_shape)]
    crowd = rows.mean(rows.overlap[:blocks], blocks).sum(-1).reshape(shape)
    return _marked(made, scores, key, crowd, kappa[:blocks, 0].reshape(shape), shift)


def _unlike_keys(scores: Moments, key: int, same: Array, differ: Array) -> Array:
    """Return what keys that are images of rows x_k add to ln E[e^{s + s′}] of two of them.

    Their inner products fluctuate by a share f: the covariance v·δ of two scores is zero in the mean, and
    E[e^{vδ}] = e^{f v²/2}. Of one row κ tells.
    """
    others = (*scores.axes[:key], *scores.axes[key + 1 :])
    marks = (p for p in lineage.grams_of(scores.terms) if p.labels[key] is not None)
    fluctuation = max((p.latent.fluctuation for p in marks if isinstance(p.latent, Gram)), default=0.0)
    varying = np.maximum(0.5 * (same[..., :, None] + same[..., None, :]) - differ, 0.0)
    varying[
        tuple(slice(len(a)) if n > 1 else slice(None) for a, n in zip(others, varying.shape, strict=False))
    ] = 0.0
    return np.asarray(0.5 * fluctuation * varying**2)


def _marked(
    made: Moments, scores: Moments, key: int, crowd: Array, kappa: Array, shift: Known | None
) -> Moments:
    """Let the weights remember how many keys their rows see, and the inner products that the scores share.

    Scores that are images of rows x_k have the covariance c + v·δ with δ = x_k·x_k′/|x|² less its mean, and
    by the formula of the module ln E[a a′] has the slope κ·v in δ. So the weights are images too, of the size
    √(κ v E[a a′]), where E[a a′] is that of pairs: less than the mean weights' by (1 − ΣE[a²])/(1 − Σu²).
    """
    (term,) = made.terms
    if not term.factors:
        return made
    n = np.asarray(made.axes[key], dtype=np.float64)
    square = np.expand_dims((np.moveaxis(made.square, key, -1) * n).sum(-1), key)
    pairs = np.clip((1.0 - square) / np.maximum(1.0 - crowd, 1e-12), 0.0, 1.0)
    size = (made.mean * np.sqrt(kappa * pairs))[..., None]
    parts = [replace(p, values=p.values * size) for p in lineage.grams_of(scores.terms)]
    parts.append(Part(Keys(shift), (None,) * len(made.axes), (), crowd[..., None]))
    (factor,) = term.factors
    origins.centred(factor, alg.collapse(scores), (key,))
    return replace(made, terms=(Term(term.coef, (replace(factor, parts=tuple(parts), form=factor.values),)),))


def _crowd(a: Moments, key: int) -> Array:
    """Return Σu² of the rows, a block array of the axes but the keys'.

    As marked, or from the mean weights.
    """
    for part in (p for t in a.terms for f in t.factors for p in f.parts):
        if isinstance(part.latent, Keys):
            return np.asarray(part.values[..., 0].take(0, axis=key))
    n = np.asarray(a.axes[key], dtype=np.float64)
    return np.asarray((np.moveaxis(a.mean, key, -1) ** 2 * n).sum(-1))


def _damped(table: Array, rows: Rows, b: int, excess: float) -> Array:
    """Return κ by pair class of the queries, see `saturation`; table is (…, query classes, key classes)."""
    own = table.reshape(-1, *table.shape[-2:])[0]  # the same sample, the same head
    inner = b + b * np.arange(b) + np.arange(b)
    spread = np.maximum(own[:, :b] - own[:, inner], 0.0)
    blocks = round((4 * rows.first.shape[0] + 1) ** 0.5 - 1) // 2 if rows.first.shape[0] > 1 else 1
    spread = np.broadcast_to(spread, (rows.first.shape[0], b))[:blocks]
    share = rows.mean(rows.first[:blocks], blocks)
    variance = (spread * share).sum(-1) / np.maximum(share.sum(-1), 1e-300)
    counts = 1.0 / np.maximum(rows.overlap[:blocks].sum(-1), 1e-300)  # (blocks, samples)
    kappa = np.array(
        [
            saturation.damping_of_rows(float(v), n[w != 0], w[w != 0], excess)
            for v, n, w in zip(variance, counts, rows.weights[:blocks], strict=True)
        ]
    )
    if blocks == 1 and rows.first.shape[0] == 1:
        return kappa[:, None]
    left, right = ax.sides((1,) * blocks)
    return np.asarray(np.sqrt(kappa[left] * kappa[right])[:, None])


def lognormal(dims: rec.Dims, table: Array, mean: Array) -> Moments:
    """Return positive entries with these moments.

    Correlations of the latent are taken from the entries' own.
    """
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
    """Gradient of the scores, dS_k = a_k (g_k − Σ_j a_j g_j), with g independent of a.

    E[dS_k dS′_k′] = E[a_k a′_k′]·(G(k,k′) − m_k − m′_k′ + s), m_k = Σ_j y′_j G(k,j), s = Σ E[a_j a′_j′]
    G(j,j′).
    With y the mean weight, that holds while no row is dominated by one key; what saturation leaves of it is
    exact for g's i.i.d. part and scores of equal variance (see `_saturated`), and approximate else.
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
    e = e - (counted * e).sum(-1, keepdims=True)
    others = (*g.axes[:key], *g.axes[key + 1 :])
    counts = 1.0 / np.maximum(_crowd(a, key), 1e-300)
    own, pairs = saturation.kept_shares(rec.diagonal(p_same.sum(-1), others), counts)
    kept = _saturated(p_same.sum(-1), own, counts, others)
    table = _balanced(weights * e * kept[..., None], y1, y2, keys)
    made = alg.gaussian(g.dims, np.moveaxis(table, -1, key), np.zeros([1] * len(g.axes)))
    size = np.sqrt(pairs / np.maximum(1.0 - 1.0 / counts, 1e-12))
    made = _with_grams(made, g, a, a.mean * np.expand_dims(size, key))
    return _leaning(made, rec.diagonal(p_same.sum(-1), others), counts, key)


def _leaning(made: Moments, square: Array, counts: Array, key: int) -> Moments:
    """Return the scores' gradient with what it owes to queries and keys, a mean over the rows."""
    if key == 0 or not made.terms[0].factors:
        return made
    square, counts = np.broadcast_arrays(square, counts)
    found = [
        saturation.leaning_of(float(s), float(n)) for s, n in zip(square.ravel(), counts.ravel(), strict=True)
    ]
    known = np.array([x for x in found if x is not None])
    if not known.size:
        return made
    (term,) = made.terms
    *before, last = term.factors
    labels = tuple(Run(k == key - 1, 1, 0) if k in (key, key - 1) else None for k in range(len(made.axes)))
    part = Part(Leaning(*known.mean(0)), labels, (), np.zeros([1] * (len(made.axes) + 1)))
    own = replace(last, parts=(*last.parts, part))
    return replace(made, terms=(Term(term.coef, (*before, own)),))


def _balanced(table: Array, y1: Array, y2: Array, keys: Axis) -> Array:
    """Return E[dS dS′] with Σ_k dS_k = 0 for every row exactly, so that what keys have in common cancels.

    What each block of keys lacks is spread over its pairs with the others, by their weights y: blocks of
    queries whose rows see unlike numbers of keys hold averages, which do not cancel by themselves.
    """
    b = len(keys)
    counts = ax.pair_counts(keys)
    counted = table * counts
    same, differ = counted[..., :b], counted[..., b:].reshape((*table.shape[:-1], b, b))
    first, second = same + differ.sum(-1), same + differ.sum(-2)
    w1, w2 = (y / np.maximum(y.sum(-1, keepdims=True), 1e-300) for y in (y1, y2))
    less = first[..., :, None] * w2[..., None, :] + w1[..., :, None] * second[..., None, :]
    less = less - w1[..., :, None] * w2[..., None, :] * first.sum(-1)[..., None, None]
    alone = np.asarray(keys) == 1  # such a block has no pairs of different entries
    same = same - np.where(alone, np.diagonal(less, axis1=-2, axis2=-1), 0.0)
    differ = differ - np.where(np.diag(alone), 0.0, less)
    counted = np.concatenate([same, differ.reshape((*differ.shape[:-2], b * b))], axis=-1)
    return np.asarray(counted / np.maximum(counts, 1.0))


def _saturated(overlap: Array, own: Array, counts: Array, axes: tuple[Axis, ...]) -> Array:
    """Return E[dS dS′] relative to that of weights at their mean, which keeps 1 − Σ E[a a′].

    A pair array of the other axes.

    Of one row E[Σa² − 2Σa³ + (Σa²)²] is left, exactly for equal scores' variances; of two rows with
    independent weights
    (1 − Σa²)²; between them (for correlated rows) a weight fitted to simulation.

    Args:
        overlap: Σ_k E[a_k a′_k], a pair array.
        own: What is left of one row, a block array.
        counts: How many keys a row sees, a block array.
        axes: The axes of both.
    """
    square = rec.diagonal(overlap, axes)
    one, two = rec.first(square, axes), rec.second(square, axes)
    alike = np.sqrt(rec.outer(own, own, axes))
    apart = (1.0 - one) * (1.0 - two)
    least = np.sqrt(rec.outer(1.0 / counts, 1.0 / counts, axes))
    apart = apart / np.maximum((1.0 - least) ** 2, 1e-12) * (1.0 - least)
    close = np.clip((overlap - least) / np.maximum(np.sqrt(one * two) - least, 1e-12), 0.0, 1.0)
    left = alike + (apart - alike) * (1.0 - close) ** 8
    return np.asarray(np.clip(left / np.maximum(1.0 - overlap, 1e-12), 0.0, 2.0))


def _with_grams(made: Moments, g: Moments, a: Moments, y: Array) -> Moments:
    """Let the scores' gradient share the inner products that the weights' gradient shares.

    With δ such products less their mean, a row's dS = J g, J = diag(a) − a aᵀ, and E[g g′] = G(1 + δ), what
    Σ_k dS_k k_k gains is G·tr(J δ J δ), of mean (tr J)² − Σ J_kk² + Σ_{k≠k′} J_kk′² times the variance of δ:
    as of images of the sizes y, the mean weights less what saturation takes (`saturation.moments`).
    """
    (term,) = made.terms
    if not term.factors:
        return made
    parts = tuple(
        replace(p, values=p.values * y[..., None]) for p in lineage.grams_of(g.terms, np.sqrt(made.variance))
    )
    (factor,) = term.factors
    marks = tuple(p for t in a.terms for f in t.factors for p in f.parts if isinstance(p.latent, Keys))
    return replace(made, terms=(Term(term.coef, (replace(factor, parts=(*parts, *marks[:1])),)),))
