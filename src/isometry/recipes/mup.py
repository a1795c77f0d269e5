"""Maximal update parametrisation: variances and learning rates with which one rate serves every width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError
from isometry.flow.graph import Flow
from isometry.flow.roles import Role, Roles
from isometry.flow.streams import Residual
from isometry.flow.tracing import study
from isometry.plans import scaled as times
from isometry.recipes.base import Choice, Subject, neutral, recipe
from isometry.recipes.laws import number, one_of, scaled

Optimizer = Literal["adam", "sgd"]
Family = Literal["input", "hidden", "output", "fixed"]
WIDTH = 256.0
_OPTIONS = ("optimizer", "base", "base_width", "gain")


@dataclass(frozen=True)
class Growth:
    """How much wider a parameter is than in the base model.

    Attributes:
        inputs: The ratio of its fans; 1: they do not grow.
        outputs: The ratio of the numbers of its outputs; 1: they do not grow.
        kind: Which of the two grow, in the words of the paper.
    """

    inputs: float
    outputs: float
    kind: Family


@recipe(
    "mup",
    source="Yang, Hu, Babuschkin, Sidor, Liu, Farhi, Ryder, Pachocki, Chen and Gao (2022), Tensor Programs "
    "V: tuning large neural networks via zero-shot hyperparameter transfer",
    options=_OPTIONS,
)
def mup(subject: Subject) -> Mapping[str, Choice]:
    """Variance 1/fan_in, of the head over r more, r = fan_in/base; Adam's rate 1/r, 1 for inputs and biases.

    Table 3 of the paper, with constants that make it the standard parametrisation at the base width, where
    every ratio is 1 (r of the inputs, R of the outputs):

    | | input weights, biases | hidden weights | head |
    |---|---|---|---|
    | variance | 1/fan_in (biases 0, tables 1) | 1/fan_in | 1/(r·fan_in) |
    | rate, Adam | 1 | 1/r | 1/r |
    | rate, SGD | R | 1 | 1/r |

    Options: `optimizer` "adam" or "sgd". `base`: a narrower model, or the function that builds it, that takes
    the same inputs: what grows is told by its shapes. Without it `base_width` (256): weights that read the
    model's input or a table are input weights, those in front of its output heads, all others hidden. `gain`
    multiplies the deviation of all weights. Asymptotic in width. Attention scores over d instead of √d, and
    logits of a tied table over the width, are for the model's code; the notes say where they matter.
    """
    return _Widths(subject).choices()


@recipe(
    "depth-mup",
    source="Yang, Yu, Zhu and Hayou (2023), Tensor Programs VI: feature learning in infinite-depth neural "
    "networks",
    options=(*_OPTIONS, "multiplier"),
)
def depth_mup(subject: Subject) -> Mapping[str, Choice]:
    """As mup, and each of L residual branches times 1/√L, with Adam's rate times 1/√L for what is in it.

    The paper multiplies the branch by 1/√L in the model's code and, under Adam, the rate of its weights by
    1/√L (SGD's by 1). With `multiplier="code"` the model does so already and these are the rates. By default
    ("weight") the parameter that ends the branch takes the factor in. To learn the same function as with a
    multiplier c in the code, such a parameter needs c times Adam's rate and c² times SGD's: 1/L in both.
    Exact for SGD; for Adam up to its ε. The theory is about branches with one layer of weights.
    """
    widths = _Widths(subject)
    found = widths.choices()
    inside = branch_members(subject.roles)
    folded = one_of(subject, "multiplier", ("weight", "code")) == "weight"
    for name, role in subject.roles.by_name.items():
        residual = inside.get(name)
        if residual is None:
            continue
        choice = found.get(name) or neutral(role)
        factor = residual.number**-0.5
        rate = factor if widths.optimizer == "adam" else 1.0
        reason, law = f"{choice.reason}; in one of {residual.number} branches", choice.law
        if folded and _ends(subject.roles, role):
            rate *= factor if widths.optimizer == "adam" else factor**2
            if law is not None and role.kind in ("weight", "scale"):
                law = times(law, factor)
                reason = f"{choice.reason}; ends one of {residual.number} branches: times {factor:.3g}"
        found[name] = Choice(law, reason, choice.rate * rate, choice.marks)
    residuals = subject.roles.streams.residuals.values()
    if not residuals:
        subject.notes.append("depth-mup: the model has no residual branch, so this is mup")
    elif any(r.layers > 1 for r in residuals):
        subject.notes.append("depth-mup: branches here have several layers; its theory is about one")
    return found


class _Widths:
    """What mup decides for one model."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.optimizer: Optimizer = one_of(subject, "optimizer", ("adam", "sgd"))  # type: ignore[assignment]
        self.gain = number(subject, "gain", 1.0)
        self.heads = _behind_heads(subject.roles)
        base = subject.option("base", None)
        if base is not None and "base_width" in subject.options:
            raise InvalidValueError("base and base_width say the same: give one of them")
        self.base = None if base is None else _base_roles(subject, base)
        self.width = number(subject, "base_width", WIDTH)

    def choices(self) -> dict[str, Choice]:
        found = {name: self._choice(role) for name, role in self.subject.roles.by_name.items()}
        if self.subject.roles.attentions:
            self.subject.notes.append(
                "mup wants attention scores divided by the size d of a head, not √d (times √d of the base "
                "to agree there): that is the model's code"
            )
        return found

    def _choice(self, role: Role) -> Choice:
        if role.kind not in ("weight", "bias", "scale", "embedding", "position", "token"):
            return neutral(role)
        growth = self._against_base(role, self.base[role.name]) if self.base else self._by_role(role)
        rate = self._rate(growth)
        if role.kind != "weight":
            choice = neutral(role)
            return Choice(choice.law, choice.reason, rate, choice.marks)
        size, words = self.gain, f"{growth.kind} weight, fan ratio {growth.inputs:.4g}"
        if growth.kind == "output":
            size /= math.sqrt(growth.inputs)
            if any(use.kind == "embedding" for use in role.uses):
                self.subject.notes.append(
                    f"mup: {role.name} is table and head in one and drawn as a head; it wants rows of unit "
                    "entries, and logits divided by the width in the model's code"
                )
        made = scaled(role, size, words, family=self.subject.family or "normal")
        return Choice(made.law, made.reason, rate, made.marks)

    def _rate(self, growth: Growth) -> float:
        if self.optimizer == "adam":
            return 1.0 / growth.inputs if growth.kind in ("hidden", "output") else 1.0
        if growth.kind == "input":
            return growth.outputs
        return 1.0 / growth.inputs if growth.kind == "output" else 1.0

    def _by_role(self, role: Role) -> Growth:
        """Tell from what a parameter is for: widths count from `base_width`; inputs, logits do not grow."""
        if role.kind != "weight":
            fixed = any(use.node.index in self.heads for use in role.uses)
            return _growth(1.0, 1.0 if fixed else _columns(role) / self.width)
        if role.fans is None or not role.fans.forward:
            return Growth(1.0, 1.0, "hidden")
        inputs, outputs = role.fans.forward / self.width, _outputs(role) / self.width
        if "head" in role.parts:
            return Growth(inputs, 1.0, "output") if "input" not in role.parts else Growth(1.0, 1.0, "fixed")
        return Growth(1.0, outputs, "input") if "input" in role.parts else Growth(inputs, outputs, "hidden")

    def _against_base(self, role: Role, base: Role) -> Growth:
        """Tell from the shapes of the base model."""
        if len(role.shape) != len(base.shape):
            raise InvalidValueError(
                f"base: {role.name!r} has shape {base.shape} there and {role.shape} here: give one that is "
                "narrower and otherwise the same"
            )
        if role.kind != "weight":
            return _growth(1.0, _columns(role) / max(_columns(base), 1.0))
        if role.fans is None or base.fans is None or not base.fans.forward:
            return _growth(1.0, 1.0)
        return _growth(role.fans.forward / base.fans.forward, _outputs(role) / _outputs(base))


def _growth(inputs: float, outputs: float) -> Growth:
    kinds: Mapping[tuple[bool, bool], Family] = {
        (False, True): "input", (True, True): "hidden", (True, False): "output", (False, False): "fixed",
    }  # fmt: skip
    return Growth(inputs, outputs, kinds[inputs != 1.0, outputs != 1.0])


def _outputs(role: Role) -> float:
    """Return the number of a weight's outputs: channels of a depthwise convolution grow, its fan does not."""
    assert role.fans is not None
    return float(role.fans.layout.blocks * role.fans.layout.outputs)


def _columns(role: Role) -> float:
    """Return the length of a vector, or of a table's rows."""
    return float(max(role.shape[-1:] if role.kind == "embedding" else role.shape, default=1))


def _base_roles(subject: Subject, base: Any) -> dict[str, Role]:
    """Return the roles of the base model, which has the same parameters."""
    if not isinstance(base, nn.Module) and not callable(base):
        raise InvalidTypeError(
            f"base must be a model or the function that builds it, got {type(base).__name__}"
        )
    try:
        found = study(base, subject.inputs).roles.by_name
    except IsometryError as error:
        raise ModelError(f"base cannot be run on the same inputs: {error}") from error
    differ = sorted(set(found) ^ set(subject.roles.by_name))
    if differ:
        raise InvalidValueError(
            f"base and the model differ in their parameters, such as {differ[0]!r}: give the same "
            "architecture with a smaller width"
        )
    return found


def _behind_heads(roles: Roles) -> set[int]:
    """Return the nodes that a head's output reaches entry by entry."""
    found: set[int] = set()
    for role in roles.by_name.values():
        for use in role.uses:
            if "head" in role.parts and use.cone is not None:
                found |= use.cone.nodes
    return found


def branch_members(roles: Roles) -> dict[str, Residual]:
    """Return the innermost residual branch of every parameter that is read in one.

    Args:
        roles: The roles.

    Returns:
        The branches by the parameters' names.
    """
    flow = roles.flow
    within: dict[int, Residual] = {}
    sizes: dict[int, int] = {}
    for residual in roles.streams.residuals.values():
        nodes = _between(flow, residual)
        for index in nodes:
            if index not in sizes or len(nodes) < sizes[index]:
                within[index], sizes[index] = residual, len(nodes)
    found = {}
    for role in roles.by_name.values():
        read = [within[use.node.index] for use in role.uses if use.node.index in within]
        if read and role.skips is None:
            found[role.name] = read[0]
    return found


def _between(flow: Flow, residual: Residual) -> set[int]:
    """Return the nodes of a branch: from its fork, which is left out, to its end."""
    before, waiting = {residual.branch}, [residual.branch]
    while waiting:
        for node in flow.signals(flow.nodes[waiting.pop()]):
            if node.index > residual.fork and node.index not in before:
                before.add(node.index)
                waiting.append(node.index)
    found = {residual.fork}
    for index in sorted(before):
        if any(s.index in found for s in flow.signals(flow.nodes[index])):
            found.add(index)
    return found - {residual.fork}


def _ends(roles: Roles, role: Role) -> bool:
    """Return whether a parameter ends its branch: the last weight or scale, or a bias beside or behind it."""
    if role.ends is not None:
        return True
    if role.kind != "bias":
        return False
    at = {use.node.index for use in role.uses}
    for other in roles.by_name.values():
        if other.ends is not None:
            reached = {use.node.index for use in other.uses}.union(
                *(use.cone.nodes for use in other.uses if use.cone is not None)
            )
            if at & reached:
                return True
    return False
