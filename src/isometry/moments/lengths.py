"""How much the mean squares of rows vary, beyond what their table tells.

Let v be the mean square over a row's n entries. What is divided by √v needs E[1/v]·E[v] = 1 + Var v/E[v]² + …
For independent normal entries the variance is 2/n; in general it is the mean over pairs of the covariance of
squares, and a record's correlations and tails give most of it. They do not tell what all entries of a row
have in common: with y = W x for a random W, |y|² is |x|² times a mean of squares, so that y's rows vary by
what x's rows do, besides their own 2/n. `Length` marks that excess. It is negative where rows are of a fixed
length, as behind a norm. A function hands it on by its elasticity, a product of functions of images of one
row by the square of all their elasticities' sum, a sum of independent parts by the square of their shares.
Asymptotic in the widths.

Rows of functions and products are taken not to vary: on the way back their slopes multiply what was divided
by the lengths, and are small where those are, which takes away again what the division adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import latents, surfaces
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Factor, Length, Mark, Moments, Part, Run, Shortened, Term

_LEAST = 1e-4  # a smaller excess is none


def marked(m: Moments, excess: float, positions: Iterable[int]) -> Moments:
    """Return a record of one term whose rows, along the axes given, have an excess."""
    (term,) = m.terms
    if not term.factors:
        return m
    *before, last = term.factors
    parts = tuple(p for p in last.parts if not isinstance(p.latent, Length))
    if abs(excess) > _LEAST:
        labels = tuple(Run(k, 1, 0) if k in positions else None for k in range(len(m.axes)))
        parts = (*parts, Part(Length(excess), labels, (), np.zeros([1] * (len(m.axes) + 1))))
    return replace(m, terms=(Term(term.coef, (*before, replace(last, parts=parts))),))


def handed_on(made: Moments, terms: Sequence[Term]) -> Moments:
    """Return a record that is the sum of independent products, with what it has of their excesses."""
    marks = [p for t in terms for f in t.factors for p in f.parts if isinstance(p.latent, Length)]
    roots = [f for t in terms for f in t.factors if _is_root(f, t)]
    along = {k for p in marks for k, label in enumerate(p.labels) if label is not None}
    along |= {k for f in roots for p in f.parts for k in _gone(p, f, terms)}
    if not along:
        return made
    squares = [float(np.mean(term.square)) for term in terms]
    total = max(sum(squares), 1e-300)
    found = ((square / total) ** 2 * _of_term(t) for t, square in zip(terms, squares, strict=True))
    return marked(made, sum(found), along)


def excess(m: Moments, positions: Sequence[int]) -> float:
    """Return the excess of a record of one term, where it is one of rows along the axes given."""
    marks = (p for f in m.terms[0].factors for p in f.parts if isinstance(p.latent, Length))
    if any(p.labels[k] is None for p in marks for k in positions):
        return 0.0
    return _of_term(m.terms[0])


def of_rows(m: Moments, positions: Sequence[int]) -> float:
    """Return the relative variance of the mean square of a normal record's rows along the axes given."""
    if len(m.terms) != 1 or not m.terms[0].factors:
        return 0.0
    own = [f for f in m.terms[0].factors if not _is_root(f, m.terms[0])]
    if len(own) > 1 or not latents.affine(own[0].values):
        return 0.0
    return max(of_table(m.terms[0], m.axes, positions) + excess(m, positions), 0.0)


def of_table(term: Term, axes: tuple[Axis, ...], positions: Sequence[int]) -> float:
    """Return what correlations and tails of entries tell of it, in the last block of the other axes.

    Where that is zero, as what pads a tensor, in the first.
    """
    mean, varying = _squares_of(term, axes, positions, last=True)
    if not mean.max() > 0.0:
        mean, varying = _squares_of(term, axes, positions, last=False)
    for p in sorted(positions, reverse=True):
        counts, shares = ax.pair_counts(axes[p]), ax.shares(axes[p])
        varying = _averaged(varying, p, counts / counts.sum())
        mean = _averaged(mean, p, shares)
    return float(np.mean(varying)) / max(float(np.mean(mean)) ** 2, 1e-300)


