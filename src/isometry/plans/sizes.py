"""How large the entries of a law are: exact mean and deviation, and how far a sample may stray from them."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from isometry.init.bounded import BoundedNormal
from isometry.init.channels import PerChannel
from isometry.init.mirrored import Mirrored
from isometry.init.shared import Blocks, Times
from isometry.init.structured import (
    ICNR,
    Chrono,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
    gate_size,
)
from isometry.layout import Layout, grouped
from isometry.sampling import Constant, Distribution, Normal, TruncatedNormal, Uniform


class Size(NamedTuple):
    """Mean and standard deviation over all entries of a tensor drawn from a law.

    Attributes:
        mean: Mean of the expectations of all entries.
        std: Root of the mean of E[(entry − mean)²] over all entries.
        kurtosis: A bound on the mean of E[(entry − mean)⁴], in units of std⁴; 1 where the sum of squares is
            not random.
        copies: How many entries share one draw.
    """

    mean: float
    std: float
    kurtosis: float = 3.0
    copies: float = 1.0


def std_of(law: Distribution | None, shape: tuple[int, ...]) -> float | None:
    """Root mean square deviation of the entries of a law from their common mean.

    √(mean of E[(w − mean)²]) over all entries. Exact. A law of one's own tells by a method
    `moments(shape)` that returns mean and standard deviation.

    Args:
        law: The law; None: no law.
        shape: The shape of the tensor, which decides for laws with zeros.

    Returns:
        The deviation in the units of the entries; None where nobody knows it.

    Raises:
        InvalidValueError: The law cannot be drawn in this shape.

    Example:
        >>> std_of(Uniform(-3.0, 3.0), (4, 2))  # √3
        1.7320508075688774
        >>> std_of(Identity(), (4, 2))  # two ones among eight entries
        0.4330127018922193
    """
    size = None if law is None else size_of(law, shape)
    return None if size is None else size.std


def mean_of(law: Distribution | None, shape: tuple[int, ...]) -> float | None:
    """Mean of the entries of a law, as `std_of`.

    Example:
        >>> mean_of(Constant(1.0), (3,))
        1.0
    """
    size = None if law is None else size_of(law, shape)
    return None if size is None else size.mean


@singledispatch
def size_of(law: Distribution, shape: tuple[int, ...]) -> Size | None:
    """Return mean and deviation of a law's entries in this shape, None where nobody knows them."""
    moments = getattr(law, "moments", None)
    if moments is None:
        return None
    mean, std = moments(shape)
    return Size(float(mean), float(std))


@size_of.register
def _(law: Normal, shape: tuple[int, ...]) -> Size:
    return Size(float(law.mean), float(law.std))


@size_of.register
def _(law: TruncatedNormal, shape: tuple[int, ...]) -> Size:
    return Size(float(law.mean), float(law.std))


@size_of.register
def _(law: BoundedNormal, shape: tuple[int, ...]) -> Size:
    # An exponential law, the limit of one far tail, has kurtosis 9.
    return Size(float(law.mean), float(law.std), kurtosis=9.0)


@size_of.register
def _(law: Uniform, shape: tuple[int, ...]) -> Size:
    return Size((law.low + law.high) / 2, (law.high - law.low) / math.sqrt(12), kurtosis=1.8)


@size_of.register
def _(law: Constant, shape: tuple[int, ...]) -> Size:
    return Size(float(law.value), 0.0, kurtosis=1.0)


@size_of.register
def _(law: Orthogonal, shape: tuple[int, ...]) -> Size:
    return Size(0.0, law.std, kurtosis=1.0)


@size_of.register
def _(law: DeltaOrthogonal, shape: tuple[int, ...]) -> Size:
    taps = math.prod(_layout(law, shape).taps_shape)
    return Size(0.0, law.std / math.sqrt(taps) if taps else 0.0, kurtosis=1.0)


@size_of.register
def _(law: Identity, shape: tuple[int, ...]) -> Size:
    _, outputs, inputs, *taps = _layout(law, shape).kernels_shape
    share = min(outputs, inputs) / max(outputs * inputs * math.prod(taps), 1)
    return Size(law.gain * share, abs(law.gain) * math.sqrt(share * (1 - share)), kurtosis=1.0)


@size_of.register
def _(law: Sparse, shape: tuple[int, ...]) -> Size:
    share = 1 - math.ceil(shape[0] * law.sparsity) / shape[0] if shape and shape[0] else 0.0
    return Size(0.0, law.std * math.sqrt(share), kurtosis=3 / share if share else 1.0)


