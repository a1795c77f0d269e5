"""What few samples and few weights do to norms and their gradients: closed forms and real modules."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.moments import across, fan, inverse, latents, steep
from isometry.moments import algebra as alg
from isometry.moments.marks import marked
from isometry.moments.record import Across, Fan, Normed, Steep
from isometry.moments.rules import order
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


class Unlike(nn.Module):
    """What tells samples apart."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x less the mean over all samples."""
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(("kernel", "bent", "size"), [(3, nn.ReLU, 4), (3, nn.SiLU, 8), (5, nn.ReLU, 8)])
def test_images_differ_in_their_means_behind_a_depthwise_convolution(kernel, bent, size) -> None:
    def build() -> nn.Module:
        deep = nn.Conv2d(64, 64, kernel, padding=kernel // 2, groups=64, bias=False)
        front = (nn.Conv2d(32, 64, 1), bent(), deep, nn.BatchNorm2d(64), bent())
        return nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), Unlike())

    told = isometry.predict(build, f"4x32x{size}x{size}", backward=False)[""].forward
    drawn = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        with torch.no_grad():
            drawn.append(float(build()(torch.randn(4, 32, size, size)).square().mean()))
    error = float(np.std(drawn)) / math.sqrt(DRAWS)
    assert told is not None
    # asymptotic in the number of weights; a fourth too small where places are taken as independent
    assert told.rms**2 == pytest.approx(np.mean(drawn), abs=4 * error + 0.08 * float(np.mean(drawn)))


def test_the_inverse_of_a_size_of_nine_weights() -> None:
    v = np.random.default_rng(0).chisquare(9, 400_000) / 9
    assert fan.excess(Fan(9, 9, 9, 0.0), 1.0) == pytest.approx(9 / 7, rel=1e-4)
    with_eps = (1 / (v + 1)).mean() * 2
    assert fan.excess(Fan(9, 9, 9, 0.0), 0.5) == pytest.approx(with_eps, rel=2e-3)


def test_tails_have_the_kurtosis_asked_for() -> None:
    for excess in (0.1, 0.5, 1.5, 3.0):
        made = fan.with_tails(alg.normal((3, 4)), excess)
        assert fan.kurtosis(made) == pytest.approx(excess, rel=1e-3)
        assert made.terms[0].factors[0].square == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("window", "inputs", "blocks"),
    [
        (Window(18, 3, 18, low=1), (18,), (1, 16, 1)),
        (Window(8, 3, 8, low=1), (8,), (1, 1, 4, 1, 1)),
        (Window(16, 5, 16, low=2), (16,), (1, 1, 12, 1, 1)),
        (Window(20, 7, 20, low=3), (20,), (3, 14, 3)),
        (Window(4, 3, 8, stride=2, low=1), (8,), (1, 1, 1, 1)),
        (Window(24, 3, 48, stride=2, low=1), (48,), (1, 23)),
        (Window(2, 3, 2, low=1), (2,), (2,)),
        (Window(8, 1, 8), (1, 6, 1), (1, 6, 1)),
        (Window(100, 3, 100, low=1), (100,), (100,)),
        (Window(64, 1, 64), (1,) * 64, (1, 1, 2, 4, 8, 16, 16, 8, 4, 2, 1, 1)),
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


def test_a_bias_in_front_of_a_batch_norm() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1),
        )  # fmt: skip

    agrees(build, lambda: (torch.randn(4, 4, 6, 6),), ["6", "4", "3", "1", "0"], within=0.06)


def test_what_pads_a_tensor_has_no_tails() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(8, 16, 3), nn.ReLU(), nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(16, 16, 3)
        )

    agrees(build, lambda: (torch.randn(4, 8, 20),), ["3", "1", "0"], within=0.03)


def test_stacks_of_dilated_windows_cost_no_more_than_others() -> None:
    layers = [
        p for n in range(9) for p in (nn.ConstantPad1d((2**n, 0), 0.0), nn.Conv1d(4, 4, 2, dilation=2**n))
    ]
    start = time.process_time()
    told = isometry.predict(nn.Sequential(*layers), "2x4x2048")
    assert time.process_time() - start < 10
    assert told["17"].backward.rms == pytest.approx(1.0)


def test_the_slope_of_a_function_of_what_stays_as_it_is() -> None:
    form, values = latents.NODES.copy(), latents.NODES.copy()
    form[:20] = form[20] + 1e-17 * np.arange(20) % 3  # flat, but for rounding
    assert np.abs(latents.derivative(values, form)).max() < 1.01


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


