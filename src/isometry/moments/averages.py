"""Means of tables over the axes of some dims, and what is left when they are taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments


def one_block(m: Moments, dims: tuple[int, ...]) -> Moments:
    """Return the record with the axes of these dims in one block each.

    (what varies between blocks is averaged).
    """
    for p in (p for d in dims for p in m.positions(d)):
        m = reg.recut_axis(m, p, (ax.size(m.axes[p]),))
    return m


def mean_over(table: Array, m: Moments, dims: tuple[int, ...]) -> Array:
    """Return a pair array averaged over all pairs along the axes of dims, which keep length 1."""
    for p in (p for d in dims for p in m.positions(d)):
        if table.shape[p] > 1:
            counts = ax.pair_counts(m.axes[p])
            table = np.expand_dims(np.tensordot(table, counts / counts.sum(), axes=(p, 0)), p)
    return table


def centred(m: Moments, dims: tuple[int, ...]) -> Array:
    """Return the table of x − mean(x) over the axes of dims, exactly."""
    return centred_pairs(m.table, m.axes, [p for d in dims for p in m.positions(d)])


def centred_pairs(table: Array, axes: tuple[Axis, ...], positions: Sequence[int]) -> Array:
    """Return E[(x − mean(x))·(y − mean(y))′] over the axes at these positions, exactly, from E[x y′]."""
    positions = [p for p in positions if table.shape[p] > 1]
    centre = table
    for p in positions:
        counts = ax.pair_counts(axes[p])
        centre = np.expand_dims(np.tensordot(centre, counts / counts.sum(), axes=(p, 0)), p)
    if all(len(axes[p]) == 1 for p in positions):
        return np.asarray(table - centre)
    turned = rec.mirror(_with_mean(rec.mirror(table, axes), axes, positions), axes)
    return np.asarray(table - _with_mean(table, axes, positions) - turned + centre)


def _with_mean(table: Array, axes: tuple[Axis, ...], positions: Sequence[int]) -> Array:
    """Return E[x mean(y)], by the block of x, from E[x y′]."""
    for p in positions:
        by_block = np.tensordot(ax.partners(axes[p]), table, axes=(1, p))
        table = np.moveaxis(by_block[ax.sides(axes[p])[0]], 0, p)
    return table


def average_over(blocks: Array, m: Moments, dims: tuple[int, ...]) -> Array:
    """Return a block array averaged over the axes of dims, which keep length 1."""
    for p in (p for d in dims for p in m.positions(d)):
        if blocks.shape[p] > 1:
            blocks = np.expand_dims(np.tensordot(blocks, ax.shares(m.axes[p]), axes=(p, 0)), p)
    return blocks
