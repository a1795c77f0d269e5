"""Sums Σ γ x over an axis, and what they have in common with the γ and x that they are sums of.

The gradient of y = x·r, r = (mean x² + ε)^−½, written out, is γ·r − x·r³·S/n with S = Σ γ x: the second part
takes away the first one's component along x. So they go together, though S has nothing in common with any
single γ or x:

    E[γ_j · S x_j′] = Σ_k E[γ_j γ_k]·E[x_k x_j′],

a product of two tables as matrices along the axis. Exact for γ independent of x. What stays fixed along the
axis (r, r³) is a factor of its own. Where γ or x has since been multiplied by slopes that depend on x, the
mean over j = j′ is

    E[γ_j u_j · S v_j] = E[S²]/n · E[f u v]/E[f²],      S = Σ γ f,

node by node in each variable, and the pairs' pattern is taken as that of tables that do not know of one
another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Dot, Factor, Moments, Part, Term

MOST = 3  # products of a sum that are followed


def carrier_of(term: Term) -> Factor | None:
    """Return the factor of mean 0 of a product that is a linear function of a normal variable."""
    return next((f for f in term.factors if f.centred and latents.affine(f.values)), None)


def of_sum(m: Moments, made: Moments, positions: Sequence[int]) -> tuple[Part, ...]:
    """Return the marks of the sum of a record over one axis, where that is a sum of products γ·f."""
    if len(positions) != 1 or len(m.terms) > MOST:
        return ()
    (p,) = positions
    rest = (*m.axes[:p], *m.axes[p + 1 :])
    labels, values = (None,) * len(rest), np.zeros([1] * (len(rest) + 1))
    found = []
    for term in m.terms:
        carrier = carrier_of(term)
        others = tuple(f for f in term.factors if f is not carrier)
        if carrier is None or not others or carrier.labels[p] is None:
            continue
        own = rec.outer(term.coef, term.coef, m.axes) * _table(term.factors)
        own = own[tuple(slice(None) if k == p else slice(len(a)) for k, a in enumerate(m.axes))]
        counts = ax.pair_counts(m.axes[p])
        own = np.tensordot(own, counts, axes=(p, 0)) if own.shape[p] > 1 else own.take(0, p) * counts.sum()
        dot = Dot(
            carrier,
            others,
            carrier.labels[p],
            float(np.mean(term.coef)),
            rec.average(own, rest),
            rec.average(made.square, rest),
        )
        found.append(Part(dot, labels, (), values))
    return tuple(found)


def crossed(a: Term, b: Term, axes: tuple[Axis, ...]) -> Array | None:
    """Return E[a b′] by pair class for a product a with the γ of a sum that is a factor of b, else None."""
    for s in b.factors:
        for dot in (p.latent for p in s.parts if isinstance(p.latent, Dot)):
            found = _crossed(a, b, s, dot, axes)
            if found is not None:
                return found
    return None


def _crossed(a: Term, b: Term, s: Factor, dot: Dot, axes: tuple[Axis, ...]) -> Array | None:
    carrier = next((f for f in a.factors if f.key == dot.carrier.key), None)
    if carrier is None:
        return None
    along = [k for k, label in enumerate(carrier.labels) if label == dot.along and s.labels[k] is None]
    if len(along) != 1:
        return None
    (p,) = along
    ours, fixed = _parted(a, carrier, p)
    theirs, fixed_too = _parted(b, s, p)
    known = {key for f in dot.rest for key in ((*f.key, ()), *f.plain)}
    if not theirs or any((*f.key, ()) not in known for f in theirs):
        return None
    made = _chained(_table([carrier, *ours]), _table(theirs), p, axes)
    size = _sign(s) * (rec.average(s.square, axes) / max(dot.whole, 1e-300)) ** 0.5
    if not ours and {f.key for f in dot.rest} == {f.key for f in theirs}:
        size *= dot.coef * _ratio(dot.carrier, carrier)
        for f in theirs:
            size *= _ratio(next(g for g in dot.rest if g.key == f.key), f)
    else:
        reached = rec.average(rec.diagonal(made, axes), axes) * dot.coef
        share = _aligned(dot, carrier, [*ours, *theirs], axes)
        size *= share * dot.square / ax.size(axes[p]) / reached if reached else 0.0
    return np.asarray(size * made * rec.outer(a.coef, b.coef, axes) * _fixed_table(fixed, fixed_too, axes))


def _aligned(dot: Dot, carrier: Factor, others: Sequence[Factor], axes: tuple[Axis, ...]) -> float:
    """Return E[f u v]/E[f²] for the f of a sum and all else that it meets; see the module.

    1 where those are functions of what the f were made of, and not of their variables.
    """
    keys = {f.key for f in dot.rest}
    if any(f.key not in keys for f in others):
        return 1.0
    shapes = {f.values.shape[:-1] for f in (*dot.rest, *others, dot.carrier, carrier)}
    recut = any(len({n for n in sizes if n > 1}) > 1 for sizes in zip(*shapes, strict=True))
    met, own = np.ones([1] * len(axes)), np.ones([1] * len(axes))
    for f in dot.rest:
        factors = [_by_block(g, mean=recut) for g in (f, *others) if g.key == f.key]
        met, own = met * latents.mean(reduce(np.multiply, factors)), own * latents.mean(factors[0] ** 2)
    squares = rec.average(own, axes) * float(np.mean(latents.mean(_by_block(dot.carrier, mean=recut) ** 2)))
    both = latents.mean(_by_block(dot.carrier, mean=recut) * _by_block(carrier, mean=recut))
    return rec.average(met, axes) * float(np.mean(both)) / squares if squares > 0 else 0.0


def _by_block(f: Factor, *, mean: bool) -> Array:
    """Return a function at the nodes by block; their mean where an axis has been cut anew."""
    return f.values.mean(tuple(range(f.values.ndim - 1)), keepdims=True) if mean else f.values


def _parted(term: Term, without: Factor, p: int) -> tuple[list[Factor], list[Factor]]:
    """Return a term's other factors: those that vary along an axis, and those that do not."""
    rest = [f for f in term.factors if f is not without]
    return [f for f in rest if f.labels[p] is not None], [f for f in rest if f.labels[p] is None]


