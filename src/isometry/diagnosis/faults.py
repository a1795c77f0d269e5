"""Faults of an initialisation: what is ill, and the parameters that cause it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from isometry.audit import audit
from isometry.compare.verdicts import changes, evidence
from isometry.diagnosis.causes import causes
from isometry.diagnosis.checks import found
from isometry.planning import plan
from isometry.profile import Profile


@dataclass(frozen=True)
class Fault:
    """One symptom, with what causes it and what mends it.

    Attributes:
        symptom: What is ill, with its size.
        causes: The parameters whose scale is furthest from what the signal needs, with a typical one's size.
        remedy: What to do.
    """

    symptom: str
    causes: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        causes = "; ".join(self.causes) or "no single group of parameters stands out"
        return f"{self.symptom}. Cause: {causes}. Remedy: {self.remedy}"


def diagnose(
    model: nn.Module | Callable[[], nn.Module],
    inputs: object,
    *,
    profile: Profile | None = None,
    loss: Callable[..., Tensor] | None = None,
    seed: int = 0,
) -> tuple[Fault, ...]:
    """Tell what is wrong with an initialisation, why, and what to do.

    The symptoms, whose bounds are empirical and wide:

    - an output whose RMS falls below 1e-4 or rises above 1e4 times what came before it;
    - a parameter whose gradient is below 1e-10 of the largest, or a gradient whose norm changes a
      thousandfold from the last layer to the first, beyond the scatter of finite width;
    - two samples that give the same signal, at a mean cosine above 0.999;
    - an activation that is zero for more than 99 % of its inputs, or flat, where it is bounded, for more
      than half of them;
    - a signal or gradient that changes tenfold over the hidden layers, if a weight has the gain of another
      activation than the one it feeds.

    Where there is one, the parameters' present RMS is compared with that of the plan "auto", and named where
    it is a known rule's. Weights in front of a norm, whose scale is undone, are left out.

    Args:
        model: The model, or the function that builds it; it is left as it is.
        inputs: As for `isometry.predict`.
        profile: What `isometry.measure` or `isometry.predict` told of this model. None predicts its signal
            and, where it has at most 2³¹ parameters, measures its activations.
        loss: As for `isometry.predict`, where `profile` is None.
        seed: Of what a builder draws, where `profile` is None; the global random state is left as it was.

    Returns:
        The faults; none where nothing is ill.

    Raises:
        The errors of `isometry.predict`, `isometry.measure` and `isometry.plan`.

    Example:
        >>> layers = [nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU()) for _ in range(30)]
        >>> [str(fault).partition(":")[0] for fault in diagnose(nn.Sequential(*layers), "32x64")]
        ['the signal vanishes', 'the gradient fades']
    """
    if profile is not None:
        return faults(model, inputs, profile, None)
    seen = audit(model, inputs, loss=loss, seed=seed)
    return faults(model, inputs, seen.predicted, seen.measured)


def faults(
    model: nn.Module | Callable[[], nn.Module], inputs: object, profile: Profile, measured: Profile | None
) -> tuple[Fault, ...]:
    """`diagnose` for profiles that are known: how the signal travels, and what a draw's activations do."""
    symptoms = list(found(profile, measured or profile))
    uneven = [] if symptoms else list(changes(evidence(profile)))
    if not symptoms and not uneven:
        return ()
    reasons = causes(plan(model, inputs), profile)
    if uneven and not any(reason.foreign for reason in reasons):
        return ()
    told = tuple(map(str, reasons))
    return tuple(Fault(symptom, told, "isometry.init_(model, inputs)") for symptom in symptoms or uneven)


def sentences(faults: Sequence[Fault]) -> list[str]:
    """Write faults down, what several have in common once.

    Args:
        faults: What `diagnose` returned.

    Returns:
        A sentence for each symptom, each cause and each remedy.

    Example:
        >>> sentences([Fault("this", ("those",), "that"), Fault("these", ("those",), "that")])
        ['This.', 'These.', 'Cause: those.', 'Remedy: that']
    """
    symptoms = [f"{fault.symptom[0].upper()}{fault.symptom[1:]}." for fault in faults]
    causes = [f"Cause: {cause}." for cause in dict.fromkeys(c for fault in faults for c in fault.causes)]
    if faults and not causes:
        causes = ["Cause: no single group of parameters stands out."]
    return [*symptoms, *causes, *dict.fromkeys(f"Remedy: {fault.remedy}" for fault in faults)]
