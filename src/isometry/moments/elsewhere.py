"""Functions of one latent at different places of it, as `c[:, None] - c` and `c[-1:] - c` bring together.

Two factors of one latent are the same variable where their labels agree. Where an axis of the latent runs
along one axis of the record for the first and along another for the second, or where one entry of it was
selected for one of them, they are different entries of it, whose correlation the latent tells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis
from isometry.moments.latents import Latent
from isometry.moments.record import Factor, Run, dual, outer


class Places(NamedTuple):
    """Where two factors of one latent are along the one axis in which they differ.

    `first` and `second` are the record's axes that it runs along for either; None where block `chosen` of it
    was selected, of one entry.
    """

    first: int | None
    second: int | None
    chosen: int = 0


def places_of(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Places | None:
    """Return where two factors of one latent differ; None where they are of others, or cannot be told."""
    if isinstance(f.latent, Latent) and isinstance(g.latent, Latent):
        return _moved(f, g, axes) if f.latent is g.latent and f.labels != g.labels else None
    if isinstance(f.latent, tuple) and (found := _selected(f, g, axes)) is not None:
        return Places(None, *found)
    if isinstance(g.latent, tuple) and (found := _selected(g, f, axes)) is not None:
        return Places(found[0], None, found[1])
    return None


def _moved(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Places | None:
    """Return along which axes of the record either has the axis of the latent that they have elsewhere."""
    unlike = [k for k, (a, b) in enumerate(zip(f.labels, g.labels, strict=True)) if a != b]
    if len(unlike) != 2:
        return None
    i, j = unlike if f.labels[unlike[1]] is None else reversed(unlike)
    same = isinstance(f.labels[i], Run) and f.labels[i] == g.labels[j] and axes[i] == axes[j]
    other = f.labels[j] is None and g.labels[i] is None and f.rho.shape[i] > 1
    return Places(i, j) if same and other else None


def _selected(one: Factor, whole: Factor, axes: tuple[Axis, ...]) -> tuple[int, int] | None:
    """Return the axis that one entry was selected of, and its block; see `labels.renamed`."""
    if not (isinstance(one.latent, tuple) and len(one.latent) == 3 and one.latent[0] is whole.latent):
        return None
    _, label, index = one.latent
    unlike = [k for k, (a, b) in enumerate(zip(one.labels, whole.labels, strict=True)) if a != b]
    if len(unlike) != 1 or whole.labels[unlike[0]] != label or one.labels[unlike[0]] is not None:
        return None
    (k,) = unlike
    if whole.rho.shape[k] == 1 or not isinstance(index, int) or index >= ax.size(axes[k]):
        return None
    return k, int(np.searchsorted(np.cumsum(axes[k]), index, side="right"))


def covariance(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return cov(f, g′) by pair class for two functions of one latent at different places.

    None where they are not. Two places of one block of n are one place in a share 1/n of the pairs.
    """
    places = places_of(f, g, axes)
    if places is None:
        return None
    if places.first is not None:
        rho = np.moveaxis(f.rho, places.first, -1)
        axis = axes[places.first]
    else:
        assert places.second is not None
        rho = np.moveaxis(g.rho, places.second, -1)
        axis = axes[places.second]
    left, right = ax.sides(axis)
    b, sizes = len(axis), np.asarray(axis, dtype=np.float64)
    share = np.where(np.eye(b) > 0, 1.0 / sizes[:, None], 0.0)
    one = np.take(rho, np.broadcast_to(np.arange(b)[:, None], (b, b)), axis=-1)
    met = share * one + (1.0 - share) * np.take(rho, b + np.arange(b * b).reshape(b, b), axis=-1)
    if places.first is None or places.second is None:  # met[…, first, second], of which one is fixed
        at = places.second if places.first is None else places.first
        met = met[..., places.chosen, right] if places.first is None else met[..., left, places.chosen]
        spread = np.moveaxis(met, -1, axes.index(axis) if at is None else at)
    else:
        met = met[..., left, :][..., right]
        i, j = places.first, places.second
        met = np.squeeze(met, axis=j if j < i else j - 1)  # along j the first had one class
        spread = np.moveaxis(met, (-2, -1), (i, j))
    return np.asarray(dual(f.values, g.values, spread, axes) - outer(f.mean, g.mean, axes))
