"""Views of a random tensor with a known mask or bias beside it: both parts take the same view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from isometry.moments import symbolic
from isometry.moments.concrete import LIMIT, Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import Shifted, Unknown, Value
from isometry.moments.symbolic import Lazy

_COPIES = ("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh")
_RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias")


def regroups(func: Any) -> bool:
    """Return whether an operation only regroups the entries of its first argument into one output."""
    name = func._schema.name.split("::")[1]
    return name in (*_COPIES, *_RESHAPES) or (
        func.is_view and len(func._schema.returns) == 1 and "[]" not in str(func._schema.returns[0].type)
    )


def regrouped(
    func: Any,
    value: Shifted,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    rule: Callable[[Moments], Moments],
) -> Shifted | None:
    """Return the regrouped tensor, or None where the known part cannot follow.

    Args:
        func: The operation.
        value: Its first argument.
        args: The other arguments.
        kwargs: Likewise.
        shape: The output's shape.
        rule: What the operation does to the random part.
    """
    whole = tuple(value.random.shape)
    if func._schema.name.split("::")[1] in _COPIES:
        return Shifted(rule(value.random), value.shift)
    if isinstance(value.shift, Concrete):
        full = torch.broadcast_shapes(whole, value.shift.tensor.shape)  # type: ignore[no-untyped-call]
        known = value.shift.tensor.expand(full)
        flat = func._schema.name.split("::")[1] in _RESHAPES
        moved = known.reshape(shape) if flat else func(known, *args, **kwargs)
        return Shifted(rule(value.random), Concrete(moved)) if tuple(full) == whole else None
    told = symbolic.evaluate(func, (value.shift, *args), kwargs, shape)
    return None if told is None else Shifted(rule(value.random), told)


def random_of(value: Value) -> Value:
    """Return what is random of a tensor."""
    return value.random if isinstance(value, Shifted) else value


def with_mask_written(made: Value, base: Value, part: Value, view: Callable[[Tensor], Tensor]) -> Value:
    """Return a tensor of which a view was overwritten, either of them with a known part beside it.

    Args:
        made: Its random part, overwritten.
        base: What it was.
        part: What was written.
        view: Takes the view.
    """
    shifts = [v.shift if isinstance(v, Shifted) else None for v in (base, part)]
    if not isinstance(made, Moments):
        return made
    if any(isinstance(s, Lazy) for s in shifts) or prod(made.shape) > LIMIT:
        return Unknown("copy_", "", "a mask too large to hold is written to a part of a tensor")
    before, new = (s.tensor if isinstance(s, Concrete) else torch.zeros(()) for s in shifts)
    known = before.to(torch.float64).expand(made.shape).clone()
    view(known).copy_(new)
    return Shifted(made, Concrete(known))
