"""The largest of several equally correlated normal variables.

Its distribution, its covariances, and which one it is.

For z_k = √a t + √(1−a) e_k the largest of K is √a t + √(1−a) max e_k. Two such maxima over windows whose
variables at one place have correlation b₀, and at different places b₁, have the covariance b₁ +
(1−a)·h((b₀−b₁)/(1−a)) with

    h(r) = ∫∫ Φ₂(x, y; r)^K − Φ(x)^K Φ(y)^K dx dy        (Hoeffding)

the covariance of the maxima of K independent pairs of correlation r. Given z_k = z it is the largest with the
probability E[Φ((z − √a t)/√(1−a))^{K−1} | z]. Exact up to the quadrature; K may be a mean, no whole number.

Where windows overlap, maxima of K variables of which m are the same have the covariance

    ∫∫ Φ(min(x, y))^m (Φ(x) Φ(y))^{K−m} − Φ(x)^K Φ(y)^K dx dy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import pi

import numpy as np
import torch

from isometry.moments import latents
from isometry.moments.axes import Array

_GRID: Array = np.linspace(-6.0, 6.0, 121)
_ANGLES: Array = np.linspace(0.0, pi / 2, 65)


def cumulative(x: Array) -> Array:
    """Return Φ(x)."""
    return np.asarray(torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(x))).numpy())


@lru_cache(maxsize=256)
def _covariances(count: float) -> tuple[Array, Array]:
    """Return correlations r and h(r)."""
    phi = cumulative(_GRID)
    independent = np.multiply.outer(phi, phi)
    x, y = _GRID[:, None], _GRID[None]
    step, area = float(_ANGLES[1]), float(_GRID[1] - _GRID[0]) ** 2
    base = independent**count
    found: dict[float, float] = {0.0: 0.0}
    for sign in (1.0, -1.0):
        joint, before = independent.copy(), np.exp(-0.5 * (x**2 + y**2))
        for angle in _ANGLES[1:-1]:
            now = np.exp(-0.5 * (x**2 + y**2 - 2 * sign * x * y * np.sin(angle)) / np.cos(angle) ** 2)
            joint = joint + sign * step * 0.5 * (before + now) / (2 * pi)
            before = now
            found[sign * float(np.sin(angle))] = float(
                (np.clip(joint, 0.0, 1.0) ** count - base).sum() * area
            )
    found[1.0] = _variance(phi, count)
    r = np.array(sorted(found))
    return r, np.array([found[k] for k in r])


def _variance(phi: Array, count: float) -> float:
    weights = np.diff(phi**count)
    middle = 0.5 * (_GRID[1:] + _GRID[:-1])
    mean = float(weights @ middle)
    return float(weights @ (middle - mean) ** 2) - float(_GRID[1] - _GRID[0]) ** 2 / 12


@lru_cache(maxsize=256)
def _shares(count: float) -> tuple[Array, Array]:
    """Return shares s and the covariances of two maxima of K variables, s·K of which are the same."""
    phi = cumulative(_GRID)
    area = float(_GRID[1] - _GRID[0]) ** 2
    low, both = np.minimum.outer(phi, phi), np.multiply.outer(phi, phi)
    shares = np.linspace(0.0, 1.0, 17)
    found = [
        float((low ** (s * count) * both ** ((1.0 - s) * count) - both**count).sum() * area) for s in shares
    ]
    return shares, np.array(found)


def shared(count: float, share: Array) -> Array:
    """Return the covariance of the maxima of `count` independent variables, of which a share is the same."""
    return np.interp(share, *_shares(round(count, 2)))


@lru_cache(maxsize=256)
def _coupled(share: float) -> Array:
    """Return P(z ≤ x, z′ ≤ y) − Φ(x)Φ(y) between the nodes; see `alike`."""
    below = cumulative(0.5 * (latents.NODES[1:] + latents.NODES[:-1]))
    both = np.multiply.outer(below, below)
    return np.asarray(np.minimum.outer(below, below) ** share * both ** (1.0 - share) - both)


def alike(values: Array, shares: Array) -> tuple[Array, Array]:
    """Return the covariance of a function of maxima that have a share of their variables in common.

    Of uniform ranks u and v, min(u, v)^s (uv)^{1−s} is the probability that both maxima lie below: of K
    independent variables each, for any K.

    Args:
        values: The function of the maxima's normal variables, at the nodes; a block array.
        shares: Of the shape of `values` less the nodes, but for its last dimension.

    Returns:
        The covariances, and the normal variables' correlations.
    """
    rises, slopes = np.diff(values, axis=-1), np.diff(latents.NODES)
    found = np.zeros(np.broadcast_shapes(rises.shape[:-1], shares.shape))
    normal = np.zeros(shares.shape)
    whole = _coupled(1.0)
    size = latents.mean((values - latents.mean(values)[..., None]) ** 2)
    size = size / np.maximum((rises @ whole * rises).sum(-1), 1e-300)
    for share in np.unique(np.round(shares[shares > 0], 3)):
        here = np.round(shares, 3) == share
        coupled = _coupled(float(share))
        found = np.where(here, size * (rises @ coupled * rises).sum(-1), found)
        normal = np.where(here, slopes @ coupled @ slopes / (slopes @ whole @ slopes), normal)
    return found, normal


def covariance(count: float, r: Array) -> Array:
    """Return h(r), the covariance of the maxima of `count` independent pairs of correlation r."""
    return np.interp(r, *_covariances(round(count, 2)))


def quantiles(counts: Sequence[float], shares: Sequence[float], common: float) -> Array:
    """Return the largest of K normal variables as a monotone function at the nodes.

    Args:
        counts: Each K that occurs.
        shares: How often.
        common: The correlation a of the variables.
    """
    fine = np.linspace(-6.0, 6.0, 1201)
    t, weights = np.polynomial.hermite_e.hermegauss(32 if common > 0.01 else 1)
    phi = cumulative((fine[:, None] - common**0.5 * t) / (1 - common) ** 0.5)
    below = sum(s * (phi**k) @ (weights / weights.sum()) for k, s in zip(counts, shares, strict=True))
    return latents.quantiles(0.5 * (fine[1:] + fine[:-1]), np.maximum(np.diff(below), 0.0))


def chosen(counts: Sequence[float], shares: Sequence[float], common: float) -> Array:
    """Return at the nodes the probability that a variable is the largest of its K, given its value."""
    common = max(common, 0.0)
    t, weights = np.polynomial.hermite_e.hermegauss(24)
    shared = common**0.5 * latents.NODES[:, None] + (1 - common) ** 0.5 * t
    phi = cumulative((latents.NODES[:, None] - common**0.5 * shared) / (1 - common) ** 0.5)
    phi = phi[:, :1] if common == 0 else phi
    weights = np.ones(1) if common == 0 else weights / weights.sum()
    return np.asarray(sum(s * (phi ** (k - 1)) @ weights for k, s in zip(counts, shares, strict=True)))
