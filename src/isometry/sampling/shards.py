"""Which part of a logical tensor this process holds: plain tensors and DTensors of every placement."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.sampling.tiles import Run, whole


class Shard(NamedTuple):
    """The local tensor, the logical shape, and per dimension the runs of logical indices it holds."""

    local: Tensor
    shape: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...]


def shard_of(tensor: Tensor) -> Shard:
    """Return the part of `tensor` that this process holds, without any communication.

    Args:
        tensor: A plain tensor or a DTensor of any mesh and placements (`Shard`, `_StridedShard`,
            `Replicate`).

    Returns:
        The local tensor (detached, sharing memory), the logical shape and the index runs.

    Raises:
        InvalidValueError: If a placement is `Partial`: its values are sums over processes, not a shard.
    """
    tensor = tensor.detach()
    if not is_dtensor(tensor):
        plain = tuple(tensor.shape)
        return Shard(tensor, plain, whole(plain))
    dtensor: Any = tensor
    shape = tuple(dtensor.shape)
    mesh = dtensor.device_mesh
    coordinate = mesh.get_coordinate()
    local: Tensor = dtensor.to_local()
    if coordinate is None:
        return Shard(local, shape, tuple(() for _ in shape))
    indices = [torch.arange(size, device="cpu") for size in shape]
    for mesh_dim, placement in enumerate(dtensor.placements):
        if placement.is_replicate():
            continue
        if placement.is_partial():
            raise InvalidValueError(
                f"a DTensor with placements {tuple(dtensor.placements)} has no shard of its own to fill: "
                "redistribute it to Shard or Replicate first"
            )
        dim = placement.dim % len(shape)
        indices[dim] = _split(placement, indices[dim], mesh.size(mesh_dim), coordinate[mesh_dim])
    return Shard(local, shape, tuple(_runs(index) for index in indices))


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a `torch.distributed` DTensor."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _split(placement: Any, index: Tensor, count: int, number: int) -> Tensor:
    """The logical indices that one process keeps of `index`, as DTensor itself would cut them.

    `_StridedShard` (tensor parallel below FSDP2) first cuts into `split_factor` parts, then each of them into
    `count`, and process `number` keeps its part of every one.
    """
    outer = getattr(placement, "split_factor", 1)
    kept = [_chunk(part, count, number) for part in (_chunk(index, outer, i) for i in range(outer))]
    return torch.cat(kept)


def _chunk(index: Tensor, count: int, number: int) -> Tensor:
    # As torch.chunk: ceil(n/count) each, the last ones shorter or empty.
    size = -(-index.numel() // count)
    return index[number * size : (number + 1) * size]


def _runs(index: Tensor) -> tuple[Run, ...]:
    if not index.numel():
        return ()
    breaks = (torch.nonzero(index.diff() != 1).flatten() + 1).tolist()
    edges = [0, *breaks, index.numel()]
    return tuple(Run(int(index[a]), a, b - a) for a, b in itertools.pairwise(edges))
