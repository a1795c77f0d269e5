"""Gradients that were multiplied by slopes f′(z), and what becomes of those slopes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments.axes import Array
from isometry.moments.record import Factor, Moments, Term


def with_table(g: Moments, table: Array) -> Moments:
    """Return a gradient like g, of mean 0, with other second moments.

    Where g = γ·f′(z) with a normal γ, the slope is kept, so that another slope of the same z which follows
    (that of a relu before a norm, whose own output went through a relu) is not taken as independent of it:
    γ gets the table that gives the product's. Else g is taken as normal.
    """
    zero = np.zeros([1] * len(g.axes))
    if len(g.terms) == 1:
        factors = g.terms[0].factors
        carrier = next((f for f in factors if f.centred and alg.affine(f.values)), None)
        rest = [f for f in factors if f is not carrier]
        if carrier is not None and rest:
            return _carried(g, rest, table)
    return alg.gaussian(g.dims, table, zero)


def _carried(g: Moments, rest: Sequence[Factor], table: Array) -> Moments:
    """Return slopes times a normal γ whose second moments make those of the product."""
    one = np.ones([1] * len(g.axes))
    slopes = alg.assemble(g.dims, (Term(one, tuple(rest)),))
    shape = np.broadcast_shapes(table.shape, slopes.table.shape)
    ratio = np.divide(table, slopes.table, out=np.zeros(shape), where=np.abs(slopes.table) > 1e-9)
    gamma = alg.gaussian(g.dims, ratio, np.zeros_like(one))
    (term,) = gamma.terms
    return alg.assemble(g.dims, (Term(term.coef, (*rest, *term.factors)),))
