"""Logarithms of determinants, as normalising flows add them up."""

import math

import pytest
import torch
from torch import Tensor, nn

from isometry.predict import predict


class Turn(nn.Module):
    """Multiplies by a square matrix, and returns the logarithm of its determinant beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(16, 16))
        if kind == "orthogonal":
            nn.init.orthogonal_(self.matrix, 3.0)
        elif kind == "factor":
            self.matrix = nn.Parameter(3.0 * torch.linalg.qr(torch.randn(16, 16))[0])
        else:
            nn.init.normal_(self.matrix, std=0.25)

    def forward(self, x: Tensor) -> Tensor:
        return torch.slogdet(self.matrix)[1]


@pytest.mark.parametrize("kind", ["orthogonal", "factor"])
@pytest.mark.parametrize("built", [False, True])
def test_of_a_rotation(kind: str, built: bool) -> None:
    profile = predict(Turn(kind) if built else lambda: Turn(kind), "4x16")
    assert profile[""].forward.rms == pytest.approx(16 * math.log(3.0), rel=1e-4)
    assert profile["matrix"].backward.rms == pytest.approx(1 / (3.0 * 4.0), rel=1e-4)  # the inverse's entries


def test_of_random_entries() -> None:
    profile = predict(lambda: Turn("normal"), "4x16")
    drawn = torch.slogdet(torch.randn(4000, 16, 16, dtype=torch.float64) / 4)[1]
    error = 4 * float(drawn.std()) / 4000**0.5
    assert profile[""].forward.rms == pytest.approx(float(drawn.square().mean()) ** 0.5, abs=error)
    assert profile["matrix"].backward is None
    assert any("inverse of a random matrix" in note for note in profile.notes)
