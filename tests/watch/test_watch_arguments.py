"""What a watch refuses, and how it shows itself."""

import pytest
import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.watch import watch


@pytest.mark.parametrize("option", ["every", "steps", "patience"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_are_checked(option, value):
    with pytest.raises(InvalidValueError, match=f"{option} must be a whole number"):
        watch(nn.Linear(2, 2), **{option: value})


def test_models_and_optimizers_are_checked():
    model = nn.Linear(2, 2)
    with pytest.raises(InvalidTypeError, match="must be a torch"):
        watch(lambda x: x)
    with pytest.raises(InvalidTypeError, match="got list"):
        watch(model, optimizer=[])
    with pytest.raises(InvalidTypeError, match="scaler must be a loss scaler"):
        watch(model, scaler=65536)
    with pytest.raises(InvalidTypeError, match="log must be a function"):
        watch(model, log="run.json")
    stale = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(InvalidValueError, match="holds none of the model's parameters"):
        watch(model, optimizer=stale)
    with pytest.raises(ModelError, match="compiled"):
        watch(torch.compile(model, backend="eager"))


def test_step_belongs_inside():
    seen = watch(nn.Linear(2, 2))
    with pytest.raises(InvalidValueError, match="inside the block"):
        seen.step()
    with seen, pytest.raises(InvalidValueError, match="already running"):
        seen.__enter__()


def test_a_loss_that_is_no_number_is_refused_before_anything_is_recorded():
    with watch(nn.Linear(2, 2)) as seen, pytest.raises(InvalidTypeError, match="loss must be a number"):
        seen.step("low")
    assert len(seen.history.snapshots) == 0


def test_it_shows_its_state():
    model = nn.Linear(2, 2)
    with watch(model) as seen:
        model(torch.ones(1, 2))
        seen.step()
        assert repr(seen) == "<watch on Linear: running, step 1, 1 observed, 0 found>"
    assert "not running" in repr(seen)
