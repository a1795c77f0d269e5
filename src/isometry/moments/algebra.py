"""The algebra of records: how they are made, added, multiplied and passed through functions.

Two records that meet must have the same axes and blocks; `regrouping.aligned` brings them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np

from isometry.moments import (
    ancestors,
    apart,
    fan,
    latents,
    lengths,
    lineage,
    near,
    origins,
    steep,
    surfaces,
    uneven,
)
from isometry.moments.axes import Array, Axis, Index
from isometry.moments.marks import marked
from isometry.moments.record import (
    Dims,
    Factor,
    Label,
    Moments,
    Run,
    Term,
    diagonal,
    dual,
    mirror,
    outer,
)
from isometry.moments.terms import at_least, changed, crossed, mean_of, merged, second_moments

_COLLAPSED: WeakKeyDictionary[Moments, Moments] = WeakKeyDictionary()
MAX_TERMS = 6  # a sum of more products becomes a function of one new latent
FEW_TERMS = 1  # so does one of more where weights are used again, whose relations are followed otherwise
MAX_FACTORS = 8  # a product of more becomes one of fewer: the eldest become a function of one new latent
_CORE = np.flatnonzero(np.abs(latents.NODES[1::3]) < 6.0)  # of every third node; beyond lies next to nothing

# --- building -----------------------------------------------------------------------------------------------


def plain_dims(shape: Iterable[int]) -> Dims:
    """Return the dims of a tensor all of whose entries are alike: one axis of one block per dim."""
    return tuple(((n,),) if n != 1 else () for n in shape)


def constant(shape: Iterable[int], value: float) -> Moments:
    """Return the record of a tensor filled with one number."""
    dims = plain_dims(shape)
    ones = [1] * sum(len(d) for d in dims)
    return Moments(dims, (Term(np.full(ones, value)),), np.full(ones, value * value), np.full(ones, value))


def independent(shape: Iterable[int], values: Array) -> Moments:
    """Return the record of independent, identically distributed entries.

    `values` is the quantile function at the nodes.
    """
    dims = plain_dims(shape)
    count = sum(len(d) for d in dims)
    rho = np.zeros([2] * count)
    rho[(0,) * count] = 1.0
    mean = np.full([1] * count, latents.mean(values))
    table = np.full([2] * count, mean.reshape(-1)[0] ** 2)
    table[(0,) * count] = latents.mean(values * values)
    axes = tuple(a for d in dims for a in d)
    factor = new_factor(axes, rho, values.reshape([1] * count + [-1]), table)
    return Moments(dims, (Term(np.ones([1] * count), (factor,)),), table, mean)


def normal(shape: Iterable[int], mean: float = 0.0, std: float = 1.0) -> Moments:
    """Return the record of independent normal entries."""
    return constant(shape, mean) if std == 0.0 else independent(shape, mean + std * latents.NODES)


def from_values(dims: Dims, rho: Array, values: Array) -> Moments:
    """Return f(z) of a new latent with correlations `rho`."""
    axes = tuple(a for d in dims for a in d)
    return assemble(dims, (Term(np.ones([1] * len(axes)), (new_factor(axes, rho, values),)),))


def new_factor(axes: tuple[Axis, ...], rho: Array, values: Array, table: Array | None = None) -> Factor:
    """Return f(z) of a new latent; along axes where neither rho nor values vary it is constant."""
    labels: tuple[Label, ...] = tuple(Run(k, 1, 0) if n > 1 else None for k, n in enumerate(rho.shape))
    return Factor(
        latents.Latent(axes, rho),
        labels,
        rho,
        values,
        dual(values, values, rho, axes) if table is None else table,
    )


def gaussian(dims: Dims, table: Array, mean: Array) -> Moments:
    """Return the record of jointly normal entries with these second moments: a new latent.

    Where the variance vanishes the entries are constants. Exact for normal entries, asymptotic for sums of
    many.
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
    rho = np.clip(
        np.divide(
            centred, scale, out=np.zeros(np.broadcast_shapes(centred.shape, scale.shape)), where=scale > 0
        ),
        -1.0,
        1.0,
    )
    values = mean[..., None] + std[..., None] * latents.NODES
    factor = new_factor(axes, rho, values, table)
    return Moments(dims, (Term(np.ones([1] * len(axes)), (factor,)),), table, mean)


