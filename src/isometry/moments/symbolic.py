"""Known tensors too large to hold: causal masks of long sequences, kept as the code that made them.

A `Lazy` tells its values at chosen indices of each dim. Masks are made by a handful of operations on small
known tensors (comparing positions, `tril`, `where`, broadcasting), which are run on those indices alone; so a
mask costs the same at any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments.axes import Axis
from isometry.moments.concrete import LIMIT, Concrete, met_axes, moments_of
from isometry.moments.record import Dims, Moments

SAMPLES = 32  # entries looked at per block where a table is taken
Grid = tuple[Tensor, ...]  # for each dim, the indices that are asked for
Told = Callable[[Grid], Tensor]


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor whose values are known and told on demand; `at` gives them on a grid of indices."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    at: Told
    _cut: dict[Dims, Moments] = field(default_factory=dict, repr=False)

    @property
    def moments(self) -> Moments:
        """Moments over the entries; see `beside`."""
        return self.beside(alg.plain_dims(self.shape))

    def beside(self, dims: Dims) -> Moments:
        """Return the moments on the axes and blocks that a tensor has which it meets.

        From up to `SAMPLES` entries per block.
        """
        own = met_axes(self.shape, dims)
        if own not in self._cut:
            grid, small = [], []
            for n, axes in zip(self.shape, own, strict=True):
                chosen = [_chosen(axis) for axis in axes]
                index = torch.zeros(1, dtype=torch.long)
                for axis, (at, _) in zip(axes, chosen, strict=True):
                    index = (index[:, None] * ax.size(axis) + at[None]).reshape(-1)
                grid.append(index if n > 1 else torch.zeros(1, dtype=torch.long))
                small.append(tuple(blocks for _, blocks in chosen))
            sampled = moments_of(self.at(tuple(grid)), tuple(small))
            self._cut[own] = Moments(own, sampled.terms, sampled.table, sampled.mean)
        return self._cut[own]


Known = Concrete | Lazy


def _chosen(axis: Axis) -> tuple[Tensor, Axis]:
    """Return evenly spaced indices of an axis, and how many fall into each block."""
    parts, start = [], 0
    for n in axis:
        parts.append(start + torch.linspace(0, n - 1, min(n, SAMPLES)).round().long())
        start += n
    return torch.cat(parts), tuple(len(p) for p in parts)


def shape_of(value: Known) -> tuple[int, ...]:
    """Return the shape of a known tensor."""
    return tuple(value.tensor.shape) if isinstance(value, Concrete) else value.shape


def is_float(value: Known) -> bool:
    """Return whether a known tensor holds floats."""
    return (value.tensor if isinstance(value, Concrete) else value).dtype.is_floating_point


def entries(value: Known, grid: Grid) -> Tensor:
    """Return a known tensor's values on a grid of a shape that it broadcasts to."""
    shape = shape_of(value)
    grid = grid[len(grid) - len(shape) :]
    own = tuple(g if n > 1 else torch.zeros(1, dtype=torch.long) for n, g in zip(shape, grid, strict=True))
    if isinstance(value, Lazy):
        return value.at(own)
    result = value.tensor
    for d, index in enumerate(own):
        result = result.index_select(d, index)
    return result


def pointwise(fn: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Known:
    """Run an entrywise function on known tensors and numbers.

    At once where the result is small, else on demand.
    """
    tensors = [a for a in args if isinstance(a, Concrete | Lazy)]
    shape = np.broadcast_shapes(*[shape_of(a) for a in tensors])
    if prod(shape) <= LIMIT and all(isinstance(a, Concrete) for a in tensors):
        return Concrete(fn(*[a.tensor if isinstance(a, Concrete) else a for a in args], **kwargs))

    def at(grid: Grid) -> Tensor:
        ready = [entries(a, grid) if isinstance(a, Concrete | Lazy) else a for a in args]
        return fn(*ready, **kwargs).expand([len(g) for g in grid])

    corner = tuple(torch.zeros(1, dtype=torch.long) for _ in shape)
    return Lazy(shape, at(corner).dtype, at)


def expanded(value: Known, shape: tuple[int, ...]) -> Known:
    """Return a known tensor broadcast to a shape."""
    if isinstance(value, Concrete):
        return Concrete(value.tensor.expand(shape))
    return Lazy(shape, value.dtype, _broadcast(value, shape))


def evaluate(func: Any, args: Sequence[Any], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Lazy | None:
    """Return an operation on known tensors as a tensor told on demand.

    None for operations that mix entries.
    """
    name = func._schema.name.split("::")[1]
    if name in _LAZY and isinstance(args[0], Concrete | Lazy):
        source = args[0]
        dtype = source.tensor.dtype if isinstance(source, Concrete) else source.dtype
        return Lazy(shape, dtype, _LAZY[name](source, shape, *args[1:]))
    if torch.Tag.pointwise in func.tags or name == "_to_copy":
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        made = pointwise(func, *args, **kwargs)
        return made if isinstance(made, Lazy) else None
    return None


def _broadcast(source: Known, shape: tuple[int, ...], *_: Any) -> Told:
    return lambda grid: entries(source, grid).expand([len(g) for g in grid])


def _unsqueeze(source: Known, shape: tuple[int, ...], dim: int) -> Told:
    dim %= len(shape)
    return lambda grid: entries(source, (*grid[:dim], *grid[dim + 1 :])).unsqueeze(dim)


def _slice(
    source: Known,
    shape: tuple[int, ...],
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Told:
    dim %= len(shape)
    first = slice(start, end, step).indices(shape_of(source)[dim])[0]
    return lambda grid: entries(source, (*grid[:dim], grid[dim] * step + first, *grid[dim + 1 :]))


def _transpose(source: Known, shape: tuple[int, ...], i: int, j: int) -> Told:
    order = list(range(len(shape)))
    order[i], order[j] = order[j], order[i]
    return lambda grid: entries(source, tuple(grid[k] for k in order)).permute(order)


def _triangle(source: Known, diagonal: int, *, lower: bool) -> Told:
    def at(grid: Grid) -> Tensor:
        ahead = grid[-1][None] - grid[-2][:, None]
        values = entries(source, grid)
        kept = ahead <= diagonal if lower else ahead >= diagonal
        return torch.where(kept, values, torch.zeros((), dtype=values.dtype)).expand([len(g) for g in grid])

    return at


_LAZY: dict[str, Callable[..., Told]] = {
    **dict.fromkeys(("expand", "clone", "detach", "alias"), _broadcast),
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "transpose": _transpose,
    "tril": lambda source, _, diagonal=0: _triangle(source, diagonal, lower=True),
    "triu": lambda source, _, diagonal=0: _triangle(source, diagonal, lower=False),
}
