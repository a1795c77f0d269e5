"""Neighbours that are more alike than far places: overlapping windows, and what lies behind them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import algebra as alg
from isometry.moments import distances, latents, maxima, near, near_maps
from isometry.moments.resampling import resampled

DRAWS = 100

Build = Callable[[], nn.Module]


def drawn(build: Build, shape: tuple[int, ...], names: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return mean squares of outputs and of gradients there over fresh draws; of a weight, its gradient's."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        model, kept = build(), dict[str, Tensor]()

        def keep(name: str, out: Tensor, kept: dict[str, Tensor] = kept) -> None:
            if out.requires_grad:
                out.retain_grad()
            kept[name] = out

        for name, module in model.named_modules():
            module.register_forward_hook(lambda *args, name=name, keep=keep: keep(name, args[2]))
        out = model(torch.randn(shape))
        (out * torch.randn_like(out)).sum().backward()
        kept |= dict(model.named_parameters())
        for name in names:
            gradient = kept[name].grad
            square = math.nan if gradient is None else gradient.square().mean().item()
            found[name].append((kept[name].square().mean().item(), square))
    return found


def agrees(
    build: Build, shape: tuple[int, ...], forward: list[str], backward: list[str], within: float
) -> None:
    """Compare mean squares: within 4 standard errors and a share for what the rules approximate."""
    told = isometry.predict(build, (torch.empty(shape, device="meta"),))
    for name, squares in drawn(build, shape, [*forward, *backward]).items():
        side = 0 if name in forward else 1
        stats = told[name].backward if side else told[name].forward
        draws = np.array(squares)[:, side]
        error = 4 * draws.std() / math.sqrt(DRAWS)
        assert stats is not None
        assert stats.rms**2 == pytest.approx(draws.mean(), abs=error + within * draws.mean()), name


def mean_over_windows(size: int, kernel: int, stride: int) -> np.ndarray:
    """Return the matrix of a mean over windows along one dim."""
    starts = range(0, size - kernel + 1, stride)
    return np.array([[1.0 / kernel if s <= i < s + kernel else 0.0 for i in range(size)] for s in starts])


def test_means_of_means_are_exact() -> None:
    rows, columns = mean_over_windows(11, 3, 1), mean_over_windows(8, 2, 1)
    first = resampled(alg.normal((2, 3, 11, 8)), {2: rows, 3: columns})
    again = {2: mean_over_windows(9, 4, 2), 3: mean_over_windows(7, 3, 3)}
    both = resampled(first, again)
    same, differ = [], []
    for whole in (again[2] @ rows, again[3] @ columns):
        products = whole @ whole.T
        n = len(products)
        same.append(products.trace() / n)
        differ.append((products.sum() - products.trace()) / (n * (n - 1)))
    expected = [[same[0] * same[1], same[0] * differ[1]], [differ[0] * same[1], differ[0] * differ[1]]]
    np.testing.assert_allclose(both.table[0, 0], expected, rtol=1e-9)


def test_readings_count_pairs() -> None:
    matrix = np.random.default_rng(0).random((5, 9))
    how = near_maps.reading([matrix], [(2, 3)])
    for d in range(distances.REACH + 1):
        pairs = [(i, j) for i in range(9) for j in range(9) if abs(i - j) == d]
        products = sum(np.outer(matrix[:, i], matrix[:, j]) for i, j in pairs)
        assert how.classes[0, d] == pytest.approx(np.diag(products)[:2].mean())
        assert how.classes[3, d] == pytest.approx(products[:2, 2:].mean())
        assert how.distances[1, d] == pytest.approx((np.diag(products, 1) + np.diag(products, -1)).mean() / 2)


def test_correlations_by_distance_have_their_classes_means() -> None:
    sums = mean_over_windows(12, 3, 1)
    x = resampled(alg.normal((2, 12, 12)), {1: sums, 2: sums})
    (factor,) = x.terms[0].factors
    rho = near.correlations(factor, x.axes, 2)
    np.testing.assert_allclose(distances.by_class(rho, (10, 10))[0], factor.rho[0], rtol=1e-9)
    assert rho[0, 1] == pytest.approx(2 / 3)  # neighbours share two of three columns


def test_maxima_that_share_variables() -> None:
    x = np.random.default_rng(0).standard_normal((200_000, 15))
    one, two = x[:, :9].max(1), x[:, 6:].max(1)
    together = float(np.cov(one, two)[0, 1])
    (none, some, whole) = maxima.shared(9.0, np.array([0.0, 3 / 9, 1.0]))
    error = 4 * float(one.var()) / math.sqrt(200_000)
    assert none == pytest.approx(0.0, abs=1e-9)
    assert some == pytest.approx(together, abs=error + 0.01 * together)
    assert whole == pytest.approx(float(one.var()), abs=3 * error)


def test_functions_of_maxima_that_may_be_equal() -> None:
    x = np.random.default_rng(0).standard_normal((200_000, 15))
    one, two = x[:, :9].max(1), x[:, 6:].max(1)
    ranks = [torch.special.ndtr(torch.from_numpy(m)).numpy() ** 9 for m in (one, two)]  # uniform
    normal = [np.clip(torch.special.ndtri(torch.from_numpy(u)).numpy(), -6, 6) for u in ranks]
    for function in (lambda z: z, lambda z: np.maximum(z, 0.0), lambda z: np.minimum(z, 0.0)):
        first, second = (function(z) for z in normal)
        told, _ = maxima.alike(function(latents.NODES), np.array([3 / 9]))
        error = 4 * float(first.var()) / math.sqrt(200_000)
        assert float(told[0]) == pytest.approx(float(np.cov(first, second)[0, 1]), abs=error)


@pytest.mark.parametrize("between", [nn.Identity(), nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)])
def test_pools_right_behind_a_pool(between: nn.Module, pool: nn.Module) -> None:
    def build() -> nn.Module:
        first = [nn.Conv2d(64, 64, 1, bias=False), nn.MaxPool2d(3, 2, 1), between, pool]
        return nn.Sequential(*first, nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))

    # Windows at borders have fewer entries, and count as others do in what they have in common.
    agrees(build, (4, 64, 20, 20), ["3"], ["1", "0"], within=0.05)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)])
def test_pools_behind_a_pool(pool: nn.Module) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(64, 64, 1, bias=False), nn.MaxPool2d(3, 1, 1), nn.Conv2d(64, 96, 1, bias=False),
            nn.BatchNorm2d(96), nn.ReLU(), pool, nn.Conv2d(96, 64, 1, bias=False), nn.BatchNorm2d(64),
        )  # fmt: skip

    # Neighbours have the largest entry in common or not: jointly they are normal only for many channels.
    agrees(build, (4, 64, 10, 10), ["5"], ["4", "2", "2.weight"], within=0.08)


class Branches(nn.Module):
    """A pooled branch beside one that is not, and means over windows of both."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(32, 40, 1, bias=False)
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(32, 40, 1, bias=False))
        self.mean = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.mean(torch.cat([self.plain(x), self.pooled(x)], 1))
        return mean


