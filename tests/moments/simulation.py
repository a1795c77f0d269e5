"""One way to test every rule: run a function on real draws, and on moments, and compare second moments.

A `Case` is a function of tensors (and of parameters, which are tensors too) with the distributions of its
inputs. It is run on `draws` real draws, forward and backward with an i.i.d. unit gradient at each output, and
once under the interpreter on meta tensors. Compared are E[x²] of every output and of every input's gradient,
and E[x·x′] for two samples (dim 0). A figure may be off by `SIGMAS` standard errors of the simulated mean
plus the case's own `tolerance`, which names how asymptotic its rules are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import isometry.moments.rules  # noqa: F401
from isometry.moments import algebra as alg
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.concrete import Concrete
from isometry.moments.interpreter import Interpreter
from isometry.moments.record import Moments

SIGMAS = 5.0


@dataclass(frozen=True)
class Input:
    """Normal entries; a share `shared` of the variance is common to all of dim 0 (to all samples)."""

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    shared: float = 0.0

    def draw(self, generator: torch.Generator) -> Tensor:
        own = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        common = torch.randn((1, *self.shape[1:]), generator=generator, dtype=torch.float64)
        return self.mean + self.std * ((1 - self.shared) ** 0.5 * own + self.shared**0.5 * common)

    def moments(self) -> Moments:
        own = alg.normal(self.shape, 0.0, self.std * (1 - self.shared) ** 0.5)
        common = alg.normal((1, *self.shape[1:]), self.mean, self.std * self.shared**0.5)
        return alg.add(*reg.aligned(own, common))


@dataclass(frozen=True)
class Case:
    """A function of tensors to be tested.

    `known` are further arguments whose values are known (indices, masks).
    """

    name: str
    fn: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[Input, ...]
    known: tuple[Tensor, ...] = ()
    tolerance: float = 0.005
    draws: int = 400
    wrong: str = ""  # why the rules are known to fail here, still to be mended; the test must then fail
    unread: frozenset[str] = field(default_factory=frozenset)  # figures that a rule does not claim


Figures = dict[str, float]


def _figures(named: dict[str, Tensor]) -> Figures:
    result = {}
    for name, x in named.items():
        result[f"{name} square"] = float(x.double().square().mean())
        if x.dim() > 1 and x.shape[0] > 1:
            total = x.double().sum(0).square().mean() * x[0].numel()
            n = x.shape[0]
            result[f"{name} pairs"] = float(
                (total - x.double().square().sum()) / (n * (n - 1) * x[0].numel())
            )
    return result


def simulate(case: Case) -> dict[str, tuple[float, float]]:
    """Return mean and standard error of each figure over the case's draws."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    rows: dict[str, list[float]] = {}
    for _ in range(case.draws):
        inputs = [i.draw(generator).requires_grad_() for i in case.inputs]
        outputs = case.fn(*inputs, *case.known)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        seeds = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
        gradients = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
        named = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
        named |= {f"gradient {k}": g for k, g in enumerate(gradients) if g is not None}
        for name, value in _figures(named).items():
            rows.setdefault(name, []).append(value)
    tensors = {name: torch.tensor(v) for name, v in rows.items()}
    return {name: (float(v.mean()), float(v.std() / len(v) ** 0.5)) for name, v in tensors.items()}


def _told(m: Moments) -> Figures:
    result = {"square": rec.average(m.square, m.axes)}
    if len(m.dims) > 1 and m.dims[0]:
        single = reg.single_axis(m, 0)
        result["pairs"] = rec.average_differ(single.table, single.axes, (0,))
    return result


def predicted(case: Case) -> tuple[Figures, Interpreter]:
    """Return each figure as the rules tell it, and the interpreter that ran them."""
    interpreter = Interpreter()
    inputs = [torch.empty(i.shape, dtype=torch.float64, device="meta").requires_grad_() for i in case.inputs]
    for tensor, its in zip(inputs, case.inputs, strict=True):
        interpreter.assign(tensor, its.moments())
    known = [torch.empty_like(k, device="meta") for k in case.known]
    for tensor, value in zip(known, case.known, strict=True):
        interpreter.assign(tensor, Concrete(value))
    with interpreter:
        outputs = case.fn(*inputs, *known)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        seeds = [torch.empty_like(o) for o in outputs]
        for seed in seeds:
            interpreter.assign(seed, alg.normal(seed.shape))
        gradients = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
    figures: Figures = {}
    named = {f"output {k}": o for k, o in enumerate(outputs)}
    named |= {f"gradient {k}": g for k, g in enumerate(gradients) if g is not None}
    for name, tensor in named.items():
        m = interpreter.moments(tensor)
        assert m is not None, f"{name} is unknown: {list(interpreter.unknown)}"
        figures |= {f"{name} {figure}": value for figure, value in _told(m).items()}
    return figures, interpreter


def check(case: Case) -> Counter[str]:
    """Compare; return the rules that were used."""
    told, interpreter = predicted(case)
    assert not interpreter.unknown, list(interpreter.unknown)
    for name, (mean, error) in simulate(case).items():
        if name in case.unread:
            continue
        size = told[name.replace("pairs", "square")]
        allowed = SIGMAS * error + case.tolerance * size
        assert abs(told[name] - mean) <= allowed, (
            f"{name}: told {told[name]:.6g}, simulated {mean:.6g} ± {error:.2g}"
        )
    return interpreter.used
