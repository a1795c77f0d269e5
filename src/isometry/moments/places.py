"""Views of latents: which entries of one a record holds, and its pair tables as seen along other axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array, Axis
from isometry.moments.latents import Latent
from isometry.moments.record import Factor, Joined, Label, Moments, Run, Term, mirror


class Runs(NamedTuple):
    """Where one axis of a latent runs along several axes of who looks, the first with the offset of all.

    As channels do that are cut into heads.
    """

    runs: tuple[Run, ...]


Place = Run | Runs | int | None  # along axes of who looks, at one entry, or nowhere
Places = tuple[Place, ...]
Axes = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class View:
    """Entries of a latent, as they lie along the axes of who looks: one place for each axis of the latent.

    There is one view of the same latent and places: see `view`. `columns` are kept by `columns`.
    """

    latent: Latent
    places: Places
    whole: bool = False
    columns: dict[Any, Any] = field(default_factory=dict)


def view(latent: Latent, places: Places) -> View:
    """Return the view of a latent with these places."""
    found: View | None = latent.views.get(places)
    if found is None:
        found = latent.views[places] = View(latent, places, places == _own_places(latent))
    return found


def _own_places(latent: Latent) -> Places:
    return tuple([Run(k, 1, 0) if n > 1 else None for k, n in enumerate(latent.rho.shape)])


def all_of(latent: Latent) -> View:
    """Return the view of all of a latent along axes of its own."""
    found: View | None = latent.views.get("all")
    if found is None:
        found = view(latent, _own_places(latent))
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
        pins[label.base] = pins.get(label.base, 0) + label.offset + label.stride * index
    if isinstance(latent, Joined):
        latent = latent.whole
    if not isinstance(latent, Latent):
        return None
    runs: list[list[Run]] = [[] for _ in latent.axes]
    for k, label in enumerate(labels):
        if label is None:
            continue
        if not isinstance(label, Run) or not isinstance(label.base, int):
            return None
        runs[label.base].append(label._replace(base=k))
    places = tuple([_placed(pins.get(base), own) for base, own in enumerate(runs)])
    varies = all(p is not None or n == 1 for p, n in zip(places, latent.rho.shape, strict=True))
    return view(latent, places) if varies else None


def _placed(offset: int | None, runs: Sequence[Run]) -> Place:
    """Return where an axis runs, from the entry it begins at, if told, and its runs."""
    if not runs:
        return offset
    start = (offset or 0) + sum([run.offset for run in runs])
    ordered = sorted(runs, key=lambda run: -run.stride)
    own = tuple([run._replace(offset=0 if k else start) for k, run in enumerate(ordered)])
    return own[0] if len(own) == 1 else Runs(own)


def runs_of(place: Place) -> tuple[Run, ...]:
    """Return the axes of who looks that a latent's axis runs along."""
    if isinstance(place, Runs):
        return place.runs
    return (place,) if isinstance(place, Run) else ()


@lru_cache(maxsize=4096)
def composed(inner: Places, outside: Places) -> Places | None:
    """Return the places, for who looks at a view, of a view along that one's own axes."""
    found: list[Place] = []
    for place in inner:
        if not isinstance(place, Run | Runs):
            found.append(place)
            continue
        offset, runs = 0, list[Run]()
        for run in runs_of(place):
            assert isinstance(run.base, int)
            through = outside[run.base]
            if through is None:
                return None
            offset += run.offset
            if isinstance(through, int):
                offset += run.stride * through
            runs += [
                Run(step.base, run.stride * step.stride, run.stride * step.offset)
                for step in runs_of(through)
            ]
        found.append(_placed(offset, runs))
    return tuple(found)


@lru_cache(maxsize=4096)
def common(a: Axes, b: Axes) -> Axes | None:
    """Return the axes of two latents of the same sizes, cut into common blocks; None for other sizes."""
    if a == b:
        return a
    if len(a) != len(b) or any(ax.size(p) != ax.size(q) for p, q in zip(a, b, strict=True)):
        return None
    return tuple(ax.common_blocks(p, q) for p, q in zip(a, b, strict=True))


def recut(array: Array, old: Axes, new: Axes, *, pairs: bool = True) -> Array:
    """Return a pair array, or a block array, along axes that are cut into other blocks."""
    for k, (axis, wanted) in enumerate(zip(old, new, strict=True)):
        if axis != wanted:
            how = ax.recut(axis, wanted)
            array = how.on_pairs(array, k) if pairs else how.on_blocks(array, k)
    return array


def finer(m: Moments, axes: Axes) -> Moments:
    """Return a record on axes that are cut into more blocks; the same one every time."""
    if m.axes == axes:
        return m
    views = [v for t in m.terms for f in t.factors if (v := view_of(f.latent, f.labels)) is not None]
    known = views[0].latent.views if views else {}
    if (m, axes) not in known:
        known[m, axes] = _finer(m, axes)
    found: Moments = known[m, axes]
    return found


def _finer(m: Moments, axes: Axes) -> Moments:
    def on_blocks(blocks: Array) -> Array:
        return recut(blocks, m.axes, axes, pairs=False)

    def on_pairs(table: Array) -> Array:
        return recut(table, m.axes, axes)

    def on_factor(f: Factor) -> Factor:
        form = None if f.form is None else on_blocks(f.form)
        own = replace(f, rho=on_pairs(f.rho), values=on_blocks(f.values), table=on_pairs(f.table), form=form)
        return replace(own, parts=(), length=None)

    terms = tuple(Term(on_blocks(t.coef), tuple(map(on_factor, t.factors))) for t in m.terms)
    return Moments(tuple((a,) for a in axes), terms, on_pairs(m.table), on_blocks(m.mean))


