"""From measured numbers to a sentence: what a start did to the signal, and what came of it in training.

`Evidence` holds the few numbers of a profile that explain a training run; `sentence` says them. The
bounds that call a number remarkable are empirical and stand here as constants; below them nothing is
claimed. No text is chosen by the name of an initialisation: two starts with the same numbers get the
same sentence.
"""

import math
from dataclasses import dataclass

from isometry.compare.training import Run
from isometry.profile import Profile, Signal, Stats
from isometry.tables import compact, percent

# Change of the forward RMS, or of the gradient's, over the whole depth that is worth a word.
CHANGE = 10.0
# Mean cosine between two samples above which the last layer can hardly tell them apart.
COLLAPSE = 0.9
# Share of a bounded activation's outputs that are flat.
SATURATION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The numbers of a profile that say how a signal travels through the depth.

    They are taken at the outputs of the hidden layers that own a weight matrix or kernel, in the order
    of execution: the last such layer, which makes the output, is left out. None where unknown.

    Args:
        layers: how many layers there are on the way.
        forward: RMS of the output of the first and of the last of them.
        backward: RMS of the gradient at the first and at the last of them.
        cosine: mean cosine between two samples at the first and at the last of them.
        saturated: mean share of saturated outputs over the bounded activations.
        broken: position (from 1) of the first layer with values that are not finite.
    """

    layers: int
    forward: tuple[float | None, float | None]
    backward: tuple[float | None, float | None]
    cosine: tuple[float | None, float | None]
    saturated: float | None = None
    broken: int | None = None

    @property
    def forward_factor(self) -> float | None:
        """Factor on the RMS per layer, `(last / first)^(1 / (layers − 1))`."""
        return self._per_layer(_ratio(self.forward[1], self.forward[0]))

    @property
    def gradient_ratio(self) -> float | None:
        """RMS of the gradient at the first layer, over that at the last."""
        return _ratio(self.backward[0], self.backward[1])

    @property
    def backward_factor(self) -> float | None:
        """Factor on the gradient's RMS per layer on its way back."""
        return self._per_layer(self.gradient_ratio)

    def _per_layer(self, ratio: float | None) -> float | None:
        if ratio is None or self.layers < 2:
            return None
        return math.pow(ratio, 1 / (self.layers - 1))


def evidence(profile: Profile) -> Evidence:
    """Read the numbers that matter off a profile.

    Args:
        profile: of the untrained model, forward and backward.

    Returns:
        The evidence; its values are None for a model without a hidden layer.

    Example:
        >>> rows = [Signal(name=f"{i}", forward=Stats(rms=2.0**i), backward=Stats(rms=1.0)) for i in range(4)]
        >>> weights = [Signal(name=f"{i}.weight", shape=(5, 3)) for i in range(4)]
        >>> found = evidence(Profile(tuple(rows), parameters=tuple(weights)))
        >>> found.layers, found.forward_factor, found.gradient_ratio
        (3, 2.0, 1.0)
    """
    path = _weighted(profile)
    layers = path[:-1]
    saturated = [
        row.forward.saturated
        for row in profile.leaves()
        if row.forward is not None and row.forward.saturated is not None
    ]
    return Evidence(
        layers=len(layers),
        forward=_ends([row.forward for row in layers], "rms"),
        backward=_ends([row.backward for row in layers], "rms"),
        cosine=_ends([row.forward for row in layers], "cosine"),
        saturated=sum(saturated) / len(saturated) if saturated else None,
        broken=next((place for place, row in enumerate(path, 1) if _is_broken(row)), None),
    )


def hidden(profile: Profile) -> tuple[Signal, ...]:
    """Pick the calls of the hidden layers that own a weight matrix or kernel, in order of execution.

    Args:
        profile: of any model, with its parameters.

    Returns:
        The rows, without the last such layer, which makes the output.

    Example:
        >>> rows = tuple(Signal(name=name) for name in ("fc1", "relu", "fc2", "fc3"))
        >>> weights = tuple(Signal(name=f"fc{i}.weight", shape=(5, 3)) for i in (1, 2, 3))
        >>> [row.name for row in hidden(Profile(rows, parameters=weights))]
        ['fc1', 'fc2']
    """
    return tuple(_weighted(profile)[:-1])


