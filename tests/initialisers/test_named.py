"""The contract of every initialiser over kinds of modules and dtypes, and what it does to a real signal."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isometry.fans import fans
from isometry.gain import gain
from isometry.initialisers import (
    DeltaOrthogonal,
    Kaiming,
    LeCun,
    Mirrored,
    Orthogonal,
    StandardNormal,
    VarianceScaling,
    Xavier,
)
from isometry.initialisers.base import Initialiser

SIGMAS = 5

# one row per kind of module: the module and the weights in it, by name
MODULES: dict[str, tuple[nn.Module, list[str]]] = {
    "linear": (nn.Linear(60, 140), ["weight"]),
    "bilinear": (nn.Bilinear(12, 20, 30), ["weight"]),
    "conv1d groups": (nn.Conv1d(24, 60, 5, groups=4), ["weight"]),
    "conv2d stride dilation": (nn.Conv2d(10, 30, (3, 5), stride=2, dilation=2), ["weight"]),
    "conv3d": (nn.Conv3d(6, 10, 3), ["weight"]),
    "conv transposed": (nn.ConvTranspose2d(20, 12, 5, stride=2, groups=2), ["weight"]),
    "lstm": (nn.LSTM(30, 20, proj_size=9), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
    "gru": (nn.GRU(30, 20), ["weight_ih_l0", "weight_hh_l0"]),
    "rnn cell": (nn.RNNCell(70, 50), ["weight_ih", "weight_hh"]),
    "attention": (nn.MultiheadAttention(48, 4), ["in_proj_weight", "out_proj.weight"]),
    "attention split": (
        nn.MultiheadAttention(48, 4, kdim=20, vdim=64),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight"],
    ),
}
# one row per initialiser: the initialiser, its gain and its mode; None: the std is 0.5 whatever the fans
INITIALISERS: dict[str, tuple[Initialiser, float, str | None]] = {
    "Kaiming": (Kaiming(), math.sqrt(2), "fan_in"),
    "Kaiming gelu fan_out": (
        Kaiming(nonlinearity="gelu", mode="fan_out"),
        gain("gelu", direction="backward"),
        "fan_out",
    ),
    "Kaiming swiglu": (Kaiming(nonlinearity="swiglu"), gain("swiglu"), "fan_in"),
    "Kaiming tanh fan_geo": (
        Kaiming(nonlinearity=nn.Tanh(), mode="fan_geo"),
        gain("tanh", direction="balanced"),
        "fan_geo",
    ),
    "Kaiming callable": (Kaiming(nonlinearity=lambda x: x.clamp(min=0)), math.sqrt(2), "fan_in"),
    "Kaiming slope, uniform": (Kaiming(a=1.0, distribution="uniform"), 1.0, "fan_in"),
    "Xavier": (Xavier(gain=1.3), 1.3, "fan_avg"),
    "LeCun truncated": (LeCun(distribution="truncated_normal"), 1.0, "fan_in"),
    "VarianceScaling": (VarianceScaling(gain=0.7), 0.7, "fan_in"),
    "VarianceScaling both": (
        VarianceScaling(gain=0.5, nonlinearity="relu", gated=True),
        math.sqrt(2) / 2,
        "fan_in",
    ),
    "Orthogonal": (Orthogonal(nonlinearity="relu"), math.sqrt(2), "fan_in"),
    "Orthogonal fan_out": (Orthogonal(mode="fan_out"), 1.0, "fan_out"),
    "DeltaOrthogonal": (DeltaOrthogonal(gain=1.1), 1.1, "fan_in"),
    "StandardNormal": (StandardNormal(std=0.5), 0.5, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("key", INITIALISERS)
def test_the_std_asked_for_is_the_std_drawn(key: str, kind: str, dtype: torch.dtype) -> None:
    init, factor, mode = INITIALISERS[key]
    module, names = MODULES[kind]
    module = module.to(dtype)
    init(module)
    for name in names:
        weight = module.get_parameter(name).detach()
        asked = factor if mode is None else factor / math.sqrt(fans(module, name).by_mode(mode))
        drawn = float(weight.double().square().mean().sqrt())
        exact = isinstance(init, Orthogonal)
        error = 8 * torch.finfo(dtype).eps if exact else SIGMAS * math.sqrt(2 / weight.numel()) / 2
        assert drawn == pytest.approx(asked, rel=error), name


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("init", [Orthogonal(), DeltaOrthogonal()], ids=["Orthogonal", "DeltaOrthogonal"])
def test_orthogonal_per_block(kind: str, init: Initialiser) -> None:
    """Each gate, group or projection by itself is a multiple of a semi-orthogonal matrix."""
    module, names = MODULES[kind]
    module = module.to(torch.float64)
    init(module)
    for name in names:
        known = fans(module, name)
        kernels = known.layout.kernels(module.get_parameter(name).detach())
        if isinstance(init, DeltaOrthogonal) and known.layout.taps:
            matrices = kernels.flatten(3).sum(3)
            assert kernels.count_nonzero() == matrices.count_nonzero()
        else:
            matrices = kernels.flatten(2)
        values = torch.linalg.svdvals(matrices)
        assert torch.allclose(values, values[:1, :1].expand_as(values), rtol=1e-9), name


def depth_profile(init: Initialiser, activation: nn.Module, *, depth: int = 20, width: int = 256) -> Tensor:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation)]
    model = nn.Sequential(*layers)
    init(model)
    x = torch.randn(512, width, generator=torch.Generator().manual_seed(0))
    squares = []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                squares.append(x.square().mean())
    return torch.stack(squares)


def test_relu_keeps_its_second_moment_and_standard_normal_explodes() -> None:
    """One layer changes log E[z²] by a fluctuation of variance about 5/width (He-initialised relu)."""
    kept = depth_profile(Kaiming(nonlinearity="relu"), nn.ReLU())
    assert float((kept / 2).log().abs().max()) < SIGMAS * math.sqrt(5 * 20 / 256)
    exploded = depth_profile(StandardNormal(), nn.ReLU(), depth=11)
    growth = float((exploded[-1] / exploded[0]).log()) / 10
    assert growth == pytest.approx(math.log(256 / 2), rel=0.05)


def test_input_gain_puts_the_first_activation_at_its_fixed_point() -> None:
    """tanh's gain belongs to inputs of variance one, which a first layer of gain one gives."""
    first = depth_profile(Kaiming(nonlinearity="tanh", input_gain=1.0), nn.Tanh(), depth=2)
    # E[z²] = 1 at the second layer because the first gives z ~ N(0, 1)
    assert float(first[0]) == pytest.approx(1.0, rel=SIGMAS * math.sqrt(2 / 256) * math.sqrt(2))
    assert float(first[1]) == pytest.approx(1.0, rel=SIGMAS * math.sqrt(5 / 256))
    without = depth_profile(Kaiming(nonlinearity="tanh"), nn.Tanh(), depth=1)
    assert float(without[0]) == pytest.approx(
        gain("tanh") ** 2, rel=SIGMAS * math.sqrt(2 / 256) * math.sqrt(2)
    )


