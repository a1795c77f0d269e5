"""Residual branches that begin small or silent: by their depth, by a scale, by their last norm."""

from __future__ import annotations

from collections.abc import Mapping

from isometry.flow.roles import Role
from isometry.flow.stacks import multipliers
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.laws import scaled
from isometry.recipes.standard import kaiming_choices
from isometry.sampling import Constant, Normal


@recipe(
    "fixup",
    source="Zhang, Dauphin and Ma (2019), Fixup initialization",
)
def fixup(subject: Subject) -> Mapping[str, Choice]:
    """He's; in L branches of m layers times L^(-1/(2m-2)), the last layer of each and the head zero."""

    def factor(role: Role) -> float:
        residual = role.residual
        if residual is None or residual.layers < 2:
            return 1.0
        return float(residual.number ** (-1 / (2 * residual.layers - 2)))

    found = kaiming_choices(subject, factor)
    for role in subject.weights():
        if role.ends is not None or (role.residual is not None and role.layer == role.residual.layers):
            found[role.name] = Choice(Constant(0.0), "the last layer of its branch starts at zero")
        elif "head" in role.parts and any(use.kind == "embedding" for use in role.uses):
            subject.notes.append(
                f"fixup: {role.name} is table and head in one and did not get the head's zeros"
            )
        elif "head" in role.parts:
            found[role.name] = Choice(Constant(0.0), "the head starts at zero: equal chances")
    _tell_if_none(subject, "fixup")
    if any("norm" in role.feeds for role in subject.roles.by_name.values()):
        subject.notes.append("fixup is meant for a network without norms, and this one has some")
    residuals = subject.roles.streams.residuals.values()
    if residuals and not any(multipliers(subject.roles.flow, r) for r in residuals):
        subject.notes.append("fixup adds scales and biases to every branch, which this model has not")
    return found


@recipe(
    "zero-init-residual",
    source="Goyal et al. (2017), Accurate, large minibatch SGD: training ImageNet in 1 hour",
)
def zero_init_residual(subject: Subject) -> Mapping[str, Choice]:
    """He's; the last norm's scale of every branch zero, or its last weight where it has none; head 0.01."""
    found = kaiming_choices(subject)
    for role in subject.roles.by_name.values():
        if role.ends is not None and role.kind == "scale":
            found[role.name] = Choice(Constant(role.neutral - 1.0), "ends a branch, which starts silent")
        elif role.ends is not None and role.kind == "weight":
            found[role.name] = Choice(Constant(0.0), "ends a branch without a norm: it starts silent")
        elif role.kind == "weight" and "head" in role.parts:
            found[role.name] = Choice(Normal(0.01), "the head is N(0, 0.01²)")
    _tell_if_none(subject, "zero-init-residual")
    return found


@recipe(
    "skipinit",
    source="De and Smith (2020), Batch normalization biases residual blocks towards the identity function",
)
def skipinit(subject: Subject) -> Mapping[str, Choice]:
    """He's, and the scale that multiplies each residual branch zero."""
    return {**kaiming_choices(subject), **_silent(subject, "skipinit")}


@recipe("rezero", source="Bachlechner, Majumder, Mao, Cottrell and McAuley (2020), ReZero is all you need")
def rezero(subject: Subject) -> Mapping[str, Choice]:
    """Glorot's, and the scale that multiplies each residual branch zero."""
    family = subject.family or "uniform"
    weights = {r.name: scaled(r, 1.0, "Glorot", mode="fan_avg", family=family) for r in subject.weights()}
    return {**weights, **_silent(subject, "rezero")}


def _silent(subject: Subject, name: str) -> dict[str, Choice]:
    """Return zeros for the scales that multiply branches; notes tell of branches without one."""
    residuals = list(subject.roles.streams.residuals.values())
    ends = [{n.index for n in multipliers(subject.roles.flow, r)} for r in residuals]
    found, silent = {}, set()
    for role in subject.roles.by_name.values():
        at = {use.node.index for use in role.uses}
        multiplied = [k for k, nodes in enumerate(ends) if at & nodes]
        if role.kind == "scale" and multiplied:
            silent.update(multiplied)
            found[role.name] = Choice(Constant(role.neutral - 1.0), "multiplies a branch: it starts silent")
    if len(silent) < len(residuals):
        missing = len(residuals) - len(silent)
        subject.notes.append(
            f"{name}: {missing} of {len(residuals)} residual branches have no scale of their own that could "
            "start at zero: add one to the model, or use zero-init-residual"
        )
    _tell_if_none(subject, name)
    return found


def _tell_if_none(subject: Subject, name: str) -> None:
    if not subject.roles.streams.residuals:
        subject.notes.append(f"{name}: the model has no residual branch")
