"""How much larger the mean of an inverse sample variance is than the inverse of its mean."""

from __future__ import annotations

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import fan
from isometry.moments import record as rec
from isometry.moments.averages import one_block
from isometry.moments.axes import Array
from isometry.moments.record import Moments

_GRID = np.linspace(-16.0, 14.0, 301)


def inverse_variance(unit: Moments, over: tuple[int, ...], excess: float | None = None) -> Array:
    """Return E[1/(v̂ + ε)]·E[v̂ + ε] of a sample variance v̂ over dims, an array of length 1 along those.

    From the normalised record, whose own variance is 1 less the share of ε.

    v̂ = Σ λ_j χ²_j with the eigenvalues λ of the entries' correlations, and E[1/(v̂ + ε)] = ∫ e^{−εt}
    Π (1 + 2λ_j t)^{−½} dt. Exact for jointly normal entries; those of one block per axis are exchangeable, so
    that an axis of n entries has the eigenvectors "constant" and, n − 1 times, "contrast". Entries with
    another kurtosis k give v̂ the variance (k − 1)/n in place of 2/n: they count as 2/(k − 1) normal ones each
    (asymptotic). What varies between blocks is averaged.

    Args:
        unit: The normalised record.
        over: The dims.
        excess: Excess kurtosis that counts; by default that of the entries.
    """
    excess = fan.kurtosis(unit) if excess is None else excess
    unit = one_block(unit, over)
    positions = [p for d in over for p in unit.positions(d)]
    spectrum, times = unit.table, np.ones(1)
    for p in positions:
        n = ax.size(unit.axes[p])
        full = np.broadcast_to(spectrum, (*spectrum.shape[:p], 2, *spectrum.shape[p + 1 :]))
        turned = np.tensordot(np.array([[1.0, n - 1.0], [1.0, -1.0]]), full, axes=(1, p))
        spectrum = np.moveaxis(turned, 0, p)
        times = np.multiply.outer(times, [1.0, n - 1.0]).ravel()
    rest = [p for p in range(spectrum.ndim) if p not in positions]
    flat = rec.diagonal(
        spectrum.transpose([*rest, *positions]).reshape((*[spectrum.shape[p] for p in rest], -1)),
        (*[unit.axes[p] for p in rest], (1,) * times.size),
    )
    own = np.maximum(flat, 0.0) / times.sum()
    constant = np.maximum(1.0 - (own * times).sum(-1, keepdims=True), 0.0)  # the share of ε
    alike = 2.0 / max(excess + 2.0, 0.1)
    t = np.exp(_GRID)
    falling = -0.5 * alike * (np.log1p(2.0 * own[..., None] / alike * t) * times[:, None]).sum(-2)
    falling = falling - constant * t
    factor = np.trapezoid(np.exp(falling + _GRID), _GRID, axis=-1)
    # Fewer than three degrees of freedom leave no finite mean: it is cut at five times.
    return np.asarray(np.expand_dims(np.clip(factor, 1.0, 5.0), tuple(positions)))
