"""Mehler's series by pair class, Σ_k a_k b_k′ ρ^k: what a table of a function of a latent costs most.

Tables of images have tens of thousands of pair classes, and forty powers each. Mostly all blocks hold one
function, of variables of different sizes, and most pairs have next to no correlation: such as have need few
powers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments.axes import Array, Axis

_FAR, _POWERS = 1e-3, 6  # correlations of which the powers from there on are nothing
_SMALL = 256  # classes that are summed at once


def by_class(ours: Array, theirs: Array, rho: Array, axes: tuple[Axis, ...]) -> Array:
    """Return Σ_k ours_k theirs_k′ ρ^k by pair class for coefficients by block.

    Blocks that hold multiples of one function, as relus of normal variables do, need one series for all.
    """
    one, another = _multiples(ours), _multiples(theirs)
    if one is None or another is None:
        close = np.abs(rho) > _FAR
        if rho.size <= _SMALL or close.sum() > rho.size // 4:
            return latents.mehler(ax.spread(ours, axes, 0) * ax.spread(theirs, axes, 1), rho)
        return _of_few(ours, theirs, rho, close, axes)
    table = latents.mehler(one[1] * another[1], rho)
    if one[0].size == another[0].size == 1:
        return table
    return np.asarray(ax.spread(one[0], axes, 0) * ax.spread(another[0], axes, 1) * table)


def _of_few(
    ours: Array, theirs: Array, rho: Array, close: NDArray[np.bool_], axes: tuple[Axis, ...]
) -> Array:
    """Return `by_class` where few pairs are `close`: the others need few powers, and most are unrelated."""
    few = ax.spread(ours[..., :_POWERS], axes, 0) * ax.spread(theirs[..., :_POWERS], axes, 1)
    result = np.array(latents.mehler(few, np.where(close, 0.0, rho)))
    at = np.nonzero(np.broadcast_to(close, result.shape))
    left, right = (
        tuple([ax.sides(axis)[k][i] if n > 1 else 0 for axis, i, n in zip(axes, at, x.shape, strict=False)])
        for k, x in ((0, ours), (1, theirs))
    )
    result[at] = latents.mehler(ours[left] * theirs[right], np.broadcast_to(rho, result.shape)[at])
    return result


def _multiples(spectrum: Array) -> tuple[Array, Array] | None:
    """Return by block how many times one function's coefficients stand there, and these; None for several."""
    rows = spectrum.reshape(-1, spectrum.shape[-1])
    if len(rows) == 1:
        return np.ones(spectrum.shape[:-1]), rows[0]
    unit = rows[np.abs(rows).max(1).argmax()]
    times = rows @ unit / max(float(unit @ unit), 1e-300)
    apart = np.abs(rows - times[:, None] * unit).max(0)
    most = np.abs(unit).max()
    if apart[:-1].max() > 1e-11 * most or apart[-1] > 1e-7 * most:  # the last is the root of a difference
        return None
    return times.reshape(spectrum.shape[:-1]), unit
