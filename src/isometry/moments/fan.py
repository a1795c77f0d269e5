"""Sums whose weights every channel has for itself, and their gradients behind a division by their size.

The channel y = Σ_k w_k x_k with independent weights has the mean square v = wᵀSw over a batch, where S holds
the mean products of x. With K weights of one law and d = (Σ S_kk)²/Σ S_kk′² directions,

    Var v/E[v]² = 2/d,       so that for normal weights       E[1/v]·E[v] ≈ d/(d − 2)

(exact where S is a multiple of the identity: d = K). Behind a batch norm the gradient at y therefore has a
larger square than 1/E[v] tells. The gradient at x is a sum of w/√v, and w is large where v is:

    E[|w|²/v]·E[v]/E[|w|²] ≈ d/(d − 2)·(1 − 2/K),

which is 1 for S a multiple of the identity: w/|w| has a fixed length. `Fan` marks such sums, `Normed` their
gradients. A weight that c_k of the outputs use counts by its share: K = (Σ c)²/Σ c².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import gram
from isometry.moments import record as rec
from isometry.moments.averages import centred, one_block
from isometry.moments.axes import Array
from isometry.moments.record import Fan, Moments, Normed, Part, Term
from isometry.moments.taps import Window

T = TypeVar("T", Fan, Normed)

_LEAST = 2.5  # directions; with two or fewer 1/v has no mean


def of_convolution(x: Moments, w: Moments, windows: Sequence[Window]) -> Fan | None:
    """Return the fan of a convolution's channels; None where the weights are not independent.

    Args:
        x: The input, with the dims batch, group, channel of a group, and space (an axis each).
        w: The weight.
        windows: One per spatial dim.
    """
    space = tuple(range(3, len(x.dims)))
    if not gram.is_white(w):
        return None
    x = one_block(x, space)
    pairs, entries = [], []
    for d, dim in enumerate(x.dims):
        for axis in dim:
            if d in space:
                used = _used(windows[d - 3])
                square = float((used.diagonal() ** 2).sum())
                pairs.append(np.array([square, float((used**2).sum()) - square]))
                entries.append(np.array([float(used.trace())]))
            elif d == 2:
                pairs.append(ax.pair_counts(axis))
                entries.append(np.asarray(axis, dtype=np.float64))
            else:  # of one sample and one group, on average
                pairs.append(np.concatenate([ax.shares(axis), np.zeros(len(axis) ** 2)]))
                entries.append(ax.shares(axis))
    table = centred(x, (0, *space))
    total = _weighted(rec.diagonal(table, x.axes), entries)
    if total <= 0:
        return None
    alike = [float((u.diagonal() ** 2).sum() / u.trace() ** 2) for u in map(_used, windows)]
    return Fan(x.shape[2] / float(np.prod(alike)), total**2 / _weighted(table**2, pairs))


def _used(window: Window) -> Array:
    """Return the share of outputs that use kernel entries k and k′."""
    o, k, _ = window.taps()
    use = np.zeros((window.outputs, window.kernel))
    use[o, k] = 1.0
    return np.asarray(use.T @ use / window.outputs)


def _weighted(array: Array, weights: Sequence[Array]) -> float:
    for own in reversed(weights):
        array = array[..., 0] * own.sum() if array.shape[-1] == 1 else array @ own
    return float(array)


def marked(m: Moments, mark: Fan | Normed | None) -> Moments:
    """Return a record of one variable that carries a mark."""
    (term,) = m.terms
    if mark is None or not term.factors:
        return m
    (factor,) = term.factors
    part = Part(mark, (None,) * len(m.axes), (), np.zeros([1] * (len(m.axes) + 1)))
    return replace(m, terms=(Term(term.coef, (replace(factor, parts=(*factor.parts, part)),)),))


def mark_of(m: Moments, kind: type[T]) -> T | None:
    """Return a record's mark of a kind; None where it has none, or is more than one variable."""
    if len(m.terms) != 1 or len(m.terms[0].factors) != 1:
        return None
    return next((p.latent for p in m.terms[0].factors[0].parts if isinstance(p.latent, kind)), None)


def excess(fan: Fan) -> float:
    """Return E[1/v]·E[v] over the channels."""
    directions = max(fan.directions, _LEAST)
    return directions / (directions - 2.0)


def kept(m: Moments) -> float:
    """Return the share 1 − 2/K of a gradient's square that weights of a fixed length pass on.

    1 for a gradient that was not divided by their sums' sizes.
    """
    mark = mark_of(m, Normed)
    return 1.0 if mark is None else 1.0 - 2.0 / max(mark.weights, _LEAST)
