"""Mirrored (looks-linear) weights: a network that starts as an exactly orthogonal linear map.

For φ(x) - φ(-x) = c·x a hidden layer of n = 2m units carries [u; -u], and [W, -W]·φ([u; -u]) = c·W·u. With an
orthogonal W divided by c the whole network is linear at the start, all its singular values are one, and depth
costs nothing. Exact, at any depth.

Shape legend: m pairs and r spare units make a width 2m + r; W is (pairs or outputs) × (pairs or inputs).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.init.structured import check_scale
from isometry.layout import Layout, grouped
from isometry.sampling import Whole, haar

Part = Literal["first", "hidden", "last", "only"]
Box = tuple[tuple[int, int], ...]
PARTS = ("first", "hidden", "last", "only")


@dataclass(frozen=True, slots=True)
class Width:
    """How the units of a layer pair up: as [u; -u; spare; plain].

    Nothing reads the spare units at first: an odd width has one. Plain units stand for themselves alone.

    Example:
        >>> Width.of(127)
        Width(pairs=63, spare=1, plain=0)
        >>> Width(pairs=2, spare=1, plain=3).units
        8
    """

    pairs: int
    spare: int = 0
    plain: int = 0

    @property
    def units(self) -> int:
        """How many units there are."""
        return 2 * self.pairs + self.spare + self.plain

    @property
    def coordinates(self) -> int:
        """How many linear coordinates they carry."""
        return self.pairs + self.plain

    @classmethod
    def of(cls, units: int) -> "Width":
        """The pairing of a layer of so many units."""
        return cls(units // 2, units % 2)

    def times(self, positions: int) -> "Width":
        """The pairing after channels were flattened together with so many positions."""
        return Width(self.pairs * positions, self.spare * positions, self.plain * positions)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A Haar matrix (rows, cols) with orthonormal columns that two neighbouring layers share.

    Both layers draw it from the same key, so that the second undoes what the first did and the directions
    that carry the signal survive widths that grow and shrink again.

    Example:
        >>> Rotation(key=1, rows=4, cols=2).draw().shape
        torch.Size([4, 2])
    """

    key: int
    rows: int
    cols: int

    def draw(self) -> Tensor:
        """The matrix in float64."""
        generator = torch.Generator().manual_seed(self.key)
        return haar(1, self.rows, self.cols, generator, dtype=torch.float64)[0]


@dataclass(frozen=True, slots=True)
class Flattened:
    """The basis (rows·positions, cols) in which a linear layer reads flattened channels.

    The directions that carry the signal, the first `live` columns of the channels' rotation at every
    position, come first, mixed by a Haar matrix; random directions orthogonal to them fill the rest.

    Example:
        >>> Flattened(Rotation(key=1, rows=4, cols=2), positions=9, live=2, cols=20, key=2).draw().shape
        torch.Size([36, 20])
    """

    channels: Rotation
    positions: int
    live: int
    cols: int
    key: int

    def draw(self) -> Tensor:
        """The basis in float64; its columns are orthonormal."""
        generator = torch.Generator().manual_seed(self.key)
        signal = self.live * self.positions
        mixed = haar(1, signal, min(signal, self.cols), generator, dtype=torch.float64)[0]
        channels = self.channels.draw()[:, : self.live]
        mixed = mixed.reshape(self.live, self.positions, -1)
        front = torch.einsum("ml,lpn->mpn", channels, mixed).flatten(0, 1)
        missing = self.cols - front.shape[1]
        if not missing:
            return front
        random = torch.randn(len(front), missing, generator=generator, dtype=torch.float64)
        complete, _ = torch.linalg.qr(torch.cat([front, random], dim=1))
        return torch.cat([front, complete[:, front.shape[1] :]], dim=1)