def in_place(table: Array, position: int, axis: Axis, starts: tuple[int, int], own: Axis) -> Array | None:
    """Return a table of two parts of an axis, which begin where `starts` says, as one along all of it.

    None where the axis is cut into other blocks than the parts.
    """
    edges, count = [0, *itertools.accumulate(axis)], len(axis)
    if any(start not in edges for start in starts):
        return None
    i, j = (edges.index(start) for start in starts)
    if axis[i : i + len(own)] != own or axis[j : j + len(own)] != own:
        return None
    first_, second_ = np.arange(i, i + len(own)), np.arange(j, j + len(own))
    pairs = (count * (1 + first_[:, None]) + second_).ravel()
    table = np.moveaxis(table, position, -1)
    made = np.zeros((*table.shape[:-1], count * (count + 1)))
    if i == j:
        made[..., np.concatenate([first_, pairs])] = table  # one that is the same for all pairs is spread
    else:
        made[..., pairs] = table[..., -1:]
    return np.moveaxis(made, -1, position)


def seen(table: Array, own: Axes, ours: Places, theirs: Places, axes: Axes) -> Array | None:
    """Return a pair array along a latent's axes as one along those of who looks at two views of it."""
    order: list[int] = []
    for j in reversed(range(len(own))):
        p, q = ours[j], theirs[j]
        along, beside = runs_of(p), runs_of(q)
        if along and [run[:2] for run in along] == [run[:2] for run in beside]:
            bases = [run.base for run in along if isinstance(run.base, int)]
            if p == q:
                taken = _taken(table, j, own[j], along, [axes[k] for k in bases])
                if taken is None:
                    return None
                table = taken
            else:
                table = np.expand_dims(_differing(table, j, own[j]), tuple(range(j, j + len(bases))))
            order[:0] = bases
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
        along = runs_of(places[j])
        if along:
            bases = [run.base for run in along if isinstance(run.base, int)]
            maps = _maps(own[j], along, [axes[k] for k in bases])
            if maps is None:
                return None
            for k, how in maps:
                values = how.on_blocks(values, j + k)
            order[:0] = bases
        elif isinstance(place := places[j], int):
            block = int(np.searchsorted(np.cumsum(own[j]), place, side="right"))
            values = np.asarray(values.take(block if values.shape[j] > 1 else 0, axis=j))
        elif values.shape[j] == 1:
            values = np.asarray(values.take(0, axis=j))
        else:
            return None
    return _laid(values, order, len(axes))


def less_mean(table: Array, axes: Axes, positions: Sequence[int]) -> Array:
    """Return E[(x − mean(x))·y′], the mean over the axes at these positions, from E[x y′]; exact."""
    turned = mirror(table, axes)
    for p in (p for p in positions if table.shape[p] > 1):
        by_block = np.tensordot(ax.partners(axes[p]), turned, axes=(1, p))
        turned = np.moveaxis(by_block[ax.sides(axes[p])[0]], 0, p)
    return table - mirror(turned, axes)


def _laid(array: Array, order: Sequence[int], rank: int) -> Array:
    """Return an array whose dims run along the axes given, with dims of length 1 for the others."""
    if len(order) == rank and list(order) == list(range(rank)):
        return array
    array = array.transpose(np.argsort(order))
    shape = [1] * rank
    for k, n in zip(sorted(order), array.shape, strict=True):
        shape[k] = n
    return array.reshape(shape)


def _maps(own: Axis, runs: Sequence[Run], axes: Sequence[Axis]) -> list[tuple[int, ax.AxisMap]] | None:
    """Return the maps, each with where it applies, from a latent's axis to those of who looks.

    None where those do not divide it one into the next.
    """
    sizes, step = [ax.size(axis) for axis in axes], runs[-1].stride
    strides = [step * prod(sizes[k + 1 :]) for k in range(len(sizes))]
    if [run.stride for run in runs] != strides:
        return None
    cut = ax.take(own, runs[0].offset, runs[0].offset + step * prod(sizes), step)
    maps, given = [(0, cut)], cut.given[0]
    for k in range(len(sizes) - 1):
        inner = prod(sizes[k + 1 :])
        if ax.divisible(given, inner) != given:
            return None
        maps.append((k, ax.split(given, inner)))
        maps.append((k, ax.recut(maps[-1][1].given[0], axes[k])))
        given = (inner,)
    return [*maps, (len(sizes) - 1, ax.recut(given, axes[-1]))]


def _taken(table: Array, position: int, own: Axis, runs: Sequence[Run], axes: Sequence[Axis]) -> Array | None:
    if len(runs) == 1:
        if table.shape[position] == 1 or (own == axes[0] and runs[0][1:] == (1, 0)):
            return table
        if len(own) == len(axes[0]) == 1:  # one block: the same two classes
            return table
    maps = _maps(own, runs, axes)
    for k, how in maps or ():
        table = how.on_pairs(table, position + k)
    return None if maps is None else table


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
