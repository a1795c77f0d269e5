"""Records: what the entries of a tensor would look like over random weights and inputs.

A record stands for an array of random variables. It holds

- `dims`: for each tensor dim its axes (see `axes`); a dim of size 1 has none;
- `table`: the second moments E[x x′] by pair class, a pair array;
- `mean`: E[x] by block, a block array;
- `terms`: how an entry depends on independent latents: x = Σ_terms coef · Π_factors f(z).

A `Factor` is a pointwise function f of one latent z: its values at the quadrature nodes (a block array with
the nodes last), the latent's correlations `rho` and its own second moments `table` (pair arrays). `labels`
say along which axis of the latent each axis of the record runs: two factors are the same variable exactly
where latent and labels agree, so that `x * sigmoid(x)` is executed node by node while `x[:, None] * x[None]`
is not. Views carry labels along; see `relabel_split` and friends.

Records are immutable, and every function here is pure: Moments in, Moments out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import latents, series
from isometry.moments.axes import Array, Axis
from isometry.moments.mark_kinds import Along as Along
from isometry.moments.mark_kinds import Apart as Apart
from isometry.moments.mark_kinds import Fan as Fan
from isometry.moments.mark_kinds import Gram as Gram
from isometry.moments.mark_kinds import Keys as Keys
from isometry.moments.mark_kinds import Leaning as Leaning
from isometry.moments.mark_kinds import Length as Length
from isometry.moments.mark_kinds import Normed as Normed
from isometry.moments.mark_kinds import Repeated as Repeated
from isometry.moments.mark_kinds import Shortened as Shortened
from isometry.moments.mark_kinds import Steep as Steep
from isometry.moments.mark_kinds import Tilted as Tilted
from isometry.moments.mark_kinds import Uneven as Uneven


class Run(NamedTuple):
    """An axis that runs over an axis `base` of a latent, in steps of `stride` from `offset` on."""

    base: object
    stride: int
    offset: int


class Fused(NamedTuple):
    """An axis fused from two that do not belong together; `inner` is the size of the second."""

    high: Run | Fused | None
    low: Run | Fused | None
    inner: int


@dataclass(frozen=True, eq=False)
class Across:
    """Marks a `Part` of a gradient that is orthogonal, over batch and space, to every channel of `to`.

    `to` is the function of one latent that the gradient is one of. It has the size `bent` at its nodes, of
    which what is independent from entry to entry is `alone`. `share` is what of its size it is orthogonal in,
    and `loose` that of its square which does not sum to zero over a channel. See `across`.
    """

    to: Factor
    bent: Array
    alone: Array
    share: float
    loose: float


class Near(NamedTuple):
    """Marks a `Part` that tells how alike entries are that lie near one another along the last axes.

    `labels` are those that the record has along these axes. `values[..., :]`, by block of the others, hold
    (ρ − ρ_far)/(1 − ρ_far) of the latent's correlations ρ, by distance along each axis, and then the shares
    of variables in common where entries are maxima; see `near`.
    """

    labels: tuple[Label, ...]


class Dot(NamedTuple):
    """Marks a `Part` of a sum Σ coef·γ·Πf along an axis whose label is `along`; see `projection`.

    `carrier` is γ, normal of mean 0, `rest` are the f. `square` is that of the sum, `whole` that of all that
    was summed with it.
    """

    carrier: Factor
    rest: tuple[Factor, ...]
    along: Label
    coef: float
    square: float
    whole: float


Loose = (
    Keys
    | Fan
    | Normed
    | Steep
    | Across
    | Near
    | Uneven
    | Apart
    | Length
    | Dot
    | Tilted
    | Repeated
    | Shortened
    | Leaning
    | Along
)  # marks that belong to no variable
Mark = Gram | Loose  # what stands in the place of a latent and is none


@dataclass(frozen=True, eq=False)
class Joined:
    """The latent of tensors side by side along its axis `axis`: over each stretch it is that part's own.

    `pieces` hold start, stop, latent and labels of each part that is a function of one; `whole` is of all.
    """

    axis: int
    pieces: tuple[tuple[int, int, object, tuple[Label, ...]], ...]
    whole: object


Label = Run | Fused | None
Dims = tuple[tuple[Axis, ...], ...]


@dataclass(frozen=True, eq=False)
class Part:
    """What a latent made from others knows of one of them, φ(z) = E[form | z] less its mean; see `lineage`.

    `labels` say along which axes of z the record's axes run, `gone` along which z was summed; `values` are φ
    at the nodes.
    """

    latent: object
    labels: tuple[Label, ...]
    gone: tuple[Label, ...]
    values: Array

    @cached_property
    def key(self) -> tuple[object, tuple[Label, ...], tuple[Label, ...]]:
        """What identifies the variable and how it was summed."""
        return self.latent, self.labels, self.gone


@dataclass(frozen=True, eq=False)
class Factor:
    """A pointwise function of one latent; see the module.

    `parts` tell how the latent's `form` (None: the latent itself) depends on others. `length` is added to ρ²,
    the covariance of h₂(z) and h₂(z′), where the entries are bound to a length that they have together.
    """

    latent: object
    labels: tuple[Label, ...]
    rho: Array
    values: Array
    table: Array
    parts: tuple[Part, ...] = ()
    form: Array | None = None
    length: Array | None = None

    @cached_property
    def mean(self) -> Array:
        """E[f(z)], a block array."""
        return latents.mean(self.values)

    @cached_property
    def square(self) -> Array:
        """E[f(z)²], a block array."""
        return latents.mean(self.values**2)

    @cached_property
    def slope(self) -> Array:
        """cov(f, form)/var(form), a block array."""
        form = latents.NODES.reshape([1] * (self.values.ndim - 1) + [-1]) if self.form is None else self.form
        form = form - latents.mean(form)[..., None]
        variance = latents.mean(form * form)
        covariance = latents.mean(self.values * form)
        shape = np.broadcast_shapes(covariance.shape, variance.shape)
        return np.asarray(np.divide(covariance, variance, out=np.zeros(shape), where=variance > 0))

    @cached_property
    def coefficients(self) -> Array:
        """The Hermite coefficients by block."""
        return latents.coefficients(self.values)

    @cached_property
    def size_of_form(self) -> Array:
        """The standard deviation of the latent's form, a block array."""
        if self.form is None:
            return np.ones([1] * (self.values.ndim - 1))
        return np.asarray(np.maximum(latents.mean(self.form**2) - latents.mean(self.form) ** 2, 0.0) ** 0.5)

    @cached_property
    def key(self) -> tuple[object, tuple[Label, ...]]:
        """What identifies the variable."""
        return self.latent, self.labels

    @cached_property
    def centred(self) -> bool:
        """Whether the mean is nothing but rounding."""
        return not np.abs(self.mean).max() > 1e-12 * np.sqrt(np.abs(self.table).max())

    @cached_property
    def ancestors(self) -> frozenset[object]:
        """The latents that the parts speak of."""
        return frozenset(p.latent for p in self.parts)

    @cached_property
    def plain(self) -> dict[object, Part]:
        """The parts that are functions of one entry of a variable."""
        return {p.key: p for p in self.parts if not p.gone and not isinstance(p.latent, Mark)}

    @cached_property
    def marks(self) -> tuple[Part, ...]:
        """The inner products of rows that the entries know."""
        return tuple([p for p in self.parts if isinstance(p.latent, Gram)])

    @cached_property
    def images(self) -> dict[object, Part]:
        """Those where each row has been multiplied by one matrix."""
        return {p.key: p for p in self.marks if not p.gone and any(p.labels)}


