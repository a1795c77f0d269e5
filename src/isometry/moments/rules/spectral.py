"""Complex tensors, taken as circular (the table is E[x x′*], half of it in each part); Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import lookup
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule

_CIRCULAR = "complex entries are taken as circular (both parts alike and uncorrelated)"


@rule("view_as_complex", accuracy="exact")
def view_as_complex(ctx: Context, m: Moments, *_: Any) -> Moments:
    """Pairs of numbers as complex ones: the second moments of both parts added up."""
    last = m.positions(-1)
    if len(last) == 0:
        return m
    table, mean = m.table, m.mean
    for p in reversed(last):
        classes = len(m.axes[p])
        own = np.take(table, range(classes), axis=p) if table.shape[p] > 1 else table
        share = np.asarray(m.axes[p], dtype=np.float64) if own.shape[p] > 1 else np.full(1, 2.0)
        table = np.tensordot(own, share, axes=(p, 0))
        mean = mean.mean(axis=p)
    return alg.gaussian(m.dims[:-1], table, np.zeros_like(mean))


@rule("view_as_real", accuracy="approximate")
def view_as_real(ctx: Context, m: Moments, *_: Any) -> Moments:
    """Both parts of complex numbers along a new last dim; they are taken as circular."""
    ctx.note(_CIRCULAR)
    return parts_of(m)


def parts_of(m: Moments) -> Moments:
    """Return the record of both parts of circular complex numbers, along a new last dim."""
    table = np.stack([m.table / 2.0, np.zeros_like(m.table)], axis=-1)
    return alg.gaussian((*m.dims, ((2,),)), table, np.zeros((*m.mean.shape, 1)))


@rule("complex", accuracy="approximate")
def complex_(ctx: Context, real: Moments, imaginary: Moments) -> Moments:
    """Complex numbers of two parts, which are taken as circular."""
    ctx.note(_CIRCULAR)
    both = reg.aligned(real, imaginary)
    return alg.gaussian(both[0].dims, both[0].table + both[1].table, np.zeros_like(both[0].mean))


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r", accuracy="exact")
def fft(ctx: Context, m: Moments, dims: Sequence[int], norm: int, last: Any) -> Moments:
    """One dim after the other: frequency 0 is a block of its own.

    With C the entries' second moments, E|X_0|² = Σ C[t, t′] and the others share what Parseval leaves;
    pairs of frequencies get the average over all pairs. Exact for entries that are alike along the dim.
    """
    rank, count = len(m.dims), 1
    for d in reversed([d % rank for d in dims]):
        m = reg.single_axis(m, d)
        if not m.dims[d]:
            continue
        (p,) = m.positions(d)
        half = ctx.op == "_fft_c2r" and d == dims[-1] % rank
        n = ctx.shape[d] if half else m.shape[d]
        kept = ctx.shape[d]
        pairs, blocks = _transform(m.axes[p], n, kept, half)
        table = np.moveaxis(
            lookup.total(pairs, np.moveaxis(m.table, p, 0), pairs.shape[1:], pairs.shape[:1]), 0, p
        )
        mean = np.moveaxis(
            lookup.total(blocks, np.moveaxis(m.mean, p, 0), blocks.shape[1:], blocks.shape[:1]), 0, p
        )
        axis = (kept,) if half else (1, kept - 1)
        m = alg.gaussian((*m.dims[:d], (axis,), *m.dims[d + 1 :]), table, mean)
        count *= n
    return alg.scale(m, (1.0, count**-0.5, 1.0 / count)[norm])


def _transform(axis: Axis, n: int, kept: int, half: bool) -> tuple[Array, Array]:
    """Return the maps of pair classes and blocks of a transform of n entries, of which `kept` are returned.

    `half`: the input is the half of a Hermitian spectrum and the output is real.
    """
    sizes = np.asarray(axis, dtype=np.float64)
    if half:
        sizes = 2.0 * sizes
        sizes[0] -= 1.0
        sizes[-1] -= 1.0 if n % 2 == 0 else 0.0
    total = ax.pair_counts(axis)
    own, first = np.zeros(len(total)), np.zeros(len(total))
    own[: len(axis)], first[0] = sizes, 1.0
    start = np.zeros(len(axis))
    start[0] = 1.0
    apart = (n * first - own) / max(n - 1, 1)
    if half:
        return np.stack([own, apart]), start[None]
    rest = (n * own - total) / max(n - 1, 1)
    others = (n * start - sizes) / max(n - 1, 1)
    return np.stack([total, rest, *[apart] * 4]), np.stack([sizes, others])
