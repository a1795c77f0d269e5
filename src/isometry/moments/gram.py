"""Inner products that several tensors share: queries, keys and values are images of the same rows x.

For y = x·W with W of independent entries, E[y_k y_k′ | x] is proportional to x_k·x_k′. Its mean stands in the
table; its fluctuation, of relative variance 1/d_eff = Σ_s m(s) C(s)²/(Σ x²)² with C the covariance of x's
features, does not. It matters where two images of one x are contracted over k: there the T² pairs k ≠ k′ each
add 1/d_eff, so that E[dq²] in attention grows by 1 + T/d_eff. Asymptotic in the width of x; the inner
products are taken as those of normal rows, what neighbouring rows have in common (a softmax does not see it)
is left out, and only pairs that agree on all other axes get the addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import lineage, uneven
from isometry.moments.axes import Array
from isometry.moments.record import Gram, Label, Moments, Part, Term, diagonal

Contraction = Callable[[Array, Array], Array]


def images(m: Moments, summed: Sequence[int], other: Moments) -> tuple[Part, ...]:
    """Return the inner products that a contraction of m (over axes at `summed`) with `other` passes on.

    They come as parts of m.

    Those that m's rows are images of already; and, where `other` has independent entries, those of m itself.
    """
    handed = tuple(p for p in lineage.marks_of(m.terms) if all(p.labels[k] is None for k in summed))
    if not is_white(other):
        return handed
    main = max(
        (f for t in m.terms for f in t.factors if any(f.labels[k] is not None for k in summed)),
        key=lambda f: float((f.table.max() - f.mean.max() ** 2) / max(f.table.max(), 1e-300)),
        default=None,
    )
    if main is None:
        return handed
    labels: tuple[Label, ...] = tuple(None if k in summed else x for k, x in enumerate(main.labels))
    gone = tuple(main.labels[k] for k in summed)
    origin = Gram(main.latent, gone, _fluctuation(m, summed))
    return (*handed, Part(origin, labels, (), np.sqrt(_own(m, labels))[..., None]))


def _own(m: Moments, labels: Sequence[Label]) -> Array:
    """Return the variance that a row does not share with its neighbours, by block.

    Rows run along the last axis kept.
    """
    rows = max((k for k, label in enumerate(labels) if label is not None), default=None)
    if rows is None or m.table.shape[rows] == 1:
        return m.variance
    b = len(m.axes[rows])
    other = np.take(m.table, [b + b * k + k for k in range(b)], axis=rows)
    at = tuple(
        slice(None) if k == rows else slice(0, len(axis) if n > 1 else 1)
        for k, (axis, n) in enumerate(zip(m.axes, m.table.shape, strict=True))
    )
    return np.clip(m.square - other[at], 0.0, None)


def is_white(m: Moments) -> bool:
    """Return whether all entries are independent, as those of a random matrix."""
    if m.only is None or m.table.size < 2:
        return False
    off = m.only.rho.ravel()[1:]
    return not off.any() and all(len(a) == 1 for a in m.axes)


def _itself(m: Moments, features: Sequence[int], other: Moments) -> tuple[Part, ...]:
    """Return m as an image of itself, where another tensor shares the inner products of its rows."""
    factors = {f.latent: f for t in m.terms for f in t.factors}
    for part in lineage.marks_of(other.terms):
        gram = part.latent
        factor = factors.get(gram.origin) if isinstance(gram, Gram) else None
        if isinstance(gram, Gram) and factor and tuple(factor.labels[k] for k in features) == gram.features:
            labels = tuple(None if k in features else x for k, x in enumerate(factor.labels))
            return (Part(gram, labels, (), np.sqrt(_own(m, labels))[..., None]),)
    return ()


def _fluctuation(m: Moments, summed: Sequence[int]) -> float:
    """Return 1/d_eff of a tensor's rows along the axes at `summed`."""
    at: list[slice] = []
    for k, (axis, n) in enumerate(zip(m.axes, m.table.shape, strict=True)):
        at.append(slice(None) if k in summed else slice(0, len(axis) if n > 1 else 1))
    covariance = m.table[tuple(at)] - m.mean.mean() ** 2
    square = np.maximum(diagonal(covariance, m.axes), 0.0)
    both = covariance**2
    for k in sorted(summed, reverse=True):
        counts = ax.pair_counts(m.axes[k])
        n = np.asarray(m.axes[k], dtype=np.float64)
        both = (
            np.tensordot(both, counts, axes=(k, 0)) if both.shape[k] > 1 else both.take(0, k) * counts.sum()
        )
        square = np.tensordot(square, n, axes=(k, 0)) if square.shape[k] > 1 else square.take(0, k) * n.sum()
    return float(np.mean(both) / max(float(np.mean(square)) ** 2, 1e-300)) + uneven.excess(m)


