"""Entries that are the more alike the nearer they lie to one another: the places of an image behind a pool.

A pair class "differ" of a spatial axis has one mean correlation. Where windows overlap, or copies lie side by
side, neighbours have more. What such a map makes, a mark `Near` tells by distance,

    ε(δ) = (ρ(δ) − ρ_far)/(1 − ρ_far)        for two entries that agree on all other axes,

where δ counts the places along each of the last axes, up to `distances.REACH`, and ε = 0 beyond. Neither
centring (ρ and ρ_far lose a constant) nor a scale changes ε, so that a mark stays true while the record's
table changes. With the mean ε̄ over the pairs of a class, the table's ρ_class of these pairs gives

    ρ(δ) = 1 − (1 − ρ_class)·(1 − ε(δ))/(1 − ε̄),

whose mean over the class is ρ_class again. ε is even and does not know where in the image a pair lies.

A convolution with independent weights reads an entry by each of its weights once, so that the covariances of
its outputs at a distance δ are those of its inputs at stride·δ; sums add them; what lies side by side keeps
each its own. Linear maps whose windows overlap make more of them, and so do maxima. The maxima of two windows
are equal where the largest entry lies in both, which no normal pair is: a mark also tells the share of
entries that two have in common, and functions of them take `maxima.alike` in place of normal pairs of the
same correlation.

Arrays by distance are laid out as `distances` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np

from isometry.moments import distances as dist
from isometry.moments import latents, maxima
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Factor, Moments, Near, Part, Term
from isometry.moments.taps import Window

NEGLIGIBLE = 0.02  # of ε: less is no mark


# --- marks --------------------------------------------------------------------------------------------------


def _mark(factor: Factor) -> Part | None:
    """Return a factor's mark, where its axes still lie as they did."""
    for part in factor.parts:
        if isinstance(part.latent, Near) and factor.labels[-len(part.latent.labels) :] == part.latent.labels:
            return part
    return None


def rank_of(terms: Sequence[Term]) -> int:
    """Return along how many axes the factors of a sum know distances; 0 where none does."""
    marks = (p for t in terms for f in t.factors if (p := _mark(f)) is not None)
    return next((len(p.latent.labels) for p in marks if isinstance(p.latent, Near)), 0)


def _known(factor: Factor | None, axes: Sequence[Axis], rank: int) -> Array:
    """Return ε and, behind them, the shares of variables in common, by distance."""
    distances = prod(map(dist.steps, dist.sizes(axes, rank)))
    part = None if factor is None else _mark(factor)
    lead = len(axes) - rank
    if part is not None and part.values.shape[-1] == 2 * distances:
        return np.asarray(part.values.reshape((*part.values.shape[:lead], -1)))
    alone = np.eye(1, distances)
    return np.concatenate([alone, alone], axis=-1).reshape((*[1] * lead, -1))


def profile(m: Moments, rank: int) -> Array:
    """Return what the mark of a record of one factor at most tells; see `with_profile`."""
    return _known(m.terms[0].factors[0] if m.terms[0].factors else None, m.axes, rank)


def correlations(factor: Factor, axes: Sequence[Axis], rank: int, rho: Array | None = None) -> Array:
    """Return the latent's correlations of entries that differ along the last axes alone, by distance.

    Args:
        factor: The function of the latent.
        axes: The record's.
        rank: The number of axes along which distance counts.
        rho: The correlations by pair class, where they are not the factor's.
    """
    told = dist.told(factor.rho if rho is None else rho, axes, rank)
    epsilon = _known(factor, axes, rank)[..., : told.shape[-1]]
    apart = 1.0 - dist.class_means(epsilon, dist.sizes(axes, rank))
    ratio = np.divide(1.0 - epsilon, apart, out=np.ones(epsilon.shape), where=apart > 1e-9)
    found = np.clip(1.0 - (1.0 - told) * ratio, -1.0, 1.0)
    found[..., 0] = 1.0
    return np.asarray(found)


def moments(term: Term, axes: Sequence[Axis], rank: int) -> Array:
    """Return E[x x′] of entries that differ along the last axes alone, by distance."""
    coef = dist.whole(term.coef, axes, rank, pairs=False) ** 2
    distances = prod(map(dist.steps, dist.sizes(axes, rank)))
    result = coef.reshape((*coef.shape[: len(axes) - rank], 1)) * np.ones(distances)
    for factor in term.factors:
        values = dist.whole(factor.values, axes, rank, pairs=False)
        values = values.reshape((*values.shape[: len(axes) - rank], 1, -1))
        products = latents.spectrum(values) ** 2
        rho = correlations(factor, axes, rank)
        own = latents.mehler(products, rho)
        shares = _known(factor, axes, rank)[..., rho.shape[-1] :]
        if shares[..., 1:].any():
            together, normal = maxima.alike(values, shares)
            own = own + together - latents.mehler(products, normal) + products[..., 0]
        result = result * own
    return result


