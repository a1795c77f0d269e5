"""Mirrored chains: all singular values of input to output are one, at any depth and any widths."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError
from isometry.fans import fans
from isometry.initialisers import Mirrored
from isometry.initialisers.chain import Weight, mirrored_chain

ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], dict[str, object]]] = {
    "relu": (nn.ReLU, {"nonlinearity": "relu"}),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), {"nonlinearity": "leaky_relu", "a": 0.2}),
    "gelu": (nn.GELU, {"nonlinearity": nn.GELU()}),
    "silu": (nn.SiLU, {"nonlinearity": "silu"}),
    "hardswish": (nn.Hardswish, {"nonlinearity": nn.functional.hardswish}),
}
WIDTHS: dict[str, list[int]] = {
    "30 layers": [64, *[128] * 29, 64],
    "30 layers, wide ends": [200, *[128] * 29, 100],
    "30 layers, odd": [40, *[127] * 29, 12],
    "changing": [150, *[200, 128, 77] * 10, 50],
    "grows and shrinks": [20, 300, 77, 200, 10],
    "shrinks and grows": [50, 30, 128, 90],
    "300 layers": [64, *[128] * 299, 64],
}


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def singular_values(model: nn.Module, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def check_isometry(widths: Sequence[int], activation: str) -> None:
    build, options = ACTIVATIONS[activation]
    model = mlp(widths, build)
    Mirrored(seed=1, **options)(model)
    model.double()
    torch.manual_seed(0)
    x = torch.randn(widths[0], dtype=torch.float64)
    values = singular_values(model, x)
    rank = min(widths[0], widths[-1], *[width // 2 for width in widths[1:-1]])
    assert torch.allclose(values[:rank], torch.ones(rank, dtype=x.dtype), atol=1e-4, rtol=0)
    assert torch.allclose(values[rank:], torch.zeros_like(values[rank:]), atol=1e-9)
    assert torch.allclose(model(-3 * x), -3 * model(x), atol=1e-9), "the network is linear at the start"
    if rank == widths[0]:
        assert float(model(x).detach().norm()) == pytest.approx(float(x.norm()), rel=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("key", WIDTHS)
def test_dynamical_isometry(key: str, activation: str) -> None:
    check_isometry(WIDTHS[key], activation)


def test_a_thousand_layers() -> None:
    check_isometry([64, *[128] * 999, 64], "gelu")


def test_the_input_reproduces_through_the_network() -> None:
    """With as many pairs as inputs the map is orthogonal: its transpose gives the input back."""
    model = mlp([64, *[128] * 30, 64], nn.GELU)
    Mirrored(nonlinearity="gelu")(model)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(model, x[0])
    assert torch.allclose(model(x) @ jacobian, x, atol=1e-4)


class ConvolutionsAndHead(nn.Module):
    def __init__(self, channels: Sequence[int], positions: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)])
        self.head = nn.Linear(channels[-1] * positions, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = nn.functional.gelu(conv(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("outputs", [10, 48], ids=["few outputs", "all outputs"])
@pytest.mark.parametrize("channels", [[3, 8, 8, 8], [3, 9, 13, 7]], ids=["even", "odd and changing"])
def test_convolutions_with_a_flattened_head(channels: list[int], outputs: int) -> None:
    """Delta kernels keep positions apart; the head reads channels times positions, 3·16 of them alive."""
    model = ConvolutionsAndHead(channels, 4 * 4, outputs)
    Mirrored(nonlinearity="gelu")(model)
    model.double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = singular_values(model, x)
    assert torch.allclose(values, torch.ones(outputs, dtype=x.dtype), atol=1e-5)


def test_convolutions_that_grow_keep_all_channels() -> None:
    layers = [nn.Conv1d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv1d(12, 31, 4, padding="same"), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv1d(31, 2, 1))
    with pytest.warns(UserWarning, match="even kernel"):
        model(torch.zeros(1, 2, 6))
    Mirrored(nonlinearity="relu")(model)
    model.double()
    values = singular_values(model, torch.randn(1, 2, 6, dtype=torch.float64))
    assert torch.allclose(values, torch.ones(12, dtype=torch.float64), atol=1e-5)


def test_gain_multiplies_every_layer() -> None:
    model = mlp([4, 8, 8, 4], nn.ReLU).double()
    Mirrored(gain=1.5)(model)
    values = singular_values(model, torch.ones(4, dtype=torch.float64))
    assert torch.allclose(values, torch.full_like(values, 1.5**3), rtol=1e-5)


def chain(*layers: nn.Module) -> list[Weight]:
    return [Weight(f"{i}.weight", layer, fans(layer)) for i, layer in enumerate(layers)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(4, 6), nn.Linear(7, 2)], "'1.weight' reads 7 units, but '0.weight'.* writes 6"),
        ([nn.Linear(4, 6), nn.Linear(12, 2)], "plain chain"),
        ([nn.Conv1d(4, 6, 1, groups=2), nn.Conv1d(6, 2, 1)], "cannot be mirrored"),
        ([nn.Linear(4, 6), nn.Bilinear(6, 1, 2)], "cannot be mirrored"),
        ([nn.Linear(4, 1), nn.Linear(1, 2)], "pairs"),
    ],
)
def test_what_is_no_chain(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        mirrored_chain(chain(*layers), slope=1.0, gain=1.0, seed=0)


def test_an_empty_chain() -> None:
    assert mirrored_chain([], slope=1.0, gain=1.0, seed=0) == []
