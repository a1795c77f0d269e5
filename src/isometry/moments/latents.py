"""Functions of one standard normal variable, held as their values at fixed quadrature nodes.

A *latent* is a field of jointly Gaussian variables z ~ N(0, 1), correlated by pair class. A tensor that is a
pointwise function f of a latent is held by f's values at `NODES`, so that any pointwise operation is executed
on those values and needs no table. Expectations are sums with `WEIGHTS`: composite Gauss–Legendre panels over
±8 with edges on multiples of 1/4, on which kinks at 0, ±1, ±3 fall (a global Gauss–Hermite rule converges too
slowly at kinks).

The joint moment of two such functions follows from their Hermite coefficients (Mehler): with f = Σ a_k h_k, g
= Σ b_k h_k in orthonormal polynomials, E[f(z) g(z′)] = Σ_k a_k b_k ρ^k. Exact up to the truncation at
`ORDER`, whose rest is carried as a term ρ^ORDER, so that ρ = 1 gives E[f g] itself.

Reference: Daniely, Frostig, Singer 2016 (dual activations).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from math import prod
from typing import Any

import numpy as np
import torch

from isometry import gaussian
from isometry.moments.axes import Array, Axis, Index

ORDER = 40
_NO_STEP = 1e-4  # standard deviations
_ids = count(1)


class Latent:
    """The identity of a latent, along axes of its own, with its correlations.

    `birth` counts latents: one that is made from others is younger than they are. What it is made from, and
    what is known of its relations, `kin` and `columns` keep in the other fields.
    """

    __slots__ = (
        *("alive", "axes", "birth", "dead", "faint", "known", "origin", "peers", "rho", "steady", "turn"),
        *("uses", "views"),
    )

    def __init__(self, axes: tuple[Axis, ...], rho: Array) -> None:
        self.axes, self.rho, self.birth = axes, rho, next(_ids)
        self.origin: Any = None
        self.views: dict[Any, Any] = {}
        self.known: dict[Any, Any] = {}
        self.uses: dict[Any, Any] = {}
        self.faint: dict[Any, int] = {}
        self.turn: Any = None
        self.peers: list[Any] = []
        self.steady: dict[int, bool] = {}
        self.alive, self.dead = False, 0


_RULE = gaussian.nodes(torch.linspace(-8.0, 8.0, 65, dtype=torch.float64), order=6)
NODES: Array = _RULE.z.numpy()
WEIGHTS: Array = (_RULE.weight / _RULE.weight.sum()).numpy()
_INNER = tuple(np.flatnonzero(WEIGHTS > 1e-11)[[0, -1]])  # beyond, differences of sums near 1 have no digits
_BASIS: Array = gaussian.hermite_basis(_RULE.z, ORDER).numpy().T
_POLYNOMIALS: Array = _BASIS * WEIGHTS[:, None]
# Fewer nodes, for the second variable of a function of two.
_COARSE = gaussian.nodes(torch.linspace(-6.0, 6.0, 25, dtype=torch.float64), order=4)
FEW_NODES: Array = _COARSE.z.numpy()
FEW_WEIGHTS: Array = (_COARSE.weight / _COARSE.weight.sum()).numpy()
_FEW_POLYNOMIALS: Array = gaussian.hermite_basis(_COARSE.z, ORDER).numpy().T * FEW_WEIGHTS[:, None]


RARE = 1e-3  # the weight of nodes at which a function may be undefined


def defined(values: Array) -> Array:
    """Return values at the nodes with those of the nearest node where there is no number.

    As acos of a cosine, which the tails of a normal variable leave the domain of. Where such nodes weigh more
    than `RARE` they stay as they are.
    """
    gone = np.isnan(values)
    if not gone.any() or float(mean(gone.astype(np.float64)).max()) > RARE:
        return values
    rows = np.array(values.reshape(-1, values.shape[-1]))
    places = np.arange(rows.shape[1])
    for row, missing in zip(rows, gone.reshape(rows.shape), strict=True):
        row[missing] = np.interp(places[missing], places[~missing], row[~missing])
    return rows.reshape(values.shape)


def mean(values: Array) -> Array:
    """Return E[f(z)] for values f(`NODES`) along the last axis."""
    return np.asarray(values.dot(WEIGHTS))


def distinct(*arrays: Array) -> tuple[list[Array], Index]:
    """Return the different rows of block arrays (nodes last), and for every block which row is its own.

    Rows that agree in single precision are one: the borders at both ends of an axis are alike.
    """
    lead = np.broadcast_shapes(*[a.shape[:-1] for a in arrays])
    rows = [np.broadcast_to(a, (*lead, a.shape[-1])).reshape(-1, a.shape[-1]) for a in arrays]
    found: dict[bytes, int] = {}
    rounded = np.concatenate(rows, axis=-1).astype(np.float32)
    own = [found.setdefault(row.tobytes(), len(found)) for row in rounded]
    first = [own.index(k) for k in range(len(found))]
    return [row[first] for row in rows], np.array(own, dtype=np.intp).reshape(lead)


def coefficients(values: Array) -> Array:
    """Return the Hermite coefficients a_0 … a_{ORDER−1} of values f(`NODES`), along the last axis.

    Of values f(`FEW_NODES`) likewise.
    """
    few = values.shape[-1] == len(FEW_NODES)
    flat = values.reshape(-1, values.shape[-1]) @ (_FEW_POLYNOMIALS if few else _POLYNOMIALS)
    return np.asarray(flat.reshape((*values.shape[:-1], ORDER)))


def spectrum(values: Array) -> Array:
    """Return the Hermite coefficients and, last, the root of what they leave of E[f²], shape (....

    ORDER + 1).
    """
    a = coefficients(values)
    rest = (values * values) @ WEIGHTS - np.einsum("...k,...k->...", a, a)
    return np.concatenate([a, np.sqrt(np.maximum(rest, 0.0))[..., None]], axis=-1)


def mehler(products: Array, rho: Array) -> Array:
    """Return Σ_k products_k ρ^k over the last axis, in the broadcast shape of what is left."""
    weight = np.abs(products).reshape(-1, products.shape[-1]).max(0)
    above = np.flatnonzero(weight > 1e-13 * weight.max())
    top = int(above[-1]) if above.size else 0
    shape = np.broadcast_shapes(products.shape[:-1], rho.shape)
    if top == 0:
        return np.broadcast_to(products[..., 0], shape)
    if prod(shape) <= 256:  # a small table: one call for all powers
        powers = np.multiply.accumulate(np.broadcast_to(rho[..., None], (*rho.shape, top)), axis=-1)
        return np.asarray(products[..., 0] + (products[..., 1 : top + 1] * powers).sum(-1))
    by_power = np.ascontiguousarray(np.moveaxis(products[..., : top + 1], -1, 0))
    result = by_power[top] * rho
    for k in range(top - 1, 0, -1):
        result += by_power[k]
        result *= rho
    result += by_power[0]
    return np.asarray(result)


def dual(f: Array, g: Array, rho: Array) -> Array:
    """Return E[f(z) g(z′)] for corr(z, z′) = rho.

    Args:
        f: Values at the nodes, shape (..., nodes).
        g: Likewise; its leading shape broadcasts with f's and with rho's.
        rho: Correlations.

    Returns:
        The joint moments, in the broadcast shape.
    """
    products = coefficients(f) * coefficients(g)
    rest = (f * g) @ WEIGHTS - products.sum(-1)
    return mehler(np.concatenate([products, rest[..., None]], axis=-1), rho)


def derivative(values: Array, form: Array) -> Array:
    """Return df/dx by differences for f and x given at the nodes; 0 where x stays as it is.

    The quantiles of a sum are steps in their tails, of which f, with quantiles of its own, need not have the
    same: a step of x that is next to nothing counts as none.
    """
    step = np.diff(form, axis=-1)
    spread = np.sqrt(np.maximum(mean(form**2) - mean(form) ** 2, 0.0))[..., None]
    rise = np.diff(values, axis=-1) / np.where(np.abs(step) <= _NO_STEP * spread, np.inf, step)
    return np.asarray(
        0.5 * (np.concatenate([rise[..., :1], rise], -1) + np.concatenate([rise, rise[..., -1:]], -1))
    )


def conditional(values: Array, rho: Array) -> Array:
    """Return E[f(z′) | z] at the nodes of z, for corr(z, z′) = rho, an array of the leading shape.

    Σ a_k ρ^k h_k(z).
    """
    damped = coefficients(values) * rho[..., None] ** np.arange(ORDER)
    return np.asarray(damped @ _BASIS.T)


def affine(values: Array) -> bool:
    """Return whether values at the nodes are a linear function of the latent (in every block)."""
    a = coefficients(values)
    total = mean(values * values)
    return bool(np.all(total - a[..., 0] ** 2 - a[..., 1] ** 2 <= 1e-9 * total))


@lru_cache(maxsize=256)
def on_sphere(dimensions: float) -> Array:
    """Return f with f(z) distributed as one of n coordinates of a random direction, times √n, at the nodes.

    The density (1 − x²/n)^((n−3)/2) on |x| < √n; for large n f(z) = z. Its variance is 1, its excess kurtosis
    −6/(n + 2).
    """
    n = max(dimensions, 3.0)
    x = np.linspace(-1.0, 1.0, 8001)[1:-1] * n**0.5
    density = (1.0 - x * x / n) ** ((n - 3.0) / 2.0)
    below = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    rank = np.cumsum(WEIGHTS) - 0.5 * WEIGHTS
    made = np.interp(rank, below / below[-1], x)
    made = 0.5 * (made - made[::-1])
    return np.asarray(made / mean(made * made) ** 0.5)


def quantiles(values: Array, probabilities: Array) -> Array:
    """Return a monotone f with f(z) distributed as a discrete variable, as values at the nodes.

    Args:
        values: The variable's values, shape (n,).
        probabilities: Their probabilities, shape (n,).

    Returns:
        The variable's mean over each node's share of probability, so that the mean is exact.
    """
    order = np.argsort(values)
    edges = np.concatenate([[0.0], np.cumsum(probabilities[order])])
    edges /= edges[-1]
    integral = np.concatenate([[0.0], np.cumsum(values[order] * np.diff(edges))])
    cuts = np.concatenate([[0.0], np.cumsum(WEIGHTS)])
    cuts[-1] = 1.0
    shares = np.diff(np.interp(cuts, edges, integral)) / WEIGHTS
    shares[: _INNER[0]], shares[_INNER[1] + 1 :] = shares[_INNER[0]], shares[_INNER[1]]
    return np.asarray(shares)


def even_quantiles(samples: Array) -> Array:
    """Return `quantiles` of equally likely values, for every row of an array (…, n) at once."""
    n = samples.shape[-1]
    below, share = _cuts(n)
    integral = np.zeros((*samples.shape[:-1], n + 1))
    np.cumsum(np.sort(samples, axis=-1), axis=-1, out=integral[..., 1:])
    low = integral[..., below]
    reached = low + (integral[..., below + 1] - low) * share
    shares = np.diff(reached, axis=-1) / (WEIGHTS * n)
    shares[..., : _INNER[0]], shares[..., _INNER[1] + 1 :] = (
        shares[..., [_INNER[0]]],
        shares[..., [_INNER[1]]],
    )
    return np.asarray(shares)


@lru_cache(maxsize=64)
def _cuts(n: int) -> tuple[Index, Array]:
    """Return where the nodes' shares end among n equal ones: how many lie below, and the part of the next."""
    cuts = np.concatenate([[0.0], np.cumsum(WEIGHTS)]) * n
    cuts[-1] = n
    below = np.minimum(cuts.astype(np.intp), n - 1)
    return below, cuts - below


