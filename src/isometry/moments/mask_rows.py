"""What the rows of a known mask or bias see of the keys: pairs of rows, sampled from blocks of queries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis, Index
from isometry.moments.symbolic import Known, entries, shape_of

_PLACES = np.array([1.0, 2.0, 4.0, 5.0]) / 6.0  # of the rows sampled from a block of queries
_PAIRS = ((0, 1), (0, 3), (2, 3))  # of these: the midpoints of three parts of all pairs
ROWS = len(_PLACES)


@dataclass(frozen=True)
class Rows:
    """What sampled pairs of rows give to the blocks of keys, by pair class of the queries.

    Attributes:
        first: Share of u in each key block for the pair's first row, shape (query classes, samples, key
            blocks).
        second: Likewise for its second row.
        overlap: Σ_k u_k u′_k over each key block, same shape.
        weights: What each sample counts, shape (query classes, samples).
    """

    first: Array
    second: Array
    overlap: Array
    weights: Array

    def mean(self, values: Array, blocks: int | None = None) -> Array:
        """Return the mean over samples of values of the shape (…, query classes, samples, key blocks)."""
        return np.asarray(np.einsum("...qsk,qs->...qk", values, self.weights[:blocks]))

    @cached_property
    def pairs(self) -> Array:
        """Σ u_k u′_j over the pairs k ≠ j of two key blocks, a matrix of blocks for every sample."""
        both = self.first[..., :, None] * self.second[..., None, :]
        return np.asarray(np.maximum(both - self.overlap[..., None] * np.eye(both.shape[-1]), 0.0))


def doubling(n: int, limit: int | None = None) -> Axis:
    """Return blocks of sizes 1, 1, 2, 4, … up to a limit that add up to n.

    Beyond 256 they grow faster, so that no more than 10 are made; a limit adds at most 8.
    """
    growth = max(2.0, n ** (1 / 8))
    most = n if limit is None else max(limit, -(-n // 8))
    edges, edge = [0, 1], 1.0
    while edges[-1] < n:
        edge *= growth
        edges.append(min(n, max(edges[-1] + 1, round(edge)), edges[-1] + most))
    return tuple(b - a for a, b in itertools.pairwise(edges))


@lru_cache(maxsize=8)
def reach(shift: Known, shape: tuple[int, ...]) -> int | None:
    """Return half the width of the band that a sliding window leaves of a mask, None where there is none."""
    last = np.flatnonzero(pattern(shift, shape, [shape[-2] - 1])[:, 0].max(0) > 0)
    seen = int(last[-1] - last[0]) + 1 if last.size else shape[-1]
    return max(seen // 2, 1) if seen < shape[-1] // 2 + 1 else None


def uniform(keys: Axis) -> Rows:
    """Return the rows that see all keys alike."""
    share = np.asarray(keys, dtype=np.float64) / ax.size(keys)
    return Rows(share[None, None], share[None, None], (share / ax.size(keys))[None, None], np.ones((1, 1)))


def pattern(shift: Known, shape: tuple[int, ...], rows: Sequence[int]) -> Array:
    """Return u = softmax(shift) of the chosen rows, as (samples of the leading dims, rows, keys)."""
    at = torch.arange(shape[-1])
    own = (1,) * (len(shape) - len(shape_of(shift))) + shape_of(shift)
    leading = [torch.linspace(0, n - 1, min(n, 2)).long() for n in own[:-2]]
    grid = (*leading, torch.tensor(rows), at)
    values = entries(shift, grid[len(grid) - len(shape_of(shift)) :])
    values = values.to(torch.float64).expand(*[len(g) for g in grid])
    return torch.softmax(values, -1).nan_to_num(0.0).reshape(-1, len(rows), shape[-1]).numpy()


@lru_cache(maxsize=8)
def edge_blocks(shift: Known, shape: tuple[int, ...]) -> Axis | None:
    """Where all rows are alike (a padding mask), cut keys where their weights jump, up to 8 blocks.

    Rows that are not alike give None.
    """
    rows = sorted({int(r) for r in np.linspace(0, shape[-2] - 1, min(shape[-2], 64))})
    seen = pattern(shift, shape, rows)
    if bool((seen != seen[:, :1]).any()):
        return None
    mean = seen.mean((0, 1))
    edges = np.flatnonzero(np.abs(np.diff(mean)) > 1e-9 * mean.max()) + 1
    if len(edges) == 0 or len(edges) > 7:
        return (shape[-1],)
    cuts = [0, *edges.tolist(), shape[-1]]
    return tuple(b - a for a, b in itertools.pairwise(cuts))


@lru_cache(maxsize=8)
def rows_of(shift: Known, shape: tuple[int, ...], queries: Axis | None, keys: Axis) -> Rows:
    """Sample pairs of rows for every pair class of the queries.

    Samples of the leading dims are further samples.
    """
    starts = np.cumsum([0, *keys[:-1]])
    if queries is None:
        u = pattern(shift, shape, [0])[:, 0]
        share = np.add.reduceat(u, starts, axis=-1)[None]
        overlap = np.add.reduceat(u * u, starts, axis=-1)[None]
        return Rows(share, share, overlap, np.full((1, len(u)), 1.0 / len(u)))
    edges = np.cumsum([0, *queries])
    picks = [lo + _picked(hi - lo) for lo, hi in itertools.pairwise(edges)]
    rows = np.concatenate(picks)
    ends = np.cumsum([0, *[len(p) for p in picks]])
    pairs = [_row_pairs(queries, ends, b, c) for b, c in _query_classes(queries)]
    most = max(len(w) for _, w in pairs)
    index = np.stack([np.resize(chosen, (most, 2)) for chosen, _ in pairs])  # (classes, samples, 2)
    weights = np.stack([np.pad(w, (0, most - len(w))) for _, w in pairs])
    u = pattern(shift, shape, rows.tolist())
    share = np.add.reduceat(u, starts, axis=-1)
    overlap = np.stack(
        [part @ part.swapaxes(1, 2) for part in np.split(u, starts[1:], axis=-1)], axis=-1
    )  # (leading, rows, rows, key blocks)
    parts = (share[:, index[..., 0]], share[:, index[..., 1]], overlap[:, index[..., 0], index[..., 1]])
    one, two, both = (np.moveaxis(p, 0, 1).reshape(p.shape[1], -1, len(keys)) for p in parts)
    return Rows(one, two, both, np.tile(weights, len(u)) / len(u))


def _query_classes(queries: Axis) -> list[tuple[int, int | None]]:
    """Return for each pair class its two blocks, the second None where the class pairs a row with itself."""
    left, right = ax.sides(queries)
    return [
        (int(b), None if k < len(queries) else int(c))
        for k, (b, c) in enumerate(zip(left, right, strict=True))
    ]


def _picked(n: int) -> Index:
    """Return which rows of a block of n are sampled."""
    if n <= ROWS:
        return np.arange(n)
    half = np.ceil(n * _PLACES[: ROWS // 2]).astype(np.intp) - 1
    return np.concatenate([half, n - 1 - half[::-1]])


def _row_pairs(queries: Axis, ends: Index, b: int, c: int | None) -> tuple[Index, Array]:
    """Return pairs of sampled rows of one class and their weights, so that polynomials have their means.

    Those of degree 3 in a row's place; for two rows of one block, of degree 1 in the smaller and the larger.
    """
    ours = np.arange(ends[b], ends[b + 1])
    if c is None:
        return np.stack([ours, ours], -1), _place_weights(queries[b])
    if b != c:
        theirs = np.arange(ends[c], ends[c + 1])
        weights = np.outer(_place_weights(queries[b]), _place_weights(queries[c]))
        return np.stack(np.meshgrid(ours, theirs, indexing="ij"), -1).reshape(-1, 2), weights.ravel()
    if len(ours) < 2:  # there are no such pairs
        return np.stack([ours, ours], -1), np.ones(1)
    n = queries[b]
    if n <= ROWS:
        chosen = np.array([(s, t) for s in ours for t in ours if s != t])
        return chosen, np.full(len(chosen), 1.0 / len(chosen))
    places = _picked(n)
    low, high = (np.array([places[pair[k]] for pair in _PAIRS]) for k in (0, 1))
    weights = np.linalg.solve(
        np.stack([np.ones(3), low, high]), [1.0, (n - 2.0) / 3.0, (2.0 * n - 1.0) / 3.0]
    )
    chosen = ours[np.array([*_PAIRS, *[pair[::-1] for pair in _PAIRS]])]
    return chosen, np.tile(weights, 2) / 2.0


@lru_cache(maxsize=256)
def _place_weights(n: int) -> Array:
    """Return weights of the sampled rows of a block of n."""
    if n <= ROWS:
        return np.full(n, 1.0 / n)
    at = (np.arange(n) + 0.5) / n - 0.5
    powers = np.arange(ROWS)[:, None]
    return np.asarray(np.linalg.solve(at[_picked(n)] ** powers, (at**powers).mean(1)))
