"""Gradients that were multiplied by slopes f′(z), and what becomes of those slopes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import lineage, origins, projection, steep
from isometry.moments.axes import Array
from isometry.moments.marks import marked
from isometry.moments.record import Factor, Moments, Term, diagonal
from isometry.moments.terms import changed

KEPT = 1e-3  # of a sum's square: what merging some of its terms may change


def with_table(g: Moments, table: Array, less_mean: Sequence[int] = ()) -> Moments:
    """Return a gradient like g, of mean 0, with other second moments; less its mean over axes, if told.

    Where g = γ·f′(z) with a normal γ, the slope is kept, so that another slope of the same z which follows
    (that of a relu before a norm, whose own output went through a relu) is not taken as independent of it:
    γ gets the table that gives the product's. Else g is taken as normal.
    """
    g = merged(g, least=2, several=True)
    if len(g.terms) == 1:
        carrier, rest = split(g.terms[0])
        if carrier is not None and rest:
            return carried(g, rest, table, _of_size(g, table).terms, less_mean)
    made = alg.gaussian(g.dims, table, np.zeros([1] * len(g.axes)))
    for factor in made.terms[0].factors:
        origins.made_of(factor, _of_size(g, table).terms, less_mean=less_mean)
    return made


def _of_size(g: Moments, table: Array) -> Moments:
    """Return a gradient stretched to the mean squares of a table."""
    square, wanted = g.square, diagonal(table, g.axes)
    shape = np.broadcast_shapes(square.shape, wanted.shape)
    return alg.scale(g, np.sqrt(np.divide(wanted, square, out=np.zeros(shape), where=square > 0)))


def merged(g: Moments, least: int = 3, *, several: bool = False) -> Moments:
    """Return a sum of gradients γ_i·f_i with those that depend on one z as a single γ·m(z).

    m² = Σ E[γ_i²]·E[f_i² | z]. What comes to a stream of sums is multiplied by slope upon slope on its way;
    given the stream z where it is now, the slopes behind do not depend on those to come (exact for streams
    that are Markov chains). Where what is merged depends on what is left (g·(1 − f) with g itself), the new γ
    would not know: nothing is merged then.

    Args:
        g: The gradient.
        least: The number of terms from which on a sum is merged.
        several: Whether a term of several slopes may join, of which only one is then known any longer.
    """
    if len(g.terms) < least:
        return g
    bent = [(term, z, size) for term in g.terms for z, size in _bends(term, several)]
    members: list[tuple[Term, Factor, Array]] = []
    for _, z, _ in bent:
        of_z = [x for x in bent if x[1].key == z.key or (*z.key, ()) in x[1].plain]
        found = list({id(x[0]): x for x in reversed(of_z)}.values())
        if len(found) > max(len(members), 1):
            head, members = z, found
    if not members:
        return g
    square: Array = np.zeros(1)
    for _, slope, size in members:
        square = square + size[..., None] * _square_given(slope, head)
    together = tuple(term for term, _, _ in members)
    slope = changed(head, np.sqrt(np.maximum(square, 0.0)), g.axes)
    whole = carried(g, [slope], alg.assemble(g.dims, together).table, together)
    whole = marked(whole, steep.of_sum(together))
    made = alg.assemble(g.dims, (*(t for t in g.terms if t not in together), *whole.terms))
    return made if np.allclose(made.square, g.square, rtol=KEPT) else g


def _bends(term: Term, several: bool) -> list[tuple[Factor, Array]]:
    """Return each slope of a gradient's term, and the square of what it multiplies.

    Nothing where one slope is made from another's variable, as a product of such is a slope of neither.
    """
    carrier, rest = split(term)
    if carrier is None or (len(rest) > 1 and not several):
        return []
    if any(f.latent in other.ancestors for f in rest for other in rest):
        return []
    whole = term.coef**2 * carrier.square
    others = [[f.square for f in rest if f is not z] for z in rest]
    return [
        (z, functools.reduce(np.multiply, squares, whole)) for z, squares in zip(rest, others, strict=True)
    ]


def split(term: Term) -> tuple[Factor | None, list[Factor]]:
    """Return the normal factor of mean 0 of a term, and its other factors."""
    carrier = projection.carrier_of(term)
    return carrier, [f for f in term.factors if f is not carrier]


def _square_given(f: Factor, z: Factor) -> Array:
    """Return E[f² | z] at the nodes of z, which is f's own variable or a part of it."""
    if f.key == z.key:
        return f.values**2
    squared = replace(f, values=f.values**2)
    return squared.mean[..., None] + lineage.given(squared, f.plain[(*z.key, ())])


def carried(
    g: Moments,
    rest: Sequence[Factor],
    table: Array,
    of: Sequence[Term] = (),
    less_mean: Sequence[int] = (),
) -> Moments:
    """Return slopes times a normal γ whose second moments make those of the product.

    `of` are terms that the product is made of, less their mean over some axes.
    """
    one = np.ones([1] * len(g.axes))
    slopes = alg.assemble(g.dims, (Term(one, tuple(rest)),))
    shape = np.broadcast_shapes(table.shape, slopes.table.shape)
    ratio = np.divide(table, slopes.table, out=np.zeros(shape), where=np.abs(slopes.table) > 1e-9)
    gamma = alg.gaussian(g.dims, ratio, np.zeros_like(one))
    (term,) = gamma.terms
    if term.factors:
        origins.made_of(term.factors[0], of, slopes.mean, less_mean)
    return alg.assemble(g.dims, (Term(term.coef, (*rest, *term.factors)),))
