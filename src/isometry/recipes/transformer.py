"""Published initialisations of transformers: one scale for all, smaller ends of branches, by depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from isometry.flow.roles import Part, Role
from isometry.flow.stacks import Stack, residual_of, skip_factor, stacks_of
from isometry.init.structured import Kind, of_kind
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.laws import number
from isometry.recipes.parts import by_part, glorot
from isometry.sampling import Distribution, Normal

_TABLES = ("embedding", "position", "token")
_SOFT: frozenset[Part] = frozenset(["query", "key"])


@recipe(
    "gpt2",
    source="Radford et al. (2019), Language models are unsupervised multitask learners, with its code",
    options=("std", "position_std"),
)
def gpt2(subject: Subject) -> Mapping[str, Choice]:
    """Weights and tables N(0, 0.02²), positions 0.01, ends of the N residual branches times 1/√N."""
    std = number(subject, "std", 0.02)
    place = number(subject, "position_std", 0.01)
    found = {}
    for role in subject.weights():
        if role.ends is None:
            found[role.name] = Choice(_law(subject, role, std), f"std {std:g} for all weights")
        else:
            size = std / math.sqrt(role.ends.number)
            reason = f"ends one of {role.ends.number} residual branches: {std:g}/√{role.ends.number}"
            found[role.name] = Choice(_law(subject, role, size), reason)
    for role in _tables(subject):
        by_place = subject.roles.lookups_by_place
        fixed = role.kind == "position" or any(use.node.index in by_place for use in role.uses)
        found[role.name] = Choice(
            Normal(place if fixed else std), "positions, as released" if fixed else "a table, as the weights"
        )
    return found


@recipe(
    "small-init",
    source="Nguyen and Salazar (2019), Transformers without tears",
    options=("width",),
)
def small_init(subject: Subject) -> Mapping[str, Choice]:
    """Weights and tables N(0, 2/(5d)) for all, d the width of the residual stream."""
    return _small(subject, _Stacks(subject))


@recipe(
    "wang-init",
    source="Black et al. (2022), GPT-NeoX-20B, after Wang and Komatsuzaki (2021), GPT-J",
    options=("width", "layers"),
)
def wang_init(subject: Subject) -> Mapping[str, Choice]:
    """As small-init, and the weights that end a residual branch N(0, (2/(L·√d))²) for L layers."""
    stacks = _Stacks(subject)
    found = _small(subject, stacks)
    for role in subject.weights():
        if role.ends is not None:
            layers, width = stacks.layers(role), stacks.width(role)
            law = _law(subject, role, 2 / (layers * math.sqrt(width)))
            found[role.name] = Choice(law, f"ends a branch: 2/(L√d), L = {layers:g}, d = {width:g}")
    return found


@recipe("deepnorm", source="Wang, Ma, Dong, Huang, Zhang and Wei (2022), DeepNet")
def deepnorm(subject: Subject) -> Mapping[str, Choice]:
    """Glorot normal; times β(depth) for values, attention outputs and feed-forward weights, α·x the model's.

    Encoder or decoder alone of N layers: α = (2N)^(1/4), β = (8N)^(-1/4). With an encoder of N and a decoder
    of M layers: 0.81·(N⁴M)^(1/16) and 0.87·(N⁴M)^(-1/16) in the encoder, (3M)^(1/4) and (12M)^(-1/4) in the
    decoder. α multiplies the skip path, which no initial weight does: the notes tell whether the model does.
    """
    stacks = _Stacks(subject)
    found = {}
    for role in subject.weights():
        stack = stacks.of(role)
        beta = 1.0 if stack is None else _deepnorm(stack, stacks)[1]
        inside = f"β = {beta:.4g} for values, outputs and feed-forward, 1 for queries and keys"
        reason = "Glorot" if stack is None else f"Glorot, {inside}"
        factor = _besides_queries_and_keys(beta)
        found[role.name] = by_part(subject.roles, role, glorot(factor), reason, subject.family or "normal")
    for stack in stacks.all:
        alpha = _deepnorm(stack, stacks)[0]
        shown = {round(skip_factor(subject.roles.flow, r), 6) for r in stack.residuals}
        if any(abs(factor / alpha - 1) > 0.01 for factor in shown):
            has = ", ".join(f"{factor:g}" for factor in sorted(shown))
            subject.notes.append(
                f"deepnorm wants x·α + f(x) with α = {alpha:.4g} in the stack of {stack.layers} layers; "
                f"the graph shows α = {has}: scale the skip path in the model's code"
            )
    return found


def _deepnorm(stack: Stack, stacks: _Stacks) -> tuple[float, float]:
    """Return α and β of table 1 of the paper."""
    layers = stacks.depth(stack)
    if stack.reads:
        return (3 * layers) ** 0.25, (12 * layers) ** -0.25
    if stack.read_by:
        decoder = stacks.depth(stacks.by_stream[min(stack.read_by)])
        product = (layers**4 * decoder) ** (1 / 16)
        return 0.81 * product, 0.87 / product
    return (2 * layers) ** 0.25, (8 * layers) ** -0.25


@recipe(
    "t-fixup",
    source="Huang, Perez, Ba and Volkovs (2020), Improving transformer optimization",
)
def t_fixup(subject: Subject) -> Mapping[str, Choice]:
    """Glorot; values, attention outputs and feed-forward weights times c(N), tables d^(-1/2)·(9N)^(-1/4).

    c = (9N)^(-1/4) in a decoder of N layers with cross-attention, 0.67·N^(-1/4) in an encoder, for networks
    without norms and training without warm-up. A stack that stands alone, of which the paper says nothing, is
    taken for an encoder.
    """
    stacks = _Stacks(subject)
    found = {}
    for role in subject.weights():
        stack = stacks.of(role)
        factor = 1.0 if stack is None else _t_fixup(stack, stacks)
        reason = "Glorot" if stack is None else f"Glorot; values, outputs, feed-forward times {factor:.4g}"
        std = glorot(_besides_queries_and_keys(factor))
        found[role.name] = by_part(subject.roles, role, std, reason, subject.family or "uniform")
    depth = max((stacks.depth(s) for s in stacks.all), default=0)
    for role in _tables(subject):
        size = role.shape[-1] ** -0.5 * ((9 * depth) ** -0.25 if depth else 1.0)
        found[role.name] = Choice(Normal(size), f"d^(-1/2)·(9N)^(-1/4), N = {depth:g}")
    if any("norm" in role.feeds for role in subject.roles.by_name.values()):
        subject.notes.append("t-fixup is meant for a transformer without norms, and this model has some")
    return found


def _t_fixup(stack: Stack, stacks: _Stacks) -> float:
    layers = stacks.depth(stack)
    return float((9 * layers) ** -0.25 if stack.reads else 0.67 * layers**-0.25)


class _Stacks:
    """The stacks of a model by what recipes ask for."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.all = stacks_of(subject.roles)
        self.by_stream = {stack.stream: stack for stack in self.all}
        self.main = max(self.all, key=lambda s: (s.attends, len(s.residuals)), default=None)
        if self.main is None:
            subject.notes.append("no residual stream was found: depth and width are taken as of one layer")

    def of(self, role: Role) -> Stack | None:
        """Return the stack in whose branches a weight is."""
        residual = role.residual or role.ends
        return None if residual is None else self.by_stream[residual.stream]

    def depth(self, stack: Stack) -> float:
        """Return the number of layers of a stack."""
        return float(stack.layers)

    def layers(self, role: Role) -> float:
        """Return the option `layers`, or how many layers a weight's stack has."""
        stack = self.of(role)
        return number(self.subject, "layers", 1.0 if stack is None else self.depth(stack))

    def width(self, role: Role) -> float:
        """Return the option `width`, or that of a parameter's stream, of the longest one, else its fan."""
        residual = residual_of(role)
        stack = self.main if residual is None else self.by_stream[residual.stream]
        if stack is not None:
            return number(self.subject, "width", float(stack.width))
        own = role.fans.forward if role.fans is not None else role.shape[-1] if role.shape else 1
        return number(self.subject, "width", float(own))


def _small(subject: Subject, stacks: _Stacks) -> dict[str, Choice]:
    found = {}
    for role in (*subject.weights(), *_tables(subject)):
        width = stacks.width(role)
        std = math.sqrt(2 / (5 * width))
        law = _law(subject, role, std) if role.kind == "weight" else Normal(std)
        found[role.name] = Choice(law, f"√(2/(5d)), d = {width:g}")
    return found


def _besides_queries_and_keys(factor: float) -> Callable[[frozenset[Part]], float]:
    return lambda parts: 1.0 if parts & _SOFT and "value" not in parts else factor


def _tables(subject: Subject) -> list[Role]:
    return [role for role in subject.roles.by_name.values() if role.kind in _TABLES]


def _law(subject: Subject, role: Role, std: float) -> Distribution:
    family: Kind = subject.family or "normal"
    layout = role.fans.layout if role.fans is not None else None
    return of_kind("normal" if family == "orthogonal" and layout is None else family, std, layout=layout)
