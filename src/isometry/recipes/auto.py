"""The recipe "auto": every weight gets its scale from the signal that is predicted to arrive there.

What is aimed at, in RMS:

- 1 behind every weight that feeds an activation, a norm, a gate, a router: pre-activations of unit size;
- 1/√k behind each of k parallel paths that are summed, tables of embeddings and positions among them;
- r/√(N + p − 1) at the end of the p-th of N residual branches, where r is the size of the stream there and p
  counts from the last norm on the stream: the stream grows by √2 at most, however deep, and so do gradients;
- attention scores that vary by 1 along the softmax: query and key share what is missing;
- √(0.02·ln C) for C logits: cross-entropy then begins 1 % above ln C, its value for equal chances.

Where a small signal arrives that will grow in training no weight is enlarged to make up for it: behind an
attention, which begins as an average of many tokens, by 2 at most; in a loop, whose state begins at zero, not
at all.

Weights in plain parts (no norm, no skip) follow the recipe "isometric".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isometry.flow.attention import Attention
from isometry.flow.graph import ADD, Flow, Node
from isometry.flow.roles import Role, Roles, Use
from isometry.flow.streams import Residual
from isometry.init.structured import of_kind
from isometry.recipes.base import Choice, Subject, neutral, recipe
from isometry.sampling import Constant, Distribution, Normal
from isometry.solving.passes import Problem, Settled, settled
from isometry.solving.solver import Aim, Solver

EXCESS = 0.02  # twice the relative excess of the initial loss over ln C
BOOST = 2.0  # how far the weight behind an attention makes up for what averaging took


@recipe("auto", source="isometry's own: moments carried along the model's code, see docs/predict.md")
def auto(subject: Subject) -> Mapping[str, Choice]:
    """Every weight's scale is solved on the predicted signal: unit pre-activations, bounded residual streams.

    Args:
        subject: The model and its roles.

    Returns:
        The choices.
    """
    draft = Draft(subject)
    problem = Problem(subject.source, subject.inputs, subject.roles, subject.seed)
    found = settled(problem, draft.laws, draft.aims, draft.balances())
    return {name: draft.choice(name, found) for name in subject.roles.by_name}


@dataclass
class Balance:
    """Two groups of weights that share what a product of theirs lacks.

    Attributes:
        node: Whose spread along the last dim is aimed at.
        names: The weights whose outputs are factors of it.
        target: The spread aimed at.
    """

    node: int
    names: tuple[str, ...]
    target: float


class Draft:
    """The laws and aims with which the first pass begins.

    Args:
        subject: The model and its roles.

    Attributes:
        laws: What each parameter is drawn from before it is solved, with its standard deviation.
        aims: What is solved for.
        reasons: One sentence for every parameter.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.flow: Flow = subject.roles.flow
        self.laws: dict[str, tuple[Distribution, float]] = {}
        self.aims: list[Aim] = []
        self.reasons: dict[str, str] = {}
        self.fixed: dict[str, Choice] = {}
        self._biases = _score_biases(subject.roles)
        for role in subject.roles.by_name.values():
            self._add(role)

    def _add(self, role: Role) -> None:
        if role.kind == "weight":
            self._weight(role)
        elif role.kind == "scale" and role.ends is not None:
            self._end(role)
            self.laws[role.name] = Constant(role.neutral), role.neutral
        elif role.kind in ("embedding", "position", "token"):
            self._source(role)
        else:
            self._fix(role, neutral(role))

    def _fix(self, role: Role, choice: Choice) -> None:
        self.fixed[role.name] = choice
        self.reasons[role.name] = choice.reason
        if choice.law is not None:
            value = choice.law.value if isinstance(choice.law, Constant) else 1.0
            self.laws[role.name] = choice.law, value

    def _weight(self, role: Role) -> None:
        """Aim at the output of the last operation that reads a weight: the settled state of a loop."""
        fan = role.fans.forward if role.fans is not None else math.prod(role.shape[1:])
        if not fan:
            self._fix(role, Choice(Constant(0.0), "it reads nothing: its fan is zero", marks=("unused",)))
            return
        self.laws[role.name] = Normal(fan**-0.5), fan**-0.5
        if role.ends is not None:
            self._end(role)
        elif "head" in role.parts:
            outputs = role.fans.layout.blocks * role.fans.layout.outputs if role.fans else role.shape[0]
            size = math.sqrt(EXCESS * math.log(max(outputs, 2)))
            self._aim(role, lambda _: size, f"logits of RMS {size:.2g}: the loss begins at chance")
        else:
            terms = parallel_terms(self.flow, subject_residuals(self.subject), _use(role).node)
            size = terms**-0.5
            what = f"one of {terms} paths that are summed" if terms > 1 else _destination(role)
            self._aim(role, lambda _: size, f"unit second moment for {what}" if terms == 1 else what)

    def _limit(self, role: Role, use: Use) -> tuple[float, int] | None:
        """Return how far a weight may make up for a small signal, and the node where that arrives."""
        looped = len([u for u in role.uses if u.kind == "weight"]) > 1
        boost = 1.0 if looped else BOOST if "attention output" in role.parts else None
        arriving = [n for n in self.flow.operands(use.node) if n is not use.operand]
        return None if boost is None or not arriving else (boost, arriving[0].index)

    def _end(self, role: Role) -> None:
        residual = role.ends
        assert residual is not None
        sharing = sum(
            other.ends is residual and other.kind == role.kind
            for other in self.subject.roles.by_name.values()
        )
        share = 1.0 / math.sqrt((residual.number + residual.since - 1) * max(sharing, 1))
        reason = (
            f"ends residual branch {residual.order} of {residual.number}: {share:.2g} of the stream's size"
        )
        watched = (residual.skip, residual.fork)
        self._aim(role, lambda solver: share * stream_size(solver, residual), reason, watched)

    def _source(self, role: Role) -> None:
        use = role.uses[-1]
        if use.node.index in self._biases or self._biases & _sums_behind(self.flow, use.node):
            self._fix(role, Choice(Constant(0.0), "added to attention scores: it starts at zero"))
            return
        terms = parallel_terms(self.flow, subject_residuals(self.subject), use.node)
        std = terms**-0.5
        self.laws[role.name] = Normal(std), std
        self.fixed[role.name] = Choice(Normal(std), "")
        self.reasons[role.name] = (
            "rows of unit size" if terms == 1 else f"one of {terms} terms that are summed to unit size"
        )

    def _aim(
        self,
        role: Role,
        size: Callable[[Solver], float],
        reason: str,
        watched: tuple[int, ...] = (),
    ) -> None:
        use = _use(role)
        limit = self._limit(role, use) if role.kind == "weight" else None
        self.reasons[role.name] = reason
        if limit is None:
            self.aims.append(Aim(role, use.node, size, watched))
            return
        boost, arriving = limit

        def limited(solver: Solver) -> float:
            there = solver.rms(arriving)
            return size(solver) * (1.0 if there is None else min(1.0, boost * there))

        self.aims.append(Aim(role, use.node, limited, (*watched, arriving)))

    def balances(self) -> list[Balance]:
        """Return what queries and keys should bring about together."""
        found = []
        for attention in self.subject.roles.attentions:
            names = tuple(
                role.name
                for role in self.subject.roles.by_name.values()
                if role.kind == "weight" and role.ends is None
                and any(u.node.index in (*attention.queries, *attention.keys) for u in role.uses)
            )  # fmt: skip
            if names:
                found.append(Balance(_scaled_scores(self.flow, attention), names, 1.0))
        return found

    def choice(self, name: str, found: Settled) -> Choice:
        """Return the choice for a parameter after the last pass."""
        role, reason = self.subject.roles[name], self.reasons[name]
        if name in found.solved:
            solved = found.solved[name]
            marks = ("measured",) if solved.how == "measured" else ()
            if role.kind == "scale":
                return Choice(Constant(solved.scale - (1.0 - role.neutral)), reason, marks=marks)
            return Choice(law_of(role, solved.scale, self.subject.family), reason, marks=marks)
        if name in found.missed:
            law, std = self.laws[name]
            text = f"{reason}; {found.missed[name]}, so taken from its fan"
            made = law if role.kind == "scale" else law_of(role, std, self.subject.family)
            return Choice(made, text, marks=("unsolved",))
        fixed = self.fixed[name]
        return Choice(fixed.law, reason, fixed.rate, fixed.marks)


