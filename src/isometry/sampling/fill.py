"""Fill one tensor in place: from a generator (the habit of torch.nn.init), or keyed by seed and name."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.sampling import engine, workers
from isometry.sampling.distributions import Distribution
from isometry.sampling.shards import shard_of
from isometry.sampling.streams import generator_key, stream_key


def fill_(tensor: Tensor, distribution: Distribution, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor in place with draws that a torch generator decides.

    Eight numbers are taken from the generator whatever the tensor's size; they are the key of the values, so
    the same generator state gives the same values on any number of threads. On a DTensor every process must
    pass a generator in the same state.

    Args:
        tensor: Floating-point or complex tensor of any shape, strides, device and dtype, also a DTensor.
            Values are drawn in float32 and rounded (or widened) to its dtype. A meta tensor is left as it is.
        distribution: What to draw.
        generator: Source of the key; torch's global generator when None.

    Returns:
        The tensor itself.

    Raises:
        InvalidTypeError: If the tensor is of integers, sparse, or complex with a joint distribution.
        InvalidValueError: If the tensor is expanded, or a DTensor with partial sums.

    Example:
        >>> from isometry.sampling import Normal, fill_
        >>> w = fill_(torch.empty(3, 2), Normal(0.02), generator=torch.Generator().manual_seed(0))
        >>> w.shape, bool((w.abs() < 0.2).all())
        (torch.Size([3, 2]), True)
    """
    engine.check(tensor, distribution)
    if tensor.is_meta:
        return tensor
    return _fill(tensor, distribution, generator_key(generator))


def fill_keyed_(tensor: Tensor, distribution: Distribution, *, seed: int, name: str) -> Tensor:
    """Fill a tensor in place with values that seed, name, index and distribution alone decide (exact).

    Args:
        tensor: As in `fill_`.
        distribution: What to draw.
        seed: Any integer.
        name: Any text; a parameter's canonical name in a model.

    Returns:
        The tensor itself. torch's random state is neither read nor moved.

    Raises:
        InvalidTypeError: As in `fill_`, or if `seed` is no integer.
        InvalidValueError: As in `fill_`.

    Example:
        >>> from isometry.sampling import Normal, fill_keyed_
        >>> a = fill_keyed_(torch.empty(3, 2), Normal(1.0), seed=0, name="layer.weight")
        >>> b = fill_keyed_(torch.empty(2, 3).T, Normal(1.0), seed=0, name="layer.weight")
        >>> torch.equal(a, b)
        True
    """
    engine.check(tensor, distribution)
    key = stream_key(seed, name)
    if tensor.is_meta:
        return tensor
    return _fill(tensor, distribution, key)


def _fill(tensor: Tensor, distribution: Distribution, key: bytes) -> Tensor:
    shard = shard_of(tensor)
    workers.run(engine.tasks(engine.draws(shard, distribution, key)))
    engine.finish([shard.local])
    return tensor
