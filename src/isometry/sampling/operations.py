"""The operations of a transform: NumPy's on arrays, torch's on tensors of any device.

IEEE 754 says to the bit what +, -, *, / and sqrt give and how integers become floats, so a transform written
in these names gives the same values whoever does the arithmetic. A graphics processor may be built to do
otherwise; `devices` looks before it trusts one.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_local = threading.local()


class OnArrays:
    """NumPy.

    `out` comes last and is written; one operand of the arithmetic may be an array without dimensions.
    """

    add, subtract, multiply, divide, sqrt = np.add, np.subtract, np.multiply, np.divide, np.sqrt
    bitwise_and, bitwise_or, bitwise_xor = np.bitwise_and, np.bitwise_or, np.bitwise_xor
    int32, float32 = np.int32, np.float32

    @staticmethod
    def to_float(out: Any, ints: Any) -> None:
        """Write whole numbers as floats, rounded to nearest."""
        np.copyto(out, ints, "same_kind")

    @staticmethod
    def scratch(shape: tuple[int, ...], like: Any) -> Any:
        """This thread's own scratch, kept from call to call: fresh pages would cost more than the arithmetic.

        torch aligns memory to 64 bytes, NumPy to 16, at which vector operations take a quarter longer.
        """
        kept = _local.__dict__.get("scratch")
        if kept is not None and kept.shape == shape:
            return kept
        size = math.prod(shape)
        memory = _local.__dict__.get("memory")
        if memory is None or memory.size < size:
            memory = _local.memory = torch.empty(max(size, 2**12), dtype=torch.float32, device="cpu").numpy()
        kept = _local.scratch = memory[:size].reshape(shape)
        return kept

    @staticmethod
    def empty(count: int, like: Any) -> Any:
        """That many arrays of the same shape."""
        return np.empty((count, *like.shape), np.float32)

    @staticmethod
    def below(values: Any, bound: Any) -> Any:
        """The places, in a flattened array, of values below a bound."""
        return np.flatnonzero(values < bound)

    @staticmethod
    def clip(values: Any, low: Any, high: Any) -> None:
        """Move values into [low, high], in place."""
        np.clip(values, low, high, values)


class OnTensors:
    """torch, on whatever device the tensors are.

    Constants go in as tensors without dimensions: as Python numbers torch would divide by their inverse.
    """

    int32, float32 = torch.int32, torch.float32

    @staticmethod
    def add(x: Any, y: Any, out: Tensor) -> None:
        """Write x + y."""
        torch.add(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def subtract(x: Any, y: Any, out: Tensor) -> None:
        """Write x - y."""
        torch.sub(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def multiply(x: Any, y: Any, out: Tensor) -> None:
        """Write x·y."""
        torch.mul(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def divide(x: Any, y: Any, out: Tensor) -> None:
        """Write x/y."""
        torch.div(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def sqrt(x: Tensor, out: Tensor) -> None:
        """Write the root of x, rounded correctly.

        torch's own float32 roots on a CPU are MKL's, which are not always. Those of float64 are right to
        far more than the 2⁻⁵⁰ that separate the root of a float32 from where rounding would go the other way.
        """
        out.copy_(x.double().sqrt_())

    @staticmethod
    def bitwise_and(x: Any, y: Any, out: Tensor) -> Any:
        """Write x & y."""
        return torch.bitwise_and(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def bitwise_or(x: Any, y: Any, out: Tensor) -> Tensor:
        """Write x | y."""
        return torch.bitwise_or(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def bitwise_xor(x: Any, y: Any, out: Tensor) -> Tensor:
        """Write x ^ y."""
        return torch.bitwise_xor(_tensor(x), _tensor(y), out=out)

    @staticmethod
    def to_float(out: Tensor, ints: Tensor) -> None:
        """Write whole numbers as floats, rounded to nearest."""
        out.copy_(ints)

    @staticmethod
    def scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Fresh memory, which torch's allocator keeps at hand."""
        return torch.empty(shape, dtype=torch.float32, device=like.device)

    @staticmethod
    def empty(count: int, like: Tensor) -> Tensor:
        """That many tensors of the same shape."""
        return like.new_empty((count, *like.shape))

    @staticmethod
    def below(values: Tensor, bound: Any) -> Tensor:
        """The places, in a flattened tensor, of values below a bound."""
        return (values < _tensor(bound)).reshape(-1).nonzero().reshape(-1)

    @staticmethod
    def clip(values: Tensor, low: Any, high: Any) -> None:
        """Move values into [low, high], in place."""
        values.clamp_(float(low), float(high))


Operations = Any  # OnArrays or OnTensors, which have the same names


def operations(values: Any) -> Operations:
    """The operations for an array, or for a tensor."""
    return OnTensors if isinstance(values, Tensor) else OnArrays


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))
