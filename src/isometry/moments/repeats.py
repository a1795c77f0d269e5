"""Rows that are equal because they are looked up by equal ids, and what else agrees where those do.

A record has one second moment for all pairs of tokens, T = q·S + (1 − q)·D: of the share q of pairs that are
of one word, whose rows are the same, and of the others. A sum over tokens of products of two such tensors has
the pairs' mean of products,

    q·S·S′ + (1 − q)·D·D′ = T·T′ + q(1 − q)·(S − D)(S′ − D′),

and the row of a word in the gradient of a table sums over the pairs of this word alone. `Repeated` marks such
tensors: functions of rows, whose S is the square of an entry, and the gradients of a cross entropy, which the
probabilities make alike. Exact for functions of the ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import gram
from isometry.moments.axes import Array
from isometry.moments.concrete import equal_share
from isometry.moments.record import Factor, Leaning, Moments, Part, Repeated, Run, Term, Tilted

_LEAST = 1e-9  # a smaller share of pairs is none


def looked_up(m: Moments, ids: Tensor, share: Array) -> Moments:
    """Return rows looked up by ids, along the record's first axes, with their mark."""
    if not 0.0 < float(np.max(share.ravel()[1:], initial=0.0)) < 1.0:
        return m
    return _marked(m, Repeated(key_of(ids), tuple(ids.shape), share), tuple(range(share.ndim)))


def key_of(ids: Tensor) -> bytes:
    """Return what tells one tensor of ids from another, of one shape."""
    return ids.to(torch.int64).numpy().tobytes()


def agreeing(mark: Repeated, other: bytes) -> tuple[Array, Array] | None:
    """Return by pair class the share of pairs with equal other ids, of those with equal ids and of the rest.

    None where there are not as many.
    """
    if len(other) != len(mark.ids):
        return None
    codes = [np.unique(np.frombuffer(x, dtype=np.int64), return_inverse=True)[1] for x in (mark.ids, other)]
    of_other, both = (
        equal_share(torch.from_numpy(x).reshape(mark.shape))
        for x in (codes[1], codes[0] * (codes[1].max() + 1) + codes[1])
    )
    alike, rest = (
        np.divide(x, y, out=np.zeros(x.shape), where=y > _LEAST)
        for x, y in ((both, mark.share), (of_other - both, 1.0 - mark.share))
    )
    return alike, rest


def of(m: Moments) -> tuple[Repeated, tuple[int, ...]] | None:
    """Return a record's mark and the axes that the ids run along, in their order; None without any.

    A product is one where all its factors are, of the same ids: equal rows have the product of theirs.
    """
    found = [_of_factor(f, m) for f in m.terms[0].factors] if len(m.terms) == 1 else []
    known = [x for x in found if x is not None]
    if not known or len(known) < len(found) or len({(mark.ids, at) for mark, at in known}) > 1:
        return None
    mark, positions = known[0]
    if len(known) == 1 or all(own.ratio is None for own, _ in known):
        return mark, positions
    equal, rest = np.ones(mark.share.shape), 1.0 - mark.share
    for f, (own, _) in zip(m.terms[0].factors, known, strict=True):
        if own.ratio is not None:
            table = by_class(f.table, m, positions)
            equal = equal * (table / table.ravel()[0] + rest * own.ratio)
    table = by_class(m.table, m, positions)
    apart = equal - table / table.ravel()[0]
    ratio = np.divide(apart, rest, out=np.zeros(rest.shape), where=rest > _LEAST)
    return replace(mark, ratio=ratio), positions


def _of_factor(f: Factor, m: Moments) -> tuple[Repeated, tuple[int, ...]] | None:
    for p in f.parts:
        if isinstance(p.latent, Repeated):
            bases = [label.base if isinstance(label, Run) else None for label in p.labels]
            found = tuple(bases.index(j) for j in range(p.latent.share.ndim) if j in bases)
            whole = all(len(m.axes[k]) == 1 for k in found) and len(found) == p.latent.share.ndim
            return (p.latent, found) if whole else None
    return None


def ids_of(m: Moments) -> bytes | None:
    """Return the ids by which a record's rows were looked up."""
    marks = (p.latent for t in m.terms for f in t.factors for p in f.parts)
    return next((mark.ids for mark in marks if isinstance(mark, Repeated) and mark.ratio is None), None)


def like(made: Moments, m: Moments, ratio: Array | float | None = None) -> Moments:
    """Return a record of the axes of another with its mark.

    Args:
        made: The record.
        m: The one that it is a function of, row by row.
        ratio: Of its (S − D)/S; None where its rows are the same for the same ids.
    """
    known = of(m)
    if known is None:
        return made
    mark, positions = known
    own = None if ratio is None else np.broadcast_to(np.asarray(ratio, dtype=np.float64), mark.share.shape)
    return _marked(made, replace(mark, ratio=own), positions)


