"""Regrouping records: views, slices, transposes, broadcasting, and bringing two records to the same axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments.axes import Array, Axis, AxisMap, Move
from isometry.moments.labels import renamed, replace_at, unjoined
from isometry.moments.record import (
    Dims,
    Factor,
    Fused,
    Joined,
    Label,
    Moments,
    Part,
    Run,
    Term,
    diagonal,
    outer,
)

# --- regrouping ---------------------------------------------------------------------------------------------


def remap(
    m: Moments, position: int, how: AxisMap, labels: Callable[[tuple[Label, ...]], tuple[Label, ...]]
) -> Moments:
    """Apply an axis map to every array of the record.

    `dims` come back as one dim per axis (set them afterwards).
    """
    axes, stop = m.axes, position + len(how.taken)
    averaging = how.pairs.dtype.kind == "f"
    given = (*axes[:position], *how.given, *axes[stop:])

    def on_factor(f: Factor) -> Factor:
        values = how.on_blocks(f.values, position)
        table = how.on_pairs(f.table, position)
        if averaging:
            values = respread(values, diagonal(table, given))

        def relabelled(ls: tuple[Label, ...]) -> tuple[Label, ...]:
            return (*ls[:position], *labels(ls[position:stop]), *ls[stop:])

        parts = tuple(
            Part(p.latent, relabelled(p.labels), p.gone, how.on_blocks(p.values, position)) for p in f.parts
        )
        return replace(
            f,
            labels=relabelled(f.labels),
            rho=how.on_pairs(f.rho, position),
            values=values,
            table=table,
            parts=parts,
            form=None if f.form is None else how.on_blocks(f.form, position),
            length=None if f.length is None else how.on_pairs(f.length, position),
        )

    def on_term(t: Term) -> Term:
        if averaging and any(n > 1 for n in t.coef.shape[position:stop]):
            t = _without_coef(t, axes)
        made = Term(how.on_blocks(t.coef, position), tuple(on_factor(f) for f in t.factors))
        unlike = [f for f in t.factors if averaging and any(n > 1 for n in f.values.shape[position:stop])]
        if len(unlike) < 2:
            return made
        wanted, got = how.on_blocks(t.square, position), made.square
        shape = np.broadcast_shapes(wanted.shape, got.shape)
        ratio = np.divide(wanted, got, out=np.ones(shape), where=got > 0)
        return replace(made, coef=made.coef * np.sqrt(ratio))

    terms = tuple(on_term(t) for t in m.terms)
    dims = tuple((a,) for a in given)
    return Moments(dims, terms, how.on_pairs(m.table, position), how.on_blocks(m.mean, position))


def respread(values: Array, square: Array) -> Array:
    """Stretch values about their mean until their second moment is `square`.

    Averaged node values have lost spread.
    """
    own = latents.mean(values)
    spread = latents.mean((values - own[..., None]) ** 2)
    wanted = np.maximum(square - own**2, 0.0)
    ratio = np.sqrt(
        np.divide(
            wanted,
            spread,
            out=np.ones(np.broadcast_shapes(wanted.shape, spread.shape)),
            where=spread > 1e-300,
        )
    )
    return np.asarray(own[..., None] + (values - own[..., None]) * ratio[..., None])


def _without_coef(term: Term, axes: tuple[Axis, ...]) -> Term:
    """Move a coefficient that varies by block into a factor, before blocks are averaged."""
    ones = np.ones([1] * len(axes))
    if term.factors:
        head = alg.absorbed(Term(term.coef, term.factors[:1]), axes)
        assert head is not None
        return Term(ones, (head, *term.factors[1:]))
    return Term(ones, (_constant_factor(term.coef, axes),))


def _constant_factor(coef: Array, axes: tuple[Axis, ...]) -> Factor:
    """Return constants that differ between blocks as a function of a latent with the right marginal.

    This is done before blocks are averaged.
    """
    weights: Array = np.ones(1)
    for axis, n in zip(axes, coef.shape, strict=True):
        weights = np.multiply.outer(weights, np.asarray(axis, dtype=np.float64) if n > 1 else np.ones(1))
    values = latents.quantiles(coef.ravel(), weights.ravel() / weights.sum())
    table = outer(coef, coef, axes)
    rho = np.ones(table.shape)
    return alg.new_factor(axes, rho, values.reshape([1] * len(axes) + [-1]), table)


def regrouped(m: Moments, target: tuple[int, ...]) -> Moments:
    """Return the record with its axes regrouped into dims of the given sizes (row-major, as `view`)."""
    if m.shape == target:
        return m
    moves, groups = ax.regroup(m.axes, target)
    for move in moves:
        m = _moved(m, move)
    dims, taken = [], 0
    axes = m.axes
    for group in groups:
        dims.append(axes[taken : taken + len(group)])
        taken += len(group)
    return replace(m, dims=tuple(dims))


def _moved(m: Moments, move: Move) -> Moments:
    p, axes = move.position, m.axes
    if move.kind == "recut":
        return remap(m, p, ax.recut(axes[p], move.axis), lambda ls: ls)
    if move.kind == "split":
        return remap(m, p, ax.split(axes[p], move.inner), lambda ls: split_label(ls[0], move.inner))
    inner = ax.size(axes[p + 1])
    return remap(m, p, ax.fuse(axes[p], axes[p + 1]), lambda ls: (_fuse_labels(ls[0], ls[1], inner),))


def split_label(label: Label, inner: int) -> tuple[Label, Label]:
    """Splitting a run gives an outer part with a longer stride and leaves the inner part."""
    if label is None:
        return None, None
    if isinstance(label, Fused):
        if label.inner == inner:
            return label.high, label.low
        label = Run(label, 1, 0)
    return Run(label.base, label.stride * inner, label.offset), Run(label.base, label.stride, 0)


def _fuse_labels(high: Label, low: Label, inner: int) -> Label:
    if high is None and low is None:
        return None
    if not isinstance(high, Run) or not isinstance(low, Run) or high.base != low.base:
        return Fused(high, low, inner)
    if low.offset == 0 and high.stride == low.stride * inner:
        return Run(low.base, low.stride, high.offset)
    return Fused(high, low, inner)


def fused_label(labels: Sequence[Label], axes: Sequence[Axis]) -> Label:
    """Return the label of an axis that several were fused into."""
    label = labels[0]
    for low, axis in zip(labels[1:], axes[1:], strict=True):
        label = _fuse_labels(label, low, ax.size(axis))
    return label


def recut_axis(m: Moments, position: int, axis: Axis) -> Moments:
    """Return the record with one axis cut into other blocks."""
    if m.axes[position] == axis:
        return m
    changed = remap(m, position, ax.recut(m.axes[position], axis), lambda ls: ls)
    return _with_axes(changed, m.dims, {position: (axis,)})


def _with_axes(changed: Moments, dims: Dims, new: dict[int, tuple[Axis, ...]]) -> Moments:
    """Give back the dims of a record some of whose axes were replaced."""
    result, position = [], 0
    for dim in dims:
        axes: list[Axis] = []
        for axis in dim:
            axes += new.get(position, (axis,))
            position += 1
        result.append(tuple(axes))
    return replace(changed, dims=tuple(result))


def sliced(m: Moments, dim: int, start: int, stop: int, step: int) -> Moments:
    """Return m[..., start:stop:step, ...] along a dim.

    Exact: the axis is cut into blocks at the slice's edges first.
    """
    if len(m.dims[dim]) != 1:
        m = single_axis(m, dim)
    (position,) = m.positions(dim)
    axis = m.axes[position]
    if len(axis) > 1 and step == 1:
        n = ax.size(axis)
        edges = tuple(b for b in (start, stop - start, n - stop) if b)
        m = recut_axis(m, position, ax.common_blocks(axis, edges))
        axis = m.axes[position]
    how = ax.take(axis, start, stop, step)
    given = how.given
    if ax.size(given[0]) == 1:
        return selected(m, dim, start, keep=True)

    def relabel(labels: tuple[Label, ...]) -> tuple[Label, ...]:
        (label,) = labels
        if label is None:
            return (None,)
        run = Run(label, 1, 0) if isinstance(label, Fused) else label
        return (Run(run.base, run.stride * step, run.offset + start * run.stride),)

    made = _with_axes(remap(m, position, how, relabel), m.dims, {position: given})
    return _unjoined(made, position)


def _unjoined(m: Moments, position: int) -> Moments:
    """Return the record with a stretch of tensors side by side as functions of the part's own latent."""
    if not any(isinstance(f.latent, Joined) for t in m.terms for f in t.factors):
        return m
    n = ax.size(m.axes[position])
    terms = tuple(Term(t.coef, tuple(unjoined(f, n, position) for f in t.factors)) for t in m.terms)
    return replace(m, terms=terms)


