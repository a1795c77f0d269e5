"""Contractions: the one place where tables are multiplied and summed over pairs of entries.

For y = Σ_k a·b with a and b independent,

    E[y y′] = Σ_s m(s) · E[a a′](s) · E[b b′](s)

where s runs over the pair classes of the contracted axes and m(s) counts the ordered pairs in s. A random
weight matrix is zero but at the all-same class, so that everything about fans follows from this sum. A sum or
mean over axes is a contraction with ones. Exact for the moments; that y is normal is asymptotic in the number
of summands.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import gram, latents, lengths, lineage, origins, projection
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Dims, Moments


def contract(spec: str, a: Moments, b: Moments) -> Moments:
    """Return the record of an einsum of two independent tensors, one letter per dim ("bmk,bkn->bmn").

    A letter of both inputs that is missing in the output is summed over. Exact second moments; the result is
    taken as normal, or as lognormal where both are positive.
    """
    inputs, out = spec.split("->")
    in_a, in_b = inputs.split(",")
    a, b = meet(a, in_a, b, in_b)
    letters_c = [x for x in out if x in in_a and x in in_b]
    letters_s = [x for x in in_a if x in in_b and x not in out]
    letters_a = [x for x in out if x in in_a and x not in in_b]
    letters_b = [x for x in out if x in in_b and x not in in_a]
    if not any(a.dims[in_a.index(x)] for x in letters_s):
        return _outer_product(a, in_a, b, in_b, out)
    pos_a = [[p for x in xs for p in a.positions(in_a.index(x))] for xs in (letters_c, letters_a, letters_s)]
    pos_b = [[p for x in xs for p in b.positions(in_b.index(x))] for xs in (letters_c, letters_b, letters_s)]
    summed = [a.axes[p] for p in pos_a[2]]
    pair_weights = _outer_all([ax.pair_counts(x) for x in summed])
    block_weights = _outer_all([np.asarray(x, dtype=np.float64) for x in summed])
    table = _matmul(a.table, pos_a, b.table, pos_b, pair_weights)

    def through(x: Array, y: Array) -> Array:
        return _matmul(x, pos_a, y, pos_b, block_weights)

    mean = through(a.mean, b.mean)
    extra = gram.shared(a, pos_a, b, pos_b, through)
    dims_of = {x: a.dims[in_a.index(x)] for x in in_a} | {x: b.dims[in_b.index(x)] for x in letters_b}
    order = [*letters_c, *letters_a, *letters_b]
    dims = tuple(dims_of[x] for x in order)
    if extra is not None:
        table = with_square(table, extra, tuple(axis for d in dims for axis in d))
    if is_positive(a) and is_positive(b):
        return reg.transposed(positive(dims, table, mean), tuple(order.index(x) for x in out))
    made = alg.gaussian(dims, table, mean)
    origins.contracted(
        made,
        in_few_terms(a),
        in_few_terms(b),
        (tuple(map(tuple, (*pos_a, *pos_b))), a.shape, b.shape),
        lambda x, y: _matmul(x, pos_a, y, pos_b, pair_weights),
    )
    blank_a, blank_b = [None] * len(pos_a[1]), [None] * len(pos_b[1])
    at_a, at_b = [*pos_a[0], *pos_a[1], *blank_b], [*pos_b[0], *blank_a, *pos_b[1]]
    made = gram.passed_on(made, gram.images(a, pos_a[2], b), at_a, pos_a[0], through, b.square)
    made = gram.passed_on(
        made, gram.images(b, pos_b[2], a), at_b, pos_b[0], lambda x, y: through(y, x), a.square
    )
    start, stop = len(pos_a[0]) + len(pos_a[1]), len(pos_a[0]) + len(pos_a[1]) + len(pos_b[1])
    own_a, own_b = range(len(pos_a[0]), start), range(start, stop)
    for rows, other, at, along in ((a, b, pos_a[2], own_b), (b, a, pos_b[2], own_a)):
        if gram.is_white(other) or lineage.marks_of(other.terms):
            made = lengths.marked(made, lengths.of_rows(rows, at), along)
            break  # of two such matrices, rows are those of the first
    return reg.transposed(made, tuple(order.index(x) for x in out))


def in_few_terms(m: Moments) -> Moments:
    """Return what a contraction remembers of a tensor: as one variable where it is a sum of many products."""
    few = len(m.terms) <= 2 or not any(origins.again(f) for t in m.terms for f in t.factors)
    return m if few else alg.collapse(m)


def with_square(table: Array, extra: Array | float, axes: tuple[Axis, ...]) -> Array:
    """Add a block array to a pair array's entries for an entry paired with itself."""
    shape = [max(n, len(a) * (len(a) + 1)) for n, a in zip(table.shape, axes, strict=True)]
    table = np.array(np.broadcast_to(table, shape))
    rec.diagonal(table, axes)[...] += extra
    return table


def shares_latents(a: Moments, b: Moments) -> bool:
    """Return whether both records depend on one latent.

    So that `contract` would take dependent tensors as independent.
    """

    def variables(m: Moments) -> set[tuple[object, frozenset[object]]]:
        return {(f.latent, frozenset(f.labels) - {None}) for t in m.terms for f in t.factors}

    return not variables(a).isdisjoint(variables(b))


