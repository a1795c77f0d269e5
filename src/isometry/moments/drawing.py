"""One typical draw of a tensor known by its moments, for what depends on values: routing, counting.

Which expert a token goes to, or which entries pass a threshold, is an integer that no moment can tell, but
code and shapes depend on it. Such integers are taken from one draw of the record itself: a field of normal
variables with the latent's correlations (a sum of independent parts, one for each set of axes, as in an
analysis of variance), passed through the record's values. What follows from them is then one typical case,
not an average over all.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments.axes import Array
from isometry.moments.record import Moments


def draw(m: Moments, seed: int) -> Tensor:
    """Return one draw, a float64 tensor of the record's shape.

    Exact for one block per axis, else on average over blocks.
    """
    m = alg.collapse(m)
    sizes = tuple(ax.size(a) for a in m.axes)
    factor = alg.absorbed(m.terms[0], m.axes)
    if factor is None:
        values = m.terms[0].coef
        return torch.from_numpy(np.array(_spread(values, m))).reshape(m.shape)
    field = _field(_one_block(factor.rho, m), sizes, np.random.default_rng(seed))
    result = np.empty(sizes)
    blocks = np.broadcast_to(factor.values, (*[len(a) for a in m.axes], factor.values.shape[-1]))
    edges = [np.cumsum((0, *a)) for a in m.axes]
    for index in np.ndindex(*blocks.shape[:-1]):
        at = tuple(slice(int(e[k]), int(e[k + 1])) for e, k in zip(edges, index, strict=True))
        result[at] = np.interp(field[at], latents.NODES, blocks[index])
    return torch.from_numpy(result).reshape(m.shape)


def _spread(values: Array, m: Moments) -> Array:
    for position, axis in enumerate(m.axes):
        if values.shape[position] > 1:
            values = np.repeat(values, axis, axis=position)
    return np.broadcast_to(values, [ax.size(a) for a in m.axes])


def _one_block(rho: Array, m: Moments) -> Array:
    """Average a pair array over the blocks of each axis: (same, differ) along every axis that varies."""
    for position, axis in enumerate(m.axes):
        rho = ax.recut(axis, (ax.size(axis),)).on_pairs(rho, position)
    return rho


def _field(rho: Array, sizes: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Return normal variables with correlations rho: Σ_U √v_U · noise along the axes U alone.

    Two entries that differ on the axes S share the parts with U ∩ S = ∅, so that ρ[S] = Σ_{U ∩ S = ∅} v_U,
    which is solved for v. Negative correlations, which a sum of independent parts cannot have, are taken as
    0.
    """
    full = np.broadcast_to(rho, [2] * len(sizes))
    total = np.zeros(sizes)
    for u in product((0, 1), repeat=len(sizes)):
        inside = [k for k, bit in enumerate(u) if bit]
        variance = 0.0
        for w in product((0, 1), repeat=len(inside)):
            kept = {k for k, bit in zip(inside, w, strict=True) if bit}
            shared = tuple(0 if k in kept else 1 for k in range(len(sizes)))
            variance += (-1.0) ** (len(inside) - len(kept)) * float(full[shared])
        if variance > 1e-9:
            noise = generator.standard_normal([n if bit else 1 for n, bit in zip(sizes, u, strict=True)])
            total = total + np.sqrt(variance) * noise
    return total / max(float(np.sqrt(np.mean(total**2))), 1e-300) if prod(sizes) > 100 else total
