"""The objectives "backward" and "balanced" of the recipe auto: weights that keep the size of gradients.

For a weight behind φ, whose outputs' gradients have second moment 1, those of φ's input have
σ²·fan_out·E[φ′(x)²] with x ~ N(0, s²), s the size that φ reads, as the pass has solved it so far. Backward:

    σ_b = a/√(fan_out·E[φ′²]),   a = 1, and 1/√k for each of k parallel paths that are summed.

Forward, the scale that keeps a size is σ_f = a·s/(√fan_in·RMS of φ(x)), correlations included; balanced is
√(σ_f·σ_b). What follows sees the signal that comes of it. Of a gated product both factors' gradients count.
Asymptotic in width; pooling, and norms, whose gradients are divided by the size they read, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

from isometry.activations import resolve
from isometry.activations.response import respond
from isometry.errors import IsometryError
from isometry.flow.arrivals import Arrival, arrival_of
from isometry.flow.roles import Role
from isometry.gain import backward_gain
from isometry.recipes.base import Subject
from isometry.solving.passes import Balance
from isometry.solving.solver import Aim, Solver


def for_gradients(
    subject: Subject, aims: Sequence[Aim], balances: Sequence[Balance], reasons: dict[str, str]
) -> list[Aim]:
    """Let weights keep the size of gradients where the objective says so.

    The size of a branch's end, a head, attention scores and a stream's begin is not theirs to choose; a
    weight that reads the model's input hands no gradient on; in a loop there is more than one gradient.

    Args:
        subject: What the recipe is given.
        aims: The aims of the objective "forward".
        balances: What several weights bring about together.
        reasons: One sentence for every parameter; what is changed is added.

    Returns:
        The aims.
    """
    if subject.objective == "forward":
        return list(aims)
    bound = {name for balance in balances for name in balance.names}
    gains = _Gains()
    found = []
    for aim in aims:
        role = aim.role
        arrival = arrival_of(subject.roles.flow, aim.node) if role.kind == "weight" else None
        if arrival is None or role.name in bound or not _free(role, arrival):
            found.append(aim)
            continue
        kept = "gradients keep" if subject.objective == "backward" else "signals and gradients share"
        reasons[role.name] += f"; {kept} their size behind {arrival.name}"
        watched = aim.watched if arrival.source is None else (*aim.watched, arrival.source)
        found.append(replace(aim, watched=watched, adjust=_Adjust(subject, aim, arrival, gains)))
    return found


def _free(role: Role, arrival: Arrival) -> bool:
    """Return whether the scale of a weight may follow from gradients."""
    if role.ends is not None or "head" in role.parts or arrival.kind == "input":
        return False
    once = len([use for use in role.uses if use.kind == "weight"]) == 1
    return once and role.fans is not None and role.fans.backward > 0


class _Adjust:
    """Turns the scale that gives the aimed output into the one that the objective asks for."""

    def __init__(self, subject: Subject, aim: Aim, arrival: Arrival, gains: _Gains) -> None:
        self.balanced = subject.objective == "balanced"
        self.aim, self.arrival, self.gains = aim, arrival, gains

    def __call__(self, solver: Solver, forward: float) -> float:
        role, source = self.aim.role, self.arrival.source
        assert role.fans is not None  # only weights with fans are adjusted
        size = None if source is None else solver.rms(source)
        size = 1.0 if size is None or not size > 0.0 else size
        gain = self.gains.of(self.arrival, size)
        if gain is None:
            return forward
        backward = self.aim.size(solver) * gain / math.sqrt(role.fans.backward)
        return math.sqrt(forward * size * backward) if self.balanced else backward


class _Gains:
    """1/√E[φ′²] of the activations that weights read, by the size of what these read."""

    def __init__(self) -> None:
        self._known: dict[Hashable, float | None] = {}

    def of(self, arrival: Arrival, size: float) -> float | None:
        """Return the gain; 1 where no activation is before the weight, None where it has none."""
        if arrival.function is None:
            return None if arrival.kind in ("activation", "other") else 1.0
        key = (arrival.kind, arrival.key, f"{size:.4g}")
        if key not in self._known:
            try:
                response = respond(resolve(arrival.function), std=size)
                self._known[key] = backward_gain(response, gated=arrival.kind == "product")
            except (IsometryError, RuntimeError, TypeError):
                self._known[key] = None
        return self._known[key]
