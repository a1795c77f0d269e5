"""The operating point of a chain: how large its signals may be, and the gain that keeps them there.

For x ~ N(0, q) behind every weight and an odd ψ, the gain g with g²·E[ψ²] = q keeps lengths. Squared singular
values of the Jacobian of L such layers with orthogonal weights have the mean ∏χ and the relative variance
Σ(E[ψ′⁴]/E[ψ′²]² − 1), where χ = g²·E[ψ′²] (Pennington, Schoenholz and Ganguli, 2017). Asymptotic in width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isometry.activations import Activation, pointwise, resolve
from isometry.activations.response import respond
from isometry.errors import InvalidValueError
from isometry.gain import mirrored_slope

Parity = Literal["linear", "odd", "mirrored", "even"]

# Squared singular values are to spread over [1/3, 3]: in finite widths singular values then stay in [1/2, 2].
_BUDGET = math.log(3.0)
_SMALLEST = 1e-10
# How far cross-entropy begins above chance: 1 %, in deep chains up to 10 %.
_EXCESS, _MOST, _DEEP = 0.01, 0.1, 3000


@dataclass(frozen=True)
class Sizes:
    """What a layer does to signals of one size.

    Attributes:
        gain: The factor that keeps the length.
        log_chi: Logarithm of the gradient's squared factor at that gain.
        spread: Relative variance of the squared slopes.
        log_drift: Logarithm of the factor by which a deviation of the squared length grows.
    """

    gain: float
    log_chi: float
    spread: float
    log_drift: float


@dataclass(eq=False)
class Bend:
    """A pointwise function φ between two weights.

    Attributes:
        function: φ.
        parity: "linear": a multiple of x. "odd". "mirrored": ψ(x) = φ(x) − φ(−x) is not zero. "even": it is.
        slope: Where φ is linear or ψ is, its slope; None otherwise.
        name: What messages call it.
    """

    function: Activation
    parity: Parity
    slope: float | None
    name: str

    @property
    def mirrored(self) -> bool:
        """Whether its layer is to be mirrored."""
        return self.parity == "mirrored"

    @functools.cached_property
    def odd(self) -> Activation:
        """ψ; φ itself where it is odd."""
        phi = self.function.fn
        if not self.mirrored:
            return self.function
        return resolve(lambda x: phi(x) - phi(-x))

    @functools.cache  # noqa: B019  (a bend lives as long as its chain)
    def at(self, length: float) -> Sizes:
        """Return what it does to signals of variance `length`."""
        if self.slope is not None:
            return Sizes(1 / self.slope, 0.0, 0.0, 0.0)
        response = respond(self.odd, std=math.sqrt(length))
        response.require_slope()
        slope = response.slope
        assert slope is not None  # require_slope
        second = response.second_moment
        if not second > 0:
            raise InvalidValueError(f"{self.name} is zero for small signals")
        flat = response.slope_second_moment
        stein = response.expect(response.value * slope * response.nodes.z) / response.std
        drift = length / second * stein
        return Sizes(
            gain=math.sqrt(length / second),
            log_chi=math.log(length / second * flat),
            spread=max(response.expect(slope**4) / flat**2 - 1, 0.0),
            log_drift=math.log(drift) if drift > 0 else 0.0,
        )


def bend_of(function: Callable[[Tensor], Tensor], name: str) -> Bend:
    """Find the odd part of a pointwise function, numerically.

    Args:
        function: φ, of float64 tensors.
        name: What messages call it.

    Returns:
        What is known of it.

    Raises:
        InvalidValueError: It is no pointwise function, or not finite.

    Example:
        >>> bend_of(torch.relu, "relu").slope, bend_of(torch.tanh, "tanh").parity
        (1.0, 'odd')
    """
    phi = resolve(function)
    x = torch.linspace(0.01, 6, 600, dtype=torch.float64)
    right, left = (pointwise.values(phi.fn, side, name) for side in (x, -x))
    size = right.abs() + left.abs()
    if bool(((right + left).abs() <= 1e-6 * size).all()):
        parity: Parity = "odd"
    elif bool(((right - left).abs() <= 1e-6 * size).all()):
        return Bend(phi, "even", None, name)
    else:
        parity = "mirrored"
    try:
        slope = mirrored_slope(phi)
    except InvalidValueError:
        return Bend(phi, parity, None, name)
    return Bend(phi, "linear", slope / 2, name) if parity == "odd" else Bend(phi, parity, slope, name)


def centre_of(function: Callable[[Tensor], Tensor]) -> float:
    """Return where a pointwise function is zero, if its sign changes within 2 of zero; else 0.

    Units that work around such a point hand on nothing that all samples share: a φ(0) that is not 0 reaches
    every unit behind it, mirrored weights take it away, and the first steps of training bring it back.

    Args:
        function: φ, of float64 tensors.

    Returns:
        The zero that is nearest to 0.

    Example:
        >>> round(centre_of(torch.cos), 3), centre_of(torch.relu), centre_of(torch.sigmoid)
        (-1.571, 0.0, 0.0)
    """
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    values = function(x)
    if not bool(values.isfinite().all()) or float(values[200].abs()) <= 1e-6 * float(values.abs().max()):
        return 0.0
    crossed = torch.nonzero(values[:-1] * values[1:] < 0).flatten().tolist()
    if not crossed:
        return 0.0
    at = min(crossed, key=lambda i: abs(float(x[i] + x[i + 1])))
    low, high = x[at : at + 1], x[at + 1 : at + 2]
    for _ in range(50):
        middle = (low + high) / 2
        below = float(function(middle) * values[at]) > 0
        low, high = (middle, high) if below else (low, middle)
    return float(low)


@dataclass(frozen=True)
class Operating:
    """Where a chain works.

    Attributes:
        length: Second moment of one linear coordinate that carries signal.
        spread: Predicted limits of the singular values, as a factor to both sides of one.
    """

    length: float
    spread: float


def operating_point(bends: Sequence[tuple[Bend, float]], largest: float) -> Operating:
    """Choose the largest signals at which squared singular values are predicted to stay in [1/3, 3].

    2·√Σ(E[ψ′⁴]/E[ψ′²]² − 1) + |Σ ln χ| ≤ ln 3, and a deviation of a squared length grows by no more than 3.
    One direction is not counted: along the signal itself a ψ that flattens brings lengths back to the fixed
    point, and so hands on less of a change.

    Args:
        bends: The functions between the layers, each with the factor from the length of a coordinate that
            carries signal to the mean length of those it reads.
        largest: The length where all are linear; never exceeded.

    Returns:
        The operating point.

    Raises:
        InvalidValueError: There is none, however small the signals.

    Example:
        >>> tanh = bend_of(torch.tanh, "tanh")
        >>> [round(operating_point([(tanh, 1.0)] * depth, 1.0).length, 4) for depth in (10, 1000)]
        [0.0776, 0.006]
    """
    counted: dict[tuple[Bend, float], int] = {}
    for bend, factor in bends:
        if bend.slope is None:
            counted[bend, factor] = counted.get((bend, factor), 0) + 1

    def excess(length: float) -> float:
        spread = chi = drift = 0.0
        for (bend, factor), count in counted.items():
            sizes = bend.at(length * factor)
            spread += count * sizes.spread
            chi += count * sizes.log_chi
            drift += count * max(sizes.log_drift, 0.0)
        return max(2 * math.sqrt(spread) + abs(chi), drift) - _BUDGET

    here, over = largest, excess(largest)
    if over > 0:
        low = largest
        while over > 0:
            high, low = low, low / 4
            if low < _SMALLEST:
                names = ", ".join(sorted({bend.name for bend, _ in counted}))
                raise InvalidValueError(f"{names} is not linear enough, however small the signals")
            over = excess(low)
        for _ in range(8):
            middle = math.sqrt(low * high)
            value = excess(middle)
            low, high, over = (middle, high, value) if value <= 0 else (low, middle, over)
        here = low
    return Operating(here, math.exp((over + _BUDGET) / 2))


def logits_size(count: int, layers: int = 1) -> float:
    """Return the size of so many logits at which the first cross-entropy is 1 % to 10 % above chance.

    E[log Σ exp] grows by half the logits' variance: √(2·e·ln C), e = layers/3000 within [0.01, 0.1]. A single
    output gets size 1. The deeper a plain chain, the smaller the rates that it learns at, and with them the
    head grows little by itself: what is missing there would have to come from the layers before it, all of
    which every step disturbs. Empirical: benchmarks/trainability.py.

    Args:
        count: C.
        layers: How many activations lie one behind another.

    Returns:
        The standard deviation.

    Example:
        >>> round(logits_size(10), 3), round(logits_size(10, 1000), 3)
        (0.215, 0.679)
    """
    excess = min(max(layers / _DEEP, _EXCESS), _MOST)
    return math.sqrt(2 * excess * math.log(count)) if count > 1 else 1.0
