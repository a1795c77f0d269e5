"""Matrix products of every kind."""

from __future__ import annotations

from dataclasses import replace

from isometry.moments import algebra as alg
from isometry.moments import regrouping as reg
from isometry.moments import slopes
from isometry.moments.contract import contract, shares_latents
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, rule


def contracted(ctx: Context, spec: str, a: Moments, b: Moments) -> Moments:
    """Return the contraction of two tensors, noting where they are dependent and taken as independent."""
    if shares_latents(a, b):
        ctx.note(f"{ctx.op} takes two tensors that depend on one another as independent")
    return contract(spec, a, b)


@rule("mm", accuracy="asymptotic")
def mm(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Matrix product. Assumes independent inputs; second moments exact, normal in the wide limit."""
    return contracted(ctx, "mk,kn->mn", a, b)


@rule("bmm", accuracy="asymptotic")
def bmm(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Batched matrix product; as `mm`."""
    return contracted(ctx, "bmk,bkn->bmn", a, b)


@rule("mv", accuracy="asymptotic")
def mv(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Matrix times vector; as `mm`."""
    return contracted(ctx, "mk,k->m", a, b)


@rule("dot", "vdot", accuracy="asymptotic")
def dot(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Inner product; as `mm`."""
    return contracted(ctx, "k,k->", a, b)


def plus(a: Moments, b: Moments) -> Moments:
    """Return a + b with broadcasting."""
    return slopes.merged(alg.add(*reg.aligned(a, b)))


def with_shape(m: Moments, shape: tuple[int, ...]) -> Moments:
    """Return the record broadcast to a shape."""
    m = replace(m, dims=((),) * (len(shape) - len(m.dims)) + m.dims)
    return reg.broadcast(
        m, tuple(own or plain for own, plain in zip(m.dims, alg.plain_dims(shape), strict=True))
    )


@rule("addmm", accuracy="asymptotic")
def addmm(
    ctx: Context, bias: Moments, a: Moments, b: Moments, *, beta: float = 1, alpha: float = 1
) -> Moments:
    """Matrix product plus bias; as `mm`."""
    return plus(alg.scale(contracted(ctx, "mk,kn->mn", a, b), alpha), alg.scale(bias, beta))
