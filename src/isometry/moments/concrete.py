"""Real values that ride along: integers, masks, positions, rotary tables, small buffers.

A `Concrete` holds the true values of a tensor on the CPU. Operations whose inputs are all concrete are run on
them, so that
data-dependent Python gets true answers. Where a concrete tensor meets a random one, its exact table of second
moments is
taken over its entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import latents
from isometry.moments.axes import Array
from isometry.moments.record import Moments

LIMIT = 1 << 22  # entries; larger tensors are described by moments alone


@dataclass(frozen=True, eq=False)
class Concrete:
    """A tensor whose values are known."""

    tensor: Tensor

    @cached_property
    def moments(self) -> Moments:
        """The exact moments over the tensor's entries, as a function of a latent of its own."""
        return moments_of(self.tensor)


def moments_of(tensor: Tensor) -> Moments:
    """Return the moments of a tensor's entries, one block per dim; broadcast dims (stride 0) stay constant.

    Exact in second moments over the entries. The marginal is the entries' quantile function.
    """
    shape = tuple(tensor.shape)
    squeezed = tensor.detach()
    for d, (n, step) in enumerate(zip(shape, tensor.stride(), strict=True)):
        if n > 1 and step == 0:
            squeezed = squeezed.narrow(d, 0, 1)
    values = squeezed.to(torch.float64).numpy()
    dims = alg.plain_dims(shape)
    kept = [d for d, n in enumerate(shape) if n != 1]
    array = values.reshape([values.shape[d] for d in kept])
    if array.size == 0 or float(array.min()) == float(array.max()):
        return alg.constant(shape, float(array.flat[0]) if array.size else 0.0)
    table = pair_means(array)
    mean = np.full([1] * len(kept), float(array.mean()))
    flat = np.sort(array.ravel())
    if flat.size > 4096:
        flat = flat[np.linspace(0, flat.size - 1, 4096).astype(int)]
    form = latents.quantiles(flat, np.full(flat.size, 1.0 / flat.size))
    return alg.with_marginal(dims, table, mean, form.reshape([1] * len(kept) + [-1]))


def pair_means(array: Array) -> Array:
    """Return the mean of x·x′ over the entry pairs of every pair class, one block per axis.

    With S_U = Σ (Σ over the axes U)², the pairs that differ on an axis are those of S with it less those
    without.
    """
    sums: Array = _subset_squares(array, 0)
    for position, n in enumerate(array.shape):
        same, any_ = sums.take(0, axis=position), sums.take(1, axis=position)
        if n == 1:
            sums = np.expand_dims(same, position)
            continue
        sums = np.stack([same / n, (any_ - same) / (n * (n - 1))], axis=position)
    return sums


def _subset_squares(array: Array, axis: int) -> Array:
    if axis == array.ndim:
        return np.asarray((array**2).sum())
    kept = _subset_squares(array, axis + 1)
    summed = _subset_squares(array.sum(axis, keepdims=True), axis + 1)
    return np.stack([kept, summed], axis=0)


def equal_share(ids: Tensor) -> Array:
    """Return for every pair class of an index tensor's dims (those of size > 1) the share of pairs with equal ids."""
    shape = [n for n in ids.shape if n != 1]
    flat = ids.reshape(-1).numpy()
    _, code = np.unique(flat, return_inverse=True)
    code = code.reshape(shape) if shape else code.reshape(())
    count = int(code.max()) + 1 if code.size else 1
    sums = np.zeros([2] * len(shape))
    for subset in np.ndindex(*sums.shape):
        kept = tuple(d for d, s in enumerate(subset) if s == 0)
        group = np.zeros(code.shape, dtype=np.int64)
        for d in kept:
            index = np.arange(shape[d]).reshape([-1 if k == d else 1 for k in range(len(shape))])
            group = group * shape[d] + index
        _, found = np.unique((group * count + code).ravel(), return_counts=True)
        sums[subset] = float((found.astype(np.float64) ** 2).sum())
    for position, n in enumerate(shape):
        same, any_ = sums.take(0, axis=position), sums.take(1, axis=position)
        sums = np.stack([same / n, (any_ - same) / (n * (n - 1))], axis=position)
    return sums
