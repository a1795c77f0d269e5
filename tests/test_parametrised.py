"""Weights computed from other parameters get the pieces that give the weight drawn."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import isometry
from isometry.errors import IsometryWarning
from isometry.fans import fans
from isometry.initialisers import Kaiming, Orthogonal
from isometry.parametrised import pieces_of
from isometry.recipes.base import RECIPES


def plain_weight() -> torch.Tensor:
    return Kaiming()(nn.Linear(6, 4)).weight.detach()


def test_weight_norm_computes_the_weight_of_the_plain_layer() -> None:
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    Kaiming()(layer)
    assert torch.allclose(layer.weight, plain_weight(), atol=1e-6)
    g = layer.parametrizations.weight.original0
    assert torch.allclose(g.flatten(), plain_weight().norm(dim=1), atol=1e-6)


def test_the_old_hook_computes_the_same_weight() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(6, 4))
    Kaiming()(layer)
    layer(torch.zeros(1, 6))
    assert torch.allclose(layer.weight, plain_weight(), atol=1e-6)


def test_spectral_norm_keeps_the_directions() -> None:
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(6, 4))
    Kaiming()(layer)
    assert torch.allclose(layer.parametrizations.weight.original, plain_weight(), atol=1e-6)


def test_orthogonal_parametrisation_takes_an_orthogonal_weight() -> None:
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    Orthogonal()(layer)
    expected = Orthogonal()(nn.Linear(4, 4)).weight.detach()
    assert torch.allclose(layer.weight, expected, atol=1e-5)


def test_an_inverse_that_draws_random_numbers_moves_no_state_and_repeats() -> None:
    layer = parametrizations.orthogonal(nn.Linear(4, 6))
    state = torch.get_rng_state()
    Orthogonal()(layer)
    assert torch.equal(torch.get_rng_state(), state)
    first = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.manual_seed(1)
    Orthogonal()(layer)
    assert all(torch.equal(first[name], value) for name, value in layer.state_dict().items())


def test_pruned_weights_are_drawn_and_stay_pruned() -> None:
    layer = prune.l1_unstructured(nn.Linear(50, 40), "weight", 0.5)
    Kaiming()(layer)
    drawn = layer.weight_orig.detach()
    assert float(drawn.square().mean()) == pytest.approx(2 / 50, rel=0.2)
    layer(torch.zeros(1, 50))
    assert int((layer.weight == 0).sum()) == 1000


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_a_parametrisation_without_inverse_is_reported_and_kept() -> None:
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    before = layer.weight.detach().clone()
    kaiming = Kaiming()
    with pytest.warns(IsometryWarning, match="no right_inverse"):
        kaiming(layer)
    assert torch.equal(layer.weight, before)
    assert not layer.bias.any()
    assert list(kaiming.assignment.unrecognised) == ["weight"]


def test_pieces_in_registration_order() -> None:
    layer = parametrizations.weight_norm(nn.Conv1d(3, 5, 2))
    g, v = pieces_of(layer, "weight", torch.ones(5, 3, 2))
    assert (g.shape, v.shape) == ((5, 1, 1), (5, 3, 2))


def test_planning_does_not_move_the_power_iteration_of_spectral_norm() -> None:
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(6, 4))
    buffers = [buffer.clone() for buffer in layer.buffers()]
    Kaiming().plan(layer)
    for recipe in RECIPES:
        isometry.plan(layer, "5x6", recipe=recipe)
    assert fans(layer, "weight").forward == 6
    assert all(torch.equal(one, other) for one, other in zip(layer.buffers(), buffers, strict=True))
    assert all(module.training for module in layer.modules())