def arrow(ends: tuple[float | None, float | None]) -> str:
    """Write the first and the last value of a way.

    Args:
        ends: both values.

    Returns:
        Such as "1 → 0.95"; "–" where neither is known.

    Example:
        >>> arrow((1.0, 0.954)), arrow((None, None))
        ('1 → 0.95', '–')
    """
    return "–" if ends == (None, None) else " → ".join(compact(value, digits=2) for value in ends)


def at_the_start(found: Evidence) -> str:
    """Say in one sentence how the signal travels through the hidden layers, whatever comes of it.

    Args:
        found: the evidence.

    Returns:
        A sentence with the numbers in it; "" where nothing is known.

    Example:
        >>> at_the_start(Evidence(layers=29, forward=(0.4, 1e-8), backward=(0.1, 0.1), cosine=(0.1, 0.2)))
        'The signal fades by ×0.535 a layer (RMS 0.4 → 1e-08).'
    """
    causes = _causes(found)
    text = _join(causes) if causes else _soundness(found)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def sentence(found: Evidence, run: Run, *, chance: float | None = None, threshold: float = 0.9) -> str:
    """Say in one sentence what happened in a run and which measured numbers explain it.

    Args:
        found: the evidence from the start.
        run: the run that began there.
        chance: the accuracy of guessing, 1/classes; None for a regression.
        threshold: the accuracy that counts as learnt.

    Returns:
        A sentence with the numbers in it.

    Example:
        >>> found = Evidence(layers=29, forward=(0.4, 1e-8), backward=(1e-9, 0.1), cosine=(0.1, 1.0))
        >>> run = Run(lr=0.01, seed=0, losses=(2.3, 2.3), evaluated=(0, 2), accuracies=(0.1, 0.1),
        ...           test_losses=(2.3, 2.3), diverged=None)
        >>> print(sentence(found, run, chance=0.1))
        It is still at chance (10% after 2 steps): the signal fades by ×0.535 a layer (RMS 0.4 → 1e-08), ...
    """
    outcome, good = _outcome(run, chance, threshold)
    causes = _causes(found)
    if causes:
        return f"It {outcome}{', although' if good else ':'} {_join(causes)}."
    sound = _soundness(found)
    if good:
        return f"It {outcome}: {sound}." if sound else f"It {outcome}."
    if sound:
        return f"It {outcome}; at the start {sound}."
    return f"It {outcome}; the profile of the start does not say why."


def _outcome(run: Run, chance: float | None, threshold: float) -> tuple[str, bool]:
    """What the run came to, and whether that is good."""
    if run.diverged is not None:
        if len(run.losses) == 1 and not run.losses[0] <= _ordinary(chance):
            return f"diverged at step 1, before any update (loss {compact(run.losses[0])})", False
        return f"diverged at step {run.diverged} (loss {compact(run.losses[-1])})", False
    steps = len(run.losses)
    if run.accuracy is None or chance is None:
        better = run.final_loss < run.losses[0] / 2
        change = f"loss {compact(run.losses[0])} → {compact(run.final_loss)} in {steps} steps"
        return (f"learnt ({change})" if better else f"hardly learnt ({change})"), better
    if run.accuracy >= threshold:
        reached = run.steps_to(threshold)
        return f"learnt: {percent(run.accuracy)} ({percent(threshold)} after {reached} steps)", True
    if run.accuracy < 2 * chance:
        level = "is still at chance" if run.accuracy < 1.3 * chance else "has hardly left chance"
        return f"{level} ({percent(run.accuracy)} after {steps} steps)", False
    return f"learnt only in part ({percent(run.accuracy)} after {steps} steps)", False