class Squeeze(nn.Module):
    """Channels times a gate of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


def depthwise(act: type[nn.Module], kernel: int, squeeze: bool, groups: int = 48) -> nn.Module:
    mixed = [Squeeze(48), nn.Conv2d(48, 48, 1, bias=False), nn.BatchNorm2d(48), act()] if squeeze else []
    filtered = nn.Conv2d(48, 48, kernel, padding=kernel // 2, groups=groups, bias=False)
    layers = [
        nn.Conv2d(32, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        act(),
        filtered,
        nn.BatchNorm2d(48),
        act(),
    ]
    return nn.Sequential(*layers, *mixed, nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize(
    ("act", "kernel", "size", "squeeze"),
    [(nn.Hardswish, 5, 4, False), (nn.ReLU, 3, 8, False), (nn.Hardswish, 5, 4, True)],
)
def test_slopes_know_the_weights_of_their_channel(act: type, kernel: int, size: int, squeeze: bool) -> None:
    # The pooling behind hands all places of a channel one gradient, so that those of neighbours add up.
    agrees(
        lambda: depthwise(act, kernel, squeeze),
        lambda: (torch.randn(4, 32, size, size),),
        ["2", "1"],
        within=0.06,
    )


@pytest.mark.parametrize("groups", [24, 16])
def test_slopes_know_the_weights_of_their_channel_in_groups(groups: int) -> None:
    agrees(
        lambda: depthwise(nn.ReLU, 3, False, groups),
        lambda: (torch.randn(4, 32, 4, 4),),
        ["2", "1"],
        within=0.02,
    )


def test_of_a_sum_of_gradients_each_is_orthogonal_for_itself() -> None:
    x = alg.normal((4, 6, 5))
    relu = alg.apply(x, lambda z: np.maximum(z, 0.0))
    own, other = (alg.multiply(alg.normal((4, 6, 5)), f) for f in (relu, x))
    (factor,) = relu.terms[0].factors
    own = marked(own, Across(factor, factor.values, np.ones_like(factor.values), 1.0, 0.0))
    both, *each = (across.product(g, x).table for g in (alg.add(own, other), own, other))
    np.testing.assert_allclose(both, sum(each))


def test_channels_side_by_side_scatter_as_one_tensor_of_them() -> None:
    def build(parts: int) -> nn.Module:
        each = [
            nn.Sequential(nn.Conv2d(32, 48 // parts, 1), nn.BatchNorm2d(48 // parts)) for _ in range(parts)
        ]
        filtered = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False)
        return nn.Sequential(Parts(*each), filtered, nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    one, two = (isometry.predict(lambda n=n: build(n), "4x32x6x6") for n in (1, 2))
    assert two["1"].backward.rms == pytest.approx(one["1"].backward.rms, rel=2e-3)


class Parts(nn.Module):
    """What several maps make of a tensor, side by side."""

    def __init__(self, *maps: nn.Module) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([f(x) for f in self.maps], 1).relu()


def test_gradients_behind_a_depthwise_convolution_and_a_norm_sum_to_little() -> None:
    def build() -> nn.Module:
        return depthwise(nn.Hardswish, 3, False)

    inputs = torch.randn(4, 32, 10, 10)
    told = {p.name: p.backward.rms**2 for p in isometry.predict(build, (inputs,)).parameters}
    found: dict[str, list[float]] = {"1.weight": [], "1.bias": []}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        model = build()
        out = model(torch.randn_like(inputs))
        (out * torch.randn_like(out)).sum().backward()
        for name, squares in found.items():
            squares.append(float(model.get_parameter(name).grad.square().mean()))
    for name, squares in found.items():
        error = np.std(squares) / math.sqrt(DRAWS)
        assert told[name] == pytest.approx(np.mean(squares), abs=4 * error + 0.3 * np.mean(squares)), name


def hardswish(z: np.ndarray) -> np.ndarray:
    return np.where(z < -3, 0.0, np.where(z > 3, z, z * (z + 3) / 6))


def test_the_power_of_normed_channels_scatters_where_they_are_bent() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60_000, 64))
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    x = hardswish(z)
    power = ((x - 0.5 * x.mean()) ** 2).mean(1)
    normed = marked(alg.normal((64, 3)), Fan(9, 9, 9, 0.0, normed=64))
    told = fan.scatter_of_power(alg.apply(normed, hardswish), 0.5)
    assert told == pytest.approx(power.var() / power.mean() ** 2, rel=0.05)
    assert fan.scatter_of_power(normed, 0.5) < 1e-9  # the norm made it one


def test_what_weights_pass_on_whose_size_is_divided_by_beside_an_epsilon() -> None:
    square = np.random.default_rng(0).chisquare(9, 400_000) / 9
    for share in (0.5, 0.9, 1.0):
        divided = 1 / (square + 1 / share - 1)
        gradient = marked(alg.normal((4, 3)), Normed(9, share, None))
        assert fan.kept(gradient) == pytest.approx((square * divided).mean() / divided.mean(), rel=3e-3)


def test_the_slope_of_quantiles_that_are_steps() -> None:
    z = latents.NODES
    steps = np.where(np.abs(z) < 3.0, z, np.sign(z) * np.floor(np.abs(z)))  # as those of a sum, in its tails
    other = np.where(np.abs(z) < 3.0, z, np.sign(z) * np.floor(np.abs(z) + 1e-1))
    noise = 1e-9 * np.random.default_rng(0).standard_normal(z.size)
    slope = latents.derivative(other, steps + noise)
    assert latents.mean(z * z * slope) == pytest.approx(1.0, abs=0.06)


def test_a_bias_in_front_of_a_batch_norm_changes_nothing() -> None:
    def build(bias: bool) -> nn.Module:
        layers = [nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(32, 24, 1, bias=bias), nn.BatchNorm2d(24))

    with_bias, without = (isometry.predict(lambda b=b: build(b), "4x16x6x6") for b in (True, False))
    for name in ("3", "2", "0"):
        assert with_bias[name].backward.rms == pytest.approx(without[name].backward.rms, rel=0.01), name


@pytest.mark.parametrize("shared", [0.05, 0.4])
def test_maxima_of_rows_are_as_alike_as_what_they_share(shared: float) -> None:
    rho = np.full((2, 2, 2), shared)
    rho[:, :, 1], rho[0, 0, 0] = 0.0, 1.0  # rows, the entries of each, and features on their own
    m = alg.from_values(alg.plain_dims((16, 4, 8)), rho, latents.NODES.reshape(1, 1, 1, -1))
    made = order.ranked(m, 1, 1, largest=True)
    table = np.squeeze(made.table)
    assert table[1, 0] - table[1, 1] == pytest.approx(shared, abs=0.005)
    # The largest of 4 normal entries has the variance 0.4917.
    assert table[0, 0] - table[1, 1] == pytest.approx(shared + (1.0 - shared) * 0.4917, abs=0.005)


def test_means_over_neighbours_of_means_over_neighbours() -> None:
    for read, reach in ((3, 1), (3, 3), (5, 3), (2, 7), (1, 4)):
        inner, outer = np.ones(reach) / reach, np.ones(read) / read
        left = (np.convolve(inner, outer) ** 2).sum() / (inner**2).sum()
        assert fan.averaged(read, reach) == pytest.approx(left)


def test_how_a_slope_rises_with_the_size_of_its_place() -> None:
    g = alg.multiply(alg.normal((4, 3)), alg.apply(alg.normal((4, 3)), lambda z: z))
    latent = g.terms[0].factors[1].latent
    assert steep.of_slopes(g, latent) == pytest.approx(1.0, rel=1e-3)  # the square of z
    gain, mark = steep.met(marked(g, Steep(0.5)), Fan(9, 9, 9, 0.3), latent)
    assert gain == pytest.approx(1.0 + 0.5 * 0.3, rel=1e-3)
    assert mark.rise == pytest.approx(1.5, rel=1e-3)


def test_slopes_know_the_size_that_an_epsilon_leaves_their_channel() -> None:
    rng, share = np.random.default_rng(0), 0.6
    square = rng.chisquare(9, 1_000_000) / 9
    divided = 1 / (square + 1 / share - 1)
    slopes = 1 + 0.3 * (square * divided / (square * divided).mean() - 1)
    alone, weights = divided.mean(), (square * divided).mean()
    told = fan.of_slopes(Fan(9, 9, 9, 0.0), share, 0.3)
    assert told == pytest.approx((slopes * divided).mean() / alone, rel=5e-3)
    kept = [fan.kept(marked(alg.normal((4, 3)), Normed(9, share, None, rise))) for rise in (0.0, 0.3)]
    real = (slopes * square * divided).mean() / weights / told
    assert kept[1] / kept[0] == pytest.approx(real, rel=5e-3)


def test_slopes_at_one_place_are_steep_together() -> None:
    def build() -> nn.Module:
        sizes = [12, *[48] * 4]
        layers = [
            [nn.Conv2d(n, m, 1, bias=False), nn.BatchNorm2d(m), nn.Hardswish()]
            for n, m in itertools.pairwise(sizes)
        ]
        return nn.Sequential(*itertools.chain(*layers), nn.Conv2d(48, 8, 1))

    agrees(build, lambda: (torch.randn(8, 12, 8, 8),), ["6", "3", "0"], within=0.08)


def test_a_gate_leaves_sums_their_mark() -> None:
    x = marked(alg.normal((3, 4)), Fan(50, 40, 80, 0.3))
    gate = alg.from_values(x.dims, np.ones((1, 1)), 0.5 + 0.1 * latents.NODES.reshape(1, 1, -1))
    made = fan.of_sum(alg.multiply(x, gate).terms)
    assert made is not None
    assert made.directions == pytest.approx(40.0, rel=1e-3)
    assert made.tail == pytest.approx(0.3, rel=1e-2)


def test_weights_in_front_of_a_norm_get_nothing_along_themselves() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(64, 64, 3, groups=64, bias=False), nn.BatchNorm2d(64))

    told = isometry.predict(build, "4x64x10x10")["0.weight"].backward.rms ** 2
    drawn = []
    for seed in range(DRAWS // 3):
        torch.manual_seed(seed)
        model = build()
        out = model(torch.randn(4, 64, 10, 10))
        (out * torch.randn_like(out)).sum().backward()
        assert model[0].weight.grad is not None
        drawn.append(float(model[0].weight.grad.square().mean()))
        along = (model[0].weight * model[0].weight.grad).sum((1, 2, 3))
        assert float(along.detach().abs().max()) < 1e-2
    error = float(np.std(drawn)) / math.sqrt(len(drawn))
    assert told == pytest.approx(float(np.mean(drawn)), abs=4 * error + 0.01 * float(np.mean(drawn)))
