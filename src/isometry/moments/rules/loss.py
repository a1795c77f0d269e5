"""Losses and what they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.concrete import Concrete, equal_share
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.norm import mean_over, one_block


@rule("_log_softmax", accuracy="asymptotic")
def log_softmax(ctx: Context, x: Moments, dim: int, half: bool) -> Moments:
    """X − log Σ e^x, with the sum's logarithm at its expectation: log n + v/2 above the row's mean. Assumes normal x, many classes."""
    dim %= len(x.dims)
    m = one_block(reg.single_axis(x, dim), (dim,))
    table = m.table - mean_over(m.table, m, (dim,))
    offset = -(np.log(m.shape[dim]) + 0.5 * rec.diagonal(table, m.axes))
    return alg.gaussian(
        m.dims, table + rec.outer(offset, offset, m.axes), offset * np.ones([1] * len(m.axes))
    )


@rule("_log_softmax_backward_data", accuracy="asymptotic")
def log_softmax_backward(ctx: Context, g: Moments, out: Moments, dim: int, *_: Any) -> Moments:
    """G − softmax·Σg. Assumes that the gradient does not depend on the probabilities."""
    dim %= len(g.dims)
    g, p = reg.aligned(
        one_block(reg.single_axis(g, dim), (dim,)), one_block(reg.single_axis(out, dim), (dim,))
    )
    n = g.shape[dim]
    probabilities = alg.apply(p, np.exp)
    both = mean_over(g.table, g, (dim,))  # E[g Σg]/n, and E[(Σg)²]/n²
    table = g.table - 2.0 * both + probabilities.table * both * n * n
    mean = g.mean - probabilities.mean * n * g.mean
    return alg.gaussian(g.dims, table, mean)


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
    return alg.gaussian((((rows,),), ((classes,),)), table, mean)


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
