"""Cross entropy of words that occur again: what rows, and logits made of few of them, have in common."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.moments import saturation

DRAWS = 300


class Bigrams(nn.Module):
    """Words looked up, a head, and the cross entropy of the next word's class."""

    def __init__(self, words: int, width: int, classes: int, logit: float) -> None:
        super().__init__()
        self.embedding, self.act = nn.Embedding(words, width), nn.Tanh()
        self.head = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.head.weight, std=logit / width**0.5)

    def forward(self, ids: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.act(self.embedding(ids))).flatten(0, 1), classes.flatten())


@pytest.mark.parametrize(("words", "width", "classes", "logit"), [(12, 24, 6, 2.0), (40, 48, 30, 3.0)])
def test_gradients_of_repeated_words(words: int, width: int, classes: int, logit: float) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, words, (5, 16), generator=generator)
    targets = torch.randint(0, classes, (5, 16), generator=generator)

    def build() -> nn.Module:
        return Bigrams(words, width, classes, logit)

    told = isometry.predict(build, (ids, targets))
    found: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        profile = isometry.measure(build(), (ids, targets))
        for name in ("head.weight", "embedding.weight", "act", "head"):
            found.setdefault(name, []).append(profile[name].backward.rms ** 2)
    for name, squares in found.items():
        error = float(np.std(squares)) / math.sqrt(DRAWS)
        predicted = told[name].backward.rms ** 2
        assert predicted == pytest.approx(np.mean(squares), abs=4 * error + 0.05 * np.mean(squares)), name


def test_the_mean_score_of_a_softmax() -> None:
    s = 1.5 * torch.randn(40_000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = (s.softmax(-1) * s).sum(-1) ** 2
    error = float(square.std()) / 200
    assert saturation.square_along(2.25, 12) == pytest.approx(float(square.mean()), abs=4 * error)
    small = 0.01 / 50 + 0.01**2  # a = (1 + s)/n
    assert saturation.square_along(0.01, 50) == pytest.approx(small, rel=0.03)


@pytest.mark.parametrize("image", [False, True])
def test_no_gradient_along_weights_that_a_batch_norm_divides_by(image: bool) -> None:
    def build() -> nn.Module:
        if image:
            deep = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
            return nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), deep, nn.BatchNorm2d(32), nn.ReLU())
        return nn.Sequential(nn.Linear(12, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU())

    shape, name = ((8, 32, 6, 6), "2.weight") if image else ((24, 12), "0.weight")
    told = isometry.predict(build, (torch.randn(shape),))
    squares = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        loss = lambda out: (out * torch.randn_like(out)).sum()  # noqa: E731
        squares.append(isometry.measure(build(), (torch.randn(shape),), loss=loss)[name].backward.rms ** 2)
    error = float(np.std(squares)) / math.sqrt(DRAWS)
    assert told[name].backward.rms ** 2 == pytest.approx(
        np.mean(squares), abs=4 * error + 0.03 * np.mean(squares)
    )
