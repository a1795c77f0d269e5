import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.errors import IsometryWarning, ModelError
from isometry.init.structured import Gates
from isometry.sampling import Constant, Normal


class LowRank(nn.Module):
    """A frozen map and its low-rank adapter."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 2.0 * F.linear(self.a(x), self.b)


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle = LowRank(nn.Linear(12, 48)), LowRank(nn.Linear(48, 40))
        self.head = nn.Linear(40, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.stem(x)))))


class Twins(nn.Module):
    """A trained network and the one of its moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.online(x) - self.target(x).detach()).square().mean()


@pytest.mark.parametrize("recipe", ["auto", "kaiming", "lsuv", "isometric"])
def test_frozen_parameters_are_kept_by_every_recipe(recipe: str) -> None:
    model = Adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    plan = isometry.init_(model, "16x12", recipe=recipe)
    after = dict(model.named_parameters())
    assert len(before) == 4
    for name, value in before.items():
        assert torch.equal(after[name], value)
        assert plan[name].marks == ("frozen",)


def test_adapters_leave_the_frozen_function_as_it_is_and_are_solved_on_its_signal() -> None:
    model = Adapted()
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    stem = model.stem.base(x)
    plan = isometry.init_(model, x)
    assert plan["stem.b"].law == plan["middle.b"].law == Constant(0.0)
    assert torch.equal(model.stem(x), stem)
    read = torch.relu(stem)
    aimed = plan["middle.a.weight"].std * read.square().sum(1).mean().sqrt()
    assert float(aimed) == pytest.approx(1.0, rel=0.05)


def test_zeros_are_drawn_where_nothing_is_frozen() -> None:
    model = Adapted().requires_grad_(True)
    assert isometry.plan(model, "16x12")["stem.b"].std > 0


def test_overrides_write_frozen_parameters() -> None:
    plan = isometry.plan(Adapted(), "16x12", overrides={"stem.base.weight": 0.1})
    assert plan["stem.base.weight"].law == Normal(0.1)


def test_frozen_copies_are_told() -> None:
    model = Twins()
    with pytest.warns(IsometryWarning, match=r"target\.0\.weight is frozen and has the values of online\.0"):
        plan = isometry.init_(model, "16x12")
    assert plan["online.0.weight"].law is not None
    assert plan["target.0.weight"].law is None


def test_a_frozen_parameter_on_meta_says_what_to_do() -> None:
    plan = isometry.plan(Adapted, "16x12")
    with torch.device("meta"):
        model = Adapted()
    with pytest.raises(ModelError, match=r"stem\.base\.weight.*build the model with memory"):
        plan.apply_(model)


class Gated(nn.Module):
    """A recurrent layer with an open forget gate, behind a gate that begins almost closed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells = nn.LSTM(8, 16, batch_first=True)
        self.gate, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        nn.init.constant_(self.gate.bias, -2.0)
        nn.init.zeros_(self.cells.bias_ih_l0)
        nn.init.zeros_(self.cells.bias_hh_l0)
        nn.init.constant_(self.cells.bias_ih_l0.data[16:32], 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cells(x)
        return self.head(torch.sigmoid(self.gate(y)) * y)


@pytest.mark.parametrize("source", [Gated, Gated()])
def test_biases_that_the_code_sets_are_kept_by_auto(source: nn.Module) -> None:
    plan = isometry.plan(source, "4x5x8")
    assert plan["gate.bias"].law == Constant(-2.0)
    assert plan["cells.bias_ih_l0"].law == Gates((0.0, 1.0, 0.0, 0.0))
    assert plan["cells.bias_hh_l0"].law == plan["head.bias"].law == Constant(0.0)  # zero, random
    assert isometry.plan(source, "4x5x8", recipe="lecun")["gate.bias"].law == Constant(0.0)


def test_a_head_keeps_its_prior() -> None:
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    nn.init.constant_(model[2].bias, -4.6)
    isometry.init_(model, "16x12")
    assert model[2].bias.tolist() == pytest.approx([-4.6] * 3)


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_bias_does_not_count_for_the_scale_of_its_weight(calibrate: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(24 * 36, 5))
    nn.init.constant_(model[0].bias, 3.0)
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    plan = isometry.init_(model, x, calibrate=calibrate)
    product = model[0](x).detach() - 3.0
    assert plan["0.weight"].std == pytest.approx(27**-0.5, rel=0.2 if calibrate else 0.02)
    assert float(product.square().mean().sqrt()) == pytest.approx(1.0, rel=1e-3 if calibrate else 0.2)


class Modulated(nn.Module):
    """Blocks whose norms are shifted and scaled, and whose branches are gated, by a condition."""

    def __init__(self, *, zero: bool, width: int = 32) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.sets = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(4))
        self.head = nn.Linear(width, 5)
        if zero:
            for sets in self.sets:
                nn.init.zeros_(sets.weight)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        for maps, sets in zip(self.maps, self.sets, strict=True):
            shift, scale, gate = sets(F.silu(condition)).chunk(3, -1)
            x = x + gate * torch.tanh(maps(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift))
        return self.head(x)


@pytest.mark.parametrize("zero", [True, False])
def test_modulations_that_begin_at_zero_stay_so(zero):
    inputs = (torch.randn(64, 32), torch.randn(64, 32))
    plan = isometry.plan(lambda: Modulated(zero=zero), inputs)
    laws = {plan[f"sets.{i}.weight"].law for i in range(4)}
    assert (laws == {Constant(0.0)}) == zero
    assert all(plan[f"maps.{i}.weight"].std for i in range(4))
    assert plan["head.weight"].std


def test_weights_that_are_zero_because_memory_was_cleared_are_drawn():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = (nn.Parameter(torch.zeros(64, 64)) for _ in range(3))

        def forward(self, x):
            return (F.silu(x @ self.gate) * (x @ self.up)) @ self.down

    plan = isometry.plan(Gated(), "32x64")
    assert all(row.std for row in plan)


def test_matrices_whose_determinant_is_taken_are_kept():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.linalg.qr(torch.randn(8, 8))[0])
            self.inner, self.last = nn.Linear(4, 16), nn.Linear(16, 8)
            nn.init.zeros_(self.last.weight)

        def forward(self, x):
            x = x @ self.mixing
            kept, moved = x.chunk(2, -1)
            scale, shift = self.last(torch.relu(self.inner(kept))).chunk(2, -1)
            scale = torch.sigmoid(scale + 2.0)
            size = torch.linalg.slogdet(self.mixing)[1] + scale.log().sum(-1)
            return torch.cat([kept, moved * scale + shift], -1), size

    torch.manual_seed(0)
    plan = isometry.plan(Flow(), "32x8")
    assert plan["mixing"].law is None
    assert "determinant" in plan["mixing"].reason
    assert plan["last.weight"].law == Constant(0.0)
    assert plan["inner.weight"].std
