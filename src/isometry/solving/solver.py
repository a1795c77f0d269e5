"""Solve scales on the way through a model: each parameter gets its own from the signal that arrives there.

An interpreter's observer. When an operation that has an aim is about to be given its record, that record is
made once to see its RMS, and the parameter's scale is multiplied by the aim over it: outputs are proportional
to a weight's standard deviation, but for a bias that is not zero, which does not count. The pass then goes on
with the scale found, so one pass settles all weights of a model of any depth.

On real tensors the same is done with what was drawn and computed: the output's own RMS decides. That serves
where a record is unknown, and for calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from isometry.flow.graph import CONTRACTION, Node, Ref
from isometry.flow.roles import Role, Roles
from isometry.moments import algebra as alg
from isometry.moments import record as rec
from isometry.moments.calls import Call, Numbering, listed
from isometry.moments.record import Moments
from isometry.moments.rules.base import Shifted
from isometry.moments.rules.pointwise import as_moments
from isometry.names import canonical_name
from isometry.plans.writing import seeded
from isometry.rehearsal import Stage
from isometry.sampling import Constant, Distribution
from isometry.sampling.fill import fill_keyed_

How = Literal["predicted", "measured"]
Measuring = Literal["never", "unknown", "always"]
ELSEWHERE = "the operation was not the same in a second run"
_TINY = 1e-30


@dataclass(frozen=True)
class Aim:
    """What one parameter's scale is to be solved for.

    Attributes:
        role: The parameter.
        node: The operation whose output is aimed at.
        size: Returns the RMS that the output should have, given the RMS of earlier nodes.
        watched: The nodes whose RMS it asks for.
        by_channel: Whether each channel of a convolution is to have that RMS by itself; on real values alone.
        adjust: Returns the scale to be used, given the one with which the output would have that RMS.
    """

    role: Role
    node: Node
    size: Callable[[Solver], float]
    watched: tuple[int, ...] = ()
    by_channel: bool = False
    adjust: Callable[[Solver, float], float] | None = None


@dataclass(frozen=True)
class Solved:
    """A scale found.

    Attributes:
        scale: The standard deviation of a weight's entries, or the factor that a scale multiplies by.
        how: From records, or from real values.
        arriving: The RMS of what the operation read.
        channels: Where each channel has its own, the factors on what was drawn.
    """

    scale: float
    how: How
    arriving: float | None = None
    channels: tuple[float, ...] = ()


@dataclass
class Solver:
    """The observer of one pass.

    Attributes:
        stage: The run.
        roles: The roles, with the graph of an earlier run of the same code.
        laws: What each parameter is drawn from for now; parameters left out keep their records.
        aims: By the call of the operation.
        watched: Nodes whose RMS is wanted, now or afterwards.
        measuring: When real values decide, on a real carrier.
        seed: Of the draws on a real carrier.
        solved: The scales found, by parameter.
        missed: Aims whose output is unknown or zero, with the reason, by parameter.
    """

    stage: Stage
    roles: Roles
    laws: Mapping[str, tuple[Distribution, float]]
    aims: Mapping[Call | None, list[Aim]]
    watched: frozenset[int] = frozenset()
    measuring: Measuring = "unknown"
    seed: int = 0
    solved: dict[str, Solved] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbering = Numbering()
        self._tensors: dict[int, Tensor] = {}
        self._nodes: dict[Call | None, list[int]] = {}
        for index in self.watched:
            self._nodes.setdefault(self.roles.flow.nodes[index].call, []).append(index)
        self._parameters = {canonical_name(n): p for n, p in self.stage.twin.named_parameters()}
        self._leaves = {index: name for name, index in self.roles.flow.parameters.items()}
        self._biases = {i for r in self.roles.by_name.values() if r.kind == "bias" for i in r.nodes}
        self._added: dict[int, Tensor] = {}  # to watched nodes: a bias
        for name, (law, std) in self.laws.items():
            self._begin(self.roles[name], law, std)
        self.stage.interpreter.observer = self

    def rms(self, index: int) -> float | None:
        """Return the RMS of a watched node that has been reached; None where it is not known."""
        tensor = self.tensor(index)
        return None if tensor is None else self.size(tensor)

    def linear_rms(self, index: int) -> float | None:
        """Return the RMS of a watched node without the bias that its operation adds: √(E[y²] − E[b²])."""
        size = self.rms(index)
        return None if size is None else self._without(size, self._added.get(index))

    def tensor(self, index: int) -> Tensor | None:
        """Return what a watched node gave; None where it has not been reached."""
        return self._tensors.get(index)

    def size(self, tensor: Tensor) -> float | None:
        """Return the RMS of a tensor of the run; None where it is not known."""
        if self._real(self.measuring == "always"):
            return _rms(tensor)
        m = self.stage.interpreter.moments(tensor)
        if m is not None:
            return _size(m)
        return _rms(tensor) if self._real(self.measuring == "unknown") else None

    def spread(self, index: int) -> float | None:
        """Return the standard deviation of a watched node along its last dim; None where it is not known."""
        tensor = self._tensors.get(index)
        if tensor is None:
            return None
        with _disable_current_modes():
            value = self.stage.interpreter.value(tensor)
            if isinstance(value, Shifted):
                return _varying(value.random)
            m = self.stage.interpreter.moments(tensor)
        return None if m is None else _varying(m)

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Solve the aims of an operation."""
        call = self._numbering.next(func)
        aims = self.aims.get(call, ())
        if aims or call in self._nodes:
            outputs = listed(out)
            for index in self._nodes.get(call, ()):
                node = self.roles.flow.nodes[index]
                self._tensors[index] = outputs[node.slot]
                if (bias := self._bias(node, args)) is not None:
                    self._added[index] = bias
            for aim in aims:
                self._solve(aim, func, args, kwargs, out)

    # --- solving --------------------------------------------------------------------------------------------

    def _solve(self, aim: Aim, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give one parameter its scale."""
        use = next(u for u in aim.role.uses if u.node is aim.node)
        operands = [
            a for a, r in zip(args, aim.node.args, strict=False)
            if isinstance(r, Ref) and r.node == use.operand.index
        ]  # fmt: skip
        if not operands or func is not aim.node.func:
            self.missed[aim.role.name] = ELSEWHERE
            return
        operand: Tensor = operands[0]
        wanted = aim.size(self)
        first = out[0] if isinstance(out, tuple | list) else out
        bias = self._bias(aim.node, args)
        if self._real(self.measuring == "always"):
            self._measure(aim, operand, first, wanted, bias)
            return
        interpreter = self.stage.interpreter
        record = interpreter.value(operand)
        (value, *_) = interpreter._evaluate(func, args, kwargs, out)
        size = self._without(_size(value), bias) if isinstance(value, Moments) else None
        if size is not None and size > _TINY and math.isfinite(size) and record is not None:
            self._multiply(
                aim.role, operand, as_moments(record), self._factor(aim, wanted / size), "predicted", size
            )
        elif size is None and self._real(self.measuring == "unknown"):
            self._measure(aim, operand, first, wanted, bias)
        elif aim.role.name not in self.solved:
            self.missed[aim.role.name] = "the signal there is unknown" if size is None else "no signal there"

    def _bias(self, node: Node, args: Any) -> Tensor | None:
        """Return the bias that an operation adds to its product."""
        if node.op not in CONTRACTION:
            return None
        found = (
            a for a, r in zip(args, node.args, strict=False) if isinstance(r, Ref) and r.node in self._biases
        )
        return next(found, None)

    def _without(self, size: float, bias: Tensor | None) -> float:
        """Return the RMS of a product, of which the RMS with a bias is known: nothing in it has a mean."""
        added = None if bias is None else self.size(bias)
        return math.sqrt(max(size**2 - added**2, 0.0)) if added else size

    def _measure(self, aim: Aim, operand: Tensor, out: Tensor, wanted: float, bias: Tensor | None) -> None:
        """Scale what was drawn by what its output lacks."""
        with _disable_current_modes(), torch.no_grad():
            if bias is not None:
                convolved = "conv" in aim.node.op
                bias = bias.detach().view(-1, *[1] * (out.dim() - 2)) if convolved else bias.detach()
                out.detach().sub_(bias)
            self._measure_product(aim, operand, out, wanted)
            if bias is not None:
                out.detach().add_(bias)

    def _measure_product(self, aim: Aim, operand: Tensor, out: Tensor, wanted: float) -> None:
        """Scale what was drawn by what the product lacks."""
        with _disable_current_modes(), torch.no_grad():
            size = _rms(out)
            if not (size is not None and size > _TINY and math.isfinite(size)):
                self.missed[aim.role.name] = "no signal there"
                return
            if aim.by_channel:
                self._by_channel(aim.role, out.detach(), wanted)
                return
            factor = self._factor(aim, wanted / size)
            out.detach().mul_(factor)
            shift = shift_of(aim.role)
            for name in (self._leaves[i] for i in aim.role.nodes):
                if len(aim.role.nodes) == 1 or name.endswith(("_g", "original0")):
                    self._parameters[name].data.add_(shift).mul_(factor).sub_(shift)
        record = self.stage.interpreter.value(operand)
        known = alg.normal(operand.shape) if record is None else as_moments(record)
        self._multiply(aim.role, operand, known, factor, "measured", size)

    def _now(self, role: Role) -> float:
        return self.solved[role.name].scale if role.name in self.solved else self.laws[role.name][1]

    def _factor(self, aim: Aim, lacking: float) -> float:
        """Return what a scale is multiplied by, given what its output lacks."""
        if aim.adjust is None:
            return lacking
        now = self._now(aim.role)
        return aim.adjust(self, now * lacking) / now

    def _by_channel(self, role: Role, out: Tensor, wanted: float) -> None:
        """Scale the kernels of each channel by what it lacks; one that is zero is left as it is."""
        assert role.fans is not None
        assert len(role.nodes) == 1
        sizes = out.double().square().movedim(1, 0).flatten(1).mean(1).sqrt()
        factors = torch.where(sizes > _TINY, wanted / sizes, 1.0)
        out.mul_(factors.to(out.dtype).view(-1, *[1] * (out.dim() - 2)))
        layout, parameter = role.fans.layout, self._parameters[self._leaves[role.nodes[0]]].data
        kernels = layout.kernels(parameter)
        by_row = factors.to(parameter.dtype).view(*kernels.shape[:2], *[1] * (kernels.dim() - 2))
        parameter.copy_(layout.restore(kernels * by_row, tuple(parameter.shape)))
        mean = float(factors.square().mean().sqrt())
        self.solved[role.name] = Solved(
            self.laws[role.name][1] * mean, "measured", channels=tuple(factors.tolist())
        )

    def _multiply(
        self, role: Role, operand: Tensor, record: Moments, factor: float, how: How, size: float
    ) -> None:
        """Multiply a parameter's scale, and the record of what an operation reads of it."""
        interpreter = self.stage.interpreter
        scale = self._now(role) * factor
        if len(role.nodes) == 1:
            parameter = self._parameters[self._leaves[role.nodes[0]]]
            constant = role.kind == "scale"
            interpreter.write(
                parameter,
                alg.constant(parameter.shape, scale - shift_of(role))
                if constant
                else alg.normal(parameter.shape, 0.0, scale),
            )
        value = interpreter.value(operand)
        wanted = factor * _size(record)
        if not isinstance(value, Moments) or not math.isclose(_size(value), wanted, rel_tol=1e-6):
            interpreter.write(operand, alg.scale(record, factor))  # a copy, or computed from parameters
        self.solved[role.name] = Solved(scale, how, size)
        self.missed.pop(role.name, None)

    # --- records and values ---------------------------------------------------------------------------------

    def _begin(self, role: Role, law: Distribution, std: float) -> None:
        """Give a parameter the record, and on a real carrier the values, of its law."""
        for leaf in role.nodes:
            name = self._leaves[leaf]
            parameter = self._parameters[name]
            if len(role.nodes) > 1:
                continue  # computed from several: what they are computed to is set when it is read
            mean = law.value if isinstance(law, Constant) else float(getattr(law, "mean", 0.0))
            record = (
                alg.constant(parameter.shape, mean)
                if isinstance(law, Constant)
                else alg.normal(parameter.shape, mean, std)
            )
            self.stage.interpreter.write(parameter, record)
            if self.stage.kind == "real":
                fill_keyed_(parameter.data, seeded(law, self.seed), seed=self.seed, name=role.name)

    def _real(self, wanted: bool) -> bool:
        return wanted and self.stage.kind == "real"


def shift_of(role: Role) -> float:
    """Return what the model adds to a scale before it multiplies: 1 for a factor 1 + w."""
    return 1.0 - role.neutral if role.kind == "scale" else 0.0


def _size(m: Moments) -> float:
    return math.sqrt(max(rec.average(m.square, m.axes), 0.0))


def _rms(tensor: Tensor) -> float | None:
    if tensor.is_meta or not tensor.numel():
        return None
    with _disable_current_modes(), torch.no_grad():
        return float(tensor.detach().double().square().mean().sqrt())


def _varying(m: Moments) -> float | None:
    """Return the standard deviation along the last dim: √(E[x²] − E[x x′]), x and x′ two of its entries."""
    if not m.dims or not m.dims[-1]:
        return None
    differ = rec.average_differ(m.table, m.axes, m.positions(-1))
    return math.sqrt(max(rec.average(m.square, m.axes) - differ, 0.0))
