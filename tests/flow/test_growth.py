"""How what a branch adds follows its stream: by the power that a run on smaller streams shows."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isometry.flow.growth import growth_of
from isometry.flow.tracing import study

GATE, UP, DOWN = (torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))

BRANCHES = {
    "linear": (lambda x: x, 1),
    "gelu": (F.gelu, 1),
    "tanh": (torch.tanh, 1),
    "gated": (lambda x: F.silu(x @ GATE) * x, 2),
    "gated by a sigmoid": (lambda x: torch.sigmoid(x @ GATE) * x, 1),
    "gelu written out": (lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x**3))), 1),
    "square": (lambda x: F.relu(x) ** 2, 2),
    "product with itself": (lambda x: x * x, 2),
    "softmax": (lambda x: torch.softmax(x, -1), 0),
    "attention": (lambda x: torch.softmax(x @ x.transpose(-1, -2), -1) @ x, 1),
    "norm": (lambda x: F.silu(F.layer_norm(x, (8,), eps=1e-12) @ GATE), 0),
    "norm by hand": (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-9), 0),
}


class Branch(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.up, self.down = function, nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return x + self.down(self.function(self.up(x)))


@pytest.mark.parametrize("name", BRANCHES)
def test_the_power_is_what_a_smaller_stream_makes_of_the_branch(name):
    function, power = BRANCHES[name]
    model = Branch(function)
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    roles = study(model, x).roles
    (residual,) = roles.streams.residuals.values()
    assert growth_of(roles.flow, residual) == power
    with torch.no_grad():
        sizes = [(model(c * x) - c * x).norm().item() for c in (1e-3, 1e-2)]
    assert math.log10(sizes[1] / sizes[0]) == pytest.approx(power, abs=0.1)
