"""Many steps of a loop side by side: those that are alike become one block, told by few pairs of steps.

A tensor of T steps with a block for each has a table of T² pairs. So of many steps, those that follow one
another and are alike become one block: at most `MANY` blocks, cut where as much of the time has passed, and
as much has changed, in one as in the next. Two entries of two blocks have in common what two steps have that
lie as far apart, averaged over the lags d of their pairs,

    E[x x′] ≈ Σ_d n(d)·E[x_t x′_{t+d}] / Σ_d n(d),

where n(d) pairs lie d apart, and what lies between the lags asked for (twice as far each time) is taken as
linear in d. *Approximate* where steps of one block differ; exact for as many blocks as steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from isometry.moments.record import Moments, average

MANY = 48  # blocks of steps
_FAINT = 1e-3  # of the largest size: steps that are smaller hardly differ
_NEAR = 1.5  # lags that differ by less are one

Stretch = tuple[int, int]  # the first of some steps, and the one behind the last


def of_steps(parts: Sequence[Moments]) -> list[Stretch]:
    """Return which of many steps in a row are alike."""
    if len(parts) <= MANY:
        return [(k, k + 1) for k in range(len(parts))]
    sizes = np.array([size_of(p) for p in parts])
    larger = np.maximum(np.maximum(sizes[1:], sizes[:-1]), _FAINT * sizes.max() + 1e-300)
    change = np.abs(np.diff(sizes)) / larger
    passed = np.cumsum(1.0 / len(change) + change / max(change.sum(), 1e-9))
    block = np.minimum((passed / passed[-1] * MANY).astype(int), MANY - 1)
    edges = [0, *(1 + np.flatnonzero(np.diff(block, prepend=0))).tolist(), len(parts)]
    return list(itertools.pairwise(edges))


def size_of(m: Moments) -> float:
    """Return the root of the mean square of all entries."""
    return float(max(average(m.square, m.axes), 0.0) ** 0.5)


@lru_cache(maxsize=8192)
def pairs(a: Stretch, b: Stretch) -> list[tuple[int, int, float]]:
    """Return pairs of different steps, one of each stretch, and their weights in the mean over all pairs."""
    if a > b:
        return [(i, j, weight) for j, i, weight in pairs(b, a)]
    if a == b and a[1] - a[0] == 1:
        return []
    lags = np.arange(1, b[1] - a[0])
    first = np.maximum(a[0], b[0] - lags)
    last = np.minimum(a[1], b[1] - lags) - 1
    counts = np.maximum(last - first + 1, 0)
    low, high = (int(lags[k]) for k in np.flatnonzero(counts)[[0, -1]])
    nodes = [low] if high > _NEAR * low else [(low + high) // 2]
    while high > _NEAR * low and nodes[-1] < high:
        nodes.append(min(2 * nodes[-1], high))
    hats = np.array([np.interp(lags, nodes, np.eye(len(nodes))[k]) for k in range(len(nodes))])
    weights = hats @ counts / counts.sum()
    found = []
    for lag, weight in zip(nodes, weights.tolist(), strict=True):
        i = int(first[lag - 1] + last[lag - 1]) // 2
        found.append((i, i + lag, weight))
    return found
