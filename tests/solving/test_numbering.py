"""Operations are found again in another run though torch puts in some of its own."""

import pytest
import torch
from torch import nn

import isometry
from isometry.flow.graph import Tracer
from isometry.moments.calls import Numbering

aten = torch.ops.aten


def test_each_kind_is_numbered_by_itself():
    def numbered(*funcs):
        numbering = Numbering()
        return [numbering.next(func) for func in funcs]

    plain = numbered(aten.mm.default, aten.relu_.default, aten.mm.default, aten.relu.default)
    assert plain == [("aten::mm", 0), ("aten::relu", 0), ("aten::mm", 1), ("aten::relu", 1)]
    more = numbered(aten.detach.default, aten.mm.default, aten.relu_.default, aten.detach.default)
    assert more[1:3] == plain[:2]


@pytest.mark.parametrize("recipe", ["auto", "lsuv"])
def test_one_more_operation_in_the_first_run_shifts_nothing(recipe, monkeypatch):
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    expected = isometry.plan(model, "8x16", recipe=recipe)
    record = Tracer.__call__

    def with_one_more(self, func, args, kwargs, out):
        if len(self.flow.nodes) == len(list(model.parameters())) + 1:  # before the first operation
            x = torch.empty(2, device="meta")
            record(self, aten.detach.default, (x,), {}, x.detach())
        record(self, func, args, kwargs, out)

    monkeypatch.setattr(Tracer, "__call__", with_one_more)
    found = isometry.plan(model, "8x16", recipe=recipe)
    assert not any("unsolved" in row.marks for row in found)
    assert [row.std for row in found] == [row.std for row in expected]
