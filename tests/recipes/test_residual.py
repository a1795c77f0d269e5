"""Recipes of residual networks: what is silent at the start, and what is scaled by depth."""

import math

import pytest
import torch
from networks import TOKENS, Language, residual_network
from torch import nn

from isometry.planning import init_, plan
from isometry.sampling import Constant, Normal

X = torch.randn(4, 5)


@pytest.mark.parametrize(("number", "layers"), [(4, 2), (9, 3)])
def test_fixup_scales_by_depth_and_layers_as_in_its_algorithm(number, layers):
    made = plan(residual_network(number, layers=layers, scale=True), X, recipe="fixup")
    factor = number ** (-1 / (2 * layers - 2))
    for k in range(1, number + 1):
        assert made[f"{k}.w.0.weight"].law.std == pytest.approx(factor * 6**-0.5)
        if layers == 3:
            assert made[f"{k}.w.1.weight"].law.std == pytest.approx(factor * math.sqrt(2 / 6))
        assert made[f"{k}.w.{layers - 1}.weight"].law == Constant(0.0)
        assert made[f"{k}.s"].law == Constant(1.0)
    assert made[f"{number + 2}.weight"].law == Constant(0.0)
    assert not made.notes
    assert any("scales and biases" in n for n in plan(residual_network(), X, recipe="fixup").notes)


def test_fixup_leaves_a_table_that_is_the_head_too():
    made = plan(Language(), TOKENS, recipe="fixup")
    assert made["w.weight"].law.std > 0
    assert any("w.weight is table and head" in note for note in made.notes)


@pytest.mark.parametrize("recipe", ["skipinit", "rezero"])
def test_scaled_branches_start_silent_and_the_network_is_its_stem_and_head(recipe):
    model = residual_network(scale=True)
    made = init_(model, X, recipe=recipe)
    assert all(made[f"{k}.s"].law == Constant(0.0) for k in range(1, 5))
    with torch.no_grad():
        assert torch.equal(model(X), model[6](torch.relu(model[0](X))))
    assert not made.notes
    without = plan(residual_network(), X, recipe=recipe)
    assert any("4 of 4 residual branches have no scale" in note for note in without.notes)
    assert any("no residual branch" in n for n in plan(nn.Linear(5, 2), X, recipe=recipe).notes)


@pytest.mark.parametrize("norm", [False, True])
def test_zero_init_residual_silences_the_last_norm_or_weight(norm):
    model = residual_network(norm=norm)
    made = init_(model, X, recipe="zero-init-residual")
    for k in range(1, 5):
        last = made[f"{k}.w.1.weight"].law
        if norm:
            assert made[f"{k}.n.weight"].law == Constant(0.0)
            assert last.std == pytest.approx(math.sqrt(2 / 6))
        else:
            assert last == Constant(0.0)
    assert made["6.weight"].law == Normal(0.01)
    with torch.no_grad():
        assert torch.equal(model(X), model[6](torch.relu(model[0](X))))


def test_a_scale_of_one_plus_w_is_silent_at_minus_one():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.g = nn.Linear(5, 5), nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return x + nn.functional.layer_norm(self.w(x), (5,)) * (1 + self.g)

    model = Shifted()
    made = init_(model, X, recipe="zero-init-residual")
    assert made["g"].law == Constant(-1.0)
    assert torch.equal(model(X), X)
