"""How much the mean squares of rows vary, beyond what their table tells.

Let v be the mean square over a row's n entries. What is divided by √v needs E[1/v]·E[v] = 1 + Var v/E[v]² + …
For independent normal entries the variance is 2/n; in general it is the mean over pairs of the covariance of
squares, and a record's correlations and tails give most of it. They do not tell what all entries of a row
have in common: with y = W x for a random W, |y|² is |x|² times a mean of squares, so that y's rows vary by
what x's rows do, besides their own 2/n. `Length` marks that excess. It is negative where rows are of a fixed
length, as behind a norm. A function hands it on by its elasticity, a product of functions of images of one
row by the square of all their elasticities' sum, a sum of independent parts by the square of their shares.
Asymptotic in the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import fan, latents, surfaces
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Factor, Length, Mark, Moments, Term

_LEAST = 1e-4  # a smaller excess is none


def mark(excess: float) -> Length | None:
    """Return the mark of an excess, None where there is next to none."""
    return Length(excess) if abs(excess) > _LEAST else None


def of_sum(terms: Sequence[Term]) -> Length | None:
    """Return the mark of a sum of independent products."""
    squares = []
    for term in terms:
        square = term.coef**2
        for f in term.factors:
            square = square * f.square
        squares.append(float(np.mean(square)))
    total = sum(squares)
    if total <= 0:
        return None
    return mark(sum((square / total) ** 2 * _of_term(t) for t, square in zip(terms, squares, strict=True) if square))


def of_rows(m: Moments, positions: Sequence[int]) -> float:
    """Return the relative variance of the mean square of a record's rows along the axes given."""
    if len(m.terms) != 1 or not m.terms[0].factors:
        return 0.0
    own = [f for f in m.terms[0].factors if not _is_root(f, m.terms[0])]
    if len(own) > 1 or not latents.affine(own[0].values):
        return 0.0
    return max(of_table(m.terms[0], m.axes, positions) + _of_term(m.terms[0]), 0.0)


def of_table(term: Term, axes: tuple[Axis, ...], positions: Sequence[int]) -> float:
    """Return what a product's own correlations and tails tell of that variance, in the last block of other axes."""
    joint: Array = np.ones([1] * len(axes))
    mean: Array = np.ones([1] * len(axes))
    own = tuple(axis if k in positions else (1,) for k, axis in enumerate(axes))
    for f in (f for f in term.factors if not _is_root(f, term)):  # a root's variance is in the excess
        at = tuple(slice(None) if k in positions else slice(-1, None) for k in range(len(axes)))
        pairs = tuple(
            slice(None) if k in positions else slice(len(axis) - 1, len(axis)) if n > 1 else slice(None)
            for k, (axis, n) in enumerate(zip(axes, f.rho.shape, strict=True))
        )
        square = f.values[at] ** 2
        joint = joint * rec.dual(square, square, f.rho[pairs], own)
        mean = mean * latents.mean(square)
    varying = joint - rec.outer(mean, mean, own)
    for p in sorted(positions, reverse=True):
        counts = ax.pair_counts(axes[p])
        varying = varying.take(0, p) if varying.shape[p] == 1 else np.tensordot(varying, counts / counts.sum(), (p, 0))
        mean = mean.take(0, p) if mean.shape[p] == 1 else np.tensordot(mean, ax.shares(axes[p]), (p, 0))
    return float(np.mean(varying)) / max(float(np.mean(mean)) ** 2, 1e-300)


def _of_term(term: Term) -> float:
    """Return the excess of a product."""
    above = below = 0.0
    for f in term.factors:
        root = next((p.latent for p in f.parts if isinstance(p.latent, Length)), None)
        if root is not None:
            pull = elasticity(f) * abs(root.excess) ** 0.5
            above, below = (above + pull, below) if root.excess > 0 else (above, below + pull)
    roots = [f for f in term.factors if _is_root(f, term)]
    divided = [_relative(surfaces.form_of(f) * f.values**2) - _relative(surfaces.form_of(f)) for f in roots]
    return above**2 - below**2 + sum(divided)


def _is_root(f: Factor, term: Term) -> bool:
    """Return whether a factor is a function of a sum over another one's row, as the root of mean(x²) of x."""
    gone = {p.latent for p in f.parts if p.gone and not isinstance(p.latent, Mark)}
    return any(g.latent in gone for g in term.factors if g is not f)


def _relative(values: Array) -> float:
    """Return the relative variance of a variable given at the nodes."""
    middle = latents.mean(values)
    return float(np.mean(latents.mean(values**2) / np.maximum(middle**2, 1e-300))) - 1.0


def elasticity(f: Factor) -> float:
    """Return half of how the logarithm of E[f²] follows that of the scale of the factor's form."""
    form, values = np.broadcast_arrays(surfaces.form_of(f), f.values)
    form, values = (x.reshape(-1, x.shape[-1])[-1] for x in (form, values))
    rise = np.diff(values) / np.where(np.diff(form) == 0.0, np.inf, np.diff(form))
    slope = 0.5 * (np.concatenate([rise[:1], rise]) + np.concatenate([rise, rise[-1:]]))
    return float(latents.mean(values * slope * form) / max(float(latents.mean(values**2)), 1e-300))


def of_positive(f: Factor) -> float:
    """Return the excess of a sum of positive f over a row, by the elasticity of E[f]: x's own for f = x²."""
    found = next((p.latent for p in f.parts if isinstance(p.latent, Length)), None)
    if found is None:
        return 0.0
    root = Factor(f.latent, f.labels, f.rho, np.sqrt(np.maximum(f.values, 0.0)), f.table, f.parts, f.form)
    return found.excess * elasticity(root) ** 2


def excess(m: Moments) -> float:
    """Return the excess of a record."""
    found = of_sum(m.terms)
    return 0.0 if found is None else found.excess


def fixed(unit: Moments, positions: Sequence[int]) -> Moments:
    """Return a normalised record, whose rows' mean squares do not vary."""
    if len(unit.terms) != 1 or not unit.terms[0].factors:
        return unit
    return fan.marked(unit, Length(-of_table(unit.terms[0], unit.axes, positions)))
