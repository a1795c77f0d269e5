"""Networks of sines and gates that remember, against their papers."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import nn

from isometry.planning import init_, plan
from isometry.sampling import Constant, Uniform


class Sines(nn.Module):
    def __init__(self, omegas=(30.0, 30.0, 30.0), width=256):
        super().__init__()
        self.omegas = omegas
        widths = (2, *[width] * len(omegas), 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for omega, layer in zip(self.omegas, self.layers, strict=False):
            x = torch.sin(omega * layer(x)) if omega != 1 else torch.sin(layer(x))
        return self.layers[-1](x)


def _bound(row):
    assert isinstance(row.law, Uniform)
    assert row.law.low == -row.law.high
    return row.law.high


def test_siren_is_section_3_2_with_the_factor_read_from_the_code():
    made = plan(Sines((30.0, 20.0, 1.0)), torch.randn(4, 2), recipe="siren")
    bounds = [_bound(made[f"layers.{k}.weight"]) for k in range(4)]
    root = math.sqrt(6 / 256)
    assert bounds == pytest.approx([1 / 2, root / 20, root, root])
    assert _bound(made["layers.1.bias"]) == pytest.approx(1 / 16)
    other = plan(Sines(), torch.randn(4, 2), recipe="siren", omega=10.0)
    assert _bound(other["layers.1.weight"]) == pytest.approx(root / 10)


def test_pre_activations_of_sines_are_unit_normal_at_any_depth():
    model = Sines((30.0,) * 6)
    init_(model, torch.randn(4, 2), recipe="siren", seed=1)
    x = torch.rand(2000, 2) * 2 - 1
    with torch.no_grad():
        for omega, layer in zip(model.omegas, model.layers, strict=False):
            x = omega * layer(x)
            sizes = float(x.std())
            x = torch.sin(x)
    # theorem 1.8: ω·W·x → N(0, 1); the biases, U(±1/√n), add 900/(3·256) to the variance
    assert sizes == pytest.approx(math.sqrt(1 + 900 / (3 * 256)), rel=0.1)


def test_a_model_without_sines_is_told():
    made = plan(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 4), recipe="siren")
    assert any("no weight feeds a sine" in note for note in made.notes)


def _check_times(forget, insert, t_max):
    assert torch.equal(forget, -insert)
    uniform = forget.double().exp().numpy()  # U(1, T - 1)
    assert stats.kstest(uniform, stats.uniform(1, t_max - 2).cdf).pvalue > 1e-3


def test_chrono_is_equation_16_for_torch_lstms():
    model = nn.LSTM(3, 400, num_layers=2)
    made = init_(model, torch.randn(4, 2, 3), recipe="chrono", t_max=50)
    for layer in (0, 1):
        i, f, g, o = getattr(model, f"bias_ih_l{layer}").detach().split(400)
        _check_times(f, i, 50)
        assert not g.any()
        assert not o.any()
        assert made[f"bias_hh_l{layer}"].law == Constant(0.0)
        first = getattr(model, f"weight_hh_l{layer}").detach()[:400]
        assert torch.allclose(first @ first.T, torch.eye(400), atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_chrono_finds_the_gates_of_a_cell_written_by_hand(fused):
    class Cell(nn.Module):
        """Gates in the order output, forget, news, insert; or four layers."""

        def __init__(self, size=300):
            super().__init__()
            self.size = size
            width = 3 + size
            self.all = nn.Linear(width, 4 * size) if fused else None
            self.four = None if fused else nn.ModuleList(nn.Linear(width, size) for _ in range(4))

        def forward(self, x):
            h = c = torch.zeros(x.shape[1], self.size)
            for step in x:
                z = torch.cat([step, h], 1)
                parts = self.all(z).chunk(4, 1) if fused else [layer(z) for layer in self.four]
                o, f, g, i = parts
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            return h

    model = Cell()
    made = init_(model, torch.randn(5, 2, 3), recipe="chrono", t_max=40)
    o, f, g, i = model.all.bias.split(300) if fused else [m.bias for m in model.four]
    _check_times(f.detach(), i.detach(), 40)
    assert not o.any()
    assert not g.any()
    assert not any("no cell" in note for note in made.notes)


def test_without_a_cell_or_a_length_there_is_a_note():
    made = plan(nn.GRU(3, 5), torch.randn(7, 2, 3), recipe="chrono")
    assert any("t_max = 7" in note for note in made.notes)
    assert any("no cell" in note for note in made.notes)
