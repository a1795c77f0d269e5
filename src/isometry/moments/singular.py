"""Weights divided by their largest singular value, as torch's `spectral_norm` divides them.

Its power iteration keeps vectors that depend on the weight in a way that no moments of theirs tell. But the
largest singular value σ is a fixed multiple of the root mean square s of the weight's entries: for m×n
independent ones of them, with a = √m and b = √(n − 1),

    σ²/s² ≈ (a + b)² − 1.2065·(a + b)·(1/a + 1/b)^⅓,

the mean of the Tracy–Widom law (asymptotic; n for m = 1). The old form takes one step from a random vector
instead, which gives σ²/s² ≈ m + n − 1, and a weight with values what its own iteration says. So the copy of a
model that is run divides by this multiple of s.

Reference: Johnstone, 2001, "On the distribution of the largest eigenvalue", theorem 1.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

TRACY_WIDOM = -1.2065335745820  # the mean of the law for real entries


@dataclass(frozen=True)
class Division:
    """A division by the largest singular value in a module's code.

    Attributes:
        owner: The path of the module that holds the old form's hook, or is the parametrisation.
        hook: The key of the hook; None for a parametrisation.
        name: The weight's name, for a hook.
        ratio: The largest singular value, in root mean squares of the entries.
        state: The tensors that the iteration keeps.
    """

    owner: str
    hook: int | None
    name: str
    ratio: float
    state: tuple[Tensor, ...]


def divisions(model: nn.Module) -> list[Division]:
    """Find the divisions by a largest singular value.

    Args:
        model: The model, on meta or with values; it is left as it is.

    Returns:
        One for each parametrisation or hook of a weight with two axes or more.
    """
    return [*_parametrised(model), *_hooked(model)]


def _parametrised(model: nn.Module) -> Iterator[Division]:
    for path, steps in model.named_modules():
        if not isinstance(steps, nn.utils.parametrize.ParametrizationList):
            continue
        for k, step in enumerate(steps):
            if isinstance(step, _SpectralNorm) and steps.original.dim() > 1:
                matrix = step._reshape_weight_to_matrix(steps.original.detach())
                ratio = edge(*matrix.shape)
                if k == 0 and _known(matrix, step._u, step._v):
                    turns = step.n_power_iterations if step.training else 0
                    ratio = _iterated(matrix, step._u, step._v, turns)
                yield Division(f"{path}.{k}", None, "", ratio, (step._u, step._v))


def _hooked(model: nn.Module) -> Iterator[Division]:
    for path, module in model.named_modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, SpectralNorm):
                name = hook.name
                u, v = getattr(module, f"{name}_u"), getattr(module, f"{name}_v")
                matrix = hook.reshape_weight_to_matrix(getattr(module, f"{name}_orig").detach())
                turns = hook.n_power_iterations if module.training else 0
                if _known(matrix, u, v):
                    ratio = _iterated(matrix.T, v, u, turns)
                else:
                    ratio = edge(*matrix.shape) if turns > 1 else math.sqrt(sum(matrix.shape) - 1)
                yield Division(path, key, name, ratio, (u, v, getattr(module, name)))


def divide(twin: nn.Module, found: list[Division]) -> None:
    """Let the copy of a model divide by the root mean square of the entries.

    Args:
        twin: The copy; changed.
        found: The divisions of the original.
    """
    modules = dict(twin.named_modules())
    for division in found:
        owner = modules[division.owner]
        if division.hook is None:
            owner.forward = _Divided(division.ratio)
        else:
            owner._forward_pre_hooks[division.hook] = _Setting(division.name, _Divided(division.ratio))


@dataclass(frozen=True)
class _Divided:
    """A weight over a multiple of its root mean square."""

    ratio: float

    def __call__(self, weight: Tensor) -> Tensor:
        return weight * (weight.square().mean() * self.ratio**2).rsqrt()


@dataclass(frozen=True)
class _Setting:
    """The old form's hook: it computes the weight in front of every call."""

    name: str
    divided: _Divided

    def __call__(self, module: nn.Module, inputs: object) -> None:
        setattr(module, self.name, self.divided(getattr(module, f"{self.name}_orig")))


def _known(*tensors: Tensor) -> bool:
    return not any(t.is_meta for t in tensors)


@torch.no_grad()
def _iterated(matrix: Tensor, u: Tensor, v: Tensor, turns: int) -> float:
    """Return uᵀWv over the root mean square of W's entries after so many turns, each W·v first, then Wᵀ·u."""
    matrix, u, v = matrix.double(), u.double(), v.double()
    for _ in range(turns):
        u = nn.functional.normalize(matrix @ v, dim=0)
        v = nn.functional.normalize(matrix.T @ u, dim=0)
    size, found = float(matrix.square().mean().sqrt()), float((u @ matrix @ v).abs())
    return found / size if found > 0 else edge(*matrix.shape)


def edge(rows: int, columns: int) -> float:
    """Return the largest singular value of a matrix of independent entries of size 1.

    Args:
        rows: Its height.
        columns: Its width.

    Returns:
        The root of its mean square, to leading orders.
    """
    m, n = sorted((rows, columns))
    if m == 1:
        return math.sqrt(n)
    a, b = math.sqrt(m), math.sqrt(n - 1)
    return math.sqrt((a + b) ** 2 + TRACY_WIDOM * (a + b) * (1 / a + 1 / b) ** (1 / 3))
