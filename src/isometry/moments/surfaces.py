"""Functions of two variables: of a variable z, and of what another one is besides its part in z.

A latent y with the part φ(z) is φ(z) + s·ε, with ε normal and independent of z. A function of y is then one
of (z, ε), which is held at the nodes of both, and so is its product with a function of z.
"""

from __future__ import annotations

import numpy as np

from isometry.moments import latents
from isometry.moments.axes import Array, Axis, Index
from isometry.moments.record import Factor, diagonal, dual, first, second

EDGE = 1e-3  # of a function's range: a score beyond is as good as at its end


def form_of(factor: Factor) -> Array:
    """Return the values of the function of a factor's latent that its parts speak of."""
    return identity(factor.values.ndim - 1) if factor.form is None else factor.form


def identity(rank: int) -> Array:
    """Return the latent itself, as values at the nodes."""
    return latents.NODES.reshape([1] * rank + [-1])


def surface(values: Array, form: Array, phi: Array) -> Array:
    """Return f as a function of (z, ε): shape (rows, `NODES` of z, `FEW_NODES` of ε).

    Args:
        values: f at the nodes of its latent, by row.
        form: The function of that latent which the part is in.
        phi: The part, at the nodes of z.
    """
    middle = latents.mean(form)
    spread = np.sqrt(np.maximum(latents.mean((form - middle[..., None]) ** 2) - latents.mean(phi * phi), 0.0))
    points = (middle[..., None] + phi)[:, :, None] + spread[:, None, None] * latents.FEW_NODES
    return np.stack([np.interp(x, f, v) for x, f, v in zip(points, form, values, strict=True)])


def surface_moments(
    f: Factor, g: Factor, phi: Array, made: Array, at: Index, axes: tuple[Axis, ...]
) -> tuple[Array, Array]:
    """Return second moments and mean of a function of two variables.

    f's form has the part φ in g's variable z.

    `made` is the function at the nodes of (z, ε), as `surface` gives it for f, `at` the row of each block.
    With its Hermite coefficients c_jk, E = Σ c_jk² ρ_z^j ρ_ε^k. Exact at one entry.
    """
    form = form_of(f)
    form = form - latents.mean(form)[..., None]
    whole = dual(form, form, f.rho, axes)
    of_z = dual(phi, phi, g.rho, axes)
    left_over = diagonal(whole, axes) - diagonal(of_z, axes)
    size = np.sqrt(np.maximum(first(left_over, axes) * second(left_over, axes), 0.0))
    rest = whole - of_z
    shape = np.broadcast_shapes(rest.shape, size.shape)
    rho_e = np.clip(np.divide(rest, size, out=np.zeros(shape), where=size > 0), -1.0, 1.0)
    c = latents.coefficients(np.swapaxes(latents.coefficients(made), -1, -2))[at]  # (blocks…, k of ε, j of z)
    known = first(c, axes) * second(c, axes)
    powers = [_powers(rho) for rho in (rho_e, g.rho)]
    table = np.einsum("...kj,...k,...j->...", known, *powers, optimize=True)
    square = (np.einsum("rze,rze,e->rz", made, made, latents.FEW_WEIGHTS) @ latents.WEIGHTS)[at]
    unknown = np.maximum(np.sqrt(first(square, axes) * second(square, axes)) - known.sum((-1, -2)), 0.0)
    close = np.minimum(np.abs(g.rho), np.abs(rho_e)) ** latents.ORDER
    return np.asarray(table + unknown * close), ((made @ latents.FEW_WEIGHTS) @ latents.WEIGHTS)[at]


def _powers(rho: Array) -> Array:
    """Return ρ^k for k below `ORDER`, along a new last axis."""
    powers = np.ones((*rho.shape, latents.ORDER))
    powers[..., 1:] = rho[..., None]
    return np.asarray(np.multiply.accumulate(powers, axis=-1))


def scores(values: Array, expected: Array) -> Array:
    """Return h(z) so that f(h(z) + s·ε) has the expectation given, with s² = 1 − E[h²], at the nodes of z.

    So f keeps its own values, 0 and 1 for a relu's slope, where its expectation lies between them.

    Args:
        values: f at the nodes of its own latent, not falling.
        expected: E[f | z] at the nodes of z.
    """
    (own, wanted), at = latents.distinct(values, expected)
    found = []
    for f, m in zip(own, wanted, strict=True):
        square = 0.5
        for steps in (8, 8, 8, 32):
            h = _score(f, m, square**0.5, steps)
            square = min(max(square / (square + float(latents.mean(h * h))), 0.02), 1.0)
        found.append(h)
    return np.stack(found)[at]


def _score(f: Array, expected: Array, spread: float, steps: int) -> Array:
    """Return h with E[f(h + spread·ε)] as expected, by interpolation over a grid of h, so many steps to 1.

    The expectation over ε is a convolution on the grid.
    """
    reach = int(np.ceil(6.0 * spread * steps))
    grid = np.arange(-8 * steps, 8 * steps + 1) / steps
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (spread * steps)) ** 2)
    wide = np.arange(-8 * steps - reach, 8 * steps + reach + 1) / steps
    there = np.interp(wide, latents.NODES, f)  # beyond the nodes as at the last of them
    reached = np.maximum.accumulate(np.convolve(there, kernel / kernel.sum(), mode="valid"))
    edge = EDGE * np.ptp(f)
    inside = np.flatnonzero((reached > reached[0] + edge) & (reached < reached[-1] - edge))
    if not inside.size:
        return np.zeros_like(expected)
    return np.interp(expected, reached[inside], grid[inside])