def law_of(role: Role, std: float, family: str | None) -> Distribution:
    """Return the distribution of a weight with a standard deviation."""
    layout = role.fans.layout if role.fans is not None else None
    if family == "orthogonal" and layout is None:
        family = None  # nobody knows which axes the map has
    return of_kind(family or "normal", std, layout=layout)  # type: ignore[arg-type]


def stream_size(solver: Solver, residual: Residual) -> float:
    """Return the RMS of the stream that a branch is added to, as far as the pass has come."""
    size = solver.rms(residual.skip)
    if size is None and not residual.skips:
        size = solver.rms(residual.fork)
    return 1.0 if size is None or not size > 0.0 else size


def subject_residuals(subject: Subject) -> dict[int, Residual]:
    """Return the residual sums by node."""
    return subject.roles.streams.residuals


def _use(role: Role) -> Use:
    """Return the last operation that reads a parameter for what it is."""
    return [u for u in role.uses if u.kind == role.kind][-1]


def _destination(role: Role) -> str:
    if role.feeds:
        return {"product": "a product", "sum": "a sum", "linear": "the next weight"}.get(
            role.feeds[0], role.feeds[0]
        )
    return "what reads it"


def parallel_terms(flow: Flow, residuals: Mapping[int, Residual], node: Node) -> int:
    """Return how many paths are summed, without a skip among them, where a node's output goes first."""
    top: Node | None = None
    waiting = [node]
    while waiting:
        current = waiting.pop()
        readers = [flow.nodes[i] for i in flow.consumers[current.index] if flow.nodes[i].signal]
        for reader in readers:
            if reader.op in ADD and len(flow.signals(reader)) == 2 and reader.index not in residuals:
                top, waiting = reader, [reader]
            elif flow.transparent(reader) and len(readers) == 1:
                waiting.append(reader)
    return 1 if top is None else _terms(flow, residuals, top)


