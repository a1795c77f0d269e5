"""Weights divided by their largest singular value: against matrices, and through real modules."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import isometry
from isometry.moments import singular

DRAWS = 60


@pytest.mark.parametrize("shape", [(1, 40), (6, 9), (64, 48), (30, 400)])
def test_the_largest_singular_value_of_independent_entries(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.linalg.matrix_norm(torch.randn(300, *shape, generator=generator), 2)
    mean = float(drawn.square().mean().sqrt())
    assert singular.edge(*shape) == pytest.approx(mean, rel=0.015)
    assert singular.edge(*reversed(shape)) == singular.edge(*shape)


def network(norm):
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 3, padding=1)), nn.LeakyReLU(0.1), norm(nn.Conv2d(16, 32, 4, 2, 1)), nn.ReLU(),
        nn.Flatten(), norm(nn.Linear(512, 24)), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("built", [False, True])
def test_networks_with_spectral_norm(norm, built: bool) -> None:
    squares: dict[str, list[float]] = {"0": [], "2": [], "5": []}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        made = isometry.measure(network(norm), torch.randn(8, 3, 8, 8))
        for name, own in squares.items():
            own += [made[name].forward.rms ** 2, made[name].backward.rms ** 2]
    torch.manual_seed(0)
    told = isometry.predict((lambda: network(norm)) if not built else network(norm), "8x3x8x8")
    assert not any(note.startswith(("unknown", "carrier")) for note in told.notes)
    for name, own in squares.items():
        pairs = np.array(own).reshape(-1, 2)
        mean, error = pairs.mean(0), pairs.std(0) / DRAWS**0.5
        found = np.array([told[name].forward.rms, told[name].backward.rms]) ** 2
        wide = 0.35 if built else 0.1  # one draw's own weights
        assert (np.abs(found - mean) < 4 * error + wide * mean).all(), name


def test_predicting_leaves_the_iteration_alone() -> None:
    model = network(parametrizations.spectral_norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    isometry.predict(model, "8x3x8x8")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "the code undoes its own scale" in isometry.plan(model, "8x3x8x8")["2.weight"].reason
