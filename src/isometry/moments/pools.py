"""What a pool's output knows of the members of its window, and the slopes behind it of the input.

A gradient γ·s(y) that comes to a pool's output y goes on to the members x_k of its window, where the next
slope is one of x_k, which y depends on:

    E[s(y)²| x_k] for a mean y,      s(x_k)² for a maximum y, which is x_k wherever that gets a gradient.

For a mean, windows are drawn from a fixed seed: z_k = √ρ·t + √(1−ρ)·ε_k with the mean correlation ρ of two
members. So are the quantiles of y, where members are alike. Exact for members that are alike equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import latents, near, near_maps, slopes
from isometry.moments.axes import Array
from isometry.moments.record import Factor, Moments
from isometry.moments.terms import changed

MOST = 36  # members of a window that is drawn
ALIKE = 0.02  # correlation below which members are taken as independent
_STRAIGHT = 0.98  # share of a variance that is linear
_NUMBERS = 400_000  # drawn for windows of one size


def remember(made: Moments, factor: Factor | None) -> None:
    """Let the variable of a pool's input know that of the output."""
    of_made = made.terms[0].factors[0] if made.terms[0].factors else None
    if of_made is not None and isinstance(getattr(factor, "latent", None), latents.Latent):
        assert factor is not None
        factor.latent.views["pooled", of_made.latent] = of_made.values  # type: ignore[attr-defined]


def slope_behind(g: Moments, factor: Factor | None) -> tuple[Array, Array] | None:
    """Return the slope s of a gradient γ·s(y), and y, at the nodes of y in all blocks; else None.

    Args:
        g: The gradient at a pool's output.
        factor: The pool's input.
    """
    if len(g.terms) != 1 or factor is None or not isinstance(factor.latent, latents.Latent):
        return None
    carrier, rest = slopes.split(g.terms[0])
    for f in rest if carrier is not None else []:
        values = factor.latent.views.get(("pooled", f.latent))
        if values is not None:
            s, y = (np.ravel(x) for x in np.broadcast_arrays(f.values, values))
            order = np.argsort(y)
            return s[order], y[order]
    return None


def of_maximum(slope: tuple[Array, Array], values: Array) -> Array:
    """Return a slope behind a maximum as a function of the input."""
    s, y = slope
    return np.asarray(np.interp(values, y, s))


def bent(values: Array) -> bool:
    """Return whether a function given at the nodes is more than a straight line with tails."""
    line = latents.coefficients(values)[..., 1] ** 2
    return bool(np.any(line < _STRAIGHT * (latents.mean(values**2) - latents.mean(values) ** 2)))


def alike(m: Moments, matrices: Sequence[Array]) -> float:
    """Return the mean correlation of the latents of two members of a window; see `near`."""
    factor = alg.absorbed(m.terms[0], m.axes) if len(m.terms) == 1 else None
    if factor is None or len(m.axes) < len(matrices):
        return 0.0
    by_distance = near.correlations(factor, m.axes, len(matrices)).reshape(-1, _distances(matrices).size)
    weights = _distances(matrices)[1:]
    return max(float(by_distance.mean(0)[1:] @ weights / max(float(weights.sum()), 1e-300)), 0.0)


def _distances(matrices: Sequence[Array]) -> Array:
    how = near_maps.reading([*matrices], [(matrix.shape[0],) for matrix in matrices])
    return np.asarray(how.distances[0])


def with_members(dx: Moments, g: Moments, x: Moments, matrices: Sequence[Array], rho: float) -> Moments:
    """Return the gradient at the input x of a mean over windows with what the slope behind it knows of x."""
    factor = alg.absorbed(x.terms[0], x.axes) if len(x.terms) == 1 else None
    slope, members = slope_behind(g, factor), float(np.prod([(w != 0).sum(1).mean() for w in matrices]))
    if factor is None or slope is None or dx.axes != x.axes or not 1.5 < members <= MOST:
        return dx
    if factor.values[..., 0].size != 1 or slope[0].size != len(latents.NODES) or not bent(factor.values):
        return dx  # unlike blocks, or no other slope follows
    row = factor.values.reshape(-1)
    square = given(row.tobytes(), round(members), round(rho, 3), *(a.tobytes() for a in slope))
    own = changed(factor, np.sqrt(square).reshape(factor.values.shape), x.axes)
    return near.like(slopes.carried(dx, [own], dx.table), dx)


@lru_cache(maxsize=64)
def given(values: bytes, members: int, rho: float, slope: bytes, at: bytes) -> Array:
    """Return E[s(y)²| z] at the nodes of one of the members' z, in units of its mean."""
    z, y = _windows(values, members, rho)
    s, nodes = np.frombuffer(slope), np.frombuffer(at)
    size = (latents.mean(nodes**2) - latents.mean(nodes) ** 2) ** 0.5
    y = latents.mean(nodes) + (y - y.mean()) * size / max(float(y.std()), 1e-300)
    square = np.broadcast_to(np.interp(y, nodes, s)[:, None] ** 2, z.shape)
    inner = np.clip(latents.NODES, -3.0, 3.0)
    cell = np.searchsorted(0.5 * (inner[1:] + inner[:-1]), z).ravel()
    cells = np.bincount(cell, minlength=len(inner)), np.bincount(cell, square.ravel(), minlength=len(inner))
    known = cells[0] > 0
    made = np.interp(latents.NODES, latents.NODES[known], cells[1][known] / cells[0][known])
    return np.asarray(made / max(float(latents.mean(made)), 1e-300))


@lru_cache(maxsize=64)
def means(values: bytes, members: int, rho: float) -> Array:
    """Return the quantiles of the mean of so many members, at the nodes."""
    return latents.even_quantiles(_windows(values, members, rho)[1])


@lru_cache(maxsize=4)
def _windows(values: bytes, members: int, rho: float) -> tuple[Array, Array]:
    """Return members' z, and the windows' means."""
    random = np.random.default_rng(0)
    draws = _NUMBERS // members
    common = (np.arange(draws) + 0.5) / draws
    t = np.interp(common, np.cumsum(latents.WEIGHTS) - 0.5 * latents.WEIGHTS, latents.NODES)
    z = rho**0.5 * t[:, None] + (1.0 - rho) ** 0.5 * random.standard_normal((draws, members))
    x = np.interp(z, latents.NODES, np.frombuffer(values))
    return z, x.mean(1)