@dataclass(frozen=True)
class Mirrored(Whole):
    """The looks-linear weight of one layer of a chain; for a convolution, on one tap (delta).

    first [W; -W], hidden [[W, -W], [-W, W]], last [W, -W], only W; each times `scale`, W (semi-)orthogonal.
    A spare unit (odd width) reads a random direction, so that it can learn, and nothing reads it, so that the
    map stays exact.

    With `source` and `target` W = T·Sᵀ for the leading columns of the two rotations. In a chain whose layers
    share them the product of all W telescopes, and its singular values are exactly one as many times as the
    narrowest layer has pairs, zero otherwise. Without them W is a Haar matrix of its own.

    Attributes:
        scale: 1/c times the gain wanted; 1 for the first layer, which no activation precedes.
        part: Where in the chain the layer stands.
        layout: The parameter as one block; None: (out, in, *taps).
        box: For a convolution, the first tap and the number of taps along each side that W spreads over; a
            convolution whose stride is that number reads every entry once. None: the central tap alone.
        reads: The pairing of the inputs (times the taps of the box), of several where the layer reads a
            concatenation; None: half of them each.
        interleaved: Into how many positions the inputs fall that are numbered before the channels, as
            channels-last code flattens them; 1: channels come first, as in `flatten`.
        source: The rotation of the inputs.
        target: The rotation of the outputs.

    Example:
        >>> weight = Mirrored(1.0).draw((6, 4), torch.Generator().manual_seed(0))
        >>> torch.equal(weight[:3, :2], -weight[:3, 2:]), torch.equal(weight[:3], -weight[3:])
        (True, True)

    Reference:
        Balduzzi et al. (2017), "The shattered gradients problem" (looks-linear); for odd and
        changing widths the construction is ours.
    """

    scale: float
    part: Part = "hidden"
    layout: Layout | None = None
    box: Box | None = None
    reads: Width | tuple[Width, ...] | None = None
    interleaved: int = 1
    source: Rotation | Flattened | None = None
    target: Rotation | None = None

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        if self.part not in PARTS:
            raise InvalidValueError(f"unknown part {self.part!r}: expected one of {', '.join(PARTS)}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        layout = self.layout or grouped(shape)
        rows, cols, reads, writes = self.sides(shape)
        matrix = self._matrix(rows, cols, generator)
        matrix = self._with_spare_rows(matrix, writes.spare, generator)
        matrix = self._mirror(matrix, rows, reads) * self.scale
        if self.interleaved > 1:
            matrix = matrix.reshape(len(matrix), -1, self.interleaved).transpose(1, 2).flatten(1)
        return layout.restore(in_box(matrix, layout.taps_shape, self._box(layout))[None], shape)

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int, tuple[Width, ...], Width]:
        """The sides of W in a parameter of this shape, and how its inputs and outputs pair up.

        Args:
            shape: Shape of the parameter.

        Returns:
            Rows and columns of W, the pairings of the inputs, the pairing of the outputs.

        Raises:
            InvalidValueError: Such a parameter cannot be mirrored.
        """
        layout = self.layout or grouped(shape)
        blocks, outputs, inputs, *_ = layout.kernels_shape
        if blocks != 1:
            raise InvalidValueError(
                f"a mirrored weight has one block, this one has {blocks} (groups or gates): "
                "u and -u would lie in different blocks"
            )
        inputs *= math.prod(count for _, count in self._box(layout))
        if self.interleaved < 1 or inputs % self.interleaved:
            raise InvalidValueError(f"{inputs} inputs do not fall into {self.interleaved} positions")
        reads, writes = self._pairing(outputs, inputs)
        rows = writes.pairs if self.part in ("first", "hidden") else outputs
        cols = sum(read.coordinates for read in reads)
        if not (rows and cols):
            raise InvalidValueError(
                f"a mirrored layer needs two units or more on each side, got shape {shape}"
            )
        return rows, cols, reads, writes

    def _box(self, layout: Layout) -> Box:
        box = self.box or tuple(((side - 1) // 2, 1) for side in layout.taps_shape)
        check_box(box, layout.taps_shape)
        return box

    def _pairing(self, outputs: int, inputs: int) -> tuple[tuple[Width, ...], Width]:
        plain = Width(0, plain=inputs) if self.part in ("first", "only") else Width.of(inputs)
        given = self.reads or plain
        reads = given if isinstance(given, tuple) else (given,)
        if sum(read.units for read in reads) != inputs:
            raise InvalidValueError(f"{given} does not add up to the {inputs} inputs of the layer")
        return reads, Width.of(outputs) if self.part in ("first", "hidden") else Width(0)

    def _matrix(self, rows: int, cols: int, generator: torch.Generator) -> Tensor:
        """W: (rows, cols) with orthonormal rows or columns."""
        if self.source is None or self.target is None:
            return haar(1, rows, cols, generator, dtype=torch.float64)[0]
        shared = min(rows, cols)
        return self.target.draw()[:, :shared] @ self.source.draw()[:, :shared].T

    def _with_spare_rows(self, matrix: Tensor, spare: int, generator: torch.Generator) -> Tensor:
        """Append the rows of the spare units: random directions of the length that the other rows have."""
        if not spare:
            return matrix
        rows, cols = matrix.shape
        extra = torch.randn(spare, cols, generator=generator).to(matrix.dtype)
        extra *= math.sqrt(min(1.0, cols / rows)) / extra.norm(dim=1, keepdim=True)
        return torch.cat([matrix, extra])

    def _mirror(self, matrix: Tensor, rows: int, reads: tuple[Width, ...]) -> Tensor:
        columns: list[Tensor] = []
        parts = torch.split(matrix, [read.coordinates for read in reads], dim=1)
        for read, part in zip(reads, parts, strict=True):
            pairs, plain = torch.split(part, [read.pairs, read.plain], dim=1)
            columns += [pairs, -pairs, matrix.new_zeros(len(matrix), read.spare), plain]
        matrix = torch.cat(columns, dim=1)
        if self.part in ("first", "hidden"):
            main, extra = matrix[:rows], matrix[rows:]
            matrix = torch.cat([main, -main, extra])
        return matrix


def in_box(matrix: Tensor, taps: tuple[int, ...], box: Box) -> Tensor:
    """A kernel (O, I, *taps) that holds a matrix (O, I·positions) on a box of taps and zeros elsewhere.

    Args:
        matrix: The matrix, for every input its positions in the box.
        taps: The sides of the receptive field.
        box: The first tap and the number of taps along each side.

    Returns:
        The kernel.

    Raises:
        InvalidValueError: The box lies outside the receptive field.

    Example:
        >>> in_box(torch.ones(1, 2), (3,), ((1, 2),))
        tensor([[[0., 1., 1.]]])
    """
    check_box(box, taps)
    counts = [count for _, count in box]
    kernel = matrix.new_zeros(len(matrix), matrix.shape[1] // math.prod(counts), *taps)
    places = (slice(first, first + count) for first, count in box)
    kernel[(slice(None), slice(None), *places)] = matrix.reshape(*kernel.shape[:2], *counts)
    return kernel


def check_box(box: Box, taps: tuple[int, ...]) -> None:
    """Raise an `InvalidValueError` unless a box lies in a receptive field.

    Example:
        >>> check_box(((1, 2),), (3,))
    """
    inside = all(first >= 0 < count <= side - first for (first, count), side in zip(box, taps, strict=False))
    if len(box) != len(taps) or not inside:
        raise InvalidValueError(f"the box {box} lies outside the receptive field {taps}")
