"""Matrix products of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from isometry.moments import algebra as alg
from isometry.moments import apart, fan, lengths, patches, repeats, slopes
from isometry.moments import regrouping as reg
from isometry.moments.contract import contract, shares_latents
from isometry.moments.marks import mark_of, marked
from isometry.moments.record import Fan, Moments
from isometry.moments.rules.base import Context, NoRule, rule


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
