"""Roles of weights that are read at every step, and of experts."""

import pytest
import torch
from small_models import D, Of, T, ends, kinds, parts, roles, tokens, vectors
from torch import nn

# --- recurrent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_no_residual_branches(layer):
    model = Of(
        lambda m, x: m.o(m.r(x)[0][:, -1]), r=layer(D, 6, num_layers=2, batch_first=True), o=nn.Linear(6, 3)
    )
    read = roles(model, tokens())
    assert not read.streams.residuals
    assert {k for n, k in kinds(read).items() if "weight" in n} == {"weight"}
    assert {k for n, k in kinds(read).items() if "bias" in n} == {"bias"}
    heads = [n for n in read.by_name if "head" in parts(read, n)]
    assert heads == ["o.weight"]


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop(cell):
    def forward(m, x):
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.o(state[0] if isinstance(state, tuple) else state)

    read = roles(Of(forward, cell=cell(D, 6), o=nn.Linear(6, 3)), tokens())
    assert not read.streams.residuals
    assert len([u for u in read["cell.weight_ih"].uses if u.kind == "weight"]) == T
    assert kinds(read)["cell.bias_hh"] == "bias"


def test_a_state_that_leaks_is_a_stream_of_as_many_steps():
    def forward(m, x):
        for _ in range(4):
            x = x + 0.1 * m.b(torch.tanh(m.a(x)))
        return m.o(x)

    read = roles(Of(forward, a=nn.Linear(D, D), b=nn.Linear(D, D), o=nn.Linear(D, 2)), vectors())
    assert read.streams.number == [4]
    assert ends(read) == {"b.weight": (1, 4)}


def test_a_highway_has_gates_and_no_branch():
    def forward(m, x):
        for h, t in zip(m.h, m.t, strict=True):
            gate = torch.sigmoid(t(x))
            x = gate * torch.relu(h(x)) + (1 - gate) * x
        return m.o(x)

    def layers():
        return nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    read = roles(Of(forward, h=layers(), t=layers(), o=nn.Linear(D, 2)), vectors())
    assert "gate" in parts(read, "t.1.weight")
    assert not read.streams.residuals


# --- mixtures of experts ------------------------------------------------------------------------------------


def _experts():
    return nn.ModuleList(nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, D)) for _ in range(3))


def test_a_dense_mixture_of_experts():
    def forward(m, x):
        chances = m.route(x).softmax(-1)
        return m.o(x + sum(chances[..., i : i + 1] * e(x) for i, e in enumerate(m.experts)))

    read = roles(Of(forward, route=nn.Linear(D, 3), experts=_experts(), o=nn.Linear(D, 2)), vectors())
    assert "router" in parts(read, "route.weight")
    assert ends(read) == {f"experts.{i}.2.weight": (1, 1) for i in range(3)}


def test_a_routed_mixture_of_experts():
    def forward(m, x):
        chances, chosen = m.route(x).softmax(-1).topk(1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(m.experts):
            if not (chosen == i).any():
                continue
            rows = (chosen[:, 0] == i).nonzero()[:, 0]
            y.index_add_(0, rows, chances[rows] * expert(x[rows]))
        return m.o(x + y)

    torch.manual_seed(0)
    read = roles(
        Of(forward, route=nn.Linear(D, 3), experts=_experts(), o=nn.Linear(D, 2)), torch.randn(64, D)
    )
    assert "router" in parts(read, "route.weight")
    assert ends(read) == {f"experts.{i}.2.weight": (1, 1) for i in range(3)}
