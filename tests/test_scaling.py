"""Exponents of growth, against theory and against real first steps."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.scaling import fit, scaling

WIDTHS = (256, 512, 1024)


class Mlp(nn.Module):
    """Standard parametrisation, or μP: the readout drawn with variance 1/width² in place of 1/width."""

    def __init__(self, width, readout=0.5):
        super().__init__()
        self.first, self.middle = nn.Linear(32, width, bias=False), nn.Linear(width, width, bias=False)
        self.last = nn.Linear(width, 10, bias=False)
        nn.init.normal_(self.first.weight, std=32**-0.5)
        nn.init.normal_(self.middle.weight, std=(2 / width) ** 0.5)
        nn.init.normal_(self.last.weight, std=width**-readout)

    def forward(self, x):
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


def test_standard_parametrisation_needs_rates_that_fall_with_width():
    found = scaling(lambda width: Mlp(width), "1x32", {"width": WIDTHS})
    expected = {  # values, gradient, SGD step, Adam step of its own output
        "first.weight": (0.0, -0.5, -0.5, 0.0),
        "middle.weight": (-0.5, -0.5, 0.5, 1.0),
        "last.weight": (-0.5, 0.0, 1.0, 1.0),
    }
    for name, exponents in expected.items():
        row = found[name]
        told = (row.size.exponent, row.gradient.exponent, row.sgd.exponent, row.adam.exponent)
        assert told == pytest.approx(exponents, abs=0.02), name
    assert found["middle"].size.exponent == pytest.approx(0.0, abs=0.02)
    broken = " ".join(found.breaks("adam"))
    assert "middle.weight" in broken
    assert "width^-1.00" in broken
    assert "first.weight" not in broken


def test_mup_makes_every_first_step_independent_of_width():
    def rate(name, shape, width):
        return 1.0 if name == "first.weight" else 1.0 / width  # Adam's rates of table 3

    found = scaling(lambda width: Mlp(width, readout=1.0), "1x32", {"width": WIDTHS}, rate=rate)
    for row in found.parameters:
        assert row.adam.exponent == pytest.approx(0.0, abs=0.02), row.name
    assert found["last"].size.exponent == pytest.approx(
        -0.5, abs=0.02
    )  # μP's output starts at 0 in the limit
    assert not any("step" in line for line in found.breaks("adam"))


def keep_input(fed, name, module, args, output):
    fed[name] = args[0].detach()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_agrees_with_real_first_steps(optimizer):
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    found = scaling(lambda width: Mlp(width), x, {"width": WIDTHS})
    torch.manual_seed(0)
    moved = {name: [] for name in ("first", "middle", "last")}
    draws = 12
    for width in WIDTHS:
        squares = dict.fromkeys(moved, 0.0)
        for _ in range(draws):
            model = Mlp(width)
            fed = {}
            for name in moved:
                getattr(model, name).register_forward_hook(partial(keep_input, fed, name))
            output = model(x)
            (output * torch.randn(output.shape)).sum().backward()
            for name in moved:
                gradient = getattr(model, name).weight.grad
                step = gradient if optimizer == "sgd" else gradient.sign()
                squares[name] += float((fed[name] @ step.T).square().mean()) / draws
        for name in moved:
            moved[name].append(math.sqrt(squares[name]))
    for name, values in moved.items():
        told = getattr(found[f"{name}.weight"], optimizer)
        assert told.exponent == pytest.approx(fit(WIDTHS, values).exponent, abs=0.15), name
        if optimizer == "sgd":  # Adam's factor depends on how many gradients are zero
            assert told.values == pytest.approx(values, rel=0.35), name


def test_depth_grows_what_a_residual_stream_holds():
    class Stream(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(depth))
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)

        def forward(self, x):
            y = x
            for layer in self.layers:
                y = y + layer(x)
            return y

    found = scaling(Stream, "4x64", {"depth": (16, 32, 64)})
    assert found[""].size.exponent == pytest.approx(0.5, abs=0.05)


def test_fit_recovers_a_power_and_refuses_what_is_none():
    growth = fit((10, 100, 1000), [3.0 * n**0.75 for n in (10, 100, 1000)])
    assert growth.exponent == pytest.approx(0.75)
    assert growth.residual == pytest.approx(0.0, abs=1e-12)
    assert fit((10, 100), [0.0, 1.0]).exponent is None
    assert fit((10, 100), [None, 1.0]).exponent is None
    assert fit((10, 100, 1000), [1.0, 10.0, 1.0]).residual > 1.0


def test_table_and_json_tell_the_same():
    found = scaling(lambda width: Mlp(width), "1x32", {"width": (256, 512)})
    assert "middle.weight" in str(found)
    rows = json.loads(found.to_json())["parameters"]
    assert next(r for r in rows if r["name"] == "middle.weight")["adam"]["exponent"] == pytest.approx(
        1.0, abs=0.02
    )


@pytest.mark.parametrize(
    ("build", "over", "error"),
    [
        (Mlp(256), {"width": (2, 4)}, InvalidTypeError),
        (Mlp, ("width", 2), InvalidTypeError),
        (Mlp, {"width": (2, 4), "readout": (1, 2)}, InvalidValueError),
        (Mlp, {"width": (64,)}, InvalidValueError),
        (Mlp, {"width": (64, 64)}, InvalidValueError),
        (Mlp, {"width": (0, 64)}, InvalidValueError),
    ],
)
def test_what_cannot_be_scaled_is_refused(build, over, error):
    with pytest.raises(error):
        scaling(build, "1x32", over)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InvalidValueError, match="adam"):
        scaling(lambda width: Mlp(width), "1x32", {"width": (64, 128)}).breaks("lion")
