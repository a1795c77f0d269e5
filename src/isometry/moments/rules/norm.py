"""Normalisation over axes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from isometry.moments import across, apart, fan, latents, lengths, lineage, near, origins, slopes, uneven
from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import contract as con
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.averages import average_over, centred, mean_over
from isometry.moments.axes import Array
from isometry.moments.inverse import inverse_variance, loss_of_strong
from isometry.moments.latents import Latent
from isometry.moments.marks import mark_of, marked
from isometry.moments.origins import Contraction
from isometry.moments.record import Factor, Fan, Moments, Shortened, Term, Tilted
from isometry.moments.rules.base import Context, rule
from isometry.moments.rules.linear import plus, with_shape
from isometry.moments.rules.pointwise import times

_MANY = 100.0  # degrees of freedom from which on a coordinate of a fixed length is as good as normal


Scatter = Callable[[Moments, tuple[int, ...], float | Array], Array]


def scatter_of_variance(m: Moments, dims: tuple[int, ...], eps: float | Array) -> Array:
    """Return E[1/(v̂ + ε)]·E[v̂ + ε] of the sample variance over dims."""
    return inverse_variance(m, dims, eps, fan.kurtosis(m))


def normalise(
    m: Moments, dims: tuple[int, ...], eps: float | Array, scatter: Scatter = scatter_of_variance
) -> tuple[Moments, Array]:
    """Return x̂ = (x − mean)/√(v̂ + ε) over the axes of dims, and σ as a block array, σ² = E[v̂] + ε.

    The table is centred by its mean over those axes, exactly, and divided by σ², with what the scatter of v̂
    adds: E[x̂²] = E[v̂/(v̂ + ε)] = 1 − ε·E[1/(v̂ + ε)], and see `inverse`. The result is a function of the same
    latent where entries have nothing in common but a constant.
    """
    m = alg.collapse(m)
    table = centred(m, dims)
    variance = np.maximum(average_over(rec.diagonal(table, m.axes), m, dims), 0.0)
    sigma = np.sqrt(variance + eps)
    square = np.clip(1.0 - eps / np.maximum(sigma**2, 1e-300) * scatter(m, dims, eps), 0.0, 1.0)
    divisor = np.sqrt(np.divide(variance, square, out=np.ones(square.shape), where=square > 0))
    table = table / rec.outer(divisor, divisor, m.axes)
    positions = [p for d in dims for p in m.positions(d)]
    strong = loss_of_strong(m, dims, table)
    table = table if strong is None else _with_loss(table, strong, m, positions)
    middle = average_over(m.mean, m, dims)
    mean = (m.mean - middle) / divisor
    count = float(np.prod([ax.size(m.axes[p]) for d in dims for p in m.positions(d)]))
    shared = rec.diagonal(mean_over(m.table, m, dims), m.axes) - middle**2 - variance / max(count - 1.0, 1.0)
    factor = alg.absorbed(m.terms[0], m.axes)
    if factor is None:
        return alg.assemble(m.dims, (Term(mean),)), sigma
    values = (factor.values - middle[..., None]) / divisor[..., None]
    if strong is None and float(np.max(shared / np.maximum(variance, 1e-300))) < 0.02:
        values = reg.respread(values, rec.diagonal(table, m.axes))  # each entry had a share of the mean
        own = replace(factor, values=values, table=table)
        unit = Moments(m.dims, (Term(np.ones([1] * len(m.axes)), (own,)),), table, mean)
        return _of_length_one(unit, m, dims, eps), sigma
    made = alg.with_marginal(m.dims, table, mean, values)
    (term,) = made.terms
    parts = lineage.centred(lineage.parts_of(m.terms, divisor), positions, m.axes)
    own = _centred_once(term.factors[0], m, positions)
    own = replace(own, parts=parts, form=own.values, length=factor.length)
    made = near.kept(replace(made, terms=(Term(term.coef, (own,)),)), m)
    for mark in (mark_of(m, Fan), uneven.of_sum(m.terms, m.axes)):
        made = marked(made, mark)
    return _of_length_one(made, m, dims, eps), sigma


def _centred_once(made: Factor, m: Moments, positions: list[int]) -> Factor:
    """Return a factor that m centred is a function of, of one latent for m.

    The backward pass centres the same tensor again and must find the same variable.
    """
    (factor,) = m.terms[0].factors
    key = ("centred", factor.latent, factor.labels, tuple(positions))
    if not isinstance(factor.latent, Latent) or not isinstance(made.latent, Latent):
        return replace(made, latent=key)
    known = factor.latent.views.setdefault(key, made.latent)
    if known is made.latent:
        origins.centred(made, m, positions)
    return replace(made, latent=known)


def _with_loss(table: Array, strong: Array, m: Moments, positions: list[int]) -> Array:
    """Return a normalised table with what the division takes from its strong directions; see `inverse`."""
    shape = [
        len(a) * (len(a) + 1) if k in positions else n
        for k, (a, n) in enumerate(zip(m.axes, table.shape, strict=True))
    ]
    for p in positions:
        strong = ax.recut((ax.size(m.axes[p]),), m.axes[p]).on_pairs(strong, p)
        shape[p] = strong.shape[p]
    table = np.array(np.broadcast_to(table, shape))
    table[tuple([slice(None) if k in positions else slice(len(a)) for k, a in enumerate(m.axes)])] += strong
    return table


def _of_length_one(unit: Moments, m: Moments, dims: tuple[int, ...], eps: float | Array) -> Moments:
    """Return m normalised, of few entries, with the shape that coordinates of a fixed length have.

    n normal entries divided by their own size are n coordinates of a random direction: lighter tails, and
    squares that have the covariance −2/(n + 2) with one another. n is the number of degrees of freedom for
    which E[1/v̂]·E[v̂] = n/(n − 2).
    """
    (term,) = unit.terms
    excess = float(np.mean(inverse_variance(m, dims, eps, 0.0))) - 1.0
    if len(term.factors) != 1 or excess < 2.0 / (_MANY - 2.0):
        return unit
    (factor,) = term.factors
    n = 2.0 / excess + 2.0
    values = latents.at_points(factor.values, latents.places(latents.on_sphere(round(n, 1))))
    values = reg.respread(values, factor.square)
    positions = [p for d in dims for p in m.positions(d)]
    length = _bound(factor.table.shape, m, positions, -1.0 / (n + 2.0))
    own = replace(factor, values=values, length=length if factor.length is None else length + factor.length)
    return replace(unit, terms=(Term(term.coef, (own,)),))


def _bound(shape: tuple[int, ...], m: Moments, positions: list[int], by: float) -> Array:
    """Return a pair array that is `by` for two entries that differ along some axes only, else 0."""
    length = np.zeros(shape)
    length[tuple([slice(None) if k in positions else slice(len(a)) for k, a in enumerate(m.axes)])] = by
    rec.diagonal(length, m.axes)[...] = 0.0
    return length


def normalise_backward(
    g: Moments,
    x: Moments,
    dims: tuple[int, ...],
    eps: float | Moments,
    scatter: Scatter = scatter_of_variance,
) -> tuple[Moments, Moments]:
    """Return the gradient at x of x̂ = (x − mean)/√(v̂ + ε), and x̂.

    dx = (g − mean g − x̂·c)/σ with c = mean(g x̂) removes E[c²]·E[x̂ x̂′]·(2/v − 1) from the second moments,
    where v = mean x̂² is 1 less the share of ε in σ²: for v = 1 a projection. c uses the joint moments of g
    and x̂, which may share latents; a slope that g was multiplied by stays known. What an earlier norm took
    away is not taken again (`apart`). Asymptotic in the number of entries averaged, but for the mean of 1/σ².

    Args:
        g: The gradient at x̂.
        x: What was normalised.
        dims: The dims it was normalised over.
        eps: ε, or 1/σ as the forward pass told it; of x's rank or broadcast to it.
        scatter: E[1/(v̂ + ε)]·E[v̂ + ε].
    """
    g, x = reg.aligned(g, alg.collapse(x))  # σ has the axes of x: they must be g's
    added = _added_to(eps, x, dims) if isinstance(eps, Moments) else eps
    unit, sigma = normalise(x, dims, added, scatter)
    product = across.product(g, unit)
    share = np.maximum(average_over(rec.diagonal(unit.table, unit.axes), unit, dims), 1e-12)
    along = mean_over(product.table, g, dims) * (1.0 - apart.gone(g, unit))
    removed = unit.table * along * (2.0 / rec.outer(share, share, g.axes) ** 0.5 - 1.0)
    table = centred(g, dims) - removed
    inverse = np.sqrt(scatter(x, dims, added)) / sigma
    table = table * rec.outer(inverse, inverse, g.axes)
    dx = near.like(slopes.with_table(g, table, [p for d in dims for p in g.positions(d)]), g)
    return marked(dx, apart.behind(unit)), unit


def _added_to(rstd: Moments, x: Moments, dims: tuple[int, ...]) -> Array:
    """Return what was added to the variance, from 1/σ: it outweighs the variance of a tiny signal."""
    rstd, x = reg.aligned(rstd, x)
    variance = average_over(rec.diagonal(centred(x, dims), x.axes), x, dims)
    return np.maximum(1.0 / np.maximum(rstd.mean, 1e-30) ** 2 - np.maximum(variance, 0.0), 0.0)


def _trailing(rank: int, normalized: Any) -> tuple[int, ...]:
    return tuple(range(rank - len(normalized), rank))


@rule("native_layer_norm", accuracy="asymptotic")
def layer_norm(
    ctx: Context, x: Moments, normalized: Any, w: Moments | None, b: Moments | None, eps: float
) -> tuple[Any, ...]:
    """Layer normalisation; asymptotic in the width."""
    dims = _trailing(len(x.dims), normalized)
    unit, sigma = normalise(x, dims, eps)
    gone = [p for d in dims for p in unit.positions(d)]
    unit = lengths.fixed(unit, gone)
    out = unit if w is None else times(unit, w)
    out = out if b is None else plus(out, b)
    small = tuple(d for k, d in enumerate(unit.dims) if k not in dims)
    rstd = alg.assemble((*small, *((),) * len(dims)), (Term((1.0 / sigma).squeeze(tuple(gone))),))
    return out, alg.scale(rstd, 0.0), rstd


def _scatter_of_rows(m: Moments, dims: tuple[int, ...], eps: float | Array) -> Array:
    """Return `scatter_of_variance`, with what rows' lengths vary by besides."""
    positions = [p for d in dims for p in m.positions(d)]
    return np.maximum(scatter_of_variance(m, dims, eps) + lengths.excess(m, positions), 1.0)


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
    dx, unit = normalise_backward(weighted, x, dims, rstd, _scatter_of_rows)
    positions = [p for d in dims for p in x.positions(d)]
    if len(dx.terms) == 1 and len(x.terms) == 1:
        own = lengths.excess(x, positions)
        rows = [p for d in outer_dims for p in dx.positions(d)]
        dx = marked(dx, Shortened(own) if own > 0.0 else None, rows)
        made_of = [getattr(f.latent, "origin", None) for f in x.terms[0].factors]
        if len(made_of) == 1 and isinstance(made_of[0], Contraction):  # Σ x·dx = 0 over each row
            dx = marked(dx, Tilted(0.0, 0.0), positions)
    dw = con.total(times(g, unit), outer_dims) if mask[1] else None
    db = con.total(g, outer_dims) if mask[2] else None
    return (with_shape(dx, ctx.shapes[0]) if mask[0] else None), dw, db
