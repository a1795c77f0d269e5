"""What latents were made from, so that their relations can be followed: see `kin`.

A latent remembers its `Origin`: a `Sum` of functions of others, one `Centred`, a `Product`, a `Contraction`,
or tensors `Beside` one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from isometry.moments.axes import Array
from isometry.moments.latents import Latent
from isometry.moments.places import Axes, View, all_of, less_mean, view_of
from isometry.moments.record import Factor, Label, Moments, Run, Term, diagonal, mirror, outer

ROUNDING = 1e-9  # weights below are what rounding left of nothing
FEW = 2  # summands that a sum takes over from one of its own


@dataclass(frozen=True, eq=False)
class Sum:
    """A latent that is Σ weight · view and something independent; weights are block arrays of its axes.

    `others` are latents that the sum depends on in another way.
    """

    parents: tuple[tuple[Array, View], ...]
    others: tuple[Latent, ...]

    @cached_property
    def shallow(self) -> bool:
        """Whether no summand is itself a sum."""
        return not any(isinstance(v.latent.origin, Sum | Centred) for _, v in self.parents)


@dataclass(frozen=True, eq=False)
class Centred:
    """A latent that is weight · (x − mean(x)), of a view x of another, over its own axes at `positions`."""

    weight: Array
    parent: View
    positions: tuple[int, ...]

    @property
    def shallow(self) -> bool:
        """Whether x is itself no sum."""
        return not isinstance(self.parent.latent.origin, Sum | Centred)


@dataclass(frozen=True, eq=False)
class Product:
    """A latent that stands for a product of factors of mean 0, divided by its size."""

    factors: tuple[Factor, ...]
    size: Array


@dataclass(eq=False)
class Contraction:
    """A latent that stands for Σ_k a·b, or Σ_k a, with the size `std`; `summed` makes its table of theirs.

    `first` is the first contraction of one of both, where it was contracted so once more with something
    related to the other; the first's own `first` is itself. `loops` holds the latents of the loops that it
    began: see `columns`.
    """

    a: Moments
    b: Moments | None
    how: object
    summed: Callable[[Array, Array], Array]
    mean: Array
    std: Array
    first: Contraction | None = None
    loops: dict[object, list[tuple[int, Latent]]] = field(default_factory=dict)

    @property
    def again(self) -> bool:
        """Whether it is one of several contractions of a weight."""
        return self.first is not None

    @property
    def summands(self) -> list[Moments]:
        """The one or two tensors that it sums over."""
        return [self.a] if self.b is None else [self.a, self.b]


@dataclass(frozen=True, eq=False)
class Beside:
    """A latent that is tensors side by side along an axis: over each stretch of blocks that part's own."""

    position: int
    parts: tuple[tuple[Axes, View | None], ...]

    @cached_property
    def of_steps(self) -> bool:
        """Whether all parts are single entries."""
        return all(axes[self.position] == (1,) for axes, _ in self.parts)


Origin = Sum | Centred | Product | Contraction | Beside

_reuses = count(1)
_now = [0]  # the latest reuse of weights; 0: there was none


def begin() -> None:
    """Forget the reuses of an earlier model, whose latents nobody asks for any more."""
    _now[0] = 0


# --- what latents are made from -----------------------------------------------------------------------------


def made_of(
    factor: Factor, terms: Sequence[Term], by: Array | float = 1.0, less_mean: Sequence[int] = ()
) -> None:
    """Note that a new latent, in the form of a factor of it times `by`, is the sum of these terms.

    Of that sum less its mean over the axes at these positions.
    """
    if not isinstance(factor.latent, Latent):
        return
    size = np.sqrt(np.maximum(factor.square - factor.mean**2, 0.0)) * by
    parents: list[tuple[Array, View]] = []
    for term in terms:
        loose = [f for f in term.factors if f.centred]
        if len(loose) > 1:
            weight, made = _product(term, factor.latent)
            parents.append((_ratio(weight, size), made))
            continue
        for f in loose or term.factors:
            weight = term.coef * f.slope * f.size_of_form
            for other in term.factors:
                weight = weight if other is f else weight * other.mean
            seen_by = view_of(f.latent, f.labels)
            if seen_by is not None and weight.any():
                parents += _leaves(_ratio(weight, size), seen_by, factor.latent.axes)
    parents = [(weight, parent) for weight, parent in parents if np.abs(weight).max() > ROUNDING]
    if parents:
        others = _latents_of([f for t in terms for f in t.factors])
        factor.latent.origin = Sum(tuple(parents), tuple(others))
        if less_mean:
            whole = Latent(factor.latent.axes, np.ones([max(n, 1) for n in factor.latent.rho.shape]))
            whole.origin = factor.latent.origin
            factor.latent.origin = Centred(np.ones([1] * len(whole.axes)), all_of(whole), tuple(less_mean))


def _leaves(weight: Array, parent: View, axes: Axes) -> list[tuple[Array, View]]:
    """Return a summand, or the few that it is itself a sum of: biases and contractions, say."""
    origin = parent.latent.origin
    if not isinstance(origin, Sum) or parent is not all_of(parent.latent) or parent.latent.axes != axes:
        return [(weight, parent)]
    if len(origin.parents) > FEW or not origin.shallow:
        return [(weight, parent)]
    return [(weight * by, v) for by, v in origin.parents]


