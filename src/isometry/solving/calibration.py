"""Calibrate a plan on real data: what is measured behind every weight becomes what was predicted there."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from isometry.flow.roles import Role, Use
from isometry.flow.tracing import assumption, study
from isometry.moments.calls import Call
from isometry.rehearsal import Rehearsal, Stage
from isometry.sampling import Constant, Distribution
from isometry.solving.passes import Problem
from isometry.solving.solver import ELSEWHERE, Aim, Solver


@dataclass(frozen=True)
class Calibrated:
    """What a measurement asks of a plan.

    Attributes:
        factors: By parameter, what its scale is to be multiplied by.
        untouched: Parameters whose output could not be compared, with the reason.
    """

    factors: dict[str, float]
    untouched: dict[str, str]


def calibrated(problem: Problem, laws: Mapping[str, tuple[Distribution, float]]) -> Calibrated:
    """Compare what is predicted behind every weight with what one draw of the plan gives on the batch.

    Two passes, whatever the depth: one predicts the RMS behind every weight, the other runs the drawn model
    and rescales each weight where it is read, so that what follows already sees it. Afterwards the RMS behind
    every weight that is read once is the predicted one, to rounding.

    Args:
        problem: The model, which needs values or a builder, its inputs and its roles.
        laws: What each parameter is drawn from, with its standard deviation.

    Returns:
        The factors.

    Raises:
        The errors of `isometry.predict`; ModelError also where the model has no values to run on.
    """
    uses = {
        name: _first(role)
        for name, role in problem.roles.by_name.items()
        if name in laws and role.kind == "weight" and len(role.nodes) == 1
        and not isinstance(laws[name][0], Constant) and laws[name][1] > 0.0
    }  # fmt: skip
    watched = frozenset(use.node.index for use in uses.values())

    def predicting(stage: Stage) -> Solver:
        return Solver(stage, problem.roles, laws, {}, watched, "never", problem.seed)

    rehearsal = Rehearsal[Solver](problem.source, problem.inputs, backward=False, assumed=assumption({}))
    _, expected = rehearsal.run(predicting)
    sizes = {name: expected.linear_rms(use.node.index) for name, use in uses.items()}
    untouched = {
        name: "its output is unknown" if size is None else "its output is zero"
        for name, size in sizes.items()
        if size is None or not size > 0.0
    }
    found = measured(problem, laws, {name: s for name, s in sizes.items() if s is not None and s > 0.0})
    factors = {name: solved.scale / laws[name][1] for name, solved in found.solved.items()}
    return Calibrated(factors, untouched | found.missed)


def measured(
    problem: Problem,
    laws: Mapping[str, tuple[Distribution, float]],
    sizes: Mapping[str, float],
    channels: Container[str] = (),
) -> Solver:
    """Run the drawn model once, and rescale each weight where it is first read, in order of execution.

    Args:
        problem: The model, which needs values or a builder, its inputs and its roles.
        laws: What each parameter is drawn from, with its standard deviation.
        sizes: The RMS that the output of each of these weights is to have on the batch.
        channels: Convolutions of which each channel is to have it by itself.

    Returns:
        The solver, with what it found.

    Raises:
        The errors of `isometry.predict`; ModelError also where the model has no values to run on.
    """
    found = _run(problem, laws, sizes, channels)
    if any(found.missed.get(name, ELSEWHERE) == ELSEWHERE for name in sizes if name not in found.solved):
        # Kernels such as recurrent ones are other operations on real tensors: read the roles from those.
        roles = study(problem.source, problem.inputs, prefer="real").roles
        found = _run(replace(problem, roles=roles), laws, sizes, channels)
    return found


def _run(
    problem: Problem,
    laws: Mapping[str, tuple[Distribution, float]],
    sizes: Mapping[str, float],
    channels: Container[str],
) -> Solver:
    aims: dict[Call | None, list[Aim]] = {}
    for name, size in sizes.items():
        role = problem.roles[name]
        use = _first(role)
        aim = Aim(role, use.node, lambda _, wanted=size: wanted, by_channel=name in channels)  # type: ignore[misc]
        aims.setdefault(use.node.call, []).append(aim)

    def measuring(stage: Stage) -> Solver:
        return Solver(stage, problem.roles, laws, aims, frozenset(), "always", problem.seed)

    real = Rehearsal[Solver](problem.source, problem.inputs, backward=False, prefer="real")
    return real.run(measuring)[1]


def _first(role: Role) -> Use:
    return next(use for use in role.uses if use.kind == "weight")
