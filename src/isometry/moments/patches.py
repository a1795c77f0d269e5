"""How many directions the patches have that a convolution's channels are sums over; see `fan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import fan, gram
from isometry.moments import record as rec
from isometry.moments.averages import centred, one_block
from isometry.moments.axes import Array
from isometry.moments.marks import marked
from isometry.moments.record import Fan, Moments, Term
from isometry.moments.taps import Window

_ALONE = 0.003  # squares that have less in common are taken as independent
_LIGHT, _MANY = 0.1, 200.0  # from this lightness on, and with fewer weights, their law matters


def fan_of(x: Moments, w: Moments, windows: Sequence[Window]) -> Fan | None:
    """Return the fan of a convolution's channels; None where the weights are not independent.

    Args:
        x: The input, with the dims batch, group, channel of a group, and space (an axis each).
        w: The weight.
        windows: One per spatial dim.
    """
    space = tuple(range(3, len(x.dims)))
    if not gram.is_white(w):
        return None
    x = one_block(x, space)
    pairs, entries = [], []
    for d, dim in enumerate(x.dims):
        for axis in dim:
            if d in space:
                used = _used(windows[d - 3])
                square = float((used.diagonal() ** 2).sum())
                pairs.append(np.array([square, float((used**2).sum()) - square]))
                entries.append(np.array([float(used.trace())]))
            elif d == 2:
                pairs.append(ax.pair_counts(axis))
                entries.append(np.asarray(axis, dtype=np.float64))
            else:  # of one sample and one group, on average
                pairs.append(np.concatenate([ax.shares(axis), np.zeros(len(axis) ** 2)]))
                entries.append(ax.shares(axis))
    table = centred(x, (0, *space))
    total = _weighted(rec.diagonal(table, x.axes), entries)
    if total <= 0:
        return None
    alike = float(np.prod([(u.diagonal() ** 2).sum() / u.trace() ** 2 for u in map(_used, windows)]))
    weights, groups, kurtosis = x.shape[2] / alike, x.shape[1], fan.kurtosis(w)
    handed = fan.of_sum(x.terms)  # the window's mean of it
    own = _less_shared(table, x)
    scatter = _weighted((own / total) ** 2, pairs) + (alike / handed.shared if handed else 0.0)
    scatter += 0.5 * fan.scatter_of_power(x, prod(w.terms / w.kernel for w in windows)) / x.shape[2]
    tails = [((fan.kurtosis(x) + 2.0) / (weights * groups), 1.0)]
    tails += [(handed.tail * fan.lasting(windows, handed.reach), handed.reach)] if handed else []
    tail = sum(own for own, _ in tails)
    reach = sum(own * _reach(windows, before) for own, before in tails) / tail if tail > 0.0 else 1.0
    directions = 1.0 / max(scatter + 0.5 * kurtosis / weights, 0.1 * scatter)
    effective = 2.0 * weights / max(kurtosis + 2.0, 0.1)
    light = -kurtosis if kurtosis < -_LIGHT and effective < _MANY else 0.0
    extra = _extra(x, windows, kurtosis)
    return Fan(effective, directions, groups / scatter, tail, reach=reach, light=light, extra=extra)


def _less_shared(table: Array, x: Moments) -> Array:
    """Return a table in which different channels have nothing that all samples have in common.

    Such as lower means at the borders, which are the same in all channels: one direction of the entries of a
    channel's sums, which counts among those.
    """
    batch = x.positions(0)
    if any(table.shape[p] != 2 for p in batch):
        return table
    shared = table[tuple(slice(1, None) if p in batch else slice(None) for p in range(table.ndim))]
    apart = np.zeros(1)
    for p in x.positions(2):
        differ = 1.0 - ax.same_classes(x.axes[p]).reshape([-1 if q == p else 1 for q in range(table.ndim)])
        apart = np.maximum(apart, differ)
    return np.asarray(table - apart * shared)


def _extra(x: Moments, windows: Sequence[Window], kurtosis: float) -> float:
    """Return what n entries of one channel add to n·Var v/E[v]² = 2 for given weights; see `Fan`.

    v = Σ_o y_o²/n with y = Σ w x over c·K weights. Outputs that read the same entries are correlated by a
    channel's own weights, which adds 2 Σ_{o′} E[ρ²] with E[ρ²] = c·m/(cK(cK + λ − 1)) for m entries that both
    read in each channel, and weights of kurtosis λ. The squares of the entries have the weights a_i = Σ w²,
    over the outputs that read them: a kurtosis κ adds (κ − 3) Σ a_i²/n. Entries that have been normed, n′ of
    them, have a sum of squares which is fixed, where they are not bent: (κ − 1)·n/n′ less, with the n of the
    outputs; what scatters because they are bent is in the directions.
    """
    channels, excess = x.shape[2], fan.kurtosis(x)
    weights = channels * prod(window.terms for window in windows)
    reads, own, uneven = 1.0, 1.0, 1.0
    for window in windows:
        o, _, i = window.taps()
        read = np.zeros((window.outputs, window.inputs))
        read[o, i] = 1.0 / np.maximum(np.bincount(o, minlength=window.outputs), 1)[o]
        both = read @ read.T
        reads, own = reads * both.sum() / window.outputs, own * both.trace() / window.outputs
        uneven *= float((read.sum(0) ** 2).sum()) / window.outputs
    pairs = weights / (weights + kurtosis + 2.0) * (reads - own)
    mark = next(
        (p.latent for t in x.terms for f in t.factors for p in f.parts if isinstance(p.latent, Fan)), None
    )
    places = prod(window.outputs / window.inputs for window in windows)
    fixed = (excess + 2.0) * places if mark is not None and mark.normed else 0.0
    return (2.0 * pairs + excess * uneven - fixed) / channels


def _reach(windows: Sequence[Window], reach: float) -> float:
    """Return over how many outputs the means go that windows make of means over `reach` inputs."""
    each = [reach / fan.averaged(w.terms, reach) / w.stride for w in windows]
    return max(float(np.mean(each)), 1.0) if each else 1.0


def summed(y: Moments, x: Moments, w: Moments, windows: Sequence[Window], mark: Fan | None) -> Moments:
    """Return a convolution's output y of x with its mark, and the tails that sums of few or uneven x have."""
    if mark is None:
        return y
    terms = x.shape[2] * prod(o.terms for o in windows)
    fourth = fan.kurtosis(w) + 3.0
    own, handed = min(fourth / (terms + fourth - 1.0), 1.0), fan.of_sum(x.terms)
    tail = handed.tail if handed else 0.0
    return marked(fan.with_tails(y, own * fan.kurtosis(x) + (1.0 - own) * 3.0 * tail), mark)


