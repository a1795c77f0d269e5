"""Look-ups by known indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import latents, lookup, repeats, sorted_rows, uneven
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.concrete import Concrete, equal_share
from isometry.moments.drawing import draw
from isometry.moments.marks import marked
from isometry.moments.record import Label, Moments, Run
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.order import Places, at_places
from isometry.moments.rules.pointwise import as_moments, times
from isometry.moments.rules.reduce import keep_dims
from isometry.moments.running import masks_as_positions


def _equal(ctx: Context, ids: Any, rows: int) -> tuple[Array, rec.Dims]:
    """Return the share of equal ids by pair class, and the dims of the ids."""
    known = ids if isinstance(ids, Concrete) else Concrete(positions(ctx, ids).clamp_(max=rows - 1))
    return equal_share(known.tensor), alg.plain_dims(known.tensor.shape)


@rule("embedding", accuracy="exact", raw=(1,))
def embedding(ctx: Context, w: Moments, ids: Any, *_: Any) -> Moments:
    """Rows of a table by ids.

    Two positions share a row where their ids are equal. Exact second moments for known ids; ids that chance
    has a part in, as labels dropped at random, are one typical draw. Where the row is one of zeros, as that
    of `padding_idx`, the position holds zeros.
    """
    w = reg.single_axis(w, 0)
    if not w.dims[0]:
        return gathered(w, [0], [positions(ctx, ids)])
    blocks = _blocks_of_zeros(w)
    if any(blocks) and not all(blocks):
        known, axis = positions(ctx, ids), w.axes[0]
        full = torch.repeat_interleave(torch.tensor(blocks), torch.tensor(axis)).logical_not_()[known]
        most = max((k for k, zeros in enumerate(blocks) if not zeros), key=lambda k: axis[k])
        rest = reg.sliced(w, 0, sum(axis[:most]), sum(axis[: most + 1]), 1)
        made: Moments = embedding(ctx, rest, _within(known, full, rest.shape[0]))
        return times(made, Concrete(full.double()[..., None]).beside(made.dims)) if not full.all() else made
    w = reg.recut_axis(w, 0, (ax.size(w.axes[0]),))
    share, dims = _equal(ctx, ids, w.shape[0])
    same, differ = w.table.take(0, axis=0), w.table.take(-1, axis=0)
    table = np.multiply.outer(share, same) + np.multiply.outer(1.0 - share, differ)
    lead = [1] * share.ndim
    mean = w.mean.take(0, axis=0).reshape((*lead, *w.mean.shape[1:]))
    dims = (*dims, *w.dims[1:])
    factor = alg.absorbed(alg.collapse(w).terms[0], w.axes)
    if factor is None or latents.affine(factor.values):
        made = marked(alg.gaussian(dims, table, mean), uneven.of_sum(w.terms, w.axes))
        return repeats.looked_up(made, ids.tensor, share) if isinstance(ids, Concrete) else made
    values = factor.values.take(0, axis=0)
    made = alg.with_marginal(dims, table, mean, values.reshape((*lead, *values.shape)))
    return marked(made, uneven.of_sum(w.terms, w.axes))


def _blocks_of_zeros(w: Moments) -> list[bool]:
    """Return for each block of the first axis whether it holds nothing but zeros."""
    count = len(w.axes[0])
    table = np.broadcast_to(w.table, (max(count, w.table.shape[0]), *w.table.shape[1:]))
    return [not table[k].any() for k in range(count)]


def _within(ids: Tensor, full: Tensor, rows: int) -> Concrete:
    """Return ids that are equal where these are, of a table of `rows` alike; those of zeros do not matter."""
    _, made = torch.unique(ids, return_inverse=True)
    return Concrete(torch.where(full, made % rows, 0))


@rule("embedding_dense_backward", accuracy="exact", raw=(1,))
def embedding_backward(ctx: Context, g: Moments, ids: Any, rows: int, padding: int = -1, *_: Any) -> Moments:
    """Gradients summed into the rows they were looked up from, but for that of `padding`.

    Assumes that the ids do not depend on the gradient.
    """
    if padding >= 0:
        known = positions(ctx, ids)
        kept = known != padding
        ids = Concrete(torch.where(kept, known, rows + torch.arange(known.numel()).reshape(known.shape)))
        g = times(g, Concrete(kept.double()[..., None]).beside(g.dims)) if not kept.all() else g
    share, dims = _equal(ctx, ids, rows)
    count = sum(len(d) for d in dims)
    for k in range(len(dims)):
        g = reg.single_axis(g, k)
    if rows == 1:
        return keep_dims(con.total(g, tuple(range(len(dims)))), (0,), keepdim=True)
    axes = g.axes
    same, differ, mean = g.table, g.table, g.mean
    for p in range(count):
        share = ax.recut((ax.size(axes[p]),), axes[p]).on_pairs(share, p)
    share = share.reshape((*share.shape, *[1] * (g.table.ndim - count)))
    extra = _of_equal(g, ids, count)
    same, differ = (same + (1.0 - share) * extra) * share, (differ - share * extra) * (1.0 - share)
    for p in reversed(range(count)):
        counts = ax.pair_counts(axes[p])
        same, differ = (
            np.tensordot(
                np.broadcast_to(t, (*t.shape[:p], len(counts), *t.shape[p + 1 :])), counts, axes=(p, 0)
            )
            for t in (same, differ)
        )
        blocks = np.asarray(axes[p], dtype=np.float64)
        mean = np.tensordot(
            np.broadcast_to(mean, (*mean.shape[:p], len(blocks), *mean.shape[p + 1 :])), blocks, axes=(p, 0)
        )
    table = np.stack([same / rows, differ / max(rows * (rows - 1), 1)], axis=0)
    return alg.gaussian((((rows,),), *g.dims[len(dims) :]), table, np.expand_dims(mean / rows, 0))


def _of_equal(g: Moments, ids: Any, count: int) -> Array | float:
    """Return by how much more gradients of equal ids agree than those of unlike ones; see `repeats`."""
    known = repeats.of(g)
    if known is None or known[1] != tuple(range(count)) or not isinstance(ids, Concrete):
        return 0.0
    if known[0].ids != repeats.key_of(ids.tensor):
        return 0.0
    found = repeats.excess(g, *known)
    rest = g.axes[count:]
    shape = [len(a) * (len(a) + 1) for a in rest]
    extra = np.zeros((*found.shape, *shape))
    own = (slice(None),) * count + tuple(slice(0, len(a)) for a in rest)
    extra[own] = found.reshape((*found.shape, *[1] * len(rest)))
    return extra


class _Chosen(NamedTuple):
    """An axis made of chosen entries of an axis of n entries."""

    of: Label
    ids: bytes
    size: int


def positions(ctx: Context, ids: Any) -> Tensor:
    """Return the values of an index tensor; those that only data tell are drawn once."""
    if isinstance(ids, Concrete):
        return ids.tensor
    ctx.note("indices that depend on data are one typical draw")
    return draw(as_moments(ids), seed=len(ctx.shape)).round().long().clamp_(min=0)


def gathered(m: Moments, dims: Sequence[int], ids: Sequence[Tensor]) -> Moments:
    """Return the entries at known indices along some dims; the indices' own dims come first.

    Exact second moments. The result stays a function of the same latents, of which two entries are one
    variable where their indices are equal: their correlation is averaged over the pairs of a class.

    Args:
        m: The record.
        dims: The dims that are indexed; they disappear.
        ids: For each of them its indices, all of one shape.
    """
    shape = tuple(ids[0].shape)
    codes = [(i.reshape(-1).to(torch.int64) % m.shape[d]).numpy() for d, i in zip(dims, ids, strict=True)]
    row = len(dims) == len(shape) == 1
    stay = sorted_rows.in_place(codes, shape, [m.shape[d] for d in dims])
    for k, d in enumerate(dims):
        m = sorted_rows.by_sample(m, d) if row or k in stay else m
        m = m if row else reg.single_axis(m, d)
    rest = [d for d in range(len(m.dims)) if d not in dims]
    m = reg.transposed(m, (*dims, *rest))
    used = [c for k, c in enumerate(codes) if m.dims[k]]
    given: list[tuple[Axis, ...]] = [((n,),) if n != 1 else () for n in shape]
    if row and used:
        used = sorted_rows.places_of(m.dims[0], used[0])
        given = [sorted_rows.picked(m.dims[0], used)]
    elif prod(len(a) for d in m.dims[: len(dims)] for a in d) * len(codes[0]) > lookup.HISTOGRAM:
        for p in range(len(used)):
            m = reg.recut_axis(m, p, (ax.size(m.axes[p]),))
    for j, k in stay.items():
        given[k] = m.dims[j] or given[k]
    taken, axes = m.axes[: len(used)], [a for d in given for a in d]
    m = replace(m, dims=tuple(d for k, d in enumerate(m.dims) if d or k >= len(dims)))
    tail = m.dims[1 if row else len(used) :]
    if not used:
        lead = replace(m, dims=((),) * len(shape) + m.dims)
        return reg.broadcast(lead, (*given, *m.dims))
    how = lookup.gathering(taken, axes, used)

    def relabel(labels: tuple[Label, ...]) -> tuple[Label, ...]:
        if all(label is None for label in labels):
            return (None,) * len(axes)
        if row:
            chosen = _chosen(reg.fused_label(labels, taken), codes[0], m.shape[0])
            return (chosen,) if len(axes) == 1 else reg.split_label(chosen, ax.size(axes[1]))
        mark = tuple(c.tobytes() for c in used)
        return tuple(Run(("index", mark, labels, k), 1, 0) for k in range(len(axes)))

    made = replace(reg.remap(m, 0, how, relabel), dims=(*given, *tail))
    for k in (0,) if row else stay.values():
        made = sorted_rows.as_samples(made, k)
    return made


def _chosen(label: Label, ids: NDArray[np.int64], n: int) -> Label:
    """Return the label of an axis of which entries were chosen; a permutation and its inverse cancel."""
    before = label.base if isinstance(label, Run) and label[1:] == (1, 0) else None
    if isinstance(before, _Chosen):
        label, ids, n = before.of, np.frombuffer(before.ids, dtype=np.int64)[ids], before.size
    if len(ids) == n and np.array_equal(ids, np.arange(n)):
        return label
    return Run(_Chosen(label, ids.tobytes(), n), 1, 0)


def added(m: Moments, count: int, sizes: Sequence[int], ids: Sequence[Tensor]) -> Moments:
    """Return zeros with entries added at known indices: the first `count` dims of m become `sizes`.

    Exact second moments; taken as normal, or as lognormal where all are of one sign. Entries that nothing is
    added to are blocks of their own where they lie together.
    """
    shape = m.shape[:count]
    codes = [(i.reshape(-1).to(torch.int64) % n).numpy() for i, n in zip(ids, sizes, strict=True)]
    row = count == len(sizes) == 1
    stay = sorted_rows.in_place(codes, shape, sizes)
    for d in range(count):
        m = sorted_rows.by_sample(m, d) if row or d in stay.values() else m
        m = m if row else reg.single_axis(m, d)
    taken = m.axes[: sum(len(d) for d in m.dims[:count])]
    used = [c for c, n in zip(codes, sizes, strict=True) if n != 1]
    given: list[tuple[Axis, ...]] = [((n,),) if n != 1 else () for n in sizes]
    if row and taken and used:
        given = [(sorted_rows.landing(sizes[0], taken, used[0]),)]
    for j, k in stay.items():
        given[j] = m.dims[k] or given[j]
    axes = [a for d in given for a in d]
    how = lookup.adding(taken, axes, used)
    old, new = ([len(a) for a in x] for x in (taken, axes))
    table = lookup.total(how.pairs, m.table, [b * (b + 1) for b in old], [b * (b + 1) for b in new])
    mean = lookup.total(how.blocks, m.mean, old, new)
    made = con.of_sum(m, (*given, *m.dims[count:]), table, mean)
    for k in (0,) if row else stay:
        made = sorted_rows.as_samples(made, k)
    return made


def _indices(ctx: Context, indices: Any) -> tuple[list[int], list[Tensor]]:
    """Return the dims that an advanced index takes, and its index tensors broadcast to one shape."""
    known = [None if i is None else positions(ctx, i) for i in indices]
    flat = masks_as_positions(known, lambda t: t)
    dims = [k for k, i in enumerate(flat) if i is not None]
    shape = np.broadcast_shapes(*[tuple(i.shape) for i in flat if i is not None])
    return dims, [i.expand(shape) for i in flat if i is not None]


def _place(dims: Sequence[int]) -> int:
    """Return where the index's own dims go: in place of neighbouring dims, else to the front."""
    return dims[0] if list(dims) == list(range(dims[0], dims[0] + len(dims))) else 0


