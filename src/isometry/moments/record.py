"""`Moments`: what the entries of a tensor would look like over random weights and inputs, and the algebra of such records.

A record stands for an array of random variables. It holds

- `dims`: for each tensor dim its axes (see `axes`); a dim of size 1 has none;
- `table`: the second moments E[x x′] by pair class, a pair array;
- `mean`: E[x] by block, a block array;
- `terms`: how an entry depends on latents: x = Σ_terms coef · Π_factors f(z), where different latents are independent.

A `Factor` is a pointwise function f of one latent z: its values at the quadrature nodes (a block array with the nodes last), the
latent's correlations `rho` and its own second moments `table` (pair arrays). `labels` say along which axis of the latent each
axis of the record runs: two factors are the same variable exactly where latent and labels agree, so that `x * sigmoid(x)` is
executed node by node while `x[:, None] * x[None]` is not. Views carry labels along; see `relabel_split` and friends.

Records are immutable, and every function here is pure: Moments in, Moments out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments.axes import Array, Axis, AxisMap, Move

Label = tuple[object, ...] | None
Dims = tuple[tuple[Axis, ...], ...]
MAX_TERMS = 6


@dataclass(frozen=True, eq=False)
class Factor:
    """A pointwise function of one latent; see the module."""

    latent: object
    labels: tuple[Label, ...]
    rho: Array
    values: Array
    table: Array

    @cached_property
    def mean(self) -> Array:
        """E[f(z)], a block array."""
        return latents.mean(self.values)

    @property
    def key(self) -> tuple[object, tuple[Label, ...]]:
        """What identifies the variable."""
        return self.latent, self.labels


@dataclass(frozen=True, eq=False)
class Term:
    """A product coef · Π f(z); `coef` is a block array."""

    coef: Array
    factors: tuple[Factor, ...] = ()


@dataclass(frozen=True, eq=False)
class Moments:
    """The record; see the module."""

    dims: Dims
    terms: tuple[Term, ...]
    table: Array
    mean: Array

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes in order."""
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(prod(ax.size(axis) for axis in dim) for dim in self.dims)

    def positions(self, dim: int) -> range:
        """Return the positions, among all axes, of a dim's axes."""
        start = sum(len(d) for d in self.dims[: dim % len(self.dims)])
        return range(start, start + len(self.dims[dim]))

    @cached_property
    def square(self) -> Array:
        """E[x²] by block."""
        return diagonal(self.table, self.axes)

    @cached_property
    def variance(self) -> Array:
        """Var x by block."""
        return np.maximum(self.square - self.mean**2, 0.0)


# --- block arrays and pair arrays -----------------------------------------------------------------------------------


