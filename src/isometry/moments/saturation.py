"""Exact moments of a softmax over n independent normal scores of variance v, however saturated.

With X = e^{√v z}, L(t) = E[e^{−tX}] and M_p(t) = t^p E[X^p e^{−tX}], from 1/(ΣX)^p = ∫ t^{p−1} e^{−tΣX} dt
/ Γ(p):

    Σ E[a²]     = n ∫ M₂ L^{n−1} dlog t
    Σ E[a³]     = n/2 ∫ M₃ L^{n−1} dlog t
    E[(Σ a²)²]  = n/6 ∫ M₄ L^{n−1} dlog t + n(n−1)/6 ∫ M₂² L^{n−2} dlog t

And E[e^{−tΣX}] = Lⁿ, as a function of −log t, is the distribution function of log ΣX plus a Gumbel variable
(mean γ, variance π²/6), which gives the mean and the variance of log ΣX.

Exact up to quadrature. The closed form Σ E[a²] ≈ e^v/(n − 1 + e^v) holds for small v or huge n only (at n =
64, v = 8 it says 0.98 for 0.30); it becomes exact with v replaced by κ·v, which also serves for two rows of
correlated scores (covariance κ·c): within 5 % up to v = 8, within 20 % at v = 40.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from isometry.moments import latents
from isometry.moments.axes import Array

STEP = 0.25  # of log t; the integrands are smooth on the scale 1
_MOST = 1.5  # by which rows of unlike variances may exceed the closed form
LARGEST = 1e5  # variances beyond are taken as this one: rows see a single key
ROOTS = (0.1, 0.3, 0.6, 1.0, 1.4, 1.8, 2.3, 2.8, 3.5, 4.2, 5.0, 6.0, 7.5, 9.0, 12.0, 16.0, 22.0)


def _scores(variance: float) -> tuple[Array, Array, Array]:
    """Return the nodes of a score s, their weights, and t·e^s by t (rows) and by node."""
    root = variance**0.5
    inner = np.abs(latents.NODES) < 7.0
    s, weights = root * latents.NODES[inner], latents.WEIGHTS[inner] / latents.WEIGHTS[inner].sum()
    reach = 7.0 * root + 4.0
    log_t = np.arange(-reach - 16.0, reach, STEP)  # what counts lies about −log n
    return s, weights, np.exp(np.minimum(log_t[:, None] + s, 50.0))  # beyond, e^−size has long been 0


@lru_cache(maxsize=512)
def _curves(variance: float) -> tuple[Array, Array]:
    """Return L and (M₂, M₃, M₄) on the grid of log t."""
    _, weights, size = _scores(variance)
    kept = np.exp(-size)
    square = size * size * kept
    return kept @ weights, np.stack(
        [square @ weights, (square * size) @ weights, (square * size * size) @ weights]
    )


def moments(variance: float, n: Array) -> tuple[Array, Array, Array]:
    """Return Σ E[a²] and two moments of a row's Jacobian J = diag(a) − a aᵀ.

    The second is E[tr J²] = E[Σa² − 2Σa³ + (Σa²)²], the sum of squares of a row's gradient for i.i.d. unit
    ones behind it. The third is E[(tr J)² − Σ J_kk² + Σ_{k≠k′} J_kk′²] = E[1 − 3Σa² + 2(Σa²)² + 2Σa³ − 2Σa⁴]:
    what inner products that the gradient behind it shares with the keys add, see `attention`.

    Args:
        variance: Of the scores.
        n: How many scores, at least 1; need not be whole (the inverse of Σu² for uneven rows).

    Returns:
        Three arrays of n's shape.
    """
    kept, (m2, m3, m4) = _curves(float(f"{min(variance, LARGEST):.3g}"))
    n = np.asarray(n, dtype=np.float64)[..., None]
    power = np.exp((n - 1.0) * np.log(np.maximum(kept, 1e-300)))
    second = STEP * (n * m2 * power).sum(-1)
    third = STEP * (n / 2.0 * m3 * power).sum(-1)
    fourth = STEP * (n / 6.0 * m4 * power).sum(-1)
    both = fourth + STEP * (n * (n - 1.0) / 6.0 * m2**2 * power / np.maximum(kept, 1e-300)).sum(-1)
    pairs = 1.0 - 3.0 * second + 2.0 * both + 2.0 * third - 2.0 * fourth
    return second, np.maximum(second - 2.0 * third + both, 0.0), np.maximum(pairs, 0.0)


@lru_cache(maxsize=256)
def log_sum(variance: float, n: int) -> tuple[float, float]:
    """Return the mean and the variance of log Σ e^s for n independent normal scores s of mean 0."""
    root = variance**0.5
    low, high = np.log(n) - 7.0 * root - 4.0, np.log(n) + 7.0 * root + 18.0
    x = np.arange(low, high, STEP / 2)
    inner = np.abs(latents.NODES) < 7.0
    kept = np.exp(-np.exp(np.minimum(root * latents.NODES[inner] - x[:, None], 50.0)))
    below = (kept @ (latents.WEIGHTS[inner] / latents.WEIGHTS[inner].sum())) ** n
    mean = x[-1] - np.trapezoid(below, x)
    square = x[-1] ** 2 - 2.0 * np.trapezoid(x * below, x) + (STEP / 2) ** 2 / 6  # Euler–Maclaurin at the end
    return float(mean - np.euler_gamma), max(float(square - mean**2 - np.pi**2 / 6), 0.0)


@lru_cache(maxsize=256)
def square_along(variance: float, n: int) -> float:
    """Return E[(Σ a s)²] of a softmax a of n independent normal scores s."""
    s, weights, size = _scores(variance)
    kept = np.exp(-size)
    none, first, second = kept @ weights, (size * kept) @ (weights * s), (size**2 * kept) @ (weights * s * s)
    log_kept = np.log(np.maximum(none, 1e-300))
    own = n * second * np.exp((n - 1.0) * log_kept)
    return float(STEP * (own + n * (n - 1.0) * first**2 * np.exp((n - 2.0) * log_kept)).sum())


@lru_cache(maxsize=512)
def leaning(variance: float, n: float) -> tuple[float, float]:
    """Return how a row's gradient dS = J g, for i.i.d. g, follows the scores, and their variance.

    E[(Σ s dS)²] = E[Σ a²(s − Σ a s)²] relatively to v·E[Σ dS²], from integrals as those of the module with
    s^j in their expectations; and the derivative of the logarithm of E[Σ dS²] by that of v.
    """
    s, weights, size = _scores(variance)
    kept = np.exp(-size)
    log_kept = np.log(np.maximum(kept @ weights, 1e-300))

    def m(p: int, j: int) -> Array:
        return np.asarray((size**p * kept) @ (weights * s**j))

    def total(values: Array, others: int) -> float:
        count = float(np.prod([max(n - k, 0.0) for k in range(others)]))
        return float(STEP * count * (values * np.exp((n - others) * log_kept)).sum())

    along = total(m(2, 2), 1) - total(m(3, 2), 1) - total(m(2, 1) * m(1, 1), 2)
    along += (total(m(4, 2), 1) + 2.0 * total(m(3, 1) * m(1, 1), 2) + total(m(2, 2) * m(2, 0), 2)) / 6.0
    along += total(m(2, 0) * m(1, 1) ** 2, 3) / 6.0
    low, middle, high = (float(moments(variance * x, np.array([n]))[1][0]) for x in (0.9, 1.0, 1.1))
    rise = np.log(max(high, 1e-300) / max(low, 1e-300)) / np.log(1.1 / 0.9)
    return max(along, 0.0) / max(variance * middle, 1e-300), float(rise)


def leaning_of(square: float, n: float) -> tuple[float, float] | None:
    """Return `leaning` of a row with Σ E[a²] = `square`; None for one that sees a single key."""
    if n < 1.5 or not 1.0 / n < square < 1.0:
        return None
    roots = np.array([0.0, *ROOTS])
    reached = np.array([1.0 / n, *[float(moments(r * r, np.array([n]))[0][0]) for r in ROOTS]])
    root = float(np.interp(square, reached, roots))
    return leaning(float(f"{max(root, 0.05) ** 2:.2g}"), float(f"{n:.3g}"))


def damping(variance: float, n: Array, excess: float = 0.0) -> Array:
    """Return κ.

    By which covariances of scores are multiplied so that the closed form gives the exact Σ E[a²], a mean over
    rows whose variances have the relative variance `excess`.
    """
    n = np.asarray(n, dtype=np.float64)
    if variance <= 1e-4:
        return np.ones_like(n)
    square = sum(w * moments(variance * x, n)[0] for x, w in zip(*_variances(round(excess, 2)), strict=True))
    ratio = np.maximum(n - 1.0, 1e-9) * square / np.maximum(1.0 - square, 1e-12)
    return np.where(n > 1.01, np.clip(np.log(np.maximum(ratio, 1.0)) / variance, 0.0, _MOST), 1.0)


def damping_of_rows(variance: float, n: Array, weights: Array, excess: float = 0.0) -> float:
    """Return the κ that gives the mean of Σ E[a²] over rows of unlike numbers of scores; see `damping`."""
    each = damping(variance, n, excess)
    if np.ptp(each) < 1e-3 or variance <= 1e-4:
        return float(each @ weights)
    many = np.maximum(n - 1.0, 0.0)

    def mean(by: Array | float) -> float:
        grown = np.exp(np.minimum(by * variance, 600.0))
        return float(grown / (many + grown) @ weights)

    wanted, low, high = mean(each), float(each.min()), float(each.max())
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean(middle) < wanted else (low, middle)
    return 0.5 * (low + high)


@lru_cache(maxsize=64)
def _variances(excess: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return a gamma variable of mean 1 and this variance at five points, and their weights.

    By Wilson and Hilferty's cube root.
    """
    if excess <= 0.0:
        return (1.0,), (1.0,)
    z, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    x = np.maximum(1.0 - excess / 9.0 + z * excess**0.5 / 3.0, 1e-2) ** 3
    return tuple((x / float(x @ weights)).tolist()), tuple(weights.tolist())


