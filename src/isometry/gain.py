"""Gains: the factor on the weights that keeps the signal's second moment through an activation.

A weight with standard deviation gain/√fan gives its layer's output the second moment of the
activation's input (forward, fan_in) or hands the gradient back with the second moment it came with
(backward, fan_out). See docs/gains.md for the reasoning.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from isometry import meanfield
from isometry.activations import Activation, ActivationLike, pointwise, resolve
from isometry.activations.response import Response, respond
from isometry.criticality import CriticalPoint, FixedPoint, critical_point, fixed_point
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, IsometryWarning
from isometry.strictjson import number_to_data

__all__ = [
    "ActivationLike",
    "Description",
    "Direction",
    "backward_gain",
    "describe",
    "forward_gain",
    "gain",
    "mirrored_slope",
]

_T = TypeVar("_T")

Direction = Literal["forward", "backward", "balanced"]


def forward_gain(response: Response, *, gated: bool) -> float:
    """1/√E[φ²], or 1/√(E[φ²]·E[b²]) for a gated unit, whose b is distributed as x."""
    response.require_output()
    branch = response.mean**2 + response.std**2 if gated else 1.0
    return 1 / math.sqrt(response.second_moment * branch)


def backward_gain(response: Response, *, gated: bool) -> float:
    """1/√E[φ′²], or 1/√(E[φ′²]·E[b²] + E[φ²]) for a gated unit."""
    if not gated:
        response.require_slope()
        return 1 / math.sqrt(response.slope_second_moment)
    response.require_output()
    branch = response.mean**2 + response.std**2
    return 1 / math.sqrt(response.slope_second_moment * branch + response.second_moment)


def gain(
    activation: ActivationLike,
    param: float | None = None,
    *,
    direction: Direction = "forward",
    gated: bool | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    **params: Any,
) -> float:
    """The factor on the weights that keeps the signal's second moment through an activation.

    With input x ~ N(mean, std²):

    - forward: 1/√E[φ(x)²], after which the next layer's signal has second moment 1, as N(0, 1) had;
    - backward: 1/√E[φ′(x)²];
    - balanced: the geometric mean of the two.

    To keep a second moment other than 1, multiply the forward gain by √E[x²] = √(mean² + std²).

    A gated unit φ(a)·b, with a and b independent and distributed as x, has E[y²] = E[φ(a)²]·E[b²], hence
    the forward gain 1/√(E[φ(a)²]·E[b²]), at mean 0 and std 1 that of its φ. Backward, both branches
    carry gradient: 1/√(E[φ′(a)²]·E[b²] + E[φ(a)²]), for two weights that each have their own fan (× √2
    when one fused weight counts both halves in its fan).

    Numerically exact: kinks and jumps are found and resolved, relative error below 1e-9.

    *Assumes* Gaussian input: wide layers, or any width at the first one.

    Args:
        activation: A name ("silu", "leaky_relu(0.2)"), an `nn.Module` or its class, or any pointwise map.
        param: The parameter of torch.nn.init.calculate_gain: leaky_relu's slope, elu's alpha, …
        direction: Which signal to keep.
        gated: Whether the unit is φ(a)·b with φ the given activation; by default what its name says.
        mean: Mean of the activation's input.
        std: Standard deviation of the activation's input.
        **params: The activation's parameters by keyword.

    Returns:
        The gain; weights take the standard deviation gain/√fan.

    Raises:
        NotFoundError: No activation has that name.
        InvalidValueError: There is no gain: no pointwise map, nan or infinite, zero almost everywhere in
            value or slope, or an infinite moment; or an argument cannot be used.
        InvalidTypeError: `activation` is neither a name nor callable.

    Warns:
        IsometryWarning: A backward gain of an activation that jumps: autograd leaves the jumps out.

    Example:
        >>> round(gain("relu") ** 2, 12)
        2.0
        >>> round(gain("tanh", direction="backward"), 6)
        1.467414
        >>> round(gain(lambda x: x * torch.sigmoid(x), gated=True), 6)  # SwiGLU
        1.676532

    Reference: He et al., 2015, equations 10 and 14, with the second moment of any activation.
    """
    response = respond(resolve(activation, param, **params), mean=mean, std=std)
    is_gated = _is_gated(response.activation, gated)
    if direction == "forward":
        return forward_gain(response, gated=is_gated)
    if direction not in ("backward", "balanced"):
        raise InvalidValueError(f"direction must be 'forward', 'backward' or 'balanced', got {direction!r}")
    back = backward_gain(response, gated=is_gated)
    if response.jumps:
        warnings.warn(_jump_note(response), IsometryWarning, stacklevel=2)
    return back if direction == "backward" else math.sqrt(back * forward_gain(response, gated=is_gated))


def _jump_note(response: Response) -> str:
    places = ", ".join(f"{x:.4g}" for x in response.jumps[:4]) + (", …" if len(response.jumps) > 4 else "")
    return (
        f"{response.activation.name} jumps at x = {places}: the backward gain keeps the gradient that "
        "autograd computes, which leaves the jumps out"
    )


def _is_gated(activation: Activation, gated: bool | None) -> bool:
    if gated is None:
        return activation.gated
    if not isinstance(gated, bool):
        raise InvalidTypeError(f"gated must be True, False or None, got {gated!r}")
    if activation.gated and not gated:
        raise InvalidValueError(f"{activation.name} is a gated unit; for its φ alone, pass φ's own name")
    return gated


def mirrored_slope(activation: ActivationLike, param: float | None = None, **params: Any) -> float:
    """The c with φ(x) − φ(−x) = c·x for all x, on which mirrored (looks-linear) weights rest.

    Checked to 1e-6 on both sides of zero up to |x| = 1000: relu, gelu, silu, hardswish, softplus have c = 1,
    leaky_relu has 1 + its slope, linear 2.

    Args:
        activation: As in `gain`; neither gated nor random.
        param: As in `gain`.
        **params: As in `gain`.

    Returns:
        The slope c, never 0.

    Raises:
        InvalidValueError: The activation has none (tanh, elu, mish, …), or c is 0 (cos, square, …).

    Example:
        >>> mirrored_slope("gelu")
        1.0
        >>> mirrored_slope("leaky_relu", 0.2)
        1.2

    Reference: Balduzzi et al., The Shattered Gradients Problem, 2017, section 4 (relu).
    """
    return _mirrored_slope(resolve(activation, param, **params))


def _mirrored_slope(resolved: Activation) -> float:
    if resolved.gated or len(resolved.mixture) > 1:
        kind = "gated" if resolved.gated else "random or differs between channels"
        raise InvalidValueError(f"{resolved.name} has no mirrored slope: it is {kind}")
    ordinary = torch.linspace(0.01, 12, 1200, dtype=torch.float64, device="cpu")
    x = torch.cat([torch.logspace(-4, 3, 71, dtype=torch.float64, device="cpu"), ordinary])
    odd = pointwise.values(resolved.fn, x, resolved.name) - pointwise.values(resolved.fn, -x, resolved.name)
    slope = float((odd * x).sum() / (x * x).sum())
    worst = (odd - slope * x).abs() / (1 + x)
    if float(worst.max()) > 1e-6:
        far, near = float(odd[-1] / x[-1]), float(odd[71] / x[71])
        raise InvalidValueError(
            f"{resolved.name} has no mirrored slope: φ(x) − φ(−x) is {far:.4g}·x at x = {float(x[-1]):.4g} "
            f"but {near:.4g}·x at x = {float(x[71]):.4g}; relu, leaky_relu, gelu, silu, hardswish and "
            "softplus have one"
        )
    if abs(slope) < 1e-6:
        raise InvalidValueError(
            f"{resolved.name} has no mirrored slope: φ(x) = φ(−x), the mirrored halves cancel"
        )
    # Rounding in the sums shows in the last digits only; c is 1, 1 + slope or 2 exactly.
    return round(slope, 9)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known about an activation at Gaussian input: gains, moments and mean-field figures.

    Attributes:
        name: The activation, with its parameters.
        gated: Whether it is the φ of a gated unit φ(a)·b; moments are those of φ, gains those of the unit.
        input_mean: Mean of the input.
        input_std: Standard deviation of the input.
        forward: Forward gain.
        backward: Backward gain; None where there is none, see `notes`.
        balanced: Their geometric mean; None likewise.
        torch: What torch.nn.init.calculate_gain says; None for what it does not know.
        torch_ratio: torch / forward: by this factor per layer torch's gain is off; None likewise.
        moments: Mean, second moment, variance, kurtosis of φ(x), and the moments of φ′(x).
        hermite: The first eight normalised Hermite coefficients of φ(mean + std·z).
        mirrored_slope: c in φ(x) − φ(−x) = c·x; None where there is none.
        chi: The gradient's factor per layer under forward gain; None for a gated unit.
        merging: Correlation after one layer of two inputs with correlations 0 and 1/2, under forward gain;
            None for a gated or random activation.
        settled: Fixed point of a deep network under forward gain without biases; None where undefined.
        critical: The critical point without biases; None where there is none.
        notes: What a user should know, in sentences.
    """

    name: str
    gated: bool
    input_mean: float
    input_std: float
    forward: float
    backward: float | None
    balanced: float | None
    torch: float | None
    torch_ratio: float | None
    moments: meanfield.Moments
    hermite: tuple[float, ...]
    mirrored_slope: float | None
    chi: float | None
    merging: tuple[float, float] | None
    settled: FixedPoint | None
    critical: CriticalPoint | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for strict JSON, an infinite number as "inf"."""
        data: dict[str, Any] = _plain(dataclasses.asdict(self))
        return data


def describe(
    activation: ActivationLike,
    param: float | None = None,
    *,
    gated: bool | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    **params: Any,
) -> Description:
    """Everything this package computes for one activation, and where torch differs.

    Args:
        activation: As in `gain`.
        param: As in `gain`.
        gated: As in `gain`.
        mean: Mean of the activation's input. The mean-field figures are for mean 0 and length std².
        std: Standard deviation of the activation's input.
        **params: As in `gain`.

    Returns:
        The description; what does not exist for this activation is None, and `notes` say why.

    Raises:
        NotFoundError: No activation has that name.
        InvalidValueError: There is no forward gain.
        InvalidTypeError: `activation` is neither a name nor callable.

    Example:
        >>> found = describe("tanh")
        >>> round(found.forward, 4), round(found.torch, 4), round(found.torch_ratio, 4)
        (1.5925, 1.6667, 1.0465)
    """
    response = respond(resolve(activation, param, **params), mean=mean, std=std)
    resolved = response.activation
    is_gated = _is_gated(resolved, gated)
    forward = forward_gain(response, gated=is_gated)
    notes: list[str] = []
    backward = _or_none(lambda: backward_gain(response, gated=is_gated), notes)
    if backward is not None and response.jumps:
        notes.append(_jump_note(response))
    torch_value = None if is_gated else _torch_gain(resolved)
    ratio = None if torch_value is None else torch_value / forward
    if ratio is not None and abs(ratio - 1) > 1e-6 and mean == 0 and std == 1:
        notes.append(f"torch's gain, {torch_value:.6g}, is {ratio:.4g} times the exact one")
    layered = not is_gated and mean == 0 and len(resolved.mixture) == 1
    settled = _or_none(lambda: fixed_point(resolved, weight_std=forward), notes) if layered else None
    if settled and settled.length_slope is not None and settled.length_slope > 1 + 1e-9:
        notes.append(
            f"under forward gain the length {settled.length:.4g} is fixed but unstable: a deviation grows by "
            f"{settled.length_slope:.4g} per layer"
        )
    slope = response.slope_second_moment if response.slope is not None and not is_gated else None
    return Description(
        name=resolved.name,
        gated=is_gated,
        input_mean=response.mean,
        input_std=response.std,
        forward=forward,
        backward=backward,
        balanced=None if backward is None else math.sqrt(forward * backward),
        torch=torch_value,
        torch_ratio=ratio,
        moments=meanfield.moments_of(response),
        hermite=meanfield.hermite_of(response, 8),
        mirrored_slope=None if is_gated else _or_none(lambda: _mirrored_slope(resolved)),
        chi=None if slope is None else forward**2 * slope,
        merging=_or_none(lambda: _merging(response, forward)) if layered else None,
        settled=settled,
        critical=_or_none(lambda: critical_point(resolved), notes) if layered else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _merging(response: Response, forward: float) -> tuple[float, float]:
    first, second = (meanfield.next_correlation(response, c, forward, 0.0) for c in (0.0, 0.5))
    return first, second


def _or_none(compute: Callable[[], _T], notes: list[str] | None = None) -> _T | None:
    try:
        return compute()
    except IsometryError as error:
        if notes is not None:
            notes.append(str(error))
        return None


def _torch_gain(activation: Activation) -> float | None:
    """torch.nn.init.calculate_gain's value, None where it has none."""
    if activation.key is None:
        return None
    name, params = activation.key
    try:
        return float(torch.nn.init.calculate_gain(name, dict(params).get("negative_slope")))  # type: ignore[arg-type]
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return number_to_data(value) if isinstance(value, float) else value
