"""Norms over entries of which a channel has few, or much in common: what its own variance does to it.

A record has one variance for all channels. But a channel's entries are f(√ρ·m + √(1−ρ)·ε_i) with an m that
they have in common and an ε_i for each, so that mean and variance over them differ from channel to channel:
strongly where f has a flat part, as relu, and most of a channel's entries may lie there. What is divided by
the channel's own √(v̂ + ε), and the gradient

    dx_i = Σ_j P_ij g_j/√(v̂ + ε),        P_ij = δ_ij − (1 + x̂_i x̂_j)/n,        g_j = γ_j s(x̂_j),

are functions of all n entries: their moments are taken over channels that are drawn, from a fixed seed and
with weights. Those of which one to three entries lie off the flat part are drawn by themselves, for they are
rare, and their 1/v̂ is so large that half of a gradient's square may be theirs: with the ranks r ∈ (0, 1) of
those entries among what lies off the flat part, the largest is drawn evenly in its logarithm. Exact, but for
the draws' own error, for n independent normal ε_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents, lineage, slopes
from isometry.moments import record as rec
from isometry.moments.axes import Array
from isometry.moments.record import Moments, Term
from isometry.moments.terms import changed

Mask = NDArray[np.bool_]
_FEWEST, _MOST = 4, 128  # entries of a channel
_FLAT = 0.02  # a smaller probability of the flat part is none
_ALIKE = 0.999  # correlation from which on a channel has next to nothing to divide by
_FEW = 3  # entries off the flat part that are drawn by themselves
_ENTRIES, _RARE = 400_000, 4096  # drawn of all channels together; channels for each number of few entries
_WIDE = 1.5  # standard deviation from which m is drawn
_CELLS = np.cumsum(np.abs(np.diff(np.clip(latents.NODES, -3.0, 3.0), prepend=-4.0)) > 0.0) - 1


@dataclass(frozen=True, eq=False)
class _Group:
    """Channels of one kind: their weights, and their entries, each of which occurs `count` times."""

    weights: Array
    z: Array
    x: Array
    count: Array
    off: Mask  # whether an entry lies off the flat part


@dataclass(frozen=True)
class _Shape:
    """A function given at the nodes, flat for z·side below `edge`."""

    values: Array
    side: int
    edge: float

    def __call__(self, z: Array) -> Array:
        """Return f(z), exact for straight lines on both sides of the edge."""
        flat, nodes, values = self.flat, latents.NODES, self.values
        if self.side < 0:
            z, values = -z, values[::-1]
        bent = nodes > self.edge
        above = np.flatnonzero(bent)[0]
        at = np.concatenate([[self.edge], nodes[bent]])
        jump = values[above] if above and self.edge < nodes[above - 1] else flat
        return np.where(z > self.edge, np.interp(z, at, np.concatenate([[jump], values[bent]])), flat)

    @property
    def flat(self) -> float:
        """The value on the flat part."""
        return float(self.values[0 if self.side > 0 else -1])


@dataclass(frozen=True, eq=False)
class Channels:
    """Drawn channels of n entries under a norm with ε."""

    groups: tuple[_Group, ...]
    n: int
    eps: float
    values: Array  # x̂ by quantiles, at the nodes
    given: Array  # E[x̂ | z], at the nodes
    square: float  # E[x̂²]
    off: Mask  # which nodes lie off the flat part


def of(x: Moments, over: tuple[int, ...], eps: float) -> Channels | None:
    """Return channels of a record of one function with a flat part; None where the rest of it is as good.

    Args:
        x: What is normalised, over dims with one axis of one block, and a few entries.
        over: These dims.
        eps: What is added to the variance.
    """
    positions = [p for d in over for p in x.positions(d)]
    factor = alg.absorbed(x.terms[0], x.axes) if len(x.terms) == 1 else None
    if factor is None or len(positions) != 1 or factor.values[..., 0].size != 1 or factor.length is not None:
        return None
    n = ax.size(x.axes[positions[0]])
    shape = _shape(factor.values.reshape(-1))
    if not _FEWEST <= n <= _MOST or shape is None or len(x.axes[positions[0]]) != 1:
        return None
    rho = max(_at(factor.rho, tuple(int(k == positions[0]) for k in range(len(x.axes)))), 0.0)
    if not rho < _ALIKE:
        return None
    return _drawn(shape.values.tobytes(), shape.side, shape.edge, round(rho, 4), n, eps)


def _shape(values: Array) -> _Shape | None:
    """Return a function with its flat part; None without one."""
    for side in (1, -1):
        own = values[::side]
        moved = np.flatnonzero(np.abs(own - own[0]) > 1e-9 * np.abs(own).max())
        if not moved.size or moved[0] < 1:
            continue
        k = moved[0]
        edge = latents.NODES[k - 1]
        if k + 1 < len(own):  # where the line through the next nodes leaves the flat part
            slope = (own[k + 1] - own[k]) / (latents.NODES[k + 1] - latents.NODES[k])
            meets = latents.NODES[k] - (own[k] - own[0]) / slope if slope else edge
            edge = meets if latents.NODES[k - 1] - 1e-9 <= meets <= latents.NODES[k] else edge - 1e-12
        if _FLAT < float(_normal(edge)) < 1.0 - _FLAT:
            return _Shape(np.ascontiguousarray(values), side, float(edge))
    return None


def _normal(z: Array | float) -> Array:
    """Return Φ(z)."""
    return np.asarray(torch.special.ndtr(torch.as_tensor(z, dtype=torch.float64)).numpy())


def _quantile(p: Array) -> Array:
    """Return Φ⁻¹(p)."""
    return np.asarray(torch.special.ndtri(torch.as_tensor(p, dtype=torch.float64)).numpy())


# --- drawing ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _drawn(values: bytes, side: int, edge: float, rho: float, n: int, eps: float) -> Channels:
    shape = _Shape(np.frombuffer(values, dtype=np.float64), side, edge)
    random = np.random.default_rng(0)
    groups = [_few(shape, k, rho, n, eps, random) for k in range(1, min(_FEW, n - 1) + 1)]
    rare = sum(float(g.weights.sum()) for g in groups)
    groups.append(_many(shape, rho, n, 1.0 - rare, random))
    units = [_unit(g, n, eps) for g in groups]
    pooled = [(u, g.weights[:, None] * g.count / n) for g, (u, _) in zip(groups, units, strict=True)]
    flat, weights = (np.concatenate([part[k].ravel() for part in pooled]) for k in (0, 1))
    quantiles = _around_zero(latents.quantiles(flat, weights), float(weights[flat > 0.0].sum()))
    off = latents.NODES * side > edge
    return Channels(
        tuple(groups),
        n,
        eps,
        quantiles,
        _by_node(groups, [u for u, _ in units], off),
        float((flat**2) @ weights),
        off,
    )


def _few(shape: _Shape, k: int, rho: float, n: int, eps: float, random: np.random.Generator) -> _Group:
    """Draw channels with k entries off the flat part; the others are one entry that occurs n − k times."""
    grid = np.linspace(-8.0, 8.0, 1601)
    p = _normal((rho**0.5 * grid - shape.edge) / (1.0 - rho) ** 0.5)
    mass = np.exp(-0.5 * grid**2) / (2.0 * np.pi) ** 0.5 * (grid[1] - grid[0])
    mass = mass * comb(n, k) * p**k * (1.0 - p) ** (n - k)
    total = float(mass.sum())
    below = np.cumsum(mass) / total
    even = (np.arange(_RARE) + 0.5) / _RARE
    m = np.interp(random.permutation(even), below, grid)[:, None]
    spread = max(float(np.var(shape.values)), 1e-300)
    least = np.log(np.clip(0.002 * (eps / spread) ** 0.5, 1e-9, 1e-2))
    largest = np.exp(least * even)[:, None]
    ranks = np.concatenate([largest, largest * random.random((_RARE, k - 1))], axis=1)
    p = _normal((rho**0.5 * m - shape.edge) / (1.0 - rho) ** 0.5)
    z = rho**0.5 * m - (1.0 - rho) ** 0.5 * _quantile(p * (1.0 - np.minimum(ranks, 1.0 - 1e-12)))
    z = shape.side * np.concatenate([np.maximum(z, shape.edge), np.full((_RARE, 1), shape.edge - 1.0)], 1)
    weights = k * largest[:, 0] ** k
    off = np.broadcast_to(np.arange(k + 1) < k, z.shape)
    return _Group(weights / weights.sum() * total, z, shape(z), np.array([1.0] * k + [n - k]), off)


def _many(shape: _Shape, rho: float, n: int, total: float, random: np.random.Generator) -> _Group:
    """Draw the other channels."""
    draws = _ENTRIES // n
    even = _quantile((np.arange(draws) + 0.5) / draws)
    m = _WIDE * random.permutation(even)[:, None]
    z = rho**0.5 * m + (1.0 - rho) ** 0.5 * random.standard_normal((draws, n))
    off = z > shape.edge
    count = off.sum(1)
    weights = np.exp(-0.5 * (1.0 - _WIDE**-2) * m[:, 0] ** 2) * ((count == 0) | (count > min(_FEW, n - 1)))
    z = shape.side * z
    return _Group(weights / weights.sum() * total, z, shape(z), np.ones(n), off)


def _unit(g: _Group, n: int, eps: float) -> tuple[Array, Array]:
    """Return x̂ and 1/(v̂ + ε)."""
    x = g.x - (g.x @ g.count / n)[:, None]
    inverse = 1.0 / (x**2 @ g.count / n + eps)
    return x * inverse[:, None] ** 0.5, inverse


def _around_zero(values: Array, above: float) -> Array:
    """Return quantiles of which one is 0, as x̂ is where a channel is flat, and as many above as should be."""
    tail = np.cumsum(latents.WEIGHTS[::-1])[::-1] - latents.WEIGHTS
    k = int(np.argmin(np.abs(tail - above)))
    return np.concatenate([np.minimum(values[:k], 0.0), [0.0], np.maximum(values[k + 1 :], 1e-9)])


def _by_node(groups: Sequence[_Group], values: Sequence[Array], off: Mask) -> Array:
    """Return the mean of a function of channels and their entries given the entry's z, at the nodes."""
    z, of_z, weights, moved = (
        np.concatenate([np.broadcast_to(a, g.z.shape).ravel() for g, a in zip(groups, arrays, strict=True)])
        for arrays in (
            [g.z for g in groups],
            values,
            [g.weights[:, None] * g.count for g in groups],
            [g.off for g in groups],
        )
    )
    made = np.empty(len(latents.NODES))
    for part, nodes, of_node in ((~moved, ~off, np.zeros_like(_CELLS)), (moved, off, _CELLS)):
        own, inside = weights[part] / weights.sum(), latents.NODES[nodes]
        cell = of_node[nodes][np.searchsorted(0.5 * (inside[1:] + inside[:-1]), z[part])]
        sums = [np.bincount(cell, w, minlength=of_node[-1] + 1) for w in (own, own * of_z[part])]
        made[nodes] = (sums[1] / np.maximum(sums[0], 1e-300))[of_node[nodes]]
        reached = float(made[nodes] @ latents.WEIGHTS[nodes])  # the nodes have other weights
        made[nodes] *= float(sums[1].sum()) / reached if reached else 1.0
    return made


