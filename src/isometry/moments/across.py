"""Gradients that are orthogonal to what they are gradients of.

A function that does not change when a channel x of its input is stretched has a gradient g with Σ g x = 0
over the channel's n entries: behind a batch norm every depthwise convolution is such a function. For γ the
gradient of independent entries that is left when the component along x is taken away,

    E[g²| x] = γ² (1 − x²/Σx²) n/(n − 1),

so that less of it lies where x is large, and Σ g h for another function h of the same variable is that of
h − x·E[x h]/E[x²]: nothing at all for h = x. So no scale in front of such a function gets a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import fan, latents, slopes
from isometry.moments import record as rec
from isometry.moments.record import Across, Moments, Normed, Term
from isometry.moments.taps import Window


def orthogonal(g: Moments, x: Moments, coherent: float) -> Moments:
    """Return a normal gradient at x that is orthogonal to each channel of it, the second dim.

    As it is where x is more than a function of one variable.

    Args:
        g: The gradient, without its coherent part.
        x: The input.
        coherent: The square of the part that is proportional to x less its mean, by that of the rest.
    """
    factor = alg.absorbed(x.terms[0], x.axes) if len(x.terms) == 1 else None
    if factor is None or g.axes != x.axes or len(g.terms) != 1 or len(g.terms[0].factors) != 1:
        return g
    count = prod(ax.size(x.axes[p]) for d in range(len(x.dims)) if d != 1 for p in x.positions(d))
    share = factor.values**2 / np.maximum(factor.square[..., None] * count, 1e-300)
    own = np.maximum(1.0 - share, 0.0)
    apart = (factor.values - factor.mean[..., None]) ** 2
    spread = np.maximum(latents.mean(apart), 1e-300)[..., None]
    square = own / latents.mean(own)[..., None] + coherent * apart / spread
    slope = np.sqrt(square / (1.0 + coherent))
    table = np.array(g.table)
    rec.diagonal(table, g.axes)[...] *= 1.0 + coherent
    bent = alg.changed(factor, slope, x.axes)
    return fan.marked(slopes.carried(g, [bent], table), Across(factor))


def coherence(g: Moments, windows: Sequence[Window]) -> float:
    """Return the square of what a depthwise convolution's gradients at an entry add up to, by the rest.

    The outputs y that read x have the gradients g = γ·s(y), and their slope knows the weight that x went
    through: E[w_k s(y) | x] = σ_w·x·E[s′(y)]/√(K Var x). Where the γ of neighbouring outputs have the
    correlation r, those of the n that read an entry add (n − 1)·r·E[s′]²/(K·E[s²]) to the square, all of it
    along x.
    """
    mark = fan.mark_of(g, Normed)
    carrier, rest = slopes.split(g.terms[0])
    slope = next((f for f in rest if mark is not None and f.latent == mark.latent), None)
    if carrier is None or slope is None:
        return 0.0
    first, square = latents.coefficients(slope.values)[..., 1], slope.square
    near = carrier.table
    for axis in reversed(g.axes[-len(windows) :]):  # neighbours, by the pairs that differ along each axis
        near = near[..., 0] if near.shape[-1] == 1 else near[..., len(axis) :].mean(-1)
    alone = float(np.mean(carrier.square))
    together = rec.average(rec.diagonal(near, g.axes[: near.ndim]), g.axes[: near.ndim])
    taps = [w.taps() for w in windows]
    reads = [np.bincount(i).astype(np.float64) for _, _, i in taps]  # how many outputs read an entry
    read = prod(float((n**2).sum() / n.sum()) for n in reads)
    terms = prod(len(o) / w.outputs for (o, _, _), w in zip(taps, windows, strict=True))
    weight = float(np.mean(first**2) / max(float(np.mean(square)), 1e-300))
    return max((read - 1.0) / terms * weight * together / max(alone, 1e-300), 0.0)


def product(g: Moments, h: Moments) -> Moments:
    """Return g·h of aligned records for a sum over batch and space.

    Of a gradient orthogonal to x, only what h has across x counts.
    """
    both = alg.multiply(g, h)
    mark = fan.mark_of(g, Across)
    if mark is None or len(both.terms) != 1:
        return both
    (term,) = both.terms
    found = [f for f in term.factors if f.key == mark.to.key]
    if len(found) != 1 or found[0].values.shape != mark.to.values.shape:
        return both
    x, along = mark.to.values, found[0].values
    weight = latents.mean(x * along) / np.maximum(latents.mean(x * x), 1e-300)
    across = alg.changed(found[0], along - weight[..., None] * x, both.axes)
    rest = tuple(f for f in term.factors if f is not found[0])
    return alg.assemble(both.dims, (Term(term.coef, (*rest, across)),))
