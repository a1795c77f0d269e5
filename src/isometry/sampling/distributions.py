"""What a parameter is drawn from: i.i.d. entries (`Elementwise`) or a joint law over the tensor (`Whole`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.errors import InvalidValueError


@dataclass(frozen=True)
class Distribution(ABC):
    """The law of one parameter's values."""


@dataclass(frozen=True)
class Elementwise(Distribution):
    """Independent, identically distributed entries, drawn chunk by chunk."""

    @abstractmethod
    def draw_(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill the contiguous float32 CPU tensor `out`."""


@dataclass(frozen=True)
class Whole(Distribution):
    """A joint law over the whole tensor, such as an orthogonal matrix."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole tensor (float32 or float64, CPU) of the logical `shape`."""


@dataclass(frozen=True)
class Normal(Elementwise):
    """Normal law with the given standard deviation and mean."""

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        _check_scale("std", self.std)
        _check_finite("mean", self.mean)

    def draw_(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out`."""
        out.normal_(self.mean, self.std, generator=generator)


@dataclass(frozen=True)
class Uniform(Elementwise):
    """Uniform law on [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_finite("low", self.low)
        _check_finite("high", self.high)
        if self.low > self.high:
            raise InvalidValueError(f"low must not exceed high, got low={self.low} and high={self.high}")

    def draw_(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out`."""
        out.uniform_(self.low, self.high, generator=generator)


@dataclass(frozen=True)
class TruncatedNormal(Elementwise):
    """Normal law cut at ±`cut` of its own standard deviations; `std` is that of the result."""

    std: float
    mean: float = 0.0
    cut: float = 2.0

    def __post_init__(self) -> None:
        _check_scale("std", self.std)
        _check_finite("mean", self.mean)
        if not (self.cut > 0 and math.isfinite(self.cut)):
            raise InvalidValueError(f"cut must be positive and finite, got {self.cut}")

    @property
    def parent_std(self) -> float:
        """Standard deviation of the normal law before the cut."""
        c = self.cut
        density = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
        return self.std / math.sqrt(1 - 2 * c * density / math.erf(c / math.sqrt(2)))

    def draw_(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out`."""
        edge = math.erf(self.cut / math.sqrt(2))
        out.uniform_(-edge, edge, generator=generator).erfinv_().mul_(math.sqrt(2)).clamp_(
            -self.cut, self.cut
        )
        out.mul_(self.parent_std).add_(self.mean)


@dataclass(frozen=True)
class Constant(Elementwise):
    """Every entry equals `value`."""

    value: float

    def __post_init__(self) -> None:
        _check_finite("value", self.value)

    def draw_(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out`."""
        out.fill_(self.value)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InvalidValueError(f"{name} must be finite, got {value}")


def _check_scale(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InvalidValueError(f"{name} must be finite and not negative, got {value}")
