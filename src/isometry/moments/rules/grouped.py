"""Matrix products by group, as mixtures of experts use them: each stretch of rows has a matrix of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from isometry.moments import regrouping as reg
from isometry.moments.concrete import moments_of
from isometry.moments.contract import contract, meet
from isometry.moments.record import Moments
from isometry.moments.rules.base import Context, NoRule, rule
from isometry.moments.rules.index import gathered, positions
from isometry.moments.rules.linear import plus
from isometry.moments.rules.pointwise import times
from isometry.moments.sorted_rows import RUNS


@rule("_grouped_mm", accuracy="asymptotic", raw=(2,))
def grouped_mm(
    ctx: Context, a: Moments, b: Moments, offs: Any = None, bias: Moments | None = None, out_dtype: Any = None
) -> Moments:
    """Products of the rows between known offsets with one matrix each, or of both stretches; as `mm`."""
    if len(a.dims) == len(b.dims) == 3:
        made = contract("emk,ekn->emn", a, b)
    else:
        groups = _groups(ctx, offs, a, b)
        if len(b.dims) == 3:
            made = contract("tk,tkn->tn", a, gathered(_apart(b), [0], [groups]))
        elif len(a.dims) == 3:
            made = contract("mtk,kt->mt", reg.transposed(gathered(_apart(a), [0], [groups]), (1, 0, 2)), b)
        else:
            a, b = meet(a, "kt", b, "tn")
            members = (groups[None] == torch.arange(ctx.shape[0])[:, None]).to(torch.float64)
            member = moments_of(members, (((ctx.shape[0],),), b.dims[0]))
            rows = times(replace(member, dims=(*member.dims, ())), b)
            made = contract("kt,etn->ekn", a, rows)
    return made if bias is None else plus(made, bias)


def _apart(m: Moments) -> Moments:
    """Return matrices of which each is a block of its own, so that rows know which they have in common."""
    n = m.shape[0]
    return reg.recut_axis(m, 0, (1,) * n) if m.dims[0] and n <= RUNS else m


def _groups(ctx: Context, offs: Any, a: Moments, b: Moments) -> torch.Tensor:
    """Return the group of each row that is cut by offsets; rows beyond the last belong to the last."""
    if offs is None:
        raise NoRule("groups without offsets")
    ends = positions(ctx, offs).long()
    rows = a.shape[0] if len(b.dims) == 3 else b.shape[1] if len(a.dims) == 3 else a.shape[1]
    return torch.searchsorted(ends, torch.arange(rows), right=True).clamp_(max=len(ends) - 1)
