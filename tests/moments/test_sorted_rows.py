"""Rows sorted by expert and put back: what they have in common is that of their samples and experts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.moments import sorted_rows

SAMPLES, TOKENS, WIDTH, EXPERTS, CHOSEN = 8, 24, 48, 4, 2
DRAWS = 80


class Experts(nn.Module):
    """A mixture of experts as libraries write it: rows sorted by expert, one product, rows put back."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(torch.empty(EXPERTS, 2 * WIDTH, WIDTH))
        nn.init.normal_(self.up, std=WIDTH**-0.5)
        nn.init.normal_(self.down, std=(2 * WIDTH) ** -0.5)

    def forward(self, x):
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.router(rows).softmax(-1).topk(CHOSEN, dim=-1)
        found, order = torch.sort(ids.reshape(-1))
        offsets = torch.bincount(found, minlength=EXPERTS).cumsum(0).to(torch.int32)
        hidden = torch.tanh(torch._grouped_mm(rows[order // CHOSEN], self.up, offs=offsets))
        made = torch._grouped_mm(hidden, self.down, offs=offsets) * weights.reshape(-1)[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return made[back].reshape(-1, CHOSEN, WIDTH).sum(1).reshape(x.shape)


class Model(nn.Module):
    """Tokens of one sample are alike before the experts, and mixed behind them."""

    def __init__(self):
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(WIDTH, WIDTH), Experts(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.experts(self.first(x + 8.0 * x.mean(1, keepdim=True)))
        return self.last(x + x.mean(1, keepdim=True))


def figures(profile):
    rows = (*profile.signals, *profile.parameters)
    return {(r.name, side): r.rms(side) for r in rows for side in ("forward", "backward")}


def test_a_mixture_of_experts_against_simulation():
    torch.manual_seed(0)
    told = figures(isometry.predict(Model, f"{SAMPLES}x{TOKENS}x{WIDTH}"))
    squares = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        inputs, gradient = torch.randn(2, SAMPLES, TOKENS, WIDTH)
        seen = isometry.measure(Model(), inputs, loss=lambda y, g=gradient: (y * g).sum())
        for key, size in figures(seen).items():
            if size is not None:
                squares.setdefault(key, []).append(size**2)
    for key in (
        ("experts", "forward"),
        ("last", "forward"),
        ("experts", "backward"),
        ("first", "backward"),
        ("experts.up", "backward"),
        ("experts.down", "backward"),
        ("last.weight", "backward"),
        ("first.weight", "backward"),
    ):
        seen = np.array(squares[key])
        error = seen.std() / math.sqrt(DRAWS) / seen.mean() / 2
        assert told[key] == pytest.approx(math.sqrt(seen.mean()), rel=0.06 + 3 * error), key


def test_sorted_rows_are_cut_where_the_sample_changes():
    experts = np.array([0, 1, 1, 0, 2, 1])  # two samples of three rows
    order = np.argsort(experts, kind="stable")
    assert sorted_rows.picked([(1, 1), (3,)], [order // 3, order % 3]) == ((1, 1, 2, 2),)


def test_rows_put_back_are_cut_by_sample_and_split_by_token():
    axis = (4, 4, 4, 4)  # two experts, each with four rows of either sample
    places = np.arange(16).reshape(2, 8).T.ravel()  # one of each expert in turn
    assert sorted_rows.picked([axis], [places]) == ((4, 4), (2,))
    assert sorted_rows.landing(8, [axis], np.tile(np.arange(8), 2)) == (4, 4)


def test_rows_without_order_are_one_block():
    places = np.random.default_rng(0).permutation(200)
    assert sorted_rows.picked([(100, 100)], [places]) == ((200,),)
    assert sorted_rows.landing(200, [(100, 100)], places) == (200,)


def test_dims_along_which_an_index_counts_up_are_found():
    rows, columns = np.meshgrid(np.arange(3), np.array([1, 0]), indexing="ij")
    assert sorted_rows.in_place([rows.ravel(), columns.ravel()], (3, 2), (3, 4)) == {0: 0}