def at_points(values: Array, points: tuple[Index, Array]) -> Array:
    """Return functions, given at the nodes, at other points: see `places`."""
    below, share = points
    low = values[..., below]
    return np.asarray(low + (values[..., below + 1] - low) * share)


def places(z: Array) -> tuple[Index, Array]:
    """Return between which nodes points lie, and how far along, for linear interpolation by `at_points`."""
    below = np.clip(np.searchsorted(NODES, z, side="right") - 1, 0, len(NODES) - 2)
    return below, np.clip((z - NODES[below]) / (NODES[below + 1] - NODES[below]), 0.0, 1.0)


def correlation_for(values: Array, centred: Array) -> Array:
    """Return the latent correlation ρ at which cov(f(z), f(z′)) equals `centred`.

    By inverting Σ_{k≥1} a_k² ρ^k.

    Args:
        values: f at the nodes, shape (nodes,).
        centred: Wanted covariances, any shape.

    Returns:
        Correlations in [−1, 1].
    """
    variance = float(mean(values * values) - mean(values) ** 2)
    if variance <= 0.0:
        return np.zeros_like(centred)
    reached, grid = _correlations(values.astype(np.float32).tobytes())
    return np.asarray(np.interp(centred, reached * variance, grid))


@lru_cache(maxsize=1024)
def _correlations(values: bytes) -> tuple[Array, Array]:
    """Return corr(f(z), f(z′)) on a grid of correlations, and the grid, for f given in single precision."""
    f = np.frombuffer(values, dtype=np.float32).astype(np.float64)
    grid = np.concatenate([-np.linspace(1, 0.001, 200), [0.0], np.linspace(0.001, 1, 200)])
    reached = dual(f, f, grid) - mean(f) ** 2
    return np.maximum.accumulate(reached / max(float(reached[-1]), 1e-300)), grid
