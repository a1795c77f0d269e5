"""Variances, norms and other reductions that are made of sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import contract as con
from isometry.moments import regrouping as reg
from isometry.moments.axes import pair_counts
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.linear import plus
from isometry.moments.rules.order import extreme
from isometry.moments.rules.pointwise import powered
from isometry.moments.rules.reduce import _dims, keep_dims


def variance(m: Moments, dims: tuple[int, ...], correction: float) -> Moments:
    """Return the sample variance over dims: the mean square of what is left when the mean is taken away."""
    count = prod(m.shape[d] for d in dims)
    centred = plus(m, alg.scale(keep_dims(con.average(m, dims), dims, True), -1.0))
    squares = con.total(powered(centred, 2.0), dims)
    return alg.scale(squares, 1.0 / max(count - correction, 1e-12))


def _root(m: Moments) -> Moments:
    return alg.apply(m, lambda values: np.sqrt(np.maximum(values, 0.0)))


@rule("var", "std", accuracy="asymptotic")
def var(ctx: Context, m: Moments, *args: Any, **named: Any) -> Moments:
    """Sample variance or its root over dims; asymptotic in the number of entries."""
    dims, correction, keepdim = _options(m, args, named)
    made = keep_dims(variance(m, dims, correction), dims, keepdim)
    return made if ctx.op == "var" else _root(made)


@rule("var_mean", "std_mean", accuracy="asymptotic")
def var_mean(ctx: Context, m: Moments, *args: Any, **named: Any) -> tuple[Moments, Moments]:
    """Sample variance (or its root) and mean over dims."""
    dims, correction, keepdim = _options(m, args, named)
    made = keep_dims(variance(m, dims, correction), dims, keepdim)
    mean = keep_dims(con.average(m, dims), dims, keepdim)
    return (made if ctx.op == "var_mean" else _root(made)), mean


def _options(m: Moments, args: Sequence[Any], named: dict[str, Any]) -> tuple[tuple[int, ...], float, bool]:
    """Return dims, correction and keepdim from the arguments of all overloads."""
    dim: Any = None
    correction = named.get("correction", 1.0)
    keepdim = named.get("keepdim", False)
    for value in args:
        if isinstance(value, bool):
            correction = 1.0 if value else 0.0
        else:
            dim = value
    if len(args) == 3:
        keepdim = args[2]
        correction = 1.0 if args[1] else 0.0
    return _dims(m, dim), 1.0 if correction is None else float(correction), bool(keepdim)


@rule("linalg_vector_norm", "norm", accuracy="asymptotic")
def norm(
    ctx: Context, m: Moments, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Moments:
    """The p-norm over dims: the root of a sum of powers, concentrated in the number of entries."""
    dims = _dims(m, dim)
    p = 2.0 if order is None else float(order)
    if np.isinf(p):
        sizes = alg.apply(m, np.abs)
        return extreme(sizes, dims, keepdim, largest=p > 0)
    if p == 0.0:
        count = con.total(alg.apply(m, lambda v: (v != 0).astype(np.float64)), dims)
        return keep_dims(count, dims, keepdim)
    powers = powered(m, 2.0) if p == 2.0 else alg.apply(m, lambda v: np.abs(v) ** p)
    made = keep_dims(con.total(powers, dims), dims, keepdim)
    return alg.apply(made, lambda values: np.maximum(values, 0.0) ** (1.0 / p))


@rule("logsumexp", accuracy="asymptotic")
def logsumexp(ctx: Context, m: Moments, dim: Any, keepdim: bool = False) -> Moments:
    """The logarithm of a sum of exponentials, taken as lognormal."""
    dims = _dims(m, dim)
    total = keep_dims(con.total(alg.apply(m, np.exp), dims), dims, keepdim)
    return alg.apply(total, lambda values: np.log(np.maximum(values, 1e-300)))


@rule("prod", accuracy="exact")
def product(ctx: Context, m: Moments, dim: int | None = None, keepdim: bool = False, **_: Any) -> Moments:
    """The product over a dim of entries that are independent along it: products of moments."""
    flat = reg.regrouped(m, (prod(m.shape),)) if dim is None else m
    at = 0 if dim is None else dim % len(m.dims)
    flat = reg.single_axis(flat, at)
    if not flat.dims or not flat.dims[at]:
        return reg.selected(flat, at, 0, keep=keepdim) if flat.dims else flat
    (p,) = flat.positions(at)
    axis = flat.axes[p]
    if len(axis) > 1:
        raise NoRule("a product along a dim whose entries are not alike")
    n = int(pair_counts(axis)[0])
    same, differ = flat.table.take(0, axis=p), flat.table.take(-1, axis=p)
    mean = flat.mean.take(0, axis=p)
    if float(np.abs(differ - np.square(mean).reshape(mean.shape)).max()) > 1e-6 * float(np.abs(same).max()):
        ctx.note("a product takes dependent factors as independent")
    dims = (*flat.dims[:at], *(((),) if keepdim else ()), *flat.dims[at + 1 :])
    return alg.gaussian(dims, np.asarray(same**n), np.asarray(mean**n))
