"""One task of the engine: draw a tile, or a group of them, and copy its pieces to where they belong."""

from __future__ import annotations

import functools
import math
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isometry.sampling import devices
from isometry.sampling.distributions import Elementwise
from isometry.sampling.operations import operations
from isometry.sampling.streams import many_bits, tile_bits
from isometry.sampling.tiles import TILE_ELEMENTS, Tile, everything

# Tiles of fewer words than this go through a transform in groups of about as many as _GROUP.
_SMALL_BELOW = 2**12
_GROUP = 2**17
# A device is given some tiles at once: to start an operation there takes as long as many elements do.
_DEVICE_GROUP = 2**20
# ATen runs an elementwise operation on fewer elements than this on the calling thread; a larger one would
# start a team of threads under every worker.
_SERIAL_BELOW = 2**15
_local = threading.local()


class Draw(NamedTuple):
    """One tile to draw, and the tensor that takes its pieces."""

    target: Tensor
    tile: Tile
    distribution: Elementwise
    key: bytes


def words_together(draw: Draw) -> int:
    """How many words should go through one transform with a tile; no more than its own: it goes alone."""
    if devices.transforms(draw.target, draw.distribution):
        return _DEVICE_GROUP
    return _GROUP if draw.tile.words < _SMALL_BELOW else draw.tile.words


def write(draw: Draw) -> None:
    """Draw a tile whole, and copy its pieces to where they belong."""
    target, tile = draw.target, draw.tile
    if devices.transforms(target, draw.distribution):
        _write_there([draw])
        return
    bits = tile_bits(draw.key, tile.number, tile.words)
    if _is_plain(target) and target.is_contiguous() and target.numel() == tile.words and _is_all(draw):
        draw.distribution.transform(bits, target.numpy().reshape(-1))  # straight into its place
        return
    values = _buffer(tile.words, np.float32, pinned=target.is_cuda)
    draw.distribution.transform(bits, values)
    _keep_inside_(values, draw)
    _place([draw], values[None])


def write_group(group: list[Draw]) -> None:
    """Draw many tiles of one distribution, extent, dtype and device by one transform."""
    if devices.transforms(group[0].target, group[0].distribution):
        _write_there(group)
        return
    bits = many_bits([(draw.key, draw.tile.number) for draw in group], group[0].tile.words)
    values = np.empty(bits.shape, np.float32)
    group[0].distribution.transform(bits, values)
    _keep_inside_(values, group[0])
    _place(group, values)


def _write_there(group: list[Draw]) -> None:
    """Draw the random words here, and transform them on the device of the targets."""
    first = group[0]
    device, words = first.target.device, first.tile.words
    here = _buffer(len(group) * words, np.int32, pinned=first.target.is_cuda).reshape(len(group), words)
    many_bits([(draw.key, draw.tile.number) for draw in group], words, here)
    bits: Any = torch.from_numpy(here).to(device)  # waits, so that `here` can be used again
    values: Any = torch.empty(bits.shape, dtype=torch.float32, device=device)
    first.distribution.transform(bits, values)
    _keep_inside_(values, first)
    _place(group, values)
    devices.wait(device)  # the caller's stream is another one than this thread's


def _is_plain(target: Tensor) -> bool:
    """Whether NumPy can write into a tensor what was drawn."""
    return target.dtype == torch.float32 and target.is_cpu and not target.is_neg()


def _is_all(draw: Draw) -> bool:
    """Whether a tile is all there is to write into a tensor."""
    return draw.target.shape == draw.tile.extent and draw.tile.pieces == everything(draw.tile.extent)


def _keep_inside_(values: Any, draw: Draw) -> None:
    """Clip to what the dtype stored holds within the bounds, so that rounding does not leave them."""
    dtype, bounds = draw.target.dtype, draw.distribution.bounds
    ends = None if bounds is None else _representable(bounds, dtype)
    if ends is not None:
        operations(values).clip(values, np.float32(ends[0]), np.float32(ends[1]))


def _place(group: list[Draw], rows: Any) -> None:
    """Copy the pieces of drawn tiles of one extent, rounded to the dtype stored."""
    tile = group[0].tile
    count = math.prod(tile.extent)
    # Tensors of one shape that are a tile each share that tile.
    alike = len(group) > 1 and all(draw.tile is tile and not draw.target.is_neg() for draw in group)
    if alike and _is_all(group[0]):
        boxes = _as_tensor(rows)[:, :count].reshape(len(group), *tile.extent)
        torch._foreach_copy_([draw.target for draw in group], boxes.unbind())
        return
    for draw, row in zip(group, rows, strict=True):
        box = row[:count].reshape(tile.extent)
        if _is_plain(draw.target):
            array = draw.target.numpy()
            for piece in draw.tile.pieces:
                array[piece.target] = box[piece.source]
        else:
            for piece in draw.tile.pieces:
                _copy(draw.target[piece.target], _as_tensor(box)[piece.source])


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def _copy(target: Tensor, source: Tensor) -> None:
    if target.device.type != "cpu" or target.numel() < _SERIAL_BELOW:
        target.copy_(source)
        return
    dim = max(range(target.ndim), key=lambda d: target.shape[d])
    half = target.shape[dim] // 2
    rest = target.shape[dim] - half
    _copy(target.narrow(dim, 0, half), source.narrow(dim, 0, half))
    _copy(target.narrow(dim, half, rest), source.narrow(dim, half, rest))


def _buffer(size: int, dtype: type[np.generic], *, pinned: bool) -> Any:
    """This thread's own place for words or values; page-locked for copies to a GPU."""
    kind = "pinned" if pinned else "plain"
    found = _local.__dict__.get(kind)
    if found is None or found.size < size:
        room = max(size, TILE_ELEMENTS)
        found = torch.empty(room, dtype=torch.float32, device="cpu", pin_memory=pinned).numpy()
        setattr(_local, kind, found)
    return found[:size].view(dtype)


@functools.lru_cache(maxsize=1024)
def _representable(bounds: tuple[float, float], dtype: torch.dtype) -> tuple[float, float] | None:
    """For dtypes shorter than float32: the smallest and largest number of the dtype within the bounds."""
    if dtype.itemsize >= 4:
        return None
    low, high = torch.tensor(bounds, dtype=torch.float64, device="cpu").to(dtype).double().tolist()
    # One step of the dtype at most separates a bound from its rounding.
    if low < bounds[0]:
        low = _next(bounds[0], dtype, up=True)
    if high > bounds[1]:
        high = _next(bounds[1], dtype, up=False)
    return (low, high) if low <= high else None


def _next(value: float, dtype: torch.dtype, *, up: bool) -> float:
    """The nearest number of the dtype beyond `value`, whose own rounding lies on the other side."""
    info = torch.finfo(dtype)
    step = max(abs(value) * info.eps, info.smallest_normal * info.eps)
    signed = step if up else -step
    candidates = torch.tensor([value + signed * k / 8 for k in range(33)], dtype=torch.float64, device="cpu")
    rounded = candidates.to(dtype).double()
    inside = rounded[rounded >= value] if up else rounded[rounded <= value]
    return float(inside.min() if up else inside.max())
