"""Real values that ride along: integers, masks, positions, rotary tables, small buffers.

A `Concrete` holds the true values of a tensor on the CPU. Operations whose inputs are all concrete are run on
them, so that data-dependent Python gets true answers. Where a concrete tensor meets a random one, its exact
table of second moments is taken over its entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from string import ascii_lowercase

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents, uneven
from isometry.moments.axes import Array, Axis, Index
from isometry.moments.marks import marked
from isometry.moments.record import Dims, Moments, Term, diagonal, first, second

LIMIT = 1 << 22  # entries; larger tensors are described by moments alone
KNOTS = 12  # known entries along an axis of their own that are told apart
MASK = 1 << 16  # entries of a tensor with two values that is looked for among others


@dataclass(frozen=True, eq=False)
class Concrete:
    """A tensor whose values are known.

    `view_of` is the tensor that it has all entries of, in other places, and the rule that puts them there:
    both are functions of one latent, as long as the rule needs no other axes.
    """

    tensor: Tensor
    view_of: tuple[Concrete, Callable[[Moments], Moments]] | None = None
    _cut: dict[Dims, Moments] = field(default_factory=dict, repr=False)

    @cached_property
    def moments(self) -> Moments:
        """The exact moments over the tensor's entries, of a latent of its own or of what it is a view of."""
        if self.view_of is not None:
            whole, rule = self.view_of
            made = rule(whole.moments)
            if sorted(made.axes) == sorted(whole.moments.axes):
                return made
        return self._on(alg.plain_dims(self.tensor.shape))

    def beside(self, dims: Dims) -> Moments:
        """Return the exact moments on the axes and blocks that a tensor has which it meets elementwise.

        Of few entries along an axis that the other lacks, each is a block of its own: `x[:, None] - knots`
        is then exact, and so is what is made of it with other knots.
        """
        own = met_axes(tuple(self.tensor.shape), dims)
        lacking = [d for d, axes in enumerate(own) if axes and self._lacks(dims, d)]
        if len(lacking) == 1 and self.tensor.is_floating_point():
            (d,) = lacking
            own = (*own[:d], ((1,) * self.tensor.shape[d],), *own[d + 1 :])
        return self.moments if own == self.moments.dims else self._on(own)

    def _lacks(self, dims: Dims, d: int) -> bool:
        """Return whether a tensor with these dims has none, or one of size 1, where this has few entries."""
        met = d - len(self.tensor.shape) + len(dims)
        one = self.tensor.narrow(d, 0, 1)
        return (
            (met < 0 or not dims[met]) and self.tensor.shape[d] <= KNOTS and bool((self.tensor != one).any())
        )

    def _on(self, own: Dims) -> Moments:
        if own not in self._cut:
            made = _of_two_values(self.tensor, own)
            self._cut[own] = moments_of(self.tensor, own) if made is None else made
        return self._cut[own]


def met_axes(shape: tuple[int, ...], dims: Dims) -> Dims:
    """Return the axes of a tensor that meets one with `dims` elementwise, aligned from the last dim on."""
    met = ((),) * (len(shape) - len(dims)) + dims[max(len(dims) - len(shape), 0) :]
    fits = [math.prod(ax.size(axis) for axis in d) == n for n, d in zip(shape, met, strict=True)]
    given = zip(shape, met, fits, strict=True)
    return tuple(() if n == 1 else d if d and fit else ((n,),) for n, d, fit in given)


def moments_of(tensor: Tensor, dims: Dims | None = None) -> Moments:
    """Return the moments of a tensor's entries, on one axis of one block per dim or on the axes given.

    Broadcast dims (stride 0) stay constant. Exact in second moments over the entry pairs of each class. The
    marginal is the entries' quantile function, block by block.
    """
    shape = tuple(tensor.shape)
    dims = alg.plain_dims(shape) if dims is None else dims
    if tensor.is_complex():  # E[x x′*]; see rules.spectral
        real, imaginary = moments_of(tensor.real, dims), moments_of(tensor.imag, dims)
        return alg.gaussian(dims, real.table + imaginary.table, np.zeros_like(real.mean))
    squeezed = tensor.detach()
    kept: list[tuple[Axis, bool]] = []
    for d, (n, step) in enumerate(zip(shape, tensor.stride(), strict=True)):
        constant = n > 1 and step == 0
        if constant:
            squeezed = squeezed.narrow(d, 0, 1)
        kept += [(axis, constant) for axis in dims[d]]
    values = squeezed.to(torch.float64).numpy()
    array = values.reshape([1 if constant else ax.size(axis) for axis, constant in kept])
    if array.size == 0 or float(array.min()) == float(array.max()):
        value = float(array.flat[0]) if array.size else 0.0
        return alg.assemble(dims, (Term(np.full([1] * len(kept), value)),))
    axes = tuple((1,) if constant else axis for axis, constant in kept)
    table, mean = pair_means(array, axes), means_of(array, axes)
    square = diagonal(table, axes)
    if float((square - mean**2).max()) <= 1e-12 * float(square.max()) and not any(c for _, c in kept):
        return alg.assemble(dims, (Term(mean),))  # each block is one number
    form = forms_of(array, axes)
    for position, (_, constant) in enumerate(kept):
        if constant:
            table = table.take([0], axis=position)
    return marked(alg.with_marginal(dims, table, mean, form), uneven.of_known(array))