def _moved(m: Moments, count: int, place: int) -> Moments:
    """Move the first `count` dims to `place`."""
    rest = list(range(count, len(m.dims)))
    return reg.transposed(m, (*rest[:place], *range(count), *rest[place:]))


@rule("index", accuracy="exact", raw=(1,))
def index(ctx: Context, m: Moments, indices: Any) -> Moments:
    """Advanced indexing by known integers or masks; see `gathered`."""
    dims, ids = _indices(ctx, indices)
    return _moved(gathered(m, dims, ids), ids[0].dim(), _place(dims))


@rule("index_select", accuracy="exact", raw=(2,))
def index_select(ctx: Context, m: Moments, dim: int, ids: Any) -> Moments:
    """Entries along a dim by known indices; see `gathered`."""
    dim %= len(m.dims)
    return _moved(gathered(m, [dim], [positions(ctx, ids).reshape(-1)]), 1, dim)


@rule("masked_select", accuracy="exact", raw=(1,))
def masked_select(ctx: Context, m: Moments, mask: Any) -> Moments:
    """The entries where a known mask is true; see `gathered`."""
    where = positions(ctx, mask).expand(m.shape).nonzero(as_tuple=True)
    return gathered(m, range(len(m.dims)), where)


def varying(ids: Tensor, dim: int, sizes: Sequence[int]) -> list[int]:
    """Return the dims along which an index tensor is no mere repetition, `dim` among them."""

    def repeats(d: int) -> bool:
        if ids.shape[d] != sizes[d]:
            return False
        return ids.stride(d) == 0 or bool((ids == ids.narrow(d, 0, 1)).all())

    return [d for d in range(ids.dim()) if d == dim or not repeats(d)]


