"""Which units of a fused parameter are queries, keys, values or gates."""

import pytest
import torch
from torch import nn

from isometry.flow.gates import cells_of, loops
from isometry.flow.tracing import study
from isometry.flow.units import units_of

D, HEADS = 8, 2


class Fused(nn.Module):
    """Rows or columns of one parameter, cut in one of several ways, turned by a rotation and normed."""

    def __init__(self, way, turned):
        super().__init__()
        self.w, self.way, self.turned = nn.Parameter(torch.randn(3 * D, D)), way, turned
        if turned:
            self.w = nn.Parameter(torch.randn(D, 3 * D))

    def forward(self, x):
        n, t, _ = x.shape
        h = x @ (self.w if self.turned else self.w.T)
        if self.way == "chunks":
            q, k, v = (a.view(n, t, HEADS, -1).transpose(1, 2) for a in h.chunk(3, -1))
        elif self.way == "threes":
            q, k, v = h.view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = h.view(n, t, HEADS, 3, -1).permute(3, 0, 2, 1, 4)
        q = torch.nn.functional.rms_norm(q, (D // HEADS,)) * 1.5
        a, b = k.chunk(2, -1)
        k = k * 0.5 + torch.cat([-b, a], -1) * 0.2
        return x + ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(n, t, D)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", ["chunks", "threes", "heads"])
def test_queries_keys_and_values_are_told_apart(way, turned):
    roles = study(Fused(way, turned), torch.randn(2, 5, D)).roles
    units = units_of(roles, roles["w"])
    assert units.axis == int(turned)
    size = D // HEADS
    for place, part in enumerate(("query", "key", "value")):
        starts = [
            (3 * head + place) * size if way == "heads" else place * D + head * size for head in range(HEADS)
        ]
        assert units.heads[part] == [tuple(range(s, s + size)) for s in starts]


def test_keys_that_heads_share_are_one_head():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv = nn.Linear(D, D), nn.Linear(D, 8)

        def forward(self, x):
            n, t, _ = x.shape
            q = self.q(x).view(n, t, 2, 4).transpose(1, 2)
            k, v = (a.unsqueeze(1).expand(n, 2, t, 4) for a in self.kv(x).chunk(2, -1))
            return (q @ k.mT).softmax(-1) @ v

    roles = study(Shared(), torch.randn(2, 5, D)).roles
    units = units_of(roles, roles["kv.weight"])
    assert units.heads == {"key": [(0, 1, 2, 3)], "value": [(4, 5, 6, 7)]}
    assert len(units_of(roles, roles["q.weight"]).heads["query"]) == 2


def test_a_memory_has_a_cell_per_step_and_layer_and_others_have_none():
    x = torch.randn(4, 2, 3)
    roles = study(nn.LSTM(3, 5, num_layers=2), x).roles
    assert len(cells_of(roles.flow)) == 4 * 2
    assert {n for n in roles.by_name if "weight" in n and loops(roles.flow, roles[n])} == {
        "weight_hh_l0",
        "weight_hh_l1",
    }
    assert not cells_of(study(nn.GRU(3, 5), x).roles.flow)
    twice = nn.Sequential(layer := nn.Linear(3, 3), nn.ReLU(), layer)
    assert loops(study(twice, x).roles.flow, study(twice, x).roles["0.weight"])