def selected(m: Moments, dim: int, index: int, *, keep: bool = False) -> Moments:
    """Return m[..., index, ...]; `keep` leaves a dim of size 1."""
    changed = m
    for position in reversed(m.positions(dim)):
        axis = changed.axes[position]
        here = index % ax.size(axis)
        index //= ax.size(axis)
        changed = _picked(changed, position, here)
    dims = (*m.dims[:dim], *([()] if keep else []), *m.dims[dim + 1 :])
    return replace(changed, dims=dims)


def _picked(m: Moments, position: int, index: int) -> Moments:
    """Select one entry of an axis.

    The latents remember which, so that x[:, 0] and x[:, 1] stay different variables.
    """

    def pinned(f: Factor) -> Factor:
        label = f.labels[position]
        if isinstance(f.latent, Joined) and isinstance(label, Run):
            at = label._replace(offset=label.offset + label.stride * index)
            one = unjoined(replace(f, labels=replace_at(f.labels, position, at)), 1, position)
            if one.latent is not f.latent:
                return _pinned(one, position, 0)
        return _pinned(f, position, index)

    m = replace(m, terms=tuple(Term(t.coef, tuple(map(pinned, t.factors))) for t in m.terms))
    return remap(m, position, ax.pick(m.axes[position], index), lambda _: ())