def _terms(flow: Flow, residuals: Mapping[int, Residual], node: Node) -> int:
    for current in flow.upstream(node):
        if current.op in ADD and len(flow.signals(current)) == 2 and current.index not in residuals:
            return sum(_terms(flow, residuals, s) for s in flow.signals(current))
    return 1


def _scaled_scores(flow: Flow, attention: Attention) -> int:
    """Return what the softmax reads: the scores after their scale, mask and bias."""
    signals = flow.signals(flow.nodes[attention.softmax])
    return signals[0].index


def _score_biases(roles: Roles) -> set[int]:
    """Return the nodes between scores and softmax, where biases are added."""
    found: set[int] = set()
    for attention in roles.attentions:
        node = roles.flow.nodes[attention.softmax]
        while node.index > attention.scores:
            signals = roles.flow.signals(node)
            if not signals:
                break
            found.add(node.index)
            node = max(signals, key=lambda s: (len(s.shape), s.index != attention.scores))
            if node.index == attention.scores:
                break
    return found


def _sums_behind(flow: Flow, node: Node) -> set[int]:
    """Return the sums that a looked-up row reaches through views."""
    found: set[int] = set()
    waiting, seen = [node.index], {node.index}
    while waiting:
        for i in flow.consumers[waiting.pop()]:
            reader = flow.nodes[i]
            if i in seen or not reader.signal:
                continue
            seen.add(i)
            if reader.op in ADD and len(flow.signals(reader)) == 2:
                found.add(i)
            elif flow.transparent(reader):
                waiting.append(i)
    return found
