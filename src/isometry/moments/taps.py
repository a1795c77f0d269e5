"""Where sliding windows meet.

Which output reads which input through which kernel entry, counted by pair class.

Along one spatial dim a window is the set of *taps* (o, k, i): output entry o reads input entry i = o·stride +
k·dilation − padding through kernel entry k, where i exists. A convolution, its gradients, an unfolding and a
transposed convolution are sums over taps, and their second moments are sums over pairs of taps. So all that
they need is the number of ordered pairs of taps in each combination of pair classes of o, k and i: padding,
stride and dilation are in it, exactly.

A linear map along one dim (pooling, padding, resizing and their gradients) is a matrix instead; its pair
table is the sum of M[o, i]·M[o′, i′] over the pairs of each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from isometry.moments.axes import Array, Axis, Index, pair_counts, size

Codes = NDArray[np.int64]
FEW = 16  # outputs of which the second from an end is a block, too
MOST = 16  # blocks that are told apart wherever they begin


@dataclass(frozen=True)
class Window:
    """A sliding window along one dim, as `torch.nn.functional.conv1d` describes it.

    `low` is the padding before.
    """

    outputs: int
    kernel: int
    inputs: int
    stride: int = 1
    low: int = 0
    dilation: int = 1

    def taps(self) -> tuple[Codes, Codes, Codes]:
        """Return output, kernel and input entry of every tap that exists."""
        o, k = np.indices((self.outputs, self.kernel)).reshape(2, -1)
        i = o * self.stride + k * self.dilation - self.low
        kept = (i >= 0) & (i < self.inputs)
        return o[kept], k[kept], i[kept]

    @property
    def terms(self) -> float:
        """How many entries an output reads, on average."""
        return len(self.taps()[0]) / self.outputs

    def blocks(self, inputs: Axis) -> Axis:
        """Return the blocks of the outputs: what reads fewer entries than most, at either end, and the rest.

        Where all read alike, the blocks of what lies under the middles of the windows; of many, those that
        double from either end, so that stacks of dilated windows do not double their number. Ends of fewer
        than one in 40 outputs make no blocks. Two different ends are two blocks, and among few outputs the
        ends' neighbours are, too, which read the ends of what other windows made. Where only one end reads
        fewer entries, the other is a block as well, for the gradients of the windows behind.
        """
        o, _, _ = self.taps()
        read = np.bincount(o, minlength=self.outputs)
        full = np.flatnonzero(read == read.max())
        edges = {int(full[0]), int(full[-1]) + 1}
        rings = max(int(full[0]), self.outputs - int(full[-1]) - 1)
        if edges == {0, self.outputs}:
            middle = np.arange(self.outputs) * self.stride + (self.kernel - 1) * self.dilation // 2 - self.low
            edges = _thinned(
                {int(np.searchsorted(middle, edge)) for edge in np.cumsum(inputs)[:-1]}, self.outputs
            )
        elif full.size > 2 and (rings == 2 or (rings == 1 and self.outputs <= FEW)):
            edges = {1, 2, self.outputs - 2, self.outputs - 1}
        ends = sorted(edges - {0, self.outputs})
        if ends and ends[0] + self.outputs - ends[-1] < self.outputs / 40:
            ends = []
        return tuple(high - low for low, high in pairwise([0, *ends, self.outputs]))


def _thinned(edges: set[int], length: int) -> set[int]:
    """Return the edges; where there are many, those of a fixed row of them that lie nearest.

    Blocks of that row double from either end to the middle.
    """
    if len(edges) < MOST:
        return edges
    low = [1 << n for n in range(length.bit_length()) if 2 << n <= length]
    row = np.array(sorted({*low, *[length - n for n in low]}))
    return {int(row[np.abs(row - edge).argmin()]) for edge in edges}


@lru_cache(maxsize=1024)
def tap_pairs(window: Window, o: Axis, k: Axis, i: Axis) -> tuple[Array, Array]:
    """Count the taps of a window.

    Args:
        window: The window.
        o: The output's axis.
        k: The kernel's axis.
        i: The input's axis.

    Returns:
        Ordered pairs of taps by pair class of (o, k, i), and taps by block of (o, k, i).
    """
    return counted((o, k, i), window.taps())


def counted(axes: Sequence[Axis], codes: Sequence[Codes]) -> tuple[Array, Array]:
    """Count items by what they are along several axes.

    Args:
        axes: The axes.
        codes: For each axis the entry of each item.

    Returns:
        Ordered pairs of items by pair class of every axis, and items by block of every axis.
    """
    blocks = [
        np.searchsorted(np.cumsum(a), c, side="right").astype(np.intp)
        for a, c in zip(axes, codes, strict=True)
    ]
    shape = tuple(len(a) for a in axes)
    # Few of the combinations of blocks occur where there are many blocks.
    held, kind = np.unique(np.ravel_multi_index(blocks, shape), return_inverse=True)
    kinds = len(held)
    found = np.zeros((*[2] * len(axes), kinds, kinds))
    for free in product((0, 1), repeat=len(axes)):
        group = np.zeros(len(kind), dtype=np.int64)
        for axis, code, any_ in zip(axes, codes, free, strict=True):
            group = group if any_ else group * size(axis) + code
        _, group = np.unique(group, return_inverse=True)
        histogram = np.bincount(group * kinds + kind, minlength=(int(group.max(initial=0)) + 1) * kinds)
        histogram = histogram.reshape(-1, kinds).astype(np.float64)
        found[free] = histogram.T @ histogram
    for d in range(len(axes)):  # exactly those that differ: any less those that agree
        by_axis = np.moveaxis(found, d, 0)
        by_axis[1] -= by_axis[0]
    items = np.zeros(shape)
    items.reshape(-1)[held] = np.bincount(kind, minlength=kinds)
    return _by_class(found, np.array(np.unravel_index(held, shape)), shape), items


def _by_class(found: Array, held: Index, shape: tuple[int, ...]) -> Array:
    """Order counts by pair class per axis.

    They come by (same or differ per axis, kind of the first, kind of the second), and `held` are the blocks
    of each kind, by axis.
    """
    rank, kinds = held.shape
    result = np.zeros([n * (n + 1) for n in shape])
    first, second = np.repeat(held, kinds, axis=1), np.tile(held, kinds)
    for pattern in product((0, 1), repeat=rank):
        place = [
            shape[d] + shape[d] * first[d] + second[d] if differ else first[d]
            for d, differ in enumerate(pattern)
        ]
        np.add.at(result, tuple(place), found[pattern].ravel())
    return result


def matrix_pairs(matrix: Array, o: Axis, i: Axis) -> tuple[Array, Array]:
    """Return what a matrix along one dim does to pair arrays and to block arrays.

    Args:
        matrix: M[o, i].
        o: The output's axis.
        i: The input's axis.

    Returns:
        The mean over the pairs of an output class of Σ M[o, i] M[o′, i′] over the pairs of each input class,
        and the mean over an output block of Σ M[o, i] over each input block.
    """
    low_o, low_i = _starts(o), _starts(i)
    rows = np.add.reduceat(matrix, low_i, axis=1)  # (o, input block)
    columns = np.add.reduceat(matrix, low_o, axis=0)  # (output block, i)
    both = np.add.reduceat(rows, low_o, axis=0)
    squares = np.add.reduceat(np.add.reduceat(matrix**2, low_i, axis=1), low_o, axis=0)
    b, c = len(o), len(i)
    result = np.zeros((b * (b + 1), c * (c + 1)))
    result[:b, :c] = squares
    same_o = np.add.reduceat(rows[:, :, None] * rows[:, None, :], low_o, axis=0)  # (b, c, c)
    same_o[:, np.arange(c), np.arange(c)] -= squares
    same_i = np.add.reduceat(columns[:, None] * columns[None], low_i, axis=2)  # (b, b, c)
    same_i[np.arange(b), np.arange(b)] -= squares
    free = both[:, None, :, None] * both[None, :, None, :]  # (b, b, c, c)
    free[np.arange(b), np.arange(b)] -= same_o
    free[:, :, np.arange(c), np.arange(c)] -= same_i
    free[np.arange(b)[:, None], np.arange(b)[:, None], np.arange(c), np.arange(c)] -= squares
    result[:b, c:] = same_o.reshape(b, -1)
    result[b:, :c] = same_i.reshape(b * b, c)
    result[b:, c:] = free.reshape(b * b, c * c)
    return result / np.maximum(pair_counts(o), 1.0)[:, None], both / np.asarray(o, dtype=np.float64)[:, None]


def _starts(axis: Axis) -> Index:
    return np.cumsum([0, *axis[:-1]])
