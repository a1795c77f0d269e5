"""The recipe "auto": every weight gets its scale from the signal that is predicted to arrive there.

What is aimed at, in RMS:

- 1 behind every weight that feeds an activation, a norm, a gate, a router: pre-activations of unit size;
- 1/√k behind each of k parallel paths that are summed, tables of embeddings among them; a table of positions
  has 0.3 of the size of what it is added to, so that tokens begin as tokens;
- 0.3·r/√(N + p − 1) at the end of the p-th of N residual branches, where r is the size of the stream there
  and p counts from the last norm on the stream: the stream grows by 5 % at most, however deep, gradients too
  (0.3·r/(N + p − 1) where the branch has no weight, because what such branches add does not average out;
  r/√(N + p − 1), at most √2, where the scale of a norm ends the branch; as much for all the branches of a
  decoder together that read the encoder, which are the only way back to it);
- N^(−1/3) in place of 1 within each of N branches that no norm precedes, values and gates among it, and as
  much less at their ends: the first steps add to the stream in proportion to what a branch's last weight
  reads, however small that weight is, and much the same to every token; over N branches it was more than the
  tokens themselves;
- attention scores that vary by 1 along the softmax: query and key share what is missing;
- √(0.06·ln C) for C logits: cross-entropy then begins 3 % above ln C, its value for equal chances. A head
  that is also the table of tokens has rows of the size that tokens want, and the scale of the norm before it
  makes the logits' size: were the rows small, so were the stream that begins with them, and the first steps
  of an optimiser that knows no sizes would bury the tokens. Without such a scale the rows are small, and what
  is added to them is as small;
- 0.02 in place of 1 for the sum of rows of tables that nothing reads but a norm: see `recipes.rows`.

The constants 0.3, 0.3, 0.06 and 0.02 are empirical: larger branches, positions and rows learn more slowly in
the short runs of benchmarks/trainability.py, much smaller ones no faster; behind a norm smaller branches do.
So is the third root: with the fourth, gated branches diverge there where they learn well with the third.

Where a small signal arrives that will grow in training no weight is enlarged to make up for it: behind an
attention, which begins as an average of unrelated tokens, by 2 at most; in a loop, whose state begins at
zero, and where shares of a softmax are mixed, not at all; a head, behind a pooling, has gain 1 at most.

Weights in plain chains (no norm, no skip) of six activations or more follow the recipe "isometric", unless
another objective than "forward" is asked for, see `gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from isometry.flow.factors import factor_behind
from isometry.flow.gates import sets_decay
from isometry.flow.graph import SOFTMAX, Flow, Node
from isometry.flow.growth import growth_of
from isometry.flow.roles import Part, Role, Use
from isometry.flow.stacks import stacks_of
from isometry.flow.stages import stages_of
from isometry.flow.streams import Residual
from isometry.flow.sums import parallel_terms, score_sums, sums_behind
from isometry.flow.tied import tied_tables
from isometry.init.structured import Gates
from isometry.names import canonical_name
from isometry.plans import std_of
from isometry.recipes.base import Choice, Subject, neutral, recipe
from isometry.recipes.branches import branch_balances, stream_size, summed_ends
from isometry.recipes.given import chosen_bias, set_weights
from isometry.recipes.gradients import for_gradients
from isometry.recipes.isometric import plain_choices
from isometry.recipes.laws import law_of
from isometry.recipes.rows import ROWS, small_tables
from isometry.recipes.scores import score_balances
from isometry.sampling import Constant, Distribution, Normal
from isometry.solving.evening import even_sizes
from isometry.solving.passes import Balance, Follower, Problem, Settled, settled
from isometry.solving.solver import Aim, Solver

EXCESS = 0.06  # twice the relative excess of the initial loss over ln C
SHARE = 0.3  # of the stream: what all branches together add to it, as RMS
PLACE = 0.3  # of a token's row: a row of positions
PLAIN = 6  # activations one behind another from which on a plain chain needs an isometry
_SCORES: frozenset[Part] = frozenset(["query", "key"])
BOOST = 2.0  # how far the weight behind an average makes up for what that took


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
    balances = draft.balances()
    aims = for_gradients(subject, draft.aims, balances, draft.reasons)
    found = settled(problem, draft.laws, aims, balances, draft.followers)
    if evened := draft.evened(problem, found, balances):
        found = settled(problem, draft.laws, aims, evened, draft.followers)
    return {name: draft.choice(name, found) for name in subject.roles.by_name}


class Draft:
    """The laws and aims with which the first pass begins.

    Args:
        subject: The model and its roles.

    Attributes:
        laws: What each parameter is drawn from before it is solved, with its standard deviation.
        aims: What is solved for.
        reasons: One sentence for every parameter.
        followers: Tables that are added to rows whose size is solved for.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.flow: Flow = subject.roles.flow
        self._parameters = {canonical_name(name): p for name, p in subject.model.named_parameters()}
        self.laws: dict[str, tuple[Distribution, float]] = {}
        self.aims: list[Aim] = []
        self.reasons: dict[str, str] = {}
        self.fixed: dict[str, Choice] = {}
        self.followers: list[Follower] = []
        self._biases = score_sums(subject.roles)
        self._reading = {node: stack.reading for stack in stacks_of(subject.roles) for node in stack.reading}
        self._stages = stages_of(self.flow, subject.roles.streams)
        self._tied = tied_tables(subject.roles)
        self._last = {table.scale: name for name, table in self._tied.items() if table.scale}
        self._small = small_tables(subject, self._tied)
        self._targets: list[Balance] = []
        self._powers: dict[int, float] = {}
        self._settled = set_weights(subject.roles, subject.constructed) | dict(subject.settled)
        self._gains = {role.gain for role in subject.roles.by_name.values()} - {*self._settled}
        plain = subject.objective == "forward" and subject.family is None
        self._woven = plain_choices(subject, activations=PLAIN) if plain else {}
        for role in subject.roles.by_name.values():
            self._add(role)

    def _add(self, role: Role) -> None:
        if role.name in self._settled:
            self._fix(role, self._settled[role.name])
        elif role.name in self._woven:
            self._fix(role, self._woven[role.name])
        elif role.name in self._tied and self._tied[role.name].scale:
            self._table(role)
        elif role.name in self._last:
            self._last_scale(role)
        elif role.kind == "weight":
            self._weight(role)
        elif role.name in self._gains:
            self.laws[role.name] = Constant(role.neutral), 1.0  # solved in its weight's place
        elif role.kind == "scale" and (role.ends is not None or self._enters(role)):
            self.laws[role.name] = Constant(role.neutral), 1.0
            if role.ends is not None:
                self._end(role)
            else:
                self._aim(role, lambda _: 1.0, "the residual stream begins behind it, at unit size")
        elif role.kind in ("embedding", "position", "token"):
            self._source(role)
        elif role.kind == "bias" and sets_decay(self.flow, role.uses[0].node):
            self._fix(role, Choice(None, "it sets how long a state lasts: kept", marks=("kept",)))
        else:
            self._fix(role, self._bias(role) or neutral(role))

    def _bias(self, role: Role) -> Choice | None:
        """Return the choice for a bias that the code sets; None for any other parameter."""
        given = self.subject.constructed.get(role.name)
        return chosen_bias(role, self._parameters.get(role.name), given) if role.kind == "bias" else None

    def _enters(self, role: Role) -> bool:
        """Return whether a parameter decides how large a residual stream is where it begins."""
        reading = {use.node.index for use in role.uses}
        return any(not reading.isdisjoint(stage.deciders) for stage in self._stages)

    def _fix(self, role: Role, choice: Choice) -> None:
        self.fixed[role.name] = choice
        self.reasons[role.name] = choice.reason
        if isinstance(choice.law, Constant):
            self.laws[role.name] = choice.law, choice.law.value
        elif choice.law is not None and not isinstance(choice.law, Gates):  # those are as constructed
            self.laws[role.name] = choice.law, std_of(choice.law, role.shape) or 0.0

    def _weight(self, role: Role) -> None:
        """Aim at the output of the last operation that reads a weight: the settled state of a loop."""
        fan = role.fans.forward if role.fans is not None else math.prod(role.shape[1:])
        if not fan:
            self._fix(role, Choice(Constant(0.0), "it reads nothing: its fan is zero", marks=("unused",)))
            return
        self.laws[role.name] = Normal(fan**-0.5), fan**-0.5
        if role.undone:
            whose = f": {role.gain} has it" if role.gain else ""
            self._fix(role, Choice(Normal(fan**-0.5), f"the code undoes its own scale{whose}"))
            if role.gain is None:
                return
        if role.ends is not None:
            self._end(role)
        elif "head" in role.parts:
            self._head(role)
        else:
            size, what = self._share(role, _use(role).node)
            shrink, _ = self._within(role.residual)
            if role.residual and shrink < 1 and not role.parts & _SCORES:
                size *= shrink
                what = f"{size:.2g} within one of {role.residual.number} branches that no norm precedes"
            self._aim(role, lambda _: size, what or f"unit second moment for {_destination(role)}")

    def _table(self, role: Role) -> None:
        """Aim at rows of the size that tokens want, of a table whose scale as a head is another's."""
        node = self.flow.nodes[self._tied[role.name].lookups[0]]
        size, what = self._rows(role, node)
        self.laws[role.name] = Normal(size), size
        self.aims.append(Aim(role, node, lambda _: size))
        self.reasons[role.name] = (
            f"{what or 'rows of unit size'}: the norm before the head makes the logits small"
        )
        terms = (self.flow.nodes[i] for i in parallel_terms(self.subject.roles, node).signals)
        rows = [n.index for n in terms if any(m is node for m in self.flow.upstream(n))]
        self._targets += [Balance(i, (role.name,), size) for i in rows]

    def _last_scale(self, role: Role) -> None:
        """Aim at the logits of a head whose rows are as large as tokens want them."""
        head = self.subject.roles[self._last[role.name]]
        size, rows = self._logits(head), self._tied[head.name].lookups[0]
        here = size / self._behind(head)
        fan = head.fans.forward if head.fans is not None else head.shape[-1]
        self.laws[role.name] = Constant(role.neutral), 1.0
        self._aim(
            role,
            lambda solver: here / (math.sqrt(fan) * (solver.rms(rows) or 1.0)),
            f"logits of RMS {size:.2g}: the loss begins at chance, though the head's rows are the tokens'",
            (rows,),
        )
        self._targets.append(Balance(_use(head).node.index, (role.name,), here))

    def _behind(self, head: Role) -> float:
        """Return the number that the code multiplies a head's logits by."""
        return abs(factor_behind(self.flow, _use(head).node)) or 1.0

    def _logits(self, role: Role) -> float:
        """Return the size of logits that begin at chance.

        Where the head is also the table that tokens are looked up in, a stream that still is the token has
        the logit size·√d for itself: e to it, one of C terms, may be EXCESS/2 of C·ln C as well.
        """
        outputs = role.fans.layout.blocks * role.fans.layout.outputs if role.fans else role.shape[0]
        chance = math.log(max(outputs, 2))
        size = math.sqrt(EXCESS * chance)
        if role.fans is None or role.name not in self._tied:
            return size
        own = max(math.log(max(EXCESS / 2 * outputs * chance, 1.0)), 1.0)
        return min(size, own / math.sqrt(role.fans.forward))

    def _head(self, role: Role) -> None:
        """Aim at logits that begin at chance, with a gain of 1 at most."""
        size, behind = self._logits(role), self._behind(role)
        if role.fans is not None and role.name in self._tied:
            begin = size / behind / math.sqrt(role.fans.forward)  # it is looked up before it is solved
            self.laws[role.name] = Normal(begin), begin
        arriving = tuple(n.index for n in self.flow.operands(_use(role).node) if n.signal)

        def logits(solver: Solver) -> float:
            found = [there for index in arriving if (there := solver.rms(index)) is not None]
            return min(size, *found, size) / behind

        self._aim(role, logits, f"logits of RMS {size:.2g} at most: the loss begins at chance", arriving)

    def _limit(self, role: Role, use: Use) -> tuple[float, int] | None:
        """Return how far a weight may make up for a small signal, and the node where that arrives."""
        arriving = [n for n in self.flow.operands(use.node) if n is not use.operand]
        if not arriving:
            return None
        looped = len([u for u in role.uses if u.kind == "weight"]) > 1
        shares = any(n.op in SOFTMAX for n in self.flow.upstream(arriving[0]))
        boost = 1.0 if looped or shares else BOOST if "attention output" in role.parts else None
        return None if boost is None else (boost, arriving[0].index)

    def _end(self, role: Role) -> None:
        residual = role.ends
        assert residual is not None
        share = self._whole(role, residual) / math.sqrt(summed_ends(self.subject.roles, role, residual))
        place = residual.number + residual.since - 1
        # Without a weight nothing in it is random: what such branches add does not average out.
        share /= place if residual.layers == 0 else math.sqrt(place)
        shrink, power = self._within(residual)
        share *= shrink**power
        reason = (
            f"ends residual branch {residual.order} of {residual.number}: {share:.2g} of the stream's size"
        )
        watched = (residual.skip, residual.fork)
        self._aim(role, lambda solver: share * stream_size(solver, residual), reason, watched)

    def _within(self, residual: Residual | None) -> tuple[float, float]:
        """Return the size of signals within a branch, and the power of it that the branch's end reads."""
        if residual is None:
            return 1.0, 0.0
        if residual.node not in self._powers:
            self._powers[residual.node] = growth_of(self.flow, residual)
        power = self._powers[residual.node]
        return residual.number ** (-1 / 3) if power else 1.0, power

    def _whole(self, role: Role, residual: Residual) -> float:
        """Return what all branches of a stream together may add, as a share of its size."""
        if residual.node in self._reading:
            return math.sqrt(residual.number / len(self._reading[residual.node]))
        return SHARE if role.kind == "weight" or residual.layers == 0 else 1.0

    def _source(self, role: Role) -> None:
        use = role.uses[-1]
        if self._biases & sums_behind(self.flow, use.node):
            self._fix(role, Choice(Constant(0.0), "added to attention scores: it starts at zero"))
            return
        std, what = self._rows(role, use.node)
        terms = parallel_terms(self.subject.roles, use.node)
        if tied := self._small_rows(terms.signals):
            by_place = self._by_place(role, use.node)
            self.followers.append(Follower(role.name, tuple(tied), PLACE if by_place else 1.0))
            what = what if by_place else "as large as the rows that it is added to"
            std *= max((self.laws[name][1] for name in tied.values() if name in self.laws), default=1.0)
        self.laws[role.name] = Normal(std), std
        self.reasons[role.name] = what or "rows of unit size"

    def _rows(self, role: Role, node: Node) -> tuple[float, str]:
        """Return the size of a table's rows, and its name."""
        size, what = self._share(role, node)
        small = f"{what or 'rows'}, times {ROWS:g}: only a norm reads them, and small ones learn sooner"
        return (ROWS * size, small) if role.name in self._small else (size, what)

    def _share(self, role: Role, node: Node) -> tuple[float, str]:
        """Return the size of one term of a sum of unit size, and its name; 1 where there is no sum."""
        terms = parallel_terms(self.subject.roles, node)
        signals = len(terms.signals)
        if not signals:
            return terms.places**-0.5, ""
        whole = 1.0 / math.sqrt(signals + terms.places * PLACE**2)
        if self._by_place(role, node):
            return PLACE * whole, f"positions, {PLACE:g} of what they are added to"
        if signals + terms.places == 1:
            return 1.0, ""
        with_ = " with positions" if terms.places else ""
        rows = role.kind != "weight" or role.name in self._tied
        what = f"one of {signals} terms" if signals > 1 else "rows" if rows else "a path"
        return whole, f"{what} of a sum{with_} of unit size"

    def _small_rows(self, nodes: tuple[int, ...]) -> dict[int, str]:
        """Return those of some nodes that are rows of a table which is small, as a head, and its name."""
        looked = {i: name for name, table in self._tied.items() if not table.scale for i in table.lookups}
        each = ((i, n.index) for i in nodes for n in self.flow.upstream(self.flow.nodes[i]))
        return {i: looked[n] for i, n in each if n in looked}

    def _by_place(self, role: Role, node: Node) -> bool:
        return role.kind == "position" or node.index in self.subject.roles.lookups_by_place

    def _aim(
        self,
        role: Role,
        size: Callable[[Solver], float],
        reason: str,
        watched: tuple[int, ...] = (),
    ) -> None:
        use = _use(role)
        limit = self._limit(role, use) if role.kind == "weight" else None
        knob = self.subject.roles[role.gain] if role.gain else role
        self.reasons[knob.name] = reason
        if limit is None:
            self.aims.append(Aim(knob, use.node, size, watched))
            return
        boost, arriving = limit

        def limited(solver: Solver) -> float:
            there = solver.rms(arriving)
            return size(solver) * (1.0 if there is None else min(1.0, boost * there))

        self.aims.append(Aim(knob, use.node, limited, (*watched, arriving)))

    def balances(self) -> list[Balance]:
        """Return what only a whole pass can tell: the spread of scores, the size at which a stream begins."""
        found = list(self._targets)
        for balance, factors in score_balances(self.subject.roles, self._readers, {*self.subject.settled}):
            found.append(balance)
            for role in factors:
                before = next(n.index for n in self.flow.signals(_use(role).node))
                self.laws[role.name] = Constant(role.neutral), 1.0
                self._aim(
                    role, partial(_same, before), "scores of normed queries and keys vary by 1", (before,)
                )
        for stage in self._stages:
            names = self._readers(stage.deciders)
            if names:
                found.append(Balance(stage.begin, names, 1.0))
        return [*found, *branch_balances(self.subject.roles, self.aims)]

    def evened(self, problem: Problem, found: Settled, balances: list[Balance]) -> list[Balance]:
        """Return the balances with sizes at which gradients are as even as sizes; none where they are."""
        sizes: dict[int, float] = {}
        for stream in {stage.stream for stage in self._stages}:
            stages = [stage for stage in self._stages if stage.stream == stream]
            if len(stages) > 1 and stages[0].first not in self.subject.roles.streams.outer:
                told = even_sizes(problem, found.laws, stages)
                sizes |= {stage.begin: told.get(stage.first, 1.0) for stage in stages[1:]}
        for balance in balances:
            for name in balance.names if balance.node in sizes else ():
                self.reasons[name] = (
                    f"a stage of the residual stream begins behind it, at {sizes[balance.node]:.2g}: as far "
                    "from the first stage's as its gradient is"
                )
        return [replace(b, target=sizes.get(b.node, b.target)) for b in balances] if sizes else []

    def _readers(self, nodes: tuple[int, ...]) -> tuple[str, ...]:
        """Return the parameters with an aim that operations read."""
        aimed = {aim.role.name for aim in self.aims}
        return tuple(
            role.name
            for role in self.subject.roles.by_name.values()
            if role.name in aimed and any(u.node.index in nodes for u in role.uses)
        )

    def choice(self, name: str, found: Settled) -> Choice:
        """Return the choice for a parameter after the last pass."""
        role, reason = self.subject.roles[name], self.reasons[name]
        if name in found.solved:
            solved = found.solved[name]
            marks = ("measured",) if solved.how == "measured" else ()
            if role.kind == "scale":
                return Choice(Constant(solved.scale - (1.0 - role.neutral)), reason, marks=marks)
            return Choice(law_of(role, solved.scale, self.subject.family), reason, marks=marks)
        if name in found.missed or any(aim.role.name == name for aim in self.aims):
            law, std = self.laws[name]
            why = found.missed.get(name, "the code took another way in another run")
            text = f"{reason}; {why}, so taken from its fan"
            made = law if role.kind == "scale" else law_of(role, std, self.subject.family)
            return Choice(made, text, marks=("unsolved",))
        if name not in self.fixed:  # a table
            return Choice(found.laws[name][0], reason)
        fixed = self.fixed[name]
        return Choice(fixed.law, reason, fixed.rate, fixed.marks)


def _same(node: int, solver: Solver) -> float:
    """Return the size of a watched node."""
    return solver.rms(node) or 1.0


def _use(role: Role) -> Use:
    """Return the last operation that reads a parameter for what it is."""
    return [u for u in role.uses if u.kind == role.kind][-1]


def _destination(role: Role) -> str:
    if role.feeds:
        return {"product": "a product", "sum": "a sum", "linear": "the next weight"}.get(
            role.feeds[0], role.feeds[0]
        )
    return "what reads it"
