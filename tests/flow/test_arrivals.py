"""What a weight reads, told by the graph: activations by name or by hand, norms, sums, products, loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isometry.flow.arrivals import Arrival, arrival_of
from isometry.flow.tracing import study
from isometry.gain import gain


def _arrivals(model: nn.Module, x: torch.Tensor) -> dict[str, list[Arrival]]:
    roles = study(model, x).roles
    return {
        r.name: [arrival_of(roles.flow, u.node) for u in r.uses if u.kind == "weight"]
        for r in roles.by_name.values()
        if r.kind == "weight"
    }


class _Between(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, function, width: int = 8, read: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(6, width), nn.Linear(read, 4), function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


def _tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("function", "like"),
    [
        (F.relu, "relu"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (_tanh_gelu, nn.GELU(approximate="tanh")),
        (lambda x: math.sqrt(2) * F.relu(x), lambda x: math.sqrt(2) * torch.relu(x)),
        (lambda x: F.dropout(F.relu(x), 0.5, training=False), "relu"),
        (lambda x: torch.sin(30 * x), lambda x: torch.sin(30 * x)),
        (lambda x: x + torch.sin(x) ** 2, lambda x: x + torch.sin(x) ** 2),
    ],
)
def test_an_activation_is_found_however_it_is_written(function, like):
    first, second = (v[0] for v in _arrivals(_Between(function), torch.randn(3, 6)).values())
    assert first.kind == "input"
    assert second.kind == "activation"
    assert second.function is not None
    assert gain(second.function) == pytest.approx(gain(like), rel=1e-6)


def test_a_gated_product_tells_the_function_of_its_gate():
    def swiglu(x):
        a, b = x.chunk(2, -1)
        return F.silu(a) * b

    arrival = _arrivals(_Between(swiglu, 16, 8), torch.randn(3, 6))["second.weight"][0]
    assert arrival.kind == "product"
    assert gain(arrival.function, gated=True) == pytest.approx(gain("swiglu"))
    bilinear = _arrivals(_Between(lambda x: x[:, :8] * x[:, 8:], 16, 8), torch.randn(3, 6))
    assert bilinear["second.weight"][0] == Arrival("product", "a product")


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: F.layer_norm(x, (8,)), "norm"),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), "norm"),
        (lambda x: x, "linear"),
        (lambda x: x.view(3, 2, 4).transpose(1, 2).reshape(3, 8), "linear"),
        (lambda x: (x @ x.T / 3).softmax(-1) @ x, "average"),
    ],
)
def test_what_is_no_activation_is_told_apart(function, kind):
    assert _arrivals(_Between(function), torch.randn(3, 6))["second.weight"][0].kind == kind


def test_pooling_views_biases_and_concatenation_are_passed_through():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 2)
            self.scale, self.shift = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.zeros(4, 1, 1))

        def forward(self, x):
            h = F.elu(self.conv(x)) * self.scale + self.shift
            h = F.max_pool2d(h, 2).mean((2, 3))
            return self.head(torch.cat([h, h], 1))

    arrival = _arrivals(Pooled(), torch.randn(2, 3, 8, 8))["head.weight"][0]
    assert (arrival.kind, arrival.name) == ("activation", "elu")


def test_a_residual_sum_is_a_sum_and_an_activation_behind_it_an_activation():
    class Residual(nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.first, self.last, self.function = nn.Linear(6, 6), nn.Linear(6, 2), function

        def forward(self, x):
            return self.last(self.function(x + self.first(x)))

    assert _arrivals(Residual(lambda x: x), torch.randn(3, 6))["last.weight"][0].kind == "sum"
    assert _arrivals(Residual(F.relu), torch.randn(3, 6))["last.weight"][0].name == "relu"


def test_equal_functions_have_equal_keys_and_others_do_not():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))

        def forward(self, x):
            for layer, slope in zip(self.layers, (0.1, 0.1, 0.3, 0.3, 0.3), strict=True):
                x = F.leaky_relu(layer(x), slope)
            return x

    keys = [v[0].key for v in _arrivals(Deep(), torch.randn(3, 6)).values()]
    assert keys[1] == keys[2] != keys[3] == keys[4]


def test_a_loop_reads_its_own_state():
    arrivals = _arrivals(nn.LSTM(4, 5), torch.randn(7, 2, 4))
    assert arrivals["weight_ih_l0"][0].kind == "input"
    assert arrivals["weight_hh_l0"][-1] == Arrival("product", "a product")


def test_a_tied_table_has_the_fans_of_the_head():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, i):
            return self.head(torch.tanh(self.table(i)))

    role = study(Tied(), torch.randint(11, (2, 3))).roles["table.weight"]
    assert (role.fans.forward, role.fans.backward) == (6.0, 11.0)
