"""Fans by name, mode and axes, and what is said where they cannot be told."""

import pytest
import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.fans import fans, fans_of_tensor


def test_dotted_name() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 3)))
    assert fans(model, "0.0.weight").forward == 5


def test_modes() -> None:
    known = fans(nn.Linear(2, 8))
    assert [known.by_mode(mode) for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo")] == [2, 8, 5, 4]
    with pytest.raises(InvalidValueError, match="did you mean 'fan_in'"):
        known.by_mode("fan_inn")


def test_lazy_module_asks_for_a_run() -> None:
    with pytest.raises(ModelError, match="run the model once"):
        fans(nn.LazyLinear(3))


def test_unknown_parameter_name_suggests_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean '0\.weight'"):
        fans(nn.Sequential(nn.Linear(2, 3)), "0.weights")
    with pytest.raises(NotFoundError, match="no parameter"):
        fans(nn.ReLU(), "weight")


def test_bias_and_unknown_layout_ask_for_axes() -> None:
    with pytest.raises(InvalidValueError, match="in_axis"):
        fans(nn.Linear(2, 3), "bias")
    experts = nn.Module()
    experts.w = nn.Parameter(torch.empty(4, 24, 10))
    with pytest.raises(InvalidValueError, match="'w' of Module"):
        fans(experts, "w")


def test_not_a_module() -> None:
    with pytest.raises(InvalidTypeError, match=r"torch\.nn\.Module"):
        fans(torch.zeros(2, 3), "weight")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"in_axis": 3}, "outside"),
        ({"in_axis": 1, "out_axis": -2}, "overlap"),
        ({"in_axis": 1, "out_axis": 2, "batch_axis": (0, 1)}, "overlap"),
    ],
)
def test_bad_axes(axes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        fans_of_tensor(torch.empty(4, 5, 6), **axes)


def test_axes_must_be_integers() -> None:
    with pytest.raises(InvalidTypeError, match="int"):
        fans_of_tensor(torch.empty(4, 5), in_axis=("x",))
    with pytest.raises(InvalidTypeError, match="tensor"):
        fans_of_tensor([[1.0]])


def test_too_few_axes() -> None:
    with pytest.raises(InvalidValueError, match="input and an output axis"):
        fans_of_tensor(torch.empty(4))


def test_several_axes_in_one_role() -> None:
    heads = fans_of_tensor(torch.empty(6, 4, 8), in_axis=0, out_axis=(1, 2))
    assert (heads.forward, heads.backward) == (6, 32)


def test_zero_fan_has_no_variance() -> None:
    with pytest.raises(InvalidValueError, match="length zero"):
        fans_of_tensor(torch.empty(3, 0)).by_mode("fan_in")