def _of_two_values(tensor: Tensor, dims: Dims) -> Moments | None:
    """Return the moments of a tensor with two values, None for others.

    It is a + (b − a)·m with a mask m that is 0 at the first entry. All tensors with one mask are functions of
    one latent, so that m·x + (1 − m)·y is x in some places and y in the others.
    """
    if not 1 < tensor.numel() <= MASK or tensor.is_complex() or 0 in tensor.stride():
        return None
    low, high = (float(x) for x in tensor.aminmax())
    start = float(tensor.flatten()[0])
    mask = tensor != start
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    end = low if start == high else high
    if start not in (low, high) or bool((tensor[mask] != end).any()):
        return None
    base = _mask(mask.numpy().tobytes(), tuple(mask.shape), dims)
    (term,) = base.terms
    if len(term.factors) != 1 or not (term.coef == 1.0).all():
        return None
    (factor,) = term.factors
    axes, step = base.axes, end - start
    cross = start * step * (first(base.mean, axes) + second(base.mean, axes))
    table = step**2 * base.table + cross + start**2
    made = replace(factor, values=start + step * factor.values, table=table)
    return Moments(base.dims, (Term(term.coef, (made,)),), table, start + step * base.mean)


@lru_cache(maxsize=64)
def _mask(entries: bytes, shape: tuple[int, ...], dims: Dims) -> Moments:
    values = np.frombuffer(entries, dtype=np.bool_).reshape(shape)
    return moments_of(torch.from_numpy(values.astype(np.float64)), dims)


def _starts(axis: Axis) -> Index:
    return np.cumsum([0, *axis[:-1]])


def _block_counts(axes: tuple[Axis, ...]) -> Array:
    counts: Array = np.ones([1] * len(axes))
    for position, axis in enumerate(axes):
        shape = [-1 if k == position else 1 for k in range(len(axes))]
        counts = counts * np.asarray(axis, dtype=np.float64).reshape(shape)
    return counts


def means_of(array: Array, axes: tuple[Axis, ...]) -> Array:
    """Return the entries' mean in each block."""
    mean = array
    for position, axis in enumerate(axes):
        mean = np.add.reduceat(mean, _starts(axis), axis=position)
    return np.asarray(mean / _block_counts(axes))


def forms_of(array: Array, axes: tuple[Axis, ...]) -> Array:
    """Return the entries' quantile function in each block, whose mean is exactly theirs.

    So zeros, as a relu leaves, stay zeros when the function is stretched to the entries' moments.
    """
    rows = []
    for block in np.ndindex(*[len(a) for a in axes]):
        part = array[
            tuple(slice(_starts(a)[k], _starts(a)[k] + a[k]) for a, k in zip(axes, block, strict=True))
        ]
        rows.append(latents.even_quantiles(part.ravel()))
    return np.stack(rows).reshape((*[len(a) for a in axes], -1))


def pair_means(array: Array, axes: tuple[Axis, ...] | None = None) -> Array:
    """Return the mean of x·x′ over the entry pairs of every pair class.

    The sums are taken over pairs that agree on some axes and are free on the others; the pairs that differ on
    an axis are the free ones less those that agree.

    Args:
        array: The entries, one array dimension per axis.
        axes: The axes' blocks; by default one block each.
    """
    axes = tuple((n,) for n in array.shape) if axes is None else axes
    parts: dict[tuple[bool, ...], Array] = {}
    for free in itertools.product((False, True), repeat=array.ndim):
        parts[free] = _pair_sums(array, axes, free)
    for position, axis in enumerate(axes):
        b = len(axis)
        counts = np.maximum(ax.pair_counts(axis), 1.0)
        joined: dict[tuple[bool, ...], Array] = {}
        for free in itertools.product((False, True), repeat=array.ndim - position - 1):
            same, any_ = parts[(False, *free)], np.array(parts[(True, *free)])
            for k in range(b):
                own = same.take(k, axis=position)
                np.moveaxis(any_, position, 0)[b * k + k] -= own
            whole = np.concatenate([same, any_], axis=position)
            shape = [-1 if k == position else 1 for k in range(whole.ndim)]
            joined[free] = whole / counts.reshape(shape)
        parts = joined
    return parts[()]


def _pair_sums(array: Array, axes: tuple[Axis, ...], free: tuple[bool, ...]) -> Array:
    """Return Σ x x′ over pairs.

    Free axes by (block, block) pairs, the others by the block of the common entry.
    """
    rank = array.ndim
    for position, axis in enumerate(axes):
        if free[position]:
            array = np.add.reduceat(array, _starts(axis), axis=position)
    left, beyond = ascii_lowercase[:rank], ascii_lowercase[rank : 2 * rank]
    right = "".join(b if f else a for a, b, f in zip(left, beyond, free, strict=True))
    out = "".join(a + b if f else a for a, b, f in zip(left, beyond, free, strict=True))
    product = np.einsum(f"{left},{right}->{out}", array, array)
    at = 0
    shape = []
    for position, axis in enumerate(axes):
        if free[position]:
            shape.append(len(axis) ** 2)
            at += 2
        else:
            product = np.add.reduceat(product, _starts(axis), axis=at)
            shape.append(len(axis))
            at += 1
    return np.asarray(product.reshape(shape))


def equal_share(ids: Tensor) -> Array:
    """Return for every pair class of an index tensor's dims.

    (those of size > 1) the share of pairs with equal ids.
    """
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