@size_of.register
def _(law: Gates, shape: tuple[int, ...]) -> Size:
    gate_size(shape, len(law.values))
    mean = sum(law.values) / len(law.values)
    return Size(mean, math.sqrt(sum((v - mean) ** 2 for v in law.values) / len(law.values)), kurtosis=1.0)


@size_of.register
def _(law: Chrono, shape: tuple[int, ...]) -> Size:
    gate_size(shape, 4)
    # E[logᵏ U] for U uniform on [1, b] is ∫uᵏeᵘdu/(b − 1) over [0, log b]; half the entries are ±log U.
    u, density = _log_uniform(law.t_max - 1)
    second, fourth = (float((density * u**k).sum()) for k in (2, 4))
    return Size(0.0, math.sqrt(second / 2), kurtosis=2 * fourth / second**2, copies=2.0)


def _log_uniform(high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values of log U for U uniform on [1, high] and their weights, for means of smooth functions."""
    reach = math.log(high)
    x, weight = np.polynomial.legendre.leggauss(64)
    u = reach / 2 * (x + 1)
    return u, reach / 2 * weight * np.exp(u) / (high - 1)


@size_of.register
def _(law: Times, shape: tuple[int, ...]) -> Size:
    u, density = _log_uniform(law.t_max - 1)
    mean = float((density * u).sum())
    second, fourth = (float((density * (u - mean) ** k).sum()) for k in (2, 4))
    return Size(law.sign * mean, abs(law.sign) * math.sqrt(second), kurtosis=fourth / second**2)


@size_of.register
def _(law: Blocks, shape: tuple[int, ...]) -> Size | None:
    law.check(shape)
    parts = [(math.prod(size), size_of(p.law, size)) for p in law.pieces for size in (law.part(p, shape),)]
    if any(size is None for _, size in parts) or not math.prod(shape):
        return None
    known = [(count / math.prod(shape), size) for count, size in parts if size is not None]
    mean = sum(share * size.mean for share, size in known)
    second = sum(share * (size.std**2 + (size.mean - mean) ** 2) for share, size in known)
    # E[(a + b)⁴] is at most 8·(E[a⁴] + b⁴), and exact without the shift b.
    fourth = sum(
        share * size.kurtosis * size.std**4
        if size.mean == mean
        else share * 8 * (size.kurtosis * size.std**4 + (size.mean - mean) ** 4)
        for share, size in known
    )
    kurtosis = fourth / second**2 if second else 1.0
    return Size(mean, math.sqrt(second), kurtosis, max(size.copies for _, size in known) + (len(known) > 1))


@size_of.register
def _(law: ICNR, shape: tuple[int, ...]) -> Size | None:
    base = size_of(law.base, (shape[0] // law.copies, *shape[1:]))
    return None if base is None else base._replace(copies=base.copies * law.copies)


@size_of.register
def _(law: PerChannel, shape: tuple[int, ...]) -> Size | None:
    """Where rows have equal squares, in expectation otherwise."""
    law.check(shape)
    base = size_of(law.law, shape)
    if base is None or base.mean:
        return None
    squares = [factor**2 for factor in law.factors]
    mean = sum(squares) / max(len(squares), 1)
    fourth = sum(s * s for s in squares) / max(len(squares), 1)
    return base._replace(
        std=base.std * math.sqrt(mean), kurtosis=base.kurtosis * fourth / mean**2 if mean else 1.0
    )


@size_of.register
def _(law: Mirrored, shape: tuple[int, ...]) -> Size:
    rows, cols, reads, writes = law.sides(shape)
    rank = min(rows, cols)
    if law.source is not None and law.target is not None:
        rank = min(rank, law.source.cols, law.target.cols)
    squares = rank * (2 if law.part in ("first", "hidden") else 1)
    squares_of_spare = writes.spare * min(1.0, cols / rows)
    pairs = sum(read.pairs for read in reads)  # exact unless some columns stand once and others twice
    total = (squares + squares_of_spare) * (1 + pairs / cols)
    mixed = 0 < pairs < cols and rows < cols
    return Size(0.0, law.scale * math.sqrt(total / math.prod(shape)), kurtosis=5.0 if mixed else 1.0)


def _layout(law: DeltaOrthogonal | Identity, shape: tuple[int, ...]) -> Layout:
    return law.layout or grouped(shape)
