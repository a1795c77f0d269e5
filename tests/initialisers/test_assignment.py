"""Slots: every parameter once, with all the modules that use it."""

import pytest
import torch
from torch import nn

from isometry.errors import InvalidTypeError, ModelError, NotFoundError
from isometry.initialisers.assignment import Selection, matches, selectors, slots_of


def names(model: nn.Module) -> list[list[str]]:
    return [[use.name for use in slot.uses] for slot in slots_of(model)]


def test_one_slot_per_parameter_in_registration_order() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3))
    assert [slot.name for slot in slots_of(model)] == [name for name, _ in model.named_parameters()]


def test_tied_parameters_and_shared_modules_are_one_slot() -> None:
    layer = nn.Linear(3, 3, bias=False)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(3, 3, bias=False)})
    model["c"].weight = layer.weight
    assert names(model) == [["a.weight", "b.weight", "c.weight"]]


def test_equal_memory_is_one_slot_even_under_two_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    assert names(model) == [["0.weight", "1.weight"]]


def test_overlapping_memory_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data[1:3])
    with pytest.raises(ModelError, match="share memory"):
        slots_of(model)


def test_neighbours_in_one_storage_are_fine() -> None:
    flat = torch.zeros(24)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False))
    model[0].weight = nn.Parameter(flat[:12].view(4, 3))
    model[1].weight = nn.Parameter(flat[12:].view(4, 3))
    assert len(slots_of(model)) == 2


def test_the_linear_map_decides_over_the_embedding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    (slot,) = slots_of(model)
    assert slot.use.name == "1.weight"


def test_wrappers_leave_no_trace_in_the_names() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 3)))
    assert names(model) == [["0.weight"], ["0.bias"]]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("1.0.weight", ["1.0.weight"]),
        ("1", ["1.0.weight", "1.0.bias"]),
        ("*.bias", ["0.bias", "1.0.bias"]),
        (nn.Linear, ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]),
        (nn.Sequential, ["0.weight", "0.bias", "1.0.weight", "1.0.bias", "2.weight"]),
        (nn.PReLU, ["2.weight"]),
        ("[02].weight", ["0.weight", "2.weight"]),
    ],
)
def test_selectors_match_by_name_and_by_type_of_any_holder(selector: object, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)), nn.PReLU())
    found = [slot.name for slot in slots_of(model) if matches(selector, slot.use)]
    assert found == expected


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    slots = slots_of(nn.Sequential(nn.Linear(2, 3)))
    with pytest.raises(NotFoundError, match=r"skip=.*'0\.weights'.*did you mean '0\.weight'"):
        Selection((), ("0.weights",)).check(slots)
    Selection((nn.LSTM,), (nn.Conv2d,)).check(slots)  # a type the model lacks is no mistake


@pytest.mark.parametrize("value", [3, [nn.Linear(2, 3)], [int]])
def test_selectors_are_names_and_module_types(value: object) -> None:
    with pytest.raises(InvalidTypeError, match="skip="):
        selectors("skip", value if isinstance(value, list) else [value])


def test_lazy_and_meta_parameters() -> None:
    with pytest.raises(ModelError, match=r"'0\.weight' is lazy"):
        slots_of(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ModelError, match="to_empty"):
        slots_of(nn.Linear(2, 3, device="meta"))
