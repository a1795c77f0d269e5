import math

import pytest
import torch
from torch import nn

from isometry.watch.units import ENOUGH, Share, Units, can_fall_silent


def run(units, module, *steps, name="act"):
    for tensor in steps:
        units.observe(name, 0, module, tensor)
        units.end_step()
    return {(symptom, key): share for symptom, key, share in units.shares()}


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("module", "can"),
    [(nn.ReLU(), True), (nn.GELU(), True), (nn.SiLU(), True), (nn.Hardswish(), True), (nn.Tanh(), False)],
)
def test_which_activations_can_fall_silent(module, can):
    assert can_fall_silent(module) is can


def test_a_block_named_after_an_activation_is_none():
    class ConvRelu(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    assert not can_fall_silent(ConvRelu())


def test_units_that_stay_silent_are_counted_one_by_one():
    x = torch.rand(200, 10, generator=generator()) + 0.1
    x[:, :6] = 0
    x[7, 5] = 1.0  # one sign of life
    found = run(Units(patience=2), nn.ReLU(), x, x)
    assert found == {("silent", ("act", 0)): Share(units=10, ill=5)}


def test_patience_and_the_number_of_observations_are_both_needed():
    dead = torch.zeros(ENOUGH, 4)
    assert run(Units(patience=2), nn.ReLU(), dead)["silent", ("act", 0)].ill == 0
    assert run(Units(patience=2), nn.ReLU(), dead, dead)["silent", ("act", 0)].ill == 4
    few = torch.zeros(ENOUGH // 3 - 1, 4)
    assert run(Units(patience=2), nn.ReLU(), few, few, few)["silent", ("act", 0)].ill == 0
    assert run(Units(patience=2), nn.ReLU(), few, few, few, few)["silent", ("act", 0)].ill == 4


def test_a_sign_of_life_starts_the_count_anew():
    dead, alive = torch.zeros(400, 4), torch.zeros(400, 4)
    alive[0] = 1.0
    assert run(Units(patience=2), nn.ReLU(), dead, dead, alive)["silent", ("act", 0)].ill == 0
    assert run(Units(patience=2), nn.ReLU(), dead, alive, dead)["silent", ("act", 0)].ill == 0


def test_channels_are_the_units_of_a_convolution():
    units = Units(patience=1)
    conv_output = torch.randn(3, 5, 12, 12, generator=generator())
    activity = conv_output.relu()
    activity[:, 2] = 0
    units.observe("conv", 0, nn.Conv2d(1, 5, 3), conv_output)
    assert run(units, nn.ReLU(), activity)["silent", ("act", 0)] == Share(units=5, ill=1)


def test_features_are_the_units_of_a_linear_layer_on_images():
    units = Units(patience=1)
    hidden = torch.randn(3, 12, 12, 7, generator=generator())
    units.observe("fc", 0, nn.Linear(4, 7), hidden)
    activity = hidden.relu()
    activity[..., 3:] = 0
    assert run(units, nn.ReLU(), activity)["silent", ("act", 0)] == Share(units=7, ill=4)


def test_one_dimensional_convolutions_too():
    units = Units(patience=1)
    hidden = torch.randn(30, 6, 12, generator=generator())
    units.observe("conv", 0, nn.Conv1d(2, 6, 3), hidden)
    activity = hidden.relu()
    activity[:, 0] = 0
    assert run(units, nn.ReLU(), activity)["silent", ("act", 0)] == Share(units=6, ill=1)


def test_saturated_means_flat_on_most_samples():
    x = torch.zeros(400, 4)
    x[:, 1] = 1.0
    x[:210, 2] = -1.0
    x[:190, 3] = 1.0
    assert run(Units(patience=1), nn.Tanh(), x)["saturated", ("act", 0)] == Share(units=4, ill=2)


def test_a_gradient_of_zero_shows_units_that_die_in_a_function():
    units = Units(patience=1)
    gradient = torch.ones(400, 6)
    gradient[:, :4] = 0
    units.observe_gradient("fc", 0, nn.Linear(3, 6), gradient)
    units.observe_gradient("act", 0, nn.Tanh(), gradient)
    units.end_step()
    assert [(symptom, share.ill) for symptom, _, share in units.shares()] == [("deaf", 4)]


def test_micro_batches_of_a_step_are_one_step():
    units = Units(patience=2)
    dead, alive = torch.zeros(300, 2), torch.zeros(300, 2)
    alive[0, 0] = 1
    for _ in range(2):
        units.observe("act", 0, nn.ReLU(), dead)
        units.observe("act", 0, nn.ReLU(), alive)
        units.end_step()
    [(_, _, share)] = units.shares()
    assert share.ill == 1


def test_a_dropped_step_leaves_no_trace():
    units = Units(patience=1)
    units.observe("act", 0, nn.ReLU(), torch.zeros(400, 4))
    units.drop_step()
    units.end_step()
    assert list(units.shares()) == []


@pytest.mark.parametrize("shape", [(5,), (0, 4)])
def test_what_has_no_units_is_passed_over(shape):
    assert run(Units(patience=1), nn.ReLU(), torch.zeros(shape)) == {}


@pytest.mark.parametrize("units", [1, 4, 8, 64, 1000])
def test_most_is_beyond_what_a_fair_coin_gives(units):
    from scipy.stats import binom

    least = next(ill for ill in range(units + 1) if Share(units, ill).most)
    # Three standard deviations: below 0.2 % for many units; every unit for few.
    assert least == units or binom.sf(least - 1, units, 0.5) < 0.002
    assert least <= math.ceil(units / 2 + 1.5 * math.sqrt(units))
