"""The recipe "auto" on tables behind a norm: small rows, that learn as soon as what reads them."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry

WIDTH, WORDS = 64, 300
IDS = torch.randint(0, WORDS, (16, 24), generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """Tables of tokens and places, a norm, and blocks with norms after the sums."""

    def __init__(self, *, tied: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(24, WIDTH)
        self.enter = nn.LayerNorm(WIDTH)
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, WORDS)
        self.places.weight.requires_grad_(not frozen)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        for up, down, norm in zip(self.up, self.down, self.norms, strict=True):
            x = norm(x + down(F.gelu(up(x))))
        return self.head(x)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_behind_a_norm_are_small_and_the_loss_begins_at_chance(tied: bool) -> None:
    model = Encoder(tied=tied)
    plan = isometry.init_(model, IDS, seed=0)
    assert plan["words.weight"].std == pytest.approx(0.02 * 1.09**-0.5)  # 1² + 0.3²: rows and positions
    assert plan["places.weight"].std == pytest.approx(0.3 * 0.02 * 1.09**-0.5)
    profile = isometry.measure(model, IDS)
    sizes = [profile[name].forward.rms for name in ("enter", "norms.0", "norms.1")]
    assert sizes == pytest.approx([1.0] * 3, rel=0.05)  # an eps of 1e-5 takes 1.2 % of rows of 0.02
    logits = model(IDS)
    assert (logits.logsumexp(-1) - logits.mean(-1)).mean().item() == pytest.approx(math.log(WORDS), rel=0.05)


def test_tokens_turn_no_slower_than_what_reads_them() -> None:
    """In one step of SGD the norm's output moves no less than what the first branch's weights make of it."""
    model = Encoder()
    isometry.init_(model, IDS, seed=0)
    targets = torch.randint(0, WORDS, IDS.shape, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(IDS).flatten(0, 1), targets.flatten()).backward()
    with torch.no_grad():
        before = model.enter(model.words(IDS) + model.places(torch.arange(24)))
        read = model.up[0](before)
        for table in (model.words, model.places):
            table.weight -= 1e-3 * table.weight.grad
        moved = model.enter(model.words(IDS) + model.places(torch.arange(24))) - before
        for parameter in (model.up[0].weight, model.up[0].bias):
            parameter -= 1e-3 * parameter.grad
        learnt = model.up[0](before) - read
    assert moved.square().mean() > learnt.square().mean()


def test_rows_beside_frozen_ones_keep_their_size() -> None:
    plan = isometry.plan(Encoder(frozen=True), IDS)
    assert plan["words.weight"].std > 0.9
