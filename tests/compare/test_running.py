import math

import pytest
import torch
from torch import nn

from isometry.compare import compare
from isometry.compare.contenders import STARTS, contender
from isometry.compare.training import Budget, train
from isometry.datasets import Data, characters, digits
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError


def build(depth=3, width=24, activation=nn.ReLU):
    layers = [nn.Linear(64, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def test_a_run_equals_training_the_same_start_alone():
    found = compare(build, "digits", inits=("torch", "kaiming"), lr=0.1, steps=8, seeds=(3,))
    torch.manual_seed(3)
    alone = build()
    contender("kaiming", lambda: "relu").initialise(alone, 3)
    assert found["kaiming"].run == train(alone, digits(), lr=0.1, budget=Budget(steps=8), seed=3)


def test_a_start_does_not_depend_on_its_company_or_its_place():
    alone = compare(build, "digits", inits=("xavier",), steps=5)
    together = compare(build, "digits", inits=("standard_normal", "torch", "xavier"), steps=5)
    assert alone["xavier"].runs == together["xavier"].runs
    assert alone["xavier"].profile == together["xavier"].profile


def test_the_builder_is_called_once_per_start_and_seed_with_the_same_seed():
    seen = []

    def watched():
        seen.append(torch.rand(1).item())
        return build()

    compare(watched, "digits", inits=("torch", "kaiming"), steps=1, lr=(0.1, 0.2), seeds=(0, 1))
    # One call more to look at the model, then one per start and seed; learning rates share it.
    first, second = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    zero, one = torch.rand(1, generator=first).item(), torch.rand(1, generator=second).item()
    assert seen == [zero, zero, one, zero, one]


def test_the_global_random_state_is_as_before():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    compare(build, "digits", inits=STARTS, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_is_copied_and_torch_is_the_weights_it_has():
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model[0].weight.mul_(3)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for given in (model, lambda: model):
        found = compare(given, "digits", inits=("torch", "kaiming"), steps=3)
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
        rms = kept["0.weight"].double().pow(2).mean().sqrt().item()
        assert found["torch"].profile["0.weight"].forward.rms == pytest.approx(rms, rel=1e-6)


def test_the_profile_is_that_of_the_first_batch_before_training():
    found = compare(build, "digits", inits=("kaiming",), steps=20, batch_size=50)
    model = build()
    contender("kaiming", lambda: "relu").initialise(model, 0)
    inputs, _ = next(digits().batches(50, seed=0))
    expected = model[0](inputs).double().pow(2).mean().sqrt().item()
    assert found["kaiming"].profile["0"].forward.rms == pytest.approx(expected, rel=1e-6)
    assert found["kaiming"].profile["0"].shape == (50, 24)


def test_every_start_keeps_its_best_learning_rate():
    found = compare(build, "digits", inits=("kaiming",), lr=(1e-5, 0.1, 1e6), steps=30)
    entry = found["kaiming"]
    assert [run.lr for run in entry.runs] == [1e-5, 0.1, 1e6]
    assert entry.lr == 0.1
    assert entry.runs[2].diverged is not None
    assert entry.run is entry.runs[1]


def test_where_all_rates_diverge_the_last_to_do_so_is_kept():
    found = compare(build, "digits", inits=("standard_normal",), lr=(1e6, 1.0), steps=30, diverge_above=100.0)
    diverged = {run.lr: run.diverged for run in found["standard_normal"].runs}
    assert None not in diverged.values()
    assert diverged[found["standard_normal"].lr] == max(diverged.values())


def test_mirrored_is_left_out_with_the_reason_where_it_does_not_exist():
    found = compare(lambda: build(activation=nn.Tanh), "digits", inits=("torch", "mirrored"), steps=1)
    assert [entry.name for entry in found] == ["torch"]
    [(name, reason)] = found.skipped
    assert name == "mirrored"
    assert "no mirrored slope" in reason
    assert "left out" in str(found.table())
    with pytest.raises(InvalidValueError, match="no start is left"):
        compare(lambda: build(activation=nn.Tanh), "digits", inits=("mirrored",), steps=1)


def test_the_activation_named_is_the_one_used():
    described = {
        activation: compare(build, "digits", inits=("kaiming",), steps=1, activation=activation)[
            0
        ].description
        for activation in (None, "selu")
    }
    assert "relu's gain 1.414" in described[None]
    assert "selu's gain 1" in described["selu"]


def test_deep_plain_networks_tell_the_story():
    """Depth 20: the standard normal start diverges at once, torch's fades, mirrored keeps all and learns."""
    found = compare(
        lambda: build(depth=20, width=64),
        "digits",
        inits=("standard_normal", "torch", "mirrored"),
        lr=0.03,
        steps=60,
    )
    assert found["standard_normal"].run.diverged == 1
    assert found["torch"].run.accuracy < 0.2
    assert found["torch"].evidence.gradient_ratio < 1e-6
    assert found["mirrored"].run.accuracy > 0.9
    assert found["mirrored"].evidence.forward_factor == pytest.approx(1, abs=1e-4)
    said = found.sentences()
    assert "diverged at step 1" in said["standard_normal"]
    assert "fades" in said["torch"]
    assert said["mirrored"].startswith("It learnt: 9")


def test_progress_is_counted_to_its_end_also_after_a_divergence():
    seen = []
    compare(build, "digits", inits=("standard_normal", "torch"), lr=(1e6, 0.1), steps=6, diverge_above=1e2,
            progress=lambda *news: seen.append(news))  # fmt: skip
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("torch", 24, 24)


def test_tensors_are_data_and_floats_are_values():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    found = compare(nn.Linear(3, 1), (x, x.sum(1, keepdim=True)), inits=("torch",), steps=100, lr=0.1)
    assert found.chance is None
    assert found[0].run.accuracy is None
    assert found[0].run.final_loss < 1e-3
    assert found.sentences()["torch"].startswith("It learnt (loss")


def test_inputs_of_another_number_than_targets_are_refused():
    with pytest.raises(InvalidValueError, match="as many targets as inputs"):
        compare(nn.Linear(3, 1), (torch.zeros(10, 3), torch.zeros(12, 1)), inits=("torch",), steps=1)
    with pytest.raises(InvalidValueError, match="as many targets as inputs"):
        compare(nn.Linear(3, 1), (torch.zeros(12, 3), torch.zeros(10, 1)), inits=("torch",), steps=1)


def test_a_start_that_fails_or_is_named_twice_is_reported():
    def broken(model):
        raise RuntimeError("no such layer")

    with pytest.raises(ModelError, match="the start 'broken' failed with RuntimeError: no such layer"):
        compare(build, "digits", inits=(broken,), steps=1)
    with pytest.raises(InvalidValueError, match="two starts are called 'torch'"):
        compare(build, "digits", inits=("torch", "torch"), steps=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((build, "digit"), NotFoundError, "did you mean 'digits'"),
        ((build, 3), InvalidTypeError, "data must be"),
        ((3, "digits"), InvalidTypeError, "build must be"),
        ((lambda: 3, "digits"), InvalidTypeError, "build returned a int"),
        ((lambda: 1 / 0, "digits"), ModelError, "build failed with ZeroDivisionError"),
        ((lambda: nn.Linear(7, 10), "digits"), ModelError, r"64x64 and 7x10"),
    ],
)
def test_bad_models_and_data_are_explained(arguments, error, message):
    with pytest.raises(error, match=message):
        compare(*arguments, inits=("torch",), steps=1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lr": 0.0}, InvalidValueError),
        ({"lr": ()}, InvalidValueError),
        ({"lr": math.nan}, InvalidValueError),
        ({"seeds": ()}, InvalidValueError),
        ({"steps": 0}, InvalidValueError),
        ({"inits": ()}, InvalidTypeError),
        ({"inits": "kaiming"}, InvalidTypeError),
        ({"threshold": 90}, InvalidValueError),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        compare(build, "digits", **{"inits": ("torch",), "steps": 1, **options})


def test_character_models_are_compared_too():
    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.act, self.head = (
                nn.Embedding(97, 12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 97)
            )  # fmt: skip

        def forward(self, tokens):
            return self.head(self.act(self.mix(self.table(tokens))))

    data = characters(block=16, modules=("heapq", "textwrap"))
    found = compare(Next, data, inits=("torch", "kaiming"), steps=3, lr=0.5)
    assert isinstance(data, Data)
    assert found.chance == pytest.approx(1 / data.classes)
    assert all(run.losses[0] == pytest.approx(math.log(97), rel=0.3) for e in found for run in e.runs)