def total(m: Moments, dims: tuple[int, ...]) -> Moments:
    """Return the sum over dims, which disappear.

    Exact second moments; taken as normal, or as lognormal where all summands are positive or all negative
    (asymptotic).
    """
    dims = tuple(d % len(m.dims) for d in dims) if m.dims else ()
    kept = tuple(m.dims[d] for d in range(len(m.dims)) if d not in dims)
    positions = sorted(p for d in dims for p in m.positions(d))
    if not positions:
        return replace(m, dims=kept)
    if is_negative(m):
        return alg.scale(total(alg.scale(m, -1.0), dims), -1.0)
    apart = _constant_along(m, positions)
    if apart is not None:
        constant, varying = apart
        for d in sorted(dims, reverse=True):
            constant = reg.selected(constant, d, 0)
        return alg.multiply(*reg.aligned(total(varying, dims), constant))
    table, mean = m.table, m.mean
    for p in reversed(positions):
        table = _sum_axis(table, p, ax.pair_counts(m.axes[p]))
        mean = _sum_axis(mean, p, np.asarray(m.axes[p], dtype=np.float64))
    normal = not is_positive(m)
    if not normal:
        table = _with_lengths(table, mean, m, positions, tuple(a for d in kept for a in d))
    made = alg.gaussian(kept, table, mean) if normal else positive(kept, table, mean)
    if normal:
        origins.contracted(
            made, m, None, ("total", tuple(positions), m.shape), lambda x, _: _summed(x, positions, m.axes)
        )
    return _with_parts(made, m, positions, normal=normal)


def _constant_along(m: Moments, positions: list[int]) -> tuple[Moments, Moments] | None:
    """Return a product's factors that are constant along some axes, and the others; None if there are none.

    A sum over these axes leaves them as they are, functions of the variables that they are functions of.
    """
    if len(m.terms) != 1 or len(m.terms[0].factors) < 2:
        return None
    (term,) = m.terms

    def alike(f: rec.Factor) -> bool:
        return all(f.labels[p] is None and f.values.shape[p] == f.table.shape[p] == 1 for p in positions)

    constant = tuple([f for f in term.factors if alike(f)])
    if not constant or len(constant) == len(term.factors):
        return None
    varying = tuple([f for f in term.factors if not alike(f)])
    one = np.ones([1] * len(m.axes))
    return (
        alg.assemble(m.dims, (rec.Term(one, constant),)),
        alg.assemble(m.dims, (rec.Term(term.coef, varying),)),
    )


def _with_lengths(
    table: Array, mean: Array, m: Moments, positions: list[int], axes: tuple[Axis, ...]
) -> Array:
    """Return a sum of squares' table with the variance of rows that no pair of their entries tells."""
    if m.only is None:
        return table
    excess = lengths.of_positive(m.only, positions)
    if excess == 0.0:
        return table
    square, variance = mean**2, rec.diagonal(table, axes) - mean**2
    return with_square(table, np.maximum(excess * square, -0.99 * np.maximum(variance, 0.0)), axes)


def _with_parts(made: Moments, m: Moments, positions: list[int], *, normal: bool) -> Moments:
    """Let a sum over axes remember what it is the sum of."""
    (term,) = made.terms
    if not term.factors:
        return made
    (factor,) = term.factors
    parts = lineage.summed(lineage.parts_of(m.terms), positions, m.axes)
    if normal:
        std = np.sqrt(made.variance)[..., None]
        size = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
        parts = tuple(replace(p, values=p.values * size) for p in parts) + gram.of_sum(m, positions)
        parts += projection.of_sum(m, made, positions)
    form = None if normal else factor.values
    return replace(made, terms=(rec.Term(term.coef, (replace(factor, parts=parts, form=form),)),))


def average(m: Moments, dims: tuple[int, ...]) -> Moments:
    """Return the mean over dims, which disappear; see `total`."""
    count = prod(ax.size(a) for d in dims for a in m.dims[d])
    return alg.scale(total(m, dims), 1.0 / count)


def positive(dims: Dims, table: Array, mean: Array) -> Moments:
    """Return the record of lognormal entries with these moments.

    A sum of positive terms must not meet `rsqrt` below zero.
    """
    axes = tuple(a for d in dims for a in d)
    square = rec.diagonal(table, axes)
    spread = np.sqrt(np.log(np.maximum(square / np.maximum(mean**2, 1e-300), 1.0)))
    if float(spread.max()) < 1e-6:
        return alg.assemble(dims, (rec.Term(mean),))
    values = mean[..., None] * np.exp(spread[..., None] * latents.NODES - 0.5 * spread[..., None] ** 2)
    return alg.with_marginal(dims, table, mean, values)


def is_positive(m: Moments) -> bool:
    """Return whether every entry is surely positive, or one of whole blocks of zeros."""
    return bool(m.mean.min() >= 0) and _signs(m) == {1}


