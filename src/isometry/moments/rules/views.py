"""Views, copies and regroupings: no arithmetic, only axes. All exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import regrouping as reg
from isometry.moments.concatenation import concatenate
from isometry.moments.concrete import Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import RULES, Context, NoRule, Shifted, Value, rule
from isometry.moments.rules.linear import with_shape
from isometry.moments.rules.pointwise import as_moments


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", accuracy="exact")
def view(ctx: Context, m: Moments, *_: Any) -> Moments:
    """Regroup axes; those that straddle the new dims and do not divide are fused (averages over pairs)."""
    return reg.regrouped(m, ctx.shape)


@rule("detach", "alias", "clone", "contiguous", "_to_copy", "to", "lift_fresh", "_conj", accuracy="exact")
def same(ctx: Context, m: Moments, *_: Any, **__: Any) -> Moments:
    """The same values (rounding of a cast is ignored)."""
    return m


@rule("copy_", "copy", accuracy="exact", raw=(0, 1))
def copy(ctx: Context, m: Any, source: Any, *_: Any) -> Moments | Shifted:
    """The source, broadcast."""
    if isinstance(source, Shifted):
        return Shifted(with_shape(source.random, ctx.shape), source.shift)
    return with_shape(as_moments(source), ctx.shape)


@rule("t", accuracy="exact")
def t(ctx: Context, m: Moments) -> Moments:
    """Transpose of a matrix."""
    return reg.transposed(m, tuple(reversed(range(len(m.dims)))))


@rule("transpose", accuracy="exact")
def transpose(ctx: Context, m: Moments, i: int, j: int) -> Moments:
    """Exchange two dims."""
    order = list(range(len(m.dims)))
    order[i], order[j] = order[j], order[i]
    return reg.transposed(m, tuple(order))


@rule("permute", accuracy="exact")
def permute(ctx: Context, m: Moments, order: Sequence[int]) -> Moments:
    """Reorder dims."""
    return reg.transposed(m, tuple(d % len(m.dims) for d in order))


@rule("unsqueeze", accuracy="exact")
def unsqueeze(ctx: Context, m: Moments, dim: int) -> Moments:
    """Insert a dim of size 1."""
    dim = dim % (len(m.dims) + 1)
    return replace(m, dims=(*m.dims[:dim], (), *m.dims[dim:]))


@rule("squeeze", accuracy="exact")
def squeeze(ctx: Context, m: Moments, dim: int | Sequence[int] | None = None) -> Moments:
    """Drop dims of size 1."""
    listed = range(len(m.dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    drop = {d % len(m.dims) for d in listed} if m.dims else set()
    return replace(m, dims=tuple(d for k, d in enumerate(m.dims) if d or k not in drop))


_PLACED = (*reg.UNVIEWED, "clone")  # the same entries in other places


def of_numbers(
    op: str, args: tuple[Any, ...], value: Callable[[Any], Any], results: Sequence[Tensor]
) -> list[Value | None]:
    """Return known values that an operation gave, and of views of numbers what they are views of.

    Args:
        op: The operation's name.
        args: Its arguments.
        value: Tells what is known about one.
        results: What it gave.
    """
    if op not in _PLACED or not results[0].is_floating_point():
        return [Concrete(t) for t in results]
    shape = tuple(results[0].shape)

    def moved(m: Moments) -> Moments:
        made: Moments = RULES[op].fn(Context(op, (shape,)), m, *args[1:])
        return made

    return [Concrete(results[0], (value(args[0]), moved))]


@rule("expand", accuracy="exact")
def expand(ctx: Context, m: Moments, *_: Any, **__: Any) -> Moments:
    """Broadcast: constant along the new axes."""
    return with_shape(m, ctx.shape)


@rule("slice", accuracy="exact")
def slice_(
    ctx: Context, m: Moments, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Moments:
    """A slice along a dim."""
    dim %= len(m.dims)
    begin, stop, step = slice(start, end, step).indices(m.shape[dim])
    if (begin, stop, step) == (0, m.shape[dim], 1):
        return m
    return reg.sliced(m, dim, begin, stop, step)


@rule("select", accuracy="exact")
def select(ctx: Context, m: Moments, dim: int, index: int) -> Moments:
    """One entry along a dim."""
    dim %= len(m.dims)
    return reg.selected(m, dim, index % m.shape[dim])


@rule("split", "split_with_sizes", "unsafe_split", "chunk", "unsafe_split_with_sizes", accuracy="exact")
def split(ctx: Context, m: Moments, size: Any, dim: int = 0) -> tuple[Moments, ...]:
    """Consecutive slices along a dim."""
    dim %= len(m.dims)
    parts, start = [], 0
    for shape in ctx.shapes:
        whole = shape[dim] == m.shape[dim]
        parts.append(m if whole else reg.sliced(m, dim, start, start + shape[dim], 1))
        start += shape[dim]
    return tuple(parts)


@rule("unbind", accuracy="exact")
def unbind(ctx: Context, m: Moments, dim: int = 0) -> tuple[Moments, ...]:
    """All entries along a dim."""
    dim %= len(m.dims)
    return tuple(reg.selected(m, dim, k) for k in range(m.shape[dim]))


@rule("cat", accuracy="exact", raw=(0,))
def cat(ctx: Context, parts: Sequence[Any], dim: int = 0) -> Moments | Shifted:
    """Concatenate: each part becomes a block of its own. Masks stay beside, nothing masked elsewhere."""
    dim %= len(ctx.shape)
    given = [_beside_mask(p) for p in parts]
    made = concatenate([p for p, _ in given if p.shape != (0,)], dim)
    if not any(isinstance(p, Shifted) for p in parts):
        return made
    return Shifted(made, Concrete(torch.cat([mask for _, mask in given], dim)))


def _beside_mask(part: Any) -> tuple[Moments, torch.Tensor]:
    """Return what is random of a tensor, and what is known beside it, 0 where nothing is."""
    if not isinstance(part, Shifted):
        m = as_moments(part)
        return m, torch.zeros((), dtype=torch.float64).expand(m.shape)
    if not isinstance(part.shift, Concrete):
        raise NoRule("a mask too large to hold beside other tensors")
    mask = part.shift.tensor.to(torch.float64)
    shape = np.broadcast_shapes(part.random.shape, mask.shape)
    return with_shape(part.random, shape), mask.expand(shape)


@rule("stack", accuracy="exact")
def stack(ctx: Context, parts: Sequence[Moments], dim: int = 0) -> Moments:
    """Concatenate along a new dim."""
    dim %= len(ctx.shape)
    return concatenate([unsqueeze(ctx, p, dim) for p in parts], dim)


@rule("slice_backward", accuracy="exact")
def slice_backward(
    ctx: Context, g: Moments, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Moments:
    """The gradient in its place, zeros around it."""
    dim %= len(sizes)
    begin, stop, step = slice(start, end, step).indices(sizes[dim])
    if step == 1:
        return placed(g, tuple(sizes), dim, begin)
    if not len(range(begin, stop, step)):
        return alg.constant(sizes, 0.0)
    return _interleaved(alg.constant(sizes, 0.0), g, dim, begin, step)


def _interleaved(m: Moments, source: Moments, dim: int, begin: int, step: int) -> Moments:
    """Replace every step-th entry from `begin` on: one entry of an inner axis of size `step`.

    Where such axes leave a rest of the dim, it is a part of its own.
    """
    ctx, n, count = Context("", ()), m.shape[dim], source.shape[dim]
    start, offset = divmod(begin, step)
    whole = n // step
    if n % step:
        head, tail = reg.sliced(m, dim, 0, whole * step, 1), reg.sliced(m, dim, whole * step, n, 1)
        if start + count > whole:
            last = reg.sliced(source, dim, count - 1, count, 1)
            tail = slice_scatter(ctx, tail, last, dim, offset, offset + 1)
            source = reg.sliced(source, dim, 0, count - 1, 1) if count > 1 else source
            head = head if count == 1 else _interleaved(head, source, dim, begin, step)
        else:
            head = _interleaved(head, source, dim, begin, step)
        return concatenate([head, tail], dim)
    before, after = m.shape[:dim], m.shape[dim + 1 :]
    inner = reg.regrouped(m, (*before, whole, step, *after))
    own = slice_scatter(ctx, select(ctx, inner, dim + 1, offset), source, dim, start, start + count)
    return reg.regrouped(select_scatter(ctx, inner, own, dim + 1, offset), m.shape)


@rule("select_backward", accuracy="exact")
def select_backward(ctx: Context, g: Moments, sizes: Sequence[int], dim: int, index: int) -> Moments:
    """The gradient in its place, zeros around it."""
    dim %= len(sizes)
    return placed(unsqueeze(ctx, g, dim), tuple(sizes), dim, index % sizes[dim])


@rule("slice_scatter", accuracy="exact")
def slice_scatter(
    ctx: Context,
    m: Moments,
    source: Moments,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Moments:
    """A slice along a dim replaced."""
    dim %= len(m.dims)
    n = m.shape[dim]
    begin, stop, step = slice(start, end, step).indices(n)
    if stop <= begin:
        return m
    count = len(range(begin, stop, step))
    source = with_shape(source, (*m.shape[:dim], count, *m.shape[dim + 1 :]))
    if step != 1:
        return _interleaved(m, source, dim, begin, step)
    parts = [source]
    if begin:
        parts.insert(0, reg.sliced(m, dim, 0, begin, 1))
    if stop < n:
        parts.append(reg.sliced(m, dim, stop, n, 1))
    return concatenate(parts, dim) if len(parts) > 1 else parts[0]


@rule("select_scatter", accuracy="exact")
def select_scatter(ctx: Context, m: Moments, source: Moments, dim: int, index: int) -> Moments:
    """One entry along a dim replaced."""
    dim %= len(m.dims)
    index %= m.shape[dim]
    source = with_shape(source, (*m.shape[:dim], *m.shape[dim + 1 :]))
    made: Moments = slice_scatter(ctx, m, unsqueeze(ctx, source, dim), dim, index, index + 1)
    return made


def placed(g: Moments, sizes: tuple[int, ...], dim: int, start: int) -> Moments:
    """Return a record of zeros with g from `start` on along a dim."""
    length = g.shape[dim]
    parts = [g]
    if start:
        parts.insert(0, alg.constant((*sizes[:dim], start, *sizes[dim + 1 :]), 0.0))
    if sizes[dim] - start - length:
        parts.append(alg.constant((*sizes[:dim], sizes[dim] - start - length, *sizes[dim + 1 :]), 0.0))
    return concatenate(parts, dim)