def assemble(dims: Dims, terms: tuple[Term, ...]) -> Moments:
    """Return the record of a sum of terms: its table and mean follow from theirs."""
    axes = tuple(a for d in dims for a in d)
    terms = merged(terms, axes)
    table: Array = np.zeros([1] * len(axes))
    mean: Array = np.zeros([1] * len(axes))
    for position, term in enumerate(terms):
        mean = mean + mean_of(term)
        table = table + outer(term.coef, term.coef, axes) * second_moments(term.factors, axes)
        for other in terms[:position]:
            both = crossed(term, other, axes)
            if both is not None:
                table = table + both + mirror(both, axes)
    if len(terms) > 1 and float(diagonal(table, axes).min()) < 0:
        table = at_least(table, mean**2, axes)
    return Moments(dims, terms, table, mean)


def cross(a: Moments, b: Moments) -> Array:
    """Return E[a b′] by pair class for two records of the same axes."""
    total: Array = np.zeros([1] * len(a.axes))
    for s in a.terms:
        for t in b.terms:
            both = crossed(s, t, a.axes)
            if both is not None:
                total = total + both
    return total


# --- algebra of aligned records -----------------------------------------------------------------------------


def scale(m: Moments, factor: float | Array) -> Moments:
    """Return m · factor for a number or a block array."""
    by = np.asarray(factor, dtype=np.float64)
    if by.ndim == 0:
        c = float(by)
        return Moments(
            m.dims, tuple(Term(t.coef * c, t.factors) for t in m.terms), m.table * (c * c), m.mean * c
        )
    terms = tuple(Term(t.coef * by, t.factors) for t in m.terms)
    return Moments(m.dims, terms, m.table * outer(by, by, m.axes), m.mean * by)


def add(a: Moments, b: Moments) -> Moments:
    """Return a + b for two aligned records.

    Exact. A sum of functions of different latents becomes one function of a new latent, so that later
    pointwise operations can be executed on it: normal where all parts are, else with the sum's own quantiles.
    """
    both = assemble(a.dims, a.terms + b.terms)
    single = all(len(t.factors) <= 1 for t in both.terms)
    if len(both.terms) > 1 and (single or len(both.terms) > _most_terms(both)):
        return collapse(both)
    return both


def _most_terms(m: Moments) -> int:
    """Return how many products a sum may have: in a loop they would be those of all steps before."""
    if len(m.terms) <= FEW_TERMS or not any(origins.again(f) for t in m.terms for f in t.factors):
        return MAX_TERMS
    return FEW_TERMS


def multiply(a: Moments, b: Moments) -> Moments:
    """Return a · b for two aligned records: node by node where they share a latent, else of independents."""
    if len(a.terms) * len(b.terms) > MAX_TERMS:
        a, b = (collapse(a), b) if len(a.terms) > len(b.terms) else (a, collapse(b))
    products = tuple(_shortened(_product(s, t, a.axes), a.dims) for s in a.terms for t in b.terms)
    return assemble(a.dims, products)


def _shortened(term: Term, dims: Dims) -> Term:
    """Return a product of few factors, so that what a loop multiplies again and again stays small.

    The factors that were multiplied first, which other products no longer share, become one.
    """
    if len(term.factors) <= MAX_FACTORS:
        return term
    half = len(term.factors) // 2
    eldest = collapse(assemble(dims, (Term(np.ones_like(term.coef), term.factors[:half]),)))
    (made,) = eldest.terms
    return Term(term.coef * made.coef, (*made.factors, *term.factors[half:]))


def _product(a: Term, b: Term, axes: tuple[Axis, ...]) -> Term:
    factors = {f.key: f for f in a.factors}
    for g in b.factors:
        f = factors.pop(g.key, None)
        made = g if f is None else changed(f, f.values * g.values, axes)
        for other in tuple(factors.values()):
            if lineage.tie(other, made, axes) is None and (linked := lineage.link(other, made, axes)):
                factors.pop(other.key)
                made = dependent_product(*linked, axes)
        factors[made.key] = made
    coef = a.coef * b.coef
    own = tuple(factors.values())
    if len(own) > 1:
        # Others are merged, ties and all.
        before = [tuple(f for f in t.factors if f.key in factors) for t in (a, b)]
        coef = coef * np.sqrt(_ties(own, axes) / (_ties(before[0], axes) * _ties(before[1], axes)))
    return Term(coef, own)


def _ties(factors: tuple[Factor, ...], axes: tuple[Axis, ...]) -> Array:
    """Return what a product's square gains by factors that are tied to one another; see `lineage.tie`.

    A term's coefficient holds the root of it.
    """
    found: Array = np.ones([1] * len(axes))
    for k, f in enumerate(factors):
        for g in factors[:k]:
            tie = lineage.tie(f, g, axes)
            found = found if tie is None else found * tie
    return found


