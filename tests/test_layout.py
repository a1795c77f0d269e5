"""Layouts: which elements of a parameter belong to which block, output and input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.fans import fans
from isometry.layout import Layout, grouped, layout_of_axes


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_restore_inverts_kernels_for_any_choice_of_axes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)))
    order = data.draw(st.permutations(range(len(shape))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shape)), min_size=3, max_size=3)))
    batch, out, inp = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] : cuts[2]]
    layout = layout_of_axes(shape, in_axis=inp, out_axis=out, batch_axis=batch)
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    kernels = layout.kernels(tensor)
    assert kernels.shape == layout.kernels_shape
    assert torch.equal(layout.restore(kernels, shape), tensor)


def test_kernels_index_by_block_output_and_input() -> None:
    tensor = torch.arange(24).reshape(4, 2, 3)
    kernels = layout_of_axes((4, 2, 3), in_axis=0, out_axis=2, batch_axis=1).kernels(tensor)
    assert kernels.shape == (2, 3, 4)
    assert kernels[1, 2, 3] == tensor[3, 1, 2]


def test_groups_split_the_first_axis() -> None:
    tensor = torch.arange(30).reshape(6, 5)
    kernels = grouped((6, 5), 3).kernels(tensor)
    assert torch.equal(kernels[2, 1], tensor[5])


def test_a_diagonal_has_one_output_and_one_input() -> None:
    diagonal = Layout((5,), batch=(0,), out=(), inp=())
    assert diagonal.kernels_shape == (5, 1, 1)


@pytest.mark.parametrize("groups", [0, 4])
def test_groups_must_divide(groups: int) -> None:
    with pytest.raises(InvalidValueError, match="divide"):
        grouped((6, 5), groups)


@pytest.mark.parametrize("axis", ["x", 1.5, None, (0.5,)])
def test_an_axis_that_is_no_int_is_named(axis: object) -> None:
    with pytest.raises(InvalidTypeError, match="in_axis"):
        layout_of_axes((3, 4), in_axis=axis)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (nn.Linear(2, 3), {"name": 3}, "name must be"),
        (nn.EmbeddingBag(3, 4), {"bag_size": "x"}, "bag_size must be"),
    ],
)
def test_fans_name_an_argument_of_the_wrong_type(
    module: nn.Module, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        fans(module, **arguments)
