import math

import pytest

from isometry.compare.training import Run
from isometry.compare.verdicts import Evidence, evidence, hidden, sentence
from isometry.profile import Profile, Signal, Stats

SOUND = {"forward": (1.0, 1.1), "backward": (0.1, 0.09), "cosine": (0.1, 0.2)}


def found(**changes):
    return Evidence(layers=11, **{**SOUND, **changes})


def run(accuracy=0.1, losses=(2.3, 2.3), diverged=None, lr=0.01):
    return Run(lr=lr, seed=0, losses=losses, evaluated=(0, 10), accuracies=(0.1, accuracy),
               test_losses=(2.3, 2.3), diverged=diverged)  # fmt: skip


def say(evidence_, run_):
    return sentence(evidence_, run_, chance=0.1)


def profile_of(rms, gradients, cosines, nonfinite=()):
    """Linear layers with an activation after each but the last, inside a container."""
    rows = [Signal(name="", kind="Sequential")]
    for i, (size, gradient, cosine) in enumerate(zip(rms, gradients, cosines, strict=True)):
        broken = 0.5 if i in nonfinite else None
        stats = Stats(rms=size, cosine=cosine, nonfinite=broken)
        rows.append(Signal(name=str(2 * i), forward=stats, backward=Stats(rms=gradient)))
        rows.append(Signal(name=str(2 * i + 1), forward=Stats(rms=7.0, saturated=i / 10)))
    weights = [Signal(name=f"{2 * i}.weight", shape=(5, 3)) for i in range(len(rms))]
    biases = [Signal(name=f"{2 * i}.bias", shape=(5,)) for i in range(len(rms))]
    return Profile(tuple(rows), parameters=(*weights, *biases))


def test_evidence_is_read_at_the_hidden_layers_with_weights():
    profile = profile_of([2.0, 6.0, 18.0, 99.0], [0.4, 0.2, 0.1, 5.0], [0.1, 0.5, 0.9, 1.0])
    assert [row.name for row in hidden(profile)] == ["0", "2", "4"]
    read = evidence(profile)
    assert read.layers == 3
    assert read.forward == (2.0, 18.0)
    assert read.forward_factor == pytest.approx(3.0)
    assert read.gradient_ratio == pytest.approx(4.0)
    assert read.backward_factor == pytest.approx(2.0)
    assert read.cosine == (0.1, 0.9)
    assert read.saturated == pytest.approx((0 + 0.1 + 0.2 + 0.3) / 4)
    assert read.broken is None


def test_evidence_finds_the_first_layer_that_is_not_finite():
    read = evidence(profile_of([1.0, math.inf, math.nan, math.nan], [1.0] * 4, [0.1] * 4, nonfinite=(1, 2)))
    assert read.broken == 2
    assert read.forward_factor is None


def test_a_model_without_hidden_layers_has_no_evidence():
    read = evidence(profile_of([1.0], [1.0], [0.1]))
    assert read.layers == 0
    assert read.forward == (None, None)
    assert read.forward_factor is None
    assert sentence(read, run(), chance=0.1).endswith("the profile of the start does not say why.")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"forward": (1.0, 1e10)}, "the signal grows by ×10 a layer (RMS 1 → 1e+10)"),
        ({"forward": (1.0, 1e-10)}, "the signal fades by ×0.1 a layer (RMS 1 → 1e-10)"),
        (
            {"backward": (1e-6, 1.0)},
            "the gradient fades by ×0.251 a layer on its way back (×1e-06 in all)",
        ),
        (
            {"backward": (50.0, 1.0)},
            "the gradient grows by ×1.48 a layer on its way back (×50 in all)",
        ),
        ({"forward": (1.0, 0.0)}, "the signal dies out (RMS 1 → 0)"),
        ({"backward": (0.0, 0.1)}, "no gradient at all reaches the first layer"),
        ({"cosine": (0.1, 0.98)}, "at a mean cosine of 0.98 (from 0.1)"),
        ({"saturated": 0.7}, "70% of the activations are saturated"),
        ({"forward": (1.0, math.inf), "broken": 8}, "layer 8 is the first to overflow"),
    ],
)
def test_each_cause_is_named_with_its_numbers_and_alone(changes, expected):
    text = say(found(**changes), run())
    assert text.startswith("It is still at chance (10% after 2 steps): ")
    assert expected in text
    others = ["the signal", " gradient ", "cosine", "saturated", "overflow"]
    assert sum(word in text for word in others) == 1


def test_numbers_within_bounds_are_no_cause():
    text = say(found(forward=(1.0, 9.0), backward=(0.11, 1.0), cosine=(0.1, 0.89), saturated=0.49), run())
    assert "at the start the signal drifts (RMS 1 → 9" in text


def test_inputs_that_were_alike_from_the_start_are_not_the_networks_doing():
    assert "any two inputs" not in say(found(cosine=(0.97, 0.95)), run())


def test_outcomes():
    sound = found()
    assert say(sound, run(accuracy=0.97)).startswith("It learnt: 97% (90% after 10 steps): the signal holds")
    assert say(sound, run(accuracy=0.5)).startswith(
        "It learnt only in part (50% after 2 steps); at the start the signal holds"
    )
    assert "diverged at step 1, before any update (loss 1e+20)" in say(sound, run(losses=(1e20,), diverged=1))
    assert "diverged at step 2 (loss nan)" in say(sound, run(losses=(2.3, math.nan), diverged=2))
    # A run whose only update broke the model began at an ordinary loss: the start is not to blame.
    assert "before any update" not in say(sound, run(losses=(2.3,), diverged=1))
    faded = found(forward=(1.0, 1e-10))
    assert ", although the signal fades" in say(faded, run(accuracy=0.97))


def test_a_regression_is_judged_by_its_loss():
    plain = Run(lr=0.1, seed=0, losses=(4.0, 1.0), evaluated=(0, 2), accuracies=(), test_losses=(4.0, 1.0),
                diverged=None)  # fmt: skip
    assert sentence(found(), plain).startswith("It learnt (loss 4 → 1 in 2 steps): the signal holds")
    flat = Run(lr=0.1, seed=0, losses=(4.0, 3.9), evaluated=(0, 2), accuracies=(), test_losses=(4.0, 3.9),
               diverged=None)  # fmt: skip
    assert sentence(found(), flat).startswith("It hardly learnt (loss 4 → 3.9 in 2 steps); at the start")
