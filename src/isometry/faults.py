"""Faults of an initialisation: what dies or explodes, and the parameters that cause it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from isometry.measure import measure
from isometry.planning import init_, plan
from isometry.plans import Plan, Row
from isometry.profile import Profile, Signal
from isometry.restore import random_state
from isometry.tables import Column, Table, compact

SMALL, LARGE = 1e-4, 1e4  # RMS of an output over that of the largest, or smallest, before it
DEAD = 1e-10  # a gradient below this share of the largest leaves a parameter where it is, in float32
SHOWN = 3


@dataclass(frozen=True)
class Fault:
    """One symptom, with what causes it and what mends it.

    Attributes:
        symptom: What is predicted, with its size.
        causes: The parameters whose scale is furthest from what the signal needs, and by how much.
        remedy: What to do.
    """

    symptom: str
    causes: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        causes = "; ".join(self.causes) or "no single group of parameters stands out"
        return f"{self.symptom}. Cause: {causes}. Remedy: {self.remedy}"


def faults(
    model: nn.Module | Callable[[], nn.Module], inputs: object, predicted: Profile
) -> tuple[Fault, ...]:
    """Tell what is wrong with an initialisation, and why.

    A symptom is an output whose RMS falls below 1e-4 or rises above 1e4 times what came before it, or a
    parameter whose gradient is below 1e-10 of the largest. Where there is one, the parameters' present RMS is
    compared with that of the plan "auto"; weights in front of a norm, whose scale is undone, are left out.

    Args:
        model: The model, or the function that builds it.
        inputs: As for `isometry.predict`.
        predicted: Its predicted profile.

    Returns:
        The faults; none where nothing dies or explodes.

    Example:
        >>> from isometry.predict import predict
        >>> layers = [nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU()) for _ in range(30)]
        >>> model = nn.Sequential(*layers)
        >>> [fault.symptom.split(":")[0] for fault in faults(model, "32x64", predict(model, "32x64"))]
        ['the signal vanishes']
    """
    symptoms = [s for s in (_signal(predicted), _gradients(predicted)) if s is not None]
    if not symptoms:
        return ()
    planned = plan(model, inputs)
    causes = _causes(planned, predicted)
    return tuple(Fault(symptom, causes, "isometry.init_(model, inputs)") for symptom in symptoms)


def before_and_after(model: nn.Module | Callable[[], nn.Module], inputs: object, *, seed: int = 0) -> Table:
    """Measure a model as it is and as recipe "auto" initialises it, side by side.

    Args:
        model: The model, of which a copy is initialised, or the function that builds it.
        inputs: As for `isometry.measure`.
        seed: Of the plan, and of the builder's draws; torch's random state is left as it was.

    Returns:
        The table.

    Raises:
        The errors of `isometry.measure` and `isometry.plan`; the model is as before.
    """
    restore = random_state()
    try:
        torch.manual_seed(seed)
        before = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
        after = copy.deepcopy(before)
        init_(after, inputs, seed=seed)
        told = [_summary(measure(one, inputs, limit=1)) for one in (before, after)]
    finally:
        restore()
    rows = [[label, *cells] for label, cells in zip(_LINES, zip(*told, strict=True), strict=True)]
    return Table(
        [Column("", "left"), Column("As it is"), Column("After init_")],
        rows,
        title="Before and after isometry.init_(model, inputs)",
    )


_LINES = (
    "RMS of the output",
    "smallest RMS on the way",
    "largest RMS on the way",
    "largest gradient over smallest, module calls",
    "parameters without a gradient",
)


def _summary(profile: Profile) -> list[str]:
    """Return the figures of `_LINES`."""
    sizes = [s.forward.rms for s in profile.signals if s.forward and s.forward.rms is not None]
    gradients = [s.backward.rms for s in profile.signals if s.backward and s.backward.rms is not None]
    own = [p.backward.rms for p in profile.parameters if p.backward and p.backward.rms is not None]
    output = next((s.forward.rms for s in profile.signals if s.name == "" and s.forward), None)
    dead = sum(size <= DEAD * max(own) for size in own)
    ratio = max(gradients) / min(gradients) if gradients and min(gradients) > 0 else math.inf
    return [
        "–" if output is None else compact(output),
        compact(min(sizes)) if sizes else "–",
        compact(max(sizes)) if sizes else "–",
        compact(ratio),
        f"{dead} of {len(own)}",
    ]


def _signal(profile: Profile) -> str | None:
    """Return where the forward signal dies or explodes."""
    low = high = None
    holders = {row.name.rpartition(".")[0] for row in profile.signals}
    for row in profile.signals:
        if not row.name or row.name in holders:
            continue  # a module that holds others is told before them
        size = None if row.forward is None else row.forward.rms
        if size is None:
            continue
        low, high = min(size, low or size), max(size, high or size)
        if size < SMALL * high:
            return f"the signal vanishes: RMS {size:.2g} behind {_place(row)}, {high:.2g} before"
        if not size < LARGE * low:
            return f"the signal explodes: RMS {size:.2g} behind {_place(row)}, {low:.2g} before"
    return None


def _gradients(profile: Profile) -> str | None:
    """Return how many parameters no gradient reaches."""
    sizes = [row.backward.rms for row in profile.parameters if row.backward and row.backward.rms is not None]
    if not sizes or not max(sizes) > 0.0:
        return f"no parameter of {len(sizes)} gets a gradient: all are zero" if sizes else None
    dead = sum(size <= DEAD * max(sizes) for size in sizes)
    if not dead:
        return None
    return (
        f"{dead} of {len(sizes)} parameters get no gradient: below {DEAD:g} of the largest, {max(sizes):.2g}"
    )


def _place(row: Signal) -> str:
    return f"{row.name!r} ({row.kind})" if row.name else f"the model ({row.kind})"


def _causes(planned: Plan, predicted: Profile) -> tuple[str, ...]:
    """Return the groups of like parameters that are furthest from the plan, the worst first."""
    present = {row.name: row.forward for row in predicted.parameters}
    groups: dict[tuple[str, str], list[tuple[Row, float, float]]] = {}
    for row in planned:
        stats = present.get(row.name)
        wanted = _rms(row)
        if stats is None or stats.rms is None or not wanted or "→ norm" in row.role or row.role == "unused":
            continue
        name = re.sub(r"\d+", "*", row.name)
        groups.setdefault((name, row.role.split(",")[0]), []).append((row, stats.rms, wanted))
    ranked = []
    for (name, role), members in groups.items():
        logs = [abs(math.log(max(have, 1e-30) / want)) for _, have, want in members]
        if max(logs) > math.log(1.5):
            _, have, want = members[logs.index(max(logs))]
            many = f" ×{len(members)}" if len(members) > 1 else ""
            ranked.append((sum(logs), f"{name}{many} ({role}) has RMS {have:.2g} and needs {want:.2g}"))
    return tuple(text for _, text in sorted(ranked, reverse=True)[:SHOWN])


def _rms(row: Row) -> float | None:
    if row.law is None or row.std is None:
        return None
    return math.hypot(row.std, row.mean or 0.0)
