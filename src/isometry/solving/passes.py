"""Repeat the solving pass until what only a whole pass can tell has settled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from isometry.errors import IsometryError
from isometry.flow.roles import Role, Roles
from isometry.flow.tracing import assumption
from isometry.moments.calls import Call
from isometry.plans import scaled
from isometry.rehearsal import REAL_LIMIT, Rehearsal, Stage
from isometry.sampling import Constant, Distribution
from isometry.solving.solver import Aim, Measuring, Solved, Solver, shift_of

_CLOSE = 0.01  # relative: what is nearer than this to its aim has settled
_LAG = 0.1  # relative: a weight that a pass changes by more is not yet what its earlier uses read
PASSES = 4


@dataclass(frozen=True)
class Balance:
    """Weights whose outputs are factors of one node, and the size that it should have.

    Attributes:
        node: The node.
        names: The weights.
        target: The size aimed at.
        spread: Whether the size is the standard deviation along the last dim, not the RMS.
        power: The power of what is missing that each weight takes over.
        of: A node of whose size, at its own aim, the target is a share; None: the target is a size.
    """

    node: int
    names: tuple[str, ...]
    target: float
    spread: bool = False
    power: float = 1.0
    of: int | None = None


@dataclass(frozen=True)
class Follower:
    """A table that is drawn as large as a share of what other tables give.

    Attributes:
        name: The table.
        nodes: What they give.
        share: The share.
    """

    name: str
    nodes: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Problem:
    """What is run.

    Attributes:
        source: The model, or the function that builds it.
        inputs: What it is fed.
        roles: The roles of its parameters.
        seed: Of draws on a real carrier.
    """

    source: nn.Module | Callable[[], nn.Module]
    inputs: object
    roles: Roles
    seed: int = 0


@dataclass
class Settled:
    """The scales after the last pass.

    Attributes:
        solved: By parameter.
        missed: Aims that could not be solved, with the reason.
        passes: How many passes it took.
        kind: On which carrier the last one ran.
        laws: What each parameter is drawn from at its scale, with its standard deviation.
    """

    solved: dict[str, Solved] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    passes: int = 0
    kind: str = "meta"
    laws: dict[str, tuple[Distribution, float]] = field(default_factory=dict)


def settled(
    problem: Problem,
    laws: Mapping[str, tuple[Distribution, float]],
    aims: Sequence[Aim],
    balances: Sequence[Balance] = (),
    followers: Sequence[Follower] = (),
    *,
    measuring: Measuring = "unknown",
) -> Settled:
    """Solve all aims, and share what balances lack among their weights, pass by pass.

    The first pass settles every weight that is read once. A weight that is read several times is solved where
    it is read last, with what the pass before gave it; a balance is told at the end of a pass, and so is what
    a table follows. So all of these need two passes, and a third to confirm. Where nothing is aimed at the
    model is not run.

    Args:
        problem: The model, its inputs and its roles.
        laws: What each parameter is drawn from before it is solved, with its standard deviation.
        aims: What is solved for.
        balances: What several weights bring about together.
        followers: Tables whose size follows that of others.
        measuring: When real values decide: where a record is "unknown", "always" or "never".

    Returns:
        What was found.
    """
    current = dict(laws)
    factors: dict[str, float] = {}
    found = Settled(laws=current)
    if not aims and not balances:
        return found
    several = any(len([u for u in a.role.uses if u.kind == a.role.kind]) > 1 for a in aims)
    for number in range(1, PASSES + 1):
        stage, solver = _pass(problem, current, aims, balances, followers, factors, measuring)
        found = Settled(solver.solved, solver.missed, number, stage.kind, current)
        moved = _rebalance(solver, balances, factors, current) | _follow(solver, followers, current)
        changed = several and _changed(current, solver.solved)
        for name, solved in solver.solved.items():
            current[name] = (_at(problem.roles[name], *current[name], solved.scale), solved.scale)
        if not moved and not changed:
            break
    return found


def _at(role: Role, law: Distribution, now: float, scale: float) -> Distribution:
    """Return a parameter's law at another scale."""
    if isinstance(law, Constant):
        return Constant(scale - shift_of(role))
    return scaled(law, scale / now)