def with_powers(y: Moments, x: Moments, w: Moments, windows: Sequence[Window]) -> Moments:
    """Return a convolution's output y of x with what the squares of one channel's places have in common.

    Two places p and q of a channel that read K entries each, n of them both, have, given weights w with
    Σ w² = 1, the correlation ρ = Σ w_k w_l over these: 0 in the mean over channels, and n/(K(K + 2)) in the
    mean square for normal weights. With entries x of kurtosis κ their squares have the covariance

        cov(y_p², y_q²) = 2ρ² + (κ − 3) Σ w_k² w_l² = (κ − 1)·n/(K(K + 2)).

    Of few weights, as in a depthwise convolution, a bent y of one image is more alike by that. Weights of
    kurtosis λ have λ − 1 in place of 2. Assumes independent x, and n/K² of borders like that of the rest.
    """
    (term,) = y.terms
    if len(term.factors) != 1 or not gram.is_white(w):
        return y
    weights = x.shape[2] * prod(window.terms for window in windows)
    common = 0.5 * (fan.kurtosis(x) + 2.0) / x.shape[2] * weights / (weights + fan.kurtosis(w) + 2.0)
    table: Array = np.full(1, common)
    for d, dim in enumerate(y.dims):
        for axis in dim:
            same, differ = _in_common(windows[d - 3]) if d > 2 else (1.0, 0.0)
            table = np.multiply.outer(table, same + (differ - same) * (1.0 - ax.same_classes(axis)))
    table = table[0]
    rec.diagonal(table, y.axes)[...] = 0.0
    if table.max(initial=0.0) < _ALONE:
        return y
    return replace(y, terms=(Term(term.coef, (replace(term.factors[0], length=table),)),))


def _in_common(window: Window) -> tuple[float, float]:
    """Return the means of n/K² over equal and over different outputs."""
    o, _, i = window.taps()
    reads = np.zeros((window.outputs, window.inputs))
    reads[o, i] = 1.0
    read = np.maximum(reads.sum(1), 1.0)
    share = (reads @ reads.T) / np.multiply.outer(read, read)
    own, count = float(share.trace()), window.outputs
    return own / count, float(share.sum() - own) / max(count * (count - 1), 1)


def _used(window: Window) -> Array:
    """Return the share of outputs that use kernel entries k and k′."""
    o, k, _ = window.taps()
    use = np.zeros((window.outputs, window.kernel))
    use[o, k] = 1.0
    return np.asarray(use.T @ use / window.outputs)


def _weighted(array: Array, weights: Sequence[Array]) -> float:
    for own in reversed(weights):
        array = array[..., 0] * own.sum() if array.shape[-1] == 1 else array @ own
    return float(array)
