import math

import pytest
import torch
from torch import nn

from isometry.compare.training import Budget, Run, default_loss, train
from isometry.datasets import Data, digits
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError


def model(seed=0, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(dropout), nn.Linear(24, 10))


def regression(count=40):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    return Data(name="plane", train_inputs=x, train_targets=y, test_inputs=x, test_targets=y)


def test_a_run_equals_the_loop_one_would_write_by_hand():
    data, budget = digits(), Budget(steps=7, batch_size=32, evaluate_every=3)
    ours, theirs = model(), model()
    run = train(ours, data, lr=0.1, budget=budget, seed=5)
    stream, losses = data.batches(32, seed=5), []
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(7):
        x, y = next(stream)
        loss = nn.functional.cross_entropy(theirs(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert run.losses == tuple(losses)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert run.evaluated == (0, 3, 6, 7)
    right = theirs(data.test_inputs).argmax(1) == data.test_targets
    assert run.accuracy == int(right.sum()) / 360


def test_dropout_is_the_same_for_the_same_seed_and_the_global_state_stays():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    runs = [train(model(dropout=0.5), digits(), lr=0.1, budget=Budget(steps=5), seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1]
    assert runs[0].losses != runs[2].losses


def test_evaluation_leaves_the_mode_alone():
    net = model(dropout=0.5)
    net.train()
    net[2].eval()
    train(net, digits(), lr=0.1, budget=Budget(steps=2))
    assert net.training


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_every_named_optimiser_learns_a_plane(optimizer):
    net = nn.Linear(3, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    budget = Budget(steps=200, batch_size=20, optimizer=optimizer)
    run = train(net, regression(), lr=0.05, budget=budget)
    assert run.final_loss < run.losses[0] / 20
    assert run.accuracies == ()
    assert run.accuracy is None


def test_an_optimiser_of_ones_own_is_used():
    seen = []

    def make(parameters, lr):
        seen.append(lr)
        return torch.optim.RMSprop(parameters, lr=lr)

    train(model(), digits(), lr=0.01, budget=Budget(steps=1, optimizer=make))
    assert seen == [0.01]
    with pytest.raises(InvalidTypeError, match=r"must return a torch\.optim\.Optimizer"):
        train(model(), digits(), lr=0.01, budget=Budget(steps=1, optimizer=lambda parameters, lr: None))


def test_a_loss_beyond_the_level_ends_the_run_at_its_step():
    run = train(model(), digits(), lr=1e6, budget=Budget(steps=50))
    assert run.diverged is not None
    assert run.diverged == len(run.losses) <= 3
    assert not run.losses[-1] <= 1e3
    assert run.final_loss == math.inf
    assert run.accuracy is None


def test_nan_counts_as_diverged():
    class Nan(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.head = 0, nn.Linear(64, 10)

        def forward(self, x):
            if self.training:
                self.calls += 1
            return self.head(x) * (math.nan if self.calls == 3 else 1.0)

    run = train(Nan(), digits(), lr=0.1, budget=Budget(steps=9))
    assert run.diverged == 3
    assert math.isnan(run.losses[-1])


def test_a_model_broken_by_its_last_update_has_diverged():
    run = train(model(), digits(), lr=1e9, budget=Budget(steps=1))
    assert run.diverged == 1
    assert len(run.losses) == 1
    assert run.losses[0] < 10


def test_evaluation_goes_over_every_sample_once():
    x = torch.arange(1300.0).reshape(1300, 1)
    data = Data(
        name="thirds", train_inputs=x, train_targets=x * 0, test_inputs=x, test_targets=torch.zeros(1300, 1)
    )
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    run = train(net, data, lr=1e-12, budget=Budget(steps=1, diverge_above=1e9))
    assert run.test_losses[0] == pytest.approx(float(x.double().pow(2).mean()), rel=1e-6)


def test_sequence_targets_count_every_position():
    scores = torch.zeros(4, 7, 10)
    scores[..., 3] = 2.0
    targets = torch.full((4, 7), 3)
    expected = nn.functional.cross_entropy(scores.reshape(28, 10), targets.reshape(28))
    assert torch.equal(default_loss(scores, targets), expected)


def test_steps_to_is_the_first_evaluation_that_reaches_the_level():
    run = Run(lr=0.1, seed=0, losses=(1.0,), evaluated=(0, 10, 20, 30), accuracies=(0.1, 0.91, 0.8, 0.95),
              test_losses=(1.0,) * 4, diverged=None)  # fmt: skip
    assert (run.steps_to(0.9), run.steps_to(0.95), run.steps_to(0.99)) == (10, 30, None)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch_size": 2.5},
        {"evaluate_every": -1},
        {"diverge_above": math.nan},
        {"optimizer": "sdg"},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(options):
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        Budget(**options)


def test_outputs_that_do_not_fit_are_explained():
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ModelError, match=r"\(4, 'classes'\)"):
        default_loss(torch.zeros(5, 10), y)
    with pytest.raises(ModelError, match="returned a tuple"):
        default_loss((torch.zeros(4, 10),), y)
    with pytest.raises(ModelError, match="they must agree"):
        default_loss(torch.zeros(4, 10), torch.zeros(4, 1))


def test_a_model_that_fails_is_named():
    with pytest.raises(ModelError, match=r"Linear failed on a batch of shape \(360, 64\) with RuntimeError"):
        train(nn.Linear(7, 10), digits(), lr=0.1, budget=Budget(steps=1))
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        train(nn.ReLU(), digits(), lr=0.1, budget=Budget(steps=1))
    with pytest.raises(ModelError, match="a tensor with one number"):
        train(model(), digits(), lr=0.1, budget=Budget(steps=1), loss=lambda outputs, targets: outputs)
