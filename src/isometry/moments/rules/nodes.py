"""Any function of one or two variables, run on the values at their nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isometry.moments import algebra as alg
from isometry.moments import latents, lineage, surfaces
from isometry.moments import regrouping as reg
from isometry.moments.record import Moments, Term
from isometry.moments.rules.base import NoRule
from isometry.moments.terms import changed


def on_nodes(
    func: Callable[..., Any],
    args: list[Any],
    kwargs: dict[str, Any],
    *,
    gradient_first: bool = False,
) -> Moments:
    """Run func on the node values of the one latent that its tensor arguments depend on."""
    at = [k for k, x in enumerate(args) if isinstance(x, Moments)]
    tensors = _all_aligned([alg.collapse(args[k]) for k in at])
    keys = {f.key for m in tensors for t in m.terms for f in t.factors}
    if len(keys) > 2:
        raise NoRule("a nonlinear function of more than two independent tensors")
    if len(keys) == 2:
        return _of_two(func, args, dict(zip(at, tensors, strict=True)), kwargs, gradient_first)
    nodes: list[Any] = list(args)
    for k, m in zip(at, tensors, strict=True):
        factor = alg.absorbed(m.terms[0], m.axes)
        values = m.terms[0].coef[..., None] if factor is None else factor.values
        nodes[k] = torch.from_numpy(
            np.array(np.broadcast_to(values, np.broadcast_shapes(values.shape, (len(latents.NODES),))))
        )
    reference = tensors[0]
    if gradient_first:
        shape = np.broadcast_shapes(*[tuple(nodes[k].shape) for k in at])
        nodes[0] = torch.ones(shape, dtype=torch.float64)
    nodes = [n.expand(_common(nodes, at)) if k in at else n for k, n in enumerate(nodes)]
    result = latents.defined(func(*nodes, **kwargs).to(torch.float64).numpy())
    factor = next((alg.absorbed(m.terms[0], m.axes) for m in tensors if m.terms[0].factors), None)
    if factor is None:
        return alg.assemble(reference.dims, (Term(result[..., 0]),))
    ones = np.ones([1] * len(reference.axes))
    return alg.assemble(reference.dims, (Term(ones, (changed(factor, result, reference.axes),)),))


def _of_two(
    func: Callable[..., Any], args: list[Any], tensors: dict[int, Moments], kwargs: dict[str, Any], seed: bool
) -> Moments:
    """Run func on the product of the nodes of two variables.

    Exact at one entry; see `surfaces.surface_moments`.
    """
    reference = next(iter(tensors.values()))
    axes = reference.axes
    factors = {k: alg.absorbed(m.terms[0], axes) for k, m in tensors.items()}
    several = {f.key: f for f in factors.values() if f is not None}
    if any(m.terms[0].factors and factors[k] is None for k, m in tensors.items()):
        raise NoRule("a nonlinear function of products")
    one, two = several.values()
    linked = lineage.link(one, two, axes)
    apart = linked is None
    f, g, phi = linked or (replace(one, parts=(), form=None), two, np.zeros_like(latents.NODES))
    if apart:
        phi = phi.reshape([1] * len(axes) + [-1])
    own = [tensors[k].terms[0].coef[..., None] if x is None else x.values for k, x in factors.items()]
    (form, part, *rows), at = latents.distinct(surfaces.form_of(f), phi, *own)
    nodes: list[Any] = list(args)
    for (k, factor), values in zip(factors.items(), rows, strict=True):
        if factor is None or factor.key == g.key:
            laid = values[:, :, None]
        else:
            laid = surfaces.surface(values, form, part)
        nodes[k] = torch.from_numpy(np.array(laid))
    if seed:
        nodes[0] = torch.ones((), dtype=torch.float64)
    made = func(*nodes, **kwargs).to(torch.float64).numpy()
    made = np.array(np.broadcast_to(made, (len(form), len(latents.NODES), len(latents.FEW_NODES))))
    given = None
    if apart:  # a function of ε, which is then f's latent
        known = np.einsum("rze,z->re", made, latents.WEIGHTS)
        given = np.stack([np.interp(latents.NODES, latents.FEW_NODES, row) for row in known])[at]
    factor = alg.from_surface(f, g, phi, made, at, given, axes)
    return alg.assemble(reference.dims, (Term(np.ones([1] * len(axes)), (factor,)),))


def _common(nodes: list[Any], at: list[int]) -> tuple[int, ...]:
    return np.broadcast_shapes(*[tuple(nodes[k].shape) for k in at])


def _all_aligned(tensors: list[Moments]) -> list[Moments]:
    for _ in range(2 if len(tensors) > 2 else 1):
        for k in range(1, len(tensors)):
            tensors[k - 1], tensors[k] = reg.aligned(tensors[k - 1], tensors[k])
    return tensors
