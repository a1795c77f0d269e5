"""Norms over few samples behind a function with a flat part."""

import math

import numpy as np
import pytest
import torch
from alike import Alike
from torch import Tensor, nn

import isometry
from isometry.moments import algebra as alg
from isometry.moments import channels

DRAWS = 400


class Net(nn.Module):
    """A linear map, an activation, a batch norm and a relu."""

    def __init__(self, share: float, act: nn.Module, eps: float) -> None:
        super().__init__()
        self.source, self.map, self.act = Alike(share), nn.Linear(48, 64, bias=False), act
        self.norm, self.relu = nn.BatchNorm1d(64, eps=eps), nn.ReLU()
        nn.init.normal_(self.map.weight, std=48**-0.5)

    def forward(self, own: Tensor, common: Tensor) -> Tensor:
        return self.relu(self.norm(self.act(self.map(self.source(own, common)))))


@pytest.mark.parametrize(
    ("samples", "share", "act", "eps"),
    [
        (8, 0.5, nn.ReLU(), 0.01),
        (16, 0.0, nn.ReLU(), 1e-5),
        (48, 0.7, nn.Threshold(0.25, 0.5), 0.02),
        (12, 0.3, nn.Hardtanh(-10.0, 0.5), 0.01),
    ],
)
def test_batch_norm_behind_a_flat_part(samples: int, share: float, act: nn.Module, eps: float) -> None:
    shapes = [(samples, 48), (1, 48)]
    told = isometry.predict(
        lambda: Net(share, act, eps), tuple(torch.empty(s, device="meta", requires_grad=True) for s in shapes)
    )
    found: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        inputs = tuple(torch.randn(s, requires_grad=True) for s in shapes)
        profile = isometry.measure(
            Net(share, act, eps), inputs, loss=lambda out: (out * torch.randn_like(out)).sum()
        )
        for name in ("norm", "relu"):
            found.setdefault(f"{name} forward", []).append(profile[name].forward.rms ** 2)
        for name in ("source", "map", "act", "norm", "map.weight", "norm.weight", "norm.bias"):
            found.setdefault(f"{name} backward", []).append(profile[name].backward.rms ** 2)
    for key, squares in found.items():
        name, side = key.split()
        row = told[name]
        predicted = (row.forward if side == "forward" else row.backward).rms ** 2
        error = float(np.std(squares)) / math.sqrt(DRAWS)
        # slopes jump between nodes that are a fiftieth apart
        assert predicted == pytest.approx(np.mean(squares), abs=4 * error + 0.03 * np.mean(squares)), key


def test_channels_without_a_flat_part_are_left_alone() -> None:
    smooth = alg.apply(alg.normal((8, 4)), np.tanh)
    assert channels.of(smooth, (0,), 1e-5) is None


def test_one_entry_off_the_flat_part_has_no_gradient_but_by_eps() -> None:
    bent = alg.apply(alg.normal((4, 6)), lambda x: np.maximum(x, 0.0))
    known = channels.of(bent, (0,), 1e-4)
    assert known is not None
    assert sum(float(g.weights.sum()) for g in known.groups) == pytest.approx(1.0)
    # with ξ = x²·3/16ε for one of four entries, E[dx²] of all is E[(3/4)/ε·(1 + ξ)⁻³] for a slope of 1 there
    fine = np.linspace(0.0, 1.0, 200_001)
    density = np.exp(-0.5 * fine**2) * math.sqrt(2.0 / math.pi)
    one = 0.75 / 1e-4 * (1.0 + 3.0 * fine**2 / 16e-4) ** -3
    exact = float(np.trapezoid(one * density, fine)) * 4 / 16
    (group,) = known.groups[:1]
    u, inverse = channels._unit(group, 4, 1e-4)
    share = 1.0 - 1e-4 * inverse
    left = 1.0 - (1.0 + (2.0 - share) * u[:, 0] ** 2) / 4.0
    assert float(group.weights @ (left * inverse)) == pytest.approx(exact, rel=2e-3)