def dependent_product(f: Factor, g: Factor, phi: Array, axes: tuple[Axis, ...]) -> Factor:
    """Return f·g for two dependent variables as a function of one new latent.

    Here φ is g's part in f (see `lineage.link`). It knows E[f g | z] for the variable z of g, and takes
    E[f g | y] for that of f as E[g | y] f with z and y normal.
    """
    form = surfaces.form_of(f)
    (*rows, theirs), at = latents.distinct(f.values, form, phi, g.values)
    made = surfaces.surface(*rows) * theirs[:, :, None]
    r = latents.coefficients(phi)[..., 1] / np.maximum(latents.coefficients(form)[..., 1], 1e-300)
    given_y = f.values * latents.conditional(g.values, np.clip(r, -1.0, 1.0))
    return from_surface(f, g, phi, made, at, given_y, axes)


def from_surface(
    f: Factor, g: Factor, phi: Array, made: Array, at: Index, given_y: Array | None, axes: tuple[Axis, ...]
) -> Factor:
    """Return a function of two variables, given on the nodes of `surfaces.surface`, as one of one new latent.

    `at` says which row of `made` is each block's. It knows its expectation given the variable of g, and
    `given_y`, that given the variable of f.
    """
    table, mean = surfaces.surface_moments(f, g, phi, made, at, axes)
    thin = latents.WEIGHTS.reshape(-1, 3).sum(1)[_CORE]  # the form alone: table and mean are set exactly
    weights = np.multiply.outer(thin, latents.FEW_WEIGHTS).ravel()
    flat = made[:, 1::3][:, _CORE].reshape(-1, weights.size)
    values = np.stack([latents.quantiles(row, weights) for row in flat])[at]
    term = with_marginal(tuple((a,) for a in axes), table, mean, values).terms[0]
    if not term.factors:
        return new_factor(axes, np.ones([1] * len(axes)), term.coef[..., None] * np.ones(len(latents.NODES)))
    values = term.factors[0].values
    known = [(g, (made @ latents.FEW_WEIGHTS)[at]), *([] if given_y is None else [(f, given_y)])]
    return replace(term.factors[0], parts=ancestors.parts_of_product(values, known))


def absorbed(term: Term, axes: tuple[Axis, ...]) -> Factor | None:
    """Return a term of one factor as that factor alone, coefficient included.

    None where it has no or several factors.
    """
    if len(term.factors) != 1:
        return None
    (factor,) = term.factors
    if term.coef.size == 1 and float(term.coef.reshape(())) == 1.0:
        return factor
    values = term.coef[..., None] * factor.values
    return replace(factor, values=values, table=factor.table * outer(term.coef, term.coef, axes))


def collapse(m: Moments) -> Moments:
    """Return the record as one function of one new latent, with the same table and mean.

    Exact where all terms are normal; else the marginal is the sum's quantile function (deterministic
    sampling) and the latent's correlations give the table back. One factor is returned as it is, and the
    same record gives the same latent every time.
    """
    if len(m.terms) == 1 and len(m.terms[0].factors) <= 1:
        return m
    if m not in _COLLAPSED:
        _COLLAPSED[m] = _collapsed(m)
    return _COLLAPSED[m]


def _collapsed(m: Moments) -> Moments:
    normal_ = all(len(t.factors) == 1 and latents.affine(t.factors[0].values) for t in m.terms)
    table, mean = m.table, m.mean
    made = gaussian(m.dims, table, mean) if normal_ else with_marginal(m.dims, table, mean, _sampled(m))
    return descended(made, m.terms, normal_=normal_)


def as_known(m: Moments, to: Moments) -> Moments:
    """Return a record as one function of one latent where another one knows that latent, else as it is."""
    made = _COLLAPSED.get(m)
    latents_of = {f.latent for t in made.terms for f in t.factors} if made is not None else set()
    known = any(not f.ancestors.isdisjoint(latents_of) for t in to.terms for f in t.factors)
    return made if made is not None and known else m


def descended(made: Moments, terms: tuple[Term, ...], *, normal_: bool) -> Moments:
    """Return a record of one new latent, which remembers that it is the sum of these terms."""
    (term,) = made.terms
    if not term.factors:
        return made
    (factor,) = term.factors
    std = np.sqrt(made.variance) if normal_ else None
    form = None if normal_ else factor.values
    own = replace(factor, parts=lineage.parts_of(terms, std), form=form)
    origins.made_of(own, terms)
    made = near.of_sum(replace(made, terms=(Term(term.coef, (own,)),)), terms)
    found = (fan.of_sum(terms), apart.of_sum(terms), uneven.of_sum(terms, made.axes), steep.of_sum(terms))
    for mark in found:
        made = marked(made, mark)
    return lengths.handed_on(made, terms)


