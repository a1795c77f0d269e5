"""Matrix products of every kind."""

from __future__ import annotations

from dataclasses import replace

from isometry.moments import algebra as alg
from isometry.moments import apart, fan, lengths, patches, repeats, slopes
from isometry.moments import regrouping as reg
from isometry.moments.contract import contract, shares_latents
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Fan, Moments
from isometry.moments.rules.base import Context, rule


def contracted(ctx: Context, spec: str, a: Moments, b: Moments) -> Moments:
    """Return the contraction of two tensors, noting where they are dependent and taken as independent."""
    if shares_latents(a, b):
        ctx.note(f"{ctx.op} takes two tensors that depend on one another as independent")
    return contract(spec, a, b)


@rule("mm", accuracy="asymptotic")
def mm(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Matrix product. Assumes independent inputs; second moments exact, normal in the wide limit."""
    return _product(ctx, a, b)


def _product(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Return a·b, with how the sizes of its columns scatter that have weights of their own; see `fan`.

    A gradient that was divided by those sizes gives less to x, and to the weights nothing along them. Rows
    that are equal stay equal, and pairs of them are summed as such; see `repeats`. Products of rows x with
    gradients that were divided by their lengths lose what those gained.
    """
    made = contracted(ctx, "mk,kn->mn", a, b)
    if fan.divided(a, 1) is not None:
        return alg.scale(made, fan.kept(a) ** 0.5)
    if (mark := fan.divided(a, 0)) is not None:
        return alg.scale(made, (1.0 - mark.share / b.shape[1]) ** 0.5)
    made = alg.scale(repeats.through(made, a, b), lengths.given_back(a, b) ** 0.5)
    made = apart.through(made, a, b)
    rows, weights = replace(a, dims=(a.dims[0], (), a.dims[1])), replace(b, dims=((), b.dims[1], b.dims[0]))
    return marked(made, patches.fan_of(rows, weights, ()))


@rule("bmm", accuracy="asymptotic")
def bmm(ctx: Context, a: Moments, b: Moments) -> Moments:
    """Batched matrix product; as `mm`. Scores' gradients know of the queries and keys that they meet."""
    made = contracted(ctx, "bmk,bkn->bmn", a, b)
    made = apart.of_products(made, a, b)
    gained = repeats.leaning(a, 2, b.shape[2]) * repeats.leaning(b, 1, a.shape[1])
    return made if gained == 1.0 else alg.scale(made, gained**0.5)


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
    made = alg.scale(_product(ctx, a, b), alpha)
    known = mark_of(made, Fan)
    made = plus(made, alg.scale(bias, beta))
    return marked(made, known) if len(bias.dims) == 1 and len(made.terms) == 1 else made