def diagonal(table: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a pair array's entries for an entry paired with itself, as a block array."""
    return table[tuple(slice(0, len(a)) if n > 1 else slice(None) for a, n in zip(axes, table.shape, strict=True))]


def _side(blocks: Array, axes: tuple[Axis, ...], side: int) -> Array:
    for position, axis in enumerate(axes):
        if blocks.shape[position] > 1:
            blocks = np.take(blocks, ax.sides(axis)[side], axis=position)
    return blocks


def first(blocks: Array, axes: tuple[Axis, ...]) -> Array:
    """Spread a block array over pair classes by the block of the pair's first entry."""
    return _side(blocks, axes, 0)


def second(blocks: Array, axes: tuple[Axis, ...]) -> Array:
    """Spread a block array over pair classes by the block of the pair's second entry."""
    return _side(blocks, axes, 1)


def outer(a: Array, b: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a(first) · b(second) as a pair array."""
    return first(a, axes) * second(b, axes)


def mirror(table: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a pair array with the two entries of each pair exchanged."""
    for position, axis in enumerate(axes):
        if table.shape[position] > 1 and len(axis) > 1:
            table = np.take(table, ax.mirrored(axis), axis=position)
    return table


def average(blocks: Array, axes: tuple[Axis, ...]) -> float:
    """Return the mean of a block array over all entries."""
    for axis in axes:
        weights = np.asarray(axis, dtype=np.float64) / ax.size(axis)
        blocks = blocks.mean(0) if blocks.shape[0] == 1 else np.tensordot(weights, blocks, axes=(0, 0))
    return float(blocks)


def average_differ(table: Array, axes: tuple[Axis, ...], position: int) -> float:
    """Return the mean of a pair array over pairs that differ on one axis and agree on all others."""
    for k, axis in reversed(list(enumerate(axes))):
        counts = ax.pair_counts(axis) * (1.0 - ax.same_classes(axis) if k == position else ax.same_classes(axis))
        weights = counts / max(counts.sum(), 1.0)
        table = table.take(0, axis=k) if table.shape[k] == 1 else np.tensordot(table, weights, axes=(k, 0))
    return float(table)


# --- building -------------------------------------------------------------------------------------------------------


def plain_dims(shape: Iterable[int]) -> Dims:
    """Return the dims of a tensor all of whose entries are alike: one axis of one block per dim."""
    return tuple(((n,),) if n != 1 else () for n in shape)


def constant(shape: Iterable[int], value: float) -> Moments:
    """Return the record of a tensor filled with one number."""
    dims = plain_dims(shape)
    ones = [1] * sum(len(d) for d in dims)
    return Moments(dims, (Term(np.full(ones, value)),), np.full(ones, value * value), np.full(ones, value))


def independent(shape: Iterable[int], values: Array) -> Moments:
    """Return the record of independent, identically distributed entries; `values` is the quantile function at the nodes."""
    dims = plain_dims(shape)
    count = sum(len(d) for d in dims)
    rho = np.zeros([2] * count)
    rho[(0,) * count] = 1.0
    return from_values(dims, rho, values.reshape([1] * count + [-1]))


def normal(shape: Iterable[int], mean: float = 0.0, std: float = 1.0) -> Moments:
    """Return the record of independent normal entries."""
    return constant(shape, mean) if std == 0.0 else independent(shape, mean + std * latents.NODES)


def from_values(dims: Dims, rho: Array, values: Array) -> Moments:
    """Return f(z) of a new latent with correlations `rho`."""
    axes = tuple(a for d in dims for a in d)
    return assemble(dims, (Term(np.ones([1] * len(axes)), (new_factor(axes, rho, values),)),))


def new_factor(axes: tuple[Axis, ...], rho: Array, values: Array, table: Array | None = None) -> Factor:
    """Return f(z) of a new latent; along axes where neither rho nor values vary it is constant."""
    labels: tuple[Label, ...] = tuple((k, 1, 0) if n > 1 else None for k, n in enumerate(rho.shape))
    made = Factor(latents.fresh(), labels, rho, values, rho)
    return replace(made, table=_dual(made, made, axes) if table is None else table)


def gaussian(dims: Dims, table: Array, mean: Array) -> Moments:
    """Return the record of jointly normal entries with these second moments: a new latent.

    Where the variance vanishes the entries are constants. Exact for normal entries, asymptotic for sums of many.
    """
    axes = tuple(a for d in dims for a in d)
    square = diagonal(table, axes)
    variance = square - mean**2
    variance = np.where(variance > 1e-12 * np.abs(square), variance, 0.0)
    if not variance.any():
        return assemble(dims, (Term(mean),))
    std = np.sqrt(variance)
    scale = outer(std, std, axes)
    centred = table - outer(mean, mean, axes)
    rho = np.clip(np.divide(centred, scale, out=np.zeros(np.broadcast_shapes(centred.shape, scale.shape)),
                            where=scale > 0), -1.0, 1.0)
    values = mean[..., None] + std[..., None] * latents.NODES
    factor = new_factor(axes, rho, values, table)
    return Moments(dims, (Term(np.ones([1] * len(axes)), (factor,)),), table, mean)


def assemble(dims: Dims, terms: tuple[Term, ...]) -> Moments:
    """Return the record of a sum of terms: its table and mean follow from theirs."""
    axes = tuple(a for d in dims for a in d)
    terms = _merge(terms, axes)
    table: Array = np.zeros([1] * len(axes))
    mean: Array = np.zeros([1] * len(axes))
    for position, term in enumerate(terms):
        mean = mean + _term_mean(term)
        own = outer(term.coef, term.coef, axes)
        for factor in term.factors:
            own = own * factor.table
        table = table + own
        for other in terms[:position]:
            both = _cross(term, other, axes)
            if both is not None:
                table = table + both + mirror(both, axes)
    return Moments(dims, terms, table, mean)


def _term_mean(term: Term) -> Array:
    mean = term.coef
    for factor in term.factors:
        mean = mean * factor.mean
    return mean


def _dual(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array:
    """Return E[f(z) g(z′)] by pair class, for two functions of one variable."""
    return latents.dual(first(f.values, axes), second(g.values, axes), f.rho)


def _cross(a: Term, b: Term, axes: tuple[Axis, ...]) -> Array | None:
    """Return E[a b′] by pair class, or None where it vanishes."""
    keys = {factor.key: factor for factor in b.factors}
    result = outer(a.coef, b.coef, axes)
    for factor in a.factors:
        partner = keys.pop(factor.key, None)
        if partner is not None:
            result = result * _dual(factor, partner, axes)
        elif not np.abs(factor.mean).max() > 1e-12 * np.sqrt(np.abs(factor.table).max()):
            return None
        else:
            result = result * first(factor.mean, axes)
    for factor in keys.values():
        if not np.abs(factor.mean).max() > 1e-12 * np.sqrt(np.abs(factor.table).max()):
            return None
        result = result * second(factor.mean, axes)
    return result


def cross(a: Moments, b: Moments) -> Array:
    """Return E[a b′] by pair class for two records of the same axes."""
    total: Array = np.zeros([1] * len(a.axes))
    for s in a.terms:
        for t in b.terms:
            both = _cross(s, t, a.axes)
            if both is not None:
                total = total + both
    return total


def _merge(terms: tuple[Term, ...], axes: tuple[Axis, ...]) -> tuple[Term, ...]:
    """Add terms that agree in all factors but one variable; a constant joins a term of one factor."""
    result: list[Term] = []
    for term in terms:
        if not term.coef.any():
            continue
        for k, other in enumerate(result):
            joined = _join(other, term, axes)
            if joined is not None:
                result[k] = joined
                break
        else:
            result.append(term)
    if not result:
        return (Term(np.zeros([1] * len(axes))),)
    return tuple(result)


def _join(a: Term, b: Term, axes: tuple[Axis, ...]) -> Term | None:
    if len(a.factors) < len(b.factors):
        a, b = b, a
    if len(a.factors) - len(b.factors) > (1 if not b.factors else 0):
        return None
    if not a.factors:
        return Term(a.coef + b.coef)
    if not b.factors:
        constant_ = b.coef[..., None]
    elif {f.key for f in a.factors} != {f.key for f in b.factors}:
        return None
    else:
        constant_ = None
    partners = {f.key: f for f in b.factors}
    unlike = [k for k, f in enumerate(a.factors) if constant_ is not None or not _equal(f, partners[f.key])]
    if len(unlike) > 1:
        return None
    k = unlike[0] if unlike else 0
    ours = a.coef[..., None] * a.factors[k].values
    theirs = constant_ if constant_ is not None else b.coef[..., None] * partners[a.factors[k].key].values
    joined = changed(a.factors[k], ours + theirs, axes)
    return Term(np.ones([1] * len(axes)), (*a.factors[:k], joined, *a.factors[k + 1 :]))


def _equal(f: Factor, g: Factor) -> bool:
    return f.values is g.values or (f.values.shape == g.values.shape and np.array_equal(f.values, g.values))


# --- algebra of aligned records -------------------------------------------------------------------------------------


def scale(m: Moments, factor: float | Array) -> Moments:
    """Return m · factor for a number or a block array."""
    by = np.asarray(factor, dtype=np.float64)
    if by.ndim == 0:
        c = float(by)
        return Moments(m.dims, tuple(Term(t.coef * c, t.factors) for t in m.terms), m.table * (c * c), m.mean * c)
    terms = tuple(Term(t.coef * by, t.factors) for t in m.terms)
    return Moments(m.dims, terms, m.table * outer(by, by, m.axes), m.mean * by)


def add(a: Moments, b: Moments) -> Moments:
    """Return a + b for two aligned records.

    Exact. A sum of functions of different latents becomes one function of a new latent, so that later pointwise
    operations can be executed on it: normal where all parts are, else with the sum's own quantile function.
    """
    both = assemble(a.dims, a.terms + b.terms)
    single = all(len(t.factors) <= 1 for t in both.terms)
    if len(both.terms) > 1 and (single or len(both.terms) > MAX_TERMS):
        return collapse(both)
    return both


def multiply(a: Moments, b: Moments) -> Moments:
    """Return a · b for two aligned records: node by node where they share a latent, else as a product of independents."""
    if len(a.terms) * len(b.terms) > MAX_TERMS:
        a, b = (collapse(a), b) if len(a.terms) > len(b.terms) else (a, collapse(b))
    products = tuple(_product(s, t, a.axes) for s in a.terms for t in b.terms)
    return assemble(a.dims, products)


def _product(a: Term, b: Term, axes: tuple[Axis, ...]) -> Term:
    factors = {f.key: f for f in a.factors}
    for g in b.factors:
        f = factors.get(g.key)
        if f is None:
            factors[g.key] = g
        else:
            factors[g.key] = changed(f, f.values * g.values, axes)
    return Term(a.coef * b.coef, tuple(factors.values()))


def absorbed(term: Term, axes: tuple[Axis, ...]) -> Factor | None:
    """Return a term of one factor as that factor alone, coefficient included; None where it has no or several factors."""
    if len(term.factors) != 1:
        return None
    (factor,) = term.factors
    if term.coef.size == 1 and float(term.coef.reshape(())) == 1.0:
        return factor
    values = term.coef[..., None] * factor.values
    return replace(factor, values=values, table=factor.table * outer(term.coef, term.coef, axes))


def collapse(m: Moments) -> Moments:
    """Return the record as one function of one new latent, with the same table and mean.

    Exact where all terms are normal; else the marginal is the sum's quantile function (deterministic sampling) and the
    latent's correlations are those that give the table back. A record that is one factor already is returned as it is.
    """
    if len(m.terms) == 1 and len(m.terms[0].factors) <= 1:
        return m
    if all(len(t.factors) == 1 and affine(t.factors[0].values) for t in m.terms):
        return gaussian(m.dims, m.table, m.mean)
    return with_marginal(m.dims, m.table, m.mean, _sampled(m))


def with_marginal(dims: Dims, table: Array, mean: Array, values: Array) -> Moments:
    """Return f(z) of a new latent with given second moments; `values` give the marginal's form (a block array, nodes last)."""
    axes = tuple(a for d in dims for a in d)
    square = diagonal(table, axes)
    variance = np.maximum(square - mean**2, 0.0)
    own = latents.mean(values)
    spread = latents.mean((values - own[..., None]) ** 2)
    ratio = np.sqrt(np.divide(variance, spread, out=np.zeros(np.broadcast_shapes(variance.shape, spread.shape)), where=spread > 0))
    values = mean[..., None] + (values - own[..., None]) * ratio[..., None]
    std = np.sqrt(variance)
    centred = table - outer(mean, mean, axes)
    rho_out = outer(std, std, axes)
    wanted = np.divide(centred, rho_out, out=np.zeros(np.broadcast_shapes(centred.shape, rho_out.shape)), where=rho_out > 0)
    typical = values.reshape(-1, values.shape[-1])[int(np.argmax(variance))] if values[..., 0].size > 1 else values.reshape(-1)
    deviation = np.sqrt(max(float(latents.mean((typical - latents.mean(typical)) ** 2)), 1e-300))
    rho = latents.correlation_for(typical / deviation, np.clip(wanted, -1.0, 1.0))
    factor = new_factor(axes, rho, values, table)
    return Moments(dims, (Term(np.ones([1] * len(axes)), (factor,)),), table, mean)


def affine(values: Array) -> bool:
    """Return whether values at the nodes are a linear function of the latent (in every block)."""
    a = latents.coefficients(values)
    total = latents.mean(values * values)
    return bool(np.all(total - a[..., 0] ** 2 - a[..., 1] ** 2 <= 1e-9 * total))


def _sampled(m: Moments) -> Array:
    """Return the quantile function of the record's entries, block by block, from a fixed lattice of latent values."""
    keys = list(dict.fromkeys(f.key for t in m.terms for f in t.factors))
    points = _lattice(len(keys))
    total: Array = np.zeros(1)
    for term in m.terms:
        product = term.coef[..., None]
        for f in term.factors:
            product = product * _interpolate(f.values, points[keys.index(f.key)])
        total = total + product
    flat = total.reshape(-1, total.shape[-1])
    uniform = np.full(flat.shape[1], 1.0 / flat.shape[1])
    return np.stack([latents.quantiles(row, uniform) for row in flat]).reshape(*total.shape[:-1], -1)


def _interpolate(values: Array, at: Array) -> Array:
    flat = values.reshape(-1, values.shape[-1])
    return np.stack([np.interp(at, latents.NODES, row) for row in flat]).reshape(*values.shape[:-1], -1)


def _lattice(count: int, points: int = 4001) -> Array:
    """Return `points` nearly uniform normal points in `count` dimensions (a Kronecker lattice of square roots)."""
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    steps = np.arange(1, points + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(latents.WEIGHTS)])
    middle = 0.5 * (cumulative[:-1] + cumulative[1:])
    uniform = np.stack([np.mod(steps * np.sqrt(primes[k % 12]) * (1 + k // 12), 1.0) for k in range(count)])
    return np.asarray(np.interp(uniform, middle, latents.NODES))


def changed(factor: Factor, values: Array, axes: tuple[Axis, ...]) -> Factor:
    """Return another function of the same variable."""
    made = replace(factor, values=values)
    return replace(made, table=_dual(made, made, axes))


def apply(m: Moments, fn: Callable[[Array], Array]) -> Moments:
    """Return fn of every entry, executed on the node values. Exact for a function of one latent; others collapse first."""
    m = collapse(m)
    (term,) = m.terms
    if not term.factors:
        return assemble(m.dims, (Term(fn(term.coef)),))
    factor = absorbed(term, m.axes)
    assert factor is not None
    made = changed(factor, fn(factor.values), m.axes)
    return assemble(m.dims, (Term(np.ones([1] * len(m.axes)), (made,)),))


# --- regrouping -----------------------------------------------------------------------------------------------------


def remap(m: Moments, position: int, how: AxisMap, labels: Callable[[tuple[Label, ...]], tuple[Label, ...]]) -> Moments:
    """Apply an axis map to every array of the record; `dims` come back as one dim per axis (set them afterwards)."""
    axes, stop = m.axes, position + len(how.taken)
    averaging = how.pairs.dtype.kind == "f"
    given = (*axes[:position], *how.given, *axes[stop:])

    def on_factor(f: Factor) -> Factor:
        values = how.on_blocks(f.values, position)
        table = how.on_pairs(f.table, position)
        if averaging:
            values = _respread(values, diagonal(table, given))
        new = (*f.labels[:position], *labels(f.labels[position:stop]), *f.labels[stop:])
        return Factor(f.latent, new, how.on_pairs(f.rho, position), values, table)

    def on_term(t: Term) -> Term:
        if averaging and any(n > 1 for n in t.coef.shape[position:stop]):
            t = _without_coef(t, axes)
        return Term(how.on_blocks(t.coef, position), tuple(on_factor(f) for f in t.factors))

    terms = tuple(on_term(t) for t in m.terms)
    dims = tuple((a,) for a in given)
    return Moments(dims, terms, how.on_pairs(m.table, position), how.on_blocks(m.mean, position))


def _respread(values: Array, square: Array) -> Array:
    """Stretch values about their mean until their second moment is `square`: averaged node values have lost spread."""
    own = latents.mean(values)
    spread = latents.mean((values - own[..., None]) ** 2)
    wanted = np.maximum(square - own**2, 0.0)
    ratio = np.sqrt(np.divide(wanted, spread, out=np.ones(np.broadcast_shapes(wanted.shape, spread.shape)), where=spread > 1e-300))
    return np.asarray(own[..., None] + (values - own[..., None]) * ratio[..., None])


def _without_coef(term: Term, axes: tuple[Axis, ...]) -> Term:
    """Move a coefficient that varies by block into a factor, before blocks are averaged."""
    ones = np.ones([1] * len(axes))
    if term.factors:
        head = absorbed(Term(term.coef, term.factors[:1]), axes)
        assert head is not None
        return Term(ones, (head, *term.factors[1:]))
    return Term(ones, (_constant_factor(term.coef, axes),))


def _constant_factor(coef: Array, axes: tuple[Axis, ...]) -> Factor:
    """Return constants that differ between blocks as a function of a latent with the right marginal, before averaging."""
    weights: Array = np.ones(1)
    for axis, n in zip(axes, coef.shape, strict=True):
        weights = np.multiply.outer(weights, np.asarray(axis, dtype=np.float64) if n > 1 else np.ones(1))
    values = latents.quantiles(coef.ravel(), weights.ravel() / weights.sum())
    table = outer(coef, coef, axes)
    rho = np.ones(table.shape)
    return new_factor(axes, rho, values.reshape([1] * len(axes) + [-1]), table)


def regrouped(m: Moments, target: tuple[int, ...]) -> Moments:
    """Return the record with its axes regrouped into dims of the given sizes (row-major, as `view`)."""
    if m.shape == target:
        return m
    moves, groups = ax.regroup(m.axes, target)
    for move in moves:
        m = _moved(m, move)
    dims, taken = [], 0
    axes = m.axes
    for group in groups:
        dims.append(axes[taken : taken + len(group)])
        taken += len(group)
    return replace(m, dims=tuple(dims))


def _moved(m: Moments, move: Move) -> Moments:
    p, axes = move.position, m.axes
    if move.kind == "recut":
        return remap(m, p, ax.recut(axes[p], move.axis), lambda ls: ls)
    if move.kind == "split":
        return remap(m, p, ax.split(axes[p], move.inner), lambda ls: _split_label(ls[0], move.inner))
    inner = ax.size(axes[p + 1])
    return remap(m, p, ax.fuse(axes[p], axes[p + 1]), lambda ls: (_fuse_labels(ls[0], ls[1], inner),))


def _split_label(label: Label, inner: int) -> tuple[Label, Label]:
    """A label is (latent axis, stride, offset); splitting gives the outer part stride·inner and leaves the inner part."""
    if label is None:
        return None, None
    if label[0] == "fused" and label[3] == inner:
        return label[1], label[2]  # type: ignore[return-value]
    base, stride, offset = label[-3:]
    return (base, stride * inner, offset), (base, stride, 0)  # type: ignore[operator]


def _fuse_labels(high: Label, low: Label, inner: int) -> Label:
    if high is None and low is None:
        return None
    if high and low and high[0] == low[0] and high[0] != "fused" and low[2] == 0 and high[1] == low[1] * inner:  # type: ignore[operator]
        return (low[0], low[1], high[2])
    return ("fused", high, low, inner)


def recut_axis(m: Moments, position: int, axis: Axis) -> Moments:
    """Return the record with one axis cut into other blocks."""
    if m.axes[position] == axis:
        return m
    changed = remap(m, position, ax.recut(m.axes[position], axis), lambda ls: ls)
    return _with_axes(changed, m.dims, {position: (axis,)})


def _with_axes(changed: Moments, dims: Dims, new: dict[int, tuple[Axis, ...]]) -> Moments:
    """Give back the dims of a record some of whose axes were replaced."""
    result, position = [], 0
    for dim in dims:
        axes: list[Axis] = []
        for axis in dim:
            axes += new.get(position, (axis,))
            position += 1
        result.append(tuple(axes))
    return replace(changed, dims=tuple(result))


def sliced(m: Moments, dim: int, start: int, stop: int, step: int) -> Moments:
    """Return m[..., start:stop:step, ...] along a dim. Exact: the axis is cut into blocks at the slice's edges first."""
    if len(m.dims[dim]) != 1:
        m = single_axis(m, dim)
    (position,) = m.positions(dim)
    axis = m.axes[position]
    if len(axis) > 1 and step == 1:
        n = ax.size(axis)
        edges = tuple(b for b in (start, stop - start, n - stop) if b)
        m = recut_axis(m, position, ax.common_blocks(axis, edges))
        axis = m.axes[position]
    how = ax.take(axis, start, stop, step)
    given = how.given
    if ax.size(given[0]) == 1:
        return selected(m, dim, start, keep=True)

    def relabel(labels: tuple[Label, ...]) -> tuple[Label, ...]:
        (label,) = labels
        if label is None:
            return (None,)
        if label[0] == "fused":
            return (("part", label, (start, stop, step), 1, 0),)
        base, stride, offset = label[-3:]
        moved = (base, stride * step, offset + start * stride)  # type: ignore[operator]
        return (moved,)

    return _with_axes(remap(m, position, how, relabel), m.dims, {position: given})


def selected(m: Moments, dim: int, index: int, *, keep: bool = False) -> Moments:
    """Return m[..., index, ...]; `keep` leaves a dim of size 1."""
    changed = m
    for position in reversed(m.positions(dim)):
        axis = changed.axes[position]
        here = index % ax.size(axis)
        index //= ax.size(axis)
        changed = _picked(changed, position, here)
    dims = (*m.dims[:dim], *([()] if keep else []), *m.dims[dim + 1 :])
    return replace(changed, dims=dims)


def _picked(m: Moments, position: int, index: int) -> Moments:
    """Select one entry of an axis; the latents remember which, so that x[:, 0] and x[:, 1] stay different variables."""
    labels = [[f.labels[position] for f in t.factors] for t in m.terms]
    m = remap(m, position, ax.pick(m.axes[position], index), lambda _: ())
    terms = tuple(
        Term(t.coef, tuple(f if label is None else replace(f, latent=(f.latent, label, index))
                           for f, label in zip(t.factors, own, strict=True)))
        for t, own in zip(m.terms, labels, strict=True)
    )
    return replace(m, terms=terms)


def single_axis(m: Moments, dim: int) -> Moments:
    """Return the record with a dim's axes fused into one."""
    while len(m.dims[dim]) > 1:
        position = m.positions(dim)[0]
        inner = ax.size(m.axes[position + 1])
        how = ax.fuse(m.axes[position], m.axes[position + 1])
        changed = remap(m, position, how, lambda ls, inner=inner: (_fuse_labels(ls[0], ls[1], inner),))  # type: ignore[misc]
        dims = list(m.dims)
        dims[dim] = (*how.given, *m.dims[dim][2:])
        m = replace(changed, dims=tuple(dims))
    return m


def transposed(m: Moments, order: tuple[int, ...]) -> Moments:
    """Return the record with its dims in another order."""
    axis_order = [p for dim in order for p in m.positions(dim)]
    nodes_last = [*axis_order, len(axis_order)]

    def on_factor(f: Factor) -> Factor:
        return Factor(f.latent, tuple(f.labels[p] for p in axis_order), f.rho.transpose(axis_order),
                      f.values.transpose(nodes_last), f.table.transpose(axis_order))

    terms = tuple(Term(t.coef.transpose(axis_order), tuple(map(on_factor, t.factors))) for t in m.terms)
    dims = tuple(m.dims[d] for d in order)
    return Moments(dims, terms, m.table.transpose(axis_order), m.mean.transpose(axis_order))


def widened(m: Moments, position: int, axes: tuple[Axis, ...]) -> Moments:
    """Return the record with constant axes inserted before `position`; `dims` come back as one dim per axis."""
    new = [1] * len(axes)

    def wide(a: Array) -> Array:
        return a.reshape(*a.shape[:position], *new, *a.shape[position:])

    def on_factor(f: Factor) -> Factor:
        labels = (*f.labels[:position], *([None] * len(axes)), *f.labels[position:])
        return Factor(f.latent, labels, wide(f.rho), wide(f.values), wide(f.table))

    terms = tuple(Term(wide(t.coef), tuple(map(on_factor, t.factors))) for t in m.terms)
    dims = tuple((a,) for a in (*m.axes[:position], *axes, *m.axes[position:]))
    return Moments(dims, terms, wide(m.table), wide(m.mean))


def broadcast(m: Moments, dims: Dims) -> Moments:
    """Return the record broadcast to dims of the same rank: dims of size 1 become constant along the given axes.

    Dims that have axes must have the same axes already (see `aligned`).
    """
    for k, dim in enumerate(dims):
        if dim and not m.dims[k]:
            own = m.dims
            m = replace(widened(m, m.positions(k).start, dim), dims=(*own[:k], dim, *own[k + 1 :]))
    return m


def aligned(a: Moments, b: Moments) -> tuple[Moments, Moments]:
    """Return both records broadcast against each other and cut into the same axes and blocks, as an elementwise op needs."""
    rank = max(len(a.dims), len(b.dims))
    a = replace(a, dims=((),) * (rank - len(a.dims)) + a.dims)
    b = replace(b, dims=((),) * (rank - len(b.dims)) + b.dims)
    for dim in range(rank):
        a, b = match_dims(a, dim, b, dim)
    dims = tuple(p or q for p, q in zip(a.dims, b.dims, strict=True))
    return broadcast(a, dims), broadcast(b, dims)


def match_dims(a: Moments, i: int, b: Moments, j: int) -> tuple[Moments, Moments]:
    """Return both records with dim i of a and dim j of b cut into the same axes and blocks; a dim of size 1 is left alone."""
    if a.dims[i] == b.dims[j] or not a.dims[i] or not b.dims[j]:
        return a, b
    a = with_sizes(a, i, tuple(ax.size(x) for x in b.dims[j]))
    b = with_sizes(b, j, tuple(ax.size(x) for x in a.dims[i]))
    if len(a.dims[i]) != len(b.dims[j]):
        a = with_sizes(a, i, tuple(ax.size(x) for x in b.dims[j]))
    if [ax.size(x) for x in a.dims[i]] != [ax.size(x) for x in b.dims[j]]:
        a, b = single_axis(a, i), single_axis(b, j)
    for p, q in zip(a.positions(i), b.positions(j), strict=True):
        fine = ax.common_blocks(a.axes[p], b.axes[q])
        a, b = recut_axis(a, p, fine), recut_axis(b, q, fine)
    return a, b


def with_sizes(m: Moments, dim: int, target: tuple[int, ...]) -> Moments:
    """Return the record with one dim's axes cut at the sizes `target` (finer axes stay finer)."""
    own = m.dims[dim]
    if tuple(ax.size(x) for x in own) == target:
        return m
    start = m.positions(dim)[0]
    moves, groups = ax.regroup(own, target)
    before, after = m.dims[:dim], m.dims[dim + 1 :]
    for move in moves:
        m = _moved(m, replace(move, position=move.position + start))
    count = sum(len(g) for g in groups)
    return replace(m, dims=(*before, m.axes[start : start + count], *after))
