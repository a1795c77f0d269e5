"""Max pooling, forward and backward: the order statistics of normal variables, see `maxima`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import borders, distances, latents, maxima, near, near_maps, pools, slopes
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.averages import one_block
from isometry.moments.axes import Array, Axis
from isometry.moments.concrete import Concrete
from isometry.moments.record import Dims, Factor, Moments, Term
from isometry.moments.resampling import scattered
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.pointwise import as_moments
from isometry.moments.rules.spatial import padded
from isometry.moments.taps import matrix_pairs
from isometry.moments.terms import changed
from isometry.moments.windows import adaptive_windows, rank_of, windows

# --- maxima -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranked:
    """An input of a max pool as a monotone function of a normal variable, and what its windows are.

    Attributes:
        m: The input; spatial dims have one axis of one block each.
        factor: What it is a function of; None for a constant.
        rho: The normal variable's correlations.
        values: The monotone function.
        by_block: The function, monotone or not, with the spatial blocks that the input had.
        blocks: Those blocks, by spatial axis.
        entries: The mean number of entries of a window.
        counts: The numbers of entries that windows have, less what each has in common with the next.
        shares: How often.
        common: The correlation of two entries of a window, by block of the axes that are not of space.
        by_distance: The correlations by distance; see `near`.
        reading: How pairs of windows read pairs of entries.
        overlap: The share that two windows have in common, by distance.
        first: Position of the first spatial axis.
        matrices: The windows, by dim.
    """

    m: Moments
    factor: Factor | None
    rho: Array
    values: Array
    by_block: Array
    blocks: list[Axis]
    entries: float
    counts: list[float]
    shares: list[float]
    common: Array
    by_distance: Array
    reading: near_maps.Reading
    overlap: Array
    first: int
    matrices: list[Array]

    @property
    def count(self) -> float:
        """The mean of `counts`."""
        return float(np.dot(self.counts, self.shares))


def _ranked(x: Moments, matrices: list[Array]) -> _Ranked:
    rank = len(matrices)
    spatial = tuple(range(len(x.dims) - rank, len(x.dims)))
    for d in spatial:
        x = reg.single_axis(x, d) if x.dims[d] else x
    x = reg.broadcast(x, (*x.dims[:-rank], *[d or ((1,),) for d in x.dims[-rank:]]))
    whole = alg.collapse(x)
    x = alg.collapse(one_block(whole, spatial))
    first = len(x.axes) - rank
    own, blocks = alg.absorbed(whole.terms[0], whole.axes), list(whole.axes[first:])
    factor = alg.absorbed(x.terms[0], x.axes)
    steps, shared = [0.0] * rank, np.zeros(1)
    if factor is not None:
        steps, shared = near.overlaps(factor, x.axes, rank)
    sizes, entries = np.ones(1), 1.0
    for matrix, step in zip(matrices, steps, strict=True):
        rows = matrix.sum(1)
        sizes = np.multiply.outer(sizes, 1.0 + (rows - 1.0) * (1.0 - step)).ravel()
        entries *= float(rows.mean())
    counts, times = np.unique(sizes.round(9), return_counts=True)
    weights = (times / times.sum()).tolist()
    how = near_maps.reading(matrices, [(matrix.shape[0],) for matrix in matrices])
    overlap = near.in_common(matrices, steps) if any(steps) else how.distances[:, 0] / entries
    windows_ = (entries, counts.tolist(), weights)
    if factor is None:
        none = np.zeros(1)
        return _Ranked(x, None, none, none, none, [], *windows_, none, none, how, overlap, first, matrices)
    values, rho = factor.values, factor.rho
    if np.any(np.diff(values, axis=-1) < 0):  # not monotone: the same marginal of another variable
        rows = [latents.quantiles(row, latents.WEIGHTS) for row in values.reshape(-1, values.shape[-1])]
        values = np.stack(rows).reshape(values.shape)
        other = alg.with_marginal(x.dims, x.table, x.mean, values).terms[0].factors[0]
        values, rho = other.values, other.rho
    by_distance = near.correlations(factor, x.axes, rank, rho)
    left = np.divide(by_distance - shared, 1.0 - shared, out=np.ones(by_distance.shape), where=shared < 1.0)
    by_distance = np.clip(left, -1.0, 1.0)
    common = np.clip(_apart(by_distance, how)[..., 0], 0.0, 0.999)
    by_block = values if own is None or values is not factor.values else own.values
    known = (rho, values, by_block, blocks, *windows_)
    return _Ranked(x, factor, *known, common, by_distance, how, overlap, first, matrices)


def _apart(by_distance: Array, how: near_maps.Reading) -> Array:
    """Return the correlation of two entries of windows, the same or two, that do not coincide.

    Entries that are alike by unequal ρ count as equally correlated ones with the same mean of √(1 − ρ): the
    largest of two is √((1 − ρ)/π) on average, that of three √(1 − ρ)·3/(2√π) with the mean over the pairs.
    """
    pairs = how.distances[:, 1:].sum(1)
    unlike = np.sqrt(1.0 - by_distance) @ how.distances.T / np.maximum(pairs, 1e-300)
    return np.asarray(1.0 - unlike**2)


def _between(ranked: _Ranked) -> tuple[Array, Array]:
    """Return b₀'s share (entries that coincide, per entry) and the weights of the others, by (output.

    Input) classes.
    """
    weights = np.ones((1, 1))
    for matrix in ranked.matrices:
        pairs, _ = matrix_pairs(matrix, (matrix.shape[0],), (matrix.shape[1],))
        weights = np.einsum("ab,cd->acbd", weights, pairs).reshape(weights.shape[0] * 2, weights.shape[1] * 2)
    others = weights.copy()
    others[:, 0] = 0.0
    return weights[:, 0] / ranked.entries, others / np.maximum(others.sum(1, keepdims=True), 1e-300)


def _max_pool(ctx: Context, x: Moments, matrices: list[Array]) -> tuple[Moments, Moments]:
    ctx.note(
        "max pools take the entries of a window as equally correlated, and normal up to a monotone function"
    )
    r = _ranked(x, matrices)
    rank = len(matrices)
    places = alg.independent(
        ctx.shape, np.linspace(0.0, float(np.prod(x.shape[-rank:])) - 1, len(latents.NODES))
    )
    if r.factor is None:
        dims: Dims = (*r.m.dims[:-rank], *[((w.shape[0],),) for w in matrices])
        made = alg.assemble(dims, (Term(r.m.mean),))
        return _without_ones(made, rank), places
    full = np.broadcast_to(r.rho, (*r.rho.shape[: r.first], *[2] * rank))
    flat = full.reshape((*full.shape[: r.first], -1))
    met, others = _between(r)
    apart = flat @ others.T
    lead = r.m.axes[: r.first]
    rest = rec.outer(np.sqrt(1.0 - r.common), np.sqrt(1.0 - r.common), lead)[..., None]
    inner = np.clip((flat[..., :1] - apart) / rest, -1.0, 1.0)
    both = apart + rest * met * maxima.covariance(r.count, inner)
    largest = _for_each(r.common, lambda a: maxima.quantiles(r.counts, r.shares, a))
    std = np.sqrt(latents.mean((largest - latents.mean(largest)[..., None]) ** 2))
    rho = _correlation(largest, both / rec.outer(std, std, lead)[..., None])
    rho = rho.reshape((*full.shape[: r.first], *[2] * rank))
    alike = _alike(r, largest)
    own = rho[tuple([slice(len(a)) for a in lead])]
    own[...] = distances.by_class(alike, [w.shape[0] for w in matrices])
    made = _in_blocks(r, rho, largest)
    pools.remember(made, r.factor)
    return _without_ones(near.marked(made, alike, rank, r.overlap), rank), places


def _in_blocks(r: _Ranked, rho: Array, largest: Array) -> Moments:
    """Return the largest entries with blocks for windows at the borders; see `borders`."""
    ends = [borders.of_outputs(w, axis) for w, axis in zip(r.matrices, r.blocks, strict=True)]
    if all(len(end.axis) == 1 for end in ends):
        values, own = r.values, _spatial(largest, r)
    else:
        ratio = r.count / r.entries  # what entries have in common with the next makes fewer of them
        values = borders.values_read(ends, r.by_block)
        own = borders.largest(
            ends, lambda n: _for_each(r.common, lambda a: maxima.quantiles([n * ratio], [1.0], a))
        )
        rho = borders.correlations(ends, rho)
    dims = (*r.m.dims[: -len(ends)], *[(end.axis,) for end in ends])
    return alg.from_values(dims, rho, _interpolated(values, own))


def _alike(r: _Ranked, largest: Array) -> Array:
    """Return by distance the correlations of the largest entries of windows, of one sample and channel."""
    shared = maxima.shared(r.count, r.overlap)
    both = _apart(r.by_distance, r.reading) + (1.0 - r.common[..., None]) * shared
    variance = latents.mean((largest - latents.mean(largest)[..., None]) ** 2)
    rho = _correlation(largest, both / variance[..., None])
    rho[..., 0] = 1.0
    return rho


def _spatial(values: Array, r: _Ranked) -> Array:
    """Return values at the nodes with spatial axes of length 1."""
    return np.expand_dims(values, tuple(range(r.first, r.first + len(r.matrices))))


def _for_each(common: Array, fn: Callable[[float], Array]) -> Array:
    """Return values at the nodes for each correlation, those that hardly differ made once."""
    rounded = np.round(common, 3)
    made = {a: fn(float(a)) for a in np.unique(rounded)}
    return np.stack([made[a] for a in rounded.ravel()]).reshape((*common.shape, -1))


def _correlation(largest: Array, wanted: Array) -> Array:
    """Return the correlations of the variables that maxima of these correlations are functions of."""
    typical = largest.reshape(-1, largest.shape[-1]).mean(0)
    typical = typical - latents.mean(typical)
    return latents.correlation_for(typical / latents.mean(typical**2) ** 0.5, np.clip(wanted, -1.0, 1.0))


def _interpolated(values: Array, at: Array) -> Array:
    """Return functions of a latent at the values of another."""
    values, at = np.broadcast_arrays(values, at)
    each = zip(values.reshape(-1, values.shape[-1]), at.reshape(-1, at.shape[-1]), strict=True)
    return np.stack([np.interp(x, latents.NODES, row) for row, x in each]).reshape(values.shape)


def _without_ones(m: Moments, rank: int) -> Moments:
    for d in range(len(m.dims) - rank, len(m.dims)):
        if m.shape[d] == 1 and m.dims[d]:
            m = reg.selected(m, d, 0, keep=True)
    return m


def _max_pool_backward(g: Moments, x: Moments, matrices: list[Array]) -> Moments:
    """Route gradients to the largest entries.

    dx = R·γ/√E[p]: R is 1 with the probability p(z) that an entry of this value is the largest of its window,
    else 0, on the input's own latent, so that an activation behind it is not counted twice; γ carries the
    gradients, with the table that the sum over windows has. R is held as p(z) + √(p − p²)·ε with noise ε of
    each entry's own: the right moments, of pairs too.
    """
    rank = len(matrices)
    g = _spatially_one(g, rank)
    for d in range(len(x.dims) - rank):
        g, x = reg.match_dims(g, d, x, d)
    r = _ranked(x, matrices)
    m = r.m
    if r.factor is None:
        odds = np.ones(len(latents.NODES))
    else:
        odds = _spatial(_for_each(r.common, lambda a: maxima.chosen(r.counts, _by_entry(r), a)), r)
        odds = odds * (r.count / r.entries)  # of several that are equal, one
    table, mean = _routed(g, r)
    rec.diagonal(table, m.axes)[...] = _largest_of_both(g, r)
    if r.factor is None:
        return _without_ones(alg.gaussian(m.dims, table, mean), rank)
    p = np.clip(_at_ranks(r, odds), 0.0, 1.0)
    behind = pools.slope_behind(g, r.factor)
    slope = np.ones(1) if behind is None else pools.of_maximum(behind, r.factor.values)
    size = np.sqrt(np.maximum(latents.mean(p * slope**2), 1e-300))[..., None]
    known = changed(r.factor, p * slope / size, m.axes)
    noise = changed(r.factor, np.sqrt(p - p * p) * slope / size, m.axes)
    own = _white(r.factor, m)
    carried = alg.gaussian(m.dims, table / (known.table + noise.table * own.table), mean / known.mean)
    one = np.ones([1] * len(m.axes))
    largest = alg.assemble(m.dims, (Term(one, (known,)), Term(one, (noise, own))))
    return _without_ones(alg.multiply(largest, carried), rank)


def _white(factor: Factor, m: Moments) -> Factor:
    """Return a normal variable that every entry which a factor tells apart has for itself."""
    rho = np.zeros(
        [len(a) * (len(a) + 1) if n > 1 else 1 for a, n in zip(m.axes, factor.rho.shape, strict=True)]
    )
    rec.diagonal(rho, m.axes)[...] = 1.0
    return alg.new_factor(m.axes, rho, latents.NODES.reshape([1] * len(m.axes) + [-1]))


def _spatially_one(g: Moments, rank: int) -> Moments:
    for d in range(len(g.dims) - rank, len(g.dims)):
        g = reg.single_axis(g, d) if g.dims[d] else g
    g = reg.broadcast(g, (*g.dims[:-rank], *[d or ((1,),) for d in g.dims[-rank:]]))
    return one_block(g, tuple(range(len(g.dims) - rank, len(g.dims))))


def _by_entry(r: _Ranked) -> list[float]:
    weights = np.asarray(r.counts) * np.asarray(r.shares)
    return (weights / weights.sum()).tolist()  # type: ignore[no-any-return]


def _at_ranks(r: _Ranked, odds: Array) -> Array:
    """Return a function of rank at the nodes of the input's own latent, which need not be monotone in it."""
    assert r.factor is not None
    values, odds = np.broadcast_arrays(r.factor.values, odds)
    own = np.cumsum(latents.WEIGHTS) - 0.5 * latents.WEIGHTS
    rows = []
    for row, of_rank in zip(
        values.reshape(-1, values.shape[-1]), odds.reshape(-1, odds.shape[-1]), strict=True
    ):
        order = np.argsort(row, kind="stable")
        share = np.cumsum(latents.WEIGHTS[order]) - 0.5 * latents.WEIGHTS[order]
        placed = np.empty_like(row)
        placed[order] = np.interp(share, own, of_rank)
        rows.append(placed)
    return np.stack(rows).reshape(values.shape)


