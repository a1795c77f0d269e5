"""A joint law whose outputs are multiplied by factors of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.init.structured import check_scale, draw_any
from isometry.layout import Layout
from isometry.sampling import Distribution, Whole


@dataclass(frozen=True)
class PerChannel(Whole):
    """W = diag(f)·V: each output, a channel of a convolution, of another law times its own factor.

    Attributes:
        law: V.
        factors: f, one of each output, blocks one after the other; not negative.
        layout: The parameter as blocks.

    Example:
        >>> from isometry.init.structured import Identity
        >>> law = PerChannel(Identity(), (2.0, 3.0), Layout((2, 2)))
        >>> law.draw((2, 2), torch.Generator())
        tensor([[2., 0.],
                [0., 3.]])
    """

    law: Distribution
    factors: tuple[float, ...]
    layout: Layout

    def __post_init__(self) -> None:
        for factor in self.factors:
            check_scale("a channel's factor", factor)

    @property
    def stream(self) -> str | None:  # type: ignore[override]
        """That of the law."""
        return self.law.stream if isinstance(self.law, Whole) else None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise where a parameter of this shape does not have so many outputs."""
        outputs = self.layout.blocks * self.layout.outputs
        if math.prod(shape) != math.prod(self.layout.shape) or outputs != len(self.factors):
            raise InvalidValueError(
                f"{len(self.factors)} factors for the outputs of {self.layout.shape} do not fit shape {shape}"
            )

    def scaled(self, factor: float) -> PerChannel:
        """The law of factor·W."""
        return replace(self, factors=tuple(f * factor for f in self.factors))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        self.check(shape)
        kernels = self.layout.kernels(draw_any(self.law, shape, generator))
        rows = torch.tensor(self.factors, dtype=kernels.dtype)
        rows = rows.view(*kernels.shape[:2], *[1] * (kernels.dim() - 2))
        return self.layout.restore(kernels * rows, shape)
