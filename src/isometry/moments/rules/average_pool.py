"""Average pooling, forward and backward: linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import pools
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.record import Moments
from isometry.moments.resampling import resampled
from isometry.moments.rules.base import Context, rule
from isometry.moments.windows import adaptive_windows, each, rank_of, windows


def _averaging(
    op: str, small: Sequence[int], large: Sequence[int], kernel: Any, stride: Any, padding: Any, rest: Any
) -> dict[int, Array]:
    """Return the matrix of each spatial dim (counted from the last) of an average pool."""
    rank = rank_of(op)
    k = each(kernel, rank)
    s, p = each(stride, rank, k), each(padding, rank)
    include = rest[1] if len(rest) > 1 else True
    divisor = rest[2] if len(rest) > 2 else None
    made = {}
    for d, matrix in enumerate(windows(small, large, k, s, p)):
        start = np.arange(small[d]) * s[d] - p[d]
        padded = np.minimum(start + k[d], large[d] + p[d]) - start
        count = padded if include else matrix.sum(1)
        by = np.full(small[d], divisor ** (1.0 / rank)) if divisor else count
        made[d - rank] = matrix / np.maximum(by, 1e-300)[:, None]
    return made


def _pooled(x: Moments, matrices: dict[int, Array]) -> Moments:
    """Return the means over windows."""
    x = _ready(x, len(matrices))
    of_dims = {len(x.dims) + d: w for d, w in matrices.items()}
    made = resampled(x, of_dims, alike=pools.alike(x, [*matrices.values()]))
    pools.remember(made, alg.absorbed(x.terms[0], x.axes))
    return made


def _ready(x: Moments, rank: int) -> Moments:
    """Return a record of one variable with an axis for each spatial dim."""
    x = alg.collapse(x)
    for d in range(len(x.dims) - rank, len(x.dims)):
        x = reg.single_axis(x, d) if x.dims[d] else x
    return reg.broadcast(x, (*x.dims[:-rank], *[d or ((1,),) for d in x.dims[-rank:]]))


def _spread(g: Moments, x: Moments, matrices: dict[int, Array]) -> Moments:
    """Return the gradient at x of means over windows."""
    dx = resampled(g, {len(g.dims) + d: w.T for d, w in matrices.items()}, x)
    x, windows_ = _ready(x, len(matrices)), [*matrices.values()]
    return pools.with_members(dx, g, x, windows_, pools.alike(x, windows_))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", accuracy="asymptotic")
def avg_pool(
    ctx: Context, x: Moments, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any
) -> Moments:
    """Mean over windows. Second moments exact; the marginal is that of a mean of independent entries."""
    rank = rank_of(ctx.op)
    return _pooled(x, _averaging(ctx.op, ctx.shape[-rank:], x.shape[-rank:], kernel, stride, padding, rest))


@rule("avg_pool2d_backward", "avg_pool3d_backward", accuracy="exact")
def avg_pool_backward(
    ctx: Context, g: Moments, x: Moments, kernel: Any, stride: Any, padding: Any, *rest: Any
) -> Moments:
    """Gradient of a mean over windows: the transposed map. Exact second moments."""
    rank = rank_of(ctx.op)
    matrices = _averaging(ctx.op, g.shape[-rank:], x.shape[-rank:], kernel, stride, padding, rest)
    return _spread(g, x, matrices)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", accuracy="asymptotic")
def adaptive_avg_pool(ctx: Context, x: Moments, size: Any) -> Moments:
    """Mean over windows that share the input evenly; as `avg_pool`."""
    rank = rank_of(ctx.op)
    made = adaptive_windows(ctx.shape[-rank:], x.shape[-rank:])
    return _pooled(x, {d - rank: w / w.sum(1, keepdims=True) for d, w in enumerate(made)})


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", accuracy="exact")
def adaptive_avg_pool_backward(ctx: Context, g: Moments, x: Moments) -> Moments:
    """Gradient of `adaptive_avg_pool`. Exact second moments."""
    rank = rank_of(ctx.op)
    made = adaptive_windows(g.shape[-rank:], x.shape[-rank:])
    return _spread(g, x, {d - rank: w / w.sum(1, keepdims=True) for d, w in enumerate(made)})
