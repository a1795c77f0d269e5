"""Recipes over fans alone, each against its paper's own formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.gain import gain
from isometry.init.structured import draw_any
from isometry.planning import plan
from isometry.sampling import Constant, Normal, Uniform


def _laws(model, x, recipe, **options):
    return {row.name: row.law for row in plan(model, x, recipe=recipe, **options)}


def _mlp(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 9), activation(), nn.Linear(9, 4))


X = torch.randn(3, 6)


def test_xavier_is_equation_12_of_glorot_and_bengio():
    for name, law in _laws(_mlp(), X, "xavier").items():
        if name.endswith("weight"):
            n_in, n_out = {"0": (6, 8), "2": (8, 9), "4": (9, 4)}[name[0]]
            assert law.std == pytest.approx(math.sqrt(2 / (n_in + n_out)))
        else:
            assert law == Constant(0.0)
    bound = math.sqrt(6 / (8 + 9))  # equation 16
    law = _laws(_mlp(), X, "xavier", distribution="uniform")["2.weight"]
    assert isinstance(law, Uniform)
    assert law.bounds == pytest.approx((-bound, bound))


def test_lecun_has_unit_output_variance_for_unit_input():
    assert _laws(_mlp(), X, "lecun")["2.weight"].std == pytest.approx(8**-0.5)
    assert _laws(_mlp(), X, "lecun", gain=2.0)["2.weight"].std == pytest.approx(2 * 8**-0.5)


@pytest.mark.parametrize(("slope", "square"), [(0.0, 2.0), (0.25, 2 / (1 + 0.25**2))])
def test_kaiming_is_equations_10_and_14_and_15_of_he(slope, square):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 5)

        def forward(self, x):
            x = F.leaky_relu(self.first(x), slope)
            return self.head(F.leaky_relu(self.conv(x), slope).mean((2, 3)))

    forward = _laws(Net(), torch.randn(2, 3, 8, 8), "kaiming")
    assert forward["conv.weight"].std ** 2 == pytest.approx(square / (4 * 9))  # 2/(k²c)
    assert forward["first.weight"].std ** 2 == pytest.approx(square / (3 * 9))  # his convention
    backward = _laws(Net(), torch.randn(2, 3, 8, 8), "kaiming", objective="backward")
    assert backward["conv.weight"].std ** 2 == pytest.approx(square / (6 * 9))  # 2/(k²d)
    free = _laws(Net(), torch.randn(2, 3, 8, 8), "kaiming", input_gain=1.0)
    assert free["first.weight"].std ** 2 == pytest.approx(1 / 27)


def test_kaiming_takes_the_gain_of_what_each_weight_reads():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.ParameterList(
                [torch.randn(6, 8), torch.randn(8, 9), torch.randn(9, 9), torch.randn(9, 4)]
            )

        def forward(self, x):
            x = torch.tanh(x @ self.w[0])
            x = F.gelu(x @ self.w[1])
            return F.layer_norm(x @ self.w[2], (9,)) @ self.w[3]

    laws = _laws(Mixed(), X, "kaiming")
    wanted = {
        "w.0": gain("tanh") / 6**0.5,
        "w.1": gain("tanh") / 8**0.5,
        "w.2": gain("gelu") / 3,
        "w.3": 1 / 3,
    }
    assert {k: v.std for k, v in laws.items()} == pytest.approx(wanted, rel=1e-6)


def test_orthogonal_weights_keep_lengths_exactly():
    laws = _laws(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), X, "orthogonal")
    q = draw_any(laws["0.weight"], (6, 6), torch.Generator().manual_seed(0))
    assert torch.allclose(q @ q.T, torch.eye(6), atol=1e-5)
    exact = _laws(
        nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), X, "orthogonal", gain="activation"
    )
    q = draw_any(exact["2.weight"], (6, 6), torch.Generator().manual_seed(0))
    assert torch.allclose(q @ q.T, gain("tanh") ** 2 * torch.eye(6), atol=1e-4)


def test_a_delta_orthogonal_convolution_keeps_the_norm_of_a_periodic_image():
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False)
    law = _laws(conv, torch.randn(2, 4, 8, 8), "delta-orthogonal")["weight"]
    with torch.no_grad():
        conv.weight.copy_(draw_any(law, (4, 4, 3, 3), torch.Generator().manual_seed(0)))
        x = torch.randn(2, 4, 8, 8)
        assert torch.allclose(conv(x).norm(dim=1), x.norm(dim=1), rtol=1e-5)


def test_standard_normal_ignores_fans():
    laws = _laws(_mlp(), X, "standard-normal")
    assert {laws[f"{i}.weight"] for i in (0, 2, 4)} == {Normal(1.0)}


def test_options_are_checked():
    with pytest.raises(InvalidValueError, match="gain must be greater than 0"):
        _laws(_mlp(), X, "xavier", gain=-1.0)
    with pytest.raises(InvalidValueError, match="'activation'"):
        _laws(_mlp(), X, "orthogonal", gain="relu")
    with pytest.raises(InvalidTypeError, match="std must be a number"):
        _laws(_mlp(), X, "standard-normal", std=True)
    with pytest.raises(InvalidValueError, match="fan_in"):
        _laws(_mlp(), X, "kaiming", mode="fan_inn")


def test_a_weight_without_a_fan_gets_zeros_and_a_mark():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.own = nn.Parameter(torch.zeros(4, 0)), nn.Linear(6, 4)

        def forward(self, x):
            return self.own(x) + x[:, :0] @ self.weight.T

    choice = plan(Empty(), X, recipe="kaiming")["weight"]
    assert (choice.law, choice.marks) == (Constant(0.0), ("unused",))
