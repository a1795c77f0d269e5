"""The engine: which tasks write a distribution into the part of a tensor that this process holds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.sampling.distributions import Constant, Distribution, Elementwise, Whole
from isometry.sampling.drawing import Draw, words_together, write, write_group
from isometry.sampling.shards import Shard
from isometry.sampling.streams import subkey, torch_generator
from isometry.sampling.tiles import tiles, whole
from isometry.sampling.workers import Task

_LAWS = (Elementwise, Whole)


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
    waiting: dict[tuple[Elementwise, tuple[int, ...], torch.dtype, torch.device], list[Draw]] = {}
    for item in work:
        if not isinstance(item, Draw):
            yield item
            continue
        words = item.tile.words
        most = words_together(item)
        if words >= most:
            yield functools.partial(write, item)
            continue
        kind = item.distribution, item.tile.extent, item.target.dtype, item.target.device
        group = waiting.setdefault(kind, [])
        group.append(item)
        if len(group) * words >= most:
            del waiting[kind]
            yield functools.partial(write_group, group)
    for group in waiting.values():
        yield functools.partial(write_group, group) if len(group) > 1 else functools.partial(write, *group)


def finish(tensors: Iterable[Tensor]) -> None:
    """Tell autograd that tensors were written in place, past its own bookkeeping."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def _elementwise(shard: Shard, distribution: Elementwise, key: bytes) -> Iterable[Draw]:
    found = tiles(shard.shape, shard.runs)
    if isinstance(found, tuple):
        return [Draw(shard.local, tile, distribution, key) for tile in found]
    return (Draw(shard.local, tile, distribution, key) for tile in found)


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
