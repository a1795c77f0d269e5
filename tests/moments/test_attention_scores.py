"""Scores of small heads: rows of unlike variances, and gradients that know of queries, keys and values."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import saturation


class Watched(nn.Module):
    """A function as a module, so that it has a row of its own."""

    def __init__(self, fn) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fn(*inputs)


class Attention(nn.Module):
    """Plain attention with heads, step by step; behind it a residual and a norm, if asked for."""

    def __init__(self, heads: int, size: int, score: float, *, norm: bool = False) -> None:
        super().__init__()
        width = heads * size
        self.heads, self.score = heads, score
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        for layer, gain in ((self.query, score), (self.key, score), (self.value, 1.0), (self.out, 1.0)):
            nn.init.normal_(layer.weight, std=(gain / width) ** 0.5)
        self.scores = Watched(lambda q, k: q @ k.transpose(2, 3) * size**-0.5)
        self.weights = Watched(lambda s: s.softmax(-1))
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, own: Tensor, common: Tensor) -> Tensor:
        x = math.sqrt(0.3) * own + math.sqrt(0.7) * common if self.norm is not None else own
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = (self.weights(self.scores(q, k)) @ v).transpose(1, 2).flatten(2)
        return y if self.norm is None else self.norm(x + self.out(y))


@pytest.mark.parametrize(
    ("tokens", "score", "norm", "names"),
    [
        (64, 1.0, False, ["query", "key", "weights", "scores"]),
        (12, 4.0, False, ["query", "key", "scores"]),
        (24, 1.0, True, ["weights", "scores"]),
    ],
)
def test_gradients_of_small_heads(tokens: int, score: float, norm: bool, names: list[str]) -> None:
    shapes = [(2, tokens, 64), (2, 1, 64)]

    def build() -> nn.Module:
        return Attention(4, 16, score, norm=norm)

    told = isometry.predict(build, tuple(torch.empty(s, device="meta", requires_grad=True) for s in shapes))
    found: dict[str, list[float]] = {}
    for seed in range(300):
        torch.manual_seed(seed)
        inputs = tuple(torch.randn(s, requires_grad=True) for s in shapes)
        loss = lambda out: (out * torch.randn_like(out)).sum()  # noqa: E731
        profile = isometry.measure(build(), inputs, loss=loss)
        for name in names:
            found.setdefault(name, []).append(profile[name].backward.rms ** 2)
        found.setdefault("", []).append(profile["weights"].forward.rms ** 2)
    for name, squares in found.items():
        row = told[name].backward if name else told["weights"].forward
        error = float(np.std(squares)) / len(squares) ** 0.5
        # to first order in 1/16
        assert row.rms**2 == pytest.approx(np.mean(squares), abs=4 * error + 0.04 * np.mean(squares)), name


@pytest.mark.parametrize(("variance", "n"), [(1.0, 40), (9.0, 12)])
def test_how_a_gradient_follows_the_scores(variance: float, n: int) -> None:
    rng = np.random.default_rng(0)
    s = variance**0.5 * rng.standard_normal((60_000, n))
    a = np.exp(s - s.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    along = ((a * (s - (a * s).sum(1, keepdims=True))) ** 2).sum(1)
    whole = (a**2 * (1.0 - 2.0 * a + (a**2).sum(1, keepdims=True))).sum(1)
    rows, rise = saturation.leaning(variance, float(n))
    assert rows == pytest.approx(along.mean() / (variance * whole.mean()), rel=0.03)
    # the rise is told by the scale of the scores alone
    told = float((whole * ((s**2).sum(1) / variance - n)).mean() / (2.0 * whole.mean()))
    assert rise == pytest.approx(told, abs=0.05)


def test_rows_of_unlike_variances_and_lengths() -> None:
    rng = np.random.default_rng(1)
    sizes, counts = rng.gamma(5.0, 0.2, 40_000), np.array([2.0, 7.0])
    means = []
    for n in (2, 7):
        s = 2.0 * np.sqrt(sizes)[:, None] * rng.standard_normal((len(sizes), n))
        a = np.exp(s - s.max(1, keepdims=True))
        means.append(float(((a / a.sum(1, keepdims=True)) ** 2).sum(1).mean()))
    kappa = saturation.damping_of_rows(4.0, counts, np.array([0.5, 0.5]), 0.2)
    grown = np.exp(4.0 * kappa)
    assert float((grown / (counts - 1.0 + grown)).mean()) == pytest.approx(np.mean(means), rel=0.01)
