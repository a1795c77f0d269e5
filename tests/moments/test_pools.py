"""Pools between two activations: the second one's slope knows of the first one's input."""

import math

import numpy as np
import pytest
import torch
from alike import Alike
from torch import Tensor, nn

import isometry

DRAWS = 300


class Net(nn.Module):
    """A convolution, an activation, a pool and another activation."""

    def __init__(self, share: float, *layers: nn.Module) -> None:
        super().__init__()
        self.source, self.mix = Alike(share), nn.Conv2d(64, 16, 1, bias=False)
        nn.init.normal_(self.mix.weight, std=64**-0.5)
        self.layers = nn.Sequential(*layers)

    def forward(self, own: Tensor, common: Tensor) -> Tensor:
        return self.layers(self.mix(self.source(own, common)))


@pytest.mark.parametrize(
    ("share", "layers"),
    [
        (0.8, (nn.ReLU(), nn.AvgPool2d(2), nn.SiLU())),
        (0.4, (nn.ReLU(), nn.MaxPool2d(2), nn.SiLU())),
        (0.7, (nn.Tanh(), nn.AvgPool2d(3, 2, 1), nn.ReLU())),
        (0.6, (nn.ELU(), nn.AdaptiveAvgPool2d(2), nn.Tanh())),
        (0.5, (nn.LeakyReLU(0.2), nn.MaxPool2d(3, 1, 1), nn.Tanh())),
    ],
)
def test_slopes_on_both_sides_of_a_pool(share: float, layers: tuple[nn.Module, ...]) -> None:
    shapes = [(4, 64, 8, 8), (4, 64, 1, 1)]
    told = isometry.predict(
        lambda: Net(share, *layers), tuple(torch.empty(s, device="meta", requires_grad=True) for s in shapes)
    )
    found: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        inputs = tuple(torch.randn(s, requires_grad=True) for s in shapes)
        loss = lambda out: (out * torch.randn_like(out)).sum()  # noqa: E731
        profile = isometry.measure(Net(share, *layers), inputs, loss=loss)
        found.setdefault("layers.2", []).append(profile["layers.2"].forward.rms ** 2)
        for name in ("source", "mix", "layers.0", "layers.1"):
            found.setdefault(name, []).append(profile[name].backward.rms ** 2)
    for name, squares in found.items():
        row = told[name].forward if name == "layers.2" else told[name].backward
        error = float(np.std(squares)) / math.sqrt(DRAWS)
        assert row.rms**2 == pytest.approx(np.mean(squares), abs=4 * error + 0.025 * np.mean(squares)), name
