"""Simulation cases of look-ups, scatters, orders, recurrences, spectra and losses."""

from __future__ import annotations

import torch
from simulation import Case, Input
from torch import Tensor
from torch.nn import functional as F

_X = Input((6, 40), mean=0.5, shared=0.4)
_ROWS = torch.tensor([4, 0, 4, 1, 5, 5, 5])
_PLACES = torch.randint(0, 40, (6, 17), generator=torch.Generator().manual_seed(2))
_EACH = torch.arange(6)
_MASK = torch.rand(6, 40, generator=torch.Generator().manual_seed(3)) < 0.3
_COLUMNS = torch.tensor([3, 17, 30])

INDEX = (
    Case("rows by index", lambda x, i: x[i], (_X,), (_ROWS,)),
    Case("columns by index", lambda x, i: torch.index_select(x, 1, i), (_X,), (_ROWS,)),
    Case("grid of indices", lambda x, i: x[i.view(1, 7).expand(3, 7)], (_X,), (_ROWS,)),
    Case(
        "last of each",
        lambda x, i, j: x[i, j],
        (Input((6, 9, 20), mean=0.5, shared=0.4),),
        (_EACH, _EACH + 2),
    ),
    Case("every other dim", lambda x, i: x[i, :, i + 1], (Input((6, 9, 20), shared=0.4),), (_EACH,)),
    Case("rows by mask", lambda x, m: x[m], (_X,), (torch.tensor([True, False, True, True, False, True]),)),
    Case("entries by mask", lambda x, m: x[m], (_X,), (_MASK,)),
    Case("masked_select", lambda x, m: torch.masked_select(x, m), (_X,), (_MASK,)),
    Case("gather", lambda x, i: torch.gather(x, 1, i), (_X,), (_PLACES,)),
    Case(
        "gather repeated",
        lambda x, i: torch.gather(x, 1, i.view(1, 5, 1).expand(6, 5, 20)),
        (Input((6, 9, 20), mean=0.5, shared=0.4),),
        (torch.tensor([3, 1, 1, 8, 2]),),
    ),
    Case(
        "permuted twice",
        lambda x, i: x[:, i] * torch.sigmoid(x)[:, i],
        (_X,),
        (torch.randperm(40, generator=torch.Generator().manual_seed(1)),),
    ),
    Case(
        "index of blocks",
        lambda x, y, i: torch.cat([x, 3 * y], 1)[:, i],
        (_X, Input((6, 10))),
        (torch.arange(35, 45),),
    ),
)

SCATTER = (
    Case(
        "index_add",
        lambda x, y, i: x.index_add(0, i, y),
        (_X, Input((7, 40), mean=0.5, shared=0.4)),
        (_ROWS,),
    ),
    Case(
        "index_put",
        lambda x, y, i: x.index_put((i,), y),
        (_X, Input((3, 40), mean=1.0)),
        (torch.tensor([1, 4, 2]),),
    ),
    Case(
        "index_put of columns",
        lambda x, y, i: torch.index_put(x, (torch.arange(6, device=x.device).view(6, 1), i.view(1, 3)), y),
        (_X, Input((6, 3), mean=1.0)),
        (_COLUMNS,),
        unread=frozenset(["output 0 pairs"]),
    ),
    Case("index_copy", lambda x, y, i: x.index_copy(1, i, y), (_X, Input((6, 3), mean=1.0)), (_COLUMNS,)),
    Case("index_fill", lambda x, i: x.index_fill(1, i, 2.0), (_X,), (_COLUMNS,)),
    Case("scatter_add", lambda x, y, i: x.scatter_add(1, i, y), (_X, Input((6, 17), shared=0.4)), (_PLACES,)),
    Case(
        "scatter",
        lambda y, i: torch.zeros(6, 40, dtype=y.dtype, device=y.device).scatter(
            1, i.view(1, 3).expand(6, 3), y
        ),
        (Input((6, 3), shared=0.4),),
        (_COLUMNS,),
    ),
    Case(
        "scatter_reduce",
        lambda x, y, i: x.scatter_reduce(1, i, y, "sum"),
        (_X, Input((6, 17), shared=0.4)),
        (_PLACES,),
    ),
    Case(
        "masked_scatter",
        lambda x, y, m: x.masked_scatter(m.view(6, 1).expand(6, 40), y),
        (_X, Input((3, 40), mean=1.0)),
        (torch.tensor([True, False, False, True, False, True]),),
    ),
    Case(
        "permuted back",
        lambda x, i: torch.empty_like(x).index_put((i,), x) * x,
        (Input((6, 40), mean=0.5),),
        (torch.tensor([2, 0, 1, 5, 3, 4]),),
    ),
)

SEQUENCE = (*INDEX, *SCATTER)
