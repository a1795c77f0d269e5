"""The normal law between absolute bounds whose own mean and standard deviation are those asked for."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from isometry.errors import InvalidValueError
from isometry.sampling import Elementwise, Normal, TruncatedNormal
from isometry.sampling.operations import Floats, Ints

_REACH = 12.0  # beyond 12 standard deviations a normal density is below 1e-31
_NODES = 400


@dataclass(frozen=True)
class BoundedNormal(Elementwise):
    """A normal law cut to [low, high] so that the RESULT has the mean and the standard deviation asked for.

    Density ∝ exp(-(x - μ)²/2σ²) on [low, high], with the parent's μ and σ solved from the two moments. Such a
    law exists only up to a largest std, near that of the uniform law on the interval. Exact to 1e-9.

    Attributes:
        std: Standard deviation of the result.
        mean: Mean of the result.
        low: Lower bound, absolute; may be -inf.
        high: Upper bound, absolute; may be inf.

    Example:
        >>> law = BoundedNormal(std=1.0, low=-2.0, high=2.0)
        >>> round(law.parent[1], 4)  # the parent is wider than the result
        1.3779

    Reference:
        Johnson, Kotz and Balakrishnan (1994), "Continuous univariate distributions", volume 1, section 13.10.
    """

    std: float
    mean: float = 0.0
    low: float = -2.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0 and math.isfinite(self.mean)):
            raise InvalidValueError(
                f"mean and std must be finite and std positive, got {self.mean} and {self.std}"
            )
        if not self.low < self.mean < self.high:
            raise InvalidValueError(
                f"the mean {self.mean} must lie between the bounds a={self.low} and b={self.high}"
            )
        _ = self.parent

    @property
    def parent(self) -> tuple[float, float]:
        """Mean and standard deviation of the normal law before the cut."""
        low, high = (self.low - self.mean) / self.std, (self.high - self.mean) / self.std
        mu, sigma = _standard_parent(low, high)
        return self.mean + self.std * mu, self.std * sigma

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval itself."""
        return self.low, self.high

    def transform(self, bits: Ints, out: Floats) -> None:
        """The inverse distribution function in float64, taken from the smaller tail."""
        mu, sigma = self.parent
        edges = torch.tensor([(self.low - mu) / sigma, (self.high - mu) / sigma], dtype=torch.float64)
        flip = float(edges.sum()) > 0
        below, above = torch.special.ndtr(-edges.flip(0) if flip else edges).tolist()
        u = torch.from_numpy(bits.astype(np.float64)).mul_(2.0**-32).add_(0.5 + 2.0**-33)
        z = torch.special.ndtri(u.mul_(above - below).add_(below))
        value = z.mul_(-sigma if flip else sigma).add_(mu).clamp_(self.low, self.high)
        out[:] = value.numpy()

    def component(self) -> "BoundedNormal":
        """Each part has std, mean and bounds divided by √2."""
        root = math.sqrt(2)
        return BoundedNormal(self.std / root, self.mean / root, self.low / root, self.high / root)


def bounded_normal(std: float, mean: float, low: float, high: float) -> Elementwise:
    """The normal law on [low, high] with this mean and std, in the form that is fastest to draw.

    Example:
        >>> bounded_normal(1.0, 0.0, -math.inf, math.inf)
        Normal(std=1.0, mean=0.0)
    """
    if low == -math.inf and high == math.inf:
        return Normal(std, mean)
    law = BoundedNormal(std, mean, low, high)
    if math.isclose(mean - low, high - mean, rel_tol=1e-12):
        return TruncatedNormal(std, mean, cut=(high - mean) / law.parent[1])
    return law


@lru_cache(maxsize=256)
def _standard_parent(low: float, high: float) -> tuple[float, float]:
    """The parent's mean and std for a result of mean 0 and std 1 on [low, high].

    The law maximises entropy under its two moments, so the exponent's coefficients t minimise the convex
    log∫exp(t₁x + t₂x²)dx - t₂: a damped Newton iteration from the standard normal.
    """
    left, right = max(low, -_REACH * 3), min(high, _REACH * 3)
    x, weight = np.polynomial.legendre.leggauss(_NODES)
    x = (left + right) / 2 + (right - left) / 2 * x
    log_weight = np.log(weight)
    powers = np.stack([x, x**2])

    def dual(t: np.ndarray) -> float:
        exponent = t @ powers + log_weight
        peak = exponent.max()
        return float(peak + np.log(np.exp(exponent - peak).sum()) - t[1])

    t = np.array([0.0, -0.5])
    for _ in range(200):
        exponent = t @ powers + log_weight
        p = np.exp(exponent - exponent.max())
        p /= p.sum()
        moments = powers @ p
        gradient = moments - np.array([0.0, 1.0])
        if np.abs(gradient).max() < 1e-12:
            break
        centred = powers - moments[:, None]
        step = np.linalg.solve((centred * p) @ centred.T + 1e-14 * np.eye(2), gradient)
        rate, here = 1.0, dual(t)
        while dual(t - rate * step) > here and rate > 1e-10:
            rate /= 2
        t = t - rate * step
        if abs(t).max() > 1e6:
            break
    if not (t[1] < 0 and np.abs(gradient).max() < 1e-7):
        raise InvalidValueError(
            f"no truncated normal law has this std: the interval reaches from {low:.4g} to {high:.4g} "
            "standard deviations around the mean, which is too narrow; lower std or widen a and b"
        )
    return float(-t[0] / (2 * t[1])), float(math.sqrt(-1 / (2 * t[1])))
