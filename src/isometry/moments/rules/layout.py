"""Repeating, striding, diagonals and halves: regroupings that look entries up by position. All exact."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.concatenation import concatenate
from isometry.moments.concrete import moments_of
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.index import gathered
from isometry.moments.rules.linear import with_shape
from isometry.moments.rules.pointwise import times
from isometry.moments.rules.scatter import put
from isometry.moments.rules.spatial import unfold
from isometry.moments.rules.views import slice_scatter


@rule("repeat", "tile", accuracy="exact")
def repeat(ctx: Context, m: Moments, repeats: Sequence[int]) -> Moments:
    """Copies side by side along each dim: an outer axis along which nothing varies."""
    m = replace(m, dims=((),) * (len(repeats) - len(m.dims)) + m.dims)
    shape = m.shape
    m = replace(m, dims=tuple(d for own in m.dims for d in ((), own)))
    m = with_shape(m, tuple(n for r, own in zip(repeats, shape, strict=True) for n in (r, own)))
    return reg.regrouped(m, ctx.shape)


@rule("as_strided", accuracy="exact")
def as_strided(
    ctx: Context, m: Moments, sizes: Sequence[int], strides: Sequence[int], offset: int | None = None
) -> Moments:
    """A view whose strides divide one another, windows that overlap included; see `unfold`.

    Assumes that the tensor is laid out contiguously.
    """
    overlap = _overlapping(sizes, strides)
    if overlap is not None:
        return _with_windows(ctx, m, sizes, strides, offset, *overlap)
    total = prod(m.shape)
    steps, order = _digits(sizes, strides, total)
    bounds = [total, *steps]
    flat = reg.regrouped(m, tuple(high // low for high, low in pairwise(bounds)))
    rest = offset or 0
    for k, step in enumerate(steps):
        start, rest = divmod(rest, step)
        length = next((n for n, s in zip(sizes, strides, strict=True) if s == step and n > 1), 1)
        if start + length > flat.shape[k]:
            raise NoRule("a strided view that wraps around")
        flat = flat if length == flat.shape[k] else reg.sliced(flat, k, start, start + length, 1)
    flat = reg.transposed(flat, (*order, *[k for k in range(len(steps)) if k not in order]))
    flat = replace(flat, dims=flat.dims[: len(order)])
    flat = reg.regrouped(flat, tuple(n if s else 1 for n, s in zip(sizes, strides, strict=True)))
    return with_shape(flat, ctx.shape)


def _overlapping(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """Return a dim of windows and the dim within them, if the windows of a strided view overlap."""
    moving = [k for k, (n, s) in enumerate(zip(sizes, strides, strict=True)) if n > 1 and s > 0]
    for k in moving:
        for j in moving:
            if strides[k] > strides[j] and not strides[k] % strides[j] and sizes[j] * strides[j] > strides[k]:
                return k, j
    return None


def _with_windows(
    ctx: Context,
    m: Moments,
    sizes: Sequence[int],
    strides: Sequence[int],
    offset: int | None,
    windows: int,
    inner: int,
) -> Moments:
    """Return a strided view as windows along the dim of the view that has all their entries in a row."""
    step = strides[windows] // strides[inner]
    length = (sizes[windows] - 1) * step + sizes[inner]
    rest = [k for k in range(len(sizes)) if k != windows]
    whole = [length if k == inner else sizes[k] for k in rest]
    base: Moments = as_strided(Context(ctx.op, (tuple(whole),)), m, whole, [strides[k] for k in rest], offset)
    made: Moments = unfold(ctx, base, rest.index(inner), sizes[inner], step)
    order = [windows if k == inner else k for k in rest] + [inner]  # the dims' places in the view
    return reg.transposed(made, tuple(order.index(k) for k in range(len(sizes))))


def _digits(sizes: Sequence[int], strides: Sequence[int], total: int) -> tuple[list[int], list[int]]:
    """Return the strides that occur, largest first, and for each dim that moves which of them it is."""
    moving = [s for n, s in zip(sizes, strides, strict=True) if n > 1 and s > 0]
    steps = sorted({1, *moving}, reverse=True)
    if len(set(moving)) < len(moving) or any(high % low for high, low in pairwise([total, *steps])):
        raise NoRule("a strided view whose windows overlap")
    return steps, [steps.index(s) for s in moving]


@rule("as_strided_scatter", accuracy="exact")
def as_strided_scatter(
    ctx: Context,
    m: Moments,
    source: Moments,
    sizes: Sequence[int],
    strides: Sequence[int],
    offset: int | None = None,
) -> Moments:
    """A contiguous tensor with a strided view of it replaced."""
    with suppress(NoRule):
        return _box_replaced(m, source, sizes, strides, offset or 0)
    places = torch.arange(prod(m.shape)).as_strided(tuple(sizes), tuple(strides), offset or 0)
    flat = reg.regrouped(source, (prod(source.shape),))
    whole = reg.regrouped(m, (prod(m.shape),))
    return reg.regrouped(put(whole, flat, [0], [places.reshape(-1)], add=False), m.shape)


def _box_replaced(
    m: Moments, source: Moments, sizes: Sequence[int], strides: Sequence[int], offset: int
) -> Moments:
    """Return a contiguous tensor of which a view is replaced that is a box of it, cut at the strides."""
    total = prod(m.shape)
    steps, order = _digits(sizes, strides, total)
    shape = [high // low for high, low in pairwise([total, *steps])]
    lengths, starts = [1] * len(steps), []
    for k, n in zip(order, [n for n, s in zip(sizes, strides, strict=True) if n > 1 and s > 0], strict=True):
        lengths[k] = n
    for step in steps:
        start, offset = divmod(offset, step)
        starts.append(start)
    if any(a + n > b for a, n, b in zip(starts, lengths, shape, strict=True)):
        raise NoRule("a strided view that wraps around")
    moved = reg.regrouped(source, tuple(lengths[k] for k in order))
    moved = reg.transposed(moved, tuple(order.index(k) for k in sorted(order)))
    whole = _overwritten(reg.regrouped(m, tuple(shape)), reg.regrouped(moved, tuple(lengths)), starts, 0)
    return reg.regrouped(whole, m.shape)


def _overwritten(m: Moments, source: Moments, starts: Sequence[int], dim: int) -> Moments:
    """Return a tensor with a box of it replaced, dim by dim."""
    if dim == len(starts):
        return source
    start, n = starts[dim], source.shape[dim]
    if n == m.shape[dim]:
        return _overwritten(m, source, starts, dim + 1)
    inside = _overwritten(reg.sliced(m, dim, start, start + n, 1), source, starts, dim + 1)
    made: Moments = slice_scatter(Context("slice_scatter", (m.shape,)), m, inside, dim, start, start + n)
    return made


@rule("diagonal", accuracy="exact")
def diagonal(ctx: Context, m: Moments, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Moments:
    """The entries where two dims meet, along a new last dim."""
    i, j = dim1 % len(m.dims), dim2 % len(m.dims)
    n = ctx.shape[-1]
    made = gathered(m, [i, j], [torch.arange(n) + max(-offset, 0), torch.arange(n) + max(offset, 0)])
    return reg.transposed(made, (*range(1, len(made.dims)), 0))


@rule("diagonal_backward", "diag_embed", accuracy="exact")
def diagonal_backward(ctx: Context, g: Moments, *args: Any) -> Moments:
    """A diagonal in its place, zeros around it."""
    numbers = list(args[1:] if ctx.op == "diagonal_backward" else args)
    default = [0, 0, 1] if ctx.op == "diagonal_backward" else [0, -2, -1]
    chosen: list[int] = [*numbers, *default[len(numbers) :]]
    offset, dim1, dim2 = chosen
    rank = len(ctx.shape)
    dims = [dim1 % rank, dim2 % rank]
    n = g.shape[-1]
    ids = [torch.arange(n) + max(-offset, 0), torch.arange(n) + max(offset, 0)]
    front = reg.transposed(g, (len(g.dims) - 1, *range(len(g.dims) - 1)))
    return put(alg.constant(ctx.shape, 0.0), front, dims, ids, add=True)


@rule("tril", "triu", accuracy="exact")
def triangle(ctx: Context, m: Moments, offset: int = 0) -> Moments:
    """A triangle of a matrix, zeros elsewhere."""
    ones = torch.ones(m.shape[-2:], dtype=torch.float64)
    return times(m, moments_of(getattr(torch, ctx.op.rstrip("_"))(ones, offset)))


@rule("glu", accuracy="exact")
def glu(ctx: Context, m: Moments, dim: int = -1) -> Moments:
    """One half times the sigmoid of the other."""
    value, gate = _halves(m, dim)
    return times(value, alg.apply(gate, _sigmoid))


@rule("glu_backward", accuracy="exact")
def glu_backward(ctx: Context, g: Moments, m: Moments, dim: int) -> Moments:
    """Gradients of both halves, side by side."""
    value, gate = _halves(m, dim)
    to_value = times(g, alg.apply(gate, _sigmoid))
    to_gate = times(g, times(value, alg.apply(gate, lambda x: _sigmoid(x) * _sigmoid(-x))))
    return concatenate([to_value, to_gate], dim % len(m.dims))


def _halves(m: Moments, dim: int) -> tuple[Moments, Moments]:
    dim %= len(m.dims)
    half = m.shape[dim] // 2
    return reg.sliced(m, dim, 0, half, 1), reg.sliced(m, dim, half, 2 * half, 1)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
