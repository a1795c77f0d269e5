"""Linear maps of what knows distances: how pairs of outputs read pairs of inputs; see `near`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis
from isometry.moments.distances import REACH, sizes, steps
from isometry.moments.near import excess, rank_of
from isometry.moments.record import Moments

STRETCH = 256  # outputs of a linear map among which distances are counted


@dataclass(frozen=True, eq=False)
class Reading:
    """How pairs of outputs of a linear map M read pairs of inputs: Σ M[o, i]·M[o′, i′] by distance of i, i′.

    Attributes:
        classes: The mean over the pairs of outputs of each class, classes of all axes in a row.
        distances: The mean over the pairs of outputs at each distance.
    """

    classes: Array
    distances: Array

    def by_class(self, by_distance: Array, axes: Sequence[Axis]) -> Array:
        """Return what outputs in these blocks add up to, by pair class."""
        read = by_distance @ self.classes.T
        return np.asarray(read.reshape((*read.shape[:-1], *[len(a) * (len(a) + 1) for a in axes])))


def reading(matrices: Sequence[Array], outputs: Sequence[Axis]) -> Reading:
    """Return how the outputs, in blocks, of a linear map with a matrix M[o, i] per axis read inputs."""
    each = [_along(matrix, axis) for matrix, axis in zip(matrices, outputs, strict=True)]
    classes, distances = ([pair[k] for pair in each] for k in (0, 1))
    return Reading(_product(classes), _product(distances))


def _product(matrices: Sequence[Array]) -> Array:
    result: Array = np.ones((1, 1))
    for matrix in matrices:
        result = np.asarray(np.kron(result, matrix))
    return result


def _along(matrix: Array, o: Axis) -> tuple[Array, Array]:
    """Return how pairs of outputs along one axis read, by class and by distance of the outputs."""
    inputs, b = matrix.shape[1], len(o)
    far, starts, every = steps(inputs) - 1, np.cumsum([0, *o[:-1]]), np.arange(b)
    columns = np.add.reduceat(matrix, starts, axis=0)
    same, differ = np.zeros((b, far + 1)), np.zeros((b, b, far + 1))
    same[:, far] = np.add.reduceat(matrix.sum(1) ** 2, starts)
    differ[:, :, far] = np.multiply.outer(columns.sum(1), columns.sum(1))
    for d in range(far):
        times = 1.0 if d == 0 else 2.0
        rows = np.einsum("oi,oi->o", matrix[:, : inputs - d], matrix[:, d:])
        same[:, d] = times * np.add.reduceat(rows, starts)
        free = columns[:, : inputs - d] @ columns[:, d:].T
        differ[:, :, d] = free if d == 0 else free + free.T
    same[:, far] -= same[:, :far].sum(1)
    differ[:, :, far] -= differ[:, :, :far].sum(2)
    differ[every, every] -= same
    classes = np.concatenate([same, differ.reshape(b * b, -1)])
    return classes / np.maximum(ax.pair_counts(o), 1.0)[:, None], _by_distance(matrix)


def _by_distance(matrix: Array) -> Array:
    """Return the mean of Σ M[o, i]·M[o′, i′] over the pairs of outputs at each distance, by that of i, i′.

    Of a long axis a stretch in the middle stands for the whole.
    """
    outputs, inputs = matrix.shape
    count, far = steps(outputs), steps(inputs) - 1
    middle = slice(max(outputs - STRETCH, 0) // 2, (outputs + STRETCH) // 2)
    matrix = matrix[middle]
    places, sums = np.arange(len(matrix)), matrix.sum(1)
    gap = np.minimum(np.abs(places[:, None] - places), count - 1).ravel()
    pairs, result = np.bincount(gap, minlength=count), np.zeros((count, far + 1))
    used = np.flatnonzero(matrix.any(0))
    matrix = matrix[:, used[0] : used[-1] + 1] if used.size else matrix
    rest = np.multiply.outer(sums, sums)
    for d in range(far + 1):
        both = matrix[:, : matrix.shape[1] - d] @ matrix[:, d:].T if d < far else rest
        both = both + both.T if 0 < d < far else both
        rest = rest - both
        result[:, d] = np.bincount(gap, both.ravel(), minlength=count)
    result /= np.maximum(pairs, 1)[:, None]
    if outputs <= REACH + 1:  # none lies farther apart: as the farthest
        result[-1] = result[-2]
    return result


def reads(matrices: Sequence[Array]) -> Array:
    """Return how much an output reads, on average, of the inputs at each distance from its own place."""
    result = np.ones(1)
    for matrix in matrices:
        n, far = len(matrix), steps(len(matrix)) - 1
        gap = np.minimum(np.abs(np.arange(n)[:, None] - np.arange(n)), far)
        own = np.bincount(gap.ravel(), matrix.ravel(), minlength=far + 1) / n
        result = np.multiply.outer(result, own).ravel()
    return result


def read_by(m: Moments, matrices: Mapping[int, Array], axes: Sequence[Axis]) -> Reading | None:
    """Return how a linear map of some dims reads by distance; None where distance makes no difference.

    Args:
        m: The input, each of whose mapped dims has one axis.
        matrices: M[o, i] by dim.
        axes: The output's axes.
    """
    rank, dims = rank_of(m.terms), len(m.dims)
    if not rank and all(np.count_nonzero(w, axis=0).max() <= 1 for w in matrices.values()):
        return None
    rank = rank or len(matrices)
    space = range(dims - rank, dims)
    if not set(matrices) <= set(space) or any(len(m.dims[d]) != 1 for d in space):
        return None
    each = zip(space, sizes(m.axes, rank), strict=True)
    return reading([matrices.get(d, np.eye(n)) for d, n in each], axes[-rank:])


def added(table: Array, axes: Sequence[Axis], m: Moments, how: Reading, rank: int) -> Array:
    """Return the table of a linear map with what near inputs m have in common beyond their class's mean."""
    more = how.by_class(excess(m, rank), axes[-rank:])
    lead = len(axes) - rank
    table = np.array(np.broadcast_to(table, (*table.shape[:lead], *more.shape[-rank:])))
    part = table[tuple([slice(len(a)) for a in axes[:lead]])]
    part += more
    return table
