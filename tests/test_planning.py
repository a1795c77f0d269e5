import math

import pytest
import torch
from torch import nn

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.sampling import Constant, Normal


class Stack(nn.Module):
    """Two residual branches with functional activations."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Linear(20, width)
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.head = nn.Linear(width, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


def batch() -> torch.Tensor:
    return torch.randn(64, 20, generator=torch.Generator().manual_seed(5)) * 3.0


def sizes(model: nn.Module) -> dict[str, float]:
    return {row.name: row.forward.rms for row in isometry.measure(model, batch()) if row.kind == "Linear"}


def test_calibration_makes_the_measured_size_the_planned_one() -> None:
    model = Stack()
    plan = isometry.plan(model, batch(), calibrate=True, seed=2)
    plan.apply_(model, seed=2)
    found = sizes(model)
    assert found["stem"] == pytest.approx(1.0, rel=1e-3)  # the stream begins at one
    within = 2 ** (-1 / 3)  # one of two branches without norms
    assert found["ups.0"] == pytest.approx(within, rel=1e-3)
    assert found["ups.1"] == pytest.approx(within, rel=1e-3)
    assert found["downs.0"] == pytest.approx(0.3 * 2**-0.5 * within, rel=1e-3)
    assert found["head"] == pytest.approx(math.sqrt(0.06 * math.log(7)), rel=1e-3)
    assert plan["stem.weight"].marks == ("calibrated",)


def test_without_calibration_sizes_scatter_around_the_planned_ones() -> None:
    model = Stack()
    isometry.init_(model, batch(), seed=2)
    found = sizes(model)
    assert found["ups.0"] == pytest.approx(2 ** (-1 / 3), rel=0.3)
    assert abs(found["ups.0"] - 2 ** (-1 / 3)) > 1e-3


def test_real_inputs_of_any_size_are_taken_into_account() -> None:
    planned = isometry.plan(Stack(), batch())
    rms = batch().square().mean().sqrt().item()
    assert planned["stem.weight"].std == pytest.approx(20**-0.5 / rms, rel=0.02)


def test_overrides_by_name_and_role() -> None:
    plan = isometry.plan(Stack(), batch(), overrides={"stem.weight": Normal(0.5), "role:head": None})
    assert plan["stem.weight"].law == Normal(0.5)
    assert plan["head.weight"].law is None
    with pytest.raises(NotFoundError, match="stem"):
        isometry.plan(Stack(), batch(), overrides={"sten.weight": 0.1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "kaimin"}, "did you mean 'kaiming'"),
        ({"objective": "up"}, "objective must be one of"),
        ({"distribution": "gauss"}, "distribution must be one of"),
        ({"gain": 2.0}, "no option 'gain'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], words: str) -> None:
    model = Stack()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(InvalidValueError, match=words):
        isometry.init_(model, batch(), **options)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_failing_model_is_left_as_it_was() -> None:
    class Broken(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.stem(x)[:, :3])

    model = Broken()
    before = model.head.weight.clone()
    with pytest.raises(ModelError, match="head"):
        isometry.init_(model, batch())
    assert torch.equal(model.head.weight, before)


def test_init_wants_a_module_and_plan_takes_builders() -> None:
    with pytest.raises(InvalidTypeError, match="make the plan"):
        isometry.init_(Stack, batch())
    assert isometry.plan(Stack, batch())["head.weight"].role == "head"


def test_seeds_decide_the_values_and_nothing_else_does() -> None:
    one, two, other = Stack(), Stack(), Stack()
    isometry.init_(one, batch(), seed=1)
    torch.manual_seed(99)
    isometry.init_(two, batch(), seed=1)
    isometry.init_(other, batch(), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.stem.weight, other.stem.weight)


@pytest.mark.parametrize("family", ["uniform", "truncated_normal", "orthogonal"])
def test_the_distribution_changes_and_the_scale_stays(family: str) -> None:
    plain = isometry.plan(Stack(), batch())
    other = isometry.plan(Stack(), batch(), distribution=family)
    assert type(other["stem.weight"].law) is not type(plain["stem.weight"].law)
    assert other["stem.weight"].std == pytest.approx(plain["stem.weight"].std)


def test_unused_parameters_are_reported_and_kept() -> None:
    model = Stack()
    model.spare = nn.Linear(4, 4)
    plan = isometry.plan(model, batch())
    assert plan["spare.weight"].law is None
    assert plan["spare.weight"].marks == ("unused",)
    assert any(note.startswith("unused:") for note in plan.notes)


def test_biases_are_zero() -> None:
    plan = isometry.plan(Stack(), batch())
    assert all(row.law == Constant(0.0) for row in plan if row.name.endswith("bias"))


def test_a_mark_is_shown_once_however_often_it_is_earned():
    plan = isometry.plan(Stack(), batch(), recipe="lsuv", calibrate=True)
    assert all(len(set(row.marks)) == len(row.marks) for row in plan)
    assert sum(note.startswith("calibrated:") for note in plan.notes) == 1


def test_a_neutral_table_is_told_in_english():
    table = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    plan = isometry.plan(table, torch.arange(5), recipe="kaiming")
    assert plan["0.weight"].reason == "an embedding is a row of unit entries"
