"""Parameters that are no weights: their exponential, softmax or cosine is what the code multiplies by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import isometry


class Kernels(nn.Module):
    """Rows times sums of decaying oscillations, whose rates, steps and angles are parameters."""

    def __init__(self, channels: int = 24, modes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(10, channels), nn.Linear(channels, 5)
        self.rate = nn.Parameter(torch.full((channels, modes), math.log(0.5)))
        self.angle = nn.Parameter(math.pi * torch.arange(modes).float().repeat(channels, 1))
        self.step = nn.Parameter(torch.linspace(-6.0, -2.0, channels))
        self.mixing = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        times = torch.arange(x.shape[1]) * self.step.exp()[:, None]
        decay = torch.exp(-self.rate.exp()[..., None] * times[:, None])
        kernel = (decay * torch.cos(self.angle[..., None] * times[:, None])).mean(1)
        taps = kernel[:, (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()]
        x = x + torch.einsum("ctu,buc->btc", taps, x)
        return self.head(torch.softmax(self.mixing, -1) @ x)


def test_rates_angles_and_logits_of_weights_are_kept() -> None:
    model = Kernels()
    names = ("rate", "angle", "step", "mixing")
    before = {name: getattr(model, name).detach().clone() for name in names}
    plan = isometry.init_(model, "4x8x10")
    for name in names:
        assert plan[name].role == "other"
        assert torch.equal(getattr(model, name), before[name])
    assert plan["stem.weight"].std > 0


class Squashed(nn.Module):
    """Weights behind functions that are zero at zero: they have a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(12, 20)), nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(self.b / 0.1) * 0.1
        return torch.relu(x @ torch.tanh(self.a).T) @ rounded


def test_squashed_and_rounded_weights_are_weights() -> None:
    plan = isometry.plan(Squashed(), "16x20")
    assert plan["a"].role == "weight → relu"
    assert plan["b"].role == "head"
