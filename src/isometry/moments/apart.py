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

import numpy as np

from isometry.moments import latents, surfaces
from isometry.moments.record import Apart, Moments, Term

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