def passed_on(
    made: Moments,
    parts: Sequence[Part],
    order: Sequence[int | None],
    common: Sequence[int],
    through: Contraction,
    others: Array,
) -> Moments:
    """Return a contraction's record with the inner products of one input.

    `order` says which of the input's axes each axis was. Along its axes `common` to both inputs every row had
    an operator of its own: there, rows are no longer images under one matrix, which the parts note as `gone`.

    Rows get sizes, y_k = (Σ_s v_ks²)^½, for what is Σ_s v_ks v_k′s between two of them. Where v is no
    product, as in causal attention, whose early queries weigh few keys, their mean is set to what that gives.
    """
    (term,) = made.terms
    if not term.factors or not parts:
        return made
    std = np.sqrt(made.variance)
    gone = [k for k in range(len(parts[0].labels)) if k not in order]
    gain = _by_size(through(np.ones([1] * len(parts[0].labels)), others), std)
    given = []
    for part in parts:
        values = part.values[..., 0]
        if all(values.shape[k] == 1 for k in gone):  # v_ks = v_k w_s: y_k follows v_k
            size = _laid(values, order, gone) * gain
        else:
            square = through(values**2, others)
            size = _by_size(square * _concentration(part, square, order, common, made, through, others), std)
        labels = tuple([None if k is None else part.labels[k] for k in order])
        own = [part.labels[k] for k in common if part.labels[k] is not None]
        size = np.minimum(size, 1.0)  # no part has more of the variance than there is
        given.append(Part(part.latent, labels, (*part.gone, *own), size[..., None]))
    (factor,) = term.factors
    return replace(made, terms=(Term(term.coef, (replace(factor, parts=(*factor.parts, *given)),)),))


def _by_size(square: Array, std: Array) -> Array:
    """Return the root of a square in units of `std`, 0 where that is."""
    shape = np.broadcast_shapes(square.shape, std.shape)
    return np.asarray(np.sqrt(np.divide(square, std**2, out=np.zeros(shape), where=std > 0)))


def _laid(values: Array, order: Sequence[int | None], gone: Sequence[int]) -> Array:
    """Return an input's block array, which does not vary along the axes `gone`, on the output's axes."""
    kept = [k for k in order if k is not None]
    shape = [1 if k is None else values.shape[k] for k in order]
    return values.transpose([*kept, *gone]).reshape(shape)


def _concentration(
    part: Part,
    square: Array,
    order: Sequence[int | None],
    common: Sequence[int],
    made: Moments,
    through: Contraction,
    others: Array,
) -> Array:
    """Return Σ_s (Σ_k v_ks)² / (Σ_k y_k)², at most 1, where k runs along the rows that are left."""
    labels = enumerate(part.labels)
    rows = max((k for k, x in labels if x is not None and k in order and k not in common), default=None)
    values = part.values[..., 0]
    if rows is None or values.shape[rows] == 1:
        return np.ones([1] * square.ndim)
    at = order.index(rows)
    n = np.asarray(made.axes[at], dtype=np.float64)
    total = np.expand_dims(np.tensordot(values, n, axes=(rows, 0)), rows)
    sizes = np.expand_dims(np.tensordot(np.sqrt(square), n, axes=(at, 0)), at)
    return np.asarray(np.minimum(through(total**2, others) / np.maximum(sizes**2, 1e-300), 1.0))


def of_sum(m: Moments, positions: Sequence[int]) -> tuple[Part, ...]:
    """Return the inner products that a sum of m over axes passes on: those of rows along the others.

    The images' share of the variance is taken to stay what it was, as for summands under unlike matrices.
    """
    given = []
    for part in lineage.marks_of(m.terms):
        if any(part.labels[k] is not None for k in positions):
            continue
        std = np.sqrt(m.variance)[..., None]
        shape = np.broadcast_shapes(part.values.shape, std.shape)
        values = np.divide(part.values, std, out=np.zeros(shape), where=std > 0)
        labels = tuple(label for k, label in enumerate(part.labels) if k not in positions)
        given.append(Part(part.latent, labels, part.gone, np.minimum(values, 1.0).mean(tuple(positions))))
    return tuple(given)


def shared(
    a: Moments, in_a: Sequence[Sequence[int]], b: Moments, in_b: Sequence[Sequence[int]], through: Contraction
) -> Array | None:
    """Return what the fluctuation of shared inner products adds to the square of a contraction of a and b.

    Args:
        a: First input.
        in_a: Positions of its common, own and summed axes.
        b: Second input.
        in_b: Likewise.
        through: Σ_s of the product of two block arrays.
    """
    total: Array | None = None
    theirs = (*lineage.marks_of(b.terms), *_itself(b, in_b[1], a))
    for p in (*lineage.marks_of(a.terms), *_itself(a, in_a[1], b)):
        if all(p.labels[i] is None for i in in_a[2]):
            continue
        for q in (q for q in theirs if q.latent == p.latent):
            same = [p.labels[i] == q.labels[j] for k in (0, 2) for i, j in zip(in_a[k], in_b[k], strict=True)]
            if not isinstance(p.latent, Gram) or not all(same):
                continue
            x, y = p.values[..., 0], q.values[..., 0]
            apart = [ax.size(a.axes[i]) for i in in_a[2] if p.labels[i] in (*p.gone, *q.gone)]
            pairs = through(x, y) ** 2 / prod(apart) - through(x**2, y**2)
            extra = np.maximum(pairs, 0.0) * p.latent.fluctuation
            total = extra if total is None else total + extra
    return total