@lru_cache(maxsize=32)
def excess(m: Moments, rank: int) -> Array:
    """Return by how much E[x x′] of entries at a distance exceeds the mean of their pair class."""
    total = np.zeros(1)
    for term in m.terms:
        own = moments(term, m.axes, rank)
        total = total + own - dist.class_means(own, dist.sizes(m.axes, rank))
    return total


def spread(m: Moments, rank: int) -> Array:
    """Return E[x x′] of entries that differ along the last axes alone, by distance: table and `excess`."""
    told = dist.told(m.table, m.axes, rank)
    return told + excess(m, rank) if rank_of(m.terms) == rank else told


def unevenness(m: Moments, rank: int) -> Array:
    """Return Σ (C − C_class)² over the pairs of a place, by block of the axes but the last."""
    sizes = dist.sizes(m.axes, rank)
    return np.asarray(excess(m, rank) ** 2 @ (dist.pairs(sizes) / prod(sizes)))


def marked(m: Moments, covariances: Array, rank: int, shares: Array | None = None) -> Moments:
    """Return a record of one term that knows distances; as it is where they make no difference.

    Args:
        m: The record; its last factor gets the mark.
        covariances: Of the latent, by distance, up to a scale and a constant.
        rank: The number of axes along which distance counts.
        shares: The share of variables that two entries, the largest of some each, have in common.
    """
    same, far = covariances[..., :1], covariances[..., -1:]
    known = same - far > 1e-9 * np.abs(same)
    epsilon = np.divide(covariances - far, same - far, out=np.zeros(covariances.shape), where=known)
    none = np.eye(1, epsilon.shape[-1])[0]
    both = np.broadcast_to(none if shares is None else shares, epsilon.shape)
    return with_profile(m, np.concatenate([epsilon, both], axis=-1), rank)


