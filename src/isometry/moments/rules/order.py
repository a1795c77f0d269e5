"""What depends on order: largest and smallest entries, sorting, and the places they come from.

Values follow from order statistics: with z = √r·u + √(1 − r)·e along the dim (r the correlation of two of its
entries), the k-th largest entry is f(√r·u + √(1 − r)·e_(k)), sampled over a quasi-random lattice of u and
of the order statistics of n independent normals. Places are integers that no moment can tell: they are one
typical draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments import regrouping as reg
from isometry.moments.averages import one_block
from isometry.moments.axes import Array, Axis
from isometry.moments.concrete import Concrete
from isometry.moments.drawing import draw
from isometry.moments.mask_rows import doubling
from isometry.moments.record import Factor, Moments
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.pointwise import as_moments, pointwise
from isometry.moments.rules.reduce import keep_dims

SAMPLES = 4096
WHOLE = 64  # rows of so many entries are sampled whole where their mean matters
MEDIAN = 1001  # of so many entries the middle one is looked for
SINGLE = 8  # so many ranks get a block each


class Extreme(NamedTuple):
    """The latent of the extreme of n entries: an entry equals it with probability 1/n."""

    latent: object
    n: int


@dataclass(frozen=True, eq=False)
class Known:
    """The latent of extremes of which one draw tells the entries that equal them.

    Among those of the variables `source` they are at `landed`, of others at `own`.
    """

    latent: object
    source: frozenset[object]
    landed: torch.Tensor
    own: torch.Tensor


def ranked(m: Moments, dim: int, k: int, *, largest: bool, ranks: Axis | None = None) -> Moments:
    """Return the k largest (smallest) entries along a dim, in order, which is cut into blocks of `ranks`.

    Asymptotic in the samples; other axes are averaged over their blocks. Two rows whose entries agree with
    correlation t share their order; else they share only what is common to all of a row.
    """
    m = alg.collapse(one_block(reg.single_axis(m, dim), tuple(range(len(m.dims)))))
    factor = alg.absorbed(m.terms[0], m.axes)
    if not m.dims[dim] or factor is None:
        return reg.sliced(m, dim, 0, k, 1) if m.dims[dim] else m
    (p,) = m.positions(dim)
    n = m.shape[dim]
    ranks = ranks or _blocks(k, n)
    rho = np.moveaxis(
        np.broadcast_to(factor.rho, (*factor.rho.shape[:p], 2, *factor.rho.shape[p + 1 :])), p, -1
    )
    shared = float(np.clip(rho.reshape(-1, 2)[0, 1], -1.0 / (n - 1), 1.0))
    values = latents.quantiles(factor.values.reshape(-1), latents.WEIGHTS)
    one, other = _samples(values, n, k, shared, largest=largest)
    own, common = _pairs(one, one, ranks), _pairs(one, other, ranks)
    mean = _block_means(one, ranks).mean(0)
    apart = np.concatenate([mean**2, np.outer(mean, mean).ravel()])
    turned = np.clip((rho[..., 0] - rho[..., 1]) / max(1.0 - shared, 1e-9), 0.0, 1.0)[..., None]
    along = np.clip(rho[..., 1:] / max(shared, 1e-9), 0.0, 1.0) * (shared > 0)
    across = np.concatenate([common[len(ranks) :].reshape(len(ranks), -1).diagonal(), common[len(ranks) :]])
    table = np.moveaxis(turned * own + (1.0 - turned) * (along * across + (1.0 - along) * apart), -1, p)
    uniform = np.full(SAMPLES, 1.0 / SAMPLES)
    forms = np.stack([latents.quantiles(row, uniform) for row in _block_means(one, ranks).T])
    shape = [1] * len(m.axes)
    shape[p] = len(ranks)
    dims = (*m.dims[:dim], (ranks,) if k > 1 else ((1,),), *m.dims[dim + 1 :])
    made = alg.with_marginal(dims, table, mean.reshape(shape), forms.reshape(*shape, -1))
    return reg.selected(made, dim, 0, keep=True) if k == 1 else made


def _blocks(k: int, n: int) -> Axis:
    """Return the blocks of the k first of n ranks: fine where entries are far apart."""
    if k <= SINGLE:
        return (1,) * k
    return doubling(k) if k < n else (*doubling(n // 2), *doubling(n - n // 2)[::-1])


def _samples(values: Array, n: int, k: int, shared: float, *, largest: bool) -> tuple[Array, Array]:
    """Return samples (samples, k) of the ordered entries, and others that share u with them.

    The order statistics of n uniforms are running products of powers of uniforms (Rényi). A negative
    correlation means that the entries' mean is held: part of it is taken away.
    """
    drawn = n if shared < 0.0 and n <= WHOLE else k
    both = 2 * drawn < torch.quasirandom.SobolEngine.MAXDIM
    lattice = torch.quasirandom.SobolEngine((1 + both) * drawn + 1, scramble=True, seed=1)  # type: ignore[no-untyped-call]
    uniform = lattice.draw(SAMPLES).double().clamp_(1e-12, 1.0 - 1e-12)
    # Others need dims of their own: the points of one lattice follow one another by rule.
    own = uniform[:, 1 : drawn + 1]
    others = uniform[:, drawn + 1 :] if both else own[torch.randperm(SAMPLES, generator=_seeded())]
    left = torch.arange(n, n - drawn, -1, dtype=torch.float64)
    powers = torch.exp(torch.cumsum(torch.log(torch.cat([own, others])) / left, 1))
    e = torch.special.ndtri(powers.clamp(1e-300, 1.0 - 1e-16)) * (1.0 if largest else -1.0)
    u = torch.special.ndtri(uniform[:, :1])
    if drawn > k or (shared < 0.0 and drawn == n):
        held = 1.0 - max(1.0 + n * shared / (1.0 - shared), 0.0) ** 0.5
        e = (e - held * e.mean(1, keepdim=True))[:, :k] * (1.0 - shared) ** 0.5
    else:
        e = e * (1.0 - max(shared, 0.0)) ** 0.5

    def told(part: torch.Tensor) -> Array:
        z = max(shared, 0.0) ** 0.5 * u + part
        return np.asarray(np.interp(z.numpy(), latents.NODES, values))

    return told(e[:SAMPLES]), told(e[SAMPLES:])


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _block_means(samples: Array, ranks: Axis) -> Array:
    starts = np.cumsum((0, *ranks[:-1]))
    return np.asarray(np.add.reduceat(samples, starts, axis=1) / np.asarray(ranks))


def _pairs(one: Array, other: Array, ranks: Axis) -> Array:
    """Return E[x x′] by pair class of the ranks' axis, for the entries of one row and those of another."""
    n = np.asarray(ranks, dtype=np.float64)
    same = _block_means(one * other, ranks).mean(0)
    sums = _block_means(one, ranks), _block_means(other, ranks)
    any_ = np.einsum("si,sj->ij", *sums) / len(one) * np.outer(n, n)
    differ = (any_ - np.diag(same * n)) / np.maximum(np.outer(n, n) - np.diag(n), 1.0)
    differ = np.where((np.outer(n, n) - np.diag(n)) > 0, differ, np.diag(same))
    return np.concatenate([same, differ.ravel()])


