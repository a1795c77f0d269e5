"""Products that a loop makes longer at every step, and parts that are nothing but rounding."""

from __future__ import annotations

import numpy as np
import pytest

from isometry.moments import algebra as alg
from isometry.moments import contract, latents
from isometry.moments.record import Gram


def test_long_products_stay_short_and_keep_their_moments() -> None:
    gate = 0.5 + 0.4 * np.tanh(latents.NODES)
    mean, square = float(latents.mean(gate)), float(latents.mean(gate**2))
    product = alg.normal((4, 5))
    for _ in range(30):
        product = alg.multiply(product, alg.independent((4, 5), gate))
        assert len(product.terms[0].factors) <= alg.MAX_FACTORS
    assert float(product.square.max()) == pytest.approx(square**30, rel=1e-9)
    positive = alg.constant((4, 5), 1.0)
    for _ in range(30):
        positive = alg.multiply(positive, alg.independent((4, 5), gate))
    assert float(positive.mean.max()) == pytest.approx(mean**30, rel=1e-9)
    assert float(positive.table[1, 1]) == pytest.approx(mean**60, rel=1e-9)


def test_a_sum_of_squares_knows_its_summands_and_nothing_that_rounding_left() -> None:
    """x² of x = a + b has no linear part in a or b: what is left of them is rounding."""
    x = alg.add(alg.normal((4, 64)), alg.normal((4, 64), std=0.7))
    summed = contract.average(alg.multiply(x, x), (1,))
    (factor,) = summed.terms[0].factors
    (part,) = [p for p in factor.parts if not isinstance(p.latent, Gram)]
    assert part.latent == x.terms[0].factors[0].latent
