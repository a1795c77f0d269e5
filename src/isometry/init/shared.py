"""Parameters in blocks of different laws, and draws that blocks or parameters share.

Queries, keys and values may be one parameter or three, and a law of their product wants one draw for both
factors; so may the gates of a recurrent cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.init.structured import check_finite, draw_any
from isometry.sampling import Distribution, Whole


@dataclass(frozen=True)
class Piece:
    """Some units of a parameter, and what they are drawn from.

    Attributes:
        law: The law of these units alone.
        runs: The units as ranges [start, stop), in the order in which the law numbers them.
        group: Pieces of one group begin at the same place of the random stream.
    """

    law: Distribution
    runs: tuple[tuple[int, int], ...]
    group: int = 0


@dataclass(frozen=True)
class Blocks(Whole):
    """A parameter whose units along one axis fall into pieces with laws of their own.

    Exact. Pieces of one group, in one parameter or in two with the same `stream`, share their random numbers.

    Attributes:
        pieces: The pieces; every unit is in one.
        axis: The axis that numbers the units.
        stream: The name of the random stream; None: the parameter's own.

    Example:
        >>> from isometry.sampling import Constant
        >>> pieces = Piece(Constant(1.0), ((0, 1), (3, 4))), Piece(Constant(2.0), ((1, 3),), group=1)
        >>> Blocks(pieces, axis=0).draw((4,), torch.Generator())
        tensor([1., 2., 2., 1.])
    """

    pieces: tuple[Piece, ...]
    axis: int = 0
    stream: str | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise unless every unit is in one piece.

        Raises:
            InvalidValueError: The pieces do not cover the axis.
        """
        units = [unit for piece in self.pieces for start, stop in piece.runs for unit in range(start, stop)]
        size = shape[self.axis] if self.axis < len(shape) else 0
        if sorted(units) != list(range(size)):
            raise InvalidValueError(f"pieces must hold each of the {size} units of axis {self.axis} once")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        self.check(shape)
        base = int(torch.randint(2**40, (), generator=generator))
        whole = torch.empty(shape)
        for piece in self.pieces:
            size = self.part(piece, shape)
            own = torch.Generator().manual_seed(base + piece.group)
            values = draw_any(piece.law, size, own).to(whole.dtype)
            begin = 0
            for start, stop in piece.runs:
                part = values.narrow(self.axis, begin, stop - start)
                whole.narrow(self.axis, start, stop - start).copy_(part)
                begin += stop - start
        return whole

    def part(self, piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a piece of a parameter with a shape."""
        count = sum(stop - start for start, stop in piece.runs)
        return (*shape[: self.axis], count, *shape[self.axis + 1 :])


def runs_of(units: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Write units down as ranges [start, stop), in the order given.

    Example:
        >>> runs_of((4, 5, 6, 0, 1))
        ((4, 7), (0, 2))
    """
    runs: list[tuple[int, int]] = []
    for unit in units:
        if runs and runs[-1][1] == unit:
            runs[-1] = runs[-1][0], unit + 1
        else:
            runs.append((unit, unit + 1))
    return tuple(runs)


@dataclass(frozen=True)
class Times(Whole):
    """sign·log U(1, t_max − 1): biases of gates that remember for 1 to t_max steps. Exact.

    Attributes:
        t_max: The longest dependency expected, in steps, more than 2.
        sign: 1 for a gate that keeps, -1 for one that lets in.

    Example:
        >>> bias = Times(10.0).draw((1000,), torch.Generator().manual_seed(0))
        >>> bool(bias.min() >= 0), bool(bias.max() <= math.log(9))
        (True, True)

    Reference:
        Tallec and Ollivier (2018), "Can recurrent neural networks warp time?", equation 16.
    """

    t_max: float
    sign: float = 1.0

    def __post_init__(self) -> None:
        check_finite("t_max", self.t_max)
        check_finite("sign", self.sign)
        if not self.t_max > 2:
            raise InvalidValueError(f"t_max is a number of steps greater than 2, got {self.t_max}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        return torch.empty(shape).uniform_(1, self.t_max - 1, generator=generator).log_() * self.sign


@dataclass(frozen=True)
class Factor(Whole):
    """One of two factors whose product is nearly a multiple of the identity.

    A = α·Z + β·1 with Z of entries N(0, 1/d), A = U·S·Vᵀ: the left factor is √S·Uᵀ, the right one √S·Vᵀ, each
    the leading k rows, so that leftᵀ·right is A at k = d and its best approximation of rank k below. Several
    heads have a draw each and are stacked. Drawn from the same random numbers, left and right fit. Exact.

    Attributes:
        side: "left" or "right".
        alpha: Size of the noise.
        beta: Size of the identity, of either sign.
        heads: How many draws are stacked along the units.
        turned: Whether the parameter holds its units along the second axis.

    Example:
        >>> left = Factor("left", 0.0, -0.5).draw((3, 3), torch.Generator())
        >>> right = Factor("right", 0.0, -0.5).draw((3, 3), torch.Generator())
        >>> torch.allclose(left.T @ right, -0.5 * torch.eye(3), atol=1e-6)
        True

    Reference:
        Trockman and Kolter (2023), "Mimetic initialization of self-attention layers".
    """

    side: Literal["left", "right"]
    alpha: float
    beta: float
    heads: int = 1
    turned: bool = False

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha)
        check_finite("beta", self.beta)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        units, width = reversed(shape) if self.turned else shape
        rank = units // self.heads
        if units % self.heads or rank > width:
            raise InvalidValueError(
                f"{self.heads} heads of a map of {width} features cannot have {units} units together"
            )
        factors = []
        for _ in range(self.heads):
            noise = torch.randn(width, width, generator=generator, dtype=torch.float64) / math.sqrt(width)
            matrix = self.alpha * noise + self.beta * torch.eye(width, dtype=torch.float64)
            u, s, vt = torch.linalg.svd(matrix)
            rows = u.T if self.side == "left" else vt
            factors.append((s.sqrt()[:, None] * rows)[:rank])
        whole = torch.cat(factors).float()
        return whole.T.contiguous() if self.turned else whole
