"""Functions of other people, evaluated safely as pointwise maps in float64.

`frozen` turns a module into functions without touching it; `require_pointwise` refuses whatever mixes
elements, changes shape or is random; `values` and `values_and_slopes` evaluate, with errors that name
the function and the input.

Shapes: inputs are (n,) float64 tensors on the CPU, outputs the same.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError, IsometryError

Pointwise = Callable[[Tensor], Tensor]
Mixture = tuple[tuple[float, Pointwise], ...]
"""Functions with probabilities that sum to 1: what a random or channel-wise map is to one element."""

_MAX_COMBINATIONS = 64
# SELU's limit for x → −∞, −scale·alpha: the value to which alpha dropout sets an element.
_ALPHA_DROPPED = -1.7580993408473766


def label(function: object) -> str:
    """How messages and tables call a function, module or class."""
    if isinstance(function, functools.partial):
        arguments = [repr(a) for a in function.args] + [f"{k}={v!r}" for k, v in function.keywords.items()]
        return f"{label(function.func)}({', '.join(arguments)})"
    if isinstance(function, nn.Module):
        text = repr(function)
        return text if "\n" not in text and len(text) <= 60 else type(function).__name__
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _call(function: Pointwise, x: Tensor, name: str) -> Tensor:
    try:
        # A copy: the function may work in place.
        out = function(x.clone())
    except IsometryError:
        raise
    except Exception as error:
        raise InvalidValueError(
            f"{name} has no gain: it raised {type(error).__name__} on a float64 CPU tensor of shape "
            f"{tuple(x.shape)}: {error}. A gain is defined for pointwise maps of a tensor of any shape"
        ) from error
    if not isinstance(out, Tensor):
        raise InvalidValueError(f"{name} has no gain: expected a tensor back, got {type(out).__name__}")
    if not out.is_floating_point():
        raise InvalidValueError(
            f"{name} has no gain: expected a real floating-point tensor back, got {out.dtype}"
        )
    if out.shape != x.shape:
        hint = ""
        if out.ndim == x.ndim and out.numel() * 2 == x.numel():
            hint = "; for a unit that splits its input, such as φ(a)·b, pass φ with gated=True"
        raise InvalidValueError(
            f"{name} has no gain: it is no pointwise map, it turns shape {tuple(x.shape)} into "
            f"{tuple(out.shape)}{hint}"
        )
    return out.to(device="cpu", dtype=torch.float64)


def _require_finite(out: Tensor, x: Tensor, name: str, what: str) -> None:
    finite = torch.isfinite(out)
    if not bool(finite.all()):
        # The offending input nearest to zero is the most ordinary one.
        broken = x.detach()[~finite]
        worst = int(broken.abs().argmin())
        got, at = float(out.detach()[~finite][worst]), float(broken[worst])
        raise InvalidValueError(f"{name} has no gain: {what} is {got} at x = {at:.6g}")


def values(function: Pointwise, x: Tensor, name: str) -> Tensor:
    """φ(x), detached, float64, checked to be finite and of the shape of x.

    Raises:
        InvalidValueError: φ fails, returns no real tensor of that shape, or a value is nan or infinite.
    """
    with torch.inference_mode(False), torch.no_grad():
        out = _call(function, x, name)
        _require_finite(out, x, name, "its value")
        return out


def values_and_slopes(function: Pointwise, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """φ(x) and φ′(x) as autograd has it, both detached, checked as in `values`.

    A constant piece, which autograd does not connect to x, has slope 0.

    Raises:
        InvalidValueError: As `values`; also when no gradient reaches x, or it is nan or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = _call(function, leaf, name)
        _require_finite(out, leaf, name, "its value")
        if not out.requires_grad:
            raise InvalidValueError(
                f"{name} has no backward gain: no gradient flows through it (a step function, or "
                "torch.no_grad or detach inside)"
            )
        try:
            (slope,) = torch.autograd.grad(out.sum(), leaf, allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            raise InvalidValueError(f"{name} has no backward gain: autograd failed: {error}") from error
        _require_finite(slope, leaf, name, "its derivative")
        return out.detach(), slope.detach()


def require_pointwise(function: Pointwise, name: str) -> None:
    """Refuse a function whose output at an element depends on anything but that element.

    The same numbers are passed whole, permuted, reshaped and in parts, and must give the same results.
    The global random state is left as it was.

    Raises:
        InvalidValueError: The results differ, with the reason.
    """
    x = torch.linspace(-2.9, 3.1, 60, dtype=torch.float64, device="cpu")
    with torch.random.fork_rng(devices=[]):
        whole = values(function, x, name)
        # The tolerance lets functions pass that compute in float32 inside.
        tolerance = 1e-5 * (1 + float(whole.abs().max()))

        def differs(other: Tensor) -> bool:
            return float((whole - other).abs().max()) > tolerance

        if any(differs(values(function, x, name)) for _ in range(3)):
            raise InvalidValueError(
                f"{name} has no gain as it is: it gives different results for the same input. Pass a module "
                "whose random parts are submodules (nn.Dropout, nn.RReLU), which are taken by their "
                "expectation, or the deterministic form"
            )
        order = torch.arange(59, -1, -1, device="cpu")
        order[::2] = order[::2].roll(7)
        permuted = torch.empty_like(whole)
        permuted[order] = values(function, x[order], name)
        parts = torch.cat([values(function, part, name) for part in (x[:13], x[13:])])
        folded = values(function, x.view(5, 12), name).flatten()
    if differs(parts) or differs(permuted) or differs(folded):
        raise InvalidValueError(
            f"{name} has no gain: it is no pointwise map, an output element depends on the other elements or "
            "on its position (as in softmax and normalisation layers), so that no one factor belongs to it"
        )


class _Fixed(nn.Module):
    """Stands in for a random leaf module, as one of the functions it may be."""

    def __init__(self, function: Pointwise) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def leaky(slope: float) -> Pointwise:
    """The map x ↦ x for x > 0 and slope·x otherwise."""
    return functools.partial(torch.nn.functional.leaky_relu, negative_slope=slope)


def slope_mixture(slopes: Tensor) -> Mixture:
    """Leaky rectifiers whose slope takes each of the given values with the same probability.

    More than three different values are replaced by the three points and probabilities of the Gauss
    rule with the same moments up to the fifth: φ is linear in the slope, so that the mean, E[φ²] and
    the kurtosis are exact.
    """
    slopes = slopes.detach().to(device="cpu", dtype=torch.float64).flatten()
    found, counts = np.unique(slopes.numpy(), return_counts=True)
    distinct, weights = torch.from_numpy(found), torch.from_numpy(counts / counts.sum())
    if len(distinct) > 3:
        distinct, weights = _gauss_rule(distinct, weights)
    return tuple((w, leaky(s)) for w, s in zip(weights.tolist(), distinct.tolist(), strict=True))


def _gauss_rule(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Three points and weights with the moments 0 … 5 of a discrete distribution (Golub and Welsch, 1969)."""
    basis = [weights.sqrt()]
    jacobi = torch.zeros(3, 3, dtype=torch.float64, device="cpu")
    for k in range(3):
        vector = points * basis[k]
        jacobi[k, k] = vector @ basis[k]
        for other in basis:  # full orthogonalisation: three steps, and no rounding to worry about
            vector = vector - (vector @ other) * other
        if k < 2:
            jacobi[k, k + 1] = jacobi[k + 1, k] = vector.norm()
            basis.append(vector / vector.norm())
    found, vectors = torch.linalg.eigh(jacobi)
    return found, vectors[0] ** 2


def uniform_slope_mixture(lower: float, upper: float) -> Mixture:
    """Leaky rectifiers whose slope is uniform on [lower, upper]: the 3-point Gauss–Legendre rule.

    The mean, E[φ²] and the kurtosis are exact, as in `slope_mixture`.
    """
    middle, reach = (lower + upper) / 2, (upper - lower) / 2 * 0.6**0.5
    if reach == 0:
        return ((1.0, leaky(middle)),)
    return ((5 / 18, leaky(middle - reach)), (8 / 18, leaky(middle)), (5 / 18, leaky(middle + reach)))


def dropout_mixture(p: float) -> Mixture:
    """Dropout in training: 0 with probability p, x/(1−p) otherwise."""
    if not 0 <= p < 1:
        raise InvalidValueError(f"dropout has no gain at p={p}: expected 0 <= p < 1")
    return ((p, lambda x: 0.0 * x), (1 - p, lambda x: x / (1 - p)))


def _alpha_dropout_mixture(p: float) -> Mixture:
    """Alpha dropout in training (Klambauer et al., 2017): keeps mean 0 and variance 1."""
    if not 0 <= p < 1:
        raise InvalidValueError(f"alpha dropout has no gain at p={p}: expected 0 <= p < 1")
    scale = ((1 - p) * (1 + p * _ALPHA_DROPPED**2)) ** -0.5
    shift = -scale * _ALPHA_DROPPED * p
    return (
        (p, lambda x: 0.0 * x + (scale * _ALPHA_DROPPED + shift)),
        (1 - p, lambda x: scale * x + shift),
    )


def _leaf_mixture(module: nn.Module) -> Mixture | None:
    """The mixture a leaf module stands for, or None for an ordinary one."""
    if isinstance(module, nn.PReLU):
        return slope_mixture(module.weight)
    if not module.training:
        return None
    if isinstance(module, nn.RReLU):
        return uniform_slope_mixture(module.lower, module.upper)
    if isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        return _alpha_dropout_mixture(module.p)
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return dropout_mixture(module.p)
    return None


def _detached_copy(module: nn.Module, name: str) -> nn.Module:
    if any(t.is_meta for t in itertools.chain(module.parameters(), module.buffers())):
        raise InvalidValueError(
            f"{name} has no gain yet: it is on the meta device, its parameters have no values"
        )
    try:
        clone = copy.deepcopy(module)
    except Exception as error:
        raise InvalidValueError(f"{name} cannot be copied, which keeps yours untouched: {error}") from error
    hook_tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for part in clone.modules():
        for table in hook_tables:  # hooks watch the user's module; the copy is none of their business
            getattr(part, table).clear()
    clone = clone.to(device="cpu", dtype=torch.float64)
    for parameter in clone.parameters():  # one by one: scripted modules have no requires_grad_
        parameter.requires_grad_(False)
    return clone


def frozen(module: nn.Module, name: str) -> Mixture:
    """The functions a module computes, in float64, from a copy of it.

    Random submodules in training mode (RReLU and the dropouts) and PReLU with several slopes are taken
    by all they may be, with probabilities; several of them are taken as independent.

    Raises:
        InvalidValueError: The module cannot be copied, is on the meta device, or has too many of them.
    """
    clone = _detached_copy(module, name)
    every = clone.named_modules(remove_duplicate=False)
    leaves = [(path, mixture) for path, part in every if (mixture := _leaf_mixture(part))]
    count = 1
    for _, mixture in leaves:
        count *= len(mixture)
    if count > _MAX_COMBINATIONS:
        raise InvalidValueError(
            f"{name} has {len(leaves)} random submodules, too many to take the expectation"
        )
    found: list[tuple[float, Pointwise]] = []
    for choice in itertools.product(*(mixture for _, mixture in leaves)):
        probability = 1.0
        variant: Any = copy.deepcopy(clone) if leaves else clone
        for (path, _), (weight, function) in zip(leaves, choice, strict=True):
            probability *= weight
            if path == "":
                variant = _Fixed(function)
            else:
                variant.set_submodule(path, _Fixed(function))
        found.append((probability, variant))
    return tuple(found)
