"""Linear maps along single dims.

Averages over windows, resizing, padding by copies, and the gradients of all of them.

y[o] = Σ_i M[o, i] x[i] along a dim; several dims are treated one after the other. The tables are exact: the
pair table of M says how output pairs are made of input pairs. What is approximate is the marginal: entries
that are copied keep theirs, a mean of few takes the quantile function of the mean of that many, a sum of many
is normal (lognormal where it is positive).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import contract as con
from isometry.moments import distances, latents, lineage, near, near_maps, pools
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments, Term, average, average_differ, diagonal
from isometry.moments.taps import matrix_pairs

FEW = 12.0  # a mean over more entries is taken as normal


def resampled(
    m: Moments, matrices: Mapping[int, Array], like: Moments | None = None, alike: float = 0.0
) -> Moments:
    """Return the record with each of the given dims mapped by its matrix M[output, input].

    Args:
        m: The record.
        matrices: By dim.
        like: A record whose blocks the mapped dims shall have; without, one block each.
        alike: The correlation of entries that one output is a mean of.

    Returns:
        The record, a function of a new latent.
    """
    m = alg.collapse(m)
    summands, copies = 1.0, True
    for dim, matrix in matrices.items():
        m = reg.single_axis(m, dim) if m.dims[dim] else m
        sums = np.maximum((matrix**2).sum(1), 1e-300)
        summands *= float(np.mean(matrix.sum(1) ** 2 / sums))
        copies &= bool(np.all(np.count_nonzero(matrix, axis=1) == 1))
    dims = tuple(d or ((1,),) if k in matrices else d for k, d in enumerate(m.dims))
    m = reg.broadcast(m, dims)
    factor = alg.absorbed(m.terms[0], m.axes)
    table, mean = m.table, m.mean
    values = m.mean[..., None] + 0.0 * latents.NODES if factor is None else factor.values
    given = list(m.dims)
    for dim, matrix in matrices.items():
        (position,) = m.positions(dim)
        axis = (matrix.shape[0],) if like is None else _axis(like, dim)
        on_pairs, on_blocks = matrix_pairs(matrix, axis, m.axes[position])
        table, mean = _mapped(table, on_pairs, position), _mapped(mean, on_blocks, position)
        weights = np.abs(on_blocks)
        values = _mapped(values, weights / np.maximum(weights.sum(1, keepdims=True), 1e-300), position)
        given[dim] = (axis,)
    axes = tuple(a for d in given for a in d)
    how = near_maps.read_by(m, matrices, axes)
    rank = near.rank_of(m.terms) or len(matrices)
    if how is not None:
        table = near_maps.added(table, axes, m, how, rank)
    made = _with_form(tuple(given), axes, table, mean, values, 1.0 if copies else summands, m, alike)
    made = _knowing(made, m, matrices)
    if how is not None:
        made = near.marked(made, near.spread(m, rank) @ how.distances.T, rank)
    for dim in matrices:
        if made.shape[dim] == 1:
            made = reg.selected(made, dim, 0, keep=True)
    return made


def _knowing(made: Moments, m: Moments, matrices: Mapping[int, Array]) -> Moments:
    """Return a map y = M x onto as many places with what it knows of x, so that y − x comes out right.

    y is a·x + b·mean(x) and a rest, where a + b = Σ_k M_k, and a gives the covariance with its own place:

        (a·x_0 + b·mean x)·x_0 has the mean Σ_k M_k·E[x_0 x_k].

    Exact for the second moments at one place and on average over all others.
    """
    (term,) = made.terms
    rank, dims = len(matrices), len(m.dims)
    square = all(w.shape[0] == w.shape[1] for w in matrices.values())
    if not square or {d % dims for d in matrices} != set(range(dims - rank, dims)) or len(term.factors) != 1:
        return made
    positions = [p for dim in matrices for p in m.positions(dim)]
    count = float(np.prod([len(w) for w in matrices.values()]))
    same = average(m.square, m.axes)
    level = (same + (count - 1.0) * average_differ(m.table, m.axes, positions)) / count
    if same - level <= 1e-9 * same:
        return made
    by_distance = distances.mean(near.spread(m, rank), m.axes[:-rank])
    at_own = float(by_distance @ near_maps.reads([matrices[k] for k in sorted(matrices)]))
    whole = float(np.prod([w.sum() / len(w) for w in matrices.values()]))
    own = (at_own - whole * level) / (same - level)
    parts = lineage.averaged(lineage.parts_of(m.terms), positions, m.axes, own, whole - own)
    factor = replace(term.factors[0], form=term.factors[0].values, parts=parts)
    return replace(made, terms=(Term(term.coef, (factor,)),))


def _axis(like: Moments, dim: int) -> Axis:
    own = reg.single_axis(like, dim).dims[dim]
    return own[0] if own else (1,)


def _mapped(array: Array, matrix: Array, position: int) -> Array:
    if array.shape[position] == 1:
        array = np.broadcast_to(
            array, (*array.shape[:position], matrix.shape[1], *array.shape[position + 1 :])
        )
    return np.asarray(np.moveaxis(np.tensordot(matrix, array, axes=(1, position)), 0, position))


def _with_form(
    dims: tuple[tuple[Axis, ...], ...],
    axes: tuple[Axis, ...],
    table: Array,
    mean: Array,
    values: Array,
    summands: float,
    m: Moments,
    alike: float,
) -> Moments:
    """Return the record with these moments.

    Whose entries are means of so many entries with the given quantile functions.
    """
    if values.shape[-1] == 1 or latents.affine(values):  # constants, or normal entries
        return alg.gaussian(dims, table, mean)
    row, members = np.ascontiguousarray(values.reshape(-1, values.shape[-1])[0]), round(summands)
    one = values[..., 0].size == 1 and alike > pools.ALIKE
    if one and 1 < members <= pools.MOST and pools.bent(row):
        quantiles = pools.means(row.tobytes(), members, round(alike, 3))
        return alg.with_marginal(dims, table, mean, quantiles.reshape(values.shape))
    if summands > FEW or not np.all(diagonal(table, axes) > 0):
        return con.positive(dims, table, mean) if con.is_positive(m) else alg.gaussian(dims, table, mean)
    return alg.with_marginal(dims, table, mean, mean_of(values, summands))


def mean_of(values: Array, count: float) -> Array:
    """Return the quantile function of the mean of `count` independent copies (rounded.

    Of sorted values along the last axis).
    """
    n = round(count)
    if n <= 1:
        return np.sort(values, axis=-1)
    grid = 2048
    rows = []
    for row in values.reshape(-1, values.shape[-1]):
        low, high = float(row.min()), float(row.max())
        if high <= low:
            rows.append(row)
            continue
        step = (high - low) / grid
        density = np.zeros(grid * n + 1)
        place = (row - low) / step
        below = np.minimum(place.astype(int), grid - 1)
        np.add.at(density, below, latents.WEIGHTS * (1 - (place - below)))
        np.add.at(density, below + 1, latents.WEIGHTS * (place - below))
        summed = np.fft.irfft(np.fft.rfft(density, 2 * len(density)) ** n, 2 * len(density))[: len(density)]
        points = low + step * np.arange(len(density)) / n
        rows.append(latents.quantiles(points, np.maximum(summed, 0.0)))
    return np.stack(rows).reshape(values.shape)


def scattered(m: Moments, position: int, count: int) -> Moments:
    """Return the entries along an axis of one block at unknown places among `count`, zeros elsewhere.

    Two entries that agree on this axis and differ on another have places of their own.
    """
    few = sum(m.axes[position])
    at_one, at_two = few / count, few * (few - 1) / max(count * (count - 1), 1)
    axes = [a for k, a in enumerate(m.axes) if k != position]
    shape = [len(a) * (len(a) + 1) if n > 1 else 1 for a, n in zip(m.axes, m.table.shape, strict=True)]
    shape[position] = 2
    table = np.array(np.broadcast_to(m.table, shape))
    front = np.moveaxis(table, position, 0)
    front[1] *= at_two
    own = np.full(front.shape[1:], at_one**2)
    diagonal(own, tuple(axes))[...] = at_one
    front[0] *= own
    dims, taken = [], 0
    for dim in m.dims:
        dims.append(tuple((count,) if taken + k == position else a for k, a in enumerate(dim)))
        taken += len(dim)
    return alg.gaussian(tuple(dims), table, m.mean * at_one)
