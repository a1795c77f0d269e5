"""The borders of a max pool's outputs, where its windows read what padding left smaller, or read less.

Behind a padded convolution the entries at the borders of an image are smaller than the rest, or have another
mean: blocks of their own. What a window's largest entry is like is told for one block of all entries; here it
is told again for each block of windows that read alike. A window's entries are taken to be alike, with the
mean of the quantile functions of the blocks that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis

_MOST = 5  # blocks along an axis; images that are all borders stay one
_LEAST = 1 / 40  # of the outputs: fewer at both ends together make no blocks


@dataclass(frozen=True)
class Border:
    """The blocks of a pool's outputs along one axis.

    Attributes:
        axis: The blocks.
        shares: What share of a window's entries lies in each block of the input, by block.
        counts: How many entries a window reads, by block.
    """

    axis: Axis
    shares: Array
    counts: Array


def of_outputs(matrix: Array, inputs: Axis) -> Border:
    """Return the blocks of outputs whose windows read as many entries of each block of the inputs.

    Args:
        matrix: Which entries (columns) a window (row) reads.
        inputs: The input's blocks.
    """
    starts = np.cumsum([0, *inputs[:-1]])
    read = np.add.reduceat(matrix, starts, axis=1)
    edges = [0, *(np.flatnonzero(np.abs(np.diff(read, axis=0)).max(1) > 0) + 1).tolist(), len(read)]
    ends = len(read) - max(high - low for low, high in pairwise(edges))
    if len(edges) - 1 > _MOST or ends < _LEAST * len(read):
        edges = [0, len(read)]
    sizes = tuple(high - low for low, high in pairwise(edges))
    counts = np.array([read[low:high].sum(1).mean() for low, high in pairwise(edges)])
    shares = np.array([read[low:high].sum(0) for low, high in pairwise(edges)])
    return Border(sizes, shares / np.maximum(shares.sum(1, keepdims=True), 1e-300), counts)


def values_read(borders: Sequence[Border], values: Array) -> Array:
    """Return the mean of values at the nodes, by block of all axes, over what the windows of a block read."""
    for k, border in enumerate(borders, start=values.ndim - 1 - len(borders)):
        if values.shape[k] > 1:
            values = np.moveaxis(np.tensordot(border.shares, values, axes=(1, k)), 0, k)
    return values


def largest(borders: Sequence[Border], of_count: Callable[[float], Array]) -> Array:
    """Return the largest of what windows read, by block of the other axes, of the outputs, and node.

    Args:
        borders: The outputs' blocks, by axis.
        of_count: The largest of so many entries, by block of the other axes, at the nodes.
    """
    counts = np.ones(1)
    for border in borders:
        counts = np.multiply.outer(counts, border.counts)
    found = {count: of_count(float(count)) for count in np.unique(counts)}
    made = np.stack([found[count] for count in counts.ravel()], axis=-2)
    return np.asarray(made.reshape((*made.shape[:-2], *counts.shape[1:], made.shape[-1])))


def correlations(borders: Sequence[Border], rho: Array) -> Array:
    """Return correlations by pair class, of one block along each of the last axes, for all blocks."""
    for k, border in enumerate(borders, start=rho.ndim - len(borders)):
        rho = ax.recut((ax.size(border.axis),), border.axis).on_pairs(rho, k)
    return rho
