"""What is ill in a model before its first step: a function for each symptom, from a profile to a sentence.

The bounds are empirical and wide: of the architectures that benchmarks/diagnosis.py builds only plain chains
without norms are called ill as they come from their constructors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from isometry.profile import Profile, Side, Signal
from isometry.tables import compact, percent
from isometry.watch import symptoms

SMALL, LARGE = 1e-4, 1e4  # RMS of an output over that of the largest, or smallest, before it
DEAD = 1e-10  # a gradient below this share of the largest leaves a parameter where it is, in float32
ALIKE = 0.999  # mean cosine of two samples' signals beyond which they are one
APART = 0.5  # and below which they are two
FLAT = 0.5  # share of a bounded activation's outputs
FEW = 0.1  # share of weights
OPENING = 1e-3  # RMS of a factor or weight that is meant to grow from nothing
SILENT = 0.99  # share of an activation's outputs that are exactly zero

Check = Callable[[Profile], str | None]


def found(profile: Profile, units: Profile) -> Iterator[str]:
    """Yield a sentence for each symptom of an untrained model.

    Args:
        profile: How the signal travels; a predicted profile has no noise of one draw.
        units: What activations do; a measured profile knows more of that.

    Yields:
        What is ill, where, and by how much.
    """
    for told in (*(check(profile) for check in OF_SIGNALS), *(check(units) for check in OF_UNITS)):
        if told is not None:
            yield told


def signal(profile: Profile) -> str | None:
    """Tell from where on the forward signal has died, or where it explodes.

    A branch that begins small, as with a last weight of zero, is not ill: behind its sum the signal is back.
    The last module is not judged: its scale is the targets'.
    """
    rows = [row for row in symptoms.leaves(profile) if row.rms() is not None][:-1]
    sizes = [_size(row) for row in rows]
    first = next((size for size in sizes if size > 0.0), 0.0)
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if not size <= LARGE * first:
            return f"the signal explodes: RMS {size:.2g} behind {_place(row)}, {first:.2g} at the start"
        high = max(sizes[: place + 1])
        if all(later < SMALL * high for later in sizes[place:]):
            return f"the signal vanishes: RMS {size:.2g} behind {_place(row)}, {high:.2g} before"
    return None


def gradients(profile: Profile) -> str | None:
    """Tell how many weights no gradient reaches, or how the gradient fades or grows on its way back.

    A bias in front of a norm, or of a softmax's keys, has none by design. Nor has, for a few steps, what lies
    behind an opening; see `_opens`.
    """
    known = [row for row in profile.parameters if row.rms("backward") is not None]
    broken = [row.name for row in known if not math.isfinite(_size(row, "backward"))]
    if broken:
        return f"{len(broken)} of {len(known)} gradients are nan or infinite, of {broken[0]!r} first"
    most = max((_size(row, "backward") for row in known), default=0.0)
    if known and not most > 0.0:
        return f"no parameter of {len(known)} gets a gradient: all are zero"
    if _opens(profile):
        return None
    weights = [_size(row, "backward") for row in known if len(row.shape) > 1]
    dead = sum(size <= DEAD * most for size in weights)
    if dead > FEW * len(weights):
        return f"{dead} of {len(weights)} weights get no gradient: below {DEAD:g} of the largest, {most:.2g}"
    ill = symptoms.uneven_gradient(profile)
    return None if ill is None else f"the gradient {ill.verb}: its norm is {ill.numbers}"


def alike(profile: Profile) -> str | None:
    """Tell from where on the signals of any two samples, once apart, are one.

    What follows the last weights is not judged: a sigmoid's outputs are all near ½.
    """
    owners = _owners(profile)
    rows = [row for row in symptoms.leaves(profile) if row.forward and row.forward.cosine is not None]
    while rows and rows[-1].name not in owners:
        rows.pop()
    cosines = [row.forward.cosine or 0.0 for row in rows if row.forward is not None]
    place = len(rows)
    while place and cosines[place - 1] > ALIKE:
        place -= 1
    if place == len(rows) or not place or min(cosines) > APART or _opens(profile):
        return None
    says = f"any two samples give the same signal from {_place(rows[place])} on"
    return f"{says}: mean cosine {cosines[place]:.5g}, {compact(min(cosines), digits=2)} before"


def saturated(profile: Profile) -> str | None:
    """Tell where a bounded activation is flat for most of what it reads; known of measured profiles."""
    rows = [row for row in symptoms.leaves(profile) if row.forward and (row.forward.saturated or 0.0) > FLAT]
    return None if not rows else f"units are saturated: {_shares(rows, 'saturated')}"


def silent(profile: Profile) -> str | None:
    """Tell where an activation gives nothing but zeros, of something else.

    Not where zeros come from a scale: of a module with parameters, or of a part of one.
    """
    owners = _owners(profile)
    rows = []
    for before, row in pairwise(symptoms.leaves(profile)):
        scaled = row.name in owners or row.name.rpartition(".")[0] in owners
        if row.forward and (row.forward.zeros or 0.0) > SILENT and _size(before) > 0.0 and not scaled:
            rows.append(row)
    return None if not rows else f"units are dead: {_shares(rows, 'zeros')} of what they give is zero"


OF_SIGNALS: tuple[Check, ...] = (signal, gradients, alike)
OF_UNITS: tuple[Check, ...] = (saturated, silent)


def _shares(rows: list[Signal], statistic: str) -> str:
    worst = max(rows, key=lambda row: getattr(row.forward, statistic))
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{percent(getattr(worst.forward, statistic))} at {_place(worst)}{more}"


def _owners(profile: Profile) -> set[str]:
    """Names of the modules that have parameters of their own."""
    return {row.name.rpartition(".")[0] for row in profile.parameters}


def _opens(profile: Profile) -> bool:
    """Whether a factor or weight near zero, which gets a gradient itself, is there to let a branch grow."""
    return any(
        _size(row) < OPENING and _size(row, "backward") > 0.0
        for row in profile.parameters
        if not (len(row.shape) < 2 and "bias" in row.name.rpartition(".")[2])
    )


def _size(row: Signal, side: Side = "forward") -> float:
    """The RMS, or nan where nobody knows it: no bound is passed by that."""
    rms = row.rms(side)
    return math.nan if rms is None else rms


def _place(row: Signal) -> str:
    return f"{row.name!r} ({row.kind})" if row.name else f"the model ({row.kind})"
