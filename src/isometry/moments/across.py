"""Gradients that are orthogonal to what they are gradients of.

A function that does not change when a channel x of its input is stretched has a gradient g with Σ g x = 0
over the channel's n entries: behind a batch norm every depthwise convolution is such a function. For γ the
gradient of independent entries that is left when the component along x is taken away,

    E[g²| x] = γ² (1 − x²/Σx²) n/(n − 1),

so that less of it lies where x is large, and Σ g h for another function h of the same variable is that of
h − x·E[x h]/E[x²]: nothing at all for h = x. So no scale in front of such a function gets a gradient.

Nor are the gradient's summands w·γ·s(y) at an entry x independent of it and of one another: the slopes s(y)
of the outputs y know x, and the weights that it went through. With few weights and equal γ, as behind a
pooling, that is a fourth of the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import fan, latents, slopes, surfaces
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Across, Factor, Moments, Normed, Term
from isometry.moments.taps import Window
from isometry.moments.terms import changed

_SQUARES = np.concatenate([np.linspace(0.0, 4.0, 17), np.geomspace(5.0, 100.0, 16)])
_SIZES = np.geomspace(0.1, 6.0, 60)
_LITTLE = 1e-4  # a variance of a gradient's square given the input that is as good as none


def orthogonal(
    dx: Moments, x: Moments, g: Moments, windows: Sequence[Window], channels: int, share: float
) -> Moments:
    """Return a convolution's gradient at its input x with what it owes to x.

    That of a depthwise one is orthogonal to each channel of x, the second dim. As it is where x is more than
    a function of one variable.

    Args:
        dx: The gradient at x as if it were independent of x.
        x: The input.
        g: The gradient at the output.
        windows: One per spatial dim.
        channels: How many channels an output reads.
        share: The output's own part of what the norm behind it divides by; ε takes the rest.
    """
    factor = alg.absorbed(x.terms[0], x.axes) if len(x.terms) == 1 else None
    if factor is None or dx.axes != x.axes or len(dx.terms) != 1 or len(dx.terms[0].factors) != 1:
        return dx
    count = channels * prod(ax.size(x.axes[p]) for d in range(len(x.dims)) if d != 1 for p in x.positions(d))
    part = factor.values**2 / np.maximum(factor.square[..., None] * count, 1e-300)
    # The outputs are centred, which takes off what of the mean their windows read on average.
    apart = (factor.values - prod(w.terms / w.kernel for w in windows) * factor.mean[..., None]) ** 2
    spread = np.maximum(latents.mean(apart), 1e-300)[..., None]
    summand, added = _given_square(g, windows, channels, fan.kurtosis(x))
    own = np.maximum(1.0 - share * part, 0.0) * np.interp(apart / spread, _SQUARES, summand)
    square = own / latents.mean(own)[..., None] + np.interp(apart / spread, _SQUARES, added)
    gained = latents.mean(square)[..., None]
    if channels > 1 and float(latents.mean((square / gained - 1.0) ** 2).max()) < _LITTLE:
        return dx
    table = np.array(dx.table)
    rec.diagonal(table, dx.axes)[...] *= gained[..., 0]
    bent = changed(factor, np.sqrt(square / gained), x.axes)
    if channels > 1:
        return slopes.carried(dx, [bent], table)
    alone = np.sqrt(own / latents.mean(own)[..., None] / gained)
    mark = Across(factor, bent.values, alone, share, _loose(windows))
    return marked(slopes.carried(dx, [bent], table), mark)


def _given_square(g: Moments, windows: Sequence[Window], channels: int, excess: float) -> tuple[Array, Array]:
    """Return what a convolution's gradients add up to at an entry x, given x².

    The outputs y = Σ w x that read x have the gradients g = γ·s(y), and their slope knows the weight that x
    went through. For K normal weights of a fixed length, x in units of its standard deviation, v = (x² + Q)/K
    with the sum Q of the squares of the other entries of a window, and y = √v·ε with a normal ε,

        E[w² s²| x] = E[s² + (ε² − 1)·s²·(x²/v − 1)/(K − 1)| x],
        E[w_k s(y)| x] = x·E[s′(y)| x]/√K       (w² = 1 on average).

    So where the γ of neighbouring outputs have the correlation r, those of the n that read an entry add
    (n − 1)·r·x²·E[s′| x]²/(K + 2) to the square: along x, and exact for linear s where x is independent of
    its neighbours. Asymptotic in K.

    Args:
        g: The gradient at the outputs.
        windows: One per spatial dim.
        channels: How many channels an output reads.
        excess: The excess kurtosis of x.

    Returns:
        The first in units of its mean, and what is added in units of E[s²], by `_SQUARES`.
    """
    mark = mark_of(g, Normed)
    carrier, rest = slopes.split(g.terms[0])
    slope = next((f for f in rest if mark is not None and f.latent == mark.latent), None)
    if carrier is None or slope is None:
        return np.ones_like(_SQUARES), np.zeros_like(_SQUARES)
    reads = [np.bincount(w.taps()[2]).astype(np.float64) for w in windows]  # how many outputs read an entry
    read = prod(float((n**2).sum() / n.sum()) for n in reads)
    terms = max(channels * prod(w.terms for w in windows), 2.0)
    y, s = (rec.pooled(f, g.axes) for f in (surfaces.form_of(slope), slope.values))
    y = (y - latents.mean(y)) / max(float(latents.mean(y**2) - latents.mean(y) ** 2), 1e-300) ** 0.5
    own, bend, rise = _scaled(y, s)
    v = (_SQUARES[:, None] + _others(terms, excess)) / terms
    fixed = (_SQUARES[:, None] / v - 1.0) / (terms - 1.0)
    own, bend, rise = (np.interp(v**0.5, _SIZES, f) for f in (own, bend, rise))
    alone = np.maximum((own + bend * fixed) @ latents.FEW_WEIGHTS, 0.0)
    whole = max(float(latents.mean(s**2)), 1e-300)
    pairs = (read - 1.0) / (terms + 2.0) * _likeness(carrier, g.axes, len(windows))
    return alone / whole, pairs * _SQUARES * (rise @ latents.FEW_WEIGHTS) ** 2 / whole


def _likeness(carrier: Factor, axes: tuple[Axis, ...], rank: int) -> float:
    """Return the correlation of entries at different places, which the last axes are."""
    together = rec.average_differ(carrier.table, axes, range(len(axes) - rank, len(axes)))
    return max(together / max(rec.average(carrier.square, axes), 1e-300), 0.0)


def _others(terms: float, excess: float) -> Array:
    """Return the sum of the squares of K − 1 entries of variance 1, at the few nodes of a normal variable.

    A gamma variable of their mean and variance.
    """
    return (terms - 1.0) * fan.sizes(max(excess + 2.0, 0.1) / (terms - 1.0))


def _scaled(y: Array, s: Array) -> tuple[Array, Array, Array]:
    """Return E[s²], E[(ε² − 1)s²] and E[s′] of s(√v·ε) with normal ε, by √v; s is given where it is at y."""
    moved = np.interp(_SIZES[:, None] * latents.NODES, y, s)
    bent = (latents.NODES**2 - 1.0) * moved**2
    return latents.mean(moved**2), latents.mean(bent), latents.mean(moved * latents.NODES) / _SIZES


def _loose(windows: Sequence[Window]) -> float:
    """Return what of a gradient's square does not sum to zero, because windows at the border miss entries.

    Behind a norm the gradients at the outputs sum to zero, and so do those at the inputs but for the taps
    that are missing: Σ f(1 − f)/Σ f over the kernel's entries, each used by the share f of the outputs.
    """
    used = [np.bincount(w.taps()[1], minlength=w.kernel) / w.outputs for w in windows]
    return 1.0 - prod(float(f @ f) for f in used) / prod(float(f.sum()) for f in used)


def product(g: Moments, h: Moments) -> Moments:
    """Return g·h of aligned records for a sum over batch and space.

    Of a gradient orthogonal to x, only what h has across x counts, and across 1 but for what is loose of it;
    of a sum of gradients, each for itself.
    """
    if not any(_mark(term) for term in g.terms):
        return alg.multiply(g, h)
    parts = [alg.multiply(replace(g, terms=(term,)), h).terms for term in g.terms]
    made = [
        tuple(_kept(found, mark, g.axes) for found in own) if (mark := _mark(term)) and len(own) == 1 else own
        for term, own in zip(g.terms, parts, strict=True)
    ]
    return alg.assemble(g.dims, tuple(term for own in made for term in own))


def _mark(term: Term) -> Across | None:
    return next((p.latent for f in term.factors for p in f.parts if isinstance(p.latent, Across)), None)


def _kept(term: Term, mark: Across, axes: tuple[Axis, ...]) -> Term:
    """Return a product of an orthogonal gradient and h with what a sum over batch and space keeps of it."""
    found = [f for f in term.factors if f.key == mark.to.key]
    if len(found) != 1 or found[0].values.shape != mark.to.values.shape:
        return term
    x, one = mark.to.values, np.ones_like(mark.to.values)
    along = _across(found[0].values / np.maximum(mark.bent, 1e-150), x, mark.share)
    level = _across(one, x, mark.share)
    weight = latents.mean(along * level) / np.maximum(latents.mean(level * level), 1e-300)
    along = along - (1.0 - mark.loose**0.5) * weight[..., None] * level
    rest = tuple(f for f in term.factors if f is not found[0])
    return Term(term.coef, (*rest, changed(found[0], along * mark.alone, axes)))


def itself(g: Moments) -> Moments:
    """Return g for a sum over batch and space; see `product`."""
    if not any(_mark(term) for term in g.terms):
        return g
    return product(g, alg.assemble(g.dims, (Term(np.ones([1] * len(g.axes))),)))


def _across(h: Array, x: Array, share: float) -> Array:
    """Return a function h of a variable less this share of its part along x."""
    weight = latents.mean(x * h) / np.maximum(latents.mean(x * x), 1e-300)
    return h - share * weight[..., None] * x