def _routed(g: Moments, r: _Ranked) -> tuple[Array, Array]:
    """Return the table and mean of the gradients that reach an input, over all windows that contain it."""
    first, count = r.first, r.entries
    table, mean = g.table, g.mean
    alone = np.ones(1)  # pairs of entries of one window, by spatial class
    one = np.broadcast_to(table, (*table.shape[:first], *[2] * len(r.matrices)))
    one = one.reshape((*one.shape[:first], -1))[..., :1]
    for position, matrix in enumerate(r.matrices, start=first):
        on_pairs, on_blocks = matrix_pairs(matrix.T, (matrix.shape[1],), (matrix.shape[0],))
        full = np.broadcast_to(table, (*table.shape[:position], 2, *table.shape[position + 1 :]))
        table = np.moveaxis(np.tensordot(on_pairs, full, axes=(1, position)), 0, position)
        mean = np.moveaxis(np.tensordot(on_blocks, mean, axes=(1, position)), 0, position)
        alone = np.multiply.outer(alone, on_pairs[:, 0]).ravel()
    table = table / count**2
    # One entry is the largest or not, so that 1/K stands in place of 1/K², and 0 for two entries of one
    # window; two samples at one place are in between, by the share to which they agree.
    here = tuple([slice(None)] * first + [0] * len(r.matrices))
    shares = np.ones(1)
    if r.factor is not None:
        rho = np.broadcast_to(r.rho, (*r.rho.shape[:first], *[2] * len(r.matrices)))[here]
        variance = float(maxima.covariance(count, np.ones(1))[0])
        shares = np.clip(maxima.covariance(count, rho) / variance, 0.0, 1.0)
    table = np.array(
        np.broadcast_to(table, (*np.broadcast_shapes(table[here].shape, shares.shape), *table.shape[first:]))
    )
    table[here] = table[here] * (1.0 + (count - 1.0) * shares)
    alone[0] = 0.0
    less = shares[..., None] * one * alone / count**2
    table = table - less.reshape((*less.shape[:-1], *table.shape[first:]))
    return table, mean / count


