"""Operations whose moments no formula tells: run on draws of their inputs, whose results are averaged.

What a result has in common with its inputs is not kept: the operations of its gradient take it as
independent of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments.axes import Array
from isometry.moments.concrete import Concrete, forms_of, means_of, moments_of, pair_means
from isometry.moments.drawing import draw
from isometry.moments.mask_rows import doubling
from isometry.moments.record import Dims, Moments
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.index import positions
from isometry.moments.rules.pointwise import times

ENTRIES = 1 << 18  # of all draws together
FEWEST, MOST = 4, 64  # draws
LARGEST = 1 << 22  # entries of one


def sampled(ctx: Context, fn: Callable[..., Tensor], inputs: Sequence[Moments], dims: Dims) -> Moments:
    """Return the moments of fn of independent inputs, averaged over draws of them.

    Args:
        ctx: The call, to note that it was sampled.
        fn: A function of tensors.
        inputs: Their records.
        dims: The axes and blocks of the result.

    Raises:
        NoRule: The result is too large to draw, or a draw is no number.
    """
    axes = tuple(a for dim in dims for a in dim)
    sizes = [ax.size(a) for a in axes]
    count = max(int(np.prod(sizes)), *(int(np.prod(m.shape)) for m in inputs))
    if count > LARGEST:
        raise NoRule("a tensor too large to draw")
    if not any(m.variance.any() for m in inputs):
        return moments_of(fn(*[draw(m, seed=1) for m in inputs]), dims)
    ctx.note("results that no formula tells are averaged over draws of their inputs")
    made = []
    for k in range(min(max(ENTRIES // max(count, 1), FEWEST), MOST)):
        given = [draw(m, seed=1 + k + MOST * place) for place, m in enumerate(inputs)]
        made.append(fn(*given).to(torch.float64).numpy().reshape(sizes))
    if not all(np.isfinite(values).all() for values in made):
        raise NoRule("draws of it are not finite")
    table = np.mean([pair_means(values, axes) for values in made], axis=0)
    mean = np.mean([means_of(values, axes) for values in made], axis=0)
    forms: Array = forms_of(np.stack(made, axis=-1), (*axes, (len(made),)))[..., 0, :]
    return alg.with_marginal(dims, table, mean, forms)


def _grown(m: Moments, dim: int) -> Dims:
    """Return the dims of a running result: one block per axis, but those that double along `dim`."""
    return tuple(() if n == 1 else (doubling(n),) if d == dim else ((n,),) for d, n in enumerate(m.shape))


@rule("cumprod", "logcumsumexp", accuracy="approximate")
def running(ctx: Context, m: Moments, dim: int, **_: Any) -> Moments:
    """Running products, and logarithms of running sums of exponentials, along a dim; sampled."""
    if not m.dims:
        return m
    fn = getattr(torch, ctx.op)
    return sampled(ctx, lambda x: fn(x, dim), [m], _grown(m, dim % len(m.dims)))


@rule("cummax", "cummin", accuracy="approximate")
def running_extreme(ctx: Context, m: Moments, dim: int) -> tuple[Moments, Concrete]:
    """Running extremes along a dim, sampled; their places are one typical draw."""
    fn = getattr(torch, ctx.op)
    made = sampled(ctx, lambda x: fn(x, dim)[0], [m], _grown(m, dim % max(len(m.dims), 1)))
    ctx.note("places that depend on data (routing, sorting) are one typical draw")
    return made, Concrete(fn(draw(m, seed=1), dim)[1])


# --- alignments -------------------------------------------------------------------------------------------


@rule("_ctc_loss", accuracy="approximate", raw=(1, 2, 3))
def ctc_loss(
    ctx: Context,
    scores: Moments,
    targets: Any,
    lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Moments, Concrete]:
    """Negative log likelihood of known targets over all alignments; sampled.

    The table of alignments is left empty: the gradient makes its own.
    """
    known = [_values(ctx, x) for x in (targets, lengths, target_lengths)]

    def loss(drawn: Tensor) -> Tensor:
        return _aligned(drawn.log_softmax(-1), known, blank, zero_infinity)[0]

    made = sampled(ctx, loss, [scores], alg.plain_dims(ctx.shape))
    return made, Concrete(torch.zeros(()).expand(ctx.shapes[1]))


@rule("_ctc_loss_backward", accuracy="approximate", raw=(2, 3, 4, 5, 6))
def ctc_loss_backward(
    ctx: Context,
    g: Moments,
    scores: Moments,
    targets: Any,
    lengths: Any,
    target_lengths: Any,
    loss: Any,
    alpha: Any,
    blank: int,
    zero_infinity: bool = False,
) -> Moments:
    """Gradient of `ctc_loss`: probabilities less those given the target; sampled."""
    known = [_values(ctx, x) for x in (targets, lengths, target_lengths)]

    def slope(drawn: Tensor) -> Tensor:
        drawn = drawn.log_softmax(-1)
        found, table = _aligned(drawn, known, blank, zero_infinity)
        one = torch.ones_like(found)
        back = torch.ops.aten._ctc_loss_backward
        return torch.as_tensor(back(one, drawn, *known, found, table, blank, zero_infinity))

    made = sampled(ctx, slope, [scores], alg.plain_dims(ctx.shape))
    return times(made, replace(g, dims=(*g.dims, ())))


def _values(ctx: Context, x: Any) -> Any:
    return x if isinstance(x, list | tuple) else positions(ctx, x)


def _aligned(scores: Tensor, known: Sequence[Any], blank: int, zero_infinity: bool) -> tuple[Tensor, Tensor]:
    loss, table = torch.ops.aten._ctc_loss(scores, *known, blank, zero_infinity)
    return loss, table
