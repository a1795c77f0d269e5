"""Looking entries up by known indices, as a linear map of pair classes.

If output entry p is input entry i(p), then a pair of outputs (p, q) has the moments of the inputs' pair
(i(p), i(q)), whose class is known: so the output's table is the input's, averaged with the shares in which
each class of output pairs meets each class of input pairs. The shares are counted exactly, by how many
pairs have equal indices. Adding into entries by index is the transposed map. Exact for indices that do not
depend on the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from isometry.moments.axes import Array, Axis, AxisMap, Index, pair_counts, size

HISTOGRAM = 1 << 20  # largest number of indices times blocks; beyond it the blocks are averaged first
DENSE = 1 << 20  # entries of the largest table of groups by kinds

Ids = NDArray[np.int64]


def blocks_of(axis: Axis, ids: Ids) -> Index:
    """Return the block of an axis in which each index lies."""
    return np.searchsorted(np.cumsum(axis), ids, side="right").astype(np.intp)


def counts(taken: Sequence[Axis], given: Sequence[Axis], ids: Sequence[Ids]) -> tuple[Array, Array]:
    """Count how output pairs meet input pairs.

    Args:
        taken: The input's axes that are indexed.
        given: The output's axes; their sizes are the indices' shape.
        ids: For each taken axis its indices.

    Returns:
        Ordered pairs by (output pair class, input pair class), and entries by (output block, input block),
        each side flattened in row-major order of its axes.
    """
    grid = np.indices([size(a) for a in given]).reshape(len(given), prod(map(size, given)))
    codes = [c.reshape(-1) for c in ids]
    axes = (*given, *taken)
    block = [blocks_of(a, c) for a, c in zip(axes, (*grid, *codes), strict=True)]
    shape = [len(a) for a in axes]
    kind = np.ravel_multi_index(block, shape) if axes else np.zeros(1, dtype=np.intp)
    present, kind = np.unique(kind, return_inverse=True)
    found = np.zeros((*[2] * len(axes), len(present), len(present)))
    for any_ in product((0, 1), repeat=len(axes)):
        keys = [k for k, free in zip((*grid, *codes), any_, strict=True) if not free]
        found[any_] = _pairs(_groups(keys, kind.size), kind, len(present))
    for k in range(len(axes)):  # exactly those that differ: any less those that agree
        along = np.moveaxis(found, k, 0)
        along[1] -= along[0]
    entries = np.zeros(int(np.prod(shape)))
    entries[present] = np.bincount(kind)
    return _by_class(found, present, axes, len(given)), entries.reshape(int(np.prod(shape[: len(given)])), -1)


def _groups(keys: Sequence[Ids], n: int) -> Ids:
    group = np.zeros(n, dtype=np.int64)
    for key in keys:
        _, group = np.unique(group * (int(key.max()) + 1) + key, return_inverse=True)
    return group


def _pairs(group: Ids, kind: Ids, kinds: int) -> Array:
    """Count the ordered pairs of entries of one group by their kinds."""
    groups = int(group.max()) + 1
    if groups * kinds <= DENSE:
        histogram = np.bincount(group * kinds + kind, minlength=groups * kinds).reshape(groups, kinds)
        return np.asarray(histogram.T.astype(np.float64) @ histogram)
    keys, count = np.unique(group * kinds + kind, return_counts=True)
    of = keys // kinds
    start, members = (np.searchsorted(of, of, side=side) for side in ("left", "right"))
    members -= start
    one = np.repeat(np.arange(len(keys)), members)
    other = np.arange(len(one)) - np.repeat(np.cumsum(members) - members - start, members)
    place = (keys % kinds)[one] * kinds + (keys % kinds)[other]
    weights = count[one] * count[other].astype(np.float64)
    return np.asarray(np.bincount(place, weights, minlength=kinds**2).reshape(kinds, kinds), dtype=np.float64)


def _by_class(found: Array, present: Index, axes: Sequence[Axis], outputs: int) -> Array:
    """Sort counts by (agreement on each axis, first block, second block) into pair classes."""
    shape = [len(a) for a in axes]
    kinds = len(present)
    first = np.array(np.unravel_index(present, shape)).reshape(len(axes), kinds, 1)
    second = first.reshape(len(axes), 1, kinds)
    sizes = [b * (b + 1) for b in shape]
    result = np.zeros(int(np.prod(sizes)))
    for pattern in np.ndindex(*found.shape[:-2]):
        place = np.zeros((kinds, kinds), dtype=np.intp)
        for k, differ in enumerate(pattern):
            b = shape[k]
            own = b + b * first[k] + second[k] if differ else first[k] + 0 * second[k]
            place = place * sizes[k] + own
        result += np.bincount(place.ravel(), weights=found[pattern].ravel(), minlength=result.size)
    return result.reshape(int(np.prod(sizes[:outputs])), -1)


def gathering(taken: Sequence[Axis], given: Sequence[Axis], ids: Sequence[Ids]) -> AxisMap:
    """Return the map of a look-up; arguments as in `counts`."""
    pairs, blocks = _cached(tuple(taken), tuple(given), tuple(i.tobytes() for i in ids))
    return AxisMap(tuple(taken), tuple(given), _shares(pairs), _shares(blocks))


def adding(taken: Sequence[Axis], given: Sequence[Axis], ids: Sequence[Ids]) -> AxisMap:
    """Return the map of adding entries along the axes `taken` into `given`, one index per given axis."""
    pairs, blocks = _cached(tuple(given), tuple(taken), tuple(i.tobytes() for i in ids))
    n, m = np.ones(1), np.ones(1)
    for axis in given:
        n = np.multiply.outer(n, pair_counts(axis)).ravel()
        m = np.multiply.outer(m, np.asarray(axis, dtype=np.float64)).ravel()
    to_pairs, to_blocks = pairs.T / np.maximum(n, 1.0)[:, None], blocks.T / m[:, None]
    return AxisMap(tuple(taken), tuple(given), to_pairs, to_blocks)


@lru_cache(maxsize=64)
def _cached(taken: tuple[Axis, ...], given: tuple[Axis, ...], ids: tuple[bytes, ...]) -> tuple[Array, Array]:
    return counts(taken, given, [np.frombuffer(i, dtype=np.int64) for i in ids])


def _shares(found: Array) -> Array:
    """Return each row's shares; a row without pairs takes the average of the others."""
    total = found.sum(1, keepdims=True)
    everywhere = found.sum(0) / max(float(found.sum()), 1.0)
    return np.asarray(np.where(total > 0, found / np.maximum(total, 1.0), everywhere))


def total(how: Array | Index, array: Array, old: Sequence[int], new: Sequence[int]) -> Array:
    """Apply a map that is no average to an array whose leading axes have the full lengths `old`, or 1."""
    tail = array.shape[len(old) :]
    flat = np.broadcast_to(array, (*old, *tail)).reshape(-1, *tail)
    return np.asarray(np.tensordot(how, flat, axes=(1, 0)).reshape((*new, *tail)))