@dataclass(frozen=True, eq=False)
class Term:
    """A product coef · Π f(z); `coef` is a block array."""

    coef: Array
    factors: tuple[Factor, ...] = ()

    @property
    def square(self) -> Array:
        """The product's second moment, of independent factors, as a block array."""
        square = self.coef**2
        for factor in self.factors:
            square = square * factor.square
        return square


@dataclass(frozen=True, eq=False)
class Moments:
    """The record; see the module."""

    dims: Dims
    terms: tuple[Term, ...]
    table: Array
    mean: Array

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """All axes in order."""
        return tuple([axis for dim in self.dims for axis in dim])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(prod(ax.size(axis) for axis in dim) for dim in self.dims)

    def positions(self, dim: int) -> range:
        """Return the positions, among all axes, of a dim's axes."""
        start = sum(len(d) for d in self.dims[: dim % len(self.dims)])
        return range(start, start + len(self.dims[dim]))

    @property
    def only(self) -> Factor | None:
        """The function that the record is but for its coefficient; None for sums, products and constants."""
        terms = self.terms
        return terms[0].factors[0] if len(terms) == 1 and len(terms[0].factors) == 1 else None

    @cached_property
    def square(self) -> Array:
        """E[x²] by block."""
        return diagonal(self.table, self.axes)

    @cached_property
    def variance(self) -> Array:
        """Var x by block."""
        return np.maximum(self.square - self.mean**2, 0.0)


