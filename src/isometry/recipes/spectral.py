"""The spectral condition: weights and their updates have spectral norms of order √(fan_out/fan_in)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from isometry.flow.roles import Role
from isometry.recipes.base import Choice, Subject, neutral, recipe
from isometry.recipes.laws import number, one_of, scaled


@recipe(
    "spectral",
    source="Yang, Simon and Bernstein (2023), A spectral condition for feature learning",
    options=("optimizer", "gain"),
)
def spectral(subject: Subject) -> Mapping[str, Choice]:
    """Deviation min(1, √(fan_out/fan_in))/√fan_in; SGD's rate fan_out/fan_in, Adam's 1/fan_in.

    A random matrix of that deviation has a spectral norm between 1 and 2 times √(fan_out/fan_in), and so has,
    up to a constant, each update of one example at that rate: features of RMS 1 stay and change by O(1),
    whatever the widths. A bias or a scale is a matrix with one input: its rate is its length under SGD, 1
    under Adam. Asymptotic in width; constants are left to the learning rate.

    Options: `optimizer` "adam" or "sgd"; `gain` multiplies the deviation of all weights, say √2 for relu.
    """
    sgd = one_of(subject, "optimizer", ("adam", "sgd")) == "sgd"
    size = number(subject, "gain", 1.0)
    found = {}
    for role in subject.roles.by_name.values():
        choice = neutral(role)
        if role.kind == "weight":
            found[role.name] = _weight(subject, role, size, sgd)
        elif role.kind in ("bias", "scale", "embedding", "position", "token"):
            # A row of a table is what it has for one input that is 1.
            length = role.shape[-1] if role.kind == "embedding" else max(role.shape, default=1)
            rate = float(max(length, 1)) if sgd else 1.0
            found[role.name] = Choice(choice.law, choice.reason, rate, choice.marks)
    return found


def _weight(subject: Subject, role: Role, size: float, sgd: bool) -> Choice:
    family = subject.family or "normal"
    if role.fans is None or not role.fans.forward * role.fans.backward:
        return scaled(role, size, "", family=family)
    ratio = outputs_per_input(role)
    words = f"spectral norm of order √(fan_out/fan_in) = {math.sqrt(ratio):.4g}"
    made = scaled(role, size * min(1.0, math.sqrt(ratio)), words, family=family)
    return Choice(made.law, made.reason, ratio if sgd else 1.0 / role.fans.forward, made.marks)


def outputs_per_input(role: Role) -> float:
    """Return fan_out/fan_in, all of a block's outputs over all that each of them sums.

    The taps of a convolution belong to its inputs: an output sums over them, and the number of outputs is
    that of the channels.

    Args:
        role: A weight with fans.

    Returns:
        The ratio.
    """
    assert role.fans is not None
    return role.fans.layout.outputs / role.fans.forward
