"""Which square matrices are orthogonal, but for a factor: their inverse is their transpose."""

from __future__ import annotations

from isometry.moments.latents import Latent, affine
from isometry.moments.record import Moments

_MARK = "orthogonal"


def orthogonal(m: Moments) -> Moments:
    """Let the latent of a square matrix remember that it is orthogonal."""
    for term in m.terms:
        for factor in term.factors:
            if isinstance(factor.latent, Latent):
                factor.latent.known[_MARK] = True
    return m


def is_orthogonal(m: Moments) -> bool:
    """Return whether a record is a multiple of one orthogonal matrix, or its transpose."""
    factor = m.only
    if factor is None or m.terms[0].coef.size > 1:
        return False
    marked = isinstance(factor.latent, Latent) and _MARK in factor.latent.known
    return (
        marked and affine(factor.values) and factor.centred and len(m.axes) == 2 and None not in factor.labels
    )
