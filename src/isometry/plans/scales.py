"""Multiply what a law draws by a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import cast

import torch
from torch import Tensor

from isometry.init.bounded import BoundedNormal
from isometry.init.mirrored import Mirrored
from isometry.init.structured import (
    ICNR,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
    check_scale,
    draw_any,
)
from isometry.plans.sizes import Size, size_of
from isometry.sampling import Constant, Distribution, Normal, TruncatedNormal, Uniform, Whole


@dataclass(frozen=True)
class Scaled(Whole):
    """A law multiplied by a number, for laws that have no scale of their own.

    Attributes:
        law: The law.
        factor: The number, not negative.

    Example:
        >>> from isometry.init.structured import Chrono
        >>> bias = Scaled(Chrono(100), 0.5).draw((8,), torch.Generator().manual_seed(0))
        >>> torch.equal(bias[:2], -bias[2:4])
        True
    """

    law: Distribution
    factor: float

    def __post_init__(self) -> None:
        check_scale("factor", self.factor)

    @property
    def stream(self) -> str | None:  # type: ignore[override]
        """That of the law."""
        return self.law.stream if isinstance(self.law, Whole) else None

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        return draw_any(self.law, shape, generator) * self.factor


def scaled(law: Distribution, factor: float) -> Distribution:
    """The law of factor·w for w drawn from a law.

    The same class with a scaled standard deviation where the class has one, otherwise `Scaled`. Exact. A law
    of one's own may have a method `scaled(factor)`.

    Args:
        law: The law.
        factor: Finite, not negative.

    Returns:
        The law of the product.

    Raises:
        InvalidTypeError: `factor` is no number.
        InvalidValueError: It is negative or not finite.

    Example:
        >>> scaled(Normal(0.5, mean=1.0), 2.0)
        Normal(std=1.0, mean=2.0)
    """
    check_scale("factor", factor)
    return Constant(0.0) if factor == 0 else _scaled(law, factor)


@singledispatch
def _scaled(law: Distribution, factor: float) -> Distribution:
    own = getattr(law, "scaled", None)
    return Scaled(law, factor) if own is None else cast("Distribution", own(factor))


@_scaled.register
def _(law: Normal, factor: float) -> Distribution:
    return replace(law, std=law.std * factor, mean=law.mean * factor)


@_scaled.register
def _(law: TruncatedNormal, factor: float) -> Distribution:
    return replace(law, std=law.std * factor, mean=law.mean * factor)


@_scaled.register
def _(law: BoundedNormal, factor: float) -> Distribution:
    ends = {"low": law.low * factor, "high": law.high * factor}
    return replace(law, std=law.std * factor, mean=law.mean * factor, **ends)


@_scaled.register
def _(law: Uniform, factor: float) -> Distribution:
    return Uniform(law.low * factor, law.high * factor)


@_scaled.register
def _(law: Constant, factor: float) -> Distribution:
    return Constant(law.value * factor)


@_scaled.register(Orthogonal)
@_scaled.register(DeltaOrthogonal)
@_scaled.register(Sparse)
def _(law: Orthogonal | DeltaOrthogonal | Sparse, factor: float) -> Distribution:
    return replace(law, std=law.std * factor)


@_scaled.register
def _(law: Identity, factor: float) -> Distribution:
    return replace(law, gain=law.gain * factor)


@_scaled.register
def _(law: Gates, factor: float) -> Distribution:
    return Gates(tuple(value * factor for value in law.values))


@_scaled.register
def _(law: ICNR, factor: float) -> Distribution:
    return replace(law, base=scaled(law.base, factor))


@_scaled.register
def _(law: Mirrored, factor: float) -> Distribution:
    return replace(law, scale=law.scale * factor)


@_scaled.register
def _(law: Scaled, factor: float) -> Distribution:
    return replace(law, factor=law.factor * factor)


@size_of.register
def _(law: Scaled, shape: tuple[int, ...]) -> Size | None:
    base = size_of(law.law, shape)
    return None if base is None else base._replace(mean=base.mean * law.factor, std=base.std * law.factor)
