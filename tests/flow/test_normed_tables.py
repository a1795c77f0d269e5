"""Tables that only norms read: told by the graph, and seen by running the model with larger rows."""

import pytest
import torch
from small_models import D, Of, T, roles, weight
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.flow.normed import normed_tables

IDS = torch.arange(15).reshape(3, T) % 7


def by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-9)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), eps=1e-9)


def places(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])


FREE = {
    "one table": lambda m, i: norm(m.words(i)),
    "two tables": lambda m, i: norm(m.words(i) + m.more(i)),
    "positions": lambda m, i: norm(m.words(i) + m.more(places(i)) + m.fixed),
    "times a number": lambda m, i: norm(8.0 * F.dropout(m.words(i), 0.1, training=False)),
    "a norm by hand": lambda m, i: by_hand(m.words(i) + m.more(i)),
    "rms norm": lambda m, i: F.rms_norm(m.words(i), (D,), eps=1e-9),
    "a stream behind the norm": lambda m, i: (x := norm(m.words(i))) + m.linear(x),
    "two readers": lambda m, i: norm(m.words(i)) + by_hand(m.words(i)),
}
BOUND = {
    "no norm": lambda m, i: m.words(i),
    "a norm within the branch": lambda m, i: (x := m.words(i)) + m.linear(norm(x)),
    "a sum with constants": lambda m, i: norm(m.words(i) + torch.linspace(0, 1, D)),
    "a sum with a weight's output": lambda m, i: norm(m.words(i) + m.linear(norm(m.more(i)))),
    "an activation": lambda m, i: norm(torch.tanh(m.words(i))),
    "a number beside": lambda m, i: F.layer_norm(torch.cat([m.words(i), torch.ones(3, T, 1)], -1), (D + 1,)),
    "a large eps": lambda m, i: F.layer_norm(m.words(i), (D,), eps=1e-2),
    "running statistics": lambda m, i: F.batch_norm(
        m.words(i).flatten(0, 1), torch.zeros(D), torch.ones(D), training=False
    ),
}


def model(function) -> Of:
    tables = {name: nn.Embedding(7, D) for name in ("words", "more")}
    return Of(function, **tables, fixed=weight(T, D), linear=nn.Linear(D, D))


def found(net: Of, size: float = 0.02) -> frozenset[str]:
    read = roles(net, IDS)
    kinds = ("embedding", "position")
    return normed_tables(read.flow, {n: r for n, r in read.by_name.items() if r.kind in kinds}, size)


@pytest.mark.parametrize("name", FREE)
def test_what_only_norms_read_may_have_any_size(name: str) -> None:
    torch.manual_seed(0)
    net = model(FREE[name])
    before, free = net(IDS), found(net)
    read = roles(net, IDS)
    assert free == {n for n, r in read.by_name.items() if r.kind in ("embedding", "position")}
    with torch.no_grad():
        for table in free:
            net.get_parameter(table).mul_(0.1)
    torch.testing.assert_close(net(IDS), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BOUND)
def test_what_something_else_reads_may_not(name: str) -> None:
    torch.manual_seed(0)
    net = model(BOUND[name])
    before = net(IDS)
    assert "words.weight" not in found(net)
    with torch.no_grad():
        for table in (net.words, net.more):
            table.weight.mul_(0.1)
    assert not torch.allclose(net(IDS), before, rtol=1e-2, atol=1e-3)


def test_a_table_that_shares_a_sum_with_one_that_is_bound_is_bound() -> None:
    net = model(lambda m, i: norm(m.words(i) + m.more(i)) + m.more(i))
    assert found(net) == frozenset()


def test_tables_that_are_not_to_be_chosen_bind_those_they_are_added_to() -> None:
    net = model(FREE["two tables"])
    read = roles(net, IDS)
    assert normed_tables(read.flow, {"words.weight": read["words.weight"]}, 0.02) == frozenset()


def test_an_eps_is_small_or_large_beside_the_rows() -> None:
    net = model(lambda m, i: F.layer_norm(m.words(i), (D,), eps=1e-5))
    assert found(net, 0.02) == {"words.weight"}
    assert found(net, 0.002) == frozenset()