def is_negative(m: Moments) -> bool:
    """Return whether every entry is surely negative, or one of whole blocks of zeros."""
    return bool(m.mean.max() <= 0) and _signs(m) == {-1}


def _signs(m: Moments) -> set[int]:
    """Return the signs that the terms have; 0 for one that is not always on one side, or is 0 everywhere."""
    return {prod(_sign(x) for x in (t.coef, *(f.values for f in t.factors))) for t in m.terms}


def _sign(values: Array) -> int:
    """Return on which side of zero all values are, but for rounding; 0 where they are on both.

    Of a mask's zeros and ones at the nodes, stretched to its exact moments block by block, the zeros are one
    small number.
    """
    low, high = float(values.min()), float(values.max())
    most = max(high, -low)
    if low < -1e-6 * most and high > 1e-6 * most:
        other = np.minimum(values if high == most else -values, 0.0).reshape(-1, values.shape[-1])
        least = other.min(1)
        plateau = np.where(other < 0, other, least[:, None]).max(1) - least
        if float(-least.min()) > 0.02 * most or float(plateau.max()) > 1e-6 * most:
            return 0
        return 1 if high == most else -1
    return int(high > 1e-6 * most) - int(low < -1e-6 * most)


def of_sum(like: Moments, dims: Dims, table: Array, mean: Array) -> Moments:
    """Return the record of sums of entries of `like` with these moments.

    Normal; lognormal, or the negative of it, where all summands are on one side of zero.
    """
    if is_negative(like):
        return alg.scale(positive(dims, table, -mean), -1.0)
    return positive(dims, table, mean) if is_positive(like) else alg.gaussian(dims, table, mean)


def _summed(table: Array, positions: list[int], axes: tuple[Axis, ...]) -> Array:
    for p in reversed(positions):
        table = _sum_axis(table, p, ax.pair_counts(axes[p]))
    return table


def _sum_axis(array: Array, position: int, weights: Array) -> Array:
    if array.shape[position] == 1:
        return np.asarray(array.take(0, axis=position) * float(weights.sum()))
    return np.asarray(np.tensordot(array, weights, axes=(position, 0)))


def _outer_all(vectors: list[Array]) -> Array:
    result, *others = vectors
    for vector in others:
        result = np.multiply.outer(result, vector)
    return np.asarray(result)


def meet(a: Moments, in_a: str, b: Moments, in_b: str) -> tuple[Moments, Moments]:
    """Cut the dims that both inputs have into the same axes; a dim of size 1 is broadcast."""
    for x in in_a:
        if x not in in_b:
            continue
        i, j = in_a.index(x), in_b.index(x)
        a, b = reg.match_dims(a, i, b, j)
        a = _spread(a, i, b.dims[j])
        b = _spread(b, j, a.dims[i])
    return a, b


def _spread(m: Moments, dim: int, axes: tuple[Axis, ...]) -> Moments:
    if m.dims[dim] or not axes:
        return m
    return reg.broadcast(m, (*m.dims[:dim], axes, *m.dims[dim + 1 :]))


def _matmul(a: Array, pos_a: list[list[int]], b: Array, pos_b: list[list[int]], weights: Array) -> Array:
    """Return Σ_s weights(s) a[c, i, s] b[c, j, s] as an array over (c, i, j).

    Dims of length 1 are broadcast.
    """
    a = a.transpose([*pos_a[0], *pos_a[1], *pos_a[2]]) * weights
    b = b.transpose([*pos_b[0], *pos_b[1], *pos_b[2]])
    n = len(pos_a[0])
    common, own_a = a.shape[:n], a.shape[n : n + len(pos_a[1])]
    own_b, summed = b.shape[n : n + len(pos_b[1])], b.shape[n + len(pos_b[1]) :]
    if common != b.shape[:n] or summed != weights.shape:
        common = np.broadcast_shapes(common, b.shape[:n])
        a = np.broadcast_to(a, (*common, *a.shape[n:]))
        b = np.broadcast_to(b, (*common, *own_b, *weights.shape))
    a = a.reshape(prod(common), prod(own_a), weights.size)
    b = b.reshape(prod(common), prod(own_b), weights.size)
    product = a @ b.transpose(0, 2, 1)
    return np.asarray(product.reshape((*common, *own_a, *own_b)))


def _outer_product(a: Moments, in_a: str, b: Moments, in_b: str, out: str) -> Moments:
    """Nothing is summed (a contracted dim of size 1): the product itself, whose factors stay known."""

    def laid(m: Moments, letters: str) -> Moments:
        kept = [x for x in out if x in letters]
        gone = tuple(k for k, x in enumerate(letters) if x not in out)
        m = replace(m, dims=tuple(d for k, d in enumerate(m.dims) if k not in gone))
        left = [x for x in letters if x in out]
        m = reg.transposed(m, tuple(left.index(x) for x in kept))
        dims = {x: m.dims[k] for k, x in enumerate(kept)}
        return replace(m, dims=tuple(dims.get(x, ()) for x in out))

    return alg.multiply(*reg.aligned(laid(a, in_a), laid(b, in_b)))
