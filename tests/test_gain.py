"""Gains against closed forms, SciPy, the published table, and simulation through real layers."""

import itertools
import json
import math
import random
import runpy
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

from isometry import gain
from isometry.activations.catalogue import ROWS
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryWarning, NotFoundError
from isometry.gain import describe, mirrored_slope

# Forward, backward; relu6's clip is what 1.414214 cannot show.
TABLE = {
    "relu": (1.414214, 1.414214),
    "relu6": (1.414214, 1.414214),
    "leaky_relu": (1.414143, 1.414143),
    "tanh": (1.592537, 1.467414),
    "sigmoid": (1.846229, 4.722646),
    "selu": (1.000000, 0.966026),
    "elu": (1.245198, 1.223429),
    "gelu": (1.533530, 1.481114),
    "gelu_tanh": (1.533581, 1.481168),
    "silu": (1.676532, 1.623320),
    "mish": (1.486848, 1.444755),
    "softplus": (1.041867, 1.846229),
    "hardswish": (1.736657, 1.670076),
    "softsign": (2.337533, 2.095781),
    "hardtanh": (1.392036, 1.210287),
    "relu2": (0.816497, 0.707107),
    "sin": (1.520867, 1.327251),
}


@pytest.mark.parametrize("name", TABLE)
def test_gains_agree_with_the_measured_table(name):
    forward, backward = TABLE[name]
    assert gain(name) == pytest.approx(forward, abs=1e-6)
    assert gain(name, direction="backward") == pytest.approx(backward, abs=1e-6)
    assert gain(name, direction="balanced") == pytest.approx(math.sqrt(forward * backward), abs=1e-6)


# Where each activation's kinks lie; everything else in the catalogue is smooth.
KINKS = {
    "relu": [0], "relu6": [0, 6], "leaky_relu": [0], "prelu": [0], "elu": [0], "celu": [0], "selu": [0],
    "softshrink": [-0.5, 0.5], "hardshrink": [-0.5, 0.5], "hardtanh": [-1, 1], "hardsigmoid": [-3, 3],
    "hardswish": [-3, 3], "relu2": [0], "star_relu": [0], "smelu": [-1, 1], "xielu": [0],
    "hard_mish": [-2, 0],
    "abs": [0], "sign": [0], "step": [0], "softsign": [0],
}  # fmt: skip


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.mixture is None and None not in r.params.values()], ids=lambda r: r.name
)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.37, 0.61)])
def test_every_row_agrees_with_scipy(row, mean, std):
    fn = lambda x: float(row.fn(torch.tensor(x, dtype=torch.float64), **row.params))  # noqa: E731
    points = [-12.0, *((k - mean) / std for k in KINKS.get(row.name, [])), 12.0]
    points = sorted(p for p in {*points, 0.0} if -12 <= p <= 12)
    second = sum(
        integrate.quad(
            lambda z: fn(mean + std * z) ** 2 * stats.norm.pdf(z), a, b, epsabs=1e-12, epsrel=1e-10, limit=100
        )[0]
        for a, b in itertools.pairwise(points)
    )
    expected = 1 / math.sqrt(second * (mean**2 + std**2 if row.gated else 1))
    assert gain(row.name, mean=mean, std=std) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("place", [0.3, 0.2501, 1e-3, -1.7])
def test_kinks_off_the_grid_in_both_directions(place):
    assert gain(lambda x: F.softshrink(x, abs(place)), direction="backward") == pytest.approx(
        1 / math.sqrt(2 * stats.norm.sf(abs(place))), rel=1e-9
    )
    # The same kink moved there by the mean: E[φ′²] = P(x > 0).
    back = gain("relu", direction="backward", mean=place)
    assert back == pytest.approx(1 / math.sqrt(stats.norm.cdf(place)), rel=1e-9)


def test_many_kinks_displaced_by_mean_and_std():
    draw = random.Random(0)
    for _ in range(40):
        # On the grid, within a hair of it, and anywhere, at scales from 0.1 to 10.
        near = draw.randint(-8, 8) / 4 + 10 ** draw.uniform(-12, -2)
        t, std = draw.choice([draw.uniform(-3, 3), near]), 10 ** draw.uniform(-1, 1)
        mean = t * std
        second = (mean**2 + std**2) * stats.norm.cdf(t) + mean * std * stats.norm.pdf(t)
        assert gain("relu", mean=mean, std=std) == pytest.approx(1 / math.sqrt(second), rel=1e-9)
        back = gain("relu", mean=mean, std=std, direction="backward")
        assert back == pytest.approx(1 / math.sqrt(stats.norm.cdf(t)), rel=1e-8)


