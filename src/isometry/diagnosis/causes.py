"""Which parameters make a model ill: those whose size is furthest from what the signal needs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from isometry.gain import gain
from isometry.plans import Plan, Row
from isometry.profile import Profile

SHOWN = 3
_FAR = math.log(1.5)
# Activations whose gain is looked for in weights; torch's calculate_gain has 5/3 for tanh.
_KNOWN = ("relu", "tanh", "gelu", "silu", "selu", "sigmoid")
_TORCHS_TANH = 5 / 3


@dataclass(frozen=True)
class Cause:
    """Like parameters whose size is not what the signal needs.

    Attributes:
        who: Their names and role.
        have: The RMS of a typical one.
        want: What it should have.
        rule: The rule that gave it its size, where one is recognised.
        foreign: Whether that is the gain of another activation than the one it feeds.
    """

    who: str
    have: float
    want: float
    rule: str = ""
    foreign: bool = False

    @property
    def distance(self) -> float:
        """|ln(have/want)|."""
        return abs(math.log(max(self.have, 1e-30) / self.want))

    def __str__(self) -> str:
        rule = f" ({self.rule})" if self.rule else ""
        return f"{self.who} has RMS {self.have:.2g}{rule} and needs {self.want:.2g}"


def causes(planned: Plan, profile: Profile) -> tuple[Cause, ...]:
    """Compare what parameters are with what a plan gives them.

    A weight with the gain of another activation is held against its own activation's, the others, from a
    factor 1.5 on, against the plan. Weights in front of a norm, whose scale is undone, are left out; layers
    that differ in a number alone are told together.

    Args:
        planned: What the signal needs.
        profile: What is, of the same model.

    Returns:
        At most three groups of like parameters, the furthest from what they need first.
    """
    present = {row.name: row.forward for row in profile.parameters}
    groups: dict[tuple[str, str], list[Cause]] = {}
    for row in planned:
        stats = present.get(row.name)
        wanted = _rms(row)
        if stats is None or stats.rms is None or not wanted or "→ norm" in row.role or row.role == "unused":
            continue
        who = re.sub(r"\d+", "*", row.name), row.role.split(",")[0]
        groups.setdefault(who, []).append(_cause(row, stats.rms, wanted))
    ranked = []
    for (name, role), members in groups.items():
        shown = _typical(members)
        if shown.foreign or shown.distance > _FAR:
            many = f" ×{len(members)}" if len(members) > 1 else ""
            off = sum(cause.distance for cause in members)
            ranked.append((off, replace(shown, who=f"{name}{many} ({role})")))
    ranked.sort(key=lambda pair: -pair[0])
    return tuple(cause for _, cause in ranked[:SHOWN])


def _typical(members: list[Cause]) -> Cause:
    """Return the one in the middle of like parameters, or the furthest off, where the middle is not off."""
    middle = sorted(members, key=lambda cause: cause.have / cause.want)[len(members) // 2]
    if middle.foreign or middle.distance > _FAR:
        return middle
    return max(members, key=lambda cause: cause.distance)


def _cause(row: Row, have: float, wanted: float) -> Cause:
    rules = _rules(row, have)
    rule = " or ".join(name for name, _ in rules)
    own = next((name for name in _KNOWN if f"→ {name}" in row.role), None)
    gains = {activation for _, activation in rules}
    if row.fans is None or own is None or not gains or gains & {own, None}:
        return Cause("", have, wanted, rule)
    return Cause("", have, gain(own) / math.sqrt(row.fans[0]), rule, foreign=True)


def _rules(row: Row, have: float) -> list[tuple[str, str | None]]:
    """Name the rules that give a weight its size, with the activation whose gain each is, if any.

    The RMS of n normal entries scatters by 1/√(2n), and three times that are allowed. Where more than two
    rules are within, none is named.
    """
    if row.fans is None or len(row.shape) < 2 or not all(row.fans) or not have > 0:
        return []
    fan_in, fan_out = row.fans
    rules: dict[tuple[str, str | None], float] = {
        ("N(0, 1)", None): 1.0,
        ("a std of 0.02, whatever the fan", None): 0.02,
        ("torch's default", None): 1 / math.sqrt(3 * fan_in),
        ("Xavier's rule", None): math.sqrt(2 / (fan_in + fan_out)),
        ("tanh's gain in torch", "tanh"): _TORCHS_TANH / math.sqrt(fan_in),
    }
    for name in _KNOWN:
        rules[f"{name}'s gain", name] = gain(name) / math.sqrt(fan_in)
    near = 0.002 + 3 / math.sqrt(2 * math.prod(row.shape))
    fitting = [rule for rule, std in rules.items() if abs(math.log(have / std)) < near]
    return fitting if len(fitting) <= 2 else []


def _rms(row: Row) -> float | None:
    if row.law is None or row.std is None:
        return None
    return math.hypot(row.std, row.mean or 0.0)
