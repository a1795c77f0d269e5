"""Rows that are picked in another order, as tokens sorted by expert, and put back: what their places tell.

Sorted rows lie expert by expert and, within an expert, sample by sample, so that cutting the axis where the
source's block changes keeps whom a row has what in common with. Put back into order, rows of one sample lie
together again, and so do the rows of one token, each from another expert. All of it is read from the indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import regrouping as reg
from isometry.moments.axes import Axis, Index
from isometry.moments.lookup import Ids, blocks_of
from isometry.moments.record import Moments

RUNS = 64  # most blocks that an axis is cut into
FEW = 8  # and no more than so many, if their entries are fewer than four on average
SAMPLES = 16  # most samples that are told apart
SLOTS = 16  # most rows of one token
ALIKE = 0.2  # relative difference of squares up to which samples count as exchangeable


def by_sample(m: Moments, dim: int) -> Moments:
    """Return the record with a dim's outermost axis cut into its entries, where they are few and differ.

    Its other axes become one block each.
    """
    if len(m.dims[dim]) < 2:
        return m
    first, *others = m.positions(dim)
    if m.table.shape[first] > 1 and ax.size(m.axes[first]) <= SAMPLES:
        m = reg.recut_axis(m, first, (1,) * ax.size(m.axes[first]))
    for k in others:
        m = reg.recut_axis(m, k, (ax.size(m.axes[k]),))
    return m


def picked(axes: Sequence[Axis], codes: Sequence[Ids]) -> tuple[Axis, ...]:
    """Return the axes of entries picked by a one-dimensional index, given along each of the source's axes.

    One axis, cut where the source's block changes, if that is rare. Else it is cut where no block has entries
    on both sides, and split where neighbours come in groups of r, each from r blocks, as the rows of a token.
    """
    block, n = _block(axes, codes), len(codes[0])
    edges = np.flatnonzero(np.diff(block)) + 1
    if 0 < len(edges) < min(RUNS, max(FEW, n // 4)):
        return (_cut(n, edges),)
    outer = _stretches(n, np.arange(n), block)
    r = _group(block, outer)
    return (outer,) if r == 1 else (tuple(n // r for n in outer), (r,))


def landing(n: int, axes: Sequence[Axis], ids: Ids) -> Axis:
    """Return an axis of n entries to which those of others, in row-major order, are added at `ids`.

    It is cut where those that are hit begin and end, if they lie together. Where all are hit, it is cut where
    no block of the source has entries on both sides.
    """
    hit = np.zeros(n, dtype=np.int64)
    hit[ids] = 1
    edges = np.flatnonzero(np.diff(hit)) + 1
    if len(edges) == 0:
        return _stretches(n, ids, _block(axes, places_of(axes, np.arange(len(ids)))))
    return _cut(n, edges) if len(edges) < RUNS else (n,)


def as_samples(m: Moments, dim: int = 0) -> Moments:
    """Return the record with equal blocks of a dim's first axis that are alike as exchangeable samples.

    They were so before rows were sorted; what differs is chance, as in how many rows an expert got.
    """
    if not m.dims[dim]:
        return m
    axis, *inner = m.dims[dim]
    position = m.positions(dim).start
    square = np.moveaxis(m.square, position, 0)
    if len(axis) == 1 or len(set(axis)) > 1 or len(square) != len(axis):
        return m
    if float((square.max(0) - square.min(0)).max()) > ALIKE * float(square.mean()):
        return m
    m = reg.with_sizes(m, dim, (len(axis), axis[0], *map(ax.size, inner)))
    return reg.recut_axis(m, position, (len(axis),))


def in_place(codes: Sequence[Ids], shape: Sequence[int], sizes: Sequence[int]) -> dict[int, int]:
    """Return the indexed dims along which entries stay where they are, with the index's dim that counts them.

    As along all dims but one of `gather` and `scatter`.

    Args:
        codes: The indices of each indexed dim, flat.
        shape: Their shape.
        sizes: The sizes of the indexed dims.
    """
    found = {}
    for j, (code, n) in enumerate(zip(codes, sizes, strict=True)):
        grid = code.reshape(shape)
        for k in (k for k, length in enumerate(shape) if length == n > 1):
            if np.array_equal(
                grid, np.broadcast_to(np.arange(n).reshape([-1] + [1] * (len(shape) - k - 1)), shape)
            ):
                found[j] = k
    return found


def places_of(axes: Sequence[Axis], ids: Ids) -> list[Ids]:
    """Return the places along each axis of entries that are counted through them in row-major order."""
    return [np.asarray(code, dtype=np.int64) for code in np.unravel_index(ids, [ax.size(a) for a in axes])]


def _block(axes: Sequence[Axis], codes: Sequence[Ids]) -> Index:
    """Return the number of the block, of all axes together, in which each entry lies."""
    blocks = [blocks_of(axis, code) for axis, code in zip(axes, codes, strict=True)]
    return np.ravel_multi_index(blocks, [len(a) for a in axes]).astype(np.intp)


def _stretches(n: int, places: Ids, block: Index) -> Axis:
    """Return an axis of n entries cut where no block of what lands at `places` has entries on both sides."""
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.diff(block[order], prepend=-1))
    first, last = (f.reduceat(places[order], starts) for f in (np.minimum, np.maximum))
    by_first = np.argsort(first)
    first, reached = first[by_first], np.maximum.accumulate(last[by_first])
    edges = first[1:][first[1:] > reached[:-1]]
    return _cut(n, edges) if len(edges) < RUNS else (n,)


def _group(block: Index, outer: Axis) -> int:
    """Return the largest r so that each r neighbours come from r different blocks; 1 where there is none."""
    for r in range(min(SLOTS, len(np.unique(block))), 1, -1):
        if any(n % r for n in outer):
            continue
        rows = np.sort(block.reshape(-1, r), axis=1)
        if bool((np.diff(rows, axis=1) > 0).all()):
            return r
    return 1


def _cut(n: int, edges: Ids) -> Axis:
    return tuple(high - low for low, high in pairwise([0, *edges.tolist(), n]))