@lru_cache(maxsize=64)
def _reached(counts: tuple[float, ...]) -> Array:
    """Return the moments of rows of these many scores, as (variances, moments, rows)."""
    n = np.maximum(np.asarray(counts), 1.0)
    uniform = np.stack([1.0 / n, (1.0 - 1.0 / n) / n, (1.0 - 1.0 / n) * (1.0 - 2.0 / n + 2.0 / n**2)])
    return np.stack([uniform, *[np.stack(moments(root * root, n)) for root in ROOTS]])


def kept_shares(square: Array, n: Array) -> tuple[Array, Array]:
    """Return the second and third of `moments` for a row with Σ E[a²] = `square`.

    The second is relative to Σ E[a²]. By interpolation over the variance.
    """
    shape = np.broadcast_shapes(square.shape, n.shape)
    flat_n, flat = np.broadcast_to(n, shape).ravel(), np.broadcast_to(square, shape).ravel()
    counts, where = np.unique(np.round(flat_n, 3), return_inverse=True)
    result = np.empty((2, flat.size))
    reached = _reached(tuple(counts))
    for k in range(len(counts)):
        at, kept, pairs = reached[np.argsort(reached[:, 0, k])][..., k].T
        result[0, where == k] = np.interp(flat[where == k], at, kept / at)
        result[1, where == k] = np.interp(flat[where == k], at, pairs)
    return result[0].reshape(shape), result[1].reshape(shape)