def _largest_of_both(g: Moments, r: _Ranked) -> Array:
    """Return the second moment of the gradients that reach an entry, by block of all axes.

    Two windows of K entries that read it, m of them both, send theirs to it together where it is the largest
    of both: if it has the rank u in the one, with the probability u^{1−m/K}/K, which is 1/(2K − m) on
    average. The slopes of functions behind, γ·f′(z), are equal there.
    """
    rank = len(r.matrices)
    share = np.minimum(r.reading.distances[:, 0] / r.entries, 1.0)
    odds = latents.WEIGHTS[:, None] * np.power.outer(maxima.cumulative(latents.NODES), 1.0 - share)
    carrier, rest = slopes.split(g.terms[0]) if len(g.terms) == 1 else (None, [])
    if carrier is None or len(rest) != 1:
        sent = near.spread(g, rank) * odds.sum(0)
    else:
        square = rest[0].values ** 2
        sent = near.moments(Term(g.terms[0].coef, (carrier,)), g.axes, rank)
        sent = sent * (square.reshape((*square.shape[: r.first], -1)) @ odds)
    turned = near_maps.reading([w.T for w in r.matrices], [(w.shape[1],) for w in r.matrices])
    return np.expand_dims(sent @ turned.classes[0] / r.entries, tuple(range(r.first, r.first + rank)))


