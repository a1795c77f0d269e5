"""The expected scatter of one draw, against the scatter of many."""

import math

import pytest
import torch
from torch import nn

from isometry.measure import measure
from isometry.predict import predict

DRAWS = 120


class Stream(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.enter, self.leave = nn.Linear(48, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(64) if norm else nn.Identity(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 64)
            )
            for _ in range(4)
        )

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def plain(activation):
    layers = [nn.Linear(48, 64)]
    for _ in range(5):
        layers += [activation(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


@pytest.mark.parametrize(
    ("build", "batch"),
    [
        (lambda: plain(nn.ReLU), 1),
        (lambda: plain(nn.ReLU), 16),
        (lambda: plain(nn.Tanh), 8),
        (lambda: Stream(False), 8),
        (lambda: Stream(True), 8),
    ],
    ids=["relu, one sample", "relu", "tanh", "residual", "pre-norm"],
)
def test_scatter_agrees_with_simulation(build, batch):
    profile = predict(build, f"{batch}x48")
    torch.manual_seed(0)
    logs = {}
    for _ in range(DRAWS):
        for row in measure(build(), torch.randn(batch, 48), loss=lambda y: (y * torch.randn_like(y)).sum()):
            for side in ("forward", "backward"):
                logs.setdefault((row.name, side), []).append(math.log(getattr(row, side).rms))
    for (name, side), values in logs.items():
        told = getattr(profile[name], side).scatter
        seen = float(torch.tensor(values).std())
        # the simulated deviation's own error is 1/√(2·DRAWS) = 6.5 %; first order in 1/width for the rest
        assert told == pytest.approx(seen, rel=4 * 0.065 + 0.05, abs=0.003), (name, side)


def test_scatter_falls_with_width():
    def scatter(width):
        return predict(lambda: nn.Linear(32, width, bias=False), torch.ones(1, 32))[""].forward.scatter

    assert scatter(256) == pytest.approx(0.5 * math.sqrt(2 / 256), rel=0.01)
    assert scatter(4096) == pytest.approx(scatter(256) / 4, rel=0.01)


def test_a_norm_pins_the_size():
    assert predict(lambda: nn.LayerNorm(32), "4x32")[""].forward.scatter == 0.0