def _pass(
    problem: Problem,
    laws: Mapping[str, tuple[Distribution, float]],
    aims: Sequence[Aim],
    balances: Sequence[Balance],
    followers: Sequence[Follower],
    factors: Mapping[str, float],
    measuring: Measuring,
) -> tuple[Stage, Solver]:
    """Run the model once; again on real tensors where records are unknown and it fits."""
    by_call: dict[Call | None, list[Aim]] = {}
    for aim in aims:
        factor = factors.get(aim.role.name, 1.0)
        own = replace(aim, size=_times(aim, factor)) if factor != 1.0 else aim
        by_call.setdefault(aim.node.call, []).append(own)
    nodes = {n for b in balances for n in (b.node, b.of) if n is not None}
    watched = nodes.union(*(x.watched for x in aims), *(x.nodes for x in followers))

    def begin(stage: Stage) -> Solver:
        return Solver(stage, problem.roles, laws, by_call, frozenset(watched), measuring, problem.seed)

    run = Rehearsal[Solver](problem.source, problem.inputs, backward=False, assumed=assumption({}))
    stage, solver = (replace(run, prefer="real") if measuring == "always" else run).run(begin)
    unknown = [n for n, why in solver.missed.items() if "unknown" in why]
    small = sum(p.numel() for p in stage.model.parameters()) <= REAL_LIMIT
    if unknown and stage.kind == "meta" and measuring == "unknown" and small:
        try:
            return replace(run, prefer="real").run(begin)
        except IsometryError:
            return stage, solver  # nobody can run it here: the rows say so
    return stage, solver


def _times(aim: Aim, factor: float) -> Callable[[Solver], float]:
    return lambda solver: factor * aim.size(solver)


def _rebalance(
    solver: Solver,
    balances: Sequence[Balance],
    factors: dict[str, float],
    laws: Mapping[str, tuple[Distribution, float]],
) -> bool:
    """Multiply the aims of each balance's weights by their share of what it lacks."""
    lacking: dict[str, list[tuple[float, float]]] = {}
    moved = False
    for balance in balances:
        if balance.of is not None and any(_lags(solver, name, laws) for name in balance.names):
            moved = True
            continue
        size = solver.spread(balance.node) if balance.spread else solver.rms(balance.node)
        base = 1.0 if balance.of is None else solver.rms(balance.of)
        if size is not None and size > 0.0 and base:
            for name in [n for n in balance.names if n in solver.solved]:
                there = 1.0 if balance.of is None else factors.get(name, 1.0)
                log = math.log(balance.target * base / (there * size))
                lacking.setdefault(name, []).append((log, balance.power))
    for name, own in lacking.items():
        # A weight that is read step after step is in a balance for each: it makes up for their average.
        if abs(math.expm1(math.fsum(log for log, _ in own) / len(own))) > _CLOSE:
            share = math.fsum(power * log for log, power in own) / len(own)
            factors[name] = factors.get(name, 1.0) * math.exp(share)
            moved = True
    return moved


def _lags(solver: Solver, name: str, laws: Mapping[str, tuple[Distribution, float]]) -> bool:
    """Return whether a weight had, where it was read before it was solved, clearly another scale."""
    if name not in solver.solved or len(solver.roles[name].uses) < 2:
        return False
    return abs(solver.solved[name].scale - laws[name][1]) > _LAG * abs(laws[name][1])


def _follow(
    solver: Solver, followers: Sequence[Follower], laws: dict[str, tuple[Distribution, float]]
) -> bool:
    """Draw each table anew at its share of what it follows: the root of the mean of their squares."""
    moved = False
    for follower in followers:
        sizes = [size for node in follower.nodes if (size := solver.rms(node))]
        if not sizes:
            continue
        law, now = laws[follower.name]
        scale = follower.share * math.sqrt(sum(size**2 for size in sizes) / len(sizes))
        moved |= abs(scale - now) > _CLOSE * scale
        laws[follower.name] = scaled(law, scale / now), scale
    return moved


def _changed(laws: Mapping[str, tuple[Distribution, float]], solved: Mapping[str, Solved]) -> bool:
    return any(abs(s.scale - laws[n][1]) > _CLOSE * abs(s.scale) for n, s in solved.items())