def _squares_of(
    term: Term, axes: tuple[Axis, ...], positions: Sequence[int], *, last: bool
) -> tuple[Array, Array]:
    """Return the mean and the covariances of squares, in one block of the axes that rows do not run along."""
    joint: Array = np.ones([1] * len(axes))
    mean: Array = np.ones([1] * len(axes))
    own = tuple(axis if k in positions else (1,) for k, axis in enumerate(axes))
    block = slice(-1, None) if last else slice(0, 1)
    for f in (f for f in term.factors if not _is_root(f, term)):  # a root's variance is in the excess
        at = tuple(slice(None) if k in positions else block for k in range(len(axes)))
        pairs = tuple(
            slice(None)
            if k in positions or n == 1
            else slice(len(axis) - 1, len(axis))
            if last
            else slice(0, 1)
            for k, (axis, n) in enumerate(zip(axes, f.rho.shape, strict=True))
        )
        square = f.values[at] ** 2
        joint = joint * rec.dual(square, square, f.rho[pairs], own)
        mean = mean * latents.mean(square)
    return mean, joint - rec.outer(mean, mean, own)


def _averaged(array: Array, p: int, weights: Array) -> Array:
    return np.asarray(array.take(0, p) if array.shape[p] == 1 else np.tensordot(array, weights, (p, 0)))


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
    return any(_gone(p, f, (term,)) for p in f.parts)


def _gone(part: Part, f: Factor, terms: Sequence[Term]) -> list[int]:
    """Return along which axes a part was summed, where it is one of another factor beside f."""
    if not part.gone or isinstance(part.latent, Mark):
        return []
    beside = (g for t in terms if f in t.factors for g in t.factors if g.latent == part.latent)
    return [k for g in beside for k, label in enumerate(g.labels) if label is not None and label in part.gone]


def _relative(values: Array) -> float:
    """Return the relative variance of a variable given at the nodes."""
    middle = latents.mean(values)
    return float(np.mean(latents.mean(values**2) / np.maximum(middle**2, 1e-300))) - 1.0


def given_back(g: Moments, x: Moments) -> float:
    """Return E[|x|²/v]/(E|x|²·E[1/v]) for a product Σ g x over rows x, by whose mean squares v g was divided.

    That is 1/(1 + e) for the relative variance e that both have, to first order, else 1. A norm that is
    written out has a factor v^−½ in each of its gradient's terms.
    """
    rows = g.positions(1)
    marks = (p for f in g.terms[0].factors for p in f.parts if isinstance(p.latent, Shortened))
    found = next((p for p in marks if all(p.labels[k] is not None for k in rows)), None)
    if not rows:
        return 1.0
    if found is not None and isinstance(found.latent, Shortened):
        shared = found.latent.excess
    else:
        shared = min(_of_root(term, g.positions(0), rows) for term in g.terms)
    return 1.0 / (1.0 + min(shared, of_rows(x, x.positions(1)))) if shared > _LEAST else 1.0


def _of_root(term: Term, features: Sequence[int], rows: Sequence[int]) -> float:
    """Return the relative variance of 1/f² for a positive factor f that each row has one of; 0 without."""
    for f in term.factors:
        own = all(f.labels[k] is None for k in features) and all(f.labels[k] is not None for k in rows)
        if own and float(f.values.min()) > 0.0:
            return float(np.mean(f.square * latents.mean(f.values**-2.0))) - 1.0
    return 0.0


def elasticity(f: Factor) -> float:
    """Return half of how the logarithm of E[f²] follows that of the scale of the factor's form."""
    form, values = np.broadcast_arrays(surfaces.form_of(f), f.values)
    form, values = (x.reshape(-1, x.shape[-1]) for x in (form, values))
    there = np.flatnonzero(np.abs(values).max(-1) > 0.0)  # not what pads a tensor
    form, values = (x[there[-1] if there.size else -1] for x in (form, values))
    slope = latents.derivative(values, form)
    return float(latents.mean(values * slope * form) / max(float(latents.mean(values**2)), 1e-300))


def of_positive(f: Factor, positions: Sequence[int]) -> float:
    """Return the excess of a sum of positive f over a row, by the elasticity of E[f]: x's own for f = x²."""
    found = next((p for p in f.parts if isinstance(p.latent, Length)), None)
    if found is None or any(found.labels[k] is None for k in positions):
        return 0.0
    assert isinstance(found.latent, Length)
    return found.latent.excess * elasticity(replace(f, values=np.sqrt(np.maximum(f.values, 0.0)))) ** 2


def fixed(unit: Moments, positions: Sequence[int]) -> Moments:
    """Return a normalised record, whose rows' mean squares do not vary."""
    if len(unit.terms) != 1 or not unit.terms[0].factors:
        return unit
    return marked(unit, -of_table(unit.terms[0], unit.axes, positions), positions)
