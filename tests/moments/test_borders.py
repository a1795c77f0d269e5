"""Max pools whose windows read the smaller borders that padding left."""

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.moments import borders

DRAWS = 150


def test_windows_that_read_alike_are_one_block() -> None:
    windows = np.zeros((8, 16))
    for o in range(8):  # three entries each, the first of which lacks one
        windows[o, max(2 * o - 1, 0) : 2 * o + 2] = 1.0
    found = borders.of_outputs(windows, (1, 14, 1))
    assert found.axis == (1, 6, 1)
    assert found.counts == pytest.approx([2, 3, 3])
    assert found.shares == pytest.approx(np.array([[1 / 2, 1 / 2, 0], [0, 1, 0], [0, 2 / 3, 1 / 3]]))
    assert borders.of_outputs(windows[1:7], (16,)).axis == (6,)


def build() -> nn.Module:
    front = nn.Conv2d(8, 48, 5, padding=2, bias=False)
    return nn.Sequential(front, nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.InstanceNorm2d(48, eps=1e9))


def test_pooled_borders_add_to_the_variance_of_an_image() -> None:
    # A norm that divides by next to nothing else than ε shows the variance within each image and channel.
    told = isometry.predict(build, "4x8x16x16", backward=False)["3"].forward.rms ** 2 * 1e9
    drawn = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        with torch.no_grad():
            pooled = build()[:3](torch.randn(4, 8, 16, 16))
        drawn.append(float(pooled.var((2, 3), unbiased=False).mean()))
    error = float(np.std(drawn)) / DRAWS**0.5
    assert told == pytest.approx(float(np.mean(drawn)), abs=4 * error + 0.03 * float(np.mean(drawn)))
