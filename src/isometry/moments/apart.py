"""Gradients that have lost their component along what a norm was taken of.

A norm does not change when its input x is stretched, so that behind it each row's gradient g has Σ g x = 0.
Where x = y + b is the sum of what an earlier norm made and a branch, g comes to y as it is, and has next to
nothing left along y: of an independent gradient's E[(Σ g y)²] the share r² is gone, r the correlation of x
with y, and the second norm takes away only what is left of it. Of a sum of gradients, each loses by its
share of the square: what comes through branches counts as independent of y (exact for a branch that mixes
rows; one that is homogeneous in its row has Σ g y = −Σ g b of its own, which takes the rest away as well,
1 − r² twice at most).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import latents, surfaces
from isometry.moments import record as rec
from isometry.moments.marks import mark_of, marked
from isometry.moments.origins import Contraction
from isometry.moments.record import Along, Apart, Moments, Term

_LEAST = 0.02  # a smaller share is forgotten


def behind(unit: Moments) -> Apart | None:
    """Return the mark of gradients behind a norm that made `unit`: orthogonal to it and to its summands."""
    if len(unit.terms) != 1 or len(unit.terms[0].factors) != 1:
        return None
    (factor,) = unit.terms[0].factors
    form = surfaces.form_of(factor)
    variance = np.maximum(latents.mean(form**2) - latents.mean(form) ** 2, 1e-300)
    shares = {k: float(np.mean(latents.mean(p.values**2) / variance)) for k, p in factor.plain.items()}
    found = {(*factor.key, ()): 1.0} | {k: min(share, 1.0) for k, share in shares.items() if share > _LEAST}
    return Apart(tuple(found.items()))


def of_sum(terms: Sequence[Term]) -> Apart | None:
    """Return the mark of a sum of gradients; None where none has one."""
    total, found = 0.0, dict[object, float]()
    for term in terms:
        size = float(np.mean(term.square))
        total += size
        marks = (p.latent for f in term.factors for p in f.parts if isinstance(p.latent, Apart))
        for key, share in (pair for mark in marks for pair in mark.shares):
            found[key] = found.get(key, 0.0) + share * size
    shares = tuple((key, share / total) for key, share in found.items() if share > _LEAST * total)
    return Apart(shares) if shares else None


def gone(g: Moments, unit: Moments) -> float:
    """Return the share of E[(Σ g x̂)²] that a gradient has lost already."""
    mark = of_sum(g.terms)
    if mark is None or len(unit.terms) != 1 or len(unit.terms[0].factors) != 1:
        return 0.0
    return dict(mark.shares).get((*unit.terms[0].factors[0].key, ()), 0.0)


def through(made: Moments, g: Moments, w: Moments) -> Moments:
    """Return the gradient g·Wᵀ at o, of y = o·W, with what it has lost along o if g has along y.

    For Σ g y = Σ (g Wᵀ) o.
    """
    mark, weight = of_sum(g.terms), w.only
    if mark is None or weight is None or len(made.terms) != 1:
        return made
    for (latent, *_), share in ((key, s) for key, s in mark.shares if isinstance(key, tuple)):
        origin = getattr(latent, "origin", None)
        if not isinstance(origin, Contraction) or origin.b is None:
            continue
        ours, theirs = origin.a.only, origin.b.only
        if ours is not None and theirs is not None and theirs.latent is weight.latent:
            return marked(made, Along(ours.latent, share, made.shape[-1]))
    return made


def of_products(made: Moments, g: Moments, v: Moments) -> Moments:
    """Return Σ_j g_tj v_kj over one head, for a gradient g at o = Σ_k a_k v_k, less what g has lost along o.

    With d entries of a head, of the variance σ_v² and the covariance c with o, and o's N entries in all,

        E[g²]·s·(Σ_j o_j v_kj)²/Σ o² = E[g²]·s·d²c²/(N σ_o²)

    is gone of the products of one row, for the share s that is lost. c is the covariance of two keys, and
    their variance where they are the same. What all keys of a row have in common, a softmax does not see.
    """
    mark, values = mark_of(g, Along), v.only
    origin = getattr(mark.latent, "origin", None) if mark is not None else None
    if mark is None or values is None or not isinstance(origin, Contraction) or origin.b is None:
        return made
    theirs, keys = origin.b.only, v.positions(2)
    if theirs is None or theirs.latent is not values.latent or len(keys) != 1 or not made.terms[0].factors:
        return made
    square = rec.average(v.square, v.axes)
    apart = rec.average_differ(v.table, v.axes, keys)
    n = v.shape[2]
    common = apart + (square - apart) / n
    crowd = float(np.mean(origin.std**2 + origin.mean**2))
    size = v.shape[1] * common**2 / (mark.entries * max(crowd, 1e-300) * max(square, 1e-300))
    less = np.minimum(mark.share * size, 0.9) * made.square
    table = np.array(made.table)
    at = tuple(
        slice(len(a)) if k < len(made.axes) - 1 and m > 1 else slice(None)
        for k, (a, m) in enumerate(zip(made.axes, table.shape, strict=True))
    )
    table[at] = table[at] - float(rec.average(less, made.axes))
    (term,), (factor,) = made.terms, made.terms[0].factors
    other = alg.gaussian(made.dims, table, made.mean).terms[0].factors[0]
    by = np.sqrt(made.variance / np.maximum(rec.diagonal(table, made.axes) - made.mean**2, 1e-300))
    parts = tuple(replace(p, values=p.values * by[..., None]) for p in factor.parts)
    return Moments(made.dims, (Term(term.coef, (replace(other, parts=parts),)),), table, made.mean)
