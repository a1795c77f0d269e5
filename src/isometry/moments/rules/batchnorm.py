"""Batch, group and instance normalisation: `norm.normalise` over other axes, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from isometry.moments import across, channels, fan, steep
from isometry.moments import algebra as alg
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.averages import centred
from isometry.moments.axes import Array
from isometry.moments.inverse import inverse_variance
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Fan, Moments, Normed
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.linear import plus, with_shape
from isometry.moments.rules.norm import normalise, normalise_backward, scatter_of_variance
from isometry.moments.rules.pointwise import powered, times

Maybe = Moments | None


def _per_channel(v: Moments, rank: int) -> Moments:
    """Lay a vector along dim 1 of a tensor with `rank` dims."""
    return replace(v, dims=(*v.dims, *[()] * (rank - 2)))


def _others(rank: int) -> tuple[int, ...]:
    return tuple(d for d in range(rank) if d != 1)


def _affine(unit: Moments, w: Maybe, b: Maybe) -> Moments:
    rank = len(unit.dims)
    out = unit if w is None else times(unit, _per_channel(w, rank))
    return out if b is None else plus(out, _per_channel(b, rank))


def _standardised(x: Moments, mean: Moments, var: Moments, eps: float) -> tuple[Moments, Moments]:
    """Return (x − mean)/√(var + eps) with known statistics, and 1/√(var + eps)."""
    rank = len(x.dims)
    inverse = _per_channel(powered(plus(var, alg.constant((), eps)), -0.5), rank)
    return times(plus(x, alg.scale(_per_channel(mean, rank), -1.0)), inverse), inverse


def _batch_norm(
    ctx: Context, x: Moments, w: Maybe, b: Maybe, mean: Maybe, var: Maybe, training: bool, eps: float
) -> tuple[Maybe, ...]:
    rest = [alg.constant(shape, 0.0) for shape in ctx.shapes[1:]]
    if not training and mean is not None and var is not None:
        unit, _ = _standardised(x, mean, var, eps)
        return (_affine(unit, w, b), *rest)
    over = _others(len(x.dims))
    unit, sigma = normalise(x, over, eps, _scatter)
    drawn = channels.of(x, over, eps)
    unit = unit if drawn is None else channels.normalised(unit, x, drawn)
    known = mark_of(unit, Fan)
    if known is not None:
        unit = marked(unit, known._replace(normed=prod(x.shape[d] for d in over)))
    if len(rest) > 1:
        rest[1] = alg.constant(ctx.shapes[2], float(np.mean(1.0 / sigma)))
    return (_affine(unit, w, b), *rest)


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    accuracy="asymptotic",
)
def batch_norm(
    ctx: Context,
    x: Moments,
    w: Maybe,
    b: Maybe,
    mean: Maybe,
    var: Maybe,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Maybe, ...]:
    """Batch normalisation by the batch's own statistics, or by running ones.

    Asymptotic in the entries averaged.
    """
    return _batch_norm(ctx, x, w, b, mean, var, training, eps)


@rule("_batch_norm_with_update", accuracy="asymptotic")
def batch_norm_with_update(
    ctx: Context, x: Moments, w: Maybe, b: Maybe, mean: Maybe, var: Maybe, momentum: float, eps: float
) -> tuple[Maybe, ...]:
    """Batch normalisation in training; as `batch_norm`."""
    return _batch_norm(ctx, x, w, b, mean, var, True, eps)


def _share(x: Moments, over: tuple[int, ...], eps: float | Array) -> float:
    """Return the share of the variance over dims in itself and ε."""
    square = rec.average(rec.diagonal(centred(x, over), x.axes), x.axes)
    return square / max(square + float(np.mean(eps)), 1e-300)


def _scatter(x: Moments, over: tuple[int, ...], eps: float | Array) -> Array:
    """Return E[1/(v̂ + ε)]·E[v̂ + ε]; see `fan` for channels with weights of their own."""
    known = mark_of(x, Fan)
    if known is None:
        return scatter_of_variance(x, over, eps)
    # A channel's sums are normal for given entries, whatever those are.
    return inverse_variance(x, over, eps, 2.0 * known.tail + known.extra) * fan.excess(
        known, _share(x, over, eps)
    )


def _batch_norm_backward(
    g: Moments, x: Moments, w: Maybe, mean: Maybe, var: Maybe, training: bool, eps: float, mask: Any
) -> tuple[Maybe, ...]:
    rank = len(x.dims)
    over = _others(rank)
    weighted = g if w is None else times(g, _per_channel(w, rank))
    if training or mean is None or var is None:
        dx, unit = normalise_backward(weighted, x, over, eps, _scatter)
        known, drawn = mark_of(x, Fan), channels.of(x, over, eps)
        if drawn is not None:
            unit = channels.normalised(unit, x, drawn)
            gain = 1.0 if known is None else fan.excess(known, _share(x, over, eps))
            dx = channels.gradient(dx, weighted, x, unit, drawn, gain)
        if known is not None and unit.terms[0].factors:
            latent = unit.terms[0].factors[0].latent
            share, own = _share(x, over, eps), steep.of_slopes(weighted, latent)
            gain, rise = steep.met(weighted, known, latent)
            dx = marked(alg.scale(dx, (gain * fan.of_slopes(known, share, own)) ** 0.5), rise)
            dx = marked(dx, Normed(known.weights, share, latent, own, known.light), dx.positions(1))
    else:
        unit, inverse = _standardised(x, mean, var, eps)
        dx = times(weighted, inverse)
    dw = con.total(across.product(*reg.aligned(g, unit)), over) if mask[1] else None
    db = con.total(across.itself(g), over) if mask[2] else None
    return (with_shape(dx, x.shape) if mask[0] else None), dw, db


@rule("native_batch_norm_backward", "batch_norm_backward", accuracy="asymptotic")
def batch_norm_backward(
    ctx: Context,
    g: Moments,
    x: Moments,
    w: Maybe,
    mean: Maybe,
    var: Maybe,
    saved_mean: Any,
    saved_inverse: Any,
    training: bool,
    eps: float,
    mask: Any,
    *_: Any,
) -> tuple[Maybe, ...]:
    """Gradients of batch normalisation, with the joint moments of gradient and normalised input.

    Asymptotic.
    """
    return ctx.masked(_batch_norm_backward(g, x, w, mean, var, training, eps, mask), mask)


# --- groups -----------------------------------------------------------------------------------------------


def _in_groups(m: Moments, groups: int) -> Moments:
    """Return the record with channels cut into (groups, channels of a group)."""
    shape = m.shape
    return reg.regrouped(m, (shape[0], groups, shape[1] // groups, *shape[2:]))


def _as_channels(m: Moments) -> Moments:
    return replace(m, dims=(m.dims[0], (*m.dims[1], *m.dims[2]), *m.dims[3:]))


@rule("native_group_norm", accuracy="asymptotic")
def group_norm(
    ctx: Context, x: Moments, w: Maybe, b: Maybe, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Maybe, ...]:
    """Normalisation over the channels of a group and all places. Asymptotic in their number."""
    grouped = _in_groups(x, groups)
    unit, sigma = normalise(grouped, tuple(range(2, len(grouped.dims))), eps)
    gone = [p for d in range(2, len(unit.dims)) for p in unit.positions(d)]
    inverse = alg.assemble(unit.dims[:2], (rec.Term((1.0 / sigma).squeeze(tuple(gone))),))
    return _affine(_as_channels(unit), w, b), alg.constant(ctx.shapes[1], 0.0), inverse


@rule("native_group_norm_backward", accuracy="asymptotic")
def group_norm_backward(
    ctx: Context,
    g: Moments,
    x: Moments,
    mean: Any,
    inverse: Moments,
    w: Maybe,
    n: int,
    c: int,
    hw: int,
    groups: int,
    mask: Any,
) -> tuple[Maybe, ...]:
    """Gradients of group normalisation; as `batch_norm_backward`."""
    rank = len(x.dims)
    weighted = g if w is None else times(g, _per_channel(w, rank))
    rstd = replace(inverse, dims=(*inverse.dims, *[()] * (rank - 1)))
    within = tuple(range(2, rank + 1))
    dx, unit = normalise_backward(_in_groups(weighted, groups), _in_groups(x, groups), within, rstd)
    over = _others(rank)
    dw = con.total(times(g, _as_channels(unit)), over) if mask[1] else None
    db = con.total(g, over) if mask[2] else None
    return (with_shape(_as_channels(dx), x.shape) if mask[0] else None), dw, db
