"""Running sums."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import between, lookup
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.mask_rows import doubling
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule

PICKS = 48  # places per block at which the running sum is looked at


@rule("cumsum", accuracy="exact")
def cumsum(ctx: Context, m: Moments, dim: int, **_: Any) -> Moments:
    """Running sums along a dim, whose entries grow.

    Blocks that double in size. Exact second moments, block by block; normal, or lognormal for summands of
    one sign, in the wide limit.
    """
    if not m.dims:
        return m
    dim %= len(m.dims)
    m = reg.single_axis(m, dim)
    if not m.dims[dim]:
        return m
    (p,) = m.positions(dim)
    axis = m.axes[p]
    given = doubling(ax.size(axis))
    given = (*given[:-1], given[-1] - 1, 1) if given[-1] > 1 else given  # the last one is often asked for
    pairs, blocks = _maps(axis, given)
    table = np.moveaxis(m.table, p, 0)
    mean = np.moveaxis(m.mean, p, 0)
    table = lookup.total(pairs, table, [pairs.shape[1]], [pairs.shape[0]])
    mean = lookup.total(blocks, mean, [blocks.shape[1]], [blocks.shape[0]])
    dims = (*m.dims[:dim], (given,), *m.dims[dim + 1 :])
    made = con.of_sum(m, dims, np.moveaxis(table, 0, p), np.moveaxis(mean, 0, p))
    one_sided = con.is_positive(m) or con.is_negative(m)
    return between.remember(made, rec.average(m.mean, m.axes)) if one_sided else made


@lru_cache(maxsize=64)
def _maps(taken: Axis, given: Axis) -> tuple[Array, Array]:
    """Return what the input's pair classes and blocks add up to in the output's, averaged over places."""
    edges = np.cumsum((0, *taken))
    starts = np.cumsum((0, *given))
    places = [
        np.unique(np.linspace(lo, hi - 1, min(PICKS, hi - lo)).round().astype(np.int64))
        for lo, hi in pairwise(starts)
    ]
    left, right = ax.sides(given)
    rows = []
    for k, (b, c) in enumerate(zip(left, right, strict=True)):
        s, t = (x.ravel() for x in np.meshgrid(places[b], places[c], indexing="ij"))
        keep = s == t if k < len(given) else (s != t) if given[b] > 1 or b != c else s == s
        rows.append(_summands(edges, s[keep], t[keep]).mean(0))
    blocks = [np.stack([_before(edges, t) for t in place]).mean(0) for place in places]
    return np.stack(rows), np.stack(blocks)


def _before(edges: Array, t: int) -> Array:
    """Return how many entries of each block come no later than t."""
    return np.clip(t + 1 - edges[:-1], 0, np.diff(edges)).astype(np.float64)


def _summands(edges: Array, s: Array, t: Array) -> Array:
    """Return for places s and t the pairs of summands by pair class."""
    one, two = (np.stack([_before(edges, x) for x in y]) for y in (s, t))
    both = np.minimum(one, two)
    b = one.shape[1]
    differ = one[:, :, None] * two[:, None, :] - both[:, :, None] * np.eye(b)
    return np.concatenate([both, differ.reshape(len(one), -1)], axis=1)
