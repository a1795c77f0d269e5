"""Known rows whose inner products differ: what that does to the gradient at attention's queries."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import uneven

DRAWS = 200


def sinusoids(rows: int, width: int) -> Tensor:
    angles = torch.arange(rows)[:, None] * 100.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def test_pairs_of_known_rows() -> None:
    rows = sinusoids(20, 32).double().numpy()
    apart = rows - rows.mean(0)
    products = apart @ apart.T
    off = products[~np.eye(20, dtype=bool)]
    found = uneven.of_known(rows)
    assert found is not None
    assert found.excess == pytest.approx((off**2).mean() / np.diag(products).mean() ** 2)
    assert uneven.of_known(np.ones((20, 32))) is None
    assert uneven.of_known(np.arange(5.0)) is None


class Attention(nn.Module):
    """Attention over tokens that are mostly their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", sinusoids(24, 64))
        self.norm = nn.LayerNorm(64)
        self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(0.3 * x + self.positions)
        q, k, v = self.q(x), self.k(x), self.v(x)
        return (q @ k.mT / 8.0).softmax(-1) @ v


def test_queries_of_tokens_with_known_positions() -> None:
    told = isometry.predict(Attention, (torch.randn(4, 24, 64),))["q"].backward.rms ** 2
    found = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        profile = isometry.measure(
            Attention(), torch.randn(4, 24, 64), loss=lambda out: (out * torch.randn_like(out)).sum()
        )
        found.append(profile["q"].backward.rms ** 2)
    error = float(np.std(found)) / math.sqrt(DRAWS)
    assert told == pytest.approx(np.mean(found), abs=4 * error + 0.15 * np.mean(found))
