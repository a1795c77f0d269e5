"""Statistics of tensors that arrive in pieces: exact pooling, no overflow, no waiting for the accelerator.

A tensor is reduced on its own device to a few float64 numbers (`reduce_entries`, `reduce_cosine`); nothing
is copied to the host until `Pool` reads them. Pieces are pooled by the formulas of Chan et al. (1979) and
Pébay (2008), which need no second look at the data and lose no digits when the mean is large.

Shapes: n entries, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isometry.profile import Stats

# Entries that are held in float64 at once: a piece is passed over a dozen times, so on a CPU it should stay
# in the cache; an accelerator wants large pieces.
_IN_CACHE = 1 << 16
_IN_MEMORY = 1 << 22
_FLAT_SLOPE = 0.01  # a slope below 1 % of the steepest one passes practically no gradient

Mask = Callable[[Tensor], Tensor]


# --- reductions on the tensor's device ------------------------------------------------------------


def reduce_entries(values: Tensor, saturated: Mask | None = None, *, shape: bool = False) -> Tensor:
    """Reduce a tensor to the counts, extremes and central moments of its entries.

    Every piece of a tensor gives one row: n, nan, +inf, −inf, zeros, saturated, min, max, scale, mean, M2,
    M3, M4; M_k = Σ(x − mean)^k. The last four are in units of the scale; extremes and moments are over the
    finite entries.

    Args:
        values: A floating-point or complex tensor (complex: real and imaginary parts are entries alike).
        saturated: Marks the saturated entries, if the notion has a meaning.
        shape: Whether to compute M3 and M4; they are nan otherwise.

    Returns:
        A float64 tensor of shape (pieces, 13) on the same device.
    """
    flat = _entries(values)
    if flat.numel() == 0:
        return torch.zeros(0, 13, dtype=torch.float64)
    pieces = torch.split(flat, _piece_size(flat))
    return torch.stack([_reduce_piece(piece, saturated, shape=shape) for piece in pieces])


def _piece_size(tensor: Tensor) -> int:
    return _IN_CACHE if tensor.device.type == "cpu" else _IN_MEMORY


def _entries(values: Tensor) -> Tensor:
    """All entries as one flat, dense, real tensor without a gradient."""
    values = values.detach()
    if values.is_nested:
        values = torch.cat([part.reshape(-1) for part in values.unbind()])
    if values.layout is not torch.strided:
        values = values.to_dense()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    return values.reshape(-1)


def _reduce_piece(piece: Tensor, saturated: Mask | None, *, shape: bool) -> Tensor:
    exact = piece.to(torch.float64)
    total = exact.sum()
    count = torch.full((), exact.numel(), dtype=torch.float64, device=exact.device)
    bad, finite, broken = None, count, [torch.zeros_like(count)] * 3
    # On the CPU a look at the sum is free, and a finite one proves that every entry is finite.
    if piece.device.type != "cpu" or not math.isfinite(total):
        nan, positive, negative = exact.isnan(), exact == math.inf, exact == -math.inf
        bad = nan | positive | negative
        broken = [nan.sum(), positive.sum(), negative.sum()]
        finite = count - bad.sum()
        exact = exact.masked_fill(bad, 0.0)
        total = exact.sum()
    low, high = _extremes(piece, bad)
    scale = torch.ones_like(count)
    if piece.dtype is torch.float64:  # its fourth powers, and its sum, can leave the range of float64
        largest = torch.maximum(low.abs(), high.abs())
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        exact = exact / scale
        total = exact.sum()
    mean = total / finite
    deviation = exact - mean
    if bad is not None:
        deviation = deviation.masked_fill(bad, 0.0)
    square = deviation * deviation
    m2, m3, m4 = square.sum(), torch.full_like(count, math.nan), torch.full_like(count, math.nan)
    if shape:
        m3, m4 = deviation.mul_(square).sum(), square.mul_(square).sum()
    zeros = count - torch.count_nonzero(piece)
    flat = torch.zeros_like(count) if saturated is None else saturated(piece).sum()
    numbers = [count, *broken, zeros, flat, low, high, scale, mean, m2, m3, m4]
    return torch.stack([number.to(torch.float64) for number in numbers])


def _extremes(piece: Tensor, bad: Tensor | None) -> tuple[Tensor, Tensor]:
    if bad is None:
        low, high = torch.aminmax(piece)
    else:
        low, high = piece.masked_fill(bad, math.inf).amin(), piece.masked_fill(bad, -math.inf).amax()
    return low.to(torch.float64), high.to(torch.float64)


def reduce_cosine(values: Tensor, axis: int = 0) -> Tensor:
    """Reduce a batch to the sum of the cosines between its samples and the number of pairs.

    Σ_{i≠j} cos(x_i, x_j) = |Σ x_i/|x_i||² − B', over the B' samples that are finite and not zero. Exact.

    Args:
        values: A floating-point or complex tensor.
        axis: The dimension that counts the samples.

    Returns:
        A float64 tensor (sum over ordered pairs, number of ordered pairs) on the same device.
    """
    rows = values.detach()
    if rows.is_complex():
        rows = torch.view_as_real(rows.resolve_conj())
    if rows.device.type == "mps":
        rows = rows.cpu()
    rows = rows.movedim(axis, 0).flatten(1)
    if rows.dtype is torch.float64:  # its squares can leave the range of float64
        rows = rows / torch.where((largest := rows.abs().amax(1, keepdim=True)) > 0, largest, 1.0)
    pieces = torch.split(rows, max(1, _piece_size(rows) // max(1, len(rows))), dim=1)
    squares = torch.stack([piece.to(torch.float64).square().sum(1) for piece in pieces]).sum(0)
    usable = squares.isfinite() & (squares > 0)
    weights = torch.where(usable, 1 / squares.sqrt(), 0.0)[:, None]
    sums = []
    for piece in pieces:
        exact = piece.to(torch.float64)
        if piece.device.type != "cpu" or not bool(usable.all()):
            exact = exact.masked_fill(~usable[:, None], 0.0)
        sums.append((exact * weights).sum(0).square().sum())
    count = usable.sum()
    return torch.stack([torch.stack(sums).sum() - count, (count * (count - 1)).to(torch.float64)])


# --- pooling on the host --------------------------------------------------------------------------


@dataclass(slots=True)
class Pool:
    """Counts and moments of all pieces seen so far, in Python floats.

    Example:
        >>> pool = Pool()
        >>> pool.add(reduce_entries(torch.tensor([1.0, 2.0])).tolist())
        >>> pool.add(reduce_entries(torch.tensor([3.0])).tolist())
        >>> pool.stats().mean
        2.0
    """

    count: float = 0
    nan: float = 0
    positive: float = 0
    negative: float = 0
    zeros: float = 0
    saturated: float = 0
    low: float = math.inf
    high: float = -math.inf
    scale: float = 1.0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    cosines: float = 0.0
    pairs: float = 0.0
    knows_saturation: bool = False

    def add(
        self,
        pieces: Sequence[Sequence[float]],
        cosine: Sequence[float] = (0.0, 0.0),
        *,
        saturation: bool = False,
    ) -> None:
        """Take in what `reduce_entries` and `reduce_cosine` returned.

        Args:
            pieces: The rows of `reduce_entries`.
            cosine: The two numbers of `reduce_cosine`.
            saturation: Whether the saturated entries were counted.
        """
        for piece in pieces:
            self._add_piece(piece)
        self.cosines += cosine[0]
        self.pairs += cosine[1]
        self.knows_saturation |= saturation

    @property
    def finite(self) -> float:
        """Number of finite entries."""
        return self.count - self.nan - self.positive - self.negative

    def _add_piece(self, piece: Sequence[float]) -> None:
        count, nan, positive, negative, zeros, saturated, low, high, scale, mean, m2, m3, m4 = piece
        before, fresh = self.finite, count - nan - positive - negative
        self.count += count
        self.nan += nan
        self.positive += positive
        self.negative += negative
        self.zeros += zeros
        self.saturated += saturated
        self.low, self.high = min(self.low, low), max(self.high, high)
        if fresh == 0:
            return
        if before == 0:
            self.scale, self.mean, self.m2, self.m3, self.m4 = scale, mean, m2, m3, m4
            return
        common = max(self.scale, scale)
        self._rescale(common)
        factor = scale / common
        mean, m2, m3, m4 = mean * factor, m2 * factor**2, m3 * factor**3, m4 * factor**4
        n, a, b = before + fresh, before, fresh
        delta = mean - self.mean
        # Pébay (2008), eqs. 2.1 and 3.1: central moments of a union.
        self.m4 += (
            m4
            + delta**4 * a * b * (a * a - a * b + b * b) / n**3
            + 6 * delta**2 * (a * a * m2 + b * b * self.m2) / n**2
            + 4 * delta * (a * m3 - b * self.m3) / n
        )
        self.m3 += m3 + delta**3 * a * b * (a - b) / n**2 + 3 * delta * (a * m2 - b * self.m2) / n
        self.m2 += m2 + delta**2 * a * b / n
        self.mean += delta * b / n

    def _rescale(self, scale: float) -> None:
        factor = self.scale / scale
        self.scale = scale
        self.mean *= factor
        self.m2 *= factor**2
        self.m3 *= factor**3
        self.m4 *= factor**4

    def stats(self, *, divisor: float = 1.0) -> Stats:
        """Summarise everything seen so far.

        Args:
            divisor: Divide the values by this (the scale of a loss scaler).

        Returns:
            The statistics; all None if there was no entry.
        """
        if self.count == 0:
            return Stats()
        shares = {
            "zeros": self.zeros / self.count,
            "saturated": self.saturated / self.count if self.knows_saturation else None,
            "nonfinite": 1 - self.finite / self.count,
        }
        extremes = {
            "min": self.low / divisor if self.finite else None,
            "max": self.high / divisor if self.finite else None,
        }
        if self.nan:
            return Stats(mean=math.nan, std=math.nan, rms=math.nan, **extremes, **shares)
        if self.positive or self.negative:
            mean = math.nan if self.positive and self.negative else math.inf if self.positive else -math.inf
            return Stats(mean=mean, std=math.nan, rms=math.inf, **extremes, **shares)
        constant = self.low == self.high  # rounding must not give a constant a spread
        variance = 0.0 if constant else self.m2 / self.finite
        unit = self.scale / divisor
        return Stats(
            mean=self.mean * unit,
            std=math.sqrt(variance) * unit,
            rms=math.sqrt(variance + self.mean**2) * unit,
            kurtosis=self._kurtosis(variance),
            cosine=self.cosines / self.pairs if self.pairs else None,
            **extremes,
            **shares,
        )

    def _kurtosis(self, variance: float) -> float | None:
        if math.isnan(self.m4) or variance**2 == 0:
            return None
        return self.m4 / self.finite / variance**2


# --- saturation -----------------------------------------------------------------------------------


def saturation(module: nn.Module) -> Mask | None:
    """Return the test for saturated outputs of a bounded activation, None for any other module.

    An output is saturated where the slope of the activation, written in terms of its output y, is below 1 %
    of the steepest slope: 1 − y² for tanh (|x| > 2.99), 4y(1 − y) for sigmoid (|x| > 5.99), (1 − |y|)² for
    softsign (|x| > 9), 1 + y/α for the negative side of ELU and its kin; for the piecewise linear ones
    where they are cut off. The lower cut of relu6 at 0 is not counted: that share is in `zeros`.

    Args:
        module: The module whose output is judged.

    Returns:
        A function from outputs to a boolean tensor of the same shape.

    Example:
        >>> saturation(nn.Tanh())(torch.tanh(torch.tensor([0.0, 2.9, 3.1, -9.0]))).tolist()
        [False, False, True, True]
    """
    for kind in type(module).__mro__:
        if kind in _SATURATION:
            return _SATURATION[kind](module)
    return None


def _exponential(scale: float, alpha: float) -> Mask:
    bound = scale * alpha
    return lambda y: (y < 0) & (y + bound < _FLAT_SLOPE * bound)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. (2017), eq. 14

_SATURATION: dict[type, Callable[..., Mask]] = {
    nn.Tanh: lambda _: lambda y: 1 - y.double().square() < _FLAT_SLOPE,
    nn.Sigmoid: lambda _: lambda y: 4 * y.double() * (1 - y.double()) < _FLAT_SLOPE,
    nn.Softsign: lambda _: lambda y: (1 - y.double().abs()).square() < _FLAT_SLOPE,
    nn.Hardtanh: lambda m: lambda y: (y <= m.min_val) | (y >= m.max_val),
    nn.Hardsigmoid: lambda _: lambda y: (y <= 0) | (y >= 1),
    nn.ReLU6: lambda _: lambda y: y >= 6,
    nn.ELU: lambda m: _exponential(1.0, m.alpha),
    nn.CELU: lambda m: _exponential(1.0, m.alpha),
    nn.SELU: lambda _: _exponential(_SELU_SCALE, _SELU_ALPHA),
}
