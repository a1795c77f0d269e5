"""Branches arrive at their sums at the size aimed at, whatever multiplies them behind their last weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry


class Branches(nn.Module):
    def __init__(self, behind: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 96), nn.Linear(96, 10)
        self.ups = nn.ModuleList(nn.Linear(96, 128) for _ in range(4))
        self.downs = nn.ModuleList(nn.Linear(128, 96) for _ in range(4))
        self.gate = nn.Linear(96, 96)
        self.behind, self.shares = behind, []

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.shares = []
        for up, down in zip(self.ups, self.downs, strict=True):
            added = self.behind(down(torch.relu(up(x))), self.gate(x))
            self.shares.append((added, x))
            x = x + added
        return self.head(x)


@pytest.mark.parametrize(
    "behind",
    [
        lambda y, _: y,
        lambda y, _: 0.1 * y,
        lambda y, _: y / 7.0,
        lambda y, g: y * torch.sigmoid(g),
        lambda y, _: torch.fft.fft(y, dim=-1).real,
        lambda y, _: y @ (torch.eye(96) + 0.5 * torch.eye(96).flip(0)),
        lambda y, g: y * F.softmax(g.mean(1, keepdim=True).expand(-1, 4), dim=-1)[:, :1],
    ],
)
def test_a_branch_arrives_at_its_share(behind: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Branches(behind)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    isometry.init_(model, x, seed=0)
    with torch.no_grad():
        model(x)
    for p, (added, stream) in enumerate(model.shares, start=1):
        share = float(added.square().mean().sqrt() / stream.square().mean().sqrt())
        aimed = 0.3 / (4 + p - 1) ** 0.5 * 4 ** (-1 / 3)
        assert share == pytest.approx(aimed, rel=0.15)  # one draw of 96 entries


class Unrolled(nn.Module):
    """A differential equation, solved step by step with one network."""

    def __init__(self, fourth_order: bool) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.head = (
            nn.Linear(a, b) for a, b in ((32, 64), (64, 128), (128, 64), (64, 10))
        )
        self.fourth_order = fourth_order

    def slope(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))

    def forward(self, x: Tensor, step: float = 0.2) -> Tensor:
        x = self.enter(x)
        for _ in range(5):
            a = self.slope(x)
            if self.fourth_order:
                b = self.slope(x + step / 2 * a)
                c = self.slope(x + step / 2 * b)
                a = (a + 2 * b + 2 * c + self.slope(x + step * c)) / 6
            x = x + step * a
        return self.head(x)


@pytest.mark.parametrize("fourth_order", [False, True])
def test_the_steps_of_a_differential_equation_settle(fourth_order: bool) -> None:
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    sizes = []
    for seed in range(6):
        model = Unrolled(fourth_order)
        isometry.init_(model, x, seed=seed)
        sizes.append(model(x).detach().square().mean())
    assert torch.stack(sizes).mean().sqrt().item() == pytest.approx(0.37, rel=0.15)


def test_dropout_does_not_count() -> None:
    plain = isometry.plan(Branches(lambda y, _: y), "32x64")
    dropped = isometry.plan(Branches(lambda y, _: F.dropout(y, 0.5)), "32x64")
    assert dropped["downs.0.weight"].std == pytest.approx(plain["downs.0.weight"].std, rel=1e-6)


class Experts(nn.Module):
    """Two of four experts for each row, weighted by their shares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(32, 64), nn.Linear(64, 4), nn.Linear(64, 10)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shares, chosen = torch.topk(F.softmax(self.router(x), -1), 2, dim=-1)
        shares = shares / shares.sum(-1, keepdim=True)
        added = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(chosen == i)
            added.index_add_(0, row, expert(x[row]) * shares[row, place, None])
        self.sizes = added, x
        return self.head(x + added)


def test_experts_together_are_one_branch() -> None:
    model = Experts()
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(1))
    isometry.init_(model, x, seed=0)
    with torch.no_grad():
        model(x)
        added, stream = model.sizes
    assert float(added.square().mean().sqrt() / stream.square().mean().sqrt()) == pytest.approx(0.3, rel=0.2)
