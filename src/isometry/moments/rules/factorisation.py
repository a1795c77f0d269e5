"""Factors of random matrices."""

from __future__ import annotations

import math
from math import prod

from isometry.moments import algebra as alg
from isometry.moments import record as rec
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule


@rule("linalg_qr", accuracy="approximate")
def qr(ctx: Context, m: Moments, mode: str = "reduced") -> tuple[Moments, Moments]:
    """Q and R of a matrix A = QR of n rows and k columns with independent normal entries of deviation σ.

    The columns of Q are random directions: E[q²] = 1/n, and different entries are uncorrelated (exact). R
    keeps the size of A, Σr² = Σa² = n·k·σ²; that half of it is zero is not kept: its entries are taken as
    independent with the average square.
    """
    square = rec.average(m.square, m.axes)
    places = range(len(m.axes))
    apart = [rec.average_differ(m.table, m.axes, pair) for pair in (*((k,) for k in places), tuple(places))]
    if mode == "r" or any(abs(pairs) > 1e-9 * square for pairs in apart):
        raise NoRule("a matrix whose entries are not independent, or Q is not made")
    ctx.note("triangular factors are taken as full")
    rows, columns = m.shape[-2:]
    size = math.sqrt(square * rows * columns / prod(ctx.shapes[1][-2:]))
    return alg.normal(ctx.shapes[0], 0.0, rows**-0.5), alg.normal(ctx.shapes[1], 0.0, size)
