"""Look-ups by known indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.concrete import Concrete, equal_share
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule


def _equal(ids: Any, rows: int) -> tuple[Array, rec.Dims]:
    """Return the share of equal ids by pair class, and the dims of the ids."""
    if isinstance(ids, Concrete):
        return equal_share(ids.tensor), alg.plain_dims(ids.tensor.shape)
    raise NoRule("indices whose values are not known")


@rule("embedding", accuracy="exact", raw=(1,))
def embedding(ctx: Context, w: Moments, ids: Any, *_: Any) -> Moments:
    """Rows of a table by known ids: two positions share a row where their ids are equal. Exact second moments."""
    w = reg.single_axis(w, 0)
    if not w.dims[0]:
        raise NoRule("a table of one row")
    w = reg.recut_axis(w, 0, (ax.size(w.axes[0]),))
    share, dims = _equal(ids, w.shape[0])
    same, differ = w.table.take(0, axis=0), w.table.take(-1, axis=0)
    table = np.multiply.outer(share, same) + np.multiply.outer(1.0 - share, differ)
    lead = [1] * share.ndim
    mean = w.mean.take(0, axis=0).reshape((*lead, *w.mean.shape[1:]))
    dims = (*dims, *w.dims[1:])
    factor = alg.absorbed(alg.collapse(w).terms[0], w.axes)
    if factor is None or alg.affine(factor.values):
        return alg.gaussian(dims, table, mean)
    values = factor.values.take(0, axis=0)
    return alg.with_marginal(dims, table, mean, values.reshape((*lead, *values.shape)))


@rule("embedding_dense_backward", accuracy="exact", raw=(1,))
def embedding_backward(ctx: Context, g: Moments, ids: Any, rows: int, *_: Any) -> Moments:
    """Gradients summed into the rows they were looked up from. Assumes that the ids do not depend on the gradient."""
    share, dims = _equal(ids, rows)
    count = sum(len(d) for d in dims)
    for k in range(len(dims)):
        g = reg.single_axis(g, k)
    axes = g.axes
    same, differ, mean = g.table, g.table, g.mean
    for p in range(count):
        share = ax.recut((ax.size(axes[p]),), axes[p]).on_pairs(share, p)
    share = share.reshape((*share.shape, *[1] * (g.table.ndim - count)))
    same, differ = same * share, differ * (1.0 - share)
    for p in reversed(range(count)):
        counts = ax.pair_counts(axes[p])
        same, differ = (
            np.tensordot(
                np.broadcast_to(t, (*t.shape[:p], len(counts), *t.shape[p + 1 :])), counts, axes=(p, 0)
            )
            for t in (same, differ)
        )
        blocks = np.asarray(axes[p], dtype=np.float64)
        mean = np.tensordot(
            np.broadcast_to(mean, (*mean.shape[:p], len(blocks), *mean.shape[p + 1 :])), blocks, axes=(p, 0)
        )
    table = np.stack([same / rows, differ / max(rows * (rows - 1), 1)], axis=0)
    return alg.gaussian((((rows,),), *g.dims[len(dims) :]), table, np.expand_dims(mean / rows, 0))
