"""What `isometry.init_` makes of a model, measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from isometry.diagnosis.checks import DEAD
from isometry.measure import measure
from isometry.planning import init_
from isometry.profile import Profile
from isometry.restore import random_state
from isometry.tables import Column, Table, compact


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
