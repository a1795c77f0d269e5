"""The engine: which tasks write a distribution into the part of a tensor that this process holds."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.sampling.distributions import Constant, Distribution, Elementwise, Whole
from isometry.sampling.shards import Shard
from isometry.sampling.streams import many_bits, subkey, tile_bits, torch_generator
from isometry.sampling.tiles import TILE_ELEMENTS, Tile, everything, tiles, whole
from isometry.sampling.transforms import Floats
from isometry.sampling.workers import Task

# Tiles of fewer words than this go through a transform in groups of about as many as _GROUP.
_SMALL_BELOW = 2**12
_GROUP = 2**17
# ATen runs an elementwise operation on fewer elements than this on the calling thread; a larger one would
# start a team of threads under every worker.
_SERIAL_BELOW = 2**15
_LAWS = (Elementwise, Whole)
_local = threading.local()


def check(tensor: Tensor, distribution: Distribution, name: str = "the tensor") -> None:
    """Raise unless `distribution` can be written into `tensor`.

    Raises:
        InvalidTypeError: If the tensor holds integers or booleans, or is sparse or quantised, or is complex
            and the distribution joint; or if the distribution is none, or cannot be hashed.
        InvalidValueError: If several of its elements share one place in memory.
    """
    check_law(distribution, name)
    check_tensor(tensor, distribution, name)


def check_tensor(tensor: Tensor, distribution: Distribution, name: str) -> None:
    """The part of `check` that is about the tensor."""
    if tensor.layout is not torch.strided:
        raise InvalidTypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.is_complex():
        if isinstance(distribution, Whole):
            raise InvalidTypeError(
                f"{name} is complex ({tensor.dtype}), and {type(distribution).__name__} is a law of real "
                "tensors: use an elementwise one such as Normal"
            )
    elif not tensor.is_floating_point():
        raise InvalidTypeError(f"{name} must be a floating-point or complex tensor, got {tensor.dtype}")
    if not tensor.is_contiguous() and _overlaps(tensor):
        raise InvalidValueError(
            f"{name} is expanded or overlaps itself: with shape {tuple(tensor.shape)} and strides "
            f"{tensor.stride()} several elements share one place in memory; pass a clone"
        )


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements share one place in memory (exact)."""
    steps = sorted(
        (stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1
    )
    reach, ordered = 0, True
    for stride, size in steps:
        ordered = ordered and stride > reach
        reach += stride * (size - 1)
    if ordered:
        return False
    if steps[0][0] == 0 or reach < tensor.numel() - 1:
        return True
    # Interleaved, which is rare: counting tells.
    places = np.zeros(1, np.int64)
    for stride, size in steps:
        places = np.add.outer(places, stride * np.arange(size)).reshape(-1)
    return np.unique(places).size < tensor.numel()


def check_law(distribution: Distribution, name: str) -> None:
    """Raise InvalidTypeError unless `distribution` is one, and can be hashed."""
    if not isinstance(distribution, _LAWS):
        raise InvalidTypeError(
            f"{name} needs a distribution such as isometry.sampling.Normal(std=0.02), got {distribution!r}"
        )
    try:
        hash(distribution)
    except TypeError:
        raise InvalidTypeError(
            f"{type(distribution).__name__} cannot be hashed: make it a frozen dataclass"
        ) from None


class Draw(NamedTuple):
    """One tile to draw, and the tensor that takes its pieces."""

    target: Tensor
    tile: Tile
    distribution: Elementwise
    key: bytes


def draws(shard: Shard, distribution: Distribution, key: bytes) -> Iterable[Draw | Task]:
    """Describe what writes the distribution into the local tensor of a shard.

    Args:
        shard: Where to write.
        distribution: What to draw.
        key: Key of the parameter's stream.

    Returns:
        Tiles to draw for an elementwise distribution, otherwise one task that does it all. They are
        independent of each other and may be done on any threads in any order.
    """
    local = shard.local
    if isinstance(distribution, Elementwise):
        if isinstance(distribution, Constant):
            return (functools.partial(_write_constant, local, distribution.value),)
        if not local.is_complex():
            return _elementwise(shard, distribution, key)
        part = distribution.component()
        return itertools.chain(
            _elementwise(shard._replace(local=local.real), part, subkey(key, "real")),
            _elementwise(shard._replace(local=local.imag), part, subkey(key, "imaginary")),
        )
    assert isinstance(distribution, Whole)
    return (functools.partial(_write_whole, shard, distribution, key),)


def tasks(work: Iterable[Draw | Task]) -> Iterator[Task]:
    """Turn draws into tasks: a tile each, or many small tiles of one distribution and extent together.

    A transform costs some 30 calls of NumPy whatever its size, so 10,000 tiny parameters go through it in
    groups; as each row is a stream of its own, the values are those that each would get alone.
    """
    waiting: dict[tuple[Elementwise, tuple[int, ...], torch.dtype], list[Draw]] = {}
    for item in work:
        if not isinstance(item, Draw):
            yield item
            continue
        words = item.tile.words
        if words >= _SMALL_BELOW:
            yield functools.partial(_write, item)
            continue
        kind = item.distribution, item.tile.extent, item.target.dtype
        group = waiting.setdefault(kind, [])
        group.append(item)
        if len(group) * words >= _GROUP:
            del waiting[kind]
            yield functools.partial(_write_group, group)
    for group in waiting.values():
        yield functools.partial(_write_group, group) if len(group) > 1 else functools.partial(_write, *group)


def finish(tensors: Iterable[Tensor]) -> None:
    """Tell autograd that tensors were written in place, past its own bookkeeping."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def _elementwise(shard: Shard, distribution: Elementwise, key: bytes) -> Iterable[Draw]:
    found = tiles(shard.shape, shard.runs)
    if isinstance(found, tuple):
        return [Draw(shard.local, tile, distribution, key) for tile in found]
    return (Draw(shard.local, tile, distribution, key) for tile in found)


def _write(draw: Draw) -> None:
    """Draw a tile whole, and copy its pieces to where they belong."""
    target, tile = draw.target, draw.tile
    bits = tile_bits(draw.key, tile.number, tile.words)
    if _is_plain(target) and target.is_contiguous() and target.numel() == tile.words and _is_all(draw):
        draw.distribution.transform(bits, target.numpy().reshape(-1))  # straight into its place
        return
    values = _buffer(draw)[: tile.words]
    draw.distribution.transform(bits, values)
    _keep_inside_(values, draw)
    _place(draw, values)


def _write_group(group: list[Draw]) -> None:
    """Draw many small tiles of one distribution, extent and dtype by one transform."""
    tile = group[0].tile
    bits = many_bits([(draw.key, draw.tile.number) for draw in group], tile.words)
    values = np.empty(bits.shape, np.float32)
    group[0].distribution.transform(bits, values)
    _keep_inside_(values, group[0])
    # Tensors of one shape that are a tile each share that tile.
    if _is_all(group[0]) and all(draw.tile is tile and not draw.target.is_neg() for draw in group):
        boxes = torch.from_numpy(values)[:, : math.prod(tile.extent)].view(len(group), *tile.extent)
        torch._foreach_copy_([draw.target for draw in group], boxes.unbind())
        return
    for draw, row in zip(group, values, strict=True):
        _place(draw, row)


def _is_plain(target: Tensor) -> bool:
    """Whether NumPy can write into a tensor what was drawn."""
    return target.dtype == torch.float32 and target.is_cpu and not target.is_neg()


def _is_all(draw: Draw) -> bool:
    """Whether a tile is all there is to write into a tensor."""
    return draw.target.shape == draw.tile.extent and draw.tile.pieces == everything(draw.tile.extent)


def _keep_inside_(values: Floats, draw: Draw) -> None:
    """Clip to what the dtype stored holds within the bounds, so that rounding does not leave them."""
    dtype, bounds = draw.target.dtype, draw.distribution.bounds
    ends = None if bounds is None else _representable(bounds, dtype)
    if ends is not None:
        np.clip(values, np.float32(ends[0]), np.float32(ends[1]), out=values)


def _place(draw: Draw, values: Floats) -> None:
    """Copy the pieces of a drawn tile, rounded to the dtype stored."""
    target, tile = draw.target, draw.tile
    box = values[: math.prod(tile.extent)].reshape(tile.extent)
    if _is_plain(target):
        array = target.numpy()
        for piece in tile.pieces:
            array[piece.target] = box[piece.source]
        return
    for piece in tile.pieces:
        _copy(target[piece.target], torch.from_numpy(box)[piece.source])


def _copy(target: Tensor, source: Tensor) -> None:
    if target.device.type != "cpu" or target.numel() < _SERIAL_BELOW:
        target.copy_(source)
        return
    dim = max(range(target.ndim), key=lambda d: target.shape[d])
    half = target.shape[dim] // 2
    rest = target.shape[dim] - half
    _copy(target.narrow(dim, 0, half), source.narrow(dim, 0, half))
    _copy(target.narrow(dim, half, rest), source.narrow(dim, half, rest))


def _buffer(draw: Draw) -> Floats:
    """This thread's own place for one tile; page-locked for copies to a GPU."""
    pinned = draw.target.is_cuda
    kind = "pinned" if pinned else "plain"
    found: Floats | None = _local.__dict__.get(kind)
    if found is None:
        found = torch.empty(TILE_ELEMENTS, dtype=torch.float32, device="cpu", pin_memory=pinned).numpy()
        setattr(_local, kind, found)
    return found


def _write_constant(local: Tensor, value: float) -> None:
    with torch.no_grad():
        local.fill_(value)


def _write_whole(shard: Shard, distribution: Whole, key: bytes) -> None:
    """Draw the whole tensor and keep the shard's part."""
    if not shard.local.numel() or not all(shard.runs):
        return
    drawn = distribution.draw(shard.shape, torch_generator(key))
    expected = (torch.float32, torch.float64)
    if tuple(drawn.shape) != shard.shape or drawn.dtype not in expected or drawn.device.type != "cpu":
        raise ModelError(
            f"{type(distribution).__name__}.draw must return a float32 or float64 CPU tensor of shape "
            f"{shard.shape}, got {drawn.dtype} {tuple(drawn.shape)} on {drawn.device}"
        )
    with torch.no_grad():
        if shard.runs == whole(shard.shape):
            shard.local.copy_(drawn)
            return
        for dim, runs in enumerate(shard.runs):
            index = torch.cat([torch.arange(r.start, r.start + r.length, device="cpu") for r in runs])
            if index.numel() < drawn.shape[dim]:
                drawn = drawn.index_select(dim, index)
        shard.local.copy_(drawn)


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