def _ordinary(chance: float | None) -> float:
    """A first loss above ten times that of guessing owes itself to the start."""
    return 10 * math.log(1 / chance) if chance is not None and 0 < chance < 1 else math.inf


def changes(found: Evidence) -> list[str]:
    """Say by how much the signal and its gradient change over the hidden layers, where it is tenfold.

    Args:
        found: the evidence.

    Returns:
        A phrase each; none where both hold.
    """
    return [*_forward_change(found), *_backward_change(found)]


def _causes(found: Evidence) -> list[str]:
    """The remarkable numbers, most drastic first."""
    causes = _forward_change(found)
    if found.saturated is not None and found.saturated > SATURATION:
        causes.append(f"{percent(found.saturated)} of the activations are saturated")
    causes += _backward_change(found)
    start, end = found.cosine
    if end is not None and end > COLLAPSE and (start is None or start < end):
        rise = f" (from {compact(start, digits=2)})" if start is not None else ""
        causes.append(f"any two inputs arrive nearly the same, at a mean cosine of {compact(end)}{rise}")
    return causes


def _forward_change(found: Evidence) -> list[str]:
    first, last = found.forward
    growth = _ratio(last, first)
    if found.broken is not None and found.broken <= found.layers:
        return [f"layer {found.broken} is the first to overflow"]
    if last == 0:
        return [f"the signal dies out (RMS {arrow(found.forward)})"]
    if growth is None or _within(growth, CHANGE):
        return []
    verb, factor = "grows" if growth > 1 else "fades", compact(found.forward_factor)
    return [f"the signal {verb} by ×{factor} a layer (RMS {arrow(found.forward)})"]


def _backward_change(found: Evidence) -> list[str]:
    ratio = found.gradient_ratio
    if found.backward[0] == 0:
        return ["no gradient at all reaches the first layer"]
    if ratio is None or _within(ratio, CHANGE):
        return []
    verb, factor = "grows" if ratio > 1 else "fades", compact(found.backward_factor)
    whole = compact(ratio, digits=2)
    return [f"the gradient {verb} by ×{factor} a layer on its way back (×{whole} in all)"]


def _soundness(found: Evidence) -> str:
    """The numbers of a start in which nothing is remarkable."""
    parts = []
    if found.forward_factor is not None:
        verb = "holds" if _within(_ratio(found.forward[1], found.forward[0]), 2) else "drifts"
        parts.append(
            f"the signal {verb} (RMS {arrow(found.forward)}, ×{compact(found.forward_factor)} a layer)"
        )
    if found.gradient_ratio is not None:
        verb = "holds" if _within(found.gradient_ratio, 2) else "drifts"
        parts.append(f"the gradient {verb} (×{compact(found.gradient_ratio, digits=2)} in all)")
    start, end = found.cosine
    if start is not None and end is not None:
        verb = "stay apart" if end - start < 0.25 else "draw closer"
        parts.append(f"inputs {verb} (mean cosine {arrow(found.cosine)})")
    return _join(parts) if parts else ""


def _within(ratio: float | None, factor: float) -> bool:
    return ratio is not None and 1 / factor <= ratio <= factor


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _ends(stats: list[Stats | None], field: str) -> tuple[float | None, float | None]:
    values = [None if one is None else getattr(one, field) for one in stats]
    return (values[0], values[-1]) if values else (None, None)


def _ratio(above: float | None, below: float | None) -> float | None:
    if above is None or below is None or not math.isfinite(above) or not math.isfinite(below) or below == 0:
        return None
    return above / below


def _weighted(profile: Profile) -> list[Signal]:
    owners = {row.name.rpartition(".")[0] for row in profile.parameters if len(row.shape) > 1}
    return [row for row in profile.leaves() if row.name in owners]


def _is_broken(row: Signal) -> bool:
    return row.forward is not None and bool(row.forward.nonfinite)
