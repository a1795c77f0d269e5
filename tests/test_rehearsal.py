"""One run of a model's own code on records."""

import pytest
import torch
from torch import nn

from isometry.errors import ModelError
from isometry.flow.tracing import study
from isometry.rehearsal import Rehearsal, Stage


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Asking(nn.Module):
    """Its code needs a value that no record has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return y if float(y.sum()) < 1e9 else -y


def stage_of(source, inputs, **more) -> Stage:
    return Rehearsal[None](source, inputs, backward=False, **more).run(lambda stage: None)[0]


@pytest.mark.parametrize("make", [net, Asking])
def test_the_model_and_the_random_state_are_as_before(make):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    state, training = torch.get_rng_state(), [m.training for m in model.modules()]
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    kept = inputs.clone()
    study(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [m.training for m in model.modules()] == training
    assert torch.equal(inputs, kept)


def test_real_tensors_where_the_code_asks_for_values():
    stage = stage_of(Asking(), torch.randn(6, 4))
    assert stage.kind == "real"
    assert "does not run on meta" in str(stage.note)
    assert not next(stage.twin.parameters()).is_meta
    assert stage_of(net(), torch.randn(6, 4)).kind == "meta"


def test_real_tensors_where_they_are_preferred():
    assert stage_of(net(), torch.randn(6, 4), prefer="real").kind == "real"


def test_a_builder_runs_without_drawing_and_may_be_run_on_real_tensors():
    state = torch.get_rng_state()
    assert stage_of(net, torch.ones(6, 4)).kind == "meta"
    assert stage_of(Asking, torch.ones(6, 4)).kind == "real"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_values_needs_to_be_told_what_they_are():
    with torch.device("meta"):
        model = net()
    with pytest.raises(ModelError, match=r"0\.weight"):
        stage_of(model, torch.randn(6, 4))
    studied = study(model, torch.randn(6, 4))
    assert studied.roles["0.weight"].kind == "weight"
    assert studied.assumed == {
        "1.running_mean": "zero",
        "1.running_var": "one",
        "1.num_batches_tracked": "zero",
    }
    assert all(p.is_meta for p in model.parameters())


def test_a_model_that_fails_is_named_by_its_module_and_left_alone():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            return self.inner(x)

    model = Broken()
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match=r"'inner' \(Linear\)"):
        study(model, torch.ones(6, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.inner._forward_hooks


class Dropping(nn.Module):
    """Layers that chance leaves out, written both ways round."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(16))

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            kept = torch.rand(1) > 0.5 if number % 2 else not torch.rand([]) < 0.5
            x = torch.tanh(layer(x)) if kept else x
        return x


def test_layers_that_chance_may_drop_all_run():
    roles = study(Dropping(), "8x4").roles.by_name.values()
    assert "unused" not in {role.kind for role in roles}


class Halving(nn.Module):
    """Its code asks for the value of a parameter, which is known because all its entries are one number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.layer = nn.Parameter(torch.full((3,), 0.5)), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * (2.0 if float((self.factor * 2).sum()) == 3.0 else 1.0)


@pytest.mark.parametrize("make", [net, Halving])
def test_without_predictions_the_same_operations_run(make):
    def ops(predicted: bool) -> list[str]:
        seen: list[str] = []

        def begin(stage: Stage) -> None:
            assert stage.kind == "meta"
            seen.clear()  # the first run may fail
            stage.interpreter.observer = lambda func, *_: seen.append(str(func))

        Rehearsal[None](make(), "8x4", backward=False, predicted=predicted).run(begin)
        return seen

    assert ops(predicted=False) == ops(predicted=True)
