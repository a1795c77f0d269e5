"""Tensors side by side along a dim: each part becomes blocks of its own, with the moments between parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import fan, kin, latents, near, origins
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.marks import marked
from isometry.moments.record import Factor, Joined, Moments, Run
from isometry.moments.stretches import Stretch, of_steps, pairs, size_of

LARGE = 100_000  # entries of a table from which on finer blocks cost more than they tell


def concatenate(parts: Sequence[Moments], dim: int) -> Moments:
    """Return the parts side by side along a dim.

    Exact second moments, also between parts that are slices of one tensor. The result is a function of a new
    latent, block by block; a slice of it that lies within one part (a gradient's, say) is a function of that
    part's own again.
    """
    if len(parts) == 1:
        return parts[0]
    ready = _aligned([alg.collapse(reg.single_axis(p, dim)) for p in parts], dim)
    position = ready[0].positions(dim).start
    stretches = _stretches(ready, position)
    if _entries(ready, dim, stretches) > LARGE:
        ready = [_coarser(p, dim) for p in ready]
    typical = [ready[(start + stop) // 2] for start, stop in stretches]
    alone = len(stretches) == len(ready)
    blocks = [p.axes[position] if alone else (e - s,) for p, (s, e) in zip(typical, stretches, strict=True)]
    axis: Axis = tuple(n for b in blocks for n in b)
    dims = (*ready[0].dims[:dim], (axis,), *ready[0].dims[dim + 1 :])
    axes = tuple(a for d in dims for a in d)
    table = _table(ready, blocks, position, axes) if alone else _table_of_steps(ready, stretches, position)
    mean = _side_by_side([_mean_over([p.mean for p in ready[s:e]]) for s, e in stretches], blocks, position)
    values = [_values(p) for p in typical]
    if all(latents.affine(v) for v in values):
        made = alg.gaussian(dims, table, mean)
    else:
        made = alg.with_marginal(dims, table, mean, _side_by_side(values, blocks, position))
    made = _with_neighbours(_remembering(made, ready, position), typical, blocks, position)
    return marked(made, fan.side_by_side(typical, [sum(b) for b in blocks]))


def _stretches(parts: Sequence[Moments], position: int) -> list[Stretch]:
    """Return which parts become one block: many single entries that are alike, else each part alone."""
    if all(p.axes[position] == (1,) for p in parts):
        return of_steps(parts)
    return [(k, k + 1) for k in range(len(parts))]


def _mean_over(arrays: Sequence[Array]) -> Array:
    """Return the mean of arrays that broadcast."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return np.asarray(total / len(arrays))


def _with_neighbours(
    made: Moments, parts: Sequence[Moments], blocks: Sequence[Axis], position: int
) -> Moments:
    """Return tensors side by side, each of which keeps how alike its neighbours are."""
    rank = near.rank_of([t for p in parts for t in p.terms])
    if not 0 < rank < len(made.axes) - position:
        return made
    return near.with_profile(
        made, _side_by_side([near.profile(p, rank) for p in parts], blocks, position), rank
    )


def _entries(parts: Sequence[Moments], dim: int, stretches: Sequence[Stretch]) -> int:
    """Return how many entries a table of the parts side by side has."""
    position = parts[0].positions(dim).start
    joined = sum(len(parts[start].axes[position]) for start, _ in stretches)
    others = [max(p.table.shape[k] for p in parts) for k in range(len(parts[0].axes)) if k != position]
    return int(joined * (joined + 1) * prod(others))


def _coarser(m: Moments, dim: int) -> Moments:
    """Return the record with only the outermost blocks of its axes but those of `dim` kept."""
    kept = m.positions(dim)
    for p, axis in enumerate(m.axes):
        if p not in kept and len(axis) > 3:
            m = reg.recut_axis(m, p, (axis[0], sum(axis[1:-1]), axis[-1]))
    return m


def _remembering(made: Moments, parts: Sequence[Moments], position: int) -> Moments:
    """Let tensors side by side remember the latents of those that rise with them."""
    (term,) = made.terms
    if not term.factors:
        return made
    pieces, start = [], 0
    for part in parts:
        stop = start + ax.size(part.axes[position])
        factor = alg.absorbed(part.terms[0], part.axes)
        if factor is not None and bool((np.diff(factor.values, axis=-1) >= 0).all()):
            pieces.append((start, stop, factor.latent, factor.labels))
        start = stop
    origins.laid_beside(
        term.factors[0], [(p.axes, alg.absorbed(p.terms[0], p.axes)) for p in parts], position
    )
    joined = replace(term.factors[0], latent=Joined(position, tuple(pieces), term.factors[0].latent))
    return replace(made, terms=(rec.Term(term.coef, (joined,)),))


def _aligned(parts: list[Moments], dim: int) -> list[Moments]:
    """Cut all dims but `dim` into the same axes, and give each part an axis along `dim`."""
    onwards = range(1, len(parts))
    for k in (*onwards, *reversed(onwards)):  # and back, so that the first has the last one's axes too
        for d in range(len(parts[0].dims)):
            if d != dim:
                parts[k - 1], parts[k] = reg.match_dims(parts[k - 1], d, parts[k], d)
    return [reg.broadcast(p, (*p.dims[:dim], p.dims[dim] or ((1,),), *p.dims[dim + 1 :])) for p in parts]


def _values(m: Moments) -> Array:
    factor = alg.absorbed(m.terms[0], m.axes)
    if factor is not None:
        return factor.values
    coef = m.terms[0].coef
    return np.broadcast_to(coef[..., None], (*coef.shape, len(latents.NODES)))


def _side_by_side(arrays: Sequence[Array], blocks: Sequence[Axis], position: int) -> Array:
    """Concatenate block arrays along the joined axis, broadcasting the others."""
    rest = np.broadcast_shapes(*[(*a.shape[:position], 1, *a.shape[position + 1 :]) for a in arrays])
    full = [
        np.broadcast_to(a, (*rest[:position], len(b), *rest[position + 1 :]))
        for a, b in zip(arrays, blocks, strict=True)
    ]
    return np.concatenate(full, axis=position)


def _table(parts: Sequence[Moments], blocks: Sequence[Axis], position: int, axes: tuple[Axis, ...]) -> Array:
    count = len(axes[position])
    starts = np.cumsum([0, *[len(b) for b in blocks]])
    pieces: dict[int, Array] = {}
    rest = (*axes[:position], *axes[position + 1 :])
    for (i, a), (j, b) in product(enumerate(parts), enumerate(parts)):
        for k, m in product(range(len(blocks[i])), range(len(blocks[j]))):
            first, second = int(starts[i]) + k, int(starts[j]) + m
            if i == j:
                found = _at(a.table, position, len(blocks[i]) * (1 + k) + m)
            elif i < j:
                found = _between(a, k, b, m, position)
            else:
                found = rec.mirror(pieces[count * (1 + second) + first], rest)
            pieces[count * (1 + first) + second] = found
        for k in range(len(blocks[i])):
            pieces[int(starts[i]) + k] = _at(a.table, position, k)
    shape = np.broadcast_shapes(*[p.shape for p in pieces.values()])
    return np.stack([np.broadcast_to(pieces[k], shape) for k in range(len(pieces))], axis=position)


def _table_of_steps(parts: Sequence[Moments], stretches: Sequence[Stretch], position: int) -> Array:
    """Return the table of single entries side by side, of which those of each stretch are one block."""
    axes = parts[0].axes
    rest, count = (*axes[:position], *axes[position + 1 :]), len(stretches)
    sizes = [size_of(p) for p in parts]
    means = [sum(sizes[start:stop]) / (stop - start) for start, stop in stretches]
    pieces = [_mean_over([_at(p.table, position, 0) for p in parts[start:stop]]) for start, stop in stretches]
    between: dict[tuple[int, int], Array] = {}
    for i, a in enumerate(stretches):
        for j, b in enumerate(stretches[i:], i):
            found: Array = np.zeros(1)
            for k, m, weight in pairs(a, b):
                size = sizes[k] * sizes[m]
                by = weight * means[i] * means[j] / size if size > 0 else 0.0
                found = found + by * _between(parts[k], 0, parts[m], 0, position)
            between[i, j] = found
            between[j, i] = found if i == j else rec.mirror(found, rest)
    pieces += [between[i, j] for i in range(count) for j in range(count)]
    shape = np.broadcast_shapes(*[p.shape for p in pieces])
    return np.stack([np.broadcast_to(p, shape) for p in pieces], axis=position)


def _at(array: Array, position: int, index: int) -> Array:
    return np.asarray(array.take(index if array.shape[position] > 1 else 0, axis=position))


def _between(a: Moments, k: int, b: Moments, m: int, position: int) -> Array:
    """Return E[x y] for an entry x of block k of a and an entry y of block m of b.

    Over the other axes' pair classes.
    """
    rest = (*a.axes[:position], *a.axes[position + 1 :])
    f, g = (alg.absorbed(p.terms[0], p.axes) for p in (a, b))
    if f is not None and g is not None and _related(f, g, position):
        differ = len(a.axes[position]) * (1 + k) + k
        rho = _at(f.rho, position, differ)
        left, right = _at(f.values, position, k), _at(g.values, position, m)
        return latents.dual(rec.first(left, rest), rec.second(right, rest), rho)
    known = kin.apart(f, g, a.axes, position) if f is not None and g is not None else None
    if known is not None and f is not None and g is not None:
        left, right = _at(f.values, position, k), _at(g.values, position, m)
        return rec.dual(left, right, known, rest)
    return rec.first(_at(a.mean, position, k), rest) * rec.second(_at(b.mean, position, m), rest)


def _related(f: Factor, g: Factor, position: int) -> bool:
    """Return whether two factors run over different stretches of one latent's axis."""
    if f.latent != g.latent:
        return False
    ours, theirs = f.labels[position], g.labels[position]
    others = all(p == q for k, (p, q) in enumerate(zip(f.labels, g.labels, strict=True)) if k != position)
    return others and isinstance(ours, Run) and isinstance(theirs, Run) and ours[:2] == theirs[:2]
