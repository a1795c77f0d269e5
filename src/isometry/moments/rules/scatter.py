"""Writing and adding at known indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import regrouping as reg
from isometry.moments.averages import one_block
from isometry.moments.concatenation import concatenate
from isometry.moments.concrete import Concrete, moments_of
from isometry.moments.drawing import draw
from isometry.moments.record import Moments, mirror, outer
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.drawn import sampled
from isometry.moments.rules.index import (
    _indices,
    _place,
    added,
    gathered,
    own_and_given,
    positions,
    varying,
)
from isometry.moments.rules.linear import plus, with_shape
from isometry.moments.rules.order import one_of_known
from isometry.moments.rules.pointwise import MASKED, as_moments, shifted, times, zero_where


def _front(m: Moments, dims: Sequence[int]) -> Moments:
    """Move dims to the front, in this order."""
    return reg.transposed(m, (*dims, *[d for d in range(len(m.dims)) if d not in dims]))


def _back(m: Moments, dims: Sequence[int]) -> Moments:
    """Undo `_front`."""
    order = [*dims, *[d for d in range(len(m.dims)) if d not in dims]]
    return reg.transposed(m, tuple(order.index(d) for d in range(len(order))))


def put(base: Moments, source: Moments, dims: Sequence[int], ids: Sequence[Tensor], *, add: bool) -> Moments:
    """Return base with source written, or added, at known indices of some dims.

    Exact second moments; source has the indices' dims first and is independent of base. Places must not be
    written twice.
    """
    sizes = [base.shape[d] for d in dims]
    flat = _flat(ids, sizes)
    rest = tuple(base.shape[d] for d in range(len(base.dims)) if d not in dims)
    source = with_shape(source, (*ids[0].shape, *rest))
    if add and not (_zero(base) and len(dims) == 1 and sorted(flat.tolist()) == list(range(sizes[0]))):
        made = _back(added(source, ids[0].dim(), sizes, ids), dims)
        return made if _zero(base) else plus(base, made)
    if len(set(flat.tolist())) < flat.numel():
        if source.variance.any() or float(np.ptp(source.mean)) > 0.0:
            raise NoRule("places that are written twice")
        flat = torch.unique(flat)
        ids = torch.unravel_index(flat, sizes)
        source = alg.constant((flat.numel(), *rest), float(source.mean.flat[0]))
    if len(dims) == 1:
        source = reg.regrouped(source, (flat.numel(), *rest))
        return _back(_replaced(_front(base, dims), source, flat), dims)
    made = _back(added(source, ids[0].dim(), sizes, ids), dims)
    return made if _zero(base) else _exclusive(base, made, _missed(flat, sizes, len(base.dims), dims))


def _replaced(base: Moments, source: Moments, ids: Tensor) -> Moments:
    """Return base with rows replaced: those that stay beside the new ones, put into order."""
    n = base.shape[0]
    stay = torch.ones(n, dtype=torch.bool).index_fill_(0, ids, False).nonzero()[:, 0]
    order = torch.cat([stay, ids]).argsort()
    if stay.numel() == 0:
        return gathered(source, [0], [order])
    return gathered(concatenate([gathered(base, [0], [stay]), source], 0), [0], [order])


def _missed(flat: Tensor, sizes: Sequence[int], rank: int, dims: Sequence[int]) -> Moments:
    """Return the record of 1 where nothing is written and 0 elsewhere, of size 1 along the other dims."""
    missed = torch.ones(prod(sizes), dtype=torch.float64).index_fill_(0, flat, 0.0)
    return _back(moments_of(missed.reshape(*sizes, *[1] * (rank - len(sizes)))), dims)


def _exclusive(base: Moments, made: Moments, missed: Moments) -> Moments:
    """Return base where missed, plus what was made, which is zero there."""
    missed = with_shape(missed, base.shape)
    base, made = reg.aligned(base, made)
    base, missed = reg.aligned(base, missed)
    base, made = reg.aligned(base, made)
    axes = base.axes
    share = missed.mean
    source = np.divide(made.mean, 1.0 - share, out=np.zeros_like(made.mean + share), where=share < 1.0)
    one_of_two = share - missed.table
    cross = one_of_two * outer(base.mean, source, axes)
    table = base.table * missed.table + made.table + cross + mirror(cross, axes)
    return alg.gaussian(base.dims, table, base.mean * share + made.mean)


def _flat(ids: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    flat = torch.zeros(ids[0].numel(), dtype=torch.int64)
    for i, n in zip(ids, sizes, strict=True):
        flat = flat * n + i.reshape(-1).to(torch.int64) % n
    return flat


def _zero(m: Moments) -> bool:
    return not m.table.any()


@rule("index_put", "_unsafe_index_put", "_index_put_impl_", accuracy="exact", raw=(1,))
def index_put(
    ctx: Context, m: Moments, indices: Any, values: Moments, accumulate: bool = False, unsafe: bool = False
) -> Moments:
    """Write or add at known indices or masks; see `put`."""
    dims, ids = _indices(ctx, indices)
    if not ids[0].numel():
        return m
    count, place = ids[0].dim(), _place(dims)
    rest = [m.shape[d] for d in range(len(m.dims)) if d not in dims]
    values = with_shape(values, (*rest[:place], *ids[0].shape, *rest[place:]))
    return put(m, _front(values, range(place, place + count)), dims, ids, add=accumulate)


@rule("index_add", accuracy="exact", raw=(2,))
def index_add(ctx: Context, m: Moments, dim: int, ids: Any, source: Moments, *, alpha: float = 1) -> Moments:
    """Add at known indices along a dim; see `put`."""
    dim %= len(m.dims)
    where = positions(ctx, ids).reshape(-1)
    return put(m, _front(alg.scale(source, alpha), [dim]), [dim], [where], add=True)


@rule("index_copy", accuracy="exact", raw=(2,))
def index_copy(ctx: Context, m: Moments, dim: int, ids: Any, source: Moments) -> Moments:
    """Write at known indices along a dim; see `put`."""
    dim %= len(m.dims)
    return put(m, _front(source, [dim]), [dim], [positions(ctx, ids).reshape(-1)], add=False)


@rule("index_fill", accuracy="exact", raw=(2,))
def index_fill(ctx: Context, m: Moments, dim: int, ids: Any, value: Any) -> Moments:
    """Write one number at known indices along a dim; see `put`."""
    dim %= len(m.dims)
    return put(m, as_moments(value), [dim], [torch.unique(positions(ctx, ids))], add=False)


def _scattered(ctx: Context, m: Moments, dim: int, ids: Any, source: Moments, *, add: bool) -> Moments:
    where = positions(ctx, ids)
    dim %= max(where.dim(), 1)
    dims = varying(where, dim, m.shape)
    for d, n in enumerate(where.shape):
        if source.shape and source.shape[d] > n:
            source = reg.sliced(source, d, 0, n, 1)
    source = _front(with_shape(source, tuple(where.shape)), dims)
    return put(m, source, dims, own_and_given(where, dim, dims), add=add)


@rule("scatter", accuracy="exact", raw=(0, 2))
def scatter(
    ctx: Context, m: Any, dim: int, ids: Any, source: Any, *, reduce: str | None = None
) -> Moments | Shifted:
    """Write along a dim at indices known for each place; see `put`. A huge negative number is a mask."""
    if reduce is not None and reduce != "add":
        raise NoRule(f"a scatter that reduces by {reduce}")
    where = positions(ctx, ids)
    if reduce is None and isinstance(m, Concrete) and isinstance(source, Moments):
        hidden = float(m.tensor.max()) if m.tensor.numel() else 0.0
        if hidden <= MASKED:
            return _among_hidden(source, dim % len(source.dims), where, hidden, m.tensor.shape)
    base = as_moments(m)
    if reduce is None and isinstance(source, int | float) and (source <= MASKED or source == 0):
        mask = Concrete(torch.zeros(base.shape).scatter_(dim, where, source or 1.0))
        if source != 0:
            return shifted(base, mask)
        if zero_where(base, mask):
            return base
    return _scattered(ctx, base, dim, Concrete(where), as_moments(source), add=reduce == "add")


def _among_hidden(
    source: Moments, dim: int, where: torch.Tensor, hidden: float, shape: Sequence[int]
) -> Shifted:
    """Return a tensor of a huge negative number with entries written along a dim.

    A mask, beside entries that are all alike: which is where is known by the mask alone.
    """
    source = one_block(reg.single_axis(source, dim), (dim,))
    dims = tuple(((shape[d],),) if d == dim and axes else axes for d, axes in enumerate(source.dims))
    mask = torch.full(tuple(shape), hidden, dtype=torch.float64).scatter_(dim, where, 0.0)
    return Shifted(with_shape(replace(source, dims=dims), tuple(shape)), Concrete(mask))


@rule("scatter_add", accuracy="exact", raw=(2,))
def scatter_add(ctx: Context, m: Moments, dim: int, ids: Any, source: Moments) -> Moments:
    """Add along a dim at indices known for each place; see `put`."""
    return _scattered(ctx, m, dim, ids, source, add=True)


@rule("scatter_reduce", "index_reduce", accuracy="exact", raw=(2,))
def scatter_reduce(
    ctx: Context, m: Moments, dim: int, ids: Any, source: Moments, reduce: str, *, include_self: bool = True
) -> Moments:
    """Sum, mean or extreme of what lands on each place; the mean's count is known, extremes are sampled."""
    where = positions(ctx, ids).long()
    if ctx.op == "index_reduce":
        shape = [1] * len(m.dims)
        shape[dim] = -1
        where = where.reshape(shape).expand(source.shape)
    dim %= max(where.dim(), 1)
    for d, n in enumerate(where.shape):
        if source.shape[d] > n:
            source = reg.sliced(source, d, 0, n, 1)
    if reduce == "prod":
        raise NoRule("a product, whose gradient divides by its factors")
    if reduce not in ("sum", "mean"):
        return _extremes(ctx, m, dim, where, source, reduce, own=include_self)
    ones = torch.ones(where.shape, dtype=torch.float64)
    hits = torch.zeros(m.shape, dtype=torch.float64).scatter_add_(dim, where, ones)
    base = m if include_self else times(m, Concrete((hits == 0).double()).beside(m.dims))
    if reduce == "mean":
        share = 1.0 / (hits + (1.0 if include_self else 0.0)).clamp_(min=1.0)
        base = times(base, Concrete(share).beside(base.dims)) if include_self else base
        source = times(source, Concrete(share.gather(dim, where)).beside(source.dims))
    return _scattered(ctx, base, dim, Concrete(where), source, add=True)


