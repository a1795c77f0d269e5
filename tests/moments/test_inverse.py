"""How much the sizes of channels scatter that a batch norm divides by: eigenvalues and real modules."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import algebra as alg
from isometry.moments import axes as ax
from isometry.moments import fan, inverse
from isometry.moments.record import Fan

DRAWS = 250


def test_the_inverse_of_a_size_of_uniform_weights() -> None:
    squares = np.random.default_rng(0).uniform(-1, 1, (400_000, 9)) ** 2 * 3
    v = squares.mean(1)
    known = Fan(22.5, 22.5, 22.5, 0.0, light=1.2)
    assert fan.excess(known, 1.0) == pytest.approx((1 / v).mean(), rel=2e-3)
    assert fan.excess(known, 0.6) == pytest.approx((1 / (0.6 * v + 0.4)).mean(), rel=1e-3)


def test_directions_beside_the_weights_own_multiply() -> None:
    rng = np.random.default_rng(0)
    v = rng.chisquare(9, 400_000) / 9 * rng.chisquare(30, 400_000) / 30
    both = 1 / (1 / 9 + 1 / 30)
    assert fan.excess(Fan(9, both, both, 0.0), 1.0) == pytest.approx((1 / v).mean(), rel=5e-3)


def entries(axes: tuple[tuple[int, ...], ...], table: np.ndarray) -> np.ndarray:
    """Return the matrix of all pairs of entries that a table tells, axis by axis."""
    classes = []
    for axis in axes:
        block = np.repeat(np.arange(len(axis)), axis)
        differ = len(axis) * (1 + block[:, None]) + block
        classes.append(np.where(np.eye(len(block), dtype=bool), block[:, None], differ))
    first, second = classes
    whole = table[first[:, None, :, None], second[None, :, None, :]]
    return whole.reshape(first.shape[0] * second.shape[0], -1)


def test_blocks_have_the_eigenvalues_of_the_matrix_of_all_pairs() -> None:
    axes = ((1, 3), (2, 4, 1))
    rng = np.random.default_rng(1)
    tables = []
    for axis in axes:  # a product of positive tables, one per axis
        b = len(axis)
        shared = rng.normal(size=(b, b))
        shared = shared @ shared.T
        tables.append(np.concatenate([shared.diagonal() + rng.uniform(1, 2, b), shared.ravel()]))
    table = np.multiply.outer(*tables)
    x = alg.gaussian(tuple((axis,) for axis in axes), table, np.zeros((1, 1)))
    found = inverse._in_blocks(x, table, [0, 1])
    count = math.prod(ax.size(axis) for axis in axes)
    told = np.repeat(found.own * count, found.times.astype(int))
    assert np.sort(told) == pytest.approx(np.linalg.eigvalsh(entries(axes, table)), rel=1e-9, abs=1e-9)


def test_a_token_of_zeros_is_divided_by_epsilon() -> None:
    class Front(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros(4, 1, 32), x], 1)

    told = isometry.predict(lambda: nn.Sequential(Front(), nn.LayerNorm(32)), "4x6x32")
    assert not [note for note in told.notes if note.startswith("unknown")]
    assert told["1"].forward.rms ** 2 == pytest.approx(6 / 7, rel=1e-3)


def ratio(build, shape: tuple[int, ...], behind: str, before: str) -> tuple[float, float, float]:
    """Return E[g²] of the gradient at one module by that at another, told, measured, and its error."""
    told = isometry.predict(build, "x".join(map(str, shape)))
    squares = np.zeros((DRAWS, 2))
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        real = isometry.measure(
            build(), torch.randn(shape), loss=lambda out: (out * torch.randn_like(out)).sum()
        )
        squares[seed] = [real[name].backward.rms ** 2 for name in (before, behind)]
    mean = squares.mean(0)
    error = float((squares[:, 0] / mean[0] - squares[:, 1] / mean[1]).std()) / math.sqrt(DRAWS)
    wanted = (told[before].backward.rms / told[behind].backward.rms) ** 2
    return wanted, float(mean[0] / mean[1]), error


@pytest.mark.parametrize(
    ("size", "padding", "front"),
    [
        (6, 0, ()),
        (4, 1, ()),
        (4, 1, (nn.ReLU,)),
        (4, 1, (lambda: nn.Conv2d(64, 64, 1), lambda: nn.BatchNorm2d(64))),
        (4, 1, (lambda: nn.Conv2d(64, 64, 1), lambda: nn.BatchNorm2d(64), nn.ReLU)),
    ],
)
def test_channels_of_few_weights_have_places_alike_in_a_way_of_their_own(size, padding, front) -> None:
    def build() -> nn.Module:
        deep = nn.Conv2d(64, 64, 3, padding=padding, groups=64, bias=False)
        return nn.Sequential(*[make() for make in front], deep, nn.BatchNorm2d(64))

    last = len(front) + 1
    told, real, error = ratio(build, (4, 64, size, size), str(last), str(last - 1))
    assert told == pytest.approx(real, rel=4 * error + 0.02)


class Residual(nn.Module):
    """A bottleneck with its sum and slope."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(96, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.last, self.norm = nn.Conv2d(48, 96, 1, bias=False), nn.BatchNorm2d(96)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return (x + self.norm(self.last(self.front(x)))).relu()


def test_slopes_of_later_blocks_know_what_a_norm_made() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(96), nn.ReLU(), *[Residual() for _ in range(3)], nn.AdaptiveAvgPool2d(1)
        )

    told, real, error = ratio(build, (4, 96, 4, 4), "3.norm", "3.last")
    assert told == pytest.approx(real, rel=4 * error + 0.003)