def with_profile(m: Moments, profile: Array, rank: int) -> Moments:
    """Return a record of one term with a mark of ε and, behind them, the shares; see `marked`."""
    (term,) = m.terms
    epsilon = profile[..., : profile.shape[-1] // 2]
    if not term.factors or np.abs(epsilon[..., 1:]).max(initial=0.0) < NEGLIGIBLE:
        return m
    *before, last = term.factors
    parts = tuple(p for p in last.parts if not isinstance(p.latent, Near))
    values = profile.reshape((*profile.shape[:-1], *[1] * rank, -1))
    part = Part(Near(last.labels[-rank:]), (None,) * len(m.axes), (), values)
    return replace(m, terms=(Term(term.coef, (*before, replace(last, parts=(*parts, part)))),))


def overlaps(factor: Factor, axes: Sequence[Axis], rank: int) -> tuple[list[float], Array]:
    """Return what entries that are maxima of overlapping windows have in common with the next.

    Returns:
        The share of variables in common with the next entry, along each of the last axes (0 where entries of
        some blocks have other shares), and the correlations that come of what is in common, by distance.
    """
    known = _known(factor, axes, rank)
    shares = known[..., known.shape[-1] // 2 :].reshape((-1, known.shape[-1] // 2))
    if not shares[:, 1:].any() or np.ptp(shares, axis=0).max() > 1e-6:
        return [0.0] * rank, np.zeros(1)
    by_axis = shares[0].reshape([dist.steps(n) for n in dist.sizes(axes, rank)])
    steps = [float(by_axis[tuple([int(k == d) for k in range(rank)])]) for d in range(rank)]
    return steps, maxima.alike(latents.NODES, shares[0])[1]


def in_common(matrices: Sequence[Array], steps: Sequence[float]) -> Array:
    """Return the share of variables that two windows have in common, by distance; see `overlaps`.

    n entries in a row that have a share s in common with the next are worth 1 + (n − 1)(1 − s) entries.
    """
    result = np.ones(1)
    for matrix, s in zip(matrices, steps, strict=True):
        outputs, inputs = matrix.shape
        length = 1.0 + (matrix.sum(1).mean() - 1.0) * (1.0 - s)
        middle = matrix @ np.arange(inputs) / matrix.sum(1)
        stride = (middle[-1] - middle[0]) / max(outputs - 1, 1)
        own = np.maximum(1.0 - np.arange(dist.steps(outputs)) * stride * (1.0 - s) / length, 0.0)
        own[-1] = 0.0
        result = np.multiply.outer(result, own).ravel()
    return result


# --- handing on ---------------------------------------------------------------------------------------------


def kept(made: Moments, source: Moments) -> Moments:
    """Return a record of a new latent with the mark of what it was made of, place by place."""
    rank = rank_of(source.terms)
    if not rank or len(source.terms) != 1 or len(source.terms[0].factors) != 1:
        return made
    return with_profile(made, profile(source, rank), rank)


def of_sum(made: Moments, terms: Sequence[Term]) -> Moments:
    """Return the sum of terms, a record of one latent, with what its terms know of distances."""
    rank = rank_of(terms)
    if not rank:
        return made
    total = np.zeros(1)
    for term in terms:
        own = moments(term, made.axes, rank)
        total = total + own - own[..., -1:]
    return marked(made, total, rank)


def mixed(y: Moments, x: Moments, strides: Sequence[int], *, turned: bool = False) -> Moments:
    """Return a convolution y of x, with independent weights, with what x knows of distances.

    Args:
        y: The output; its last axes are those of space.
        x: The input, likewise.
        strides: One per axis of space.
        turned: Whether it is the transposed map, from a convolution's outputs to its inputs.
    """
    rank = rank_of(x.terms)
    if rank != len(strides) or len(y.axes) < rank:
        return y
    along = []
    old, new = dist.sizes(x.axes, rank), dist.sizes(y.axes, rank)
    for n, given, stride in zip(old, new, strides, strict=True):
        far = dist.steps(n) - 1
        apart = np.minimum(np.arange(dist.steps(given)), given - 1)
        reached = np.where(apart % stride == 0, apart // stride, far) if turned else apart * stride
        along.append(np.minimum(reached, far))
    own = dist.mean(spread(x, rank), x.axes[:-rank])[dist.flat(along, [dist.steps(n) for n in old])]
    return marked(y, own.reshape((*[1] * (len(y.axes) - rank), -1)), rank)


def like(made: Moments, source: Moments) -> Moments:
    """Return a record of one term, of the source less a mean and divided, with what that knows of distances.

    Its last factor is the one that does not know them yet: it gets what the others leave.
    """
    rank = rank_of(source.terms)
    if not rank or len(made.terms) != 1 or made.axes[-rank:] != source.axes[-rank:]:
        return made
    (term,) = made.terms
    now, before = (dist.told(m.table, m.axes, rank) for m in (made, source))
    size = before[..., :1] - before[..., -1:]
    shape = np.broadcast_shapes(now[..., :1].shape, size.shape)
    ratio = np.divide(now[..., :1] - now[..., -1:], size, out=np.zeros(shape), where=size > 0)
    whole = now + ratio * excess(source, rank)
    known = moments(Term(term.coef, term.factors[:-1]), made.axes, rank)
    shape = np.broadcast_shapes(whole.shape, known.shape)
    return marked(made, np.divide(whole, known, out=np.zeros(shape), where=np.abs(known) > 1e-300), rank)


def together(g: Moments, x: Moments, windows: Sequence[Window]) -> float:
    """Return Σ g g′ x x′ over the pairs of taps through one kernel entry, less that of the classes' means.

    Of one sample and channel each, where g lies at the outputs of windows and x at the inputs.
    """
    rank = len(windows)
    if rank_of(g.terms) != rank or rank_of(x.terms) != rank:
        return 0.0
    ours, theirs = (dist.mean(excess(m, rank), m.axes[:-rank]) for m in (g, x))
    outputs, inputs = dist.sizes(g.axes, rank), dist.sizes(x.axes, rank)
    reach = [dist.steps(n) for n in inputs]
    near = [np.arange(dist.steps(n) - 1) for n in outputs]
    reached = [np.minimum(d * w.stride, s - 1) for d, w, s in zip(near, windows, reach, strict=True)]
    at, to = dist.flat(near, [dist.steps(n) for n in outputs]), dist.flat(reached, reach)
    used = prod(w.terms / w.kernel for w in windows)
    return used * float((dist.pairs(outputs)[at] * ours[at] * theirs[to]).sum())
