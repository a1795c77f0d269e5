"""Weights that the code divides by their own size: their gain has the scale."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.flow.tracing import study


class Standardised(nn.Linear):
    """Centred and divided by its deviation, row by row, then multiplied by a gain."""

    def __init__(self, width: int, *, by_norm: bool | str, gain: bool = True) -> None:
        super().__init__(width, width)
        self.by_norm = by_norm
        self.register_buffer("eps", torch.tensor(1e-6), persistent=False)
        self.gain = nn.Parameter(torch.zeros(width, 1)) if gain else None

    def forward(self, x):
        if self.by_norm == "floored":
            var, mean = torch.var_mean(self.weight, 1, keepdim=True)
            unit = (self.weight - mean) * torch.rsqrt(torch.maximum(var, self.eps))
        elif self.by_norm:
            flat = self.weight.reshape(1, self.out_features, -1)
            unit = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        else:
            var, mean = torch.var_mean(self.weight, 1, keepdim=True)
            unit = (self.weight - mean) * torch.rsqrt(var + 1e-6)
        unit = unit * self.in_features**-0.5
        return F.linear(x, unit if self.gain is None else unit * self.gain, self.bias)


class Skipping(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.up, self.down = (Standardised(32, **options) for _ in range(2))

    def forward(self, x):
        return x + self.down(F.relu(self.up(x)))


@pytest.mark.parametrize("by_norm", [True, False, "floored"])
def test_the_gain_of_a_standardised_weight_has_its_scale(by_norm):
    roles = study(Skipping(by_norm=by_norm), "64x32").roles
    assert roles["up.weight"].undone
    assert roles["up.weight"].gain == "up.gain"
    assert (roles["up.gain"].kind, roles["up.gain"].ends) == ("scale", None)
    assert roles["down.gain"].ends is roles["down.weight"].ends is not None


@pytest.mark.parametrize("by_norm", [True, False, "floored"])
def test_auto_solves_the_gain(by_norm):
    model = Skipping(by_norm=by_norm)
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    plan = isometry.init_(model, x, seed=0)
    assert plan["down.gain"].law != plan["up.gain"].law
    with torch.no_grad():
        inner = model.up(x)
        branch = model.down(F.relu(inner))
    # rows of 32 weights, each of unit size: the draws scatter by 1/√(2·32·32)
    assert float(inner.square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)
    assert float(branch.square().mean().sqrt()) == pytest.approx(0.3, abs=0.06)


def test_a_standardised_weight_without_a_gain_is_not_solved():
    plan = isometry.plan(Skipping(by_norm=False, gain=False), "64x32")
    assert "undoes its own scale" in plan["up.weight"].reason
    assert not plan["up.weight"].marks


def test_an_update_of_low_rank_has_no_gain():
    class Updated(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.zeros(2, 8))

        def forward(self, x):
            return F.linear(x, self.weight + self.a @ self.b, self.bias)

    roles = study(Updated(), "4x8").roles
    assert not roles["weight"].undone
    assert roles["a"].kind == roles["b"].kind == "other"