def test_tensors_side_by_side_keep_each_their_own() -> None:
    agrees(Branches, (4, 32, 10, 10), ["mean"], [], within=0.03)


def test_weights_see_neighbours_of_input_and_gradient() -> None:
    def build() -> nn.Module:
        first = [nn.Conv2d(48, 48, 1, bias=False), nn.AvgPool2d(3, 1)]
        return nn.Sequential(*first, nn.Conv2d(48, 48, 3, bias=False), nn.AvgPool2d(3, 1))

    # At the borders fewer windows read a gradient, which is taken as an even one of the same mean square.
    agrees(build, (4, 48, 14, 14), ["3"], ["2.weight", "2", "0"], within=0.08)


class Excess(nn.Module):
    """What a mean over windows has beyond the entry in their middle."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        excess: Tensor = self.pool(x) - x
        return excess


def test_a_mean_over_windows_knows_the_entry_in_their_middle() -> None:
    def build() -> nn.Module:
        first = [nn.Conv2d(32, 64, 1, bias=False), nn.ReLU(), Excess()]
        return nn.Sequential(*first, nn.Conv2d(64, 32, 1, bias=False))

    agrees(build, (4, 32, 12, 12), ["2"], ["1"], within=0.03)


class Gated(nn.Module):
    """A pooled branch behind a scale that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AvgPool2d(3, 1, 1)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.scale * self.pool(x)


def test_a_pool_whose_gradient_is_zero() -> None:
    told = isometry.predict(Gated, "4x3x16x16")
    assert not told.notes
    assert told["conv"].backward.rms == pytest.approx(1.0)
    assert told["pool"].backward.rms == 0.0


def test_padding_by_infinity_in_front_of_a_maximum_is_the_pools_own() -> None:
    def build(*pool: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(16, 24, 1), nn.Sequential(*pool), nn.Conv2d(24, 8, 1))

    around = nn.ConstantPad2d(1, -math.inf), nn.MaxPool2d(3, 2)
    padded, own = (
        isometry.predict(lambda p=p: build(*p), "4x16x9x9") for p in (around, [nn.MaxPool2d(3, 2, 1)])
    )
    assert not any(note.startswith("unknown") for note in padded.notes)
    for name in ("1", "0", "2.weight", "0.weight"):
        for side in ("forward", "backward"):
            assert getattr(padded[name], side).rms == pytest.approx(getattr(own[name], side).rms, rel=1e-6)
