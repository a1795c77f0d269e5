"""The spectral condition of Yang, Simon and Bernstein: of weights as drawn, and of their updates."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.errors import InvalidValueError

X = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))


def network(width: int) -> nn.Sequential:
    """Wide, narrow and square weights; the sides grow in proportion."""
    return nn.Sequential(
        nn.Linear(24, width), nn.Tanh(),
        nn.Linear(width, 4 * width), nn.Tanh(),
        nn.Linear(4 * width, width), nn.Tanh(),
        nn.Linear(width, 6),
    )  # fmt: skip


def norm(matrix: torch.Tensor) -> float:
    """Spectral norm over √(fan_out/fan_in)."""
    rows, cols = matrix.shape
    return float(torch.linalg.matrix_norm(matrix.detach(), 2)) / math.sqrt(rows / cols)


def test_parametrisation_1_of_the_paper() -> None:
    for optimizer in ("adam", "sgd"):
        plan = isometry.plan(network(32), X, recipe="spectral", optimizer=optimizer)
        for name, n_in, n_out in (("0", 24, 32), ("2", 32, 128), ("4", 128, 32), ("6", 32, 6)):
            row = plan[f"{name}.weight"]
            assert row.std == pytest.approx(min(1.0, math.sqrt(n_out / n_in)) / math.sqrt(n_in))
            assert row.rate == pytest.approx(n_out / n_in if optimizer == "sgd" else 1 / n_in)
            assert plan[f"{name}.bias"].rate == (n_out if optimizer == "sgd" else 1.0)


def test_weights_have_the_norm_of_the_condition_whatever_their_sides() -> None:
    model = network(96)
    isometry.init_(model, X, recipe="spectral")
    # σ(√n_in + √n_out) lies between one and two times √(n_out/n_in); 6 % for finite sides
    for layer in model[::2]:
        assert 0.94 < norm(layer.weight) < 2.06


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_updates_have_norms_that_do_not_depend_on_the_width(optimizer: str) -> None:
    sizes = {}
    for width in (32, 128):
        model = network(width)
        plan = isometry.init_(model, X, recipe="spectral", optimizer=optimizer)
        before = [layer.weight.detach().clone() for layer in model[::2]]
        make = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        run = make(plan.parameter_groups(model, 0.1))
        F.cross_entropy(model(X), torch.tensor([2])).backward()
        run.step()
        sizes[width] = [norm(layer.weight - old) for layer, old in zip(model[::2], before, strict=True)]
    # Table 1 of the paper; one draw's gradients of six logits stray by a factor
    if optimizer == "sgd":
        for narrow, wide in zip(sizes[32], sizes[128], strict=True):
            assert 0.4 < wide / narrow < 2.5
    else:  # the first step of Adam is the sign of a matrix of rank one: exactly √(n_in·n_out)/n_in
        assert sizes[32] + sizes[128] == pytest.approx([0.1] * 8, rel=1e-3)


def test_channels_are_the_outputs_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3, stride=2), nn.Conv2d(4, 64, 3, groups=2))
    plan = isometry.plan(model, torch.randn(2, 8, 12, 12), recipe="spectral", optimizer="sgd")
    assert plan["0.weight"].std == pytest.approx(math.sqrt(4 / 72) / math.sqrt(72))
    assert plan["0.weight"].rate == pytest.approx(4 / 72)
    assert plan["1.weight"].std == pytest.approx(18**-0.5)
    assert plan["1.weight"].rate == pytest.approx(32 / 18)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="optimizer must be one of"):
        isometry.plan(network(8), X, recipe="spectral", optimizer="lion")
