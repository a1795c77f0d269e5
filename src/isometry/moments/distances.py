"""Pairs of places by distance: how many there are, and what the pair classes of a table say of them.

Arrays by distance have the blocks of the other axes first and, last, all distances along the last axes:
(0, 0), (0, 1), …, where the last along each axis is "farther".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis, Index

REACH = 6  # places; what lies farther apart is far


def steps(n: int) -> int:
    """Return the number of distances told apart along an axis of n places: 0, 1, …, and farther."""
    return min(n - 1, REACH) + 2


def sizes(axes: Sequence[Axis], rank: int) -> tuple[int, ...]:
    """Return the lengths of the last axes."""
    return tuple(ax.size(a) for a in axes[len(axes) - rank :])


@lru_cache(maxsize=1024)
def pairs(sizes: tuple[int, ...]) -> Array:
    """Return the number of ordered pairs at each distance."""
    counts = np.ones(1)
    for n in sizes:
        own = np.array([n, *(2.0 * (n - d) for d in range(1, steps(n) - 1)), 0.0])
        own[-1] = n * n - own.sum()
        counts = np.multiply.outer(counts, own).ravel()
    return counts


@lru_cache(maxsize=1024)
def classes(sizes: tuple[int, ...]) -> Index:
    """Return the pair class, of axes in one block each, of every distance."""
    return flat([np.minimum(np.arange(steps(n)), 1) for n in sizes], [2] * len(sizes))


def flat(along: Sequence[Index], shape: Sequence[int]) -> Index:
    """Return the places in a flattened array of that shape of all combinations of places along its axes."""
    return np.asarray(np.ravel_multi_index(np.meshgrid(*along, indexing="ij"), tuple(shape)).ravel())


@lru_cache(maxsize=1024)
def _weights(sizes: tuple[int, ...]) -> Array:
    """Return the share of each distance (rows) among the pairs of each class (columns)."""
    counts = pairs(sizes)
    weights = np.zeros((counts.size, 2 ** len(sizes)))
    weights[np.arange(counts.size), classes(sizes)] = counts
    return np.asarray(weights / np.maximum(weights.sum(0), 1e-300))


def by_class(by_distance: Array, sizes: Sequence[int]) -> Array:
    """Return the means over each pair class of axes of one block: an array with those axes last."""
    means = by_distance @ _weights(tuple(sizes))
    return np.asarray(means.reshape((*means.shape[:-1], *[2] * len(sizes))))


def class_means(by_distance: Array, sizes: tuple[int, ...]) -> Array:
    """Return for every distance the mean over its pair class."""
    return np.asarray((by_distance @ _weights(sizes))[..., classes(sizes)])


def whole(array: Array, axes: Sequence[Axis], rank: int, *, pairs: bool) -> Array:
    """Return a pair or block array with each of the last axes in one block."""
    for k in range(len(axes) - rank, len(axes)):
        if len(axes[k]) > 1:
            how = ax.recut(axes[k], (ax.size(axes[k]),))
            array = how.on_pairs(array, k) if pairs else how.on_blocks(array, k)
    return array


def told(table: Array, axes: Sequence[Axis], rank: int) -> Array:
    """Return what a pair array tells of entries that differ along the last axes alone, by distance."""
    lead = len(axes) - rank
    table = whole(table, axes, rank, pairs=True)[tuple([slice(len(a)) for a in axes[:lead]])]
    flat = np.broadcast_to(table, (*table.shape[:lead], *[2] * rank)).reshape((*table.shape[:lead], -1))
    return np.asarray(flat[..., classes(sizes(axes, rank))])


def mean(by_distance: Array, axes: Sequence[Axis]) -> Array:
    """Return the mean over the blocks of all axes but the last."""
    for axis in axes:
        own = ax.shares(axis) if by_distance.shape[0] > 1 else np.ones(1)
        by_distance = np.tensordot(own, by_distance, axes=1)
    return by_distance
