"""What few samples and few weights do to norms and their gradients: closed forms and real modules."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import algebra as alg
from isometry.moments import fan, inverse, latents
from isometry.moments.record import Fan
from isometry.moments.taps import Window

DRAWS = 300


def squares(build, inputs, names: list[str]) -> dict[str, tuple[float, float]]:
    """Measure mean squares of gradients at outputs over fresh draws, and their standard errors."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        profile = isometry.measure(build(), inputs(), loss=lambda out: (out * torch.randn_like(out)).sum())
        for name in names:
            found[name].append(profile[name].backward.rms ** 2)
    return {k: (float(np.mean(v)), float(np.std(v) / math.sqrt(DRAWS))) for k, v in found.items()}


def agrees(build, inputs, names: list[str], within: float) -> None:
    told = isometry.predict(build, inputs())
    for name, (square, error) in squares(build, inputs, names).items():
        assert told[name].backward.rms ** 2 == pytest.approx(square, abs=4 * error + within * square), name


def test_a_coordinate_of_a_sphere_has_the_moments_of_one() -> None:
    for n in (5.0, 15.0, 60.0):
        x = latents.on_sphere(n)
        assert latents.mean(x * x) == pytest.approx(1.0)
        assert latents.mean(x**4) == pytest.approx(3.0 * n / (n + 2.0), rel=3e-3)


def test_strong_directions_lose_by_the_division() -> None:
    table = np.array([[1.0, 0.3], [0.0, 0.0]])  # four samples, each of 5 places that are alike by 0.3
    x = alg.gaussian((((4,),), ((5,),)), table, np.zeros((1, 1)))
    lost = inverse.loss_of_strong(x, (0, 1), x.table)
    rng = np.random.default_rng(0)
    own = rng.standard_normal((200_000, 4, 5)) * math.sqrt(0.7)
    draws = own + rng.standard_normal((200_000, 4, 1)) * math.sqrt(0.3)
    draws /= np.sqrt((draws**2).mean((1, 2), keepdims=True))
    together = (draws[:, 0, 0] * draws[:, 0, 1]).mean()
    assert lost is not None
    assert table[0, 1] + lost[0, 1] == pytest.approx(together, abs=4 * 1.2 / math.sqrt(200_000))


def test_the_inverse_of_a_size_of_nine_weights() -> None:
    v = np.random.default_rng(0).chisquare(9, 400_000) / 9
    assert fan.excess(Fan(9, 9, 9, 0.0), 1.0) == pytest.approx(9 / 7, rel=1e-4)
    with_eps = (1 / (v + 1)).mean() * 2
    assert fan.excess(Fan(9, 9, 9, 0.0), 0.5) == pytest.approx(with_eps, rel=2e-3)


def test_tails_have_the_kurtosis_asked_for() -> None:
    for excess in (0.1, 0.5):
        made = fan.with_tails(alg.normal((3, 4)), excess)
        assert fan.kurtosis(made) == pytest.approx(excess, rel=0.35)
        assert made.terms[0].factors[0].square == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("window", "inputs", "blocks"),
    [
        (Window(8, 3, 8, low=1), (8,), (1, 6, 1)),
        (Window(4, 3, 8, stride=2, low=1), (8,), (1, 3)),
        (Window(2, 3, 2, low=1), (2,), (2,)),
        (Window(8, 1, 8), (1, 6, 1), (1, 6, 1)),
        (Window(100, 3, 100, low=1), (100,), (100,)),
    ],
)
def test_borders_are_blocks(window: Window, inputs: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    assert window.blocks(inputs) == blocks


def test_batch_norm_behind_few_weights() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40),
        )  # fmt: skip

    agrees(build, lambda: (torch.randn(4, 24, 6, 6),), ["5", "4", "2", "1"], within=0.04)


def test_no_scale_in_front_of_a_depthwise_convolution_and_a_norm() -> None:
    def build() -> nn.Module:
        layers = [nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        layers += [nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)]
        return nn.Sequential(*layers)

    told = isometry.predict(build, (torch.randn(4, 8, 10, 10),))
    assert told["1.weight"].backward.rms < 0.05 * told["1.bias"].backward.rms


class Residual(nn.Module):
    """A branch of one linear map, and a relu behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.map.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.map(x)).relu()


def test_slopes_along_a_stream_remember_one_another() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(48, 192, bias=False), nn.ReLU(), *[Residual(192) for _ in range(7)])

    agrees(build, lambda: (torch.randn(64, 48),), ["2.map", "4.map", "6.map"], within=0.04)
