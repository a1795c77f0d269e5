"""The normal law between bounds against SciPy's truncnorm."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from isometry.errors import InvalidValueError
from isometry.init.bounded import BoundedNormal, bounded_normal
from isometry.sampling import Normal, TruncatedNormal, fill_

LAWS = [
    BoundedNormal(1.0, 0.0, -2.0, 2.0),
    BoundedNormal(1.0, 0.0, -2.5, 9.0),
    BoundedNormal(0.5, 1.0, 0.2, math.inf),
    BoundedNormal(1.0, 0.0, -1.05, 40.0),
    BoundedNormal(0.02, 0.0, -2.0, 2.0),
    BoundedNormal(1.0, 3.0, -50.0, 4.2),
]


def scipy_law(law: BoundedNormal) -> stats.rv_continuous:
    mu, sigma = law.parent
    return stats.truncnorm((law.low - mu) / sigma, (law.high - mu) / sigma, loc=mu, scale=sigma)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_parent_gives_the_mean_and_std_asked_for(law: BoundedNormal) -> None:
    assert scipy_law(law).mean() == pytest.approx(law.mean, abs=1e-8 * law.std)
    assert scipy_law(law).std() == pytest.approx(law.std, rel=1e-8)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_values_follow_the_law(law: BoundedNormal) -> None:
    values = fill_(torch.empty(20_000), law, generator=torch.Generator().manual_seed(0)).double().numpy()
    assert values.min() >= np.float32(law.low)
    assert values.max() <= np.float32(law.high)
    assert stats.kstest(values, scipy_law(law).cdf).pvalue > 1e-4


def test_the_fastest_form_is_the_same_law() -> None:
    assert bounded_normal(2.0, 1.0, -math.inf, math.inf) == Normal(2.0, 1.0)
    fast = bounded_normal(0.02, 0.5, 0.46, 0.54)
    assert isinstance(fast, TruncatedNormal)
    assert fast.bounds == pytest.approx((0.46, 0.54), rel=1e-9)
    assert isinstance(bounded_normal(0.02, 0.5, 0.46, 0.55), BoundedNormal)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.1, 0.0, -1.9, 1.9), "too narrow"),
        ((1.0, 0.0, -0.9, math.inf), "too narrow"),
        ((1.0, 2.0, -2.0, 2.0), "between the bounds"),
        ((1.0, 0.0, math.nan, 2.0), "between the bounds"),
        ((0.0, 0.0, -2.0, 2.0), "std positive"),
        ((1.0, math.nan, -2.0, 2.0), "finite"),
    ],
)
def test_impossible_laws(arguments: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        BoundedNormal(*arguments)


def test_complex_parts_halve_the_variance() -> None:
    law = BoundedNormal(1.0, 0.2, -1.9, 2.0)
    part = law.component()
    assert (part.std, part.mean, part.low, part.high) == pytest.approx(
        tuple(value / math.sqrt(2) for value in (1.0, 0.2, -1.9, 2.0))
    )
