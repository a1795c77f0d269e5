import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.errors import IsometryWarning, ModelError
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
