"""The exact moments of a softmax against simulation."""

import numpy as np
import pytest

from isometry.moments import saturation


@pytest.mark.parametrize(("n", "variance"), [(7, 0.5), (60, 8.0), (200, 40.0)])
def test_moments_agree_with_simulation(n: int, variance: float) -> None:
    scores = np.random.default_rng(3).normal(0.0, variance**0.5, (4000, n))
    a = np.exp(scores - scores.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    square = (a**2).sum(1)
    kept = square - 2.0 * (a**3).sum(1) + square**2
    pairs = 1.0 - 3.0 * square + 2.0 * square**2 + 2.0 * (a**3).sum(1) - 2.0 * (a**4).sum(1)
    everything = saturation.moments(variance, np.array([float(n)]))
    for told, seen in zip(everything, (square, kept, pairs), strict=True):
        assert abs(float(told[0]) - seen.mean()) < 4.0 * seen.std() / len(seen) ** 0.5


@pytest.mark.parametrize(("n", "variance"), [(10, 0.09), (10, 4.0), (1000, 4.0), (10, 16.0)])
def test_the_logarithm_of_a_sum_agrees_with_simulation(n: int, variance: float) -> None:
    scores = np.random.default_rng(3).normal(0.0, variance**0.5, (4000, n))
    top = scores.max(1)
    seen = top + np.log(np.exp(scores - top[:, None]).sum(1))
    mean, spread = saturation.log_sum(variance, n)
    assert abs(mean - seen.mean()) < 4.0 * seen.std() / len(seen) ** 0.5
    squares = (seen - seen.mean()) ** 2
    assert abs(spread - squares.mean()) < 4.0 * squares.std() / len(seen) ** 0.5


@pytest.mark.parametrize("n", [8.0, 512.0, 1e5])
def test_small_variances_are_hardly_damped(n: float) -> None:
    assert 0.98 < float(saturation.damping(0.04, np.array(n))) <= 1.0


def test_damping_makes_the_closed_form_exact() -> None:
    n, variance = np.array([5.0, 300.0]), 6.0
    shift = np.exp(saturation.damping(variance, n) * variance)
    np.testing.assert_allclose(shift / (n - 1.0 + shift), saturation.moments(variance, n)[0], rtol=1e-9)