def test_definition_at_other_means_and_scales():
    # The second moment E[x²] counts, not the variance.
    assert gain("relu", std=7.3) == pytest.approx(math.sqrt(2) / 7.3, rel=1e-12)
    assert gain("linear", mean=3.0, std=0.2) == pytest.approx(1 / math.sqrt(9.04), rel=1e-12)
    assert gain("square", std=3.0) == pytest.approx(1 / math.sqrt(3 * 81), rel=1e-12)
    assert gain("square", direction="backward", std=3.0) == pytest.approx(1 / math.sqrt(4 * 9), rel=1e-12)
    assert gain("tanh", std=1e-4) == pytest.approx(1e4, rel=1e-7)
    exact = math.sqrt(2 / (1 - math.exp(-2 * 0.25)))  # E[sin²] = (1 − e^(−2σ²))/2
    assert gain("sin", std=0.5) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_impossible_inputs_are_refused(std):
    with pytest.raises(InvalidValueError, match="positive finite std"):
        gain("relu", std=std)
    with pytest.raises(InvalidTypeError, match="mean must be a number, got '0'"):
        gain("relu", mean="0")
    with pytest.raises(InvalidValueError, match="direction must be"):
        gain("relu", direction="sideways")


@pytest.mark.parametrize("seed", [0, 1])
def test_forward_gain_gives_second_moment_one_behind_a_wide_layer(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, width, out = 400, 768, 513
    x = 0.4 + 0.7 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    for name, fn in {"gelu": F.gelu, "tanh": torch.tanh}.items():
        g = gain(name, mean=0.4, std=0.7)
        w = torch.randn(out, width, generator=generator, dtype=torch.float64) * g / math.sqrt(width)
        y = fn(x) @ w.T
        # Given x, an output is Gaussian; 513 independent units and the spread of |φ(x)|² set the error.
        second = float((y**2).mean())
        assert second == pytest.approx(1.0, abs=5 * math.sqrt(2 / out))


def test_gated_units_by_formula_and_simulation():
    assert gain("swiglu") == pytest.approx(gain("silu"), rel=1e-14)
    assert gain(F.silu, gated=True) == gain("silu")
    assert gain("bilinear", direction="backward") == pytest.approx(1 / math.sqrt(2), rel=1e-12)
    assert gain("reglu", direction="backward") == pytest.approx(1.0, rel=1e-12)
    # E[y²] = E[φ²]·E[b²] grows with the fourth power of the scale of a bilinear unit's input.
    assert gain("bilinear", std=3.0) == pytest.approx(1 / 9, rel=1e-12)

    generator = torch.Generator().manual_seed(3)
    mean, std, n = 0.3, 1.2, 2_000_000
    a, b = (mean + std * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_()
    b.requires_grad_()
    y = F.silu(a) * b
    squares = y.detach() ** 2
    expected = 1 / gain("swiglu", mean=mean, std=std) ** 2
    assert float(squares.mean()) == pytest.approx(expected, abs=5 * float(squares.std()) / math.sqrt(n))
    grad_a, grad_b = torch.autograd.grad(y.sum(), (a, b))
    total = grad_a**2 + grad_b**2
    back = 1 / gain("swiglu", direction="backward", mean=mean, std=std) ** 2
    assert float(total.mean()) == pytest.approx(back, abs=5 * float(total.std()) / math.sqrt(n))


def test_gated_flag_is_checked():
    with pytest.raises(InvalidValueError, match="swiglu is a gated unit"):
        gain("swiglu", gated=False)
    with pytest.raises(InvalidTypeError, match="gated must be"):
        gain("silu", gated="yes")


def test_randomness_is_averaged_in_the_square():
    lower, upper = 1 / 8, 1 / 3
    slope_square = (upper**3 - lower**3) / (3 * (upper - lower))
    expected = math.sqrt(2 / (1 + slope_square))
    assert gain("rrelu") == pytest.approx(expected, rel=1e-12)
    assert gain(nn.RReLU(), direction="backward") == pytest.approx(expected, rel=1e-12)
    mean_slope = (lower + upper) / 2
    assert gain(nn.RReLU().eval()) == pytest.approx(math.sqrt(2 / (1 + mean_slope**2)), rel=1e-12)
    assert gain(nn.Dropout(0.3)) == pytest.approx(math.sqrt(0.7), rel=1e-12)
    both = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.2))
    assert gain(both) == pytest.approx(math.sqrt(2 * 0.5 * 0.8), rel=1e-12)
    assert gain(both.eval()) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert gain(nn.AlphaDropout(0.2)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["sign", "step"])
def test_steps_have_a_forward_gain_only(name):
    assert gain(name) == pytest.approx(1.0 if name == "sign" else math.sqrt(2), rel=1e-12)
    with pytest.raises(InvalidValueError, match="no backward gain"):
        gain(name, direction="backward")