def _within(x: Any, rank: int) -> tuple[Moments, list[slice]]:
    """Return what lies within a padding by −∞, which is never the largest, and where along each dim."""
    if not isinstance(x, Shifted):
        return as_moments(x), [slice(None)] * rank
    if not isinstance(x.shift, Concrete):
        raise NoRule("a maximum over entries with a mask beside them")
    there = (x.shift.tensor == 0).reshape(x.shift.tensor.shape[-rank:])
    made, places = x.random, []
    for d in range(rank):
        at = there.movedim(d, 0).reshape(there.shape[d], -1).any(1).nonzero()
        places.append(slice(int(at.min()), int(at.max()) + 1))
        made = reg.sliced(made, len(made.dims) - rank + d, places[d].start, places[d].stop, 1)
    if not bool(there[tuple(places)].all()) or int(there.sum()) != int(np.prod(made.shape[-rank:])):
        raise NoRule("a maximum over entries with a mask beside them")
    return made, places


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", accuracy="approximate", raw=(0,))
def max_pool(
    ctx: Context, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> tuple[Moments, Moments]:
    """Maximum over windows, as a function of a new latent; see `maxima`.

    The positions are taken as uniform.
    """
    rank = rank_of(ctx.op)
    sizes = (x.random if isinstance(x, Shifted) else as_moments(x)).shape[-rank:]
    inside, at = _within(x, rank)
    whole = windows(ctx.shape[-rank:], sizes, kernel, stride, padding, dilation)
    return _max_pool(ctx, inside, [w[:, s] for w, s in zip(whole, at, strict=True)])


@rule(
    "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward", accuracy="approximate", raw=(1, 7)
)
def max_pool_backward(
    ctx: Context, g: Moments, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> Moments:
    """Gradient of a maximum over windows, on the latent of its input.

    Assumes gradients independent of the input.
    """
    rank = rank_of(ctx.op)
    whole = windows(g.shape[-rank:], ctx.shape[-rank:], kernel, stride, padding, dilation)
    inside, at = _within(x, rank)
    made = _max_pool_backward(g, inside, [w[:, s] for w, s in zip(whole, at, strict=True)])
    sides = [s.indices(w.shape[1])[:2] for w, s in zip(whole, at, strict=True)]
    around = [(begin, w.shape[1] - end) for (begin, end), w in zip(sides, whole, strict=True)]
    return padded(made, [n for pair in reversed(around) for n in pair], 0.0)


@rule("adaptive_max_pool2d", "adaptive_max_pool3d", accuracy="approximate")
def adaptive_max_pool(ctx: Context, x: Moments, size: Any) -> tuple[Moments, Moments]:
    """Maximum over windows that share the input evenly; as `max_pool`."""
    rank = rank_of(ctx.op)
    return _max_pool(ctx, x, adaptive_windows(ctx.shape[-rank:], x.shape[-rank:]))


@rule("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", accuracy="approximate", raw=(2,))
def adaptive_max_pool_backward(ctx: Context, g: Moments, x: Moments, indices: Any) -> Moments:
    """Gradient of `adaptive_max_pool`; as `max_pool_backward`."""
    rank = rank_of(ctx.op)
    return _max_pool_backward(g, x, adaptive_windows(g.shape[-rank:], x.shape[-rank:]))


@rule("max_unpool2d", "max_unpool3d", accuracy="approximate")
def max_unpool(ctx: Context, x: Moments, places: Any, size: Any, *_: Any) -> Moments:
    """Entries at the places they were the largest of, zeros elsewhere.

    Approximate: the places are taken as spread uniformly over the output, without order. Second moments of
    the whole exact.
    """
    ctx.note("an unpooling takes the places of its entries as uniformly spread")
    rank = rank_of(ctx.op)
    lead, few, many = x.shape[:-rank], int(np.prod(x.shape[-rank:])), int(np.prod(ctx.shape[-rank:]))
    flat = one_block(reg.single_axis(reg.regrouped(x, (*lead, few)), len(lead)), (len(lead),))
    if not flat.dims[-1]:
        flat = reg.broadcast(flat, (*flat.dims[:-1], ((1,),)))
    (p,) = flat.positions(len(lead))
    return reg.regrouped(scattered(flat, p, many), ctx.shape)