def _pinned(f: Factor, position: int, index: int) -> Factor:
    parts = tuple(replace(p, latent=renamed(p.labels, p.latent, position, index)) for p in f.parts)
    return replace(f, latent=renamed(f.labels, f.latent, position, index), parts=parts)


def single_axis(m: Moments, dim: int) -> Moments:
    """Return the record with a dim's axes fused into one."""
    while len(m.dims[dim]) > 1:
        position = m.positions(dim)[0]
        inner = ax.size(m.axes[position + 1])
        how = ax.fuse(m.axes[position], m.axes[position + 1])
        changed = remap(m, position, how, lambda ls, inner=inner: (_fuse_labels(ls[0], ls[1], inner),))  # type: ignore[misc]
        dims = list(m.dims)
        dims[dim] = (*how.given, *m.dims[dim][2:])
        m = replace(changed, dims=tuple(dims))
    return m


def transposed(m: Moments, order: tuple[int, ...]) -> Moments:
    """Return the record with its dims in another order."""
    axis_order = [p for dim in order for p in m.positions(dim)]
    nodes_last = [*axis_order, len(axis_order)]

    def on_factor(f: Factor) -> Factor:
        parts = tuple(
            [
                Part(
                    p.latent, tuple([p.labels[k] for k in axis_order]), p.gone, p.values.transpose(nodes_last)
                )
                for p in f.parts
            ]
        )
        return replace(
            f,
            labels=tuple(f.labels[p] for p in axis_order),
            rho=f.rho.transpose(axis_order),
            values=f.values.transpose(nodes_last),
            table=f.table.transpose(axis_order),
            parts=parts,
            form=None if f.form is None else f.form.transpose(nodes_last),
            length=None if f.length is None else f.length.transpose(axis_order),
        )

    terms = tuple(Term(t.coef.transpose(axis_order), tuple(map(on_factor, t.factors))) for t in m.terms)
    dims = tuple(m.dims[d] for d in order)
    return Moments(dims, terms, m.table.transpose(axis_order), m.mean.transpose(axis_order))