def excess(m: Moments, mark: Repeated, positions: Sequence[int]) -> Array:
    """Return S − D by pair class of the ids' axes, a mean over the other axes' entries."""
    table = by_class(m.table, m, positions)
    square = float(table.ravel()[0])
    if mark.ratio is not None:
        return np.asarray(mark.ratio * square)
    rest = 1.0 - mark.share
    return np.divide(square - table, rest, out=np.zeros(table.shape), where=rest > _LEAST)


def by_class(table: Array, m: Moments, positions: Sequence[int]) -> Array:
    """Return a pair array by pair class of axes of one block, a mean over the other axes' entries."""
    table = np.broadcast_to(table, [2 if k in positions else n for k, n in enumerate(table.shape)])
    for k in sorted((k for k in range(table.ndim) if k not in positions), reverse=True):
        own = table[(slice(None),) * k + (slice(0, len(m.axes[k])),)]
        shares = ax.shares(m.axes[k]) if own.shape[k] > 1 else np.ones(1)
        table = np.asarray(np.tensordot(own, shares, axes=(k, 0)))
    return np.asarray(table.transpose(np.argsort(np.argsort(positions))))


def of_equal(values: Array, mark: Repeated, axes: Sequence[ax.Axis]) -> float:
    """Return the mean of values by pair class over pairs of different tokens with the same id."""
    weights = mark.share * pairs(axes)
    weights.ravel()[0] = 0.0
    return float((weights * values).sum() / max(float(weights.sum()), 1e-300))


def of_products(a: Moments, b: Moments, summed_a: Sequence[int], summed_b: Sequence[int]) -> float:
    """Return what a sum over tokens of products gains in its square, 0 where the two do not go together."""
    ours, theirs = of(a), of(b)
    if ours is None or theirs is None or ours[0].ids != theirs[0].ids:
        return 0.0
    if sorted(ours[1]) != sorted(summed_a) or sorted(theirs[1]) != sorted(summed_b):
        return 0.0
    share = ours[0].share
    gained = share * (1.0 - share) * excess(a, *ours) * excess(b, *theirs)
    return float((gained * pairs([a.axes[k] for k in ours[1]])).sum())


def through(made: Moments, a: Moments, b: Moments) -> Moments:
    """Return the product of a matrix of rows and another one with what it has of their marks.

    A weight b with d columns gives the gradient at rows x what it has along x besides, E[(Σ l g)²]/|x|² for
    the logits l = xᵀb, in place of an average share 1/d of a gradient that does not depend on b.
    """
    gained = of_products(a, b, a.positions(1), b.positions(0))
    if gained:
        return alg.gaussian(made.dims, con.with_square(made.table, gained, made.axes), made.mean)
    if not gram.is_white(b):
        return made
    marks = (p for f in a.terms[0].factors for p in f.parts if any(p.labels[k] for k in a.positions(1)))
    tilt = next((p.latent for p in marks if isinstance(p.latent, Tilted)), None)
    known = of(a)
    if tilt is None:
        return made if known is None or set(known[1]) & set(a.positions(1)) else like(made, a, known[0].ratio)
    own = 1.0 + (tilt.own - 1.0) / b.shape[1]
    made = alg.scale(made, own**0.5)
    if known is None or known[0].ratio is None:
        return made
    return like(made, a, (known[0].ratio + tilt.pairs / b.shape[1]) / own)


def leaning(g: Moments, dim: int, width: int) -> float:
    """Return what the square of a product over a dim of scores' gradients g gains, of which `width` are made.

    A query q gets Σ_k dS_k k, of which 1/d lies along q; a key gets Σ dS q, where rows of large q have large
    variances of their own, |q|², of the relative variance 2/d.
    """
    for f in g.terms[0].factors if len(g.terms) == 1 else ():
        for p in f.parts:
            along = [p.labels[k] for k in g.positions(dim)]
            if isinstance(p.latent, Leaning) and len(along) == 1 and isinstance(along[0], Run):
                over_keys = along[0].base == 0
                gained = (p.latent.rows - 1.0) / width if over_keys else 2.0 * p.latent.rise / width
                return max(1.0 + gained, 0.1)
    return 1.0


def pairs(axes: Sequence[ax.Axis]) -> Array:
    """Return how many ordered pairs each class has, of axes of one block."""
    counts: Array = np.ones(1)
    for axis in axes:
        counts = np.multiply.outer(counts, ax.pair_counts(axis))
    return np.asarray(counts[0])


def _marked(m: Moments, mark: Repeated, positions: Sequence[int]) -> Moments:
    if len(m.terms) != 1 or not m.terms[0].factors:
        return m
    (term,) = m.terms
    *before, last = term.factors
    others = tuple(p for p in last.parts if not isinstance(p.latent, Repeated))
    labels = tuple(Run(positions.index(k), 1, 0) if k in positions else None for k in range(len(m.axes)))
    part = Part(mark, labels, (), np.zeros([1] * (len(m.axes) + 1)))
    return replace(m, terms=(Term(term.coef, (*before, replace(last, parts=(*others, part)))),))
