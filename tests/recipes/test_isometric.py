"""Plain chains start as isometries: told by the Jacobians of real modules."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.flow.chains import chains_of
from isometry.flow.tracing import study
from isometry.plans import Plan
from isometry.recipes.base import Choice, Subject
from isometry.recipes.isometric import plain_choices
from isometry.recipes.operating import logits_size


class Pointwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(widths: list[int], function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), Pointwise(function)]
    return nn.Sequential(*layers[:-1])


def initialise(model: nn.Module, x: Tensor) -> Plan:
    found = isometry.init_(model, x, recipe="isometric")
    model.double()
    return found


def plain(model: nn.Module, x: Tensor) -> dict[str, Choice]:
    studied = study(model, x)
    return plain_choices(Subject(model=model, roles=studied.roles, source=model, inputs=x))


def unit(*shape: int) -> Tensor:
    """Normal numbers with a mean square of exactly one."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x / x.square().mean().sqrt()


def singular_values(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def check_flat(
    model: Callable[[Tensor], Tensor], x: Tensor, rank: int, *, factor: float = 1.0 + 1e-4, rest: float = 1e-6
) -> None:
    """Check that all singular values but those that a narrow passage takes are one number, up to a factor."""
    values = singular_values(model, x.double())
    middle = float(values[:rank].log().mean().exp())
    assert float(values[0]) < middle * factor
    assert float(values[rank - 1]) > middle / factor
    assert float(values[rank:].sum()) < rest * middle


LINEAR = {
    "relu": F.relu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "softplus": F.softplus,
}


@pytest.mark.parametrize("name", LINEAR)
def test_mirrored_chains_are_exactly_isometric(name: str) -> None:
    widths = [20, 41, 300, 77, 64, 64, 50, 12]
    model = mlp(widths, LINEAR[name])
    x = unit(64, 20)
    initialise(model, x)
    check_flat(model, x[:1], 12)
    logits = model(x.double())
    assert float(logits.detach().std()) == pytest.approx(logits_size(12), rel=0.1)  # 64·12 numbers


@pytest.mark.parametrize("function", [torch.tanh, torch.sin, F.mish, F.elu, torch.sigmoid, F.selu])
def test_other_activations_stay_within_a_factor_two(function: Callable[[Tensor], Tensor]) -> None:
    model = mlp([100] * 31, function)
    x = unit(16, 100)
    initialise(model, x)
    # Behind mirrored pairs 50 coordinates are left. The signal's own direction is damped where ψ flattens.
    rank = 99 if function in (torch.tanh, torch.sin) else 49
    check_flat(model, x[:1], rank, factor=2.2, rest=0.3)


@pytest.mark.parametrize(("layers", "excess"), [(12, 0.01), (91, 0.03), (331, 0.1)])
def test_the_head_of_a_deep_chain_begins_larger(layers: int, excess: float) -> None:
    model = mlp([64] * layers + [10], F.relu)
    x = unit(512, 64)
    initialise(model, x)
    logits = model(x.double()).detach()
    assert float(logits.std()) == pytest.approx(logits_size(10, layers - 1), rel=0.1)
    loss = float((logits.logsumexp(-1) - logits.mean(-1)).mean())
    assert loss / math.log(10) - 1 == pytest.approx(excess, rel=0.2)


@pytest.mark.parametrize("function", [F.relu, torch.tanh, F.mish])
def test_a_thousand_layers_keep_signals_and_gradients(function: Callable[[Tensor], Tensor]) -> None:
    model = mlp([32] * 1000 + [10], function)
    x = unit(64, 32)
    initialise(model, x)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    seen: list[Tensor] = []
    for layer in layers[:-1]:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    out = model(x.double())
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    for values in (seen, torch.autograd.grad(out, seen, weights)):
        sizes = torch.stack([t.detach().square().mean().sqrt() for t in values])
        assert len(sizes) == 999
        assert float(sizes.max() / sizes[0]) < 2
        assert float(sizes.min() / sizes[0]) > 0.5


class Bare(nn.Module):
    """Functional code with parameters of its own, (in, out), registered out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Parameter(torch.zeros(24, 6))
        self.shift = nn.Parameter(torch.ones(24))
        self.middle = nn.Parameter(torch.zeros(31, 24))
        self.first = nn.Parameter(torch.zeros(6, 31))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x @ self.first)
        x = x @ self.middle + self.shift
        return (x * torch.sigmoid(x)) @ self.last


def test_functional_code_with_bare_parameters() -> None:
    model = Bare()
    x = unit(32, 6)
    found = initialise(model, x)
    check_flat(model, x[:1], 6)
    assert float(model.shift.detach().abs().max()) == 0
    assert "mirrored" in found["first"].reason


class Images(nn.Module):
    """Convolutions with strides, channels that change, and a flattened head."""

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.channels_last = last
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(2, 9, 3, padding=1),
                nn.Conv2d(9, 33, 3, stride=2, padding=1),
                nn.Conv2d(33, 40, (4, 2), stride=2, padding=(1, 0)),
            ]
        )
        self.head = nn.Linear(40 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        if self.channels_last:
            x = x.permute(0, 2, 3, 1)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_strided_convolutions_and_flattening(last: bool) -> None:
    """Strided kernels tile what they read, so that 2·64 inputs reach the 20·4 pairs at the end."""
    model = Images(last=last)
    x = unit(8, 2, 8, 8)
    initialise(model, x)
    check_flat(model, x[:1], 5)
    assert int(model.convs[0].weight.count_nonzero()) == 9 * 2, "one tap"
    assert bool((model.convs[1].weight[..., 1:, 1:] != 0).any(dim=(0, 1)).all()), "four taps"
    assert not bool(model.convs[1].weight[..., 0, :].any())


def test_pooling_keeps_mirrored_chains_linear() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    x = unit(8, 1, 8, 8)
    initialise(model, x)
    with torch.no_grad():
        assert torch.allclose(model(-2 * x.double()), -2 * model(x.double()), atol=1e-9)


def test_kernels_before_a_pooling_read_neighbours() -> None:
    """An overlapping box with orthonormal columns is a tight frame: flat but for border pixels."""
    model = nn.Sequential(
        nn.Conv2d(2, 40, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(40, 40, 3, padding=1),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(40 * 9, 4),
    )
    x = unit(8, 2, 6, 6)
    found = initialise(model, x)
    assert "on 9 taps that overlap" in found["0.weight"].reason
    assert "on one tap" in found["2.weight"].reason
    inside = F.pad(x[:1, :, 1:-1, 1:-1], (1, 1, 1, 1)).double()
    front = torch.autograd.functional.jacobian(
        lambda v: model[:3](F.pad(v, (1, 1, 1, 1))), inside[..., 1:-1, 1:-1]
    )
    values = torch.linalg.svdvals(front.reshape(-1, 2 * 16))
    assert float(values.max() / values.min()) < 1 + 1e-4
    with torch.no_grad():
        sizes = [float(model[:n](x.double()).square().mean().sqrt()) for n in (1, 3)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    assert sizes[0] == pytest.approx(1, rel=0.2), "border pixels are read by fewer"


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(10, 32)
        self.deep = nn.Linear(32, 40)
        self.left, self.right = nn.Linear(40, 3), nn.Linear(40, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.deep(F.gelu(self.trunk(x))))
        return self.left(x), F.log_softmax(self.right(x), -1)


def test_two_heads_on_one_trunk() -> None:
    model = Heads()
    x = unit(32, 10)
    found = initialise(model, x)
    check_flat(lambda v: model(v)[0], x[:1], 3)
    assert "small logits" in found["right.weight"].reason


def test_an_even_activation_is_at_the_edge_of_chaos() -> None:
    """cos: σ_w² = 1/E[sin²(√q z)] with q = σ_w²·E[cos²(√q z)], solved here by iteration."""
    model = mlp([64] * 20 + [10], torch.cos)
    for layer in model[::2]:
        layer.bias = None  # a bias would move cos to where it is odd
    found = isometry.init_(model, unit(64, 64), recipe="isometric")
    q = 1.0
    for _ in range(1000):
        q = (1 + math.exp(-2 * q)) / (1 - math.exp(-2 * q))
    sigma = math.sqrt(2 / (1 - math.exp(-2 * q)))
    assert f"σ_w = {sigma:.4g}" in found["4.weight"].reason
    assert "cos behind 0.weight is even" in found["4.weight"].reason
    assert any("told apart for" in note for note in found.notes)
    rows = model[4].weight.detach()
    assert float(rows.square().sum(1).mean().sqrt()) == pytest.approx(sigma, rel=1e-5)


def shifted(x: Tensor) -> Tensor:
    return torch.asinh(x) + 0.25 * torch.exp(-x * x)


@pytest.mark.parametrize(("function", "centre"), [(torch.cos, -math.pi / 2), (shifted, None), (F.mish, 0.0)])
def test_biases_move_units_to_where_their_activation_is_zero(function, centre) -> None:
    model = mlp([64] * 20 + [10], function)
    x = unit(64, 64)
    found = isometry.init_(model, x, recipe="isometric")
    bias = model[4].bias.detach()
    if centre is None:
        assert float(function(bias).abs().max()) < 1e-6
        assert "is zero" in found["4.bias"].reason
    else:
        assert bias.tolist() == pytest.approx([centre] * 64)
    model.double()
    check_flat(model, x[:1], 10, factor=2.0)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()], "2 blocks"),
        ([nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU()], "transposed"),
        ([nn.Conv2d(4, 1, 3), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.ReLU()], "one unit"),
    ],
)
def test_what_cannot_be_woven_says_why(layers: list[nn.Module], reason: str) -> None:
    model = nn.Sequential(*layers, nn.Conv2d(layers[2].out_channels, 2, 3))
    found = isometry.plan(model, unit(2, 4, 9, 9), recipe="isometric")
    assert reason in found["0.weight"].reason
    assert any(reason in note for note in found.notes)
    assert all(row.marks == ("refused",) for row in found if "weight" in row.name)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_auto_leaves_out_branches_norms_and_shallow_chains() -> None:
    deep = mlp([12, 24, 24, 12], F.relu)
    model = nn.Sequential(
        nn.Linear(12, 12),
        Residual(mlp([12, 24, 24, 12], F.relu)),
        nn.LayerNorm(12),
        nn.Linear(12, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        *deep,
    )
    assert sorted(plain(model, unit(16, 12))) == ["10.weight", "6.weight", "8.weight"]
    shallow = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert plain(shallow, unit(4, 4)) == {}
    tied = nn.Linear(8, 8)
    twice = nn.Sequential(tied, nn.ReLU(), tied, nn.ReLU(), nn.Linear(8, 2))
    assert plain(twice, unit(4, 8)) == {}


class Squeezed(nn.Module):
    """Fire modules: two parallel convolutions, side by side, behind a narrow one; and a dense block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.narrow = nn.ModuleList([nn.Conv2d(32, 16, 1) for _ in range(6)])
        self.small = nn.ModuleList([nn.Conv2d(16, 20, 1) for _ in range(6)])
        self.large = nn.ModuleList([nn.Conv2d(16, 12, 3, padding=1) for _ in range(6)])
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for narrow, small, large in zip(self.narrow, self.small, self.large, strict=True):
            x = F.relu(narrow(x))
            x = torch.cat([F.relu(small(x)), F.relu(large(x))], dim=1)
        return self.head(x.flatten(1))


def test_concatenations_keep_sizes() -> None:
    model = Squeezed()
    x = unit(16, 3, 4, 4)
    found = initialise(model, x)
    seen: list[Tensor] = []
    for narrow in model.narrow:
        narrow.register_forward_hook(lambda _, __, out: seen.append(out))
    out = model(x.double())
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    for values in (seen, torch.autograd.grad(out, seen, weights)):
        sizes = torch.stack([t.detach().square().mean().sqrt() for t in values])
        assert 0.5 < float(sizes.min() / sizes[0]) <= float(sizes.max() / sizes[0]) < 2
    assert "behind a concatenation of 2" in found["narrow.3.weight"].reason
    assert torch.allclose(model(-x.double()), -out, atol=1e-9)


class Grown(nn.Module):
    """Every layer reads all before it, nested concatenations and the input among them."""

    def __init__(self, *, with_input: bool) -> None:
        super().__init__()
        self.with_input = with_input
        self.first = nn.Linear(8, 12)
        self.layers = nn.ModuleList([nn.Linear(12 + 8 * i + 8 * with_input, 8) for i in range(4)])
        self.head = nn.Linear(44 + 8 * with_input, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.first(x))
        if self.with_input:
            y = torch.cat([y, x], dim=-1)
        for layer in self.layers:
            y = torch.cat([y, F.gelu(layer(y))], dim=-1)
        return self.head(y)


def test_concatenations_that_grow() -> None:
    model = Grown(with_input=False)
    x = unit(64, 8)
    initialise(model, x)
    out = model(x.double()).detach()
    assert torch.allclose(model(-x.double()), -out, atol=1e-9)
    assert 0.4 < float(out.square().mean().sqrt()) / logits_size(5) < 2.5
    (chain,) = chains_of(study(model, x.double()).roles)
    assert [layer.role.name for layer in chain.layers[:2]] == ["first.weight", "layers.0.weight"]
    assert len(chain.layers) == 6
    plan = isometry.plan(Grown(with_input=True), x, recipe="isometric")
    assert "concatenation with input" in plan["first.weight"].reason
    assert plan["layers.3.weight"].marks == ("refused",)
