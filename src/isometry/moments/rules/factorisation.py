"""Factors and determinants of random matrices."""

from __future__ import annotations

import math
from math import prod
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments.concrete import Concrete
from isometry.moments.contract import contract
from isometry.moments.record import Moments
from isometry.moments.rotations import is_orthogonal, orthogonal
from isometry.moments.rules.base import Context, NoRule, rule


@rule("linalg_qr", accuracy="approximate")
def qr(ctx: Context, m: Moments, mode: str = "reduced") -> tuple[Moments, Moments]:
    """Q and R of a matrix A = QR of n rows and k columns with independent normal entries of deviation σ.

    The columns of Q are random directions: E[q²] = 1/n, and different entries are uncorrelated (exact). R
    keeps the size of A, Σr² = Σa² = n·k·σ²; that half of it is zero is not kept: its entries are taken as
    independent with the average square.
    """
    square = rec.average(m.square, m.axes)
    if mode == "r" or not _independent(m, square):
        raise NoRule("a matrix whose entries are not independent, or Q is not made")
    ctx.note("triangular factors are taken as full")
    rows, columns = m.shape[-2:]
    size = math.sqrt(square * rows * columns / prod(ctx.shapes[1][-2:]))
    q = alg.normal(ctx.shapes[0], 0.0, rows**-0.5)
    return (orthogonal(q) if rows == columns else q), alg.normal(ctx.shapes[1], 0.0, size)


# --- determinants -----------------------------------------------------------------------------------------


@rule("_linalg_slogdet", accuracy="asymptotic")
def slogdet(ctx: Context, m: Moments) -> tuple[Moments, Moments, Moments, Concrete]:
    """Logarithm of the determinant of a square matrix, exact in mean and variance for two kinds.

    n·ln s for s times an orthogonal matrix. For independent normal entries of mean 0 and deviation σ,
    ln|det|² is a sum of n ln χ²_k for k = 1 … n, plus 2n·ln σ.

    Reference: Anderson, 2003, "An Introduction to Multivariate Statistical Analysis", section 7.5.
    """
    n = m.shape[-1]
    square = rec.average(m.square, m.axes)
    if is_orthogonal(m):
        mean, variance = 0.5 * n * math.log(n * square), 0.0
    elif _independent(m, square):
        half = 0.5 * torch.arange(1, n + 1, dtype=torch.float64)
        mean = float(0.5 * (torch.digamma(half) + math.log(2.0 * square)).sum())
        variance = float(0.25 * torch.polygamma(1, half).sum())
    else:
        raise NoRule("the determinant of a matrix whose entries are not independent")
    shape = ctx.shapes[0]
    signs = alg.independent(shape, np.sign(latents.NODES))
    return signs, alg.normal(shape, mean, math.sqrt(variance)), m, Concrete(torch.zeros(ctx.shapes[3]))


@rule("linalg_lu_solve", accuracy="asymptotic", raw=(1,))
def lu_solve(
    ctx: Context, m: Moments, pivots: Any, b: Moments, *, left: bool = True, adjoint: bool = False
) -> Moments:
    """Product with the inverse of a matrix whose `slogdet` was taken: Aᵀ/s² for s times an orthogonal one."""
    if not is_orthogonal(m):
        raise NoRule("the inverse of a random matrix, which has no second moments")
    inverse = alg.scale(m, 1.0 / (m.shape[-1] * rec.average(m.square, m.axes)))
    lead = ascii_lowercase[: len(ctx.shape) - 2]
    return contract(f"{lead}xy,{lead}yz->{lead}xz", *((inverse, b) if left else (b, inverse)))


def _independent(m: Moments, square: float) -> bool:
    places = range(len(m.axes))
    apart = [rec.average_differ(m.table, m.axes, pair) for pair in (*((k,) for k in places), tuple(places))]
    return all(abs(pairs) <= 1e-9 * square for pairs in apart)