def with_marginal(dims: Dims, table: Array, mean: Array, values: Array) -> Moments:
    """Return f(z) of a new latent with given second moments.

    `values` give the marginal's form (a block array, nodes last).
    """
    axes = tuple(a for d in dims for a in d)
    square = diagonal(table, axes)
    variance = np.maximum(square - mean**2, 0.0)
    own = latents.mean(values)
    spread = latents.mean((values - own[..., None]) ** 2)
    ratio = np.sqrt(
        np.divide(
            variance,
            spread,
            out=np.zeros(np.broadcast_shapes(variance.shape, spread.shape)),
            where=spread > 0,
        )
    )
    values = mean[..., None] + (values - own[..., None]) * ratio[..., None]
    std = np.sqrt(variance)
    centred = table - outer(mean, mean, axes)
    rho_out = outer(std, std, axes)
    wanted = np.divide(
        centred, rho_out, out=np.zeros(np.broadcast_shapes(centred.shape, rho_out.shape)), where=rho_out > 0
    )
    typical = (
        values.reshape(-1, values.shape[-1])[int(np.argmax(variance))]
        if values[..., 0].size > 1
        else values.reshape(-1)
    )
    deviation = np.sqrt(max(float(latents.mean((typical - latents.mean(typical)) ** 2)), 1e-300))
    rho = latents.correlation_for(typical / deviation, np.clip(wanted, -1.0, 1.0))
    factor = new_factor(axes, rho, values, table)
    return Moments(dims, (Term(np.ones([1] * len(axes)), (factor,)),), table, mean)


def _sampled(m: Moments) -> Array:
    """Return the quantile function of the record's entries, block by block.

    Blocks that differ in size alone, as those of one layer and the next, have the same but for that.
    """
    keys = list({f.key: None for t in m.terms for f in t.factors})
    lead = np.broadcast_shapes(*[a.shape for t in m.terms for a in (t.coef, *[f.mean for f in t.factors])])
    columns, coefs = [], []
    for term in m.terms:
        coef = np.broadcast_to(term.coef, lead)
        for f in term.factors:
            size = np.sqrt(np.maximum(f.square, 1e-300))
            columns.append(np.broadcast_to(f.values / size[..., None], (*lead, len(latents.NODES))))
            coef = coef * size
        coefs.append(coef)
    whole = np.abs(coefs).max(0)
    shares = np.stack(coefs, -1) / np.where(whole > 0, whole, 1.0)[..., None]
    rows = np.concatenate([shares, *columns], axis=-1).astype(np.float32).reshape(whole.size, -1)
    variables = tuple([tuple([keys.index(f.key) for f in t.factors]) for t in m.terms])
    found = [_quantiles_of_sum(row.tobytes(), variables) for row in rows]
    return np.asarray(np.stack(found).reshape(*lead, -1) * whole[..., None])


@lru_cache(maxsize=2048)
def _quantiles_of_sum(block: bytes, variables: tuple[tuple[int, ...], ...]) -> Array:
    """Return the quantile function of a sum of products, taken from a fixed lattice of latent values.

    Args:
        block: In single precision the coefficients of the products, and then the functions in them, given at
            the nodes.
        variables: Which variables those are functions of, product by product.
    """
    numbers = np.frombuffer(block, dtype=np.float32).astype(np.float64)
    functions = iter(numbers[len(variables) :].reshape(-1, len(latents.NODES)))
    points = _lattice(1 + max([k for product in variables for k in product], default=-1))
    total: Array = np.zeros(1)
    for coef, product in zip(numbers, variables, strict=False):
        value: Array = np.full(1, coef)
        for k in product:
            value = value * latents.at_points(next(functions), points[k])
        total = total + value
    return latents.even_quantiles(total)


@lru_cache(maxsize=16)
def _lattice(count: int, points: int = 4001) -> tuple[tuple[Index, Array], ...]:
    """Return the places of `points` nearly uniform normal points in `count` dimensions: a Kronecker lattice.

    Its steps are square roots of primes.
    """
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    steps = np.arange(1, points + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(latents.WEIGHTS)])
    middle = 0.5 * (cumulative[:-1] + cumulative[1:])
    uniform = (np.mod(steps * np.sqrt(primes[k % 12]) * (1 + k // 12), 1.0) for k in range(count))
    return tuple(latents.places(np.interp(u, middle, latents.NODES)) for u in uniform)


def apply(m: Moments, fn: Callable[[Array], Array]) -> Moments:
    """Return fn of every entry, executed on the node values.

    Exact for a function of one latent; others collapse first.
    """
    m = collapse(m)
    (term,) = m.terms
    if not term.factors:
        return assemble(m.dims, (Term(fn(term.coef)),))
    factor = absorbed(term, m.axes)
    assert factor is not None
    made = changed(factor, fn(factor.values), m.axes)
    return assemble(m.dims, (Term(np.ones([1] * len(m.axes)), (made,)),))
