"""Fill one tensor: from a generator (the habit of torch.nn.init) or keyed by seed and name."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from isometry.errors import InvalidTypeError
from isometry.sampling.distributions import Distribution, Elementwise, Whole


@torch.no_grad()
def fill_(tensor: Tensor, distribution: Distribution, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor in place from a generator, or from torch's global one."""
    _check(tensor)
    if tensor.is_meta:
        return tensor
    seed = torch.randint(0, 2**62, (), generator=generator, dtype=torch.int64, device="cpu")
    return _fill(tensor, distribution, torch.Generator().manual_seed(int(seed)))


@torch.no_grad()
def fill_keyed_(tensor: Tensor, distribution: Distribution, *, seed: int, name: str) -> Tensor:
    """Fill a tensor in place with values that depend on seed, name, index and distribution alone."""
    _check(tensor)
    if tensor.is_meta:
        return tensor
    key = hashlib.blake2b(f"isometry/1/{seed}/{name}".encode(), digest_size=8).digest()
    return _fill(tensor, distribution, torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1))


def _fill(tensor: Tensor, distribution: Distribution, generator: torch.Generator) -> Tensor:
    if isinstance(distribution, Whole):
        return tensor.copy_(distribution.draw(tuple(tensor.shape), generator))
    assert isinstance(distribution, Elementwise)
    buffer = torch.empty(tensor.shape, dtype=torch.float32)
    distribution.draw_(buffer, generator)
    return tensor.copy_(buffer)


def _check(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise InvalidTypeError(f"a floating-point tensor is needed, got {tensor.dtype}")
