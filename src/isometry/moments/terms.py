"""Terms of one record: their moments, alone and with one another, and which of them are one.

All have the same axes and blocks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isometry.moments import elsewhere, lineage, projection
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Factor, Term, diagonal, first, joint, mirror, outer, second


def second_moments(factors: tuple[Factor, ...], axes: tuple[Axis, ...]) -> Array:
    """Return the second moments of a product; two images of the same rows know of one another."""
    own: Array = np.ones([1] * len(axes))
    for factor in factors:
        own = own * factor.table
    for k, f in enumerate(factors):
        for g in factors[:k]:
            extra = lineage.together(f, g, axes)
            if extra is not None:
                for other in (x for x in factors if x is not f and x is not g):
                    extra = extra * other.table
                own = own + extra
    return own


def mean_of(term: Term) -> Array:
    """Return a term's mean, by block."""
    mean = term.coef
    for factor in term.factors:
        mean = mean * factor.mean
    return mean


def crossed(a: Term, b: Term, axes: tuple[Axis, ...]) -> Array | None:
    """Return E[a b′] by pair class, or None where it vanishes."""
    for one, other, turned in ((a, b, False), (b, a, True)):
        if (found := projection.crossed(one, other, axes)) is not None:
            return mirror(found, axes) if turned else found
    keys = {factor.key: factor for factor in b.factors}
    result = outer(a.coef, b.coef, axes)
    for factor in a.factors:
        partner = keys.pop(factor.key, None)
        if partner is not None:
            result = result * joint(factor, factor.values, partner.values, axes)
            continue
        related = next(
            ((g, c) for g in keys.values() if (c := _covariance(factor, g, axes)) is not None), None
        )
        if related is not None:
            keys.pop(related[0].key)
            result = result * (related[1] + outer(factor.mean, related[0].mean, axes))
        elif factor.centred:
            return None
        else:
            result = result * first(factor.mean, axes)
    for factor in keys.values():
        if factor.centred:
            return None
        result = result * second(factor.mean, axes)
    return result


def at_least(table: Array, square: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a table where no entry's square is less than this: what cancels but for an approximation."""
    shape = [max(n, len(a) * (len(a) + 1)) for n, a in zip(table.shape, axes, strict=True)]
    table = np.array(np.broadcast_to(table, shape))
    own = diagonal(table, axes)
    own[...] = np.maximum(own, square)
    return table


def _covariance(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    found = elsewhere.covariance(f, g, axes)
    return lineage.covariance(f, g, axes) if found is None else found


def merged(terms: tuple[Term, ...], axes: tuple[Axis, ...]) -> tuple[Term, ...]:
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


def changed(factor: Factor, values: Array, axes: tuple[Axis, ...]) -> Factor:
    """Return another function of the same variable."""
    return replace(factor, values=values, table=joint(factor, values, values, axes))
