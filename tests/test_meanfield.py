"""Mean-field maps against closed forms, SciPy, theory and simulation through wide random layers."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import nn

from isometry import meanfield
from isometry.criticality import critical_line, critical_point, fixed_point
from isometry.errors import InvalidTypeError, InvalidValueError


def normal_mean(f):
    return integrate.quad(lambda z: f(z) * stats.norm.pdf(z), -12, 12, epsabs=1e-13, epsrel=1e-12, limit=200)[
        0
    ]


def test_moments_of_relu_are_the_half_normals():
    found = meanfield.moments("relu", std=2.0)
    mean, second = 2 / math.sqrt(2 * math.pi), 2.0
    assert found.mean == pytest.approx(mean, rel=1e-13)
    assert found.second_moment == pytest.approx(second, rel=1e-13)
    assert found.variance == pytest.approx(second - mean**2, rel=1e-13)
    third, fourth = 8 * 2 / math.sqrt(2 * math.pi), 16 * 1.5
    centred = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    assert found.kurtosis == pytest.approx(centred / (second - mean**2) ** 2, rel=1e-12)
    assert found.slope_mean == pytest.approx(0.5, rel=1e-13)
    assert found.slope_second_moment == pytest.approx(0.5, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "mean"),
    [("leaky_relu", 0.3950), ("elu", 0.1605), ("gelu", 0.2821), ("silu", 0.2066), ("mish", 0.2404),
     ("softplus", 0.8061), ("hardswish", 0.1662), ("relu2", 0.5), ("tanh", 0.0)],
)  # fmt: skip
def test_means_agree_with_the_measured_table(name, mean):
    assert meanfield.moments(name).mean == pytest.approx(mean, abs=5e-5)


def test_moments_of_random_and_constant_maps():
    dropped = meanfield.moments(nn.Dropout(0.25))
    assert dropped.second_moment == pytest.approx(4 / 3, rel=1e-12)
    assert dropped.kurtosis == pytest.approx(3 * (4 / 3) ** 3 / (4 / 3) ** 2, rel=1e-12)
    assert meanfield.moments(lambda x: 0 * x + 2).kurtosis is None
    assert meanfield.moments("step").slope_second_moment is None


def test_hermite_coefficients_by_closed_form_and_parseval():
    found = meanfield.hermite_coefficients("relu", 7)
    root = math.sqrt(2 * math.pi)
    expected = [
        1 / root,
        0.5,
        1 / (root * math.sqrt(2)),
        0,
        -1 / (root * math.sqrt(24)),
        0,
        3 / (root * math.sqrt(720)),
    ]
    assert found == pytest.approx(expected, abs=1e-13)
    assert meanfield.hermite_coefficients("cube", 5) == pytest.approx([0, 3, 0, math.sqrt(6), 0], abs=1e-12)
    smooth = np.array(meanfield.hermite_coefficients("gelu", 60))
    assert float(smooth @ smooth) == pytest.approx(meanfield.moments("gelu").second_moment, abs=1e-9)
    with pytest.raises(InvalidValueError, match="between 1 and 100"):
        meanfield.hermite_coefficients("relu", 0)


@pytest.mark.parametrize("c", [-0.8, 0.0, 0.35, 0.99])
@pytest.mark.parametrize("q", [0.3, 2.5])
def test_duals_by_closed_form_at_any_length(c, q):
    angle = math.acos(c)
    kernel = q * (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)
    assert meanfield.dual("relu", c, length=q) == pytest.approx(kernel, abs=1e-12)
    assert meanfield.slope_dual("relu", c, length=q) == pytest.approx(
        (math.pi - angle) / (2 * math.pi), abs=1e-9
    )
    # Williams, 1997: erf(x) has 2/π·arcsin(2cq/(1 + 2q)).
    assert meanfield.dual("erf", c, length=q) == pytest.approx(
        2 / math.pi * math.asin(2 * c * q / (1 + 2 * q)), abs=1e-12
    )
    sine = math.exp(-q) * math.sinh(q * c)
    assert meanfield.dual("sin", c, length=q) == pytest.approx(sine, abs=1e-12)
    assert meanfield.slope_dual("sin", c, length=q) == pytest.approx(
        math.exp(-q) * math.cosh(q * c), abs=1e-12
    )


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu"])
def test_duals_agree_with_the_hermite_series_and_scipy(name):
    c = 0.4
    series = sum(a * a * c**k for k, a in enumerate(meanfield.hermite_coefficients(name, 40)))
    assert meanfield.dual(name, c) == pytest.approx(series, abs=1e-12)
    fn = {"tanh": np.tanh, "gelu": lambda x: x * stats.norm.cdf(x), "silu": lambda x: x / (1 + np.exp(-x))}[
        name
    ]
    root = math.sqrt(1 - c * c)
    double, _ = integrate.dblquad(
        lambda w, z: fn(z) * fn(c * z + root * w) * np.exp(-(z * z + w * w) / 2) / (2 * math.pi),
        -8, 8, -8, 8, epsabs=1e-9,
    )  # fmt: skip
    assert meanfield.dual(name, c) == pytest.approx(double, abs=1e-8)


@pytest.mark.parametrize("name", ["gelu", "hardtanh", "softplus"])
def test_slope_dual_is_the_derivative_of_the_dual(name):
    q, c, h = 1.7, 0.3, 1e-4
    difference = (meanfield.dual(name, c + h, length=q) - meanfield.dual(name, c - h, length=q)) / (2 * h)
    assert meanfield.slope_dual(name, c, length=q) * q == pytest.approx(difference, abs=1e-7)


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_maps_agree_with_a_wide_random_layer(name):
    generator = torch.Generator().manual_seed(5)
    width, out, q, c, weight_std, bias_std = 40_000, 100, 1.4, 0.35, 1.3, 0.4
    fn = {"tanh": torch.tanh, "relu": torch.relu, "gelu": nn.functional.gelu}[name]
    z = torch.randn(3, width, generator=generator, dtype=torch.float64)
    u = math.sqrt(q) * torch.stack([z[0], c * z[0] + math.sqrt(1 - c * c) * z[1]])
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64) * weight_std / math.sqrt(width)
    bias = torch.randn(out, generator=generator, dtype=torch.float64) * bias_std
    pre = fn(u) @ weight.T + bias
    length = meanfield.length_map(name, q, weight_std=weight_std, bias_std=bias_std)
    # Outputs are Gaussian given u: the mean of 2·out squares, of which pairs are correlated.
    assert float((pre**2).mean()) == pytest.approx(length, abs=5 * length * math.sqrt(2 / out))
    # The kernel itself, without the noise of the weights: a mean over the units.
    products = fn(u[0]) * fn(u[1])
    error = 5 * float(products.std()) / math.sqrt(width)
    dual = meanfield.dual(name, c, length=q)
    assert float(products.mean()) == pytest.approx(dual, abs=error)
    expected = (weight_std**2 * dual + bias_std**2) / length
    found = meanfield.correlation_map(name, c, length=q, weight_std=weight_std, bias_std=bias_std)
    assert found == pytest.approx(expected, rel=1e-12)


def test_chi_is_the_slope_of_the_correlation_map_at_one():
    for name in ("tanh", "gelu"):
        q, h = 0.8, 1e-5
        at_one = meanfield.chi(name, length=q, weight_std=1.0) * q / meanfield.length_map(name, q)
        found = (1 - meanfield.correlation_map(name, 1 - h, length=q)) / h
        assert found == pytest.approx(at_one, rel=1e-4)


def tanh_fixed_point(weight_std, bias_std):
    step = lambda q: weight_std**2 * normal_mean(lambda z: np.tanh(math.sqrt(q) * z) ** 2) + bias_std**2  # noqa: E731
    return optimize.brentq(lambda q: step(q) - q, 1e-3, 50, xtol=1e-14)


@pytest.mark.parametrize(("weight_std", "bias_std"), [(1.5, 0.3), (2.5, 0.1), (0.7, 0.5)])
def test_fixed_point_of_tanh_against_scipy(weight_std, bias_std):
    found = fixed_point("tanh", weight_std=weight_std, bias_std=bias_std)
    q = tanh_fixed_point(weight_std, bias_std)
    assert found.length == pytest.approx(q, rel=1e-10)
    chi = weight_std**2 * normal_mean(lambda z: np.cosh(math.sqrt(q) * z) ** -4.0)
    assert found.chi == pytest.approx(chi, rel=1e-9)
    # χ_q by Schoenholz's own form, with the second derivative.
    stein = normal_mean(
        lambda z: (
            np.cosh(math.sqrt(q) * z) ** -4.0
            - 2 * np.tanh(math.sqrt(q) * z) ** 2 * np.cosh(math.sqrt(q) * z) ** -2.0
        )
    )
    assert found.length_slope == pytest.approx(weight_std**2 * stein, rel=1e-8)
    assert found.length_depth == pytest.approx(-1 / math.log(abs(weight_std**2 * stein)), rel=1e-8)
    assert found.phase == ("chaotic" if chi > 1 else "ordered")


@pytest.mark.parametrize(("weight_std", "bias_std"), [(1.5, 0.3), (2.5, 0.1), (0.7, 0.5)])
def test_iterating_the_maps_ends_in_the_fixed_point_at_the_stated_rate(weight_std, bias_std):
    found = fixed_point("tanh", weight_std=weight_std, bias_std=bias_std)
    c, gaps = 0.5, []
    for _ in range(60):
        c = meanfield.correlation_map(
            "tanh", c, length=found.length, weight_std=weight_std, bias_std=bias_std
        )
        gaps.append(abs(c - found.correlation))
        if gaps[-1] < 1e-7:
            break
    assert found.correlation == pytest.approx(c, abs=0.02)
    assert gaps[-1] / gaps[-2] == pytest.approx(math.exp(-1 / found.correlation_depth), rel=0.02)


def test_signals_that_die_explode_or_stay():
    assert fixed_point("tanh", weight_std=0.9).length == 0
    assert fixed_point("tanh", weight_std=0.9).chi == pytest.approx(0.81, rel=1e-9)
    assert fixed_point("relu", weight_std=1.5).length == math.inf
    assert fixed_point("relu", weight_std=1.3).length == 0
    stays = fixed_point("relu", weight_std=math.sqrt(2))
    assert (stays.length, stays.phase, stays.correlation) == (1.0, "critical", 1.0)
    assert stays.correlation_depth == math.inf
    # relu with a bias below criticality: q = σ_b²/(1 − σ_w²/2).
    assert fixed_point("relu", weight_std=1.0, bias_std=0.5).length == pytest.approx(0.5, rel=1e-10)


def test_an_odd_activation_without_bias_makes_inputs_orthogonal_in_chaos():
    assert fixed_point("tanh", weight_std=2.0).correlation == 0.0


def test_the_forward_gain_fixes_length_one_even_where_it_is_unstable():
    found = fixed_point("gelu", weight_std=1 / math.sqrt(meanfield.moments("gelu").second_moment))
    assert found.length == pytest.approx(1.0, abs=1e-9)
    assert found.length_slope > 1
    assert found.length_depth < 0


def test_critical_points_known_in_closed_form():
    assert critical_point("relu").weight_std == pytest.approx(math.sqrt(2), rel=1e-12)
    assert critical_point("leaky_relu(0.2)").weight_std == pytest.approx(math.sqrt(2 / 1.04), rel=1e-12)
    assert critical_point("tanh").weight_std == pytest.approx(1.0, rel=1e-9)
    assert critical_point("gelu").weight_std == pytest.approx(2.0, rel=1e-9)
    # erf: E[φ′²] = (4/π)/√(1 + 4q), E[φ²] = (2/π)·arcsin(2q/(1 + 2q)).
    for point in critical_line("erf", [0.2, 1.0, 5.0]):
        q = point.length
        assert point.weight_std**2 == pytest.approx(math.pi / 4 * math.sqrt(1 + 4 * q), rel=1e-11)
        second = 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
        assert point.bias_std**2 == pytest.approx(q - point.weight_std**2 * second, rel=1e-9)


@pytest.mark.parametrize("bias_std", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_a_critical_point_is_critical_at_its_own_fixed_point(name, bias_std):
    point = critical_point(name, bias_std=bias_std)
    settled = fixed_point(name, weight_std=point.weight_std, bias_std=bias_std)
    assert settled.length == pytest.approx(point.length, rel=1e-6)
    assert settled.chi == pytest.approx(1.0, abs=1e-7)
    assert point.weight_std > 1 / (2 / math.sqrt(math.pi) if name == "erf" else 1)


def test_no_critical_point_is_said_so():
    with pytest.raises(InvalidValueError, match=r"relu has no critical point with bias_std=0.1"):
        critical_point("relu", bias_std=0.1)
    # exp: σ_w² = e^(−2q) and σ_b² = q − 1; square: σ_w² = 1/(4q) and σ_b² = q/4.
    assert critical_line("exp", [0.5]) == ()
    (point,) = critical_line("square", [0.5, 1.0])[1:]
    assert (point.weight_std, point.bias_std) == pytest.approx((0.5, 0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meanfield.chi("hardshrink"), "jumps at x = -0.5"),
        (lambda: meanfield.chi("sign"), "slope is zero"),
        (lambda: meanfield.slope_dual("step", 0.1), "no gradient flows"),
        (lambda: meanfield.dual(nn.Dropout(0.5), 0.1), "no correlation map: it is random"),
        (lambda: meanfield.dual("tanh", 2.0), r"\[-1, 1\]"),
        (lambda: meanfield.dual("tanh", 0.5, length=0.0), "length must be positive"),
        (lambda: meanfield.length_map("tanh", 1.0, weight_std=0.0), "weight_std must be positive"),
        (lambda: meanfield.length_map("tanh", 1.0, bias_std=-0.1), "bias_std must be finite"),
        (lambda: fixed_point("tanh", weight_std=math.nan), "weight_std must be positive"),
        (lambda: critical_line("tanh", [-1.0]), "length must be positive"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()


def test_deviations_that_are_no_numbers_are_named():
    with pytest.raises(InvalidTypeError, match="bias_std must be a number"):
        critical_point("tanh", bias_std="x")
