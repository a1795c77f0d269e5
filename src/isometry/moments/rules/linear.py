"""Matrix products of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from isometry.moments import algebra as alg
from isometry.moments import regrouping as reg
from isometry.moments import slopes
from isometry.moments.contract import contract, shares_latents
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule


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


@rule("_trilinear", accuracy="asymptotic")
def trilinear(
    ctx: Context,
    a: Moments,
    b: Moments,
    c: Moments,
    repeat_a: Sequence[int],
    repeat_b: Sequence[int],
    repeat_c: Sequence[int],
    summed: Sequence[int],
    unroll: int = 1,
) -> Moments:
    """Sum of a·b·c over some dims, each tensor repeated along dims that it lacks, as nn.Bilinear; as `mm`."""
    letters = ascii_lowercase[: len(a.dims) + len(repeat_a)]
    at_a, at_b, at_c = (
        "".join(x for d, x in enumerate(letters) if d not in gone) for gone in (repeat_a, repeat_b, repeat_c)
    )
    gone = {letters[d] for d in summed}
    if any(sum(x in at for at in (at_a, at_b, at_c)) < 2 for x in gone):
        raise NoRule("a sum over a dim that one of three tensors has alone")
    between = "".join(x for x in letters if x in at_a + at_b and not (x in gone and x not in at_c))
    out = "".join(x for x in letters if x not in gone)
    both = contracted(ctx, f"{at_a},{at_b}->{between}", a, b)
    return contracted(ctx, f"{between},{at_c}->{out}", both, c)
