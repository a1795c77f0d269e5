"""Where deep random networks settle: fixed points of the mean-field maps, and the critical line.

The maps themselves, their notation and the references are in `meanfield.py`. Exact in the limit of
infinite width; roots are found to a relative 1e-12.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from isometry.activations import Activation, ActivationLike, resolve
from isometry.activations.response import Response
from isometry.errors import InvalidValueError
from isometry.meanfield import next_correlation, require_no_jumps, require_stds, response_at

Phase = Literal["ordered", "critical", "chaotic"]

_SMALLEST, _LARGEST = 1e-12, 1e12  # lengths beyond these count as 0 and infinity
_CRITICAL = 1e-9  # |χ₁ − 1| below this is critical


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Where lengths and correlations settle in a deep network.

    Attributes:
        length: q*, the pre-activations' second moment at depth; 0 when the signal dies, infinite when it
            explodes.
        length_slope: Slope χ_q of the length map at q*; None where q* is 0 or infinite.
        length_depth: Layers ξ_q over which a deviation from q* falls by e; negative where q* is unstable, and
            a deviation grows by e.
        chi: χ₁, the gradient's factor per layer; at a length of 0 its limit, None at infinity.
        phase: "ordered", "critical" or "chaotic", by χ₁; None with it.
        correlation: c*, where correlations settle; None where q* is 0 or infinite.
        correlation_slope: Slope of the correlation map at c*.
        correlation_depth: Layers ξ_c over which a deviation from c* falls by e; infinite at criticality.
    """

    length: float
    length_slope: float | None
    length_depth: float | None
    chi: float | None
    phase: Phase | None
    correlation: float | None
    correlation_slope: float | None
    correlation_depth: float | None


@dataclass(frozen=True, kw_only=True)
class CriticalPoint:
    """A point (σ_w, σ_b) of the critical line, χ₁ = 1, with the length q* that belongs to it."""

    weight_std: float
    bias_std: float
    length: float


def fixed_point(activation: ActivationLike, *, weight_std: float, bias_std: float = 0.0) -> FixedPoint:
    """Where a deep network takes lengths and correlations, and how fast.

    q* is the fixed point of the length map that is reached from q = 1: 1 itself where it is fixed (relu at
    σ_w = √2, any activation at its forward gain), else the nearest crossing upwards when the map grows there,
    downwards when it shrinks. c* is 1 when χ₁ ≤ 1; otherwise the one fixed point of the correlation map in
    [0, 1), which exists and is stable because the map is convex there. ξ = −1/ln|slope| for each map.

    Args:
        activation: As in `moments`; neither random nor with jumps.
        weight_std: σ_w; weights have the variance σ_w²/fan_in.
        bias_std: σ_b.

    Returns:
        The fixed point.

    Raises:
        InvalidValueError: The activation has no such maps, or an argument is out of range.

    Example:
        >>> fixed_point("tanh", weight_std=0.9).length  # the signal dies
        0.0
        >>> settled = fixed_point("tanh", weight_std=1.5, bias_std=0.3)
        >>> settled.phase, round(settled.length, 3), round(settled.correlation, 3)
        ('chaotic', 0.961, 0.767)

    Reference: Schoenholz et al., 2017, equations 3 to 9.
    """
    require_stds(weight_std, bias_std)
    resolved = resolve(activation)
    require_no_jumps(response_at(resolved, 1.0))
    length = _fixed_length(resolved, weight_std, bias_std)
    if length in (0.0, math.inf):
        limit = weight_std**2 * response_at(resolved, _SMALLEST).slope_second_moment if length == 0 else None
        return FixedPoint(
            length=length,
            length_slope=None,
            length_depth=None,
            chi=limit,
            phase=None if limit is None else _phase(limit),
            correlation=None,
            correlation_slope=None,
            correlation_depth=None,
        )
    response = response_at(resolved, length)
    # d/dq E[φ(√q·z)²] = E[φ·φ′·z]/√q, which is E[φ′² + φ·φ″] by Stein's lemma without the second derivative.
    slope = response.slope
    assert slope is not None  # require_no_jumps asked for it
    stein = response.expect(response.value * slope * response.nodes.z) / response.std
    length_slope = weight_std**2 * stein
    at_one = weight_std**2 * response.slope_second_moment
    correlation = _fixed_correlation(response, at_one, weight_std, bias_std)
    at_rest = at_one if correlation == 1 else weight_std**2 * response.slope_dual(correlation)
    return FixedPoint(
        length=length,
        length_slope=length_slope,
        length_depth=_depth(length_slope),
        chi=at_one,
        phase=_phase(at_one),
        correlation=correlation,
        correlation_slope=at_rest,
        correlation_depth=_depth(at_rest),
    )


