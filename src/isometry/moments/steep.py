"""Gradients whose square grows with the mean square over the channels of their place.

The mean square over all channels, 1 + δ, varies from place to place, by a relative variance τ (the `tail` of
a `Fan`). There a normal z is √(1 + δ)·z, and a slope of the square q(z) has, as a mean over z and by the
straight line through it, the square 1 + ρδ,

    ρ = E[δ·q(√(1 + δ)·z)]/(τ·E[q(√(1 + δ)·z)])  →  E[(z² − 1)·q(z)]/(2·E[q])    for small τ,

which is 0 for relu and up to 0.3 for hardswish, silu and gelu. As places keep their δ from one convolution to
the next, slope upon slope grows with it: a gradient whose square rises by ρ′δ that meets another slope gets

    E[(1 + ρ′δ)(1 + ρδ)] = 1 + ρ′ρτ.

Behind a convolution δ is a mean over its windows, of which the share `fan.lasting` is the place's own, and
larger as the function in front of it makes it (`fan.growth`). 1 + δ is taken as a gamma variable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isometry.moments import fan, latents
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Fan, Moments, Steep, Term
from isometry.moments.taps import Window

_LEAST = 0.01  # a variance of sizes at which lines are tangents


def of_sum(terms: Sequence[Term]) -> Steep | None:
    """Return the mark of a sum of gradients: each rises by its share of the square; None without any."""
    marks = [_rise(term) for term in terms]
    if not any(marks):
        return None
    squares = [float(np.mean(term.square)) for term in terms]
    return Steep(_mean(marks, squares))


def of_slopes(g: Moments, latent: object) -> float:
    """Return ρ of a gradient's slopes of one latent, a mean over the terms of its square."""
    squares = [float(np.mean(term.square)) for term in g.terms]
    own = [_of_slopes(term, latent, g.axes, 0.0) for term in g.terms]
    return _mean(own, squares)


def met(g: Moments, known: Fan, latent: object) -> tuple[float, Steep]:
    """Return by how much a gradient's square is larger as its slopes know of one another.

    Args:
        g: The gradient at what sums were normed to, times slopes of that.
        known: The fan of the sums.
        latent: That of what they were normed to.

    Returns:
        The factor of the square, and how the square rises now.
    """
    before = [_rise(term) for term in g.terms]
    own = [_of_slopes(term, latent, g.axes, known.tail) for term in g.terms]
    gains = [max(1.0 + a * b * known.tail, 0.0) for a, b in zip(before, own, strict=True)]
    squares = [float(np.mean(term.square)) for term in g.terms]
    larger = [gain * square for gain, square in zip(gains, squares, strict=True)]
    return _mean(gains, squares), Steep(_mean([a + b for a, b in zip(before, own, strict=True)], larger))


def handed_on(dx: Moments, g: Moments, x: Moments, windows: Sequence[Window]) -> Moments:
    """Return a convolution's gradient at its input x with how its square rises, as the output's does."""
    rise, known = of_sum(g.terms), mark_of(x, Fan)
    if rise is None or known is None or len(dx.terms) != 1:
        return dx
    return marked(dx, Steep(rise.rise * fan.lasting(windows, known.reach) * fan.growth(x)))


def _rise(term: Term) -> float:
    found = (p.latent for f in term.factors for p in f.parts if isinstance(p.latent, Steep))
    return next((mark.rise for mark in found), 0.0)


def _of_slopes(term: Term, latent: object, axes: tuple[Axis, ...], tail: float) -> float:
    """Return ρ of the square of a term's slopes of one latent."""
    total, places = 0.0, fan.sizes(max(tail, _LEAST))
    for factor in (f for f in term.factors if f.latent == latent):
        q = rec.pooled(factor.values**2, axes)
        given = latents.mean(np.interp(places[:, None] ** 0.5 * latents.NODES, latents.NODES, q))
        total += _slope(given, places)
    return total


def _slope(given: Array, places: Array) -> float:
    """Return that of the straight line through a function of sizes, in units of its mean."""
    middle, whole = float(places @ latents.FEW_WEIGHTS), float(given @ latents.FEW_WEIGHTS)
    apart = (places - middle) * latents.FEW_WEIGHTS
    return float(apart @ given) / (float(apart @ places) * whole) if whole > 0.0 else 0.0


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / max(sum(weights), 1e-300)
