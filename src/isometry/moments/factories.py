"""Tensors that depend on no values: zeros, ranges, triangles are known from their arguments alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isometry.moments.calls import name_of
from isometry.moments.concrete import LIMIT, Concrete
from isometry.moments.rules.base import Value

LIKE = (
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
)


def made(func: Any, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]) -> list[Value | None] | None:
    """Make tensors that depend on no values: run on the CPU; constant ones as one number, expanded."""
    (out,) = outputs
    name = name_of(func)
    fill = {
        "zeros": 0.0,
        "ones": 1.0,
        "zeros_like": 0.0,
        "ones_like": 1.0,
        "new_zeros": 0.0,
        "new_ones": 1.0,
    }.get(name)
    if name in ("full", "new_full", "full_like"):
        fill = args[2] if name == "new_full" else args[1]
    if name.startswith(("empty", "new_empty")):
        fill = 0.0  # nobody reads it before it is written
    if fill is not None:
        return [Concrete(torch.full((), fill, dtype=out.dtype).expand(out.shape))]
    if torch.Tag.nondeterministic_seeded in func.tags or out.numel() > LIMIT:
        return None  # a draw, or too large to hold
    placed = any(a.name == "device" for a in func._schema.arguments)
    return [Concrete(func(*args, **(kwargs | ({"device": "cpu"} if placed else {}))))]