def critical_line(activation: ActivationLike, lengths: Sequence[float]) -> tuple[CriticalPoint, ...]:
    """Points of the critical line, χ₁ = 1, by the length q at which each settles.

    σ_w² = 1/E[φ′(√q·z)²] and σ_b² = q − σ_w²·E[φ(√q·z)²]. Exact: no root is sought.

    Args:
        activation: As in `chi`.
        lengths: The lengths q.

    Returns:
        One point for every length at which σ_b² is not negative, in the order of `lengths`.

    Raises:
        InvalidValueError: The activation has no χ₁, or a length is not positive.

    Example:
        >>> [(round(p.weight_std, 3), round(p.bias_std, 3)) for p in critical_line("tanh", [0.25, 1.0])]
        [(1.181, 0.09), (1.467, 0.389)]

    Reference: Schoenholz et al., 2017, figure 1; Pennington, Schoenholz and Ganguli, 2017, section 2.
    """
    resolved = resolve(activation)
    points = []
    for length in lengths:
        weight_variance, bias_variance = _critical_variances(resolved, length)
        if bias_variance >= 0:
            points.append(
                CriticalPoint(
                    weight_std=math.sqrt(weight_variance), bias_std=math.sqrt(bias_variance), length=length
                )
            )
    return tuple(points)


def critical_point(activation: ActivationLike, *, bias_std: float = 0.0) -> CriticalPoint:
    """The critical σ_w for a given σ_b, where neither signals merge nor gradients explode.

    The point of the critical line with the given σ_b that has the smallest length. With σ_b = 0 and
    φ(0) = 0 that is the length 0, where σ_w = 1/√E[φ′²] in the limit of small inputs: 1 for tanh, 2 for
    gelu. Where every length will do (relu, σ_w = √2), the length is 1.

    Args:
        activation: As in `chi`.
        bias_std: σ_b.

    Returns:
        The critical point.

    Raises:
        InvalidValueError: There is none with that σ_b (relu has one at σ_b = 0 alone).

    Example:
        >>> round(critical_point("relu").weight_std ** 2, 12)
        2.0
        >>> round(critical_point("tanh", bias_std=0.2).weight_std, 3)
        1.304

    Reference: Schoenholz et al., 2017; Hayou, Doucet and Rousseau, 2019 (the edge of chaos of any φ).
    """
    require_stds(1.0, bias_std)
    resolved = resolve(activation)

    def excess(length: float) -> float:
        try:
            return _critical_variances(resolved, length)[1] - bias_std**2
        except InvalidValueError:
            if length <= 1:
                raise
            return math.nan  # E[φ²] is infinite from here on: no crossing will be found

    if bias_std == 0.0:
        if abs(excess(1.0)) < 1e-12 and abs(excess(16.0)) < 1e-11:
            return CriticalPoint(
                weight_std=math.sqrt(_critical_variances(resolved, 1.0)[0]), bias_std=0.0, length=1.0
            )
        if abs(excess(_SMALLEST)) < 1e-4 * _SMALLEST:
            limit = math.sqrt(_critical_variances(resolved, _SMALLEST)[0])
            return CriticalPoint(weight_std=limit, bias_std=0.0, length=0.0)
    length = 1e-8
    below = excess(length)
    while length < 1e6:
        above = excess(2 * length)
        if below * above <= 0:
            found = _root(excess, length, 2 * length)
            return CriticalPoint(
                weight_std=math.sqrt(_critical_variances(resolved, found)[0]), bias_std=bias_std, length=found
            )
        length, below = 2 * length, above
    raise InvalidValueError(
        f"{resolved.name} has no critical point with bias_std={bias_std:g}: at every length with χ₁ = 1 up "
        "to 1e6 the biases would need another variance; critical_line shows which there are"
    )


