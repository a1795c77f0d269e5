"""Views of latents: which entries of one a record holds, and its pair tables as seen along other axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis
from isometry.moments.latents import Latent
from isometry.moments.record import Joined, Label, Run

Place = Run | int | None  # where a latent's axis runs: along an axis of who looks, at one entry, or nowhere
Places = tuple[Place, ...]
Axes = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class View:
    """Entries of a latent, as they lie along the axes of who looks: one place for each axis of the latent.

    There is one view of the same latent and places: see `view`.
    """

    latent: Latent
    places: Places


def view(latent: Latent, places: Places) -> View:
    """Return the view of a latent with these places."""
    found: View | None = latent.views.get(places)
    if found is None:
        found = latent.views[places] = View(latent, places)
    return found


def all_of(latent: Latent) -> View:
    """Return the view of all of a latent along axes of its own."""
    found: View | None = latent.views.get("all")
    if found is None:
        found = view(latent, tuple([Run(k, 1, 0) if n > 1 else None for k, n in enumerate(latent.rho.shape)]))
        latent.views["all"] = found
    return found


def view_of(latent: object, labels: tuple[Label, ...]) -> View | None:
    """Return a factor's variable as a view of the latent that it runs over; None where that is not told."""
    if not isinstance(latent, Latent):
        return _found(latent, labels)
    key = ("labels", labels)
    if key not in latent.views:
        latent.views[key] = _found(latent, labels)
    found: View | None = latent.views[key]
    return found


def _found(latent: object, labels: tuple[Label, ...]) -> View | None:
    pins: dict[int, int] = {}
    while isinstance(latent, tuple) and len(latent) == 3 and isinstance(latent[1], Run):
        latent, label, index = latent
        if not isinstance(label.base, int):
            return None
        pins[label.base] = label.offset + label.stride * index
    if isinstance(latent, Joined):
        latent = latent.whole
    if not isinstance(latent, Latent):
        return None
    places: list[Place] = [None] * len(latent.axes)
    for k, label in enumerate(labels):
        if label is None:
            continue
        if not isinstance(label, Run) or not isinstance(label.base, int) or places[label.base] is not None:
            return None
        places[label.base] = Run(k, label.stride, label.offset)
    for base, index in pins.items():
        places[base] = index
    varies = all(p is not None or n == 1 for p, n in zip(places, latent.rho.shape, strict=True))
    return view(latent, tuple(places)) if varies else None


@lru_cache(maxsize=4096)
def composed(inner: Places, outside: Places) -> Places | None:
    """Return the places, for who looks at a view, of a view along that one's own axes."""
    found: list[Place] = []
    for place in inner:
        if not isinstance(place, Run):
            found.append(place)
            continue
        assert isinstance(place.base, int)
        through = outside[place.base]
        if through is None:
            return None
        if isinstance(through, Run):
            offset = place.offset + place.stride * through.offset
            found.append(Run(through.base, place.stride * through.stride, offset))
        else:
            found.append(place.offset + place.stride * through)
    return tuple(found)


@lru_cache(maxsize=4096)
def common(a: Axes, b: Axes) -> Axes | None:
    """Return the axes of two latents of the same sizes, cut into common blocks; None for other sizes."""
    if a == b:
        return a
    if len(a) != len(b) or any(ax.size(p) != ax.size(q) for p, q in zip(a, b, strict=True)):
        return None
    return tuple(ax.common_blocks(p, q) for p, q in zip(a, b, strict=True))


def seen(table: Array, own: Axes, ours: Places, theirs: Places, axes: Axes) -> Array | None:
    """Return a pair array along a latent's axes as one along those of who looks at two views of it."""
    order: list[int] = []
    for j in reversed(range(len(own))):
        p, q = ours[j], theirs[j]
        if isinstance(p, Run) and isinstance(q, Run) and p.base == q.base:
            assert isinstance(p.base, int)
            if p == q:
                table = _taken(table, j, own[j], p, axes[p.base])
            else:
                table = np.expand_dims(_differing(table, j, own[j]), j)
            order.insert(0, p.base)
        elif isinstance(p, int) and isinstance(q, int):
            table = np.asarray(table.take(_class_of(own[j], p, q) if table.shape[j] > 1 else 0, axis=j))
        elif p is None and q is None and table.shape[j] == 1:
            table = np.asarray(table.take(0, axis=j))
        else:
            return None
    return _laid(table, order, len(axes))


def blocks_seen(values: Array, own: Axes, places: Places, axes: Axes) -> Array | None:
    """Return a block array along a latent's axes as one along those of who looks at a view of it."""
    order: list[int] = []
    for j in reversed(range(values.ndim)):
        place = places[j]
        if isinstance(place, Run):
            assert isinstance(place.base, int)
            if values.shape[j] > 1:
                cut = _slice(own[j], place, axes[place.base])
                values = ax.recut(cut.given[0], axes[place.base]).on_blocks(cut.on_blocks(values, j), j)
            order.insert(0, place.base)
        elif isinstance(place, int):
            block = int(np.searchsorted(np.cumsum(own[j]), place, side="right"))
            values = np.asarray(values.take(block if values.shape[j] > 1 else 0, axis=j))
        elif values.shape[j] == 1:
            values = np.asarray(values.take(0, axis=j))
        else:
            return None
    return _laid(values, order, len(axes))


def _laid(array: Array, order: Sequence[int], rank: int) -> Array:
    """Return an array whose dims run along the axes given, with dims of length 1 for the others."""
    if len(order) == rank and list(order) == list(range(rank)):
        return array
    array = array.transpose(np.argsort(order))
    shape = [1] * rank
    for k, n in zip(sorted(order), array.shape, strict=True):
        shape[k] = n
    return array.reshape(shape)


def _slice(own: Axis, place: Run, axis: Axis) -> ax.AxisMap:
    return ax.take(own, place.offset, place.offset + place.stride * ax.size(axis), place.stride)


def _taken(table: Array, position: int, own: Axis, place: Run, axis: Axis) -> Array:
    if table.shape[position] == 1 or (own == axis and place[1:] == (1, 0)):
        return table
    if len(own) == len(axis) == 1:  # one block: the same two classes
        return table
    cut = _slice(own, place, axis)
    table = cut.on_pairs(table, position)
    return table if cut.given[0] == axis else ax.recut(cut.given[0], axis).on_pairs(table, position)


def _differing(table: Array, position: int, own: Axis) -> Array:
    """Return the mean over pairs that differ along an axis, which disappears."""
    if table.shape[position] == 1:
        return np.asarray(table.take(0, axis=position))
    weights = ax.pair_counts(own) * (1.0 - ax.same_classes(own))
    return np.asarray(np.tensordot(table, weights / max(weights.sum(), 1.0), axes=(position, 0)))


def _class_of(own: Axis, i: int, j: int) -> int:
    """Return the pair class of two entries of an axis."""
    edges = np.cumsum(own)
    p, q = (int(np.searchsorted(edges, k, side="right")) for k in (i, j))
    return p if i == j else len(own) * (1 + p) + q
