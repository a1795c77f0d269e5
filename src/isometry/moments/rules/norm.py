"""Normalisation over axes, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import latents, lineage, slopes
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.inverse import inverse_variance
from isometry.moments.record import Moments, Term
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.linear import plus, with_shape
from isometry.moments.rules.pointwise import times


def one_block(m: Moments, dims: tuple[int, ...]) -> Moments:
    """Return the record with the axes of these dims in one block each.

    (what varies between blocks is averaged).
    """
    for p in (p for d in dims for p in m.positions(d)):
        m = reg.recut_axis(m, p, (ax.size(m.axes[p]),))
    return m


def mean_over(table: Array, m: Moments, dims: tuple[int, ...]) -> Array:
    """Return a pair array averaged over all pairs along the axes of dims, which keep length 1."""
    for p in (p for d in dims for p in m.positions(d)):
        if table.shape[p] > 1:
            counts = ax.pair_counts(m.axes[p])
            table = np.expand_dims(np.tensordot(table, counts / counts.sum(), axes=(p, 0)), p)
    return table


def normalise(m: Moments, dims: tuple[int, ...], eps: float | Array) -> tuple[Moments, Array]:
    """Return (x − mean)/σ over the axes of dims, and σ as a block array; σ² is the variance plus eps.

    The table is centred by its mean over those axes, exactly for exchangeable entries, and divided by the
    variance that is left.
    Asymptotic: the sample's own variance is taken as its expectation, as many entries are averaged. The
    result is a function of the same latent where entries have nothing in common but a constant.
    """
    m = alg.collapse(one_block(m, dims))
    centre = mean_over(m.table, m, dims)
    table = m.table - centre
    variance = np.maximum(rec.diagonal(table, m.axes), 0.0)
    sigma = np.sqrt(variance + eps)
    table = table / rec.outer(sigma, sigma, m.axes)
    mean = np.zeros([1] * len(m.axes))
    count = float(np.prod([ax.size(m.axes[p]) for d in dims for p in m.positions(d)]))
    shared = rec.diagonal(centre, m.axes) - m.mean**2 - variance / max(count - 1.0, 1.0)
    factor = alg.absorbed(m.terms[0], m.axes)
    if factor is None:
        return alg.assemble(m.dims, (Term(mean),)), sigma
    values = (factor.values - factor.mean[..., None]) / sigma[..., None]
    if float(np.max(shared / np.maximum(variance, 1e-300))) < 0.02:
        left = rec.diagonal(table, m.axes) / np.maximum(latents.mean(values**2), 1e-300)
        size = np.sqrt(left)  # the mean that is taken away has a share of each entry in it
        own = replace(factor, values=values * size[..., None], table=table)
        return Moments(m.dims, (Term(np.ones([1] * len(m.axes)), (own,)),), table, mean), sigma
    made = alg.with_marginal(m.dims, table, mean, values)
    (term,) = made.terms
    positions = [p for d in dims for p in m.positions(d)]
    parts = lineage.centred(lineage.parts_of(m.terms, sigma), positions, m.axes)
    # The backward pass centres the same tensor again and must find the same variable.
    latent = ("centred", factor.latent, factor.labels, tuple(positions))
    own = replace(term.factors[0], latent=latent, parts=parts, form=term.factors[0].values)
    return replace(made, terms=(Term(term.coef, (own,)),)), sigma


def normalise_backward(
    g: Moments, x: Moments, dims: tuple[int, ...], eps: float, rstd: Moments | None = None
) -> tuple[Moments, Moments]:
    """Return the gradient at x of x̂ = (x − mean)/σ, and x̂.

    dx = (g − mean g − x̂·c)/σ with c = mean(g x̂) removes E[c²]·E[x̂ x̂′]·(2/v − 1) from the second moments,
    where v = mean x̂² is 1 less the share of eps in σ²: for v = 1 a projection. c uses the joint moments of g
    and x̂, which may share latents; a slope that g was multiplied by stays known. Asymptotic in the number of
    entries averaged: σ is the expected one, see `inverse_variance` for what its scatter adds.

    Args:
        g: The gradient at x̂.
        x: What was normalised.
        dims: The dims it was normalised over.
        eps: What was added to the variance.
        rstd: 1/σ as the forward pass told it, in place of eps; of x's rank or broadcast to it.
    """
    g, x = reg.aligned(one_block(g, dims), one_block(x, dims))  # σ has the axes of x: they must be g's
    unit, sigma = normalise(x, dims, eps if rstd is None else _eps(rstd, x, dims))
    product = alg.multiply(g, unit)
    share = np.maximum(rec.diagonal(unit.table, unit.axes), 1e-12)
    removed = (
        unit.table * mean_over(product.table, g, dims) * (2.0 / rec.outer(share, share, g.axes) ** 0.5 - 1.0)
    )
    table = g.table - mean_over(g.table, g, dims) - removed
    inverse = 1.0 / sigma
    table = table * rec.outer(inverse, inverse, g.axes)
    return slopes.with_table(g, table), unit


def _eps(rstd: Moments, x: Moments, dims: tuple[int, ...]) -> Array:
    """Return what was added to the variance, from 1/σ: it outweighs the variance of a tiny signal."""
    rstd, x = reg.aligned(rstd, x)
    variance = rec.diagonal(x.table - mean_over(x.table, x, dims), x.axes)
    return np.maximum(1.0 / np.maximum(rstd.mean, 1e-30) ** 2 - np.maximum(variance, 0.0), 0.0)


def _trailing(rank: int, normalized: Any) -> tuple[int, ...]:
    return tuple(range(rank - len(normalized), rank))


def _largest_share(x: Moments) -> float:
    """Return the largest summand's share s of the variance of a sum, 0 where x is none.

    That is a residual stream, and where norms follow sums it was normalised: the sum of its squares does not
    scatter, and of the variance 2/n of the sum's mean square only (1 − s²)·2/n is left. Where norms come
    first, more scatters, but most of the gradient passes the norm by.
    """
    factors = alg.collapse(x).terms[0].factors
    if not factors:
        return 0.0
    form = lineage.form_of(factors[0])
    variance = latents.mean(form**2) - latents.mean(form) ** 2
    parts = factors[0].plain.values()
    shares = [float(np.mean(latents.mean(p.values**2) / np.maximum(variance, 1e-300))) for p in parts]
    return min(max(shares, default=0.0), 1.0)


@rule("native_layer_norm", accuracy="asymptotic")
def layer_norm(
    ctx: Context, x: Moments, normalized: Any, w: Moments | None, b: Moments | None, eps: float
) -> tuple[Any, ...]:
    """Layer normalisation; asymptotic in the width."""
    dims = _trailing(len(x.dims), normalized)
    unit, sigma = normalise(x, dims, eps)
    out = unit if w is None else times(unit, w)
    out = out if b is None else plus(out, b)
    small = tuple(d for k, d in enumerate(unit.dims) if k not in dims)
    gone = [p for d in dims for p in unit.positions(d)]
    rstd = alg.assemble((*small, *((),) * len(dims)), (Term((1.0 / sigma).squeeze(tuple(gone))),))
    return out, alg.scale(rstd, 0.0), rstd


@rule("native_layer_norm_backward", accuracy="asymptotic")
def layer_norm_backward(
    ctx: Context,
    g: Moments,
    x: Moments,
    normalized: Any,
    mean: Any,
    rstd: Moments,
    w: Moments | None,
    b: Any,
    mask: Any,
) -> tuple[Any, ...]:
    """Gradients of layer normalisation.

    Assumes that x holds what the forward pass normalised.
    """
    dims = _trailing(len(x.dims), normalized)
    outer_dims = tuple(range(len(x.dims) - len(normalized)))
    weighted = g if w is None else times(g, w)
    dx, unit = normalise_backward(weighted, x, dims, 0.0, rstd)
    scatter = 1.0 + (inverse_variance(unit, dims) - 1.0) * (1.0 - _largest_share(x) ** 2)
    dx = alg.scale(dx, np.sqrt(scatter))
    dw = con.total(times(g, unit), outer_dims) if mask[1] else None
    db = con.total(g, outer_dims) if mask[2] else None
    return (with_shape(dx, ctx.shapes[0]) if mask[0] else None), dw, db