def _phase(slope: float) -> Phase:
    if abs(slope - 1) < _CRITICAL:
        return "critical"
    return "ordered" if slope < 1 else "chaotic"


def _depth(slope: float) -> float:
    """−1/ln|slope|: infinite at a slope of 1 within rounding, 0 at a slope of 0."""
    if abs(abs(slope) - 1) < _CRITICAL:
        return math.inf
    return 0.0 if slope == 0 else -1 / math.log(abs(slope))


def _critical_variances(activation: Activation, length: float) -> tuple[float, float]:
    """σ_w² and σ_b² with χ₁ = 1 at a length; σ_b² may come out negative."""
    response = response_at(activation, length)
    require_no_jumps(response)
    weight_variance = 1 / response.slope_second_moment
    bias_variance = length - weight_variance * response.second_moment
    # relu's is 0 at every length, up to rounding.
    return weight_variance, 0.0 if abs(bias_variance) < 1e-12 * length else bias_variance


def _fixed_length(activation: Activation, weight_std: float, bias_std: float) -> float:
    def growth(length: float) -> float:
        """Relative growth; infinite where E[φ²] no longer has a value."""
        try:
            second = response_at(activation, length).second_moment
        except InvalidValueError:
            if length <= 1:
                raise
            return math.inf
        return (weight_std**2 * second + bias_std**2) / length - 1

    here, rate = 1.0, growth(1.0)
    if abs(rate) < 1e-11:
        return here
    factor = 2.0 if rate > 0 else 0.5
    while _SMALLEST < here < _LARGEST:
        there = here * factor
        next_rate = growth(there)
        if rate * next_rate <= 0:
            low, high = sorted((here, there))
            return _root(growth, low, high)
        here, rate = there, next_rate
    return 0.0 if factor < 1 else math.inf


def _fixed_correlation(response: Response, at_one: float, weight_std: float, bias_std: float) -> float:
    if at_one <= 1 + _CRITICAL:
        return 1.0

    def gap(correlation: float) -> float:
        return next_correlation(response, correlation, weight_std, bias_std) - correlation

    if gap(0.0) < 1e-14:  # an odd activation without biases
        return 0.0
    for digits in range(2, 13, 2):
        below_one = 1 - 10.0**-digits
        if gap(below_one) < 0:
            return _root(gap, 0.0, below_one)
    return 1.0


def _root(f: Callable[[float], float], start: float, end: float) -> float:
    """The root of f between two points of opposite sign, by the Illinois variant of regula falsi."""
    held, newest = start, end
    f_held, f_newest = f(held), f(newest)
    for _ in range(200):
        if f_newest == 0 or abs(newest - held) < 1e-12 * abs(newest):
            break
        guess = (held * f_newest - newest * f_held) / (f_newest - f_held)
        if not min(held, newest) < guess < max(held, newest):  # also when an end is infinite
            guess = (held + newest) / 2
        f_guess = f(guess)
        if f_guess * f_newest < 0:
            held, f_held = newest, f_newest
        else:
            f_held /= 2
        converged = abs(guess - newest) < 1e-13 * abs(guess)
        newest, f_newest = guess, f_guess
        if converged:
            break
    return newest
