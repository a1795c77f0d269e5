"""Losses and what they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments import repeats, saturation, symbolic
from isometry.moments.averages import mean_over, one_block
from isometry.moments.axes import Array
from isometry.moments.concrete import Concrete, equal_share
from isometry.moments.marks import marked
from isometry.moments.record import Moments, Tilted
from isometry.moments.rules.attention import softmax
from isometry.moments.rules.base import Context, Shifted, rule
from isometry.moments.rules.linear import plus
from isometry.moments.rules.pointwise import MASKED, as_moments, shifted, times


@rule("_log_softmax", accuracy="asymptotic", raw=(0,))
def log_softmax(ctx: Context, given: Any, dim: int, half: bool) -> Moments:
    """X − log Σ e^x, for normal x of any variance v and any number n of classes.

    Mean and variance V of the sum's logarithm are exact for independent x (`saturation.log_sum`), and so is
    its covariance v/n with x (Stein). Between rows of correlation r, V is taken as V·r. Entries that a mask
    hides are told as the others: a loss does not ask for them.
    """
    if isinstance(given, Shifted):
        ctx.note("entries that a mask hides from a log-softmax are taken as the others")
        seen = symbolic.pointwise(lambda w: torch.where(w <= MASKED, 0.0, w), given.shift)
        given = shifted(given.random, seen)
    x = as_moments(given)
    dim %= len(x.dims)
    m = one_block(reg.single_axis(x, dim), (dim,))
    if not m.dims[dim]:
        return alg.constant(ctx.shape, 0.0)
    n, (p,) = m.shape[dim], m.positions(dim)
    table = m.table - mean_over(m.table, m, (dim,))
    within = table.take([0], axis=p) * (n / (n - 1.0))  # the covariance that varies along the classes
    variance = np.maximum(rec.diagonal(within, m.axes), 0.0)
    sums = np.array([saturation.log_sum(float(f"{v:.4g}"), n) for v in variance.ravel()])
    offset, whole = -sums[:, 0].reshape(variance.shape), sums[:, 1].reshape(variance.shape)
    beyond = np.sqrt(np.maximum(whole / np.maximum(variance, 1e-300) - 1.0 / n, 0.0))
    table = table + within * rec.outer(beyond, beyond, m.axes) + rec.outer(offset, offset, m.axes)
    made = alg.gaussian(m.dims, table, offset * np.ones([1] * len(m.axes)))
    return repeats.like(_with_images(made, m, np.ones([1] * len(m.axes))), m)


def _with_images(made: Moments, m: Moments, slope: Array) -> Moments:
    """Return a record, in normal form, with the inner products of rows that another one's entries know.

    Args:
        made: The record.
        m: The other one, of the same axes.
        slope: By which the one follows the other.
    """
    if m.only is None or not made.terms[0].factors:
        return made
    images, (factor,) = m.only.images.values(), made.terms[0].factors
    by = slope * np.sqrt(m.variance) / np.sqrt(np.maximum(made.variance, 1e-300))
    given = tuple(replace(p, values=np.minimum(by[..., None] * p.values, 1.0)) for p in images)
    return replace(
        made, terms=(rec.Term(made.terms[0].coef, (replace(factor, parts=(*factor.parts, *given)),)),)
    )


@rule("_log_softmax_backward_data", accuracy="asymptotic")
def log_softmax_backward(ctx: Context, g: Moments, out: Moments, dim: int, *_: Any) -> Moments:
    """G − softmax·Σg, the probabilities as a softmax of the output, which differs from x by a constant.

    Assumes that the gradient does not depend on the probabilities.
    """
    dim %= len(g.dims)
    target = repeats.ids_of(g)
    out = one_block(reg.single_axis(out, dim), (dim,))
    probabilities = one_block(reg.single_axis(softmax(ctx, out, dim), dim), (dim,))
    g, p = reg.aligned(one_block(reg.single_axis(g, dim), (dim,)), probabilities)
    n = g.shape[dim]
    both = mean_over(g.table, g, (dim,))  # E[g Σg]/n, and E[(Σg)²]/n²
    table = g.table - 2.0 * both + p.table * both * n * n
    mean = g.mean - p.mean * n * g.mean
    made = alg.gaussian(g.dims, table, mean)
    return _of_logits(made, g, p, out, dim, target) if out.axes == g.axes == p.axes else made


def _of_logits(
    made: Moments, g: Moments, p: Moments, out: Moments, dim: int, target: bytes | None
) -> Moments:
    """Return the gradient g − p·Σg with what it owes to the logits l = x·W, normal of variance v.

    It follows them by −E[∂p/∂l]·Σg = −(1 − Σ E[p²])/n·Σg, is alike for equal x, and with
    E[l_k Σ p l] = v/n for every class k,

        E[(Σ l dl)²] = v·E[Σ g²] − 2v/n·E[(Σ g)²] + E[(Σ g)²]·E[(Σ p l)²].
    """
    n, (at,) = g.shape[dim], g.positions(dim)
    whole = rec.diagonal(mean_over(g.table, g, (dim,)), g.axes) * n * n  # E[(Σg)²]
    crowd = np.minimum(n * p.square, 1.0)
    made = _with_images(made, out, (1.0 - crowd) / n * np.sqrt(whole))
    same = rec.average(whole, g.axes)
    within = out.table - mean_over(out.table, out, (dim,))
    v = max(rec.average(rec.diagonal(within, out.axes), out.axes) * n / max(n - 1.0, 1.0), 1e-12)
    along = saturation.square_along(float(f"{v:.4g}"), n)
    own = rec.average(g.square, g.axes) * n
    square = max(rec.average(made.square, made.axes), 1e-300)
    tilt = (v * own - 2.0 * v / n * same + same * along) / (v * n * square)
    known = repeats.of(out)
    if known is None:
        return marked(made, Tilted(tilt, 0.0), (at,))
    mark, positions = known
    both = repeats.by_class(mean_over(g.table, g, (dim,)), g, positions) * n * n  # E[Σg Σg′]
    ratio = repeats.excess(p, replace(mark, ratio=None), positions) * both / square
    agree = None if target is None else repeats.agreeing(mark, target)
    if agree is not None:  # by chance, tokens of one word have one class more, or less, often than others
        ratio = ratio + (agree[0] - agree[1]) * rec.average(g.square, g.axes) / square
    alike = repeats.by_class(made.table, made, positions) + (1.0 - mark.share) * ratio * square
    axes = [made.axes[k] for k in positions]
    between = repeats.by_class(g.table, g, positions) if agree is None else agree[0] * own / n
    own = repeats.of_equal(between * n, mark, axes)
    same, equal = (repeats.of_equal(x, mark, axes) for x in (both, alike))
    pairs = ((v * own - 2.0 * v / n * same + same * along) / (v * n) - equal) / square
    return repeats.like(marked(made, Tilted(tilt, pairs), (at,)), out, ratio)


@rule("nll_loss_forward", accuracy="exact", raw=(1,))
def nll_loss(ctx: Context, x: Moments, target: Any, *_: Any) -> tuple[Moments, Moments]:
    """The mean of −x at known classes. Assumes classes that do not depend on x."""
    value = -rec.average(x.mean, x.axes)
    return alg.constant(ctx.shapes[0], value), alg.constant(ctx.shapes[1], float(x.shape[0]))


@rule("nll_loss_backward", accuracy="exact", raw=(2,))
def nll_loss_backward(
    ctx: Context, g: Moments, x: Moments, target: Any, weight: Any, reduction: int, ignore: int, total: Any
) -> Moments:
    """−g/N at each sample's class, 0 elsewhere. Assumes that classes are alike (exchangeable)."""
    rows, classes = ctx.shape
    kept = 1.0
    share = np.array([1.0, 1.0 / classes])
    if isinstance(target, Concrete):
        kept = float((target.tensor != ignore).float().mean())
        share = equal_share(target.tensor[target.tensor != ignore])
    size = float(np.sqrt(g.square.reshape(-1)[0])) / (rows * kept if reduction == 1 else 1.0)
    table = np.array([[1.0, 0.0], [0.0, 0.0]]) / classes
    table[1, 0] = share[1] / classes
    table[1, 1] = (1.0 - share[1]) / (classes * (classes - 1))
    table *= size * size * np.array([[kept], [kept * kept]])
    mean = np.full((1, 1), -size * kept / classes)
    made = alg.gaussian((((rows,),), ((classes,),)), table, mean)
    return (
        repeats.looked_up(made, target.tensor, share)
        if isinstance(target, Concrete) and kept == 1.0
        else made
    )


