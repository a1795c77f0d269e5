"""What the published recipes share: scales over fans, exact gains, and rows for what has no law."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError
from isometry.fans import Fans, Mode
from isometry.flow.arrivals import Arrival, arrival_of
from isometry.flow.roles import Role
from isometry.gain import Direction, gain
from isometry.init.structured import Kind, check_finite, of_kind
from isometry.initialisers import VarianceScaling
from isometry.initialisers.chain import Weight
from isometry.parametrised import dtype_of
from isometry.recipes.base import Choice, Objective, Subject
from isometry.sampling import Constant, Distribution

MODES: Mapping[Objective, Mode] = {"forward": "fan_in", "backward": "fan_out", "balanced": "fan_geo"}


def number(subject: Subject, name: str, default: float, *, low: float = 0.0) -> float:
    """Return one of a recipe's options that is a number, greater than `low`.

    Raises:
        InvalidTypeError: It is no number.
        InvalidValueError: It is too small, or not finite.
    """
    value = subject.option(name, default)
    if isinstance(value, bool):
        raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    check_finite(name, value)
    if not value > low:
        raise InvalidValueError(f"{name} must be greater than {low:g}, got {value}")
    return float(value)


def one_of(subject: Subject, name: str, known: Sequence[str]) -> str:
    """Return one of a recipe's options that is one of a few words, the first by default.

    Raises:
        InvalidValueError: It is another one.
    """
    value = subject.option(name, known[0])
    if value not in known:
        raise InvalidValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return str(value)


def scaled(
    role: Role, std_over_fan: float, reason: str, *, mode: Mode = "fan_in", family: Kind = "normal"
) -> Choice:
    """Return the choice of a weight with variance `std_over_fan`²/fan.

    Args:
        role: The weight.
        std_over_fan: The standard deviation times √fan.
        reason: Why.
        mode: Which fan.
        family: The distribution.

    Returns:
        The choice; a weight without fans is kept, one whose fan is zero gets zeros, each with a mark.
    """
    if role.fans is None and 0 not in role.shape:
        return kept(role)
    if role.fans is None or not role.fans.forward * role.fans.backward:
        return Choice(Constant(0.0), "it has no fan", marks=("unused",))
    return Choice(law_over_fan(role, role.fans, std_over_fan, mode, family), reason)


def law_of(role: Role, std: float, family: str | None) -> Distribution:
    """Return the distribution of a weight with a standard deviation.

    Args:
        role: The weight.
        std: The deviation.
        family: The kind of distribution; None for a normal one.

    Returns:
        The distribution; a normal one in place of orthogonal, where nobody knows which axes the map has.
    """
    layout = role.fans.layout if role.fans is not None else None
    if family == "orthogonal" and layout is None:
        family = None
    return of_kind(family or "normal", std, layout=layout)  # type: ignore[arg-type]


def law_over_fan(role: Role, fans: Fans, gain_: float, mode: Mode, family: Kind) -> Distribution:
    """Return the law of variance gain²/fan."""
    return VarianceScaling(mode=mode, distribution=family).law(weight_of(role, fans), gain_)


def weight_of(role: Role, fans: Fans) -> Weight:
    """Return a weight as the initialisers of models know it."""
    precise = role.owner is not None and dtype_of(role.owner, role.leaf) == torch.float64
    return Weight(role.name, role.owner or nn.Module(), fans, precise)


def kept(role: Role) -> Choice:
    """Return the choice of a weight whose axes nobody can tell."""
    return Choice(None, f"its axes {role.shape} cannot be told from its use: kept", marks=("kept",))


class Gains:
    """Exact gains of the activations that a model's weights read.

    Args:
        subject: The model and its roles.
        direction: What the gains keep.
    """

    def __init__(self, subject: Subject, direction: Direction) -> None:
        self.flow, self.direction = subject.roles.flow, direction
        self._known: dict[Hashable, float | None] = {}

    def of(self, role: Role) -> tuple[float, str]:
        """Return the gain of what a weight reads, and a word for it.

        An activation has its own; φ(a)·b that of the gated unit. Norms, sums, averages, tables and inputs
        have second moment 1, so 1 keeps it.

        Args:
            role: The weight.

        Returns:
            The gain, and what arrives in words.
        """
        use = [u for u in role.uses if u.kind == "weight"][-1]  # of a loop, what its settled state is behind
        arrival = arrival_of(self.flow, use.node)
        value = self._gain(arrival)
        return (1.0, arrival.name) if value is None else (value, arrival.name)

    def fed(self, role: Role) -> tuple[float, str] | None:
        """Return the gain of the first activation behind a weight that reads the model's input."""
        use = next(u for u in role.uses if u.kind == "weight")
        if arrival_of(self.flow, use.node).kind != "input":
            return None
        later = [
            arrival_of(self.flow, node)
            for node in self.flow.nodes[use.node.index + 1 :]
            if self.flow.weight(node) is not None
        ]
        for arrival in later:
            value = self._gain(arrival)
            if value is not None:
                return value, arrival.name
        return None

    def _gain(self, arrival: Arrival) -> float | None:
        if arrival.function is None:
            return None
        key = (arrival.kind, arrival.key)
        if key not in self._known:
            try:
                gated = arrival.kind == "product"
                self._known[key] = gain(arrival.function, direction=self.direction, gated=gated)
            except (IsometryError, RuntimeError, TypeError):
                self._known[key] = None
        return self._known[key]
