"""In-place initialisers: the std asked for is the std drawn, in every dtype; bad input is one clear error."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from isometry import init
from isometry.errors import InvalidTypeError, InvalidValueError

SIGMAS = 5
MATRIX = (300, 200)
KERNEL = (60, 40, 3, 5)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RELU, TANH_BACK = math.sqrt(2), 1.467414


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def sampling_error(count: int) -> float:
    """Relative error of a root mean square over independent draws whose kurtosis is 3 or less."""
    return math.sqrt(2 / count) / 2


# (shape, call, root mean square asked for)
RANDOM: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], float]] = {
    "variance_scaling default": (
        MATRIX,
        lambda w: init.variance_scaling_(w, generator=generator()),
        200**-0.5,
    ),
    "variance_scaling fan_out uniform": (
        MATRIX,
        lambda w: init.variance_scaling_(w, 3.0, "fan_out", "uniform", generator()),
        0.1,
    ),
    "variance_scaling fan_geo truncated": (
        MATRIX,
        lambda w: init.variance_scaling_(w, 2.0, "fan_geo", "truncated_normal", generator()),
        math.sqrt(2 / math.sqrt(300 * 200)),
    ),
    "variance_scaling orthogonal": (
        MATRIX,
        lambda w: init.variance_scaling_(w, 2.0, "fan_in", "orthogonal", generator()),
        0.1,
    ),
    "variance_scaling axes": (
        (8, 100, 50),
        lambda w: init.variance_scaling_(w, generator=generator(), in_axis=1, out_axis=2, batch_axis=0),
        0.1,
    ),
    "variance_scaling kernel fan_out groups": (
        KERNEL,
        lambda w: init.variance_scaling_(w, 1.0, "fan_out", generator=generator(), groups=4),
        (15 * 15) ** -0.5,
    ),
    "kaiming_normal": (MATRIX, lambda w: init.kaiming_normal_(w, generator=generator()), 0.1),
    "kaiming_uniform kernel": (
        KERNEL,
        lambda w: init.kaiming_uniform_(w, nonlinearity="relu", generator=generator()),
        RELU / math.sqrt(600),
    ),
    "kaiming_normal slope": (
        MATRIX,
        lambda w: init.kaiming_normal_(w, a=math.sqrt(5), generator=generator()),
        math.sqrt(2 / 6 / 200),
    ),
    "kaiming_normal fan_out": (
        MATRIX,
        lambda w: init.kaiming_normal_(w, 0.0, "fan_out", "tanh", generator()),
        TANH_BACK / math.sqrt(300),
    ),
    "kaiming_normal callable": (
        MATRIX,
        lambda w: init.kaiming_normal_(w, nonlinearity=torch.relu, generator=generator()),
        0.1,
    ),
    "xavier_normal": (MATRIX, lambda w: init.xavier_normal_(w, 2.0, generator()), 2 / math.sqrt(250)),
    "xavier_uniform": (MATRIX, lambda w: init.xavier_uniform_(w, generator=generator()), 1 / math.sqrt(250)),
    "lecun_normal": (MATRIX, lambda w: init.lecun_normal_(w, generator()), 200**-0.5),
    "lecun_uniform": (MATRIX, lambda w: init.lecun_uniform_(w, generator()), 200**-0.5),
    "normal": (MATRIX, lambda w: init.normal_(w, 0.0, 0.02, generator()), 0.02),
    "uniform": (MATRIX, lambda w: init.uniform_(w, -0.3, 0.3, generator()), 0.3 / math.sqrt(3)),
    "trunc_normal": (MATRIX, lambda w: init.trunc_normal_(w, generator=generator()), 1.0),
    "trunc_normal two deviations": (
        MATRIX,
        lambda w: init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04, generator=generator()),
        0.02,
    ),
    "siren hidden": (
        MATRIX,
        lambda w: init.siren_uniform_(w, 30.0, generator()),
        math.sqrt(2 / 200) / 30,
    ),
    "siren first": (
        MATRIX,
        lambda w: init.siren_uniform_(w, generator=generator(), first=True),
        1 / 200 / math.sqrt(3),
    ),
    "icnr": (KERNEL, lambda w: init.icnr_(w, 2, generator()), 600**-0.5),
}

# The mean square of these is exact, whatever the draw.
EXACT: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], float]] = {
    "orthogonal wide": ((20, 50), lambda w: init.orthogonal_(w, 1.5, generator()), 1.5 / math.sqrt(50)),
    "orthogonal tall": ((50, 20), lambda w: init.orthogonal_(w, 1.5, generator()), 1.5 / math.sqrt(20)),
    "orthogonal tall fan_out": (
        (50, 20),
        lambda w: init.orthogonal_(w, 1.5, generator(), mode="fan_out"),
        1.5 / math.sqrt(50),
    ),
    "orthogonal as torch": (
        (50, 20),
        lambda w: init.orthogonal_(w, 1.5, generator(), mode=None),
        1.5 / math.sqrt(50),
    ),
    "orthogonal kernel groups": (
        (12, 4, 3),
        lambda w: init.orthogonal_(w, generator=generator(), groups=2),
        1 / math.sqrt(12),
    ),
    "delta_orthogonal": (
        (12, 5, 3),
        lambda w: init.delta_orthogonal_(w, generator=generator()),
        math.sqrt(1 / 5 / 3),
    ),
    "mirrored": ((12, 8), lambda w: init.mirrored_(w, generator=generator()), math.sqrt(4 / 6 / 4)),
    "identity": ((6, 9), lambda w: init.identity_(w, 2.0), math.sqrt(4 * 6 / 54)),
    "eye": ((6, 9), init.eye_, math.sqrt(6 / 54)),
    "dirac": ((6, 9, 3), init.dirac_, math.sqrt(6 / 162)),
    "constant": ((5,), lambda w: init.constant_(w, 0.5), 0.5),
    "zeros": ((5,), init.zeros_, 0.0),
    "ones": ((5, 1), init.ones_, 1.0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", RANDOM)
def test_the_std_asked_for_is_the_std_drawn(key: str, dtype: torch.dtype) -> None:
    shape, call, expected = RANDOM[key]
    tensor = torch.full(shape, math.nan, dtype=dtype)
    assert call(tensor) is tensor
    independent = tensor.numel() // (4 if key == "icnr" else 1)
    assert root_mean_square(tensor) == pytest.approx(expected, rel=SIGMAS * sampling_error(independent))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", EXACT)
def test_the_mean_square_of_structured_weights_is_exact(key: str, dtype: torch.dtype) -> None:
    shape, call, expected = EXACT[key]
    tensor = torch.full(shape, math.nan, dtype=dtype)
    assert call(tensor) is tensor
    assert root_mean_square(tensor) == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps, abs=0)


@pytest.mark.parametrize("key", [*RANDOM, *EXACT])
def test_strided_views_and_parameters_are_filled_in_place(key: str) -> None:
    shape, call, _ = (RANDOM | EXACT)[key]
    plain = call(torch.empty(shape))
    base = torch.full((*shape[::-1], 2), math.nan)
    view = base[..., 0].permute(*reversed(range(len(shape))))
    call(view)
    assert torch.equal(view, plain)
    assert base[..., 1].isnan().all(), "memory between the entries was written"
    parameter = nn.Parameter(torch.empty(shape))
    call(parameter)
    assert torch.equal(parameter.detach(), plain)
    assert parameter.grad_fn is None


@pytest.mark.parametrize("key", RANDOM)
def test_half_precision_is_the_rounded_float32_draw(key: str) -> None:
    shape, call, _ = RANDOM[key]
    half = call(torch.empty(shape, dtype=torch.bfloat16))
    rounded = call(torch.empty(shape)).to(torch.bfloat16)
    beyond = rounded != half  # only what would round to a value outside a closed interval
    assert (rounded[beyond].abs() > half.abs().max()).all()
    assert float(beyond.double().mean()) < 0.01


@pytest.mark.parametrize("key", [*RANDOM, *EXACT])
def test_meta_tensors_stay_meta(key: str) -> None:
    shape, call, _ = (RANDOM | EXACT)[key]
    tensor = torch.empty(shape, device="meta")
    assert call(tensor) is tensor


@pytest.mark.parametrize("key", RANDOM)
def test_complex_entries_have_the_variance_of_both_parts_or_are_refused(key: str) -> None:
    shape, call, expected = RANDOM[key]
    tensor = torch.zeros(shape, dtype=torch.complex64)
    if key in ("variance_scaling orthogonal", "icnr"):
        with pytest.raises(InvalidTypeError, match="complex"):
            call(tensor)
        assert not tensor.any()
        return
    call(tensor)
    power = float(tensor.abs().square().mean().sqrt())
    assert power == pytest.approx(expected, rel=SIGMAS * sampling_error(2 * tensor.numel()))
    assert float(tensor.imag.square().mean().sqrt()) == pytest.approx(
        expected / math.sqrt(2), rel=SIGMAS * sampling_error(tensor.numel())
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda w: init.orthogonal_(w),
        lambda w: init.orthogonal_(w, mode=None),
        lambda w: init.mirrored_(w),
        lambda w: init.sparse_(w, 0.5),
        lambda w: init.eye_(w),
    ],
)
def test_joint_laws_refuse_complex_tensors(call: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.zeros(4, 6, dtype=torch.complex64)
    with pytest.raises(InvalidTypeError, match="complex"):
        call(tensor)
    assert not tensor.any()


@pytest.mark.parametrize("key", [*RANDOM, *EXACT])
def test_bad_tensors_are_one_clear_error(key: str) -> None:
    shape, call, _ = (RANDOM | EXACT)[key]
    with pytest.raises(InvalidTypeError, match="floating"):
        call(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(InvalidTypeError, match="tensor"):
        call([[1.0]])
    with pytest.raises(InvalidValueError, match="empty"):
        call(torch.zeros((0, *shape[1:])))
    if math.prod(shape[1:]) > 1:
        expanded = torch.zeros((*shape[:-1], 1)).expand(shape)
        with pytest.raises(InvalidValueError, match="expanded"):
            call(expanded)
        assert not expanded.any()


def test_kernels_of_delta_orthogonal_must_hold_the_tap() -> None:
    with pytest.raises(InvalidValueError, match="outside the receptive field"):
        init.delta_orthogonal_(torch.zeros(4, 4, 3), tap=(3,))


def test_icnr_needs_whole_groups_of_channels() -> None:
    with pytest.raises(InvalidValueError, match="multiple"):
        init.icnr_(torch.zeros(6, 4, 3, 3), 2)


def test_truncated_normal_keeps_its_absolute_bounds_mean_and_std() -> None:
    """An asymmetric cut: the mean and the std are those of the values, which SciPy confirms for the law."""
    tensor = init.trunc_normal_(torch.empty(100_000), 0.1, 0.5, -0.6, 2.0, generator())
    assert -0.6 <= float(tensor.min()) < -0.59
    assert 1.5 < float(tensor.max()) <= 2.0
    error = 0.5 / math.sqrt(tensor.numel())
    assert float(tensor.mean()) == pytest.approx(0.1, abs=SIGMAS * error)
    kurtosis = float(stats.kurtosis(tensor.numpy(), fisher=False))
    assert float(tensor.std()) == pytest.approx(
        0.5, rel=SIGMAS * math.sqrt((kurtosis - 1) / tensor.numel()) / 2
    )


def test_truncated_normal_without_bounds_is_normal() -> None:
    plain = init.normal_(torch.empty(20), 0.1, 0.5, generator())
    assert torch.equal(init.trunc_normal_(torch.empty(20), 0.1, 0.5, -math.inf, math.inf, generator()), plain)


def test_generator_decides_and_constants_leave_it_alone() -> None:
    torch.manual_seed(3)
    first = init.kaiming_normal_(torch.empty(4, 6))
    second = init.kaiming_normal_(torch.empty(4, 6))
    torch.manual_seed(3)
    again = init.kaiming_normal_(torch.empty(4, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    init.zeros_(torch.empty(4))
    init.eye_(torch.empty(4, 6))
    init.dirac_(torch.empty(4, 6, 3))
    init.kaiming_normal_(torch.empty(4, 6), generator=generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eye_", ()),
        ("constant_", (0.3,)),
        ("zeros_", ()),
        ("ones_", ()),
    ],
)
def test_equal_to_torch(name: str, arguments: tuple[float, ...]) -> None:
    mine = getattr(init, name)(torch.empty(4, 6), *arguments)
    assert torch.equal(mine, getattr(nn.init, name)(torch.empty(4, 6), *arguments))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(4, 6, 3), (6, 3, 4, 5), (2, 4, 2, 2, 2)])
def test_dirac_is_equal_to_torch(shape: tuple[int, ...], groups: int) -> None:
    expected = nn.init.dirac_(torch.empty(shape), groups)
    assert torch.equal(init.dirac_(torch.empty(shape), groups), expected)


def test_sparse_zeros_the_same_share_as_torch() -> None:
    mine = init.sparse_(torch.empty(25, 8), 0.3, generator=generator())
    theirs = nn.init.sparse_(torch.empty(25, 8), 0.3)
    assert torch.equal((mine == 0).sum(0), (theirs == 0).sum(0))
    kept = init.sparse_(torch.empty(4000, 50), 0.5, 0.1, generator()).flatten()
    kept = kept[kept != 0]
    assert root_mean_square(kept) == pytest.approx(0.1, rel=SIGMAS * sampling_error(len(kept)))


@pytest.mark.parametrize(
    "name", ["kaiming_normal_", "xavier_uniform_", "orthogonal_", "trunc_normal_", "sparse_"]
)
def test_argument_names_and_defaults_are_those_of_torch(name: str) -> None:
    import inspect

    mine = inspect.signature(getattr(init, name)).parameters
    for argument, parameter in inspect.signature(getattr(nn.init, name)).parameters.items():
        assert argument in mine
        assert mine[argument].default == parameter.default
    positional = [key for key, p in mine.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(getattr(nn.init, name)).parameters)


@pytest.mark.parametrize("groups", [1, 3])
def test_orthogonal_blocks_are_orthogonal_and_different(groups: int) -> None:
    tensor = init.orthogonal_(torch.empty(12, 3, dtype=torch.float64), 1.0, generator(), groups=groups)
    rows = 12 // groups
    blocks = tensor.reshape(groups, rows, 3)
    scale = max(rows, 3) / 3
    assert torch.allclose(
        blocks.mT @ blocks, scale * torch.eye(3, dtype=torch.float64).expand(groups, 3, 3), atol=1e-12
    )
    if groups > 1:
        assert not torch.allclose(blocks[0], blocks[1])


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 3, 4, 5])
def test_delta_orthogonal_keeps_every_position_in_one_to_three_dimensions(dims: int, side: int) -> None:
    """With padding="same", which aligns the central tap of an even side too, |y|² = |x|² everywhere."""
    kernel = init.delta_orthogonal_(
        torch.empty(6, 6, *[side] * dims, dtype=torch.float64), generator=generator()
    )
    x = torch.randn(2, 6, *[7] * dims, dtype=torch.float64, generator=generator(1))
    conv = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[dims - 1]
    if side % 2 == 0:
        left, right = (side - 1) // 2, side // 2
        y = conv(nn.functional.pad(x, [left, right] * dims), kernel)
    else:
        y = conv(x, kernel, padding="same")
    assert y.shape == x.shape
    assert torch.allclose(y.square().sum(1), x.square().sum(1), rtol=1e-12)


def test_delta_orthogonal_with_stride_and_channel_changes_keeps_the_second_moment() -> None:
    x = torch.randn(4, 6, 11, 11, generator=generator(1))
    for out in (4, 6, 15):
        kernel = init.delta_orthogonal_(torch.empty(out, 6, 3, 3), generator=generator())
        y = nn.functional.conv2d(x, kernel, stride=2, padding=1)
        read = x[:, :, ::2, ::2]
        if out >= 6:
            assert float(y.square().mean()) == pytest.approx(float(read.square().mean()), rel=1e-5)
        else:
            count = y.numel()
            assert float(y.square().mean()) == pytest.approx(1, rel=SIGMAS * math.sqrt(2 / count))


def test_chrono_spreads_the_memory_of_the_forget_gates() -> None:
    """f = σ(b) with e^b uniform on (1, t_max - 1): SciPy's Kolmogorov-Smirnov test of the law."""
    bias = init.chrono_(torch.empty(4 * 2000), 100.0, generator())
    times = bias[2000:4000].double().exp()
    assert torch.equal(bias[:2000], -bias[2000:4000])
    assert not bias[4000:].any()
    assert stats.kstest(times.numpy(), stats.uniform(1, 98).cdf).pvalue > 1e-4


def test_icnr_starts_as_nearest_neighbour_upscaling() -> None:
    kernel = init.icnr_(torch.empty(8, 3, 3, 3), 2, generator())
    x = torch.randn(1, 3, 5, 5, generator=generator(1))
    small = nn.functional.conv2d(x, kernel, padding=1)[:, ::4]
    upscaled = nn.functional.pixel_shuffle(nn.functional.conv2d(x, kernel, padding=1), 2)
    assert torch.allclose(upscaled, nn.functional.interpolate(small, scale_factor=2, mode="nearest"))


def test_siren_gives_sines_a_unit_normal_after_the_first_layer() -> None:
    """Coordinates in [-1, 1]² spread the first sine's phase, so the next has variance one (asymptotic)."""
    torch.manual_seed(0)
    x = torch.rand(512, 2) * 2 - 1
    x = torch.sin(30 * x @ init.siren_uniform_(torch.empty(600, 2), first=True).T)
    z = 30 * x @ init.siren_uniform_(torch.empty(600, 600)).T
    # 600 neurons have independent weights; the samples they see are the same
    assert float(z.std()) == pytest.approx(1.0, rel=SIGMAS * sampling_error(600))
