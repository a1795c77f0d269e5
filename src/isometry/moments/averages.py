"""Means of tables over the axes of some dims, and what is left when they are taken away."""

from __future__ import annotations

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
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
    positions = [p for d in dims for p in m.positions(d) if m.table.shape[p] > 1]
    centre = mean_over(m.table, m, dims)
    if all(len(m.axes[p]) == 1 for p in positions):
        return np.asarray(m.table - centre)
    with_mean = m.table  # E[x mean(x)], by the block of x
    for p in positions:
        by_block = np.tensordot(ax.partners(m.axes[p]), with_mean, axes=(1, p))
        with_mean = np.moveaxis(by_block[ax.sides(m.axes[p])[0]], 0, p)
    return np.asarray(m.table - with_mean - rec.mirror(with_mean, m.axes) + centre)


def average_over(blocks: Array, m: Moments, dims: tuple[int, ...]) -> Array:
    """Return a block array averaged over the axes of dims, which keep length 1."""
    for p in (p for d in dims for p in m.positions(d)):
        if blocks.shape[p] > 1:
            blocks = np.expand_dims(np.tensordot(blocks, ax.shares(m.axes[p]), axes=(p, 0)), p)
    return blocks
