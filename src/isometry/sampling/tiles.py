"""The fixed cutting of a logical tensor into tiles, and the part of each that a shard needs.

Tiles are boxes, not stretches of memory, so that a shard along any dimension meets few tiles that it does not
need whole. The cutting depends on the logical shape alone. A tile is always drawn whole, in its own
row-major order, whatever part of it is kept.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

#: Elements of a full tile: 1 MiB of float32. Each thread draws a tile by some thirty calls of NumPy, and the
#: threads hand Python's lock to each other between two calls: in smaller ones that costs what a second thread
#: gains, larger ones leave the caches and make shards draw more that they do not keep.
TILE_ELEMENTS = 2**18
_SHORT = 16


class Run(NamedTuple):
    """Consecutive indices of one dimension: from `start` in the logical tensor, `local` in the shard."""

    start: int
    local: int
    length: int


class Piece(NamedTuple):
    """A box of a tile (`source`) and where it goes in the shard (`target`)."""

    source: tuple[slice, ...]
    target: tuple[slice, ...]


class Tile(NamedTuple):
    """Number of a tile in the grid, its extent, random words, and the pieces of it that a shard holds."""

    number: int
    extent: tuple[int, ...]
    words: int
    pieces: tuple[Piece, ...]


@functools.lru_cache(maxsize=4096)
def tile_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of a full tile of a logical tensor, 2¹⁸ elements at most.

    Short trailing dimensions (a kernel's 3×3) stay whole; then the two longest dimensions grow in turn, the
    shorter side first; then the others, the last first. So a matrix gets squarish tiles, and of stacked
    matrices (experts) none shares a tile with the next before it fits in whole.

    Args:
        shape: Logical shape, without zeros.

    Returns:
        One side per dimension, each at most the dimension.

    Example:
        >>> tile_shape((4096, 11008)), tile_shape((10**9,)), tile_shape((128, 4096, 2048))
        ((512, 512), (262144,), (1, 512, 512))
    """
    sides = [1] * len(shape)
    rest = list(range(len(shape)))
    while rest and shape[rest[-1]] <= _SHORT:
        d = rest.pop()
        sides[d] = shape[d]
    longest = sorted(rest, key=lambda d: (shape[d], d))[-2:]
    for group in [longest, *([d] for d in reversed(rest) if d not in longest)]:
        if not _grow(sides, shape, group):
            break
    return tuple(sides)


def _grow(sides: list[int], shape: tuple[int, ...], dims: Sequence[int]) -> bool:
    """Double the sides of `dims` in turn until they are whole (True) or the tile is full (False)."""
    while growable := [d for d in dims if sides[d] < shape[d]]:
        # Of equal sides the last: long rows copy faster than many.
        d = min(growable, key=lambda i: (sides[i], -i))
        side = min(2 * sides[d], shape[d])
        if math.prod(sides) // sides[d] * side > TILE_ELEMENTS:
            return False
        sides[d] = side
    return True


@functools.lru_cache(maxsize=4096)
def whole(shape: tuple[int, ...]) -> tuple[tuple[Run, ...], ...]:
    """The runs, per dimension, of a tensor that is no shard."""
    return tuple((Run(0, 0, size),) for size in shape)


def tiles(shape: tuple[int, ...], runs: tuple[tuple[Run, ...], ...]) -> Iterable[Tile]:
    """The tiles of a logical tensor that meet a region.

    Args:
        shape: Logical shape.
        runs: The region: the product over the dimensions of these runs of indices.

    Returns:
        Each tile that holds at least one element of the region, in row-major order of the grid.
    """
    single = _single(shape)
    return single if single is not None and runs == whole(shape) else _grid(shape, runs)


@functools.lru_cache(maxsize=4096)
def _single(shape: tuple[int, ...]) -> tuple[Tile, ...] | None:
    """The only tile of a tensor that is one; none of an empty one."""
    if 0 in shape:
        return ()
    if tile_shape(shape) != shape:
        return None
    return (Tile(0, shape, _words(shape), everything(shape)),)


@functools.lru_cache(maxsize=4096)
def everything(extent: tuple[int, ...]) -> tuple[Piece, ...]:
    """The pieces of a tile that is all a tensor has."""
    box = tuple(slice(0, size) for size in extent)
    return (Piece(box, box),)


def _grid(shape: tuple[int, ...], runs: tuple[tuple[Run, ...], ...]) -> Iterator[Tile]:
    if 0 in shape or not all(runs):
        return
    cuts, step = [], 1
    for size, side, dim in zip(reversed(shape), reversed(tile_shape(shape)), reversed(runs), strict=True):
        cuts.append([(step * number, extent, found) for number, extent, found in _cuts(size, side, dim)])
        step *= -(-size // side)
    # Python that runs between two tiles holds up the other threads, so there is little of it.
    for row in itertools.product(*reversed(cuts)):
        numbers, extent, found = zip(*row, strict=True)
        pieces = tuple(Piece(*zip(*box, strict=True)) for box in itertools.product(*found))
        yield Tile(sum(numbers), extent, _words(extent), pieces)


def _words(extent: tuple[int, ...]) -> int:
    """One for each element, and one more to make them even."""
    count = math.prod(extent)
    return count + count % 2


_Cut = tuple[int, int, list[tuple[slice, slice]]]


def _cuts(size: int, side: int, runs: tuple[Run, ...]) -> list[_Cut]:
    """Along one dimension: number, extent and (source, target) slices of intervals that meet the runs."""
    found: dict[int, list[tuple[slice, slice]]] = {}
    for start, local, length in runs:
        for number in range(start // side, -(-(start + length) // side)):
            low, high = max(start, number * side), min(start + length, (number + 1) * side)
            source = slice(low - number * side, high - number * side)
            found.setdefault(number, []).append((source, slice(low - start + local, high - start + local)))
    return [(number, min(side, size - number * side), found[number]) for number in sorted(found)]
