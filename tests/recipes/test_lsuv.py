"""LSUV: after it has been applied, what every weight gives on the batch has unit size."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.init.channels import PerChannel
from isometry.sampling import Constant


class Attention(nn.Module):
    """Nothing that a hook on a module would see: bare parameters, fused projections, functional code."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.inside = nn.Parameter(torch.randn(3 * width, width))
        self.outside = nn.Parameter(torch.randn(width, width))
        self.head = nn.Linear(width, 5)

    def outputs(self, x: Tensor) -> list[Tensor]:
        n, t, d = x.shape
        mixed = F.linear(x, self.inside)
        q, k, v = mixed.view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        out = F.linear(y, self.outside)
        return [mixed, out, self.head(F.gelu(x + out))]

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 12, 3, groups=2)
        self.third = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)

    def outputs(self, x: Tensor) -> list[Tensor]:
        a = self.first(x)
        b = self.second(F.relu(a))
        c = self.third(F.relu(b))
        return [a, b, c, self.head(F.relu(c).mean((2, 3)))]

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1]


def sample(*shape: int) -> Tensor:
    return 3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.5


def rms(x: Tensor, *dims: int) -> Tensor:
    return x.detach().square().mean(dims).sqrt() if dims else x.detach().square().mean().sqrt()


@pytest.mark.parametrize(("model", "x"), [(Attention, (6, 7, 12)), (Convolutions, (5, 3, 9, 9))])
@pytest.mark.parametrize("family", [None, "normal"])
def test_every_output_has_unit_size_on_the_batch(model, x, family) -> None:
    net, batch = model(), sample(*x)
    plan = isometry.plan(net, batch, recipe="lsuv", seed=3, distribution=family)
    plan.apply_(net, seed=3)
    for output in net.outputs(batch):
        assert float(rms(output)) == pytest.approx(1.0, abs=1e-3)
    assert any("seed 3" in note for note in plan.notes)


@pytest.mark.parametrize("family", [None, "normal"])
def test_each_channel_has_unit_size(family) -> None:
    net, batch = Convolutions(), sample(5, 3, 9, 9)
    plan = isometry.plan(net, batch, recipe="lsuv", per_channel=True, distribution=family)
    plan.apply_(net)
    *maps, head = net.outputs(batch)
    for output in maps:
        torch.testing.assert_close(rms(output, 0, 2, 3), torch.ones(output.shape[1]), rtol=1e-3, atol=0)
    assert float(rms(head)) == pytest.approx(1.0, abs=1e-3)
    assert isinstance(plan["second.weight"].law, PerChannel)
    # rows of equal squares: 8 of 27 entries are orthonormal
    assert plan["first.weight"].std == pytest.approx(
        float(rms(net.first.weight)), rel=0.2 if family else 1e-4
    )
    with pytest.raises(InvalidValueError, match="8 factors"):
        plan["first.weight"].law.check((7, 3, 3, 3))
    again = type(plan).from_json(plan.to_json())
    assert again.laws == plan.laws


def test_weights_are_orthonormal_times_a_number_and_the_rest_is_neutral() -> None:
    net = Attention()
    plan = isometry.init_(net, sample(6, 7, 12), recipe="lsuv")
    square = net.inside.detach().T @ net.inside.detach()
    torch.testing.assert_close(square / square[0, 0], torch.eye(12), rtol=1e-4, atol=1e-5)
    assert plan["head.bias"].law == Constant(0.0)
    assert plan["inside"].marks == ("calibrated",)


def test_a_plain_network_of_relu_gets_the_gain_that_the_paper_says() -> None:
    layers = [m for _ in range(6) for m in (nn.Linear(200, 200), nn.ReLU())]
    net = nn.Sequential(*layers)
    x = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    plan = isometry.plan(net, x, recipe="lsuv")
    # √2 behind a rectifier, 1 behind the input; with depth one direction of the batch prevails, whose size
    # one draw of 200 rows changes by 8 %
    assert plan["0.weight"].std * math.sqrt(200) == pytest.approx(1.0, rel=0.03)
    for k in range(2, 12, 2):
        assert plan[f"{k}.weight"].std * math.sqrt(200) == pytest.approx(math.sqrt(2), rel=0.15)


def test_no_values_and_no_signal() -> None:
    x = sample(4, 3)
    with pytest.raises(ModelError, match="on meta"):
        isometry.plan(nn.Linear(3, 2, device="meta"), x, recipe="lsuv")
    with pytest.raises(InvalidTypeError, match="per_channel"):
        isometry.plan(nn.Linear(3, 2), x, recipe="lsuv", per_channel="yes")
    net = nn.Sequential(nn.Linear(3, 2), nn.Threshold(9.0, 0.0), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    row = isometry.plan(net, torch.zeros(4, 3), recipe="lsuv")["2.weight"]
    assert row.marks == ("unsolved",)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert isometry.plan(lambda: nn.Linear(3, 2), x, recipe="lsuv")["weight"].marks == ("calibrated",)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_cells_and_computed_weights_are_seen(kind) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = kind(8, 12, batch_first=True)
            self.mixed = nn.utils.parametrizations.weight_norm(nn.Linear(12, 16))
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.mixed(self.cells(x)[0][:, -1])
            return self.head(torch.relu(self.seen))

    net, batch = Recurrent(), sample(4, 6, 8)
    plan = isometry.init_(net, batch, recipe="lsuv")
    assert plan["cells.weight_ih_l0"].marks == ("calibrated",)
    assert float(rms(net(batch))) == pytest.approx(1.0, abs=1e-3)
    assert float(rms(net.seen)) == pytest.approx(1.0, abs=1e-3)
