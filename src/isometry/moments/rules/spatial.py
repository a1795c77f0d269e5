"""Operations of images that only move, copy or mix neighbouring entries.

Padding, resizing, shuffling, rolling, unfolding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.concatenation import concatenate
from isometry.moments.concrete import Concrete
from isometry.moments.record import Factor, Gram, Loose, Moments, Term
from isometry.moments.resampling import resampled
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.taps import Window, tap_pairs

# --- padding ----------------------------------------------------------------------------------------------


@rule("constant_pad_nd", accuracy="exact")
def constant_pad(ctx: Context, x: Moments, pad: Sequence[int], value: float = 0) -> Moments | Shifted:
    """Constants around, as blocks of their own; negative padding cuts off. Exact.

    Padding by −∞, as in front of a maximum, has no moments and stays known.
    """
    if value == -math.inf:
        alone = torch.zeros(
            [1] * (len(x.dims) - len(pad) // 2) + list(x.shape[len(x.dims) - len(pad) // 2 :])
        )
        beside = torch.nn.functional.pad(alone, list(pad), value=value)
        return Shifted(padded(x, pad, 0.0), Concrete(beside))
    if not math.isfinite(value):
        raise NoRule(f"padding by {value}, which has no moments")
    return padded(x, pad, value)


def padded(x: Moments, pad: Sequence[int], value: float) -> Moments:
    """Return a record with constants around it, as `torch.nn.functional.pad` takes their numbers."""
    for k in range(len(pad) // 2):
        dim = len(x.dims) - 1 - k
        low, high = int(pad[2 * k]), int(pad[2 * k + 1])
        n = x.shape[dim]
        if low < 0 or high < 0:
            x = reg.sliced(x, dim, max(-low, 0), n - max(-high, 0), 1)
        low, high = max(low, 0), max(high, 0)
        if low or high:
            shape = x.shape
            sides = [(*shape[:dim], size, *shape[dim + 1 :]) for size in (low, high)]
            parts = [alg.constant(side, value) if side[dim] else None for side in sides]
            x = concatenate([p for p in (parts[0], x, parts[1]) if p is not None], dim)
    return x


def _by_copies(op: str, x: int, low: int, high: int) -> Array:
    """Return the matrix of a padding that copies entries, along one dim."""
    places = torch.arange(x, dtype=torch.float64).view(1, 1, x)
    mode = "reflect" if op.startswith("reflection") else "replicate"
    source = torch.nn.functional.pad(places, (low, high), mode=mode).long().view(-1).numpy()
    matrix = np.zeros((len(source), x))
    matrix[np.arange(len(source)), source] = 1.0
    return matrix


def _padding(op: str, shape: Sequence[int], pad: Sequence[int]) -> dict[int, Array]:
    made = {}
    for k in range(len(pad) // 2):
        dim = len(shape) - 1 - k
        if pad[2 * k] or pad[2 * k + 1]:
            made[dim] = _by_copies(op, shape[dim], int(pad[2 * k]), int(pad[2 * k + 1]))
    return made


_PADS = [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]


@rule(*_PADS, accuracy="exact")
def copying_pad(ctx: Context, x: Moments, pad: Sequence[int]) -> Moments:
    """Borders that repeat or mirror the inside. Exact second moments."""
    return resampled(x, _padding(ctx.op, x.shape, pad))


@rule(*[f"{name}_backward" for name in _PADS], accuracy="exact")
def copying_pad_backward(ctx: Context, g: Moments, x: Moments, pad: Sequence[int]) -> Moments:
    """Gradient of `copying_pad`: the transposed map. Exact second moments."""
    return resampled(g, {d: m.T for d, m in _padding(ctx.op, x.shape, pad).items()}, x)


# --- resizing ---------------------------------------------------------------------------------------------

_NEAREST = [f"{prefix}{n}d" for prefix in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)]
_SMOOTH = ["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"]
_SMOOTH += ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"]


def _resizing(op: str, small: Sequence[int], large: Sequence[int], rest: Sequence[Any]) -> dict[int, Array]:
    """Return the matrices of a resizing from `small` to `large`, by running it on unit vectors.

    Dim by dim.
    """
    fn = getattr(torch.ops.aten, op).default
    rank = len(small)
    settings, scales = (list(rest[:1]), list(rest[1:])) if op in _SMOOTH else ([], list(rest))
    scales = [*scales, *[None] * (rank - len(scales))]
    made = {}
    for d, (n, size) in enumerate(zip(small, large, strict=True)):  # along the others the input is constant
        alone = [n if k == d else 1 for k in range(rank)]
        units = torch.eye(n).view(n, 1, *alone).expand(n, 1, *small)
        resized = fn(units.contiguous(), list(large), *settings, *scales)
        for k in reversed(range(rank)):
            resized = resized if k == d else resized.select(2 + k, 0)
        made[d - rank] = resized.view(n, size).T.double().numpy()
    return made


@rule(*_NEAREST, *_SMOOTH, accuracy="asymptotic")
def resize(ctx: Context, x: Moments, size: Sequence[int], *rest: Any) -> Moments:
    """Resizing: each output is a fixed mean of inputs nearby. Second moments exact."""
    rank = len(x.dims) - 2
    made = _resizing(ctx.op, x.shape[2:], ctx.shape[2:], rest)
    return resampled(x, {d + rank + 2: m for d, m in made.items()})


@rule(*[f"{name}_backward" for name in (*_NEAREST, *_SMOOTH)], accuracy="exact")
def resize_backward(
    ctx: Context, g: Moments, size: Sequence[int], sizes: Sequence[int], *rest: Any
) -> Moments:
    """Gradient of `resize`: the transposed map. Exact second moments."""
    made = _resizing(ctx.op.removesuffix("_backward"), list(sizes)[2:], g.shape[2:], rest)
    return resampled(g, {d + len(g.dims): m.T for d, m in made.items()})


# --- shuffling --------------------------------------------------------------------------------------------


@rule("pixel_shuffle", accuracy="exact")
def pixel_shuffle(ctx: Context, x: Moments, factor: int) -> Moments:
    """Channels become places; exact."""
    *lead, c, h, w = x.shape
    n = len(lead)
    cut = reg.regrouped(x, (*lead, c // factor**2, factor, factor, h, w))
    moved = reg.transposed(cut, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reg.regrouped(moved, ctx.shape)


@rule("pixel_unshuffle", accuracy="exact")
def pixel_unshuffle(ctx: Context, x: Moments, factor: int) -> Moments:
    """Places become channels; exact."""
    *lead, c, h, w = x.shape
    n = len(lead)
    cut = reg.regrouped(x, (*lead, c, h // factor, factor, w // factor, factor))
    moved = reg.transposed(cut, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reg.regrouped(moved, ctx.shape)


@rule("channel_shuffle", "native_channel_shuffle", accuracy="exact")
def channel_shuffle(ctx: Context, x: Moments, groups: int) -> Moments:
    """Channels of groups are interleaved; exact."""
    n, c, *rest = x.shape
    cut = reg.regrouped(x, (n, groups, c // groups, *rest))
    return reg.regrouped(reg.transposed(cut, (0, 2, 1, *range(3, len(rest) + 3))), ctx.shape)


def _moved(m: Moments, dim: int, shift: int | None) -> Moments:
    """Return the same record as another variable.

    Rolled (or, without a shift, reversed) along a dim of one axis.

    Moving the entries back gives the old variable.
    """
    (position,) = m.positions(dim)
    n = m.shape[dim]

    def elsewhere(latent: object, label: object) -> object:
        if label is None or isinstance(latent, Loose):
            return latent
        if isinstance(latent, Gram):
            return latent._replace(origin=elsewhere(latent.origin, label))
        if isinstance(latent, tuple) and latent[0] == "moved" and latent[2] == label:
            _, before, _, by = latent
            if by is None and shift is None:
                return before
            if by is not None and shift is not None:
                return before if (by + shift) % n == 0 else ("moved", before, label, (by + shift) % n)
        return "moved", latent, label, shift

    def on_factor(f: Factor) -> Factor:
        parts = tuple(replace(p, latent=elsewhere(p.latent, p.labels[position])) for p in f.parts)
        return replace(f, latent=elsewhere(f.latent, f.labels[position]), parts=parts)

    return replace(m, terms=tuple(Term(t.coef, tuple(map(on_factor, t.factors))) for t in m.terms))


def _reordered(m: Moments, dim: int, order: list[int]) -> Moments:
    """Return the record with the blocks of a dim of one axis in another order."""
    (axis,) = m.dims[dim]
    if len(axis) == 1:
        return m
    given = tuple(axis[k] for k in order)
    of = np.asarray(order)
    left, right = ax.sides(given)
    differ = len(axis) + len(axis) * of[left] + of[right]
    pairs = np.where(np.arange(len(left)) < len(given), of[left], differ)
    made = reg.remap(m, m.positions(dim).start, ax.AxisMap((axis,), (given,), pairs, of), lambda ls: ls)
    return replace(made, dims=(*m.dims[:dim], (given,), *m.dims[dim + 1 :]))


@rule("roll", accuracy="exact")
def roll(ctx: Context, x: Moments, shifts: Any, dims: Any = ()) -> Moments:
    """Rotation along dims: the parts before and behind the cut change places. Exact."""
    if not dims:
        flat = roll(ctx, reg.regrouped(x, (int(np.prod(x.shape)),)), shifts, (0,))
        return reg.regrouped(flat, ctx.shape)
    listed = zip(*[[v] if isinstance(v, int) else list(v) for v in (shifts, dims)], strict=True)
    for shift, d in listed:
        dim = d % len(x.dims)
        n = x.shape[dim]
        shift %= n
        if shift == 0:
            continue
        x = reg.single_axis(x, dim)
        (axis,) = x.dims[dim]
        if len(axis) > 1:
            cut = ax.common_blocks(axis, (n - shift, shift))
            x = reg.recut_axis(x, x.positions(dim).start, cut)
            first = int(np.searchsorted(np.cumsum(cut), n - shift)) + 1
            x = _reordered(x, dim, [*range(first, len(cut)), *range(first)])
        x = _moved(x, dim, shift)
    return x


@rule("flip", accuracy="exact")
def flip(ctx: Context, x: Moments, dims: Sequence[int]) -> Moments:
    """Reversal along dims; the blocks of a dim are reversed. Exact."""
    for d in dims:
        dim = d % len(x.dims)
        if not x.dims[dim]:
            continue
        x = reg.single_axis(x, dim)
        (axis,) = x.dims[dim]
        x = _moved(_reordered(x, dim, list(range(len(axis)))[::-1]), dim, None)
    return x


# --- unfolding --------------------------------------------------------------------------------------------


def _on_windows(m: Moments, dim: int, window: Window) -> Moments:
    """Return the record with a dim of inputs as two: outputs and kernel entries. Exact second moments."""
    m = _laid(m, dim)
    (position,) = m.positions(dim)
    o, k, i = (window.outputs,), (window.kernel,), m.axes[position]
    pairs, blocks = tap_pairs(window, o, k, i)
    by = np.multiply.outer(ax.pair_counts(o), ax.pair_counts(k))
    table = _applied(pairs / np.maximum(by, 1.0)[..., None], m.table, position)
    mean = _applied(blocks / (window.outputs * window.kernel), m.mean, position)
    dims = (*m.dims[:dim], (o,), (k,), *m.dims[dim + 1 :])
    return _with_values(dims, table, mean, m)


def _from_windows(m: Moments, dim: int, window: Window) -> Moments:
    """Return the record with two dims, outputs and kernel entries, summed into the inputs that they read."""
    m = _laid(_laid(m, dim), dim + 1)
    m = reg.recut_axis(m, m.positions(dim).start, (window.outputs,))
    m = reg.recut_axis(m, m.positions(dim + 1).start, (window.kernel,))
    (position,) = m.positions(dim)
    i = (window.inputs,)
    pairs, blocks = tap_pairs(window, (window.outputs,), (window.kernel,), i)
    pairs = pairs / np.maximum(ax.pair_counts(i), 1.0)
    table = _collected(m.table, pairs, position)
    mean = _collected(m.mean, blocks / window.inputs, position)
    return alg.gaussian((*m.dims[:dim], (i,), *m.dims[dim + 2 :]), table, mean)


def _collected(array: Array, counts: Array, position: int) -> Array:
    """Sum an array over outputs and kernel entries with the counts of their taps."""
    full = np.broadcast_to(array, (*array.shape[:position], *counts.shape[:2], *array.shape[position + 2 :]))
    summed = np.tensordot(counts, full, axes=((0, 1), (position, position + 1)))
    return np.asarray(np.moveaxis(summed, 0, position))


def _laid(m: Moments, dim: int) -> Moments:
    m = reg.single_axis(m, dim) if m.dims[dim] else m
    return reg.broadcast(m, (*m.dims[:dim], m.dims[dim] or ((1,),), *m.dims[dim + 1 :]))


def _applied(matrix: Array, array: Array, position: int) -> Array:
    full = np.broadcast_to(array, (*array.shape[:position], matrix.shape[-1], *array.shape[position + 1 :]))
    return np.asarray(
        np.moveaxis(np.tensordot(matrix, full, axes=(2, position)), (0, 1), (position, position + 1))
    )


def _with_values(dims: Any, table: Array, mean: Array, m: Moments) -> Moments:
    m = alg.collapse(m)
    factor = alg.absorbed(m.terms[0], m.axes)
    if factor is None or latents.affine(factor.values):
        return alg.gaussian(dims, table, mean)
    flat = factor.values.reshape(-1, factor.values.shape[-1]).mean(0)
    return alg.with_marginal(dims, table, mean, flat.reshape([1] * table.ndim + [-1]))


def _without(m: Moments, dims: Sequence[int]) -> Moments:
    for d in dims:
        if m.dims[d] and m.shape[d] == 1:
            m = reg.selected(m, d, 0, keep=True)
    return m


def _grid(size: Sequence[int], kernel: Any, dilation: Any, padding: Any, stride: Any) -> list[Window]:
    made = []
    for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True):
        made.append(Window((n + 2 * p - d * (k - 1) - 1) // s + 1, k, n, s, p, d))
    return made


@rule("im2col", accuracy="exact")
def im2col(ctx: Context, x: Moments, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Moments:
    """The entries of each window as a column, zeros outside. Exact second moments."""
    alone = len(x.dims) == 3
    x = replace(x, dims=((), *x.dims)) if alone else x
    rows, columns = _grid(x.shape[2:], kernel, dilation, padding, stride)
    x = _on_windows(_on_windows(x, 3, columns), 2, rows)  # (n, c, o, k, o, k)
    x = reg.transposed(_without(x, range(2, 6)), (0, 1, 3, 5, 2, 4))
    x = reg.regrouped(
        x, (x.shape[0], x.shape[1] * rows.kernel * columns.kernel, rows.outputs * columns.outputs)
    )
    return replace(x, dims=x.dims[1:]) if alone else x


@rule("col2im", accuracy="exact")
def col2im(
    ctx: Context, x: Moments, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any
) -> Moments:
    """Columns summed into the places of their windows. Exact second moments."""
    alone = len(x.dims) == 2
    x = replace(x, dims=((), *x.dims)) if alone else x
    rows, columns = _grid(size, kernel, dilation, padding, stride)
    c = x.shape[1] // (rows.kernel * columns.kernel)
    x = reg.regrouped(x, (x.shape[0], c, rows.kernel, columns.kernel, rows.outputs, columns.outputs))
    x = reg.transposed(x, (0, 1, 4, 2, 5, 3))
    x = _without(_from_windows(_from_windows(x, 4, columns), 2, rows), (2, 3))
    return replace(x, dims=x.dims[1:]) if alone else x


@rule("unfold", accuracy="exact")
def unfold(ctx: Context, x: Moments, dim: int, size: int, step: int) -> Moments:
    """Windows along a dim, which become a last dim. Exact second moments."""
    dim %= len(x.dims)
    window = Window((x.shape[dim] - size) // step + 1, size, x.shape[dim], step)
    made = _without(_on_windows(x, dim, window), (dim, dim + 1))
    rank = len(made.dims)
    return reg.transposed(made, (*[d for d in range(rank) if d != dim + 1], dim + 1))


@rule("unfold_backward", accuracy="exact")
def unfold_backward(
    ctx: Context, g: Moments, sizes: Sequence[int], dim: int, size: int, step: int
) -> Moments:
    """Gradient of `unfold`: summed into the entries that the windows read. Exact second moments."""
    dim %= len(sizes)
    rank = len(g.dims)
    order = [*range(dim + 1), rank - 1, *range(dim + 1, rank - 1)]
    window = Window((sizes[dim] - size) // step + 1, size, sizes[dim], step)
    return _without(_from_windows(reg.transposed(g, tuple(order)), dim, window), (dim,))
