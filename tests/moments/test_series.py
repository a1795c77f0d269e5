"""Mehler's series by pair class, against the sum written out; scores, against their closed form."""

from __future__ import annotations

import numpy as np
import pytest

from isometry.moments import axes as ax
from isometry.moments import latents, series, surfaces
from isometry.moments.axes import Array, Axis

AXES: tuple[Axis, ...] = ((2, 3, 4), (1, 5, 1), (7,))


def _written_out(ours: Array, theirs: Array, rho: Array) -> Array:
    products = ax.spread(ours, AXES, 0) * ax.spread(theirs, AXES, 1)
    return np.asarray((products * rho[..., None] ** np.arange(latents.ORDER + 1)).sum(-1))


def _correlations(generator: np.random.Generator, related: float) -> Array:
    """Return correlations of which a share is of any size, and the others next to nothing."""
    shape = [len(a) * (len(a) + 1) for a in AXES]
    close = generator.random(shape) < related
    sizes = np.where(close, generator.uniform(-1, 1, shape), generator.uniform(-1e-3, 1e-3, shape))
    return np.asarray(np.where(generator.random(shape) < 0.3, 0.0, sizes))


def _spectra(generator: np.random.Generator, *, multiples: bool) -> Array:
    lead = (3, 3, 1)
    if multiples:
        relu = latents.spectrum(np.maximum(latents.NODES, 0.0))
        return np.asarray(generator.uniform(0.5, 2.0, lead)[..., None] * relu)
    return latents.spectrum(np.maximum(latents.NODES + generator.normal(size=lead)[..., None], 0.0))


@pytest.mark.parametrize("related", [0.05, 1.0])
@pytest.mark.parametrize("multiples", [True, False])
def test_the_series_is_the_sum_written_out(multiples: bool, related: float) -> None:
    generator = np.random.default_rng(1)
    ours, theirs = (_spectra(generator, multiples=multiples) for _ in range(2))
    rho = _correlations(generator, related)
    for other in (ours, theirs):
        made = series.by_class(ours, other, rho, AXES)
        np.testing.assert_allclose(made, _written_out(ours, other, rho), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("r", [0.2, 0.6])
def test_a_score_of_a_step_is_linear(r: float) -> None:
    """1[y > c] given z, for y = r z + √(1 − r²) ε, has the expectation Φ((r z − c)/√(1 − r²))."""
    step = (latents.NODES > 0.3).astype(float)
    (found,) = surfaces.scores(step[None], latents.conditional(step, np.array(r))[None])
    error = latents.mean((found - r * latents.NODES) ** 2) ** 0.5
    assert error < 5e-3 * r