@rule("mse_loss", accuracy="asymptotic")
def mse_loss(ctx: Context, x: Moments, y: Moments, reduction: int = 1) -> Moments:
    """Mean squared difference."""
    difference = alg.add(*reg.aligned(x, alg.scale(y, -1.0)))
    square = alg.multiply(difference, difference)
    dims = tuple(range(len(square.dims)))
    return (
        square if reduction == 0 else con.total(square, dims) if reduction == 2 else con.average(square, dims)
    )


@rule("mse_loss_backward", accuracy="exact")
def mse_loss_backward(ctx: Context, g: Moments, x: Moments, y: Moments, reduction: int) -> Moments:
    """2(x − y)·g, divided by the number of entries for a mean."""
    difference = alg.add(*reg.aligned(x, alg.scale(y, -1.0)))
    count = float(np.prod([ax.size(a) for a in difference.axes])) if reduction == 1 else 1.0
    g = replace(g, dims=((),) * (len(difference.dims) - len(g.dims)) + g.dims)
    return alg.scale(alg.multiply(*reg.aligned(difference, g)), 2.0 / count)


def reduced(m: Moments, reduction: int) -> Moments:
    """Return a loss per entry as it is, averaged (1) or summed (2)."""
    dims = tuple(range(len(m.dims)))
    return m if reduction == 0 else con.total(m, dims) if reduction == 2 else con.average(m, dims)