def test_recurrent_gates_get_unit_pre_activations() -> None:
    """Through the real LSTM in its linear regime, where the cell is half the candidate's pre-activation."""
    torch.manual_seed(0)
    small = 1e-3
    squares = []
    for seed in range(30):
        cell = LeCun(seed=seed, forget_bias=0.0)(nn.LSTMCell(40, 25).double())
        x = small * torch.randn(64, 40, dtype=torch.float64)
        _, state = cell(x)
        squares.append(float((2 * state / small).detach().square().mean()))
    sample = torch.tensor(squares)
    assert abs(float(sample.mean()) - 1) < SIGMAS * float(sample.std()) / math.sqrt(len(squares))


def test_delta_orthogonal_convolutions_keep_the_signal_at_any_depth() -> None:
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(200)]
    model = DeltaOrthogonal()(nn.Sequential(*convs)).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(x).square().sum(1), x.square().sum(1), rtol=1e-3)


def test_mirrored_leaves_all_other_rules_alone() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    Mirrored()(model)
    assert not model[1].bias.any()
    assert (model[3].weight == 1).all()
    assert torch.equal(model[1].weight[:4], -model[1].weight[4:])
    assert torch.equal(model[4].weight[:, :4], -model[4].weight[:, 4:])


def test_a_single_layer_is_orthogonal() -> None:
    layer = Mirrored()(nn.Linear(5, 9))
    assert torch.allclose(layer.weight.T @ layer.weight, torch.eye(5), atol=1e-5)


def train_deep_gelu(init: Initialiser) -> tuple[nn.Sequential, list[float]]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in [(4, 17), *[(17, 17)] * 58, (17, 2)]:
        layers += [nn.Linear(before, after), nn.GELU()]
    model = nn.Sequential(*layers[:-1]).apply(init)
    x = torch.randn(256, 4)
    y = (x[:, 0] > 0).long()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    return model, losses


def test_mirrored_weights_train_a_plain_network_of_sixty_layers() -> None:
    """Where He initialisation stays at chance, ln 2 per sample."""
    model, losses = train_deep_gelu(Mirrored(nonlinearity="gelu"))
    assert losses[-1] < 0.2
    assert model[4].weight.grad[:, 16].any(), "the weights that read a spare unit (odd width) learn"
    _, stuck = train_deep_gelu(Kaiming(nonlinearity="gelu"))
    assert stuck[-1] > 0.6


def test_the_examples_of_the_documentation_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "initialisers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    torch.manual_seed(0)
    exec("\n".join(blocks), {})