# --- block arrays and pair arrays ---------------------------------------------------------------------------


def diagonal(table: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a pair array's entries for an entry paired with itself, as a block array."""
    return table[tuple([slice(len(a)) for a in axes])]


def first(blocks: Array, axes: tuple[Axis, ...]) -> Array:
    """Spread a block array over pair classes by the block of the pair's first entry."""
    return ax.spread(blocks, axes, 0)


def second(blocks: Array, axes: tuple[Axis, ...]) -> Array:
    """Spread a block array over pair classes by the block of the pair's second entry."""
    return ax.spread(blocks, axes, 1)


def outer(a: Array, b: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a(first) · b(second) as a pair array."""
    return first(a, axes) * second(b, axes)


def dual(f: Array, g: Array, rho: Array, axes: tuple[Axis, ...]) -> Array:
    """Return E[f(z) g(z′)] by pair class for two functions of one variable.

    They are given by block, with the nodes last.

    The Hermite coefficients are taken by block and only then spread over pair classes. What they leave is
    exact within a block, and between blocks it is taken as shared in the same proportion.
    """
    ours = latents.spectrum(f)
    if f is g:
        return series.by_class(ours, ours, rho, axes)
    theirs = latents.spectrum(g)
    left = latents.mean(f * g) - np.einsum("...k,...k->...", ours[..., :-1], theirs[..., :-1])
    size = ours[..., -1] * theirs[..., -1]
    share = np.divide(left, size, out=np.zeros_like(left), where=size > 0)
    known = np.broadcast_to(ours[..., :-1], (*share.shape, latents.ORDER))
    ours = np.concatenate([known, (ours[..., -1] * share)[..., None]], axis=-1)
    return series.by_class(ours, theirs, rho, axes)


def joint(factor: Factor, f: Array, g: Array, axes: tuple[Axis, ...]) -> Array:
    """Return E[f(z) g(z′)] by pair class for two functions of a factor's variable; see `dual`."""
    table = dual(f, g, factor.rho, axes)
    if factor.length is None:
        return table
    ours, theirs = latents.coefficients(f)[..., 2], latents.coefficients(g)[..., 2]
    return np.asarray(table + outer(ours, theirs, axes) * factor.length)


def mirror(table: Array, axes: tuple[Axis, ...]) -> Array:
    """Return a pair array with the two entries of each pair exchanged."""
    for position, axis in enumerate(axes):
        if table.shape[position] > 1 and len(axis) > 1:
            table = np.take(table, ax.mirrored(axis), axis=position)
    return table


def average(blocks: Array, axes: tuple[Axis, ...]) -> float:
    """Return the mean of a block array over all entries."""
    for axis in axes:
        blocks = blocks[0] if blocks.shape[0] == 1 else (blocks.T @ ax.shares(axis)).T
    return float(blocks)


def pooled(values: Array, axes: Sequence[Axis]) -> Array:
    """Return the mean over all entries of values at the nodes, given by block."""
    for axis in axes:
        values = values[0] if values.shape[0] == 1 else np.tensordot(ax.shares(axis), values, axes=1)
    return values


def average_differ(table: Array, axes: tuple[Axis, ...], positions: Sequence[int]) -> float:
    """Return the mean of a pair array over pairs that differ on some of these axes and agree elsewhere."""
    free, same, pairs, entries = table, table, 1.0, 1.0
    for k, axis in reversed(list(enumerate(axes))):
        n = float(ax.size(axis))
        own = _last(same, ax.pair_counts(axis) * ax.same_classes(axis))
        free = (
            _last(free, ax.pair_counts(axis))
            if k in positions
            else _last(free, ax.pair_counts(axis) * ax.same_classes(axis))
        )
        same, pairs, entries = own, pairs * (n * n if k in positions else n), entries * n
    return float(free - same) / max(pairs - entries, 1.0)


def _last(table: Array, weights: Array) -> Array:
    return table[..., 0] * weights.sum() if table.shape[-1] == 1 else table @ weights