def _to_each(g: Moments, slope: Moments, reduction: int) -> Moments:
    """Return the gradient at each entry from the loss's own and the slope there."""
    count = float(np.prod([ax.size(a) for a in slope.axes])) if reduction == 1 else 1.0
    g = replace(g, dims=((),) * (len(slope.dims) - len(g.dims)) + g.dims)
    return alg.scale(alg.multiply(*reg.aligned(slope, g)), 1.0 / count)


def _difference(x: Moments, y: Moments) -> Moments:
    return alg.add(*reg.aligned(x, alg.scale(y, -1.0)))


@rule("smooth_l1_loss", "huber_loss", accuracy="asymptotic")
def smooth_l1(ctx: Context, x: Moments, y: Moments, reduction: int = 1, width: float = 1.0) -> Moments:
    """A square near 0, a straight line beyond `width`; huber is `width` times smooth_l1."""
    factor = width if ctx.op == "huber_loss" else 1.0

    def loss(d: Array) -> Array:
        size = np.abs(d)
        return factor * np.where(size < width, 0.5 * size**2 / max(width, 1e-300), size - 0.5 * width)

    return reduced(alg.apply(_difference(x, y), loss), reduction)


@rule("smooth_l1_loss_backward", "huber_loss_backward", accuracy="exact")
def smooth_l1_backward(
    ctx: Context, g: Moments, x: Moments, y: Moments, reduction: int, width: float
) -> Moments:
    """The difference over `width`, cut at ±1 (times `width` for huber)."""
    factor = width if ctx.op == "huber_loss_backward" else 1.0

    def slope(d: Array) -> Array:
        return factor * np.clip(d / max(width, 1e-300), -1.0, 1.0)

    return _to_each(g, alg.apply(_difference(x, y), slope), reduction)


