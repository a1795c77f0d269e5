"""The statistics that a record tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments.axes import Array
from isometry.moments.record import Moments
from isometry.profile import Stats


def stats_of(m: Moments, *, samples: int = 0, scatter: float | None = None) -> Stats:
    """Return the statistics of a tensor, as expectations over random weights and inputs.

    `rms` is √E[x²]; `cosine` is E[x·x′]/E[x²] for two samples, which is the mean cosine where norms hardly
    vary.

    Args:
        m: The record.
        samples: The dim along which the samples lie.
        scatter: Relative standard deviation of the RMS between draws, where it is known.

    Returns:
        The statistics.
    """
    mean = rec.average(m.mean, m.axes)
    square = rec.average(m.square, m.axes)
    if mean * mean < 1e-24 * square:  # what rounding left of zero
        mean = 0.0
    cosine = None
    if len(m.dims) > 1 and samples < len(m.dims) and m.dims[samples] and square > 0:
        cosine = rec.average_differ(m.table, m.axes, m.positions(samples)) / square
    return Stats(
        mean=mean,
        std=float(np.sqrt(max(square - mean**2, 0.0))),
        rms=float(np.sqrt(max(square, 0.0))),
        zeros=zeros_of(m),
        cosine=cosine,
        scatter=scatter,
    )


def zeros_of(m: Moments) -> float:
    """Return the share of exact zeros: of a product where a factor vanishes, of a sum where all terms do."""
    if not any(not t.coef.all() or any(_may_vanish(f.values) for f in t.factors) for t in m.terms):
        return 0.0
    share: Any = 1.0
    for term in m.terms:
        present: Any = (term.coef != 0).astype(float)
        for f in term.factors:
            present = present * (1.0 - latents.mean(_is_zero(f.values)))
        share = share * (1.0 - present)
    blocks = np.asarray(share)
    blocks = blocks.reshape([1] * (len(m.axes) - blocks.ndim) + list(blocks.shape))
    return float(np.clip(rec.average(blocks, m.axes), 0.0, 1.0))


def _may_vanish(values: Array) -> bool:
    """Return whether a function of a latent is zero, or level, at any node; few are."""
    return not values.all() or bool((values[..., 1:] == values[..., :-1]).any())


def _is_zero(values: Array) -> Array:
    """Mark the nodes at which a function of a latent is zero.

    Restoring exact moments moves an atom at 0 (a dropout mask's) off it by the part of a node that its edge
    cuts: two or more neighbouring nodes of one value, within 2 % of the RMS from 0, are such an atom.
    """
    rms = np.sqrt(latents.mean(values * values))[..., None]
    level = np.diff(values, axis=-1) == 0
    edge = np.zeros((*values.shape[:-1], 1), dtype=bool)
    flat = np.concatenate([edge, level], axis=-1) | np.concatenate([level, edge], axis=-1)
    return np.asarray((values == 0) | (flat & (np.abs(values) < 0.02 * rms)), dtype=np.float64)
