"""Quadrature against closed forms and SciPy with explicit break points."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from isometry import gaussian
from isometry.errors import InvalidValueError


def quad(f, *breaks):
    points = [-12.0, *sorted(breaks), 12.0]
    return sum(
        integrate.quad(lambda z: f(z) * stats.norm.pdf(z), a, b, epsabs=1e-14, epsrel=1e-13, limit=200)[0]
        for a, b in itertools.pairwise(points)
    )


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (2, 1), (4, 3), (6, 15), (8, 105)])
def test_nodes_integrate_the_moments_of_a_gaussian(power, moment):
    rule = gaussian.nodes()
    assert float(rule.expect(rule.z**power)) == pytest.approx(moment, rel=1e-13)


def test_nodes_take_given_edges():
    rule = gaussian.nodes(torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64))
    expected = stats.norm.cdf(1.0) - 0.5
    assert float(rule.expect(torch.ones_like(rule.z))) == pytest.approx(expected, rel=1e-14)


# Kinks and jumps off the grid, close beside its edges, and close to each other.
@pytest.mark.parametrize("place", [0.3, -0.7, 1.3, 0.2501, 1e-3, -1e-7, math.pi, 0.25 + 1e-10, -5.123])
@pytest.mark.parametrize("kind", ["kink", "jump"])
def test_expectation_resolves_breaks_anywhere(place, kind):
    if kind == "kink":
        found = gaussian.expectation(lambda z: (z - place).relu())
        expected = stats.norm.pdf(place) - place * stats.norm.sf(place)
    else:
        found = gaussian.expectation(lambda z: (z > place).double())
        expected = stats.norm.sf(place)
    assert found == pytest.approx(expected, rel=1e-9)


def test_expectation_resolves_breaks_close_together():
    found = gaussian.expectation(lambda z: z.clamp(0.3001, 0.3052))
    assert found == pytest.approx(quad(lambda z: np.clip(z, 0.3001, 0.3052), 0.3001, 0.3052), rel=1e-11)


def test_expectation_resolves_many_jumps():
    found = gaussian.expectation(lambda z: (torch.floor(7.3 * z) / 7.3) ** 2)
    edges = np.arange(-88, 89) / 7.3
    levels = edges[:-1] ** 2
    assert found == pytest.approx(float(levels @ np.diff(stats.norm.cdf(edges))), rel=1e-9)


@pytest.mark.parametrize("steepness", [1.0, 30.0, 1000.0])
def test_expectation_follows_steep_and_fast_functions(steepness):
    cosine = gaussian.expectation(lambda z: torch.cos(min(steepness, 30.0) * z) + 1)
    assert cosine == pytest.approx(1 + math.exp(-(min(steepness, 30.0) ** 2) / 2), rel=1e-11)
    found = gaussian.expectation(lambda z: torch.sigmoid(steepness * (z - 0.4)))
    span = 40 / steepness
    expected = quad(
        lambda z: special.expit(steepness * (z - 0.4)), max(0.4 - span, -11), 0.4, 0.4 + min(span, 11)
    )
    assert found == pytest.approx(expected, rel=1e-10)


def test_refined_rows_share_nodes_and_stay_few():
    rows = lambda z: torch.stack([torch.nn.functional.softshrink(z, 0.3), (z - 0.3137).relu()])  # noqa: E731
    fit = gaussian.refine(rows)
    assert fit.nodes.z.numel() < 1200
    assert torch.all(fit.residual == 0)
    # The breaks themselves are edges.
    for place in (-0.3, 0.3, 0.3137):
        assert float((fit.nodes.edges - place).abs().min()) < 1e-9
    found = fit.nodes.expect(rows(fit.nodes.z) ** 2)
    shrink = 2 * quad(lambda z: max(z - 0.3, 0.0) ** 2, 0.3)
    shifted = quad(lambda z: max(z - 0.3137, 0.0) ** 2, 0.3137)
    assert found.tolist() == pytest.approx([shrink, shifted], rel=1e-11)


@pytest.mark.parametrize(
    "f", [lambda z: 1 / z, lambda z: torch.exp(z * z / 2), lambda z: torch.where(z > 0, z.abs() ** -1.0, z)]
)
def test_divergent_integrals_are_refused(f):
    with pytest.raises(InvalidValueError, match="does not converge"):
        gaussian.expectation(f)


def test_hermite_basis_is_orthonormal():
    rule = gaussian.nodes()
    basis = gaussian.hermite_basis(rule.z, 16)
    gram = rule.expect(basis[:, None] * basis)
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-11, rtol=0)
    expected = special.eval_hermitenorm(7, rule.z.numpy()) / math.sqrt(math.factorial(7))
    np.testing.assert_allclose(basis[7].numpy(), expected, rtol=1e-9, atol=1e-9)
    assert gaussian.hermite_basis(rule.z, 1).shape == (1, rule.z.numel())


def relu_kernel(c):
    angle = math.acos(c)
    return (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)


CORRELATIONS = [-1.0, -0.999999, -0.6, -0.1, 0.0, 0.3, 0.9, 0.9999, 1 - 1e-9, 1.0]


@pytest.mark.parametrize("c", CORRELATIONS)
def test_dual_of_relu_is_the_arc_cosine_kernel(c):
    assert float(gaussian.dual(torch.relu, c, breaks=[0.0])) == pytest.approx(relu_kernel(c), abs=1e-13)


@pytest.mark.parametrize("c", CORRELATIONS)
def test_dual_of_erf_and_sign_are_arcsines(c):
    erf = 2 / math.pi * math.asin(2 * c / 3)
    assert float(gaussian.dual(torch.erf, c)) == pytest.approx(erf, abs=1e-12)
    sign = 2 / math.pi * math.asin(c)
    assert float(gaussian.dual(torch.sign, c, breaks=[0.0])) == pytest.approx(sign, abs=1e-9)


@pytest.mark.parametrize("c", [-0.7, 0.4, 0.95])
def test_dual_with_breaks_off_the_grid_is_the_double_integral(c):
    low, high = -0.7, 1.3

    def inner(z):
        root = math.sqrt(1 - c * c)
        places = [p for p in ((low - c * z) / root, (high - c * z) / root) if -12 < p < 12]
        return quad(lambda w: np.clip(c * z + root * w, low, high), *places)

    grid, weight = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for a, b in ((-9, -3), (-3, low), (low, high), (high, 3), (3, 9)):
        z = (b - a) / 2 * grid + (a + b) / 2
        values = [np.clip(p, low, high) * stats.norm.pdf(p) * inner(p) for p in z]
        total += (b - a) / 2 * float(weight @ np.array(values))
    found = gaussian.dual(lambda z: z.clamp(low, high), c, breaks=[low, high])
    assert float(found) == pytest.approx(total, abs=1e-9)


def test_dual_refuses_an_impossible_correlation():
    with pytest.raises(InvalidValueError, match=r"\[-1, 1\], got 1.01"):
        gaussian.dual(torch.tanh, 1.01)


def test_breakpoints_find_kinks_on_and_off_the_grid_but_no_smooth_edges():
    def f(z):
        return z.relu() + (z - 0.3).relu() + torch.tanh(z) + (z - 1).relu() ** 2

    fit = gaussian.refine(f)
    found = gaussian.breakpoints(f, fit.nodes)
    assert len(found) < 12
    for place in (0.0, 0.3, 1.0):
        assert float((found - place).abs().min()) < 1e-8
    assert gaussian.breakpoints(torch.tanh, gaussian.nodes()).numel() == 0


def test_work_under_other_default_devices_and_types():
    with torch.device("meta"):
        assert gaussian.expectation(lambda z: (z - 0.123).relu()) > 0
        assert gaussian.dual(torch.relu, 0.5, breaks=[0.0]).device.type == "cpu"
