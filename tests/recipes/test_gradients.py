"""The objectives of auto: what keeps its size through a plain network of changing widths, by simulation."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry

WIDTHS = (300, 600, 150, 400, 800, 200)


class Plain(nn.Module):
    """A network whose pre-activations can be looked at."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        sides = (64, *WIDTHS)
        self.weights = nn.ParameterList(torch.empty(b, a) for a, b in itertools.pairwise(sides))
        self.head = nn.Linear(WIDTHS[-1], 10)

    def outputs(self, x: Tensor) -> list[Tensor]:
        found = []
        for weight in self.weights:
            x = x @ weight.T
            found.append(x)
            x = self.function(x)
        return [*found, self.head(x)]

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1]


def sizes(function, objective: str) -> tuple[list[float], list[float]]:
    """RMS of pre-activations and of their gradients."""
    model, x = Plain(function), torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    for weight in model.weights:
        nn.init.zeros_(weight)
    isometry.plan(model, x, objective=objective).apply_(model, seed=0)
    *hidden, logits = model.outputs(x)
    seed = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad(logits, hidden, seed)
    return [[float(t.detach().square().mean().sqrt()) for t in side] for side in (hidden, gradients)]


def spread(values: list[float]) -> float:
    return max(values) / min(values)


@pytest.mark.parametrize("function", [torch.tanh, F.gelu, lambda x: torch.sin(x) + 0.3 * x.abs()])
def test_backward_keeps_gradients_where_forward_keeps_signals(function) -> None:
    signals, gradients = sizes(function, "backward")
    # one draw of 150 to 800 rows a layer: 5 % each, not all in one direction
    assert spread(gradients) < 1.25
    assert spread(signals) > 1.5
    assert signals[0] == pytest.approx(1.0, abs=0.05)  # the input's weight hands no gradient on


def test_balanced_is_the_geometric_mean() -> None:
    """Each layer's factor on signals is the inverse of its factor on gradients."""
    signals, gradients = sizes(torch.relu, "balanced")
    for k in range(1, len(WIDTHS)):
        forward, backward = signals[k] / signals[k - 1], gradients[k - 1] / gradients[k]
        assert forward * backward == pytest.approx(1.0, rel=0.15)
        # fans of sides n, m: √(m/n) between the objectives, half of it on each side
        assert forward == pytest.approx((WIDTHS[k - 1] / WIDTHS[k]) ** 0.25, rel=0.12)


def test_what_an_objective_may_not_choose_stays() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(128, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.relu(self.up(self.norm(x))))

    model, x = nn.Sequential(nn.Linear(9, 32), Block(), Block(), nn.Linear(32, 5)), torch.randn(8, 9)
    forward = isometry.plan(model, x)
    backward = isometry.plan(model, x, objective="backward")
    assert backward["1.up.weight"].std == pytest.approx(128**-0.5)
    for name in ("0.weight", "3.weight"):
        assert backward[name].std == pytest.approx(forward[name].std, rel=0.02)
    assert "gradients keep their size behind a norm" in backward["2.up.weight"].reason
    # half the signal arrives at the ends of branches, and they give the same all the same
    assert backward["1.down.weight"].std == pytest.approx(2 * forward["1.down.weight"].std, rel=0.02)
    balanced = isometry.plan(model, x, objective="balanced")
    assert balanced["1.up.weight"].std == pytest.approx((32 * 128) ** -0.25, rel=0.02)


def test_a_gated_product_hands_on_the_gradients_of_both_factors() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(20, 40), nn.Linear(20, 40)
            self.norm = nn.LayerNorm(60)
            self.down, self.head = nn.Linear(40, 60), nn.Linear(60, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.down(F.silu(self.a(x)) * self.b(x))))

    plan = isometry.plan(Gated(), torch.randn(16, 20), objective="backward")
    gain = isometry.gain("silu", gated=True, direction="backward")
    assert plan["down.weight"].std == pytest.approx(gain / math.sqrt(60), rel=0.05)
