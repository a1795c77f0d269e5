"""Sums and means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isometry.moments import contract as con
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule


def _dims(m: Moments, dim: Sequence[int] | int | None) -> tuple[int, ...]:
    rank = len(m.dims)
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(rank))
    listed = [dim] if isinstance(dim, int) else dim
    return tuple(sorted(d % max(rank, 1) for d in listed)) if rank else ()


def keep_dims(reduced: Moments, dims: tuple[int, ...], keepdim: bool) -> Moments:
    """Put dims of size 1 where dims were reduced."""
    if not keepdim:
        return reduced
    kept = list(reduced.dims)
    for d in sorted(dims):
        kept.insert(d, ())
    return replace(reduced, dims=tuple(kept))


@rule("sum", accuracy="asymptotic")
def sum_(
    ctx: Context, m: Moments, dim: Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> Moments:
    """Sum over dims. Second moments exact; normal (lognormal for positive terms) in the wide limit."""
    dims = _dims(m, dim)
    return keep_dims(con.total(m, dims), dims, keepdim)


@rule("mean", accuracy="asymptotic")
def mean(
    ctx: Context, m: Moments, dim: Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> Moments:
    """Mean over dims; as `sum_`."""
    dims = _dims(m, dim)
    return keep_dims(con.average(m, dims), dims, keepdim)
