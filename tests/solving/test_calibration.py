"""A calibrated plan is calibrated for what apply_ draws."""

import itertools

import pytest
import torch
from torch import nn

import isometry


@pytest.mark.parametrize("recipe", ["isometric", "xavier"])
def test_what_was_measured_is_what_is_drawn(recipe: str) -> None:
    widths = [10, 30, 50, 20, 7]
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    sizes = []
    for seed in (1, 2):
        plan = isometry.plan(model, x, recipe=recipe, calibrate=True, seed=seed)
        plan.apply_(model, seed=seed)
        outputs, h = [], x
        for layer in model:
            h = layer(h)
            outputs.append(float(h.detach().square().mean().sqrt()))
        sizes.append(outputs[::2])
    # both are what is predicted, which no seed changes
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)