def _extremes(
    ctx: Context, m: Moments, dim: int, where: Tensor, source: Moments, reduce: str, *, own: bool
) -> Moments:
    """Return the extreme of what lands on each place.

    Its latent tells which entries are the extremes, in one typical draw, as `eq` of its gradient asks.
    """

    def reduced(base: Tensor, landing: Tensor) -> Tensor:
        return base.scatter_reduce(dim, where, landing, reduce, include_self=own)

    made = sampled(ctx, reduced, [m, source], alg.plain_dims(m.shape))
    base, landing = draw(m, seed=1), draw(source, seed=2)
    found = reduced(base, landing)
    return one_of_known(made, source, landing == found.gather(dim, where), base == found)


@rule("masked_scatter", accuracy="exact", raw=(1,))
def masked_scatter(ctx: Context, m: Moments, mask: Any, source: Moments) -> Moments:
    """The source's entries, in order, where a known mask is true.

    A mask that repeats along trailing dims writes rows.
    """
    where, row = _rows(positions(ctx, mask), m.shape)
    hit = where.nonzero(as_tuple=True)
    rows = prod(source.shape) // prod(row)
    source = reg.regrouped(source, (rows, *row))
    if rows > hit[0].numel():
        source = reg.sliced(source, 0, 0, hit[0].numel(), 1)
    return put(m, source, range(where.dim()), list(hit), add=False)


@rule("masked_scatter_backward", accuracy="exact", raw=(1,))
def masked_scatter_backward(ctx: Context, g: Moments, mask: Any, sizes: Sequence[int]) -> Moments:
    """The gradient's entries under a known mask, in order, then zeros."""
    where, row = _rows(positions(ctx, mask), g.shape)
    hit = where.nonzero(as_tuple=True)
    rows = prod(sizes) // prod(row)
    kept = gathered(g, range(where.dim()), list(hit))
    if rows > hit[0].numel():
        kept = concatenate([kept, alg.constant((rows - hit[0].numel(), *row), 0.0)], 0)
    return reg.regrouped(kept, tuple(sizes))


def _rows(mask: Tensor, shape: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Return a mask without the trailing dims along which it repeats, and their sizes."""
    mask = mask.expand(tuple(shape))
    while mask.dim() > 1 and bool((mask == mask.narrow(-1, 0, 1)).all()):
        mask = mask.select(-1, 0)
    return mask, tuple(shape[mask.dim() :])
