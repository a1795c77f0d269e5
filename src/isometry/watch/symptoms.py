"""What counts as ill: every threshold of the watch with its reason, as functions of what was measured.

No threshold is absolute. Gradients are compared across the depth of the same step, with the scatter that
theory predicts for a network of these widths; means and spreads are compared with the network's own first
step; units are counted one by one. What the literature's tools use in their place, fixed bounds, raises
false alarms on 36–72 % of healthy models (Nguyen et al. 2022's rerun of DeepDiagnosis and DeepLocalize).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from isometry.hooks import Key
from isometry.profile import Profile, Signal, Stats
from isometry.tables import compact, percent
from isometry.watch.history import Finding
from isometry.watch.units import Share

# Ratio of gradient norms, first layer to last. AUTOTRAINER (Zhang et al. 2021) calls 1e-3 vanished and 70
# exploded; deep networks with batch norm start near 50 and train (Yang et al. 2019 predict 1.2 per layer), so
# the upper bound mirrors the lower one. Empirical: of 27 healthy networks on the digits none left [0.005, 54]
# (but for the zeros of a zero-initialised branch), and plain relu networks with torch's default weights stop
# training where the ratio passes 1e-3 (between 6 and 10 layers).
VANISHED = 1e-3
EXPLODED = 1e3
SCATTER = 2.0  # standard deviations of the finite-width scatter that are allowed on top

# Spread against the largest spread in the network's first step (against a layer's own, healthy networks grow
# up to 91-fold), and shrinking against the layer's own. Empirical: healthy networks shrink to no less than
# 0.2; those that diverge grow 10⁴-fold.
GROWN = 100.0
COLLAPSED = 0.01
# Movement of a mean since the first step, in standard deviations. Empirical: at most 2.7 in healthy networks.
DRIFTED = 10.0


def leaves(profile: Profile) -> list[Signal]:
    """The rows that are judged: modules without submodules, which containers only repeat."""
    return [row for row in profile.leaves() if row.forward is not None]


def _size(row: Signal, stats: Stats | None) -> float | None:
    """Norm √Σx² of a tensor; unlike the RMS it does not change where a mean or a reshape spreads it out."""
    if stats is None or stats.rms is None:
        return None
    return stats.rms * math.sqrt(math.prod(row.shape))


def scatter(rows: Iterable[Signal]) -> float:
    """Standard deviation of ln(gradient norm) that random weights of finite width give by themselves.

    ½·√(5·Σ 1/width) over the layers with weights: a relu network's squared norm is lognormal with that
    log-variance (Hanin & Nica 2018, theorem 1). *Assumes* plain relu layers; other activations and residual
    paths scatter less.
    """
    widths = [row.shape[1 if len(row.shape) >= 4 else -1] for row in rows if _weighted(row) and row.shape]
    return 0.5 * math.sqrt(5 * sum(1 / max(1, width) for width in widths))


def _weighted(row: Signal) -> bool:
    return "Linear" in row.kind or "Conv" in row.kind


def nonfinite(step: int, profile: Profile, loss: float | None) -> Iterator[Finding]:
    """Name the one place where nan or infinity came up first; the rest follows from it."""
    rows = leaves(profile)
    output = next((row for row in rows if _broken(row.forward)), None)
    gradient = next((row for row in reversed(rows) if _broken(row.backward)), None)
    weights = next((row for row in profile.parameters if _broken(row.forward)), None)
    if weights is not None:
        cause = "An update with a nan or infinite gradient broke it: lower the learning rate, clip."
        if step == 0:
            cause = "It began so: initialise it, or look at what was loaded."
        yield _found(step, "nonfinite", weights, f"{_share(weights.forward)} of its values. {cause}")
    elif output is not None:
        cause = "Its weights are finite: it overflowed, or divided by zero, or took a log or root below it."
        yield _found(step, "nonfinite", output, f"{_share(output.forward)} of its output. {cause}")
    elif gradient is not None:
        cause = "Going backward it is the first: look at the operation behind it, or lower the loss scale."
        yield _found(step, "nonfinite", gradient, f"{_share(gradient.backward)} of its gradient. {cause}")
    elif loss is not None and not math.isfinite(loss):
        message = (
            f"the loss is {loss} though every output is finite: the loss itself overflows or takes log 0"
        )
        yield Finding(step=step, symptom="nonfinite", name="", message=message)


def _share(stats: Stats | None) -> str:
    return f"nan or infinite in {percent(stats.nonfinite if stats else None)}"


def _broken(stats: Stats | None) -> bool:
    return stats is not None and bool(stats.nonfinite)


class Uneven(NamedTuple):
    """A gradient that changes too much between the last layer and the first, where it stands."""

    verb: Literal["fades", "explodes"]
    row: Signal
    numbers: str


def uneven_gradient(profile: Profile) -> Uneven | None:
    """Compare the gradient that reaches the first layer with the one at the last, in one step."""
    rows = [row for row in leaves(profile) if row.backward is not None]
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    early, late = _size(first, first.backward), _size(last, last.backward)
    if early is None or late is None or not math.isfinite(early + late) or late == 0:
        return None
    ratio = early / late
    allowed = math.exp(SCATTER * scatter(rows))
    # A branch that starts from zero (ReZero, zero gamma) gets a small gradient at every depth alike and is
    # healthy: a chain that fades does so against the last quarter of its own layers, not the head alone.
    sizes = [size for row in rows if (size := _size(row, row.backward)) is not None]
    late_layers = statistics.median(sizes[-max(3, len(sizes) // 4) :])
    fades = early <= late_layers * math.sqrt(VANISHED / allowed)
    apart = f"{compact(ratio)} of it, {len(rows)} modules apart"
    numbers = f"{compact(early)} at {first.name!r} and {compact(late)} at {last.name!r}, {apart}"
    if ratio < VANISHED / allowed and fades:
        return Uneven("fades", first, numbers)
    return Uneven("explodes", first, numbers) if ratio > EXPLODED * allowed else None


def gradients(step: int, profile: Profile) -> Iterator[Finding]:
    """Say why the gradient changes too much over the depth, if it does."""
    ill = uneven_gradient(profile)
    if ill is None:
        return
    if ill.verb == "fades":
        symptom = "vanishing gradient"
        cause = (
            "The weights are too small for this depth and activation (or units are dead or saturated): the "
            "first layers learn nothing. Initialise with the activation's gain, or add norms or skips."
        )
    else:
        symptom = "exploding gradient"
        cause = (
            "The weights are too large for this depth and activation. Initialise with the activation's gain."
            if step == 0
            else "The weights have grown too large: lower the learning rate, clip the gradient."
        )
    yield _found(step, symptom, ill.row, f"the gradient's norm is {ill.numbers}. {cause}")


def spreads(step: int, profile: Profile, first: Profile) -> Iterator[Finding]:
    """Compare every output's spread and mean with the network's own first observed step."""
    # The last module gives the answer, whose scale and offset the targets decide.
    before = {(row.name, row.call): row.forward for row in leaves(first)}
    known = {key: pair for key, stats in before.items() if (pair := _mean_and_std(stats))}
    scale = max((std for _, std in known.values()), default=0.0)
    for row in leaves(profile)[:-1]:
        then, now = known.get((row.name, row.call)), _mean_and_std(row.forward)
        if then is not None and now is not None:
            yield from _spread(step, row, then, now, scale)


def _mean_and_std(stats: Stats | None) -> tuple[float, float] | None:
    if stats is None or stats.mean is None or stats.std is None or not math.isfinite(stats.std):
        return None
    return stats.mean, stats.std


def _spread(
    step: int, row: Signal, then: tuple[float, float], now: tuple[float, float], scale: float
) -> Iterator[Finding]:
    (mean_then, std_then), (mean_now, std_now) = then, now
    numbers = f"std {compact(std_then)} at the first observed step, {compact(std_now)} now"
    if std_now > GROWN * scale > 0:
        yield _found(
            step,
            "exploding variance",
            row,
            f"{numbers}, {compact(std_now / scale)} times the largest anywhere then. Updates are too large "
            "for these weights: lower the learning rate, clip the gradient, or warm up.",
        )
    if std_now < COLLAPSED * std_then:
        yield _found(
            step,
            "collapsing variance",
            row,
            f"{numbers}. The module now says nearly the same for every sample: the units before it died, or "
            "its weights were driven to zero.",
        )
    moved = abs(mean_now - mean_then)
    if moved > DRIFTED * max(std_then, std_now) > 0:
        yield _found(
            step,
            "drifting mean",
            row,
            f"mean {compact(mean_then)} at the first observed step, {compact(mean_now)} now, "
            f"{compact(moved / max(std_then, std_now))} standard deviations away. Updates push all units the "
            "same way: lower the learning rate, centre the inputs, or add a norm.",
        )


def units(
    step: int, profile: Profile, shares: Iterable[tuple[str, Key, Share]], silencing: Mapping[Key, bool]
) -> Iterator[Finding]:
    """Report the modules most of whose units are dead or saturated."""
    rows = {(row.name, row.call): index for index, row in enumerate(leaves(profile))}
    ordered = leaves(profile)
    for symptom, key, share in shares:
        if not share.most or key not in rows:
            continue
        row = ordered[rows[key]]
        counts = f"{share.ill} of {share.units} units"
        if symptom == "saturated":
            if row is ordered[-1]:
                continue  # an answer of 0 or 1 is meant to be one
            yield _found(step, "saturated units", row, f"{counts} {_SATURATED[step == 0]}")
        elif symptom == "silent":
            yield _found(step, "dead units", row, f"{counts} {_SILENT}")
        elif not _silenced(ordered, rows[key], silencing):
            yield _found(step, "dead units", row, f"{counts} {_DEAF}")


_SATURATED = {
    True: "are flat on most samples, so hardly any gradient passes. The weights are too large: initialise "
    "with the activation's gain.",
    False: "are flat on most samples, so hardly any gradient passes. The weights are or have become too "
    "large: initialise with the activation's gain, lower the learning rate.",
}
_SILENT = (
    "were silent on every sample of the last observed steps and get no gradient. A bias or too large an "
    "update pushed them below zero for good: lower the learning rate, check the biases."
)
_DEAF = (
    "got a gradient of exactly zero on every sample of the last observed steps. What follows them is dead or "
    "cut off: a relu below zero, a weight of zero, a mask, or an underflow in half precision."
)


def _silenced(rows: Sequence[Signal], index: int, silencing: Mapping[Key, bool]) -> bool:
    """Whether an activation module right behind can say it better: conv → norm → relu is one unit."""
    return any(silencing.get((row.name, row.call), False) for row in rows[index + 1 : index + 3])


def _found(step: int, symptom: str, row: Signal, message: str) -> Finding:
    return Finding(step=step, symptom=symptom, name=row.name, call=row.call, message=message)  # type: ignore[arg-type]
