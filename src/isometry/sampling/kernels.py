"""Who turns random words into values: compiled code where it was built, else NumPy; torch on a device.

All do the same operations in the same order, so the values are the same to the bit. A compiler may be told
otherwise (`-ffast-math`), and what was built may be older than these files; so the compiled code is tried
once, on words that reach every branch, and left alone if it differs.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from isometry.sampling import transforms, words
from isometry.sampling.operations import Ints

# With and without a mean, without tails, with them, and so narrow that |x| is drawn in place of 1 - |x|.
_TRIED: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("normal", (0.3,)),
    ("uniform", (-0.2, 0.7)),
    ("uniform", (-0.5, 0.5)),
    ("truncated", (0.5, 0.954, 0.046)),
    ("truncated", (0.5, 0.9999, 0.0001)),
    ("truncated", (0.5, 0.08, 0.92)),
)
_WORDS = 2**12
_CORNERS = np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1], np.int32)


def of(bits: Any) -> Any:
    """The namespace of `normal`, `uniform` and `truncated` for words in an array, or in a tensor."""
    return compiled() or transforms if isinstance(bits, np.ndarray) else transforms


def streams(states: bytes, out: Ints) -> None:
    """Fill `out` with the words of streams, as `words.streams`."""
    (compiled() or words).streams(states, out)


@functools.cache
def compiled() -> Any:
    """The compiled code if it is there and gives NumPy's values to the bit, else None."""
    try:
        native = importlib.import_module("isometry.sampling._native")
        return native if _agrees(native) else None
    except (ImportError, AttributeError, TypeError, ValueError):  # not built, or built from other files
        return None


def _agrees(native: Any) -> bool:
    states = bytes(range(1, 73))
    bits, expected = np.empty((2, 3, _WORDS), np.int32)
    native.streams(states, bits)
    words.streams(states, expected)
    if not np.array_equal(bits, expected):
        return False
    bits[:, : _CORNERS.size] = _CORNERS
    bits[:, -_CORNERS.size :] = _CORNERS
    return all(_same(native, name, options, bits) for name, options in _TRIED)


def _same(native: Any, name: str, options: tuple[float, ...], bits: Ints) -> bool:
    values, expected = np.empty((2, *bits.shape), np.float32)
    getattr(native, name)(bits.copy(), values, *options)
    getattr(transforms, name)(bits.copy(), expected, *options)
    return np.array_equal(values.view(np.int32), expected.view(np.int32))
