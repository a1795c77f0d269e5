"""Pointwise operations, executed on node values: no table of activations, any function works.

Sums and products have rules of their own. Every other operation that PyTorch tags as pointwise is run, in
float64, on the quadrature nodes of the one latent that its inputs depend on; operations named `*_backward`
are linear in the gradient, their first argument, and are run with a gradient of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from isometry.moments import algebra as alg
from isometry.moments import between, latents, symbolic
from isometry.moments import regrouping as reg
from isometry.moments.axes import Array
from isometry.moments.concrete import Concrete, moments_of
from isometry.moments.drawing import draw
from isometry.moments.record import Keys, Moments, Term
from isometry.moments.rules.base import Context, NoRule, Shifted, rule
from isometry.moments.rules.linear import contracted, plus
from isometry.moments.rules.nodes import on_nodes
from isometry.moments.symbolic import Known, Lazy, entries, is_float, shape_of
from isometry.moments.terms import changed

# Operations that act entry by entry and that PyTorch does not tag so.
UNTAGGED = frozenset(
    [
        "hardswish",
        "hardswish_backward",
        "hardsigmoid",
        "hardsigmoid_backward",
        "hardtanh",
        "hardtanh_backward",
        "elu",
        "elu_backward",
        "celu",
        "selu",
        "mish",
        "mish_backward",
        "softplus",
        "softplus_backward",
        "softshrink",
        "softshrink_backward",
        "hardshrink",
        "hardshrink_backward",
        "leaky_relu",
        "leaky_relu_backward",
        "relu6",
        "threshold",
        "threshold_backward",
        "log_sigmoid_backward",
        "gelu",
        "gelu_backward",
        "silu",
        "silu_backward",
        "tanh_backward",
        "sigmoid_backward",
        "logit_backward",
    ]
)


def is_pointwise(func: Any, name: str) -> bool:
    """Return whether an operation acts entry by entry."""
    return torch.Tag.pointwise in func.tags or name.rstrip("_") in UNTAGGED


_OF_SIZE = frozenset(["abs", "clone", "conj", "div", "mul", "neg", "sgn"])  # sizes of complex entries tell
_TRUTHS = frozenset(["eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite"])
GRID = 64  # entries per dim at which two masks are compared
MASKED = -1e3  # added numbers from here down hide an entry: nothing random beside them counts

_DRAWN: WeakKeyDictionary[Moments, Concrete] = WeakKeyDictionary()  # masks that depend on data

Operand = Moments | Known | Shifted | float | int


def as_moments(x: Any, beside: Any = None) -> Moments:
    """Return an operand as a record; known values on the axes and blocks of the record that they meet."""
    if isinstance(x, Moments):
        return x
    if isinstance(x, Concrete | Lazy):
        other = beside.random if isinstance(beside, Shifted) else beside
        return x.beside(other.dims) if isinstance(other, Moments) else x.moments
    if isinstance(x, Shifted):
        known = not isinstance(x.shift, Concrete) or bool(x.shift.tensor.isfinite().all())
        shift = x.shift.beside(x.random.dims) if known else None
        if shift is None or not np.isfinite(shift.table).all():
            raise NoRule("a masked tensor (with infinite entries) is used by no softmax and no maximum")
        return plus(x.random, shift)
    return moments_of(torch.tensor(x)) if isinstance(x, complex) else alg.constant((), float(x))


def check_complex(name: str, given: Iterable[Tensor]) -> None:
    """Refuse functions of complex numbers, of which records tell the sizes alone.

    Args:
        name: The operation's.
        given: Its tensors.

    Raises:
        NoRule: One is complex, and its size does not tell that of the result.
    """
    if name.rstrip("_") not in _OF_SIZE and any(t.is_complex() for t in given):
        raise NoRule("of complex entries nothing but their size is known")


def _is_known(x: Operand) -> TypeGuard[Known]:
    return isinstance(x, Concrete | Lazy) and prod(shape_of(x)) > 1 and is_float(x)


@rule("add", accuracy="exact", raw=(0, 1))
def add(ctx: Context, a: Operand, b: Operand, *, alpha: float = 1) -> Moments | Shifted:
    """Sum. Exact; a known tensor that varies is kept beside the random one, for a softmax to use."""
    if alpha == 1 and isinstance(a, Moments | Shifted) and _is_known(b):
        return shifted(a, b)
    if alpha == 1 and isinstance(b, Moments | Shifted) and _is_known(a):
        return shifted(b, a)
    for x, y in ((a, b), (b, a)):
        if alpha == 1 and isinstance(x, Shifted) and isinstance(y, Moments | Shifted):
            both = plus(x.random, y.random if isinstance(y, Shifted) else y)
            return (
                shifted(shifted(both, x.shift), y.shift) if isinstance(y, Shifted) else shifted(both, x.shift)
            )
    return plus(as_moments(a, b), alg.scale(as_moments(b, a), alpha))


def shifted(x: Moments | Shifted, shift: Known) -> Moments | Shifted:
    """Return x plus a known tensor, kept apart where it varies."""
    if isinstance(x, Shifted):
        return shifted(x.random, symbolic.pointwise(torch.add, x.shift, shift))
    if isinstance(shift, Concrete) and shift.tensor.min() == shift.tensor.max():
        return plus(x, alg.constant(shift.tensor.shape, float(shift.tensor.min())))
    return Shifted(x, shift)


@rule("baddbmm", accuracy="asymptotic", raw=(0,))
def baddbmm(
    ctx: Context, bias: Operand, a: Moments, b: Moments, *, beta: float = 1, alpha: float = 1
) -> Moments | Shifted:
    """Batched matrix product plus bias, as `bmm`; a known bias (ALiBi) is kept beside it, for a softmax."""
    product = alg.scale(contracted(ctx, "bmk,bkn->bmn", a, b), alpha)
    if beta == 0:
        return product
    if _is_known(bias):
        return shifted(product, symbolic.pointwise(torch.mul, bias, beta))
    return plus(product, alg.scale(as_moments(bias, product), beta))


@rule("sub", accuracy="exact", raw=(0, 1))
def sub(ctx: Context, a: Any, b: Any, *, alpha: float = 1) -> Moments | Shifted:
    """Difference. Exact; a known part beside the first is kept there."""
    if isinstance(a, Shifted) and not isinstance(b, Shifted) and not _is_known(b):
        return Shifted(plus(a.random, alg.scale(as_moments(b, a), -alpha)), a.shift)
    a, b = as_moments(a, b), as_moments(b, a)
    made = plus(a, alg.scale(b, -alpha))
    return between.of_running_sums(made, *reg.aligned(a, b)) if alpha == 1 else made


@rule("rsub", accuracy="exact")
def rsub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Moments:
    """Reversed difference. Exact."""
    return plus(as_moments(b), alg.scale(as_moments(a), -alpha))


@rule("neg", accuracy="exact")
def neg(ctx: Context, a: Moments) -> Moments:
    """Sign change. Exact."""
    return alg.scale(a, -1.0)


@rule("mul", accuracy="exact", raw=(0, 1))
def mul(ctx: Context, a: Any, b: Any) -> Moments | Shifted:
    """Product: node by node where both depend on one latent, else of independents."""
    if isinstance(a, Shifted) and number_of(b) is not None:
        by = number_of(b) or 0.0
        return Shifted(alg.scale(a.random, by), symbolic.pointwise(torch.mul, a.shift, by))
    return times(as_moments(a, b), as_moments(b, a))


def number_of(x: Any) -> float | None:
    """Return the number that an operand is, or that all its entries are; None for any other."""
    if isinstance(x, int | float):
        return float(x)
    alike = (
        isinstance(x, Concrete)
        and x.tensor.numel()
        and all(n == 1 or step == 0 for n, step in zip(x.tensor.shape, x.tensor.stride(), strict=True))
    )
    return float(x.tensor.flatten()[0]) if alike else None


def times(a: Moments, b: Moments) -> Moments:
    """Return a · b with broadcasting."""
    for x, y in ((a, b), (b, a)):
        if len(y.terms) == 1 and not y.terms[0].factors and y.mean.size == 1 and not any(y.dims):
            scaled = alg.scale(x, float(y.mean.reshape(())))
            return replace(scaled, dims=((),) * (len(y.dims) - len(x.dims)) + scaled.dims)
    return alg.multiply(*reg.aligned(alg.as_known(a, b), alg.as_known(b, a)))


@rule("div", accuracy="exact", raw=(0, 1))
def div(ctx: Context, a: Any, b: Any, *, rounding_mode: str | None = None) -> Moments | Shifted:
    """Quotient: the product with the reciprocal's node values.

    Blocks of zeros, such as what was padded, have the reciprocal 0: whoever divides by their size masks it.
    """
    if rounding_mode is not None:
        raise NoRule("a division that rounds")
    if isinstance(a, Shifted) and number_of(b):
        by = 1.0 / (number_of(b) or 1.0)
        return Shifted(alg.scale(a.random, by), symbolic.pointwise(torch.mul, a.shift, by))
    return times(as_moments(a, b), powered(as_moments(b, a), -1.0))


def powered(m: Moments, exponent: float) -> Moments:
    """Return m ** exponent; a single product of factors is raised factor by factor."""

    def raised(values: Array) -> Array:
        if float(exponent).is_integer() and exponent < 0:
            zero = np.broadcast_to(~values.any(axis=-1, keepdims=True), values.shape)
            power = np.where(zero, np.inf, values) ** int(-exponent)
            return np.asarray(1.0 / power)
        if float(exponent).is_integer():
            return np.asarray(values ** int(exponent))
        return latents.defined(np.asarray(values**exponent))

    if len(m.terms) == 1 and len(m.terms[0].factors) > 1 and float(exponent).is_integer():
        term = m.terms[0]
        factors = tuple(changed(f, raised(f.values), m.axes) for f in term.factors)
        return alg.assemble(m.dims, (Term(raised(term.coef[..., None])[..., 0], factors),))
    return alg.apply(m, raised)


@rule("pow", accuracy="exact")
def pow_(ctx: Context, a: Any, b: Any) -> Moments:
    """Power. Exact for a constant exponent."""
    if isinstance(b, int | float):
        return powered(as_moments(a), float(b))
    return on_nodes(torch.ops.aten.pow.Tensor_Tensor, [a, b], {})


@rule("where", accuracy="exact", raw=(0, 1, 2))
def where(ctx: Context, condition: Any, a: Any, b: Any) -> Moments | Shifted:
    """Choice: condition · a + (1 − condition) · b.

    A known condition with a huge negative number becomes a shift.
    """
    if isinstance(condition, Concrete | Lazy):
        for kept, x, fill in ((True, a, b), (False, b, a)):
            number = number_of(fill)
            if isinstance(x, Moments | Shifted) and number is not None and number <= MASKED:
                return shifted(x, _penalty(condition, kept, number))
        if all(isinstance(x, Moments) and zero_where(x, condition) for x in (a, b)):
            return b if isinstance(b, Moments) else as_moments(b)
    return _choice(condition, a, b)


def _penalty(mask: Known, kept: bool, number: float) -> Known:
    """Return 0 where the mask equals `kept`, and else a number."""
    return symbolic.pointwise(lambda m: torch.where(m.bool() == kept, 0.0, number), mask)


def _choice(condition: Any, a: Any, b: Any) -> Moments:
    """Return condition · a + (1 − condition) · b, the condition cut like what it meets."""
    guide = next((x for x in (condition, a, b) if isinstance(x, Moments | Shifted)), None)
    chosen = as_moments(condition, guide)
    rest = plus(alg.constant((), 1.0), alg.scale(chosen, -1.0))
    return plus(times(chosen, as_moments(a, guide)), times(rest, as_moments(b, guide)))


@rule("masked_fill", accuracy="exact", raw=(0, 1))
def masked_fill(ctx: Context, x: Any, mask: Any, value: Any) -> Moments | Shifted:
    """Choice between a tensor and a number; see `where`."""
    number = float(value.mean.reshape(-1)[0]) if isinstance(value, Moments) else float(value)
    if isinstance(mask, Moments) and number <= MASKED:
        ctx.note("masks that depend on data are one typical draw")
        _DRAWN[mask] = Concrete(draw(mask, seed=1) > 0.5)
    mask = _DRAWN.get(mask, mask) if isinstance(mask, Moments) else mask
    if isinstance(mask, Concrete | Lazy) and isinstance(x, Moments | Shifted) and number <= MASKED:
        return shifted(x, _penalty(mask, False, number))
    if number == 0 and isinstance(x, Moments) and isinstance(mask, Concrete | Lazy) and zero_where(x, mask):
        return x
    return _choice(mask, number, x)


def zero_where(x: Moments, mask: Known) -> bool:
    """Return whether a softmax's mask made x vanish wherever `mask` is true (looked up on a grid).

    The gradient of masked scores.
    """
    parts = (p for t in x.terms for f in t.factors for p in f.parts)
    shift = next((p.latent.mask for p in parts if isinstance(p.latent, Keys)), None)
    if not isinstance(shift, Concrete | Lazy):
        return False
    if prod(shape_of(shift)) == prod(shape_of(mask)) and isinstance(shift, Concrete):
        shift = Concrete(shift.tensor.reshape(shape_of(mask)))
    try:
        shape = np.broadcast_shapes(shape_of(shift), shape_of(mask))
    except ValueError:  # the weights have been regrouped since
        return False
    grid = tuple(torch.linspace(0, n - 1, min(n, GRID)).round().long() for n in shape)
    masked, gone = entries(mask, grid).bool(), entries(shift, grid) <= MASKED
    return bool((gone | ~masked).all())


@rule("log_sigmoid_forward", accuracy="exact")
def log_sigmoid_forward(ctx: Context, x: Moments) -> tuple[Moments, Moments]:
    """Logarithm of σ(x), and e^−|x| for its gradient."""
    return alg.apply(x, lambda v: -np.logaddexp(0.0, -v)), alg.apply(x, lambda v: np.exp(-np.abs(v)))


# --- every other pointwise operation ------------------------------------------------------------------------


def pointwise(
    ctx: Context, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Moments | Shifted | Known:
    """Run an operation tagged pointwise on node values. Exact for functions of one latent."""
    if ctx.op.startswith("bitwise_"):  # of random truths, which nodes hold as 0 and 1
        func = getattr(torch, ctx.op.replace("bitwise", "logical"), func)
    guide = next((x for x in args if isinstance(x, Moments | Shifted)), None)
    args = tuple(as_moments(x, guide) if isinstance(x, Concrete | Lazy) else x for x in args)
    if any(isinstance(x, Shifted) for x in args):
        return _of_masked(ctx, func, args, kwargs)
    if ctx.op.endswith("_backward"):
        rest = [1.0, *args[1:]]
        gradient = as_moments(args[0])
        return times(gradient, on_nodes(func, rest, kwargs, gradient_first=True))
    made = on_nodes(func, list(args), kwargs)
    return _known_truth(made, ctx.shape) if ctx.op in _TRUTHS else made


def _known_truth(m: Moments, shape: tuple[int, ...]) -> Moments | Concrete:
    """Return a comparison that comes out alike everywhere as known, as `x == 0` of normal entries."""
    if m.variance.any() or float(np.ptp(m.mean)) > 0.0:
        return m
    return Concrete(torch.tensor(bool(m.mean.flat[0])).expand(shape))


def _of_masked(
    ctx: Context, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Moments | Shifted | Known:
    """Run an operation on a tensor with a known part beside it, f(s + w).

    Where w is a huge negative number, f(w): beside it s is lost, and nobody looks at s in blocks of nothing
    else. If f(w) is a huge negative number again, it stays beside the random part. What does not depend on s,
    as comparisons with such a number, is known.
    """
    at = next(k for k, x in enumerate(args) if isinstance(x, Shifted))
    x = args[at]
    rest = [_as_number(y) if k != at else y for k, y in enumerate(args)]
    if any(isinstance(y, Moments | Shifted) for k, y in enumerate(rest) if k != at):
        return pointwise(
            ctx, func, tuple(as_moments(y) if isinstance(y, Shifted) else y for y in args), kwargs
        )

    def run(values: Any) -> Any:
        return func(*rest[:at], values, *rest[at + 1 :], **kwargs)

    hidden = _hidden(x.shift)
    told = run(hidden)
    if not told.isfinite().all():
        raise NoRule("a masked tensor, where its mask makes no finite number")
    seen = symbolic.pointwise(lambda w: torch.where(w <= MASKED, 0.0, w), x.shift)
    shown = _without_hidden(x)
    made = on_nodes(func, [*args[:at], as_moments(shifted(shown, seen)), *args[at + 1 :]], kwargs)
    alike = not made.variance.any() and float(np.ptp(made.mean)) == 0.0
    beside = torch.tensor(float(made.mean.flat[0]) if alike else 0.0).to(told.dtype)
    filled = symbolic.pointwise(lambda w: torch.where(w <= MASKED, run(w), beside), x.shift)
    if alike:
        return symbolic.expanded(filled, ctx.shape)
    if hidden.numel() and told.max() <= MASKED:
        return shifted(made, filled)
    return _choice(symbolic.pointwise(lambda w: w > MASKED, x.shift), made, filled)


def _without_hidden(x: Shifted) -> Moments:
    """Return the random part with zeros in blocks that the mask hides whole."""
    seen = symbolic.pointwise(lambda w: (w > MASKED).double(), x.shift).beside(x.random.dims)
    if (seen.mean > 0).all():
        return x.random
    seen, random = reg.aligned(seen, x.random)
    return alg.scale(random, (seen.mean > 0).astype(np.float64))


def _as_number(x: Any) -> Any:
    """Return a record that is one number as a tensor, anything else as it is."""
    if isinstance(x, Moments) and x.mean.size == 1 and not x.terms[0].factors:
        return torch.tensor(float(x.mean.reshape(())), dtype=torch.float64)
    return x


def _hidden(shift: Known) -> torch.Tensor:
    """Return the huge negative numbers of a mask (looked up on a grid)."""
    grid = tuple(torch.linspace(0, n - 1, min(n, GRID)).round().long() for n in shape_of(shift))
    values = entries(shift, grid)
    found: torch.Tensor = torch.unique(values[values <= MASKED])
    return found