def _table(factors: Sequence[Factor]) -> Array:
    """Return the joint second moments of a product of independent factors."""
    return reduce(np.multiply, [f.table for f in factors])


def _chained(left: Array, right: Array, p: int, axes: tuple[Axis, ...]) -> Array:
    """Return Σ_k left(j, k)·right(k, j′) over an axis; right between entries that agree on all others."""
    right = right[tuple(slice(None) if k == p else slice(len(a)) for k, a in enumerate(axes))]
    for k, axis in enumerate(axes):
        if k != p and right.shape[k] > 1:
            right = right.take(ax.sides(axis)[1], axis=k)
    classes = len(axes[p]) * (len(axes[p]) + 1)
    ours, theirs = (
        np.moveaxis(np.broadcast_to(x, (*x.shape[:p], classes, *x.shape[p + 1 :])), p, -1)
        for x in (left, right)
    )
    return np.moveaxis(np.einsum("cde,...d,...e->...c", ax.composed(axes[p]), ours, theirs), -1, p)


def _fixed_table(ours: Sequence[Factor], theirs: Sequence[Factor], axes: tuple[Axis, ...]) -> Array:
    """Return E[Π f · Π g′] by pair class for factors of two products, independent but for equal variables."""
    left = {g.key: g for g in theirs}
    result: Array = np.ones([1] * len(axes))
    for f in ours:
        g = left.pop(f.key, None)
        result = result * (rec.first(f.mean, axes) if g is None else rec.joint(f, f.values, g.values, axes))
    for g in left.values():
        result = result * rec.second(g.mean, axes)
    return result


def _sign(f: Factor) -> float:
    return math.copysign(1.0, float((f.values[..., -1] - f.values[..., 0]).sum()))


def _ratio(f: Factor, g: Factor) -> float:
    """Return the size of one function of a variable by that of a multiple of it."""
    return math.sqrt(float(np.mean(f.square)) / max(float(np.mean(g.square)), 1e-300))
