"""Scores vary by 1 along their softmax, also where queries and keys are normed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry


class Attention(nn.Module):
    """Attention of channels or of tokens, with queries and keys of length 1 times a temperature."""

    def __init__(self, *, channels: bool, temperature: bool = True, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.channels = heads, channels
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if temperature else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.channels:
            q, k, v = q.mT, k.mT, v.mT
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        if self.temperature is not None:
            scores = scores * self.temperature
        self.scores, self.values = scores, v
        mixed = scores.softmax(-1) @ v
        mixed = mixed.mT if self.channels else mixed
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("channels", [False, True])
def test_a_temperature_gives_scores_their_size(channels: bool) -> None:
    model = Attention(channels=channels)
    x = torch.randn(16, 48, 64, generator=torch.Generator().manual_seed(1))
    plan = isometry.init_(model, x, seed=0)
    with torch.no_grad():
        model(x)
        spread = float(model.scores.var(-1).mean().sqrt())
    # Channels' queries and keys are images of the same 48 tokens, which are less than 48 free directions.
    assert spread == pytest.approx(1.0, rel=0.4 if channels else 0.1)
    assert plan["temperature"].reason == "scores of normed queries and keys vary by 1"
    assert plan["temperature"].law.value > 2.0


@pytest.mark.parametrize("temperature", [False, True])
def test_weights_before_norms_are_not_enlarged_for_scores(temperature: bool) -> None:
    model = Attention(channels=True, temperature=temperature)
    x = torch.randn(16, 48, 64, generator=torch.Generator().manual_seed(1))
    plan = isometry.init_(model, x, seed=0)
    assert plan["qkv.weight"].std == pytest.approx(64**-0.5, rel=0.02)
    with torch.no_grad():
        model(x)
    assert float(model.values.square().mean().sqrt()) == pytest.approx(1.0, rel=0.1)


def test_a_frozen_temperature_is_kept() -> None:
    model = Attention(channels=True)
    model.temperature.requires_grad_(False)
    assert isometry.plan(model, "16x48x64")["temperature"].law is None
