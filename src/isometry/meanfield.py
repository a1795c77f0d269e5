"""Mean-field theory of wide random networks: how lengths and angles travel through depth.

In a network x_{l+1} = W·φ(x_l) + b with independent weights of variance σ_w²/fan_in and biases of
variance σ_b², wide layers carry Gaussian pre-activations. Their variance ("length") q and the
correlation c of two inputs follow two maps:

    q ↦ σ_w²·E[φ(√q·z)²] + σ_b²
    c ↦ (σ_w²·E[φ(u₁)·φ(u₂)] + σ_b²)/q,   u₁, u₂ of variance q and correlation c

and gradients grow by χ₁ = σ_w²·E[φ′(√q·z)²] per layer, which is also the slope of the second map at
c = 1. χ₁ < 1 is order (inputs merge, gradients vanish), χ₁ > 1 chaos (inputs part, gradients explode),
χ₁ = 1 the critical line. All of it is exact in the limit of infinite width; the expectations are
numerically exact.

References: Poole et al., Exponential expressivity in deep neural networks through transient chaos,
2016; Schoenholz et al., Deep information propagation, 2017. Fixed points and the critical line are in
`criticality.py`.
"""

import math
import numbers
from dataclasses import dataclass

from isometry import gaussian
from isometry.activations import Activation, ActivationLike, resolve
from isometry.activations.response import Response, respond
from isometry.errors import InvalidTypeError, InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of φ(x) and φ′(x) for Gaussian x.

    Attributes:
        mean: E[φ].
        second_moment: E[φ²], what the next layer sees.
        variance: E[φ²] − E[φ]².
        kurtosis: E[(φ − E[φ])⁴]/variance², 3 for a Gaussian; None for a constant.
        slope_mean: E[φ′]; None where there is no slope to integrate.
        slope_second_moment: E[φ′²], the gradient's factor per layer; None likewise.
    """

    mean: float
    second_moment: float
    variance: float
    kurtosis: float | None
    slope_mean: float | None
    slope_second_moment: float | None


def moments(activation: ActivationLike, *, mean: float = 0.0, std: float = 1.0) -> Moments:
    """Mean, second moment, variance and kurtosis of φ(x), and the moments of φ′(x), for x ~ N(mean, std²).

    Args:
        activation: A name ("silu", "leaky_relu(0.2)"), an `nn.Module` or its class, or any pointwise map.
        mean: Mean of the input.
        std: Standard deviation of the input.

    Returns:
        The moments.

    Raises:
        InvalidValueError: E[φ²] is infinite or undefined, or an argument cannot be used.

    Example:
        >>> found = moments("relu")
        >>> round(found.mean, 4), round(found.second_moment, 4)
        (0.3989, 0.5)
    """
    return moments_of(respond(resolve(activation), mean=mean, std=std))


def moments_of(response: Response) -> Moments:
    """The moments of a response that is already at hand."""
    average = response.expect(response.value)
    if abs(average) < 1e-15 * math.sqrt(response.second_moment):
        average = 0.0  # an odd activation's, up to rounding
    centred = response.value - average
    variance = response.expect(centred**2)
    constant = variance <= 1e-24 * response.second_moment
    slope = response.slope
    return Moments(
        mean=average,
        second_moment=response.second_moment,
        variance=variance,
        kurtosis=None if constant else response.expect(centred**4) / variance**2,
        slope_mean=None if slope is None else response.expect(slope),
        slope_second_moment=None if slope is None else response.slope_second_moment,
    )


def hermite_coefficients(
    activation: ActivationLike, count: int = 8, *, mean: float = 0.0, std: float = 1.0
) -> tuple[float, ...]:
    """Coefficients of φ(mean + std·z) in the normalised probabilists' Hermite polynomials.

    a_k = E[φ(mean + std·z)·h_k(z)], so that φ = Σ a_k·h_k, E[φ²] = Σ a_k², and the dual map is
    Σ a_k²·c^k. a_0 is the mean. Of a random activation, the coefficients of its mean map.

    Args:
        activation: As in `moments`.
        count: How many, from a_0; up to 100, beyond which the range of z cuts into the polynomials.
        mean: Mean of the input.
        std: Standard deviation of the input.

    Returns:
        The coefficients a_0 … a_{count−1}.

    Raises:
        InvalidValueError: `count` is out of range, or as in `moments`.

    Example:
        >>> [round(a, 4) for a in hermite_coefficients("relu", 4)]
        [0.3989, 0.5, 0.2821, 0.0]

    Reference: Daniely, Frostig and Singer, 2016, section 4.
    """
    if not 1 <= count <= 100:
        raise InvalidValueError(f"count must be between 1 and 100, got {count}")
    return hermite_of(respond(resolve(activation), mean=mean, std=std), count)


def hermite_of(response: Response, count: int) -> tuple[float, ...]:
    """The Hermite coefficients of a response that is already at hand."""
    basis = gaussian.hermite_basis(response.nodes.z, count)
    average = response.probability @ response.value
    # + 0.0 turns −0.0 into 0.0; what is below rounding is 0.
    scale = 1e-15 * math.sqrt(response.second_moment)
    found = response.nodes.expect(basis * average).tolist()
    return tuple(0.0 if abs(a) < scale else a for a in found)


def dual(activation: ActivationLike, correlation: float, *, length: float = 1.0) -> float:
    """The dual of an activation, E[φ(u₁)·φ(u₂)], for Gaussians of variance `length` and given correlation.

    Args:
        activation: As in `moments`; not random.
        correlation: c in [−1, 1].
        length: Variance q of both inputs.

    Returns:
        The expectation; E[φ²] at c = 1, E[φ]² at c = 0.

    Raises:
        InvalidValueError: The activation is random, has no finite E[φ²], or an argument is out of range.

    Example:
        >>> round(dual("relu", 0.0) * 2 * math.pi, 12)
        1.0

    Reference: Cho and Saul, 2009 (relu: the arc-cosine kernel); Daniely, Frostig and Singer, 2016.
    """
    return response_at(resolve(activation), length).dual(correlation)


def slope_dual(activation: ActivationLike, correlation: float, *, length: float = 1.0) -> float:
    """The dual of the derivative, E[φ′(u₁)·φ′(u₂)]: the derivative of `dual` by the covariance c·q.

    Args:
        activation: As in `dual`; without jumps.
        correlation: c in [−1, 1].
        length: Variance q of both inputs.

    Returns:
        The expectation; times σ_w² the slope of the correlation map at a fixed length.

    Raises:
        InvalidValueError: As in `dual`; also for an activation without a slope, or with jumps.

    Example:
        >>> round(slope_dual("relu", 0.0), 12)
        0.25
    """
    response = response_at(resolve(activation), length)
    require_no_jumps(response)
    return response.slope_dual(correlation)


def length_map(
    activation: ActivationLike, length: float, *, weight_std: float = 1.0, bias_std: float = 0.0
) -> float:
    """The next layer's length, σ_w²·E[φ(√q·z)²] + σ_b².

    Args:
        activation: As in `moments`.
        length: Variance q of the pre-activations.
        weight_std: σ_w; weights have the variance σ_w²/fan_in.
        bias_std: σ_b, the standard deviation of the biases.

    Returns:
        The next q.

    Raises:
        InvalidValueError: An argument is out of range, or E[φ²] is infinite.

    Example:
        >>> round(length_map("relu", 3.0, weight_std=math.sqrt(2)), 12)
        3.0

    Reference: Poole et al., 2016, equation 3.
    """
    require_stds(weight_std, bias_std)
    return weight_std**2 * response_at(resolve(activation), length).second_moment + bias_std**2


def correlation_map(
    activation: ActivationLike,
    correlation: float,
    *,
    length: float = 1.0,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
) -> float:
    """The next layer's correlation of two inputs that both have the given length.

    (σ_w²·E[φ(u₁)·φ(u₂)] + σ_b²)/(σ_w²·E[φ²] + σ_b²). At the fixed length the denominator is q*.

    Args:
        activation: As in `dual`.
        correlation: c in [−1, 1].
        length: Variance q of both inputs.
        weight_std: σ_w.
        bias_std: σ_b.

    Returns:
        The next c.

    Raises:
        InvalidValueError: As in `dual` and `length_map`.

    Example:
        >>> round(correlation_map("relu", 0.0), 4)  # unrelated inputs meet halfway to 2/π in one layer
        0.3183

    Reference: Poole et al., 2016, equation 5.
    """
    require_stds(weight_std, bias_std)
    response = response_at(resolve(activation), length)
    response.require_output()
    return next_correlation(response, correlation, weight_std, bias_std)


def chi(activation: ActivationLike, *, length: float = 1.0, weight_std: float = 1.0) -> float:
    """χ₁ = σ_w²·E[φ′(√q·z)²]: the gradient's factor per layer, and the correlation map's slope at 1.

    Args:
        activation: As in `moments`; without jumps, at which the slope of the correlation map is infinite.
        length: Variance q of the pre-activations.
        weight_std: σ_w.

    Returns:
        χ₁.

    Raises:
        InvalidValueError: The activation jumps or has no slope, or an argument is out of range.

    Example:
        >>> round(chi("relu", weight_std=math.sqrt(2)), 12)
        1.0

    Reference: Schoenholz et al., 2017, equation 5.
    """
    require_stds(weight_std, 0.0)
    response = response_at(resolve(activation), length)
    require_no_jumps(response)
    return weight_std**2 * response.slope_second_moment


def response_at(activation: Activation, length: float) -> Response:
    """The response to Gaussian input of the given variance; refuses a length that is none."""
    if not (math.isfinite(length) and length > 0):
        raise InvalidValueError(f"length must be positive and finite, got {length}")
    return respond(activation, std=math.sqrt(length))


def require_stds(weight_std: float, bias_std: float) -> None:
    """Refuse standard deviations that are none."""
    for name, value in (("weight_std", weight_std), ("bias_std", bias_std)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(weight_std) and weight_std > 0):
        raise InvalidValueError(f"weight_std must be positive and finite, got {weight_std}")
    if not (math.isfinite(bias_std) and bias_std >= 0):
        raise InvalidValueError(f"bias_std must be finite and not negative, got {bias_std}")


def require_no_jumps(response: Response) -> None:
    """Refuse an activation whose χ₁ is infinite or undefined."""
    response.require_slope()
    if response.jumps:
        raise InvalidValueError(
            f"{response.activation.name} jumps at x = {response.jumps[0]:.4g}: χ₁, the slope of its "
            "correlation map at 1, is infinite, whatever the derivative that autograd computes"
        )


def next_correlation(response: Response, correlation: float, weight_std: float, bias_std: float) -> float:
    """`correlation_map` of a response that is already at hand."""
    upper = weight_std**2 * response.dual(correlation) + bias_std**2
    return upper / (weight_std**2 * response.second_moment + bias_std**2)