# --- records ------------------------------------------------------------------------------------------------


def normalised(unit: Moments, x: Moments, known: Channels) -> Moments:
    """Return a normalised record with the marginal that drawn channels have."""
    axes, rank = unit.axes, len(unit.axes)
    factor = alg.absorbed(x.terms[0], x.axes)
    if factor is None or not unit.terms[0].factors:
        return unit
    table = unit.table * (known.square / max(rec.average(unit.square, axes), 1e-300))
    shape = [1] * rank + [-1]
    made = alg.with_marginal(unit.dims, table, np.zeros([1] * rank), known.values.reshape(shape))
    (term,) = made.terms
    phi = replace(factor, values=known.given.reshape(shape))
    values = (known.square / float(latents.mean(known.values**2))) ** 0.5 * known.values.reshape(shape)
    own = replace(term.factors[0], values=values, form=values)
    own = replace(own, parts=lineage.parts_of((Term(np.ones([1] * rank), (phi,)),)))
    key = ("normed over channels", factor.latent, factor.labels, known.n)
    views = getattr(factor.latent, "views", None)
    if views is not None:
        own = replace(own, latent=views.setdefault(key, own.latent))
    marks = tuple(p for p in unit.terms[0].factors[-1].parts if isinstance(p.latent, rec.Mark))
    return replace(made, terms=(Term(term.coef, (replace(own, parts=(*own.parts, *marks)),)),))