def _places(ctx: Context, m: Moments | Shifted) -> torch.Tensor:
    ctx.note("places that depend on data (routing, sorting) are one typical draw")
    if isinstance(m, Shifted) and isinstance(m.shift, Concrete):
        return draw(m.random, seed=1) + m.shift.tensor
    return draw(as_moments(m), seed=1)


@rule("topk", accuracy="asymptotic", raw=(0,))
def topk(
    ctx: Context, m: Any, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[Moments, Concrete]:
    """The k largest or smallest entries along a dim; see the module."""
    whole = m.random if isinstance(m, Shifted) else as_moments(m)
    dim %= len(whole.dims)
    entries = _left(ctx, m, dim) if isinstance(m, Shifted) else whole
    found = _places(ctx, m if isinstance(m, Shifted) else whole).topk(k, dim, largest)[1]
    return ranked(entries, dim, k, largest=largest), Places(
        found, of=whole.only, dim=dim, left=entries.shape[dim] if entries.dims else 1, largest=largest
    )


@dataclass(frozen=True, eq=False)
class Places(Concrete):
    """Places of the largest or smallest entries of a variable along a dim, as one draw has them.

    `left` entries were compared. Other functions of the variable have their extremes there, too.
    """

    of: Factor | None = None
    dim: int = 0
    left: int = 0
    largest: bool = True


def at_places(m: Moments, dim: int, places: Places) -> Moments | None:
    """Return the entries of a function of the variable that the places are of; None where it is of another.

    As gates that are looked up where a router's scores are largest. Both must rise or fall throughout.
    """
    ours, theirs = m.only, places.of
    if ours is None or theirs is None or dim != places.dim:
        return None
    if (ours.latent, ours.labels) != (theirs.latent, theirs.labels):
        return None
    senses = {_sense(ours.values), _sense(theirs.values)}
    if 0 in senses:
        return None
    largest = places.largest == (len(senses) == 1)
    return ranked(reg.sliced(m, dim, 0, places.left, 1), dim, places.tensor.shape[dim], largest=largest)


def _sense(values: Array) -> int:
    """Return 1 where a function rises, −1 where it falls, 0 where it does both or neither."""
    steps = np.diff(values)
    return int((steps >= 0).all()) - int((steps <= 0).all())


def _left(ctx: Context, m: Shifted, dim: int) -> Moments:
    """Return as many entries along a dim as a mask leaves on average, as of groups of experts."""
    shift = m.shift.tensor if isinstance(m.shift, Concrete) else torch.full((1,), torch.nan)
    hidden = torch.isinf(shift)
    if bool(shift[~hidden].any()):
        raise NoRule("the largest of entries that something known is added to")
    ctx.note("the largest of entries some of which a mask hides, as of so many in every row")
    n = m.random.shape[dim]
    return reg.sliced(
        m.random, dim % len(m.random.dims), 0, max(1, round(n * (1.0 - float(hidden.double().mean())))), 1
    )


@rule("sort", accuracy="asymptotic")
def sort(ctx: Context, m: Moments, *args: Any, dim: int = -1, descending: bool = False, **_: Any) -> Any:
    """All entries along a dim in order; see the module."""
    numbers = [a for a in args if not isinstance(a, bool) and isinstance(a, int)]
    flags = [a for a in args if isinstance(a, bool)]
    dim = (numbers[0] if numbers else dim) % len(m.dims)
    descending = flags[-1] if flags else descending
    made = ranked(m, dim, m.shape[dim], largest=descending)
    return made, Concrete(_places(ctx, m).sort(dim=dim, descending=descending)[1])


def _of_rank(m: Moments, dim: int, k: int, keepdim: bool) -> Moments:
    """Return the k-th smallest entry along a dim."""
    made = ranked(m, dim, k, largest=False, ranks=(k - 1, 1) if k > 1 else (1,))
    return keep_dims(reg.selected(made, dim, k - 1 if k > 1 else 0), (dim,), keepdim)


@rule("kthvalue", accuracy="asymptotic")
def kthvalue(ctx: Context, m: Moments, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest entry along a dim, with its place; see the module."""
    dim %= len(m.dims)
    return _of_rank(m, dim, k, keepdim), Concrete(_places(ctx, m).kthvalue(k, dim, keepdim)[1])


@rule("median", "nanmedian", accuracy="asymptotic")
def median(ctx: Context, m: Moments, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle entry (the lower of two) over a dim with its place; see the module.

    Of all entries, that of `MEDIAN` of them, whose own place `eq` of its gradient asks for.
    """
    if dim is None:
        flat = reg.regrouped(m, (prod(m.shape),))
        some = reg.sliced(flat, 0, 0, min(flat.shape[0], MEDIAN), 1)
        return one_of(_of_rank(some, 0, (some.shape[0] + 1) // 2, False), flat.shape[0])
    dim %= len(m.dims)
    place = _places(ctx, m).median(dim, keepdim)[1]
    return _of_rank(m, dim, (m.shape[dim] + 1) // 2, keepdim), Concrete(place)


@rule("argmax", "argmin", accuracy="approximate", raw=(0,))
def argmax(ctx: Context, m: Any, dim: int | None = None, keepdim: bool = False) -> Concrete:
    """The place of the extreme entry: one typical draw."""
    drawn = _places(ctx, m)
    return Concrete(getattr(torch, ctx.op)(drawn, dim, keepdim))


@rule("multinomial", accuracy="approximate")
def multinomial(ctx: Context, m: Moments, count: int, replacement: bool = False, **_: Any) -> Concrete:
    """Classes by their weights: one typical draw."""
    generator = torch.Generator().manual_seed(1)
    weights = _places(ctx, m).clamp(min=1e-12)
    return Concrete(torch.multinomial(weights, count, replacement, generator=generator))


@rule("bucketize", accuracy="approximate", raw=(1,))
def bucketize(ctx: Context, m: Moments, edges: Any, **named: Any) -> Concrete:
    """Between which edges entries fall: one typical draw."""
    drawn, known = _places(ctx, m), _ascending(ctx, edges)
    return Concrete(torch.bucketize(drawn, known, right=named.get("right", False)))


@rule("searchsorted", accuracy="approximate", raw=(0, 1))
def searchsorted(
    ctx: Context, edges: Any, m: Any, *, right: bool = False, side: str | None = None, **_: Any
) -> Concrete:
    """Between which edges entries fall: one typical draw of both."""
    drawn = m.tensor.double() if isinstance(m, Concrete) else _places(ctx, as_moments(m))
    return Concrete(torch.searchsorted(_ascending(ctx, edges), drawn, right=right or side == "right"))


def _ascending(ctx: Context, edges: Any) -> torch.Tensor:
    if isinstance(edges, Concrete):
        return edges.tensor.double()
    ctx.note("places that depend on data (routing, sorting) are one typical draw")
    return draw(as_moments(edges), seed=2).sort(-1)[0]


@rule("any", "all", accuracy="approximate")
def any_(ctx: Context, m: Moments, dim: Any = None, keepdim: bool = False) -> Concrete:
    """Whether some, or all, of random truths hold: one typical draw."""
    drawn = _places(ctx, m) > 0.5
    fn = getattr(torch, ctx.op)
    return Concrete(fn(drawn) if dim is None else fn(drawn, dim, keepdim))


@rule("histc", "bincount", accuracy="approximate")
def histc(ctx: Context, m: Moments, *args: Any, **named: Any) -> Concrete:
    """How many entries fall where: one typical draw."""
    drawn = _places(ctx, m)
    if ctx.op == "bincount":
        drawn = drawn.round().long().clamp_(min=0)
    return Concrete(getattr(torch, ctx.op)(drawn, *args, **named))


def extreme(m: Moments, dims: tuple[int, ...], keepdim: bool, *, largest: bool) -> Moments:
    """Return the largest (smallest) entry over dims; its latent tells over how many entries."""
    rank = len(m.dims)
    rest = [d for d in range(rank) if d not in dims]
    shape = tuple(m.shape[d] for d in rest)
    n = int(np.prod([m.shape[d] for d in dims]))
    flat = reg.regrouped(reg.transposed(m, (*rest, *dims)), (*shape, n))
    made = reg.selected(ranked(flat, len(rest), 1, largest=largest), len(rest), 0)
    return keep_dims(one_of(made, n), dims, keepdim)


def one_of(m: Moments, n: int) -> Moments:
    """Return a record whose latent tells that an entry of each n equals it."""
    if not m.terms[0].factors:
        return m
    (factor,) = m.terms[0].factors
    own = replace(factor, latent=Extreme(factor.latent, n))
    return replace(m, terms=(replace(m.terms[0], factors=(own,)),))


def one_of_known(m: Moments, source: Moments, landed: torch.Tensor, own: torch.Tensor) -> Moments:
    """Return a record whose latent tells which entries equal it; see `Known`."""
    if not m.terms[0].factors:
        return m
    (factor,) = m.terms[0].factors
    latent = Known(factor.latent, _variables(source), landed, own)
    return replace(m, terms=(replace(m.terms[0], factors=(replace(factor, latent=latent),)),))


def _variables(m: Moments) -> frozenset[object]:
    return frozenset(f.latent for t in m.terms for f in t.factors)


@rule("amax", "amin", accuracy="asymptotic")
def amax(ctx: Context, m: Moments, dim: Sequence[int] | int = (), keepdim: bool = False) -> Moments:
    """The extreme over dims; see the module."""
    listed = [dim] if isinstance(dim, int) else list(dim) or list(range(len(m.dims)))
    dims = tuple(sorted(d % len(m.dims) for d in listed)) if m.dims else ()
    return extreme(m, dims, keepdim, largest=ctx.op == "amax")


@rule("max", "min", accuracy="asymptotic", raw=(0,))
def max_(ctx: Context, m: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The extreme over a dim with its place, or over all entries; see the module.

    Where a mask hides some entries, that of as many as there are without it.
    """
    largest = ctx.op == "max"
    if isinstance(m, Shifted) and largest:
        ctx.note("the largest of entries some of which a mask hides, as of them all")
        m = m.random
    m = as_moments(m)
    if dim is None:
        return extreme(m, tuple(range(len(m.dims))), False, largest=largest)
    place = getattr(torch, "argmax" if largest else "argmin")(_places(ctx, m), dim, keepdim)
    return extreme(m, (dim % len(m.dims),), keepdim, largest=largest), Concrete(place)


@rule("aminmax", accuracy="asymptotic")
def aminmax(
    ctx: Context, m: Moments, *, dim: int | None = None, keepdim: bool = False
) -> tuple[Moments, Moments]:
    """Both extremes."""
    dims = tuple(range(len(m.dims))) if dim is None else (dim % len(m.dims),)
    return extreme(m, dims, keepdim, largest=False), extreme(m, dims, keepdim, largest=True)


@rule("eq", accuracy="asymptotic", raw=(0, 1))
def eq(ctx: Context, a: Any, b: Any) -> Any:
    """Equality with an extreme over dims marks one of its entries, as backward needs.

    Else as any pointwise operation.
    """
    for x, y in ((a, b), (b, a)):
        latent = (
            next((f.latent for t in x.terms for f in t.factors), None) if isinstance(x, Moments) else None
        )
        if isinstance(latent, Known) and isinstance(y, Moments | Concrete):
            known = isinstance(y, Moments) and not latent.source.isdisjoint(_variables(y))
            marks = latent.landed if known else latent.own
            if tuple(marks.shape) == ctx.shape:
                return Concrete(marks)
        if isinstance(latent, Extreme) and isinstance(y, Moments):
            return _marked(*reg.aligned(x, one_block(y, tuple(range(len(y.dims))))), latent.n)
    func = torch.ops.aten.eq.Scalar if isinstance(b, int | float) else torch.ops.aten.eq.Tensor
    numbers = tuple(as_moments(x) if isinstance(x, Concrete) else x for x in (a, b))
    return pointwise(ctx, func, numbers, {})


def _marked(top: Moments, entries: Moments, n: int) -> Moments:
    """Return 1 for one entry of every n, 0 for the others."""
    labels = next(f.labels for t in top.terms for f in t.factors)
    share = np.array([1.0 / n, 0.0])
    table: Array = np.ones([1] * len(entries.axes))
    table = np.full([2] * len(entries.axes), 1.0 / n**2)
    for index in np.ndindex(*table.shape):
        apart = [k for k, differ in enumerate(index) if differ]
        if not any(labels[k] is not None for k in apart):
            table[index] = share[1] if apart else share[0]
    values = latents.quantiles(np.array([0.0, 1.0]), np.array([1.0 - 1.0 / n, 1.0 / n]))
    shape = [1] * len(entries.axes)
    axes = tuple((ax.size(a),) for a in entries.axes)
    dims, taken = [], 0
    for dim in entries.dims:
        dims.append(axes[taken : taken + len(dim)])
        taken += len(dim)
    return alg.with_marginal(tuple(dims), table, np.full(shape, 1.0 / n), values.reshape(*shape, -1))