def widened(m: Moments, position: int, axes: tuple[Axis, ...]) -> Moments:
    """Return the record with constant axes inserted before `position`.

    `dims` come back as one dim per axis.
    """
    new = [1] * len(axes)

    def wide(a: Array) -> Array:
        return a.reshape((*a.shape[:position], *new, *a.shape[position:]))

    def on_factor(f: Factor) -> Factor:
        def more(labels: tuple[Label, ...]) -> tuple[Label, ...]:
            return (*labels[:position], *([None] * len(axes)), *labels[position:])

        parts = tuple(Part(p.latent, more(p.labels), p.gone, wide(p.values)) for p in f.parts)
        return replace(
            f,
            labels=more(f.labels),
            rho=wide(f.rho),
            values=wide(f.values),
            table=wide(f.table),
            parts=parts,
            form=None if f.form is None else wide(f.form),
            length=None if f.length is None else wide(f.length),
        )

    terms = tuple(Term(wide(t.coef), tuple(map(on_factor, t.factors))) for t in m.terms)
    dims = tuple((a,) for a in (*m.axes[:position], *axes, *m.axes[position:]))
    return Moments(dims, terms, wide(m.table), wide(m.mean))


def broadcast(m: Moments, dims: Dims) -> Moments:
    """Return the record broadcast to dims of the same rank.

    Dims of size 1 become constant along the given axes.

    Dims that have axes must have the same axes already (see `aligned`).
    """
    for k, dim in enumerate(dims):
        if dim and not m.dims[k]:
            own = m.dims
            m = replace(widened(m, m.positions(k).start, dim), dims=(*own[:k], dim, *own[k + 1 :]))
    return m


def aligned(a: Moments, b: Moments) -> tuple[Moments, Moments]:
    """Return both records broadcast against each other and cut into the same axes and blocks.

    This is what an elementwise operation needs.
    """
    rank = max(len(a.dims), len(b.dims))
    a = replace(a, dims=((),) * (rank - len(a.dims)) + a.dims)
    b = replace(b, dims=((),) * (rank - len(b.dims)) + b.dims)
    for dim in range(rank):
        a, b = match_dims(a, dim, b, dim)
    dims = tuple(p or q for p, q in zip(a.dims, b.dims, strict=True))
    return broadcast(a, dims), broadcast(b, dims)


def match_dims(a: Moments, i: int, b: Moments, j: int) -> tuple[Moments, Moments]:
    """Return both records with dim i of a and dim j of b cut into the same axes and blocks.

    A dim of size 1 is left alone.
    """
    if a.dims[i] == b.dims[j] or not a.dims[i] or not b.dims[j]:
        return a, b
    a = with_sizes(a, i, tuple(ax.size(x) for x in b.dims[j]))
    b = with_sizes(b, j, tuple(ax.size(x) for x in a.dims[i]))
    if len(a.dims[i]) != len(b.dims[j]):
        a = with_sizes(a, i, tuple(ax.size(x) for x in b.dims[j]))
    if [ax.size(x) for x in a.dims[i]] != [ax.size(x) for x in b.dims[j]]:
        a, b = single_axis(a, i), single_axis(b, j)
    for p, q in zip(a.positions(i), b.positions(j), strict=True):
        fine = ax.common_blocks(a.axes[p], b.axes[q])
        a, b = recut_axis(a, p, fine), recut_axis(b, q, fine)
    return a, b


def with_sizes(m: Moments, dim: int, target: tuple[int, ...]) -> Moments:
    """Return the record with one dim's axes cut at the sizes `target` (finer axes stay finer)."""
    own = m.dims[dim]
    if tuple(ax.size(x) for x in own) == target:
        return m
    start = m.positions(dim)[0]
    moves, groups = ax.regroup(own, target)
    before, after = m.dims[:dim], m.dims[dim + 1 :]
    for move in moves:
        m = _moved(m, replace(move, position=move.position + start))
    count = sum(len(g) for g in groups)
    return replace(m, dims=(*before, m.axes[start : start + count], *after))


UNVIEWED = (  # views whose tensor is found again
    "view",
    "t",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "_unsafe_view",
    "_reshape_alias",
)


def unviewed(name: str, args: tuple[Any, ...], m: Moments, shape: tuple[int, ...]) -> Moments:
    """Return the record of the tensor that a view of all of it was taken from.

    Args:
        name: The view's operation.
        args: Its arguments.
        m: The record of the view.
        shape: The tensor's shape.
    """
    rank = len(m.dims)
    if name in ("t", "transpose"):
        order = list(range(rank))
        i, j = (0, -1) if name == "t" else args[1:3]
        order[i], order[j] = order[j], order[i]
        return transposed(m, tuple(order))
    if name == "permute":
        return transposed(m, tuple(sorted(range(rank), key=lambda k: args[1][k] % rank)))
    return regrouped(m, shape)