def own_and_given(ids: Tensor, dim: int, dims: Sequence[int]) -> list[Tensor]:
    """Return for each of `dims` the indices of an entry along it: its own, but those given along `dim`."""
    for d in range(ids.dim()):
        if d not in dims:
            ids = ids.narrow(d, 0, 1)
    ids = ids.reshape([ids.shape[d] for d in dims])
    grids = torch.meshgrid(*[torch.arange(n) for n in ids.shape], indexing="ij")
    return [ids if d == dim else grid for d, grid in zip(dims, grids, strict=True)]


@rule("gather", accuracy="exact", raw=(2,))
def gather(ctx: Context, m: Moments, dim: int, ids: Any, **_: Any) -> Moments:
    """Entries along a dim by indices known for each place; see `gathered`.

    At the places of a variable's largest entries those of a function of it are its largest, too.
    """
    if not m.dims:
        return m
    if isinstance(ids, Places) and (chosen := at_places(m, dim % len(m.dims), ids)) is not None:
        return _without_ones(chosen)
    values = positions(ctx, ids)
    dim %= values.dim()
    dims = varying(values, dim, m.shape)
    m = gathered(m, dims, own_and_given(values, dim, dims))
    rest = [d for d in range(values.dim()) if d not in dims]
    order = [*dims, *rest]
    return _without_ones(reg.transposed(m, tuple(order.index(d) for d in range(len(order)))))


def _without_ones(m: Moments) -> Moments:
    """Return a record whose dims of size 1 have no axes."""
    for d, axes in enumerate(m.dims):
        if axes and m.shape[d] == 1:
            m = reg.selected(m, d, 0, keep=True)
    return m


@rule("_pack_padded_sequence", accuracy="exact", raw=(1,))
def pack_padded_sequence(
    ctx: Context, m: Moments, lengths: Any, batch_first: bool
) -> tuple[Moments, Concrete]:
    """The steps of sequences of known, falling lengths one after another, and how many have each."""
    known = positions(ctx, lengths)
    there = torch.arange(int(known.max()))[:, None] < known[None]
    step, sequence = there.nonzero(as_tuple=True)
    ids = [sequence, step] if batch_first else [step, sequence]
    return gathered(m, [0, 1], ids), Concrete(there.sum(1))
