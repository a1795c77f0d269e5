"""Layer-sequential unit variance: orthonormal weights, each scaled by what a batch gives behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from isometry.errors import InvalidTypeError, ModelError
from isometry.flow.roles import Role
from isometry.init.channels import PerChannel
from isometry.init.structured import of_kind
from isometry.plans import Plan, Row, scaled, std_of
from isometry.recipes.base import Choice, Subject, neutral, recipe
from isometry.recipes.laws import kept
from isometry.sampling import Distribution
from isometry.solving.calibration import measured
from isometry.solving.passes import Problem
from isometry.solving.solver import Solved


@recipe(
    "lsuv",
    source="Mishkin and Matas (2016), All you need is a good init",
    options=("per_channel",),
)
def lsuv(subject: Subject) -> Mapping[str, Choice]:
    """Orthonormal weights, each scaled so that what it gives on the batch has unit size, one after another.

    W ← W/RMS(W·x), in order of execution, each on what the weights before it now give; exact on the batch and
    with the plan's seed after one run, where the paper repeats until within 0.1 (biases are zero, so outputs
    are proportional to weights). The size is about zero: the paper's variance where outputs have mean zero.
    It is taken at the operation that reads the weight, where it is read first, so functional code, bare
    parameters, fused queries, keys and values, and computed weights are seen; no hooks are needed. A state
    that begins at zero leaves its recurrent weight orthonormal, marked unsolved. The model must have values
    or be a function that builds it: real numbers are run.

    Options: `per_channel=True` scales each output channel of a convolution by itself.
    """
    by_channel = subject.option("per_channel", False)
    if not isinstance(by_channel, bool):
        raise InvalidTypeError(f"per_channel must be True or False, got {by_channel!r}")
    if isinstance(subject.source, nn.Module) and any(p.is_meta for p in subject.source.parameters()):
        raise ModelError(
            "recipe 'lsuv' runs the model on real numbers, and this one is on meta: give the function that "
            "builds it"
        )
    found = {role.name: _drawn(subject, role) for role in subject.roles.by_name.values()}
    channels = {r.name for r in subject.weights() if by_channel and _has_channels(r)} & _scalable(found)
    for name in channels:
        found[name] = _with_channels(subject.roles[name], found[name])
    laws = {
        name: (choice.law, std_of(choice.law, subject.roles[name].shape) or 0.0)
        for name, choice in found.items()
        if choice.law is not None
    }
    weights = {role.name: 1.0 for role in subject.weights() if role.name in _scalable(found)}
    problem = Problem(_source(subject, found), subject.inputs, subject.roles, subject.seed)
    solver = measured(problem, laws, weights, channels)
    subject.notes.append(f"lsuv: measured with the draws of seed {subject.seed}: apply_ with the same one")
    for name in weights:
        if name in solver.solved:
            found[name] = _scaled(found[name], laws[name][1], solver.solved[name])
        else:
            reason = f"{solver.missed.get(name, 'it was not reached')}, so only orthonormal"
            found[name] = replace(found[name], reason=reason, marks=("unsolved",))
    return found


def _source(subject: Subject, found: Mapping[str, Choice]) -> nn.Module | Callable[[], nn.Module]:
    """Return what is run: a copy that holds the first draws, where weights are computed from others."""
    source, roles = subject.source, subject.roles.by_name
    if all(len(role.nodes) == 1 for role in roles.values()):
        return source
    model = copy.deepcopy(source) if isinstance(source, nn.Module) else source()
    rows = (Row(name, roles[name].shape, "", choice.law, choice.reason) for name, choice in found.items())
    return Plan(tuple(rows), "lsuv", "forward").apply_(model, seed=subject.seed)


def _drawn(subject: Subject, role: Role) -> Choice:
    """Return what a parameter is drawn from before anything is measured."""
    if role.kind != "weight":
        return neutral(role)
    family = subject.family or "orthogonal"
    if role.fans is None and family == "orthogonal":
        return kept(role)
    layout = role.fans.layout if role.fans is not None else None
    fan = role.fans.forward if role.fans is not None else max(role.shape[-1:], default=1)
    return Choice(of_kind(family, float(max(fan, 1)) ** -0.5, layout=layout), "unit size behind it")


def _scalable(found: Mapping[str, Choice]) -> set[str]:
    return {name for name, choice in found.items() if choice.reason == "unit size behind it"}


def _has_channels(role: Role) -> bool:
    """Return whether a weight is a convolution's, whose outputs lie along the second axis."""
    use = next(u for u in role.uses if u.kind == "weight")
    return "conv" in use.node.op and role.fans is not None and len(role.nodes) == 1


def _with_channels(role: Role, choice: Choice) -> Choice:
    assert role.fans is not None
    assert choice.law is not None
    layout = role.fans.layout
    ones = (1.0,) * (layout.blocks * layout.outputs)
    return replace(choice, law=PerChannel(choice.law, ones, layout))


def _scaled(choice: Choice, std: float, solved: Solved) -> Choice:
    """Return a choice with the scale that was measured."""
    law: Distribution | None = choice.law
    assert law is not None
    if solved.channels and isinstance(law, PerChannel):
        made: Distribution = replace(law, factors=solved.channels)
        reason = "each channel of unit size on the batch"
    else:
        made, reason = scaled(law, solved.scale / std), "unit size behind it on the batch"
    return replace(choice, law=made, reason=reason, marks=("calibrated",))
