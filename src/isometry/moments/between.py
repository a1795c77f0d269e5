"""Differences of running sums whose summands are all of one sign, as the decays of state-space models are.

The later of two running sums less the earlier one is the sum of what lies between, of that sign. Taken as
normal, its exponential would explode. Where all places meet all (`c[:, None] - c`) both orders come: all are
told as negative, as decays, of which a causal mask keeps one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isometry.moments import algebra as alg
from isometry.moments.axes import Array
from isometry.moments.elsewhere import Places, places_of
from isometry.moments.latents import NODES, Latent
from isometry.moments.record import Factor, Moments, diagonal, outer

_SUMS = "running sums of summands of one sign"


def remember(m: Moments, step: float) -> Moments:
    """Let the latent of running sums remember them, and the mean of a summand, whose sign is that of all."""
    for term in m.terms:
        for factor in term.factors:
            if isinstance(factor.latent, Latent) and term.coef.size == 1:
                factor.latent.known[_SUMS] = float(term.coef.flat[0]) * factor.values, step
    return m


def of_running_sums(made: Moments, a: Moments, b: Moments) -> Moments:
    """Return a difference a − b as of one sign, where both are running sums of summands of one sign.

    Args:
        made: The difference, with the moments that it has as of any two tensors.
        a: What is taken from.
        b: What is taken.
    """
    f, g = a.only, b.only
    if f is None or g is None or a.terms[0].coef.size > 1 or b.terms[0].coef.size > 1:
        return made
    coef = float(a.terms[0].coef.flat[0])
    if len(made.axes) != len(f.labels) or len(f.labels) != len(g.labels) or coef != b.terms[0].coef.flat[0]:
        return made
    places = places_of(f, g, made.axes)
    step = None if places is None else _step(f if places.first is not None else g, coef)
    return made if places is None or not step else _one_sided(made, places, step)


def _step(whole: Factor, coef: float) -> float | None:
    """Return the mean of one summand of running sums, None where these are none, or some function of such."""
    known = whole.latent.known.get(_SUMS) if isinstance(whole.latent, Latent) else None
    if known is None or known[0].size != whole.values.size:
        return None
    sums, step = known
    ours, theirs = (np.sort(np.abs(x).ravel()) for x in (coef * whole.values, sums))
    by = float(ours[-1] / theirs[-1])
    if not np.allclose(ours, by * theirs, rtol=1e-6, atol=1e-9 * float(ours[-1])):
        return None
    return float(step * by * np.sign(coef * whole.mean.sum()) * np.sign(sums.sum()))


def _one_sided(made: Moments, places: Places, step: float) -> Moments:
    signs, mean, square = _told(made, places, step)
    size = np.abs(mean)
    spread = np.sqrt(np.log(np.maximum(square / np.maximum(size**2, 1e-300), 1.0)))
    spread = np.where(size > 0, spread, 0.0)[..., None]
    values = signs[..., None] * size[..., None] * np.exp(spread * NODES - 0.5 * spread**2)
    table = np.array(np.broadcast_to(made.table, [len(x) * (len(x) + 1) for x in made.axes]))
    turned = np.where(made.mean * signs < 0, -1.0, 1.0)
    table = table * outer(turned, turned, made.axes)
    diagonal(table, made.axes)[...] = np.maximum(square, mean**2)
    return alg.with_marginal(made.dims, table, mean, values)


def _told(made: Moments, places: Places, step: float) -> tuple[Array, Array, Array]:
    """Return the signs, means and squares of differences by block."""
    shape = [len(x) for x in made.axes]
    mean, square = (np.array(np.broadcast_to(x, shape)) for x in (made.mean, made.square))
    if places.first is None or places.second is None:
        at = places.second if places.first is None else places.first
        assert at is not None
        order = np.sign(places.chosen - np.arange(shape[at])) * (1 if places.first is None else -1)
        signs = np.broadcast_to(_along(order, at, len(shape)) * np.sign(step), shape)
        return signs, np.abs(mean) * signs, square * (signs != 0)
    i, j = places.first, places.second
    blocks = np.arange(shape[i])
    within = _along(blocks, i, len(shape)) == _along(blocks, j, len(shape))
    n = _along(np.asarray(made.axes[i], dtype=np.float64), i, len(shape))
    mean = -np.where(within, abs(step) * (n - 1.0) / 3.0, np.abs(mean))
    square = np.where(within, np.where(n > 1, square * n / (n + 1.0), 0.0), square)
    return np.full(shape, -1.0), mean, square


def _along(values: NDArray[Any], position: int, rank: int) -> Array:
    return values.reshape([-1 if k == position else 1 for k in range(rank)])