def test_a_jump_warns_because_autograd_does_not_see_it():
    assert gain("hardshrink") > 0
    with pytest.warns(IsometryWarning, match=r"hardshrink jumps at x = -0.5, 0.5"):
        found = gain("hardshrink", direction="backward")
    assert found == pytest.approx(1 / math.sqrt(2 * stats.norm.sf(0.5)), rel=1e-9)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: 0.0 * x, "zero for practically every input"),
        (lambda x: (x - 60).relu(), "zero for practically every input"),
        (torch.log, "value is nan at x = -"),
        (torch.sqrt, "value is nan"),
        (lambda x: torch.exp(x * x), "infinite or does not converge"),
        (lambda x: torch.exp(torch.exp(x)), "value is inf at x = "),
        (lambda x: 1 / x, "infinite or does not converge"),
        (lambda x: x.bfloat16(), "too coarsely"),
    ],
)
def test_functions_without_a_forward_gain(fn, reason):
    with pytest.raises(InvalidValueError, match=reason):
        gain(fn)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: x.sign() * x.abs().sqrt(), "infinite or does not converge"),
        (lambda x: x.detach().tanh(), "no gradient flows"),
        (lambda x: 1 + 0 * x, "slope is zero for practically every input"),
        (lambda x: torch.where(x > 0, torch.sqrt(x), 0.0), "derivative is nan"),
    ],
)
def test_functions_without_a_backward_gain(fn, reason):
    assert math.isfinite(gain(fn))
    with pytest.raises(InvalidValueError, match=reason):
        gain(fn, direction="backward")


def test_float32_inside_is_precise_enough():
    assert gain(lambda x: F.silu(x.float()).double()) == pytest.approx(gain("silu"), abs=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_any_grad_mode_and_default_device(context):
    with context():
        assert gain(lambda x: torch.tanh(x), direction="backward") == pytest.approx(1.467414, abs=1e-6)
    with torch.device("meta"):
        assert gain(lambda x: torch.tanh(x), direction="backward") == pytest.approx(1.467414, abs=1e-6)


def test_calculate_gain_is_reproduced_where_torch_is_exact():
    for name in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "relu"):
        assert gain(name) == pytest.approx(nn.init.calculate_gain(name), rel=1e-12)
    assert gain("leaky_relu", 0.2) == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-12)


SLOPES = {
    "relu": 1,
    "gelu": 1,
    "gelu_tanh": 1,
    "silu": 1,
    "hardswish": 1,
    "softplus": 1,
    "quick_gelu": 1,
    "linear": 2,
}


@pytest.mark.parametrize("name", SLOPES)
def test_mirrored_slopes(name):
    assert mirrored_slope(name) == SLOPES[name]


def test_mirrored_slope_with_parameters_and_modules():
    assert mirrored_slope("leaky_relu", 0.2) == pytest.approx(1.2)
    assert mirrored_slope(nn.PReLU(init=0.4)) == pytest.approx(1.4, abs=1e-6)
    assert mirrored_slope(lambda x: x + x.abs() ** 1.5) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "name", ["tanh", "elu", "mish", "relu6", "relu2", "hardtanh", "cos", "square", "rrelu", "swiglu"]
)
def test_activations_without_a_mirrored_slope(name):
    with pytest.raises(InvalidValueError, match="no mirrored slope"):
        mirrored_slope(name)


def test_describe_says_where_torch_differs():
    found = describe("sigmoid")
    assert found.torch == 1.0
    assert found.torch_ratio == pytest.approx(1 / 1.846229, abs=1e-6)
    assert any("0.5416 times" in note for note in found.notes)
    assert describe("relu").notes == ()
    assert describe("selu").torch == 0.75
    assert describe("gelu").torch is None
    assert describe("leaky_relu", 0.3).torch == pytest.approx(describe("leaky_relu", 0.3).forward)


def test_describe_warns_of_an_unstable_length():
    # dE[φ²]/dq at q = 1 times g²: above 1 for gelu, below for tanh.
    assert any("unstable" in note for note in describe("gelu").notes)
    assert not any("unstable" in note for note in describe("tanh").notes)


@pytest.mark.parametrize("name", ["relu", "step", "hardshrink", "rrelu", "swiglu", "exp", "gelu"])
def test_descriptions_are_strict_json_and_raise_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = json.dumps(describe(name).to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["forward"] == pytest.approx(gain(name))
    assert back["moments"]["second_moment"] == pytest.approx(1 / gain(name) ** 2)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(NotFoundError, match="did you mean 'silu'"):
        gain("slu")


def test_the_table_in_the_docs_is_current():
    root = Path(__file__).parents[1]
    script = runpy.run_path(str(root / "benchmarks" / "gains.py"))
    page = (root / "docs" / "gains.md").read_text(encoding="utf-8")
    fresh = script["table"]().splitlines()
    written = page.split(script["BEGIN"])[1].split(script["END"])[0].strip().splitlines()
    assert len(written) == len(fresh)
    for old, new in zip(written, fresh, strict=True):
        # The last digit may differ between machines.
        for left, right in zip(old.split("|"), new.split("|"), strict=True):
            try:
                assert float(left.strip(" *")) == pytest.approx(float(right.strip(" *")), abs=2e-4, rel=1e-5)
            except ValueError:
                assert left == right
