"""What a tensor aliases: the identity of a view, and whether two views of one storage share entries."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Key = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


def key_of(tensor: Tensor) -> Key:
    """Return what a tensor aliases; two tensors with one key hold the same entries."""
    storage = tensor.untyped_storage()
    return storage._cdata, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype


def disjoint(a: Key, b: Key) -> bool:
    """Return whether two views surely share no entry.

    Offsets are written in the mixed radix of the strides, where an address has one set of digits: views whose
    ranges of one digit do not meet are disjoint. Strides that do not divide one another say nothing.
    """
    if a[0] != b[0] or a[4] != b[4]:
        return a[0] != b[0]
    strides = sorted(
        {1} | {s for k in (a, b) for n, s in zip(k[2], k[3], strict=True) if n > 1 and s > 0}, reverse=True
    )
    if any(high % low for high, low in pairwise(strides)):
        return False
    ours, theirs = _digits(a, strides), _digits(b, strides)
    if ours is None or theirs is None:
        return False
    return any(p.stop <= q.start or q.stop <= p.start for p, q in zip(ours, theirs, strict=True))


def _digits(key: Key, strides: list[int]) -> list[range] | None:
    """Return the range of each digit of a view's addresses; None where digits carry over."""
    extent: dict[int, int] = {}
    for n, s in zip(key[2], key[3], strict=True):
        if n > 1 and s > 0:
            if s in extent:
                return None
            extent[s] = n
    result, rest = [], key[1]
    for k, s in enumerate(strides):
        start, rest = divmod(rest, s)
        stop = start + extent.get(s, 1)
        if k and stop > strides[k - 1] // s:
            return None
        result.append(range(start, stop))
    return result
