"""Models and inputs as training scripts have them, and what is said where they do not fit together."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError


class Residual(nn.Module):
    """Three residual branches, run again on the way back where that is asked for."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head, self.reentrant = nn.Linear(32, 4), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if self.reentrant else x
        for branch in self.branches:
            if self.reentrant is None:
                x = x + torch.relu(branch(x))
            else:
                added = checkpoint(nn.Sequential(branch, nn.ReLU()), x, use_reentrant=self.reentrant)
                x = x + added
        return self.head(x)


class Batched(nn.Module):
    """Takes its batch as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 3)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.map(batch["x"])


class Yielding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> object:
        yield self.map(x)


class Symmetric(nn.Module):
    """A parametrisation without inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu() + x.triu(1).T


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_run_again_on_the_way_back_are_called_once(reentrant: bool) -> None:
    plain, again = isometry.predict(Residual(), "8x32"), isometry.predict(Residual(reentrant), "8x32")
    assert again.notes == plain.notes == ()
    for row in plain:
        if row.kind == "Linear":
            assert again[row.name].forward == row.forward
            assert again[row.name].backward == row.backward
    assert again.parameters == plain.parameters


@pytest.mark.parametrize("act", [isometry.plan, isometry.init_, isometry.predict, isometry.measure])
@pytest.mark.parametrize(
    ("model", "inputs", "error", "words"),
    [
        (Batched(), {"x": torch.ones(2, 5)}, ModelError, r"model\(x=Tensor\), and a dict is model\(\*\*inp"),
        (
            nn.Linear(5, 3),
            (torch.ones(2, 5), torch.ones(2)),
            ModelError,
            r"model\(Tensor, Tensor\), and a tu",
        ),
        (nn.Linear(5, 3), (2, 5), ModelError, 'random inputs of a shape are written "2x5"'),
        (nn.Linear(5, 3), [2, 5], InvalidTypeError, "a list is read as a loader"),
        (nn.Linear(5, 3), np.ones((2, 5)), InvalidTypeError, "torch.from_numpy"),
        (Yielding(), "2x5", ModelError, "returned a generator"),
    ],
)
def test_errors_say_what_to_do(act, model, inputs, error, words) -> None:
    with pytest.raises(error, match=words):
        act(model, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("act", [isometry.plan, isometry.init_, isometry.predict, isometry.measure])
def test_traced_models_are_refused(act) -> None:
    with pytest.raises(ModelError, match="scripted model"):
        act(torch.jit.trace(nn.Linear(5, 3), torch.ones(2, 5)), "2x5")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("act", [isometry.plan, isometry.init_, isometry.predict, isometry.measure])
def test_a_traced_part_is_named(act) -> None:
    model = nn.Sequential(nn.Linear(5, 3), torch.jit.trace(nn.Linear(3, 3), torch.ones(2, 3)))
    with pytest.raises(ModelError, match="module '1' is a scripted model without hooks"):
        act(model, "2x5")


def test_a_compiled_part_is_predicted_like_the_module_itself() -> None:
    def build(wrap) -> nn.Module:
        part = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
        return nn.Sequential(nn.Linear(5, 16), wrap(part), nn.Linear(64, 3))

    def run_by_the_compiler(graph, inputs):
        raise AssertionError("compiled")

    told = isometry.predict(
        lambda: build(lambda part: torch.compile(part, backend=run_by_the_compiler)), "8x5"
    )
    plain = isometry.predict(lambda: build(lambda part: part), "8x5")
    assert told.notes == plain.notes
    assert [row.forward for row in told] == [row.forward for row in plain]
    assert [row.backward for row in told.parameters] == [row.backward for row in plain.parameters]


def test_a_batch_as_one_argument_is_a_tuple() -> None:
    assert isometry.plan(Batched(), ({"x": torch.ones(2, 5)},))["map.weight"].std > 0


def test_measuring_needs_values() -> None:
    with pytest.raises(InvalidValueError, match=r"inputs\[0\] is on the meta device"):
        isometry.measure(nn.Linear(5, 3), torch.empty(2, 5, device="meta"))


def test_a_seed_is_checked_before_anything_runs() -> None:
    with pytest.raises(InvalidTypeError, match="seed must be an integer"):
        isometry.plan(nn.Linear(5, 3), "2x5", seed="one")  # type: ignore[arg-type]


def test_a_loader_that_shuffles_leaves_random_states_and_its_own_generator_as_they_are() -> None:
    data = TensorDataset(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)))
    own, model = torch.Generator().manual_seed(2), nn.Linear(5, 3)
    before = torch.get_rng_state(), own.get_state(), random.getstate()
    for act in (isometry.plan, isometry.predict, isometry.audit, isometry.init_):
        act(model, DataLoader(data, batch_size=10, shuffle=True))
        act(model, DataLoader(data, batch_size=10, shuffle=True, generator=own))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(own.get_state(), before[1])
    assert random.getstate() == before[2]


def test_a_weight_whose_parametrisation_has_no_inverse_is_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    parametrize.register_parametrization(model[2], "weight", Symmetric())
    before = model[2].weight.detach().clone()
    plan = isometry.init_(model, "32x8")
    assert plan["2.weight"].law is None
    assert "no right_inverse" in plan["2.weight"].reason
    assert torch.equal(model[2].weight, before)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_units_are_planned() -> None:
    model = nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 3))
    assert isometry.plan(model, "2x4")["2.weight"].marks == ("unused",)
