from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.inputs import Batch, batches, check_finite, map_tensors, mismatch


def one(inputs):
    [batch] = batches(inputs)
    return batch


def test_the_forms_of_a_single_batch():
    x, y = torch.ones(2, 3), torch.zeros(2)
    assert one(x).args == (x,)
    assert one((x, y)).args == (x, y)
    assert one((x, y)).target is None
    assert one({"x": x}).kwargs == {"x": x}
    assert one(UserDict(x=x)).kwargs == {"x": x}
    own = Batch(args=(x,), target=y)
    assert one(own) is own


def test_a_loader_brings_targets_and_is_cut_off():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    found = list(batches(DataLoader(TensorDataset(x, y), batch_size=2), limit=2))
    assert len(found) == 2
    assert torch.equal(found[1].args[0], x[2:4])
    assert torch.equal(found[1].target, y[2:4])


def test_the_items_of_a_loader():
    x, y = torch.ones(2, 3), torch.zeros(2)
    items = [x, (x,), [x, y], (x, x, y), {"x": x}, ({"x": x}, y)]
    found = list(batches(items))
    assert [len(batch.args) for batch in found] == [1, 1, 1, 2, 0, 0]
    assert [batch.target is y for batch in found] == [False, False, True, True, False, True]
    assert [list(batch.kwargs) for batch in found[4:]] == [["x"], ["x"]]


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("32x1024", (32, 1024), torch.float32),
        ("5", (5,), torch.float32),
        ("4x128:int64<50257", (4, 128), torch.int64),
        ("4x3:bool", (4, 3), torch.bool),
        ("2x3:bfloat16", (2, 3), torch.bfloat16),
    ],
)
def test_specs(spec, shape, dtype):
    [tensor] = one(spec).args
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert torch.equal(tensor, one(spec).args[0])


def test_a_spec_draws_what_it_says_and_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    floats, integers = one("100x100,100x100:int64<7").args
    assert torch.equal(state, torch.get_rng_state())
    assert abs(floats.mean()) < 4 / 100  # σ/√n = 1/100
    assert abs(floats.var() - 1) < 4 * 2**0.5 / 100
    assert set(integers.unique().tolist()) == set(range(7))


def test_named_specs():
    batch = one("3x4, ids=3x5:int64<9, mask=3x5:bool")
    assert [tuple(tensor.shape) for tensor in batch.args] == [(3, 4)]
    assert {name: tuple(tensor.shape) for name, tensor in batch.kwargs.items()} == {
        "ids": (3, 5),
        "mask": (3, 5),
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("32*1024", "cannot read the input spec"),
        ("", "cannot read the input spec"),
        ("3x4:int64", "need a bound"),
        ("3x4:int64<0", "need a bound"),
        ("3x4:float32<5", "is for integers"),
        ("3x4:quint8", "unknown dtype 'quint8'"),
        ("x=3,4", "cannot follow a named one"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(spec, message):
    with pytest.raises(InvalidValueError, match=message):
        one(spec)


@pytest.mark.parametrize("inputs", [3, None, 2.5])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(InvalidTypeError, match="inputs must be a tensor"):
        one(inputs)


def test_a_loader_of_other_things_is_refused():
    with pytest.raises(InvalidTypeError, match="an item of inputs must be"):
        list(batches(["32x10"]))


class Pair(NamedTuple):
    a: torch.Tensor
    b: int


@dataclass
class Record:
    x: torch.Tensor
    label: str = "kept"


def test_map_tensors_rebuilds_every_container():
    one_ = torch.ones(1)
    value = {"t": (one_, [one_]), "p": Pair(one_, 3), "r": Record(one_), "u": UserDict(k=one_), "n": None}
    places = []
    changed = map_tensors(value, lambda tensor, where: (places.append(where), tensor + 1)[1])
    assert changed["p"] == Pair(torch.tensor([2.0]), 3)
    assert changed["r"].x.item() == 2
    assert changed["r"].label == "kept"
    assert type(changed["u"]) is UserDict
    assert places[0] == "inputs['t'][0]"
    assert value["r"].x.item() == 1


def test_nan_and_infinity_are_counted_and_placed():
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    with pytest.raises(
        InvalidValueError, match=r"inputs\[1\]\['x'\] holds 1 nan and 1 infinite values among 3"
    ):
        check_finite(Batch(args=(torch.ones(2), {"x": bad})))
    with pytest.raises(InvalidValueError, match=r"inputs\['x'\]"):
        check_finite(Batch(kwargs={"x": bad}))


def test_an_attention_mask_of_minus_infinity_passes():
    check_finite(Batch(args=(torch.nn.Transformer.generate_square_subsequent_mask(5), torch.arange(3))))
    with pytest.raises(InvalidValueError, match="1 infinite"):
        check_finite(Batch(args=(torch.tensor([1.0, -float("inf")]),)))


def test_a_call_that_lacks_arguments_is_told_which():
    def forward(x, ids, *rest, scale=1.0, **more): ...

    x = torch.ones(2)
    assert "it needs ids too: a tuple is" in mismatch(forward, (x,), {})
    assert "it needs x and ids too" in mismatch(forward, (), {"scale": 2.0})
    assert "it needs x too" in mismatch(forward, (), {"ids": x})
    assert mismatch(forward, (x, x, x), {"other": x}) == ""
    assert "keeps the target out" in mismatch(torch.nn.ReLU().forward, (x, x), {})
