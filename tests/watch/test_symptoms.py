import math

import pytest

from isometry.profile import Profile, Signal, Stats
from isometry.watch import symptoms
from isometry.watch.units import Share


def chain(*sizes, side="backward", width=100, kind="Linear"):
    """A chain of layers with these gradient (or output) norms."""
    rms = [size / math.sqrt(width) for size in sizes]
    return Profile(
        tuple(
            Signal(
                name=f"{index}",
                kind=kind,
                shape=(1, width),
                forward=Stats(mean=0.0, std=1.0, rms=1.0, nonfinite=0.0),
                backward=Stats(rms=value, nonfinite=0.0),
            )
            for index, value in enumerate(rms)
        )
    )


def names(findings):
    return [(finding.symptom, finding.name) for finding in findings]


def geometric(ratio, layers=11):
    return [ratio ** (1 - index / (layers - 1)) for index in range(layers)]


def test_the_scatter_is_that_of_a_relu_network():
    profile = chain(*[1.0] * 20, width=50)
    assert symptoms.scatter(profile) == pytest.approx(0.5 * math.sqrt(5 * 20 / 50))
    assert symptoms.scatter(chain(1.0, kind="ReLU")) == 0


def test_the_scatter_of_random_relu_networks_stays_within_what_is_allowed():
    # Products of random matrices with relu masks in float64: |x_L|² / |x_0|² with He weights.
    import torch

    generator, depth, width, draws = torch.Generator().manual_seed(0), 16, 40, 400
    logs = []
    for _ in range(draws):
        x = torch.randn(width, generator=generator, dtype=torch.float64)
        start = x.norm()
        for _ in range(depth):
            weight = torch.randn(width, width, generator=generator, dtype=torch.float64) * math.sqrt(
                2 / width
            )
            x = (weight @ x).relu()
        logs.append(float((x.norm() / start).log()))
    std = torch.tensor(logs).std().item()
    predicted = symptoms.scatter(chain(*[1.0] * depth, width=width))
    # 400 draws give a std to 1/√(2·400) = 3.5 %; the formula is the leading order in depth/width = 0.4.
    assert std == pytest.approx(predicted, rel=0.25)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1e-5, [("vanishing gradient", "0")]),
        (0.01, []),
        (1.0, []),
        (100.0, []),
        (1e6, [("exploding gradient", "0")]),
        (0.0, [("vanishing gradient", "0")]),
    ],
)
def test_gradients_across_the_depth(ratio, expected):
    sizes = [0.0] * 5 + [1.0] if ratio == 0 else geometric(ratio)
    assert names(symptoms.gradients(0, chain(*sizes))) == expected


def test_what_is_allowed_grows_with_depth_over_width():
    ratio = symptoms.VANISHED / 3
    assert names(symptoms.gradients(0, chain(*geometric(ratio), width=100_000))) != []
    # 40 layers of width 20 scatter by ½√(5·40/20) = 1.6, and two of that are a factor of 24.
    assert names(symptoms.gradients(0, chain(*geometric(ratio, 40), width=20))) == []


def test_a_sudden_fall_near_the_output_counts_too():
    assert names(symptoms.gradients(0, chain(*[1e-7] * 9, 1e-4, 0.1, 1.0))) == [("vanishing gradient", "0")]


def test_branches_that_start_from_zero_are_healthy():
    assert names(symptoms.gradients(0, chain(*[1e-6] * 10, 1.0))) == []


@pytest.mark.parametrize("sizes", [(), (1.0,), (math.nan, 1.0), (1.0, 0.0), (math.inf, 1.0)])
def test_what_says_nothing_about_the_depth(sizes):
    assert names(symptoms.gradients(0, chain(*sizes))) == []


def moved(mean=0.0, std=1.0):
    rows = [
        Signal(name="a", forward=Stats(mean=mean, std=std)),
        Signal(name="b", forward=Stats(mean=0.0, std=1.0)),
    ]
    return Profile((*rows, Signal(name="head", forward=Stats(mean=mean, std=std))))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (moved(), []),
        (moved(std=50.0), []),
        (moved(std=150.0), ["exploding variance"]),
        (moved(std=0.05), []),
        (moved(std=0.005), ["collapsing variance"]),
        (moved(mean=9.0), []),
        (moved(mean=-11.0), ["drifting mean"]),
        (moved(mean=11.0, std=2.0), []),
        (moved(mean=math.nan, std=math.nan), []),
    ],
)
def test_spreads_against_the_first_step(now, expected):
    # The head's scale is the targets' business.
    assert names(symptoms.spreads(7, now, moved())) == [(symptom, "a") for symptom in expected]


def test_growth_is_measured_on_the_largest_spread_of_the_first_step():
    assert names(symptoms.spreads(7, moved(std=50.0), moved(std=1e-6))) == []


def test_a_branch_that_starts_from_zero_has_not_collapsed():
    assert names(symptoms.spreads(7, moved(std=0.0), moved(std=0.0))) == []


def broken(where, side):
    def stats(name, which):
        return Stats(mean=0.0, std=1.0, rms=1.0, nonfinite=0.5 if (name, which) in where else 0.0)

    rows = tuple(
        Signal(name=name, forward=stats(name, "forward"), backward=stats(name, "backward")) for name in "abc"
    )
    weight = Signal(name="a.weight", forward=stats("a.weight", "forward"))
    return Profile(rows, parameters=(weight,))


@pytest.mark.parametrize(
    ("where", "loss", "expected", "word"),
    [
        ([("b", "forward"), ("c", "forward")], math.nan, "b", "overflowed"),
        ([("a", "backward"), ("b", "backward")], 1.0, "b", "Going backward it is the first"),
        ([("a", "forward"), ("a.weight", "forward")], math.nan, "a.weight", "An update"),
        ([], math.inf, "", "the loss itself"),
    ],
)
def test_the_origin_of_a_nan_is_named(where, loss, expected, word):
    [finding] = symptoms.nonfinite(3, broken(where, None), loss)
    assert (finding.symptom, finding.name, finding.step) == ("nonfinite", expected, 3)
    assert word in finding.message


def test_weights_that_are_broken_before_the_first_update_are_not_blamed_on_one():
    [finding] = symptoms.nonfinite(0, broken([("a.weight", "forward")], None), math.nan)
    assert "began so" in finding.message
    assert "update" not in finding.message


def test_finite_is_fine():
    assert list(symptoms.nonfinite(3, broken([], None), 1.0)) == []


def test_units_are_told_by_the_module_that_can_say_it_best():
    rows = tuple(Signal(name=name, forward=Stats()) for name in ("conv", "norm", "relu", "fc", "out"))
    ill = Share(units=10, ill=10)
    shares = [
        (symptom, (name, 0), ill)
        for symptom, name in [
            ("deaf", "conv"),
            ("silent", "relu"),
            ("deaf", "fc"),
            ("saturated", "out"),
            ("silent", "gone"),
        ]
    ]
    found = list(symptoms.units(5, Profile(rows), shares, {("relu", 0): True}))
    assert names(found) == [("dead units", "relu"), ("dead units", "fc")]
    assert "10 of 10 units were silent" in found[0].message


def test_half_of_the_units_is_no_finding():
    rows = (Signal(name="tanh", forward=Stats()), Signal(name="out", forward=Stats()))
    half = [("saturated", ("tanh", 0), Share(units=100, ill=55))]
    assert list(symptoms.units(5, Profile(rows), half, {})) == []
    most = [("saturated", ("tanh", 0), Share(units=100, ill=70))]
    assert names(symptoms.units(5, Profile(rows), most, {})) == [("saturated units", "tanh")]