def gradient(dx: Moments, g: Moments, x: Moments, unit: Moments, known: Channels, gain: float) -> Moments:
    """Return a norm's gradient at x with the second moments over drawn channels.

    Pairs of entries of a channel get what those off the flat part have in common: the others have no slope.

    Args:
        dx: The gradient as one variance for all channels makes it.
        g: The gradient at x̂.
        x: What was normalised.
        unit: x̂ as `normalised` returned it.
        known: The channels.
        gain: By which their 1/(v̂ + ε) is larger than that of normal entries of the scale that x has.
    """
    factor = alg.absorbed(x.terms[0], x.axes)
    if factor is None or dx.axes != x.axes or any(len(a) > 1 for a in dx.axes):
        return dx
    position = next(p for p, a in enumerate(x.axes) if factor.rho.shape[p] > 1 or ax.size(a) == known.n)
    slope, alike = _slope_of(g, unit, position)
    given, pairs = _moments(known, slope, alike)
    power = gain * rec.average(g.square, g.axes) / max(float(latents.mean(slope**2)), 1e-300)
    bent = power**0.5 * np.sqrt(given).reshape([1] * len(x.axes) + [-1])
    own = changed(factor, bent, x.axes)
    off = changed(factor, bent * known.off, x.axes)
    at = tuple(int(k == position) for k in range(len(x.axes)))
    table = np.array(np.broadcast_to(dx.table, [2] * len(x.axes)))
    table *= float(own.square.reshape(())) / max(float(rec.average(dx.square, dx.axes)), 1e-300)
    table[at] = power * pairs * _at(own.table, at) / max(_at(off.table, at), 1e-300)
    return slopes.carried(dx, [own], table)


