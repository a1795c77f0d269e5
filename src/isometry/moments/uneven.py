"""Known rows whose inner products differ from pair to pair, as those of tabulated positions do.

A table tells the mean of x_k·x_k′ over all pairs of rows. Where positions are sinusoids, near rows are alike
and far ones are not, and it is the mean of (x_k·x_k′)² that counts where two images of the rows meet (the
gradient at attention's queries; see `gram`). `Uneven` marks what it is for rows less their mean, in units of
|x|⁴. A sum has it by the square of its share of what rows have apart, a norm leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments, Term, Uneven

_LEAST = 1e-3  # less is as good as nothing
_ROWS = 4096  # rows that are compared; more are taken evenly


def of_known(array: Array) -> Uneven | None:
    """Return the mark of a known tensor with rows along its last axis; None where it has next to none."""
    if array.ndim < 2 or array.shape[-1] < 2 or array.size == array.shape[-1]:
        return None
    rows = array.reshape(-1, array.shape[-1])
    rows = rows[:: -(-len(rows) // _ROWS)]
    rows = rows - rows.mean(0)
    squares = (rows**2).sum(-1)
    if not squares.any():
        return None
    products = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows  # of one square sum
    pairs = float((products**2).sum() - (squares**2).sum()) / (len(rows) * max(len(rows) - 1, 1))
    return mark(pairs / float(squares.mean()) ** 2)


def mark(excess: float) -> Uneven | None:
    """Return the mark of an excess, None where there is next to none."""
    return Uneven(excess) if excess > _LEAST else None


def of_sum(terms: Sequence[Term], axes: tuple[Axis, ...]) -> Uneven | None:
    """Return the mark of a sum of independent products, with rows along its last axis but one."""
    marks = [
        [p.latent.excess for f in t.factors for p in f.parts if isinstance(p.latent, Uneven)] for t in terms
    ]
    if len(axes) < 2 or not any(marks):
        return None
    own = [_apart(term, axes) for term in terms]
    total = max(sum(own), 1e-300)
    return mark(sum((size / total) ** 2 * sum(found) for size, found in zip(own, marks, strict=True)))


def _apart(term: Term, axes: tuple[Axis, ...]) -> float:
    """Return the mean square of a product less what its rows have in common."""
    table = rec.outer(term.coef, term.coef, axes)
    for f in term.factors:
        table = table * f.table
    together = rec.average_differ(table, axes, [len(axes) - 2])
    return max(rec.average(rec.diagonal(table, axes), axes) - together, 0.0)


def excess(m: Moments) -> float:
    """Return the excess of a record."""
    found = of_sum(m.terms, m.axes)
    return 0.0 if found is None else found.excess
