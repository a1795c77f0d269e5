"""What the scatter of a sample variance v̂ does to entries that are divided by √v̂.

v̂ = Σ λ_j χ²_j with the eigenvalues λ of the entries' correlations. With P(t) = Π (1 + 2λ_j t)^{−½},

    E[1/v̂] = ∫ P(t) dt,        E[λ_j χ²_j/v̂] = ∫ λ_j/(1 + 2λ_j t) · P(t) dt:

the inverse has a larger mean than the inverse of the mean, and strong directions lose by the division, as v̂
is large where they are. Exact for jointly normal entries. Entries of one block per axis are exchangeable, so
that an axis of n entries has the eigenvectors "constant" and, n − 1 times, "contrast"; of several blocks, see
`_in_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import near
from isometry.moments import record as rec
from isometry.moments.averages import centred, one_block
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Moments

_GRID = np.linspace(-16.0, 14.0, 301)
_T = np.exp(_GRID)
_ROUNDING = 1e-9  # eigenvalues below, in units of the largest, are none
_STRONG = 0.01  # a direction with less of the variance than this loses nothing that matters


def inverse_variance(x: Moments, over: tuple[int, ...], eps: float | Array, excess: float) -> Array:
    """Return E[1/(v̂ + ε)]·E[v̂ + ε] of a sample variance v̂ over dims, an array of length 1 along those.

    Entries with another kurtosis than 3 add the excess, divided by their number n, to the relative variance
    R of v̂, 2/n for independent normal ones: they count as R/(R + excess/n) normal ones each (asymptotic).

    Args:
        x: The entries.
        over: The dims.
        eps: What is added to v̂.
        excess: The entries' excess kurtosis that counts.
    """
    positions = [p for d in over for p in x.positions(d)]
    spectrum = _in_blocks(x, centred(x, over), positions)
    own, times = _uneven(spectrum, x, positions)
    total, count = (own * times).sum(-1, keepdims=True), times.sum()
    whole = total + np.mean(eps)
    # Of what does not vary, as a token of zeros, nothing is divided but by ε.
    squares = (own**2 * times).sum(-1, keepdims=True)
    scatter = 2.0 * np.divide(squares, total**2, out=np.full(total.shape, 1.0 / count), where=total**2 > 0)
    alike = scatter / np.maximum(scatter + excess / count, 0.05 * scatter)
    falling = alike * _falling(own / whole / alike, times) - np.mean(eps) / whole * _T
    factor = np.trapezoid(np.exp(falling + _GRID), _GRID, axis=-1)
    # Fewer than three degrees of freedom leave no finite mean: it is cut at five times.
    return np.asarray(np.expand_dims(np.clip(factor, 1.0, 5.0), tuple(positions)))


def loss_of_strong(x: Moments, over: tuple[int, ...], table: Array) -> Array | None:
    """Return what the division adds to E[x̂ x̂′] of pairs that agree outside the dims; None where nothing.

    Args:
        x: The entries.
        over: The dims.
        table: Their table, divided by the expected variance.

    Returns:
        An array over the blocks of the other axes and the pair classes, of one block, of the dims' axes.
    """
    own, times, positions = _eigenvalues(x, over, table)
    uneven = np.where((times > 0) & (own > 1e-6 * own.max()), own, own.max(-1, keepdims=True))
    if not positions or own.max() < _STRONG or np.ptp(uneven, axis=-1).max() < _STRONG / 10:
        return None
    share = own / np.maximum((own * times).sum(-1, keepdims=True), 1e-300)
    weights = np.exp(_falling(share, times) + _GRID)[..., None, :] / (1.0 + 2.0 * share[..., None] * _T)
    added = own * (np.trapezoid(weights, _GRID, axis=-1) - 1.0) * times.sum()
    rank = own.ndim - 1
    added = added.reshape((*own.shape[:-1], *[2] * len(positions)))
    for k, p in enumerate(positions):  # from constant and contrast back to same and different
        n = ax.size(x.axes[p])
        turned = np.tensordot(np.array([[1.0, n - 1.0], [1.0, -1.0]]) / n, added, axes=(1, rank + k))
        added = np.moveaxis(turned, 0, rank + k)
    rest = [p for p in range(len(x.axes)) if p not in positions]
    return np.asarray(np.moveaxis(added, range(added.ndim), [*rest, *positions]))


def _eigenvalues(x: Moments, over: tuple[int, ...], table: Array) -> tuple[Array, Array, list[int]]:
    """Return a table's eigenvalues over the axes of dims, by the number of entries; how often each occurs.

    And where those axes are. What varies between blocks is averaged.
    """
    positions = [p for d in over for p in x.positions(d)]
    x = one_block(replace(x, terms=(), table=table), over)
    spectrum, times = x.table, np.ones(1)
    for p in positions:
        n = ax.size(x.axes[p])
        full = np.broadcast_to(spectrum, (*spectrum.shape[:p], 2, *spectrum.shape[p + 1 :]))
        turned = np.tensordot(np.array([[1.0, n - 1.0], [1.0, -1.0]]), full, axes=(1, p))
        spectrum = np.moveaxis(turned, 0, p)
        times = np.multiply.outer(times, [1.0, n - 1.0]).ravel()
    rest = [p for p in range(spectrum.ndim) if p not in positions]
    flat = rec.diagonal(
        spectrum.transpose([*rest, *positions]).reshape((*[spectrum.shape[p] for p in rest], -1)),
        (*[x.axes[p] for p in rest], (1,) * times.size),
    )
    return np.maximum(flat, 0.0) / times.sum(), times, positions


class _Spectrum(NamedTuple):
    """The eigenvalues of a table over some axes, by the number of entries.

    Attributes:
        own: The eigenvalues, last.
        times: How often each occurs.
        image: What share of it lies in what is constant along the last axes, those of near places.
    """

    own: Array
    times: Array
    image: Array


def _in_blocks(x: Moments, table: Array, positions: list[int]) -> _Spectrum:
    """Return the eigenvalues of a table over some axes.

    Along an axis with blocks of n_b entries the eigenvectors are contrasts within a block, n_b − 1 each, of
    the eigenvalue C_same − C_differ, and functions of the block, on which the table is the matrix
    √n_b·C_bc·√n_c with (n_b − 1)·C_differ + C_same on the diagonal.
    """
    rest = [p for p in range(len(x.axes)) if p not in positions]
    shape = [
        len(a) * (len(a) + 1) if p in positions else n
        for p, (a, n) in enumerate(zip(x.axes, table.shape, strict=True))
    ]
    lead = np.broadcast_to(table, shape).transpose([*rest, *positions])
    lead = lead[tuple(slice(len(x.axes[p])) for p in rest)]
    axes = [x.axes[p] for p in positions]
    near_from = len(axes) - near.rank_of(x.terms)
    kinds = [_of_kind(lead, len(rest), axes, kind, near_from) for kind in product((0, 1), repeat=len(axes))]
    own, times, image = (np.concatenate(arrays, axis=-1) for arrays in zip(*kinds, strict=True))
    own = np.where(own > _ROUNDING * own.max(initial=0.0), own, 0.0)
    return _Spectrum(own / prod(ax.size(a) for a in axes), times, image)


def _of_kind(
    table: Array, lead: int, axes: Sequence[Axis], kind: tuple[int, ...], near_from: int
) -> _Spectrum:
    """Return those whose vectors are contrasts (0) or functions of the block (1), axis by axis."""
    times = np.ones(1)
    contrasts: list[int] = []
    rows: list[int] = []
    for k, (axis, of_block) in enumerate(zip(axes, kind, strict=True)):  # each axis moves to the end
        n, b = np.asarray(axis, dtype=np.float64), len(axis)
        table = np.moveaxis(table, lead, -1)
        same, differ = table[..., :b], table[..., b:].reshape((*table.shape[:-1], b, b))
        own = same - np.diagonal(differ, axis1=-2, axis2=-1)
        table = differ * np.sqrt(np.outer(n, n)) + own[..., None] * np.eye(b) if of_block else own
        times = times if of_block else np.multiply.outer(times, n - 1.0).ravel()
        (rows if of_block else contrasts).append(lead + k + sum(kind[:k]))
    table = table.transpose([*range(lead), *contrasts, *rows, *[at + 1 for at in rows]])
    size = prod(len(a) for a, of_block in zip(axes, kind, strict=True) if of_block)
    own, vectors = np.linalg.eigh(table.reshape((*table.shape[:lead], times.size, size, size)))
    image = np.zeros(1)
    if near_from < len(axes) and all(kind[near_from:]):
        constant = np.ones(1)
        for axis in axes[near_from:]:
            constant = np.multiply.outer(constant, np.sqrt(ax.shares(axis))).ravel()
        by_image = vectors.reshape((*vectors.shape[:-2], -1, constant.size, size))
        image = (np.einsum("...rcv,c->...rv", by_image, constant) ** 2).sum(-2)
    flat = (*own.shape[:-2], -1)
    image = np.broadcast_to(image, own.shape).reshape(flat)
    return _Spectrum(own.reshape(flat), np.repeat(times, size), image)


def _uneven(spectrum: _Spectrum, x: Moments, positions: list[int]) -> tuple[Array, Array]:
    """Return eigenvalues and how often each occurs where neighbours are more alike than their class's mean.

    That makes the eigenvalues λ of an image scatter, by Σ (C − C_class)² over the pairs of a place: a share
    1/(1 + s²) of them, larger by 1 + s², have the same mean and the same variance s²λ².
    """
    own, times, image = spectrum
    rank = near.rank_of(x.terms)
    lead = len(x.axes) - rank
    if not rank or not set(range(lead, len(x.axes))) <= set(positions):
        return own, times
    scatter = near.unevenness(x, rank).mean(tuple(p for p in positions if p < lead))[..., None]
    scatter = scatter * (1.0 - image)  # none of an image's mean
    shape = np.broadcast_shapes(own.shape, scatter.shape)
    by = 1.0 + np.divide(scatter, (own * times.sum()) ** 2, out=np.zeros(shape), where=own > 0)
    return own * by, times / by


def _falling(own: Array, times: Array) -> Array:
    """Return ln P on the grid of t."""
    return np.asarray(-0.5 * (np.log1p(2.0 * own[..., None] * _T) * times[..., None]).sum(-2))
