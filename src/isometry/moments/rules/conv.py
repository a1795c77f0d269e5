"""Convolutions of every kind, and their gradients.

With the taps (o, k, i) of a window (see `taps`) a convolution, its gradient at the input and its gradient at
the weight are one sum with three readings,

    y[o] = Σ x[i]·w[k],     dx[i] = Σ g[o]·w[k],     dw[k] = Σ g[o]·x[i],

over all taps and over the channels that the result lacks; a transposed convolution is the second. So

    E[y y′](s_o) = Σ F[s_o, s_k, s_i] · E[x x′](s_i) · E[w w′](s_k) / pairs(s_o)

with the number F of pairs of taps by pair classes, one F per spatial dim. Groups are one more shared axis.
Assumes that the
two tensors are independent; second moments exact, normal in the wide limit. Where padding leaves a window
fewer entries to read, the outputs at the borders are blocks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from math import prod
from typing import Any, Literal

import numpy as np

from isometry.moments import across, fan, near, origins, patches, steep
from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Fan, Moments, Normed
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.linear import plus, with_shape
from isometry.moments.taps import Window, tap_pairs

Role = Literal["o", "k", "i"]
_ROLES: tuple[Role, ...] = ("o", "k", "i")


def windowed(
    spec: str, a: Moments, b: Moments, roles: str, windows: Sequence[Window], like: Moments | None = None
) -> Moments:
    """Return the sum over taps of a·b.

    Args:
        spec: The dims before the spatial ones as in `contract`, "ngc,goc->ngo".
        a: First tensor; its last dims are spatial.
        b: Second tensor.
        roles: What the spatial dims of a, of b and of the result are: outputs "o", kernel "k" or inputs "i".
        windows: One window per spatial dim.
        like: A record whose spatial blocks the result shall have; without, outputs have those of the window
            (see `Window.blocks`), and inputs one block.

    Returns:
        The record; the result is taken as normal.
    """
    inputs, out = spec.split("->")
    in_a, in_b = inputs.split(",")
    a, b = _spatial(a, len(in_a)), _spatial(b, len(in_b))
    a, b = con.meet(a, in_a, b, in_b)
    axes = {x: m.dims[names.index(x)] for m, names in ((a, in_a), (b, in_b)) for x in names}
    for d, window in enumerate(windows):
        sizes = {"o": window.outputs, "k": window.kernel, "i": window.inputs}
        axes |= {f"{roles[0]}{d}": a.dims[len(in_a) + d], f"{roles[1]}{d}": b.dims[len(in_b) + d]}
        if like is not None:
            axes[f"{roles[2]}{d}"] = _axis(like, d - len(windows))
        elif roles[2] == "o":
            axes[f"o{d}"] = (window.blocks(axes[f"i{d}"][0]),)
        else:
            axes[f"{roles[2]}{d}"] = ((sizes[roles[2]],),)
    names = [[*in_a, *[f"{roles[0]}{d}" for d in range(len(windows))]]]
    names += [[*in_b, *[f"{roles[1]}{d}" for d in range(len(windows))]]]
    result = [*out, *[f"{roles[2]}{d}" for d in range(len(windows))]]
    channels = set(in_a) & set(in_b)
    pairs = [tap_pairs(w, *(axes[f"{r}{d}"][0] for r in _ROLES)) for d, w in enumerate(windows)]

    def summed(x: Array, y: Array) -> Array:
        return _summed([x, y], names, [p for p, _ in pairs], result, axes, channels, of_pairs=True)

    mean = _summed([a.mean, b.mean], names, [m for _, m in pairs], result, axes, channels, of_pairs=False)
    dims = tuple(axes[x] for x in result)
    made = alg.gaussian(dims, summed(a.table, b.table), mean)
    how = (spec, roles, tuple(windows), a.shape, b.shape)
    origins.contracted(made, con.in_few_terms(a), con.in_few_terms(b), how, summed)
    return _dropped(made, len(out))


def _summed(
    arrays: list[Array],
    names: list[list[str]],
    taps: list[Array],
    result: list[str],
    axes: dict[str, tuple[Axis, ...]],
    channels: set[str],
    *,
    of_pairs: bool,
) -> Array:
    """Return the einsum of two arrays, the taps' counts.

    And the counts of the channels that are summed over.
    """
    fresh, letters = count(), dict[str, list[int]]()

    def labels(name: str) -> list[int]:
        return letters.setdefault(name, [next(fresh) for _ in axes[name]])

    def weight(axis: Axis) -> Array:
        return ax.pair_counts(axis) if of_pairs else np.asarray(axis, dtype=np.float64)

    operands: list[Any] = []
    for array, own in zip(arrays, names, strict=True):
        shape: list[int] = []
        marks: list[int] = []
        for name in own:
            for axis, label in zip(axes[name], labels(name), strict=True):
                present = array.shape[len(shape)]
                shape.append(len(weight(axis)) if name in channels or len(name) > 1 else present)
                marks.append(label)
        operands += [np.broadcast_to(array, shape), marks]
    for d, counts in enumerate(taps):  # one by one, each a product of matrices
        of_taps = [labels(f"{role}{d}")[0] for role in _ROLES]
        operands[0], operands[1] = _contracted(operands[0], operands[1], counts, of_taps)
    for name in channels - set(result):
        for axis, label in zip(axes[name], labels(name), strict=True):
            operands += [weight(axis), [label]]
    total = np.einsum(*operands, [x for name in result for x in labels(name)], optimize="greedy")
    for d in range(len(taps)):
        position = total.ndim - len(taps) + d
        (axis,) = axes[result[len(result) - len(taps) + d]]
        shape = [-1 if p == position else 1 for p in range(total.ndim)]
        total = total / np.maximum(weight(axis), 1.0).reshape(shape)
    return np.asarray(total)


def _contracted(a: Array, marks: list[int], b: Array, others: list[int]) -> tuple[Array, list[int]]:
    """Return the sum over the one label that two arrays share, and the labels of what is left."""
    (shared,) = set(marks) & set(others)
    total = np.tensordot(a, b, axes=(marks.index(shared), others.index(shared)))
    return total, [m for m in (*marks, *others) if m != shared]


def _spatial(m: Moments, lead: int) -> Moments:
    """Give every dim from `lead` on exactly one axis."""
    for d in range(lead, len(m.dims)):
        m = reg.single_axis(m, d) if m.dims[d] else m
    return reg.broadcast(m, (*m.dims[:lead], *[d or ((1,),) for d in m.dims[lead:]]))


def _axis(m: Moments, dim: int) -> tuple[Axis, ...]:
    """Return the blocks of a dim as one axis."""
    return reg.single_axis(m, dim % len(m.dims)).dims[dim] or ((1,),)


def _dropped(m: Moments, lead: int) -> Moments:
    """Take the axes of size 1 away from the dims from `lead` on."""
    for d in range(lead, len(m.dims)):
        if m.shape[d] == 1 and m.dims[d]:
            m = reg.selected(m, d, 0, keep=True)
    return m


# --- convolution ------------------------------------------------------------------------------------------


def windows_of(
    outputs: Sequence[int],
    kernel: Sequence[int],
    inputs: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[Window]:
    """Return the windows of each spatial dim; arguments of one number serve all dims."""
    rank = len(outputs)
    each = [list(x) * rank if len(x) == 1 else list(x) for x in (stride, padding, dilation)]
    return [Window(*all_) for all_ in zip(outputs, kernel, inputs, *each, strict=True)]


def _grouped(m: Moments, dim: int, groups: int) -> Moments:
    """Return the record with a dim cut into (groups, the rest)."""
    shape = m.shape
    return reg.regrouped(m, (*shape[:dim], groups, shape[dim] // groups, *shape[dim + 1 :]))


def _ungrouped(m: Moments, dim: int) -> Moments:
    """Return the record with two neighbouring dims as one."""
    return replace(m, dims=(*m.dims[:dim], (*m.dims[dim], *m.dims[dim + 1]), *m.dims[dim + 2 :]))


def _whole(m: Moments, shape: tuple[int, ...]) -> Moments:
    """Return a record in groups, with a dim of samples, in the shape that the tensor has."""
    m = _ungrouped(m, 1)
    return with_shape(replace(m, dims=m.dims[len(m.dims) - len(shape) :]), shape)


def _batched(m: Moments, rank: int) -> Moments:
    return m if len(m.dims) == rank + 2 else replace(m, dims=((), *m.dims))


@rule("convolution", "convolution_overrideable", "_convolution", accuracy="asymptotic")
def convolution(
    ctx: Context,
    x: Moments,
    w: Moments,
    b: Moments | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Moments:
    """Convolution, transposed or not.

    Assumes weights that are independent of the input; exact second moments.
    """
    rank = len(w.dims) - 2
    small, large = (x.shape, ctx.shape) if transposed else (ctx.shape, x.shape)
    windows = windows_of(small[-rank:], w.shape[2:], large[-rank:], stride, padding, dilation)
    x, w = _grouped(_batched(x, rank), 1, groups), _grouped(w, 0, groups)
    if transposed:  # the weight is (inputs, outputs), and x is what a convolution would give
        y = windowed("ngo,goc->ngc", x, w, "oki", windows)
    else:
        y = windowed("ngc,goc->ngo", x, w, "iko", windows)
        y = patches.summed(y, x, w, windows, patches.fan_of(_spatial(x, 3), w, windows))
        y = patches.with_powers(y, x, w, windows)
        y = near.mixed(y, _spatial(x, 3), [window.stride for window in windows])
    y = _ungrouped(y, 1)
    if b is not None:  # one number per channel, of which nothing is left in a channel's variance
        known = mark_of(y, Fan)
        y = plus(y, replace(b, dims=(b.dims[0], *[()] * rank)))
        y = marked(y, known) if len(y.terms) == 1 else y
    return y if len(ctx.shape) == rank + 2 else replace(y, dims=y.dims[1:])


def _with_neighbours(dw: Moments, g: Moments, x: Moments, windows: Sequence[Window]) -> Moments:
    """Return a weight's gradient Σ g·x with what it gains where g and x both are more alike nearby."""
    added = x.shape[0] * near.together(g, x, windows)
    if not added:
        return dw
    table = np.array(dw.table)
    rec.diagonal(table, dw.axes)[...] += added
    return alg.gaussian(dw.dims, table, dw.mean)


