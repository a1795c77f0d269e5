"""The statistics that a record tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
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
        single = reg.single_axis(m, samples)
        position = single.positions(samples)[0]
        cosine = rec.average_differ(single.table, single.axes, position) / square
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
    share: Any = 1.0
    for term in m.terms:
        present: Any = (term.coef != 0).astype(float)
        for f in term.factors:
            present = present * (1.0 - latents.mean((f.values == 0).astype(float)))
        share = share * (1.0 - present)
    blocks = np.asarray(share)
    blocks = blocks.reshape([1] * (len(m.axes) - blocks.ndim) + list(blocks.shape))
    return float(np.clip(rec.average(blocks, m.axes), 0.0, 1.0))