def _product(term: Term, of: Latent) -> tuple[Array, View]:
    """Return the size of a product of several factors of mean 0, and a latent that stands for it."""
    size: Array = np.ones([1] * len(of.axes))
    for f in term.factors:
        size = size * f.square
    made = Latent(of.axes, np.ones([max(n, 1) for n in of.rho.shape]))
    made.origin = Product(term.factors, np.sqrt(size))
    places = tuple(Run(k, 1, 0) if n > 1 else None for k, n in enumerate(of.rho.shape))
    return term.coef * np.sqrt(size), View(made, places)


def _ratio(a: Array, b: Array) -> Array:
    shape = np.broadcast_shapes(a.shape, b.shape)
    return np.asarray(np.divide(a, b, out=np.zeros(shape), where=np.abs(b) > 1e-300))


def contracted(
    made: Moments, a: Moments, b: Moments | None, how: object, summed: Callable[[Array, Array], Array]
) -> None:
    """Note that a new latent is a contraction of a and b.

    Args:
        made: The record of the new latent alone.
        a: One tensor.
        b: The other; None where a alone is summed.
        how: What tells contractions of the same kind.
        summed: Makes the table of the result from tables of a and b.
    """
    (term,) = made.terms
    if not term.factors or not isinstance(term.factors[0].latent, Latent):
        return
    own = Contraction(a, b, how, summed, made.mean, np.sqrt(made.variance))
    term.factors[0].latent.origin = own
    for weights, other, side in ((b, a, 0), (a, b, 1)):
        key = None if weights is None else _single(weights)
        if key is None or other is None:
            continue
        first = key[0].latent.uses.setdefault((key, how, side), own)
        theirs = first.b if side else first.a
        if first is not own and theirs is not None and _may_be_related(other, theirs):
            if not (own.again and first.again):
                _now[0] = next(_reuses)
            own.first = first.first = first


def centred(made: Factor, m: Moments, positions: Sequence[int]) -> None:
    """Note that a new latent is m less its mean over the axes at these positions, in units of its size.

    To first order in the form of m, which is a function of one latent.
    """
    ((coef, factors),) = ((t.coef, t.factors) for t in m.terms)
    parent = view_of(factors[0].latent, factors[0].labels) if factors else None
    if parent is None or not isinstance(made.latent, Latent):
        return
    table = m.table - outer(m.mean, m.mean, m.axes)
    for _ in range(2):
        table = mirror(less_mean(table, m.axes, positions), m.axes)
    size = np.sqrt(np.maximum(diagonal(table, m.axes), 0.0))
    weight = _ratio(coef * factors[0].slope * factors[0].size_of_form, size)
    made.latent.origin = Centred(weight, parent, tuple(positions))


def laid_beside(made: Factor, parts: Sequence[tuple[Axes, Factor | None]], position: int) -> None:
    """Note that a new latent is those of other factors side by side along an axis."""
    if isinstance(made.latent, Latent):
        views = tuple((axes, None if f is None else view_of(f.latent, f.labels)) for axes, f in parts)
        made.latent.origin = Beside(position, views)


def _single(m: Moments) -> tuple[View, tuple[Label, ...]] | None:
    """Return the variable that a record is a function of, where it is one."""
    factor = m.only
    if factor is None:
        return None
    view = view_of(factor.latent, factor.labels)
    return None if view is None else (view, factor.labels)


def _may_be_related(a: Moments, b: Moments) -> bool:
    ours, theirs = (
        {v.latent for t in m.terms for f in t.factors if (v := view_of(f.latent, f.labels))} for m in (a, b)
    )
    return not ours.isdisjoint(theirs) or any(x.origin for x in ours | theirs)


def alive(latent: Latent) -> bool:
    """Return whether a latent descends from weights that were used again."""
    stack = [latent]
    while stack:
        top = stack[-1]
        if top.alive or top.dead == _now[0]:
            stack.pop()
            continue
        origin = top.origin
        if isinstance(origin, Contraction) and origin.again:
            top.alive = True
            continue
        parents = parents_of(origin)
        if any(p.alive for p in parents):
            top.alive = True
            continue
        open_ = [p for p in parents if p.dead != _now[0]]
        if open_:
            stack += open_
        else:
            top.dead = _now[0]
    return latent.alive


def again(factor: Factor) -> bool:
    """Return whether a factor's variable depends on weights that were used again."""
    seen_by = view_of(factor.latent, factor.labels) if _now[0] else None
    return seen_by is not None and alive(seen_by.latent)


def parents_of(origin: Origin | None) -> list[Latent]:
    """Return the latents that one with this origin is made from."""
    if isinstance(origin, Sum):
        return [*(view.latent for _, view in origin.parents), *origin.others]
    if isinstance(origin, Centred):
        return [origin.parent.latent]
    if isinstance(origin, Product):
        return _latents_of(origin.factors)
    if isinstance(origin, Beside):
        return [view.latent for _, view in origin.parts if view is not None]
    if isinstance(origin, Contraction):
        both = (m for m in (origin.a, origin.b) if m is not None)
        return _latents_of([f for m in both for t in m.terms for f in t.factors])
    return []


def _latents_of(factors: Sequence[Factor]) -> list[Latent]:
    return [v.latent for f in factors if (v := view_of(f.latent, f.labels)) is not None]


def any_again() -> bool:
    """Return whether any weights have been used again at all."""
    return bool(_now[0])
