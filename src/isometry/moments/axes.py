"""Axes cut into blocks, the pair classes they give, and the maps that regrouping them needs.

An *axis* is a tuple of block sizes: `(197,)` is an axis of 197 alike entries, `(1, 196)` a class token and
196 patches. Entries of one block are exchangeable. Two entries of an axis with B blocks are in one of B + B²
*pair classes*: `same` entry, of block b (class b), or two `differ`ent entries, the first of block b and the
second of block c (class B + B·b + c). One block gives the two classes "same" and "differ".

Two kinds of NumPy array are indexed by axes, one array dimension per axis, in the order of the axes:

- a *pair array* holds something per pair class (second moments, correlations);
- a *block array* holds something per block (means, scales, node values).

Along any axis either may have length 1, which means "the same for every class or block": a broadcast axis.

A regrouping of axes (`split`, `fuse`, `recut`, `take`, `pick`) is a pair of linear maps, one for each kind of
array. A tensor dim is a tuple of axes in row-major order, so that `view` and `permute` only regroup and
reorder.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Axis = tuple[int, ...]


def size(axis: Axis) -> int:
    """Return the number of entries of an axis."""
    return sum(axis)


@lru_cache(maxsize=4096)
def pair_counts(axis: Axis) -> Array:
    """Return the number of ordered pairs of entries in each pair class: n_b, then n_b·n_c − δ_bc·n_b."""
    n = np.asarray(axis, dtype=np.float64)
    counts = np.concatenate([n, (np.outer(n, n) - np.diag(n)).ravel()])
    counts.flags.writeable = False
    return counts


@lru_cache(maxsize=4096)
def shares(axis: Axis) -> Array:
    """Return the share of an axis's entries that lies in each block."""
    return np.asarray(axis, dtype=np.float64) / size(axis)


@lru_cache(maxsize=4096)
def sides(axis: Axis) -> tuple[Index, Index]:
    """Return for each pair class the block of its first and of its second entry."""
    b = len(axis)
    blocks = np.arange(b)
    return np.concatenate([blocks, np.repeat(blocks, b)]), np.concatenate([blocks, np.tile(blocks, b)])


def spread(blocks: Array, axes: tuple[Axis, ...], side: int) -> Array:
    """Spread a block array over pair classes by the block of the pair's first (0) or second (1) entry."""
    for position, n in enumerate(blocks.shape[: len(axes)]):
        if n > 1:
            blocks = blocks.take(sides(axes[position])[side], axis=position)
    return blocks


@lru_cache(maxsize=4096)
def partners(axis: Axis) -> Array:
    """Return for each block the share of each pair class among the pairs that begin with one of its entries.

    The matrix maps a pair array to the block array of its means over the second entry.
    """
    left, _ = sides(axis)
    counts = pair_counts(axis) * (left == np.arange(len(axis))[:, None])
    result = np.asarray(counts / counts.sum(1, keepdims=True))
    result.flags.writeable = False
    return result


@lru_cache(maxsize=4096)
def mirrored(axis: Axis) -> Index:
    """Return for each pair class the class of the same pair with its two entries exchanged."""
    b = len(axis)
    return np.concatenate([np.arange(b), b + np.arange(b * b).reshape(b, b).T.ravel()])


@lru_cache(maxsize=4096)
def same_classes(axis: Axis) -> Array:
    """Return 1 for the classes that pair an entry with itself, 0 for the others."""
    b = len(axis)
    return np.concatenate([np.ones(b), np.zeros(b * b)])


