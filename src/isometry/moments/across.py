"""Gradients that are orthogonal to what they are gradients of.

A function that does not change when a channel x of its input is stretched has a gradient g with Σ g x = 0
over the channel's n entries: behind a batch norm every depthwise convolution is such a function. For γ the
gradient of independent entries that is left when the component along x is taken away,

    E[g²| x] = γ² (1 − x²/Σx²) n/(n − 1),

so that less of it lies where x is large, and Σ g h for another function h of the same variable is that of
h − x·E[x h]/E[x²]: nothing at all for h = x. So no scale in front of such a function gets a gradient.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments.record import Across, Factor, Moments, Part, Term


def orthogonal(g: Moments, x: Moments) -> Moments:
    """Return a normal gradient at x that is orthogonal to each channel of it, the second dim.

    As it is where x is more than a function of one variable.
    """
    factor = alg.absorbed(x.terms[0], x.axes) if len(x.terms) == 1 else None
    if factor is None or g.axes != x.axes or len(g.terms) != 1 or len(g.terms[0].factors) != 1:
        return g
    count = prod(ax.size(x.axes[p]) for d in range(len(x.dims)) if d != 1 for p in x.positions(d))
    share = factor.values**2 / np.maximum(factor.square[..., None] * count, 1e-300)
    slope = np.sqrt(np.maximum(1.0 - share, 0.0))
    slope = slope / np.sqrt(latents.mean(slope**2))[..., None]
    (term,) = g.terms
    (own,) = term.factors
    mark = Part(Across(factor), (None,) * len(g.axes), (), np.zeros([1] * (len(g.axes) + 1)))
    own = replace(own, parts=(*own.parts, mark))
    bent = alg.changed(factor, slope, x.axes)
    table = own.table / np.where(np.abs(bent.table) > 1e-9, bent.table, 1.0)
    return alg.assemble(g.dims, (Term(term.coef, (replace(own, table=table), bent)),))


def product(g: Moments, h: Moments) -> Moments:
    """Return g·h of aligned records for a sum over batch and space.

    Of a gradient orthogonal to x, only what h has across x counts.
    """
    both = alg.multiply(g, h)
    mark = next((p.latent for f in _factors(g) for p in f.parts if isinstance(p.latent, Across)), None)
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


def _factors(m: Moments) -> tuple[Factor, ...]:
    return m.terms[0].factors if len(m.terms) == 1 else ()
