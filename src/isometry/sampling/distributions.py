"""What a parameter is drawn from: independent entries (`Elementwise`) or a joint law (`Whole`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.sampling import kernels
from isometry.sampling.operations import Floats, Ints, operations

_ROOT_TWO = math.sqrt(2)
# A truncated normal's largest value stays below the cut by this share, more than the transform's error of
# 4e-7.
_MARGIN = 1e-6


class Distribution(ABC):  # noqa: B024  (its two children have a method each)
    """The law of one parameter's values: an `Elementwise` or a `Whole`."""


class Elementwise(Distribution):
    """Independent, identically distributed entries, drawn tile by tile from random bits.

    A law of one's own is a frozen dataclass (it must have a hash) with `transform` and `component`.
    """

    @abstractmethod
    def transform(self, bits: Ints, out: Floats) -> None:
        """Turn rows of an even number n of int32 words (scratch afterwards) into rows of n float32 values.

        Both are contiguous arrays, of shape (n,) or (rows, n). A row's values may depend on its own words
        alone, and in the same way however many rows there are. The laws of this module take tensors, too.
        """

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The closed interval that no stored value leaves, rounded or not; None where there is none."""
        return None

    @abstractmethod
    def component(self) -> Elementwise:
        """The law of the real and of the imaginary part that gives complex entries this second moment."""


class Whole(Distribution):
    """A joint law over the whole tensor, such as an orthogonal matrix.

    Attributes:
        stream: The name whose stream is drawn from in place of the parameter's own; two parameters with the
            same one share a draw. A law that needs it declares it as a field.
    """

    stream: str | None = None

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole tensor.

        Args:
            shape: Logical shape.
            generator: CPU generator, the only source of randomness.

        Returns:
            A float32 or float64 CPU tensor of that shape.
        """


@dataclass(frozen=True)
class Normal(Elementwise):
    """Normal law N(mean, std²).

    Args:
        std: Standard deviation, finite and not negative.
        mean: Mean, finite.

    Example:
        >>> Normal(0.02)
        Normal(std=0.02, mean=0.0)
    """

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        _check("std", self.std, low=0.0)
        _check("mean", self.mean)

    def transform(self, bits: Ints, out: Floats) -> None:
        """Box and Muller's transform, scaled and shifted."""
        kernels.of(bits).normal(bits, out, self.std)
        _shift_(out, self.mean)

    def component(self) -> Normal:
        """Each part has std/√2 and mean/√2."""
        return Normal(self.std / _ROOT_TWO, self.mean / _ROOT_TWO)


@dataclass(frozen=True)
class Uniform(Elementwise):
    """Uniform law on the closed interval [low, high].

    Args:
        low: Lower end, finite.
        high: Upper end, finite and not below `low`.

    Example:
        >>> Uniform(-0.1, 0.1).bounds
        (-0.1, 0.1)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check("low", self.low)
        _check("high", self.high)
        if self.low > self.high:
            raise InvalidValueError(f"low must not exceed high, got low={self.low} and high={self.high}")
        _check("high - low", self.high - self.low)

    def transform(self, bits: Ints, out: Floats) -> None:
        """Scale and shift the words."""
        kernels.of(bits).uniform(bits, out, self.low, self.high)
        _clip_(out, self._inside)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval itself."""
        return self.low, self.high

    def component(self) -> Uniform:
        """Each part is uniform on the interval shrunk by √2."""
        return Uniform(self.low / _ROOT_TWO, self.high / _ROOT_TWO)

    @cached_property
    def _inside(self) -> tuple[np.float32, np.float32]:
        return _inside(self.bounds)


@dataclass(frozen=True)
class TruncatedNormal(Elementwise):
    """Normal law cut symmetrically, whose own standard deviation is the one asked for.

    With Z normal of standard deviation σ, the value is mean + Z given |Z| <= cut·σ, and σ is chosen so that
    the standard deviation of the result is `std`: std² = σ²·(1 - 2c·φ(c)/erf(c/√2)), c = cut (exact).

    Args:
        std: Standard deviation of the result.
        mean: Mean of the result.
        cut: Where the law ends, in standard deviations of the normal law that is cut.

    Example:
        >>> law = TruncatedNormal(0.02)
        >>> round(law.std / law.parent_std, 4)
        0.8796

    Reference: Johnson, Kotz, Balakrishnan (1994), Continuous Univariate Distributions 1, section 13.10.1.
    """

    std: float
    mean: float = 0.0
    cut: float = 2.0

    def __post_init__(self) -> None:
        _check("std", self.std, low=0.0)
        _check("mean", self.mean)
        _check("cut", self.cut)
        if not self.cut > 0:
            raise InvalidValueError(f"cut must be positive, got {self.cut}")

    @cached_property
    def parent_std(self) -> float:
        """Standard deviation σ of the normal law before the cut."""
        c = self.cut
        if c < 0.02:  # the closed form cancels; series of the same expression
            return self.std / (c * math.sqrt((1 - 2 * c * c / 15) / 3))
        density = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
        return self.std / math.sqrt(1 - 2 * c * density / math.erf(c / _ROOT_TWO))

    def transform(self, bits: Ints, out: Floats) -> None:
        """The inverse distribution function of uniform values, scaled and shifted."""
        edge = self.cut * (1 - _MARGIN) / _ROOT_TWO
        kernels.of(bits).truncated(bits, out, self.parent_std, math.erf(edge), math.erfc(edge))
        if self.mean != 0.0:
            _shift_(out, self.mean)
            _clip_(out, self._inside)

    @property
    def bounds(self) -> tuple[float, float]:
        """From mean - cut·σ to mean + cut·σ."""
        reach = self.cut * self.parent_std
        return self.mean - reach, self.mean + reach

    def component(self) -> TruncatedNormal:
        """Each part has std/√2 and mean/√2, cut at the same number of standard deviations."""
        return replace(self, std=self.std / _ROOT_TWO, mean=self.mean / _ROOT_TWO)

    @cached_property
    def _inside(self) -> tuple[np.float32, np.float32]:
        return _inside(self.bounds)


@dataclass(frozen=True)
class Constant(Elementwise):
    """Every entry equals `value` (a complex entry: `value` + 0i).

    Example:
        >>> Constant(1.0)
        Constant(value=1.0)
    """

    value: float

    def __post_init__(self) -> None:
        _check("value", self.value)

    def transform(self, bits: Ints, out: Floats) -> None:
        """Fill, without looking at the bits."""
        out.fill(self.value)

    def component(self) -> Constant:
        """The real part has the value; the engine writes constants without asking for parts."""
        return self


def _check(name: str, value: float, *, low: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InvalidTypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    # Values are drawn in float32: what float32 cannot hold would be written as inf.
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InvalidValueError(f"{name} must be finite in float32, got {value}")
    if value < low:
        raise InvalidValueError(f"{name} must be at least {low:g}, got {value}")


def _shift_(out: Floats, mean: float) -> None:
    if mean != 0.0:
        operations(out).add(out, np.float32(mean), out)


def _inside(bounds: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """The smallest and the largest float32 within the bounds."""
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    if float(low) < bounds[0]:
        low = np.nextafter(low, np.float32(math.inf))
    if float(high) > bounds[1]:
        high = np.nextafter(high, np.float32(-math.inf))
    # An interval without a float32 inside keeps the nearest one.
    return (low, high) if low <= high else (np.float32(bounds[0]), np.float32(bounds[0]))


def _clip_(out: Floats, ends: tuple[np.float32, np.float32]) -> None:
    operations(out).clip(out, *ends)
