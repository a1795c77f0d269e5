"""Scales from fans alone: Glorot's, He's and LeCun's, orthogonal maps, and unit normal ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isometry.errors import InvalidValueError
from isometry.fans import Mode, check_mode
from isometry.flow.roles import Role
from isometry.init.structured import Kind, of_kind
from isometry.initialisers import DeltaOrthogonal
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.laws import MODES, Gains, number, scaled, weight_of
from isometry.recipes.parts import by_part, glorot


@recipe("standard-normal", source="none: the baseline that goes wrong with depth", options=("std",))
def standard_normal(subject: Subject) -> Mapping[str, Choice]:
    """Weights N(0, std²) whatever their fans; std is 1."""
    std = number(subject, "std", 1.0)
    family = subject.family or "normal"
    return {
        role.name: Choice(
            of_kind(family, std, layout=role.fans.layout if role.fans else None), "whatever its fan"
        )
        for role in subject.weights()
        if family != "orthogonal" or role.fans is not None
    }


@recipe(
    "xavier",
    source="Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward networks",
    options=("gain",),
)
def xavier(subject: Subject) -> Mapping[str, Choice]:
    """Weights of variance gain²·2/(fan_in + fan_out), for a linear regime in both directions."""
    return _over_fan(subject, "fan_avg", "2/(fan_in + fan_out)")


@recipe("lecun", source="LeCun, Bottou, Orr and Müller (1998), Efficient BackProp", options=("gain",))
def lecun(subject: Subject) -> Mapping[str, Choice]:
    """Weights of variance gain²/fan_in."""
    return _over_fan(subject, "fan_in", "1/fan_in")


@recipe(
    "kaiming",
    source="He, Zhang, Ren and Sun (2015), Delving deep into rectifiers",
    options=("mode", "input_gain"),
)
def kaiming(subject: Subject) -> Mapping[str, Choice]:
    """Weights of variance gain²/fan, with the exact gain of the activation that each weight reads."""
    return kaiming_choices(subject)


def kaiming_choices(subject: Subject, factor: Callable[[Role], float] | None = None) -> dict[str, Choice]:
    """Return He's choices for all weights.

    A weight behind a norm, a sum or an average reads a signal of second moment 1: its gain is 1. The weight
    that reads the input follows no activation; He's convention gives it the gain of the first activation
    behind it all the same, `input_gain` another one.

    Args:
        subject: The model and its roles.
        factor: Multiplies the scale of a weight.

    Returns:
        The choices.
    """
    mode: Mode = subject.option("mode", MODES[subject.objective])
    check_mode(mode)
    direction = {"fan_in": "forward", "fan_out": "backward"}.get(mode, "balanced")
    gains = Gains(subject, direction)  # type: ignore[arg-type]
    first = subject.option("input_gain", None)
    if first is not None:
        first = number(subject, "input_gain", 1.0)
    found = {}
    for role in subject.weights():
        value, name = gains.of(role)
        reason = f"gain {value:.4g} behind {name}"
        if (fed := gains.fed(role)) is not None:
            value, name = fed if first is None else (first, "the input")
            reason = f"reads the input: gain {value:.4g}, that of {name}"
        scale = 1.0 if factor is None else factor(role)
        if scale != 1.0:
            reason += f", times {scale:.4g}"
        found[role.name] = scaled(role, value * scale, reason, mode=mode, family=subject.family or "normal")
    return found


@recipe(
    "orthogonal",
    source="Saxe, McClelland and Ganguli (2014), Exact solutions to the nonlinear dynamics of learning",
    options=("gain",),
)
def orthogonal(subject: Subject) -> Mapping[str, Choice]:
    """Weights are random orthogonal maps, scaled so that the second moment is kept where sides differ."""
    return _over_fan(subject, MODES[subject.objective], "an orthogonal map", family="orthogonal")


@recipe(
    "delta-orthogonal",
    source="Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington (2018), Dynamical isometry and a "
    "mean field theory of CNNs",
    options=("gain",),
)
def delta_orthogonal(subject: Subject) -> Mapping[str, Choice]:
    """As orthogonal, and convolutions hold an orthogonal map of the channels on their central tap alone."""
    gain = _gain(subject)
    law = DeltaOrthogonal(mode=MODES[subject.objective]).law
    found = {}
    for role in subject.weights():
        choice = scaled(role, 1.0, "an orthogonal map on the central tap")
        if choice.law is not None and not choice.marks and role.fans is not None:
            value, name = gain(role)
            made = law(weight_of(role, role.fans), value)
            taps = "on the central tap" if role.fans.layout.taps else "of the features"
            choice = Choice(made, f"an orthogonal map {taps}, gain {value:.4g}{name}")
        found[role.name] = choice
    return found


_MAPS = frozenset(["query", "key", "value"])


def _over_fan(subject: Subject, mode: Mode, words: str, *, family: Kind | None = None) -> dict[str, Choice]:
    gain = _gain(subject)
    found = {}
    for role in subject.weights():
        value, name = gain(role)
        reason = words if value == 1.0 else f"{words}, gain {value:.4g}{name}"
        if mode != "fan_in" and family is None and len(role.parts & _MAPS) > 1:
            std = glorot(lambda _, factor=value: factor)  # type: ignore[misc]
            found[role.name] = by_part(subject.roles, role, std, reason, subject.family or "normal")
            continue
        found[role.name] = scaled(role, value, reason, mode=mode, family=family or subject.family or "normal")
    return found


def _gain(subject: Subject) -> Callable[[Role], tuple[float, str]]:
    """Return the option `gain`: a number, or "activation" for that of what each weight reads."""
    given = subject.option("gain", 1.0)
    if isinstance(given, str):
        if given != "activation":
            raise InvalidValueError(f"gain must be a number or 'activation', got {given!r}")
        gains = Gains(subject, subject.objective)

        def behind(role: Role) -> tuple[float, str]:
            value, name = gains.of(role)
            return value, f" behind {name}"

        return behind
    value = number(subject, "gain", 1.0)
    return lambda role: (value, "")