def _across_weights(g: Moments, w: Moments, *, transposed: bool) -> float:
    """Return what a weight's gradient keeps of its size where a norm divides the output by its own.

    That does not change when a channel's K weights are stretched, so that Σ w dw = Σ g y = 0 over each
    channel: of independent gradients the share 1/K of the square is gone, of what the norm divides by that is
    the output's own.
    """
    mark = mark_of(g, Normed)
    if mark is None:
        return 1.0
    weights = prod(w.shape[3:]) * w.shape[1 if transposed else 2]
    return float((1.0 - mark.share / weights) ** 0.5)


@rule("convolution_backward", "convolution_backward_overrideable", accuracy="asymptotic")
def convolution_backward(
    ctx: Context,
    g: Moments,
    x: Moments,
    w: Moments,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Any,
) -> tuple[Moments | None, ...]:
    """Gradients of a convolution.

    Assumes that the gradient is independent of input and weight; exact second moments.
    """
    rank = len(w.dims) - 2
    shape = x.shape
    small, large = (x.shape, g.shape) if transposed else (g.shape, x.shape)
    windows = windows_of(small[-rank:], w.shape[2:], large[-rank:], stride, padding, dilation)
    db = (
        con.total(g, tuple(d for d in range(len(g.dims)) if d != len(g.dims) - rank - 1)) if mask[2] else None
    )
    strides = [window.stride for window in windows]
    x, g = (_grouped(_batched(m, rank), 1, groups) for m in (x, g))
    w = _grouped(w, 0, groups)
    dx = dw = None
    if mask[0]:
        spec, roles = ("ngc,goc->ngo", "iko") if transposed else ("ngo,goc->ngc", "oki")
        dx = windowed(spec, g, w, roles, windows, x)
        dx = near.mixed(dx, _spatial(g, 3), strides, turned=not transposed)
        dx = _whole(alg.scale(dx, np.sqrt(fan.kept(g))), shape)
        normed = mark_of(g, Normed)
        if normed is not None and not transposed:
            if w.shape[2] == 1 or any(
                window.kernel > 1 for window in windows
            ):  # else it owes next to nothing
                dx = across.orthogonal(dx, _whole(x, shape), g, windows, w.shape[2], normed.share)
            dx = steep.handed_on(dx, g, x, windows)
    if mask[1]:
        small_one, large_one = (x, g) if transposed else (g, x)
        dw = windowed("ngo,ngc->goc", small_one, large_one, "oik", windows, w)
        dw = _with_neighbours(dw, _spatial(small_one, 3), _spatial(large_one, 3), windows)
        dw = _ungrouped(alg.scale(dw, _across_weights(g, w, transposed=transposed)), 0)
    return ctx.masked((dx, dw, db), mask)