@lru_cache(maxsize=256)
def composed(axis: Axis) -> Array:
    """Return M with (A·B)_c = Σ M_cde A_d B_e, for pair arrays that are multiplied as matrices of entries.

    With a matrix as D_b δ_ij + O_bc, D = same − differ within a block: D = D D′, and
    O = D O′ + O D′ + Σ_d n_d O_·d O′_d·.
    """
    b, n = len(axis), np.asarray(axis, dtype=np.float64)
    k = b * (b + 1)
    unit = np.eye(k)
    between = unit[:, b:].reshape(k, b, b)
    own = unit[:, :b] - np.diagonal(between, axis1=1, axis2=2)
    apart = own[:, None, :, None] * between + between[:, None] * own[:, None, :]
    apart = apart + np.einsum("ibd,d,jdc->ijbc", between, n, between)
    same = own[:, None] * own + np.diagonal(apart, axis1=2, axis2=3)
    result = np.moveaxis(np.concatenate([same, apart.reshape(k, k, b * b)], axis=-1), -1, 0)
    result.flags.writeable = False
    return result


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How the arrays along `taken` neighbouring axes become arrays along the axes `given`.

    `pairs` and `blocks` are index arrays (a gather) or matrices (averages, rows sum to 1) over the classes
    and blocks of the taken axes, flattened in row-major order.
    """

    taken: tuple[Axis, ...]
    given: tuple[Axis, ...]
    pairs: Index | Array
    blocks: Index | Array

    def on_pairs(self, array: Array, position: int) -> Array:
        """Apply the map to a pair array whose taken axes begin at `position`."""
        return self._apply(
            array,
            position,
            self.pairs,
            [len(a) * (len(a) + 1) for a in self.taken],
            [len(a) * (len(a) + 1) for a in self.given],
        )

    def on_blocks(self, array: Array, position: int) -> Array:
        """Apply the map to a block array whose taken axes begin at `position`."""
        return self._apply(
            array, position, self.blocks, [len(a) for a in self.taken], [len(a) for a in self.given]
        )

    def _apply(
        self, array: Array, position: int, how: Index | Array, old: list[int], new: list[int]
    ) -> Array:
        stop = position + len(old)
        before, taken, after = array.shape[:position], array.shape[position:stop], array.shape[stop:]
        if all(n == 1 for n in taken):  # constant here: it stays constant, whatever the axes become
            return array.reshape((*before, *[1] * len(new), *after))
        if taken != tuple(old):
            array = np.broadcast_to(array, (*before, *old, *after))
        flat = array.reshape((*before, prod(old), *after))
        if how.dtype.kind == "i":
            result = np.take(flat, how.astype(np.intp), axis=position)
        else:
            result = np.moveaxis(np.tensordot(how, flat, axes=(1, position)), 0, position)
        return result.reshape((*before, *new, *after))


def _averages(counts: Array, member: Index, groups: int) -> Array:
    """Return the matrix that averages entries into groups.

    Weighted by counts (plainly where all counts are 0).
    """
    matrix = np.zeros((groups, len(counts)))
    matrix[member, np.arange(len(counts))] = counts
    plain = np.zeros_like(matrix)
    plain[member, np.arange(len(counts))] = 1.0
    empty = matrix.sum(1) == 0
    matrix[empty] = plain[empty]
    return np.asarray(matrix / np.maximum(matrix.sum(1, keepdims=True), 1.0))


def _blocks_of(coarse: Axis, fine: Axis) -> Index:
    """Return for each block of `fine` the block of `coarse` that contains it."""
    edges = np.cumsum(coarse)
    return np.searchsorted(edges, np.cumsum(fine), side="left").astype(np.intp)


def _class(axis: Axis, first: Index, second: Index, same: NDArray[np.bool_]) -> Index:
    b = len(axis)
    return np.where(same, first, b + b * first + second).astype(np.intp)


@lru_cache(maxsize=4096)
def recut(old: Axis, new: Axis) -> AxisMap:
    """Map an axis onto another partition of the same entries.

    Finer copies, coarser averages (the common refinement first).
    """
    fine = common_blocks(old, new)
    inner = _blocks_of(old, fine)
    left, right = sides(fine)
    same = np.arange(len(left)) < len(fine)
    gather_pairs = _class(old, inner[left], inner[right], same)
    if fine == new:
        return AxisMap((old,), (new,), gather_pairs, inner)
    outer = _blocks_of(new, fine)
    member = _class(new, outer[left], outer[right], same)
    pairs = _averages(pair_counts(fine), member, len(new) * (len(new) + 1))
    blocks = _averages(np.asarray(fine, dtype=np.float64), outer, len(new))
    spread_pairs = np.zeros((len(left), len(old) * (len(old) + 1)))
    spread_pairs[np.arange(len(left)), gather_pairs] = 1.0
    spread_blocks = np.zeros((len(fine), len(old)))
    spread_blocks[np.arange(len(fine)), inner] = 1.0
    # A class without pairs (two different entries of a block of one) keeps a harmless value, its plain
    # average.
    return AxisMap((old,), (new,), pairs @ spread_pairs, blocks @ spread_blocks)


def common_blocks(a: Axis, b: Axis) -> Axis:
    """Return the coarsest partition that refines both."""
    edges = sorted(set(np.cumsum(a).tolist()) | set(np.cumsum(b).tolist()))
    return tuple(int(high - low) for low, high in zip([0, *edges[:-1]], edges, strict=True))


def divisible(axis: Axis, inner: int) -> Axis:
    """Return the axis itself if each block is a multiple of `inner`.

    Else the coarsest partition (one block).
    """
    return axis if all(n % inner == 0 for n in axis) else (size(axis),)


@lru_cache(maxsize=4096)
def split(axis: Axis, inner: int) -> AxisMap:
    """Map an axis of n entries to (n/inner, inner); blocks must be multiples of `inner` (see `divisible`)."""
    outer = tuple(n // inner for n in axis)
    b = len(axis)
    left, right = sides(outer)
    outer_same = np.arange(len(left)) < b
    inner_same = np.array([True, False])
    pairs = _class(axis, left[:, None], right[:, None], outer_same[:, None] & inner_same[None]).ravel()
    return AxisMap((axis,), (outer, (inner,)), pairs, np.arange(b))


@lru_cache(maxsize=4096)
def fuse(outer: Axis, inner: Axis) -> AxisMap:
    """Map two neighbouring axes to their row-major product.

    `differ` becomes the average over the pairs that differ.

    Blocks of the outer axis survive, those of the inner axis are averaged.
    """
    given: Axis = tuple(b * size(inner) for b in outer)
    left, right = sides(outer)
    outer_same = np.arange(len(left)) < len(outer)
    inner_same = np.arange(len(inner) * (len(inner) + 1)) < len(inner)
    same = outer_same[:, None] & inner_same[None]
    first = np.broadcast_to(left[:, None], same.shape)
    second = np.broadcast_to(right[:, None], same.shape)
    member = _class(given, first, second, same).ravel()
    counts = np.outer(pair_counts(outer), pair_counts(inner)).ravel()
    pairs = _averages(counts, member, len(given) * (len(given) + 1))
    block_member = np.repeat(np.arange(len(outer)), len(inner)).astype(np.intp)
    blocks = _averages(np.outer(outer, inner).ravel().astype(np.float64), block_member, len(given))
    return AxisMap((outer, inner), (given,), pairs, blocks)


@lru_cache(maxsize=4096)
def take(axis: Axis, start: int, stop: int, step: int = 1) -> AxisMap:
    """Map an axis to its slice [start:stop:step].

    `recut` it at the slice's edges first to keep blocks exact.
    """
    edges = np.cumsum((0, *axis))
    counts = np.array(
        [
            len(range(start, stop, step)[_first(start, step, lo) : _first(start, step, hi)])
            for lo, hi in itertools.pairwise(edges)
        ]
    )
    kept = np.flatnonzero(counts).astype(np.intp)
    given = tuple(int(counts[k]) for k in kept)
    left, right = sides(given)
    pairs = _class(axis, kept[left], kept[right], np.arange(len(left)) < len(given))
    return AxisMap((axis,), (given,), pairs, kept)


def _first(start: int, step: int, edge: int) -> int:
    """Return how many of start, start + step, … lie below `edge`."""
    return max(0, -(-(edge - start) // step))


@lru_cache(maxsize=4096)
def pick(axis: Axis, index: int) -> AxisMap:
    """Map an axis to nothing: the single entry `index` is selected."""
    block = int(np.searchsorted(np.cumsum(axis), index, side="right"))
    return AxisMap((axis,), (), np.array([block], dtype=np.intp), np.array([block], dtype=np.intp))


@dataclass(frozen=True)
class Move:
    """One step of a regrouping: fuse the axes `position`, `position + 1`, or split one into (…, `inner`)."""

    kind: Literal["fuse", "split", "recut"]
    position: int
    inner: int = 0
    axis: Axis = ()


Moves = tuple[Move, ...]


@lru_cache(maxsize=8192)
def regroup(axes: tuple[Axis, ...], target: tuple[int, ...]) -> tuple[Moves, tuple[tuple[Axis, ...], ...]]:
    """Return the moves that make axes fit the sizes `target`, and the axes that each target entry then has.

    The product of the sizes is the same. Axes finer than a target are kept as they are, so that no
    information is lost; axes that straddle targets and do not divide are fused first, which averages over the
    pairs that differ.
    """
    sizes = [size(axis) for axis in axes]
    moves: list[Move] = []
    current = list(axes)
    groups: list[tuple[Axis, ...]] = []
    position = 0
    for low_axes, low_target in _segments(sizes, list(target)):
        piece, goal = sizes[low_axes[0] : low_axes[1]], target[low_target[0] : low_target[1]]
        if not _chain(_strides(piece) | _strides(goal)):
            for _ in range(len(piece) - 1):
                moves.append(Move("fuse", position))
                current[position : position + 2] = fuse(current[position], current[position + 1]).given
            piece = [size(current[position])]
        wanted = sorted(_strides(piece) | _strides(goal), reverse=True)
        final = [a // b for a, b in itertools.pairwise(wanted)]
        position = _cut(current, position, final, moves)
        groups += _grouped(current[position - len(final) : position], goal)
    return tuple(moves), tuple(groups)


def _cut(current: list[Axis], position: int, final: list[int], moves: list[Move]) -> int:
    for wanted in final:
        axis = current[position]
        if size(axis) != wanted:
            inner = size(axis) // wanted
            cut = divisible(axis, inner)
            if cut != axis:
                moves.append(Move("recut", position, axis=cut))
            moves.append(Move("split", position, inner))
            current[position : position + 1] = split(cut, inner).given
        position += 1
    return position


def _grouped(axes: list[Axis], goal: Sequence[int]) -> list[tuple[Axis, ...]]:
    groups, rest = [], list(axes)
    for wanted in goal:
        group: list[Axis] = []
        while prod(size(a) for a in group) < wanted:
            group.append(rest.pop(0))
        groups.append(tuple(group))
    return groups


def _strides(sizes: Sequence[int]) -> set[int]:
    return {prod(sizes[k:]) for k in range(len(sizes) + 1)}


def _chain(strides: set[int]) -> bool:
    ordered = sorted(strides)
    return all(b % a == 0 for a, b in itertools.pairwise(ordered))


def _segments(a: list[int], b: list[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut two factorisations of one number at the boundaries they share.

    Each segment lists (from, to) of both.
    """
    result: list[tuple[tuple[int, int], tuple[int, int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        i0, j0 = i, j
        left = right = 1
        while True:
            if i < len(a) and (left <= right or j >= len(b)):
                left *= a[i]
                i += 1
            elif j < len(b):
                right *= b[j]
                j += 1
            if left == right and left > 1:
                break
            if i >= len(a) and j >= len(b):
                break
        # entries of size 1 in the target belong to the segment before them
        while j < len(b) and b[j] == 1:
            j += 1
        result.append(((i0, i), (j0, j)))
    return result