def _at(table: Array, at: tuple[int, ...]) -> float:
    return float(table[tuple(min(k, n - 1) for k, n in zip(at, table.shape, strict=True))])


def _slope_of(g: Moments, unit: Moments, position: int) -> tuple[Array, float]:
    """Return a gradient's slope s(x̂) at the nodes of x̂, and how alike the rest of it is for two entries."""
    at = tuple(int(k == position) for k in range(len(g.axes)))
    (of_unit,) = unit.terms[0].factors
    slope, alike = np.ones(len(latents.NODES)), 1.0
    known = [f for f in g.terms[0].factors if f.key == of_unit.key] if len(g.terms) == 1 else []
    if not known:
        return slope, _at(g.table, at) / max(rec.average(g.square, g.axes), 1e-300)
    for f in g.terms[0].factors:
        if f is known[0]:
            slope = rec.pooled(f.values, g.axes)
        else:
            alike *= _at(f.table, at) / max(rec.average(f.square, g.axes), 1e-300)
    return slope, alike


def _moments(known: Channels, slope: Array, alike: float) -> tuple[Array, float]:
    """Return E[dx² | z] at the nodes, and E[dx dx′] of two entries, 0 unless both lie off the flat part.

    The γ have the variance 1, and the correlation `alike`.
    """
    n, squares, pairs = known.n, [], 0.0
    zero = int(np.flatnonzero(known.values == 0.0)[0])  # a slope may jump there
    at, slope = (np.insert(a, [zero, zero + 1], b) for a, b in (
        (known.values, [-1e-12, 1e-12]), (slope, [slope[max(zero - 1, 0)], slope[zero + 1]])
    ))  # fmt: skip
    for g in known.groups:
        x, inverse = _unit(g, n, known.eps)
        s = np.interp(x, at, slope)
        s2 = s * s
        sums = [((s2 * x**k) @ g.count)[:, None] for k in range(3)]
        own = s2 * (1.0 - 2.0 * (1.0 + x * x) / n)
        own += (sums[0] + 2.0 * x * sums[1] + x * x * sums[2]) / n**2
        along = [((s * x**k) @ g.count)[:, None] for k in range(2)]
        together = (s - (along[0] + x * along[1]) / n) ** 2
        square = ((1.0 - alike) * own + alike * together) * inverse[:, None]
        squares.append(square)
        to_off = g.off - ((g.off @ g.count)[:, None] + x * ((g.off * x) @ g.count)[:, None]) / n
        total = (1.0 - alike) * ((s2 * to_off**2) @ g.count) + alike * ((s * to_off) @ g.count) ** 2
        pairs += float(g.weights @ (total * inverse - (square * g.off) @ g.count))
    return np.maximum(_by_node(known.groups, squares, known.off), 0.0), pairs / (n * (n - 1.0))