@rule("binary_cross_entropy", accuracy="asymptotic")
def bce(ctx: Context, p: Moments, y: Moments, weight: Moments | None = None, reduction: int = 1) -> Moments:
    """−y·log p − (1 − y)·log(1 − p). Assumes targets that are independent of p."""

    def clipped(values: Array) -> Array:
        return -np.maximum(np.log(np.clip(values, 1e-43, None)), -100.0)

    rest = plus(alg.constant((), 1.0), alg.scale(y, -1.0))
    each = plus(times(y, alg.apply(p, clipped)), times(rest, alg.apply(p, lambda v: clipped(1.0 - v))))
    return reduced(each if weight is None else times(each, weight), reduction)


@rule("binary_cross_entropy_backward", accuracy="asymptotic")
def bce_backward(
    ctx: Context, g: Moments, p: Moments, y: Moments, weight: Moments | None = None, reduction: int = 1
) -> Moments:
    """(p − y)/(p(1 − p)): a function of p less y times another."""

    def width(values: Array) -> Array:
        return np.maximum(values * (1.0 - values), 1e-12)

    own = alg.apply(p, lambda v: v / width(v))
    slope = plus(own, alg.scale(times(y, alg.apply(p, lambda v: 1.0 / width(v))), -1.0))
    return _to_each(g, slope if weight is None else times(slope, weight), reduction)


@rule("binary_cross_entropy_with_logits", accuracy="asymptotic")
def bce_with_logits(
    ctx: Context,
    x: Moments,
    y: Moments,
    weight: Moments | None = None,
    positive: Moments | None = None,
    reduction: int = 1,
) -> Moments:
    """(1 − y)·log(1 + e^x) + y·log(1 + e^−x), the last `positive` times. Assumes independent targets."""

    def softplus(values: Array) -> Array:
        return np.logaddexp(0.0, values)

    rest = plus(alg.constant((), 1.0), alg.scale(y, -1.0))
    hit = y if positive is None else times(y, positive)
    each = plus(times(rest, alg.apply(x, softplus)), times(hit, alg.apply(x, lambda v: softplus(-v))))
    return reduced(each if weight is None else times(each, weight), reduction)


@rule("soft_margin_loss", accuracy="asymptotic")
def soft_margin(ctx: Context, x: Moments, y: Moments, reduction: int = 1) -> Moments:
    """log(1 + e^(−x·y)). Assumes labels that are independent of x."""
    return reduced(alg.apply(times(x, y), lambda v: np.logaddexp(0.0, -v)), reduction)


@rule("soft_margin_loss_backward", accuracy="asymptotic")
def soft_margin_backward(ctx: Context, g: Moments, x: Moments, y: Moments, reduction: int) -> Moments:
    """−y/(1 + e^(x·y))."""
    slope = times(alg.scale(y, -1.0), alg.apply(times(x, y), lambda v: 1.0 / (1.0 + np.exp(v))))
    return _to_each(g, slope, reduction)


@rule("nll_loss2d_forward", accuracy="exact", raw=(1,))
def nll_loss2d(ctx: Context, x: Moments, target: Any, *_: Any) -> tuple[Moments, Moments]:
    """As `nll_loss` for every pixel."""
    value = -rec.average(x.mean, x.axes)
    count = float(np.prod([n for k, n in enumerate(x.shape) if k != 1]))
    return alg.constant(ctx.shapes[0], value), alg.constant(ctx.shapes[1], count)


@rule("nll_loss2d_backward", accuracy="exact", raw=(2,))
def nll_loss2d_backward(
    ctx: Context, g: Moments, x: Moments, target: Any, weight: Any, reduction: int, ignore: int, total: Any
) -> Moments:
    """As `nll_loss_backward`, the pixels of all samples as its rows."""
    batch, classes, *space = ctx.shape
    rows = batch * int(np.prod(space))
    if isinstance(target, Concrete):
        target = Concrete(target.tensor.reshape(-1))
    flat = Context("nll_loss_backward", ((rows, classes),))
    made = nll_loss_backward(flat, g, x, target, weight, reduction, ignore, total)
    made = reg.regrouped(made, (batch, *space, classes))
    rank = len(made.dims)
    return reg.transposed(made, (0, rank - 1, *range(1, rank - 1)))
