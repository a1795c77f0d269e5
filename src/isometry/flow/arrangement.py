"""Which unit of a layer an entry comes from, followed through reshapes and pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.flow.cones import mapped_refs
from isometry.flow.graph import IDENTITY, Flow, Node

SPATIAL = ("pool", "pad", "upsample")
_AVERAGES = frozenset(["mean", "sum"])


class Refused(Exception):  # noqa: N818  (no error of the user's)
    """Why a chain cannot be woven."""


def axis_out(flow: Flow, node: Node) -> int:
    """Return the axis along which a contraction's output numbers the weight's outputs."""
    if "convolution" in node.op:
        return 1
    left = flow.operands(node)[0] is flow.weight(node)
    return len(node.shape) - (2 if left else 1)


def moved(node: Node, units: Tensor, known: dict[int, Tensor]) -> Tensor:
    """Run an operation on the numbers of units instead of their values.

    Args:
        node: An operation that hands entries on, or averages or maxima of entries of one unit.
        units: At every entry of its signal, the unit it comes from.
        known: The same by node, for views that read several.

    Returns:
        At every entry of its output, the unit it comes from.

    Raises:
        Refused: Units are mixed.
    """
    if tuple(units.shape) == node.shape and _keeps_order(node):
        return units
    if node.op in _AVERAGES:
        if len(node.args) < 2:
            raise Refused("all its units are averaged")
        low, high = (f(units, node.args[1], *node.args[2:3]) for f in (torch.amin, torch.amax))
        if not torch.equal(low, high):
            raise Refused("its units are averaged")
        return low
    if any(word in node.op for word in SPATIAL):
        for dim, (old, new) in enumerate(zip(units.shape, node.shape, strict=True)):
            if old != new:
                first = units.narrow(dim, 0, 1)
                if not bool((units == first).all()):
                    raise Refused(f"{node.op} pools over its units")
                units = first.expand(*units.shape[:dim], new, *units.shape[dim + 1 :])
        return units
    if node.op in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return units.reshape(node.shape)  # also where a copy was left out
    if node.op == "as_strided":
        raise Refused("what lies between addresses memory by strides")
    args, kwargs = mapped_refs((node.args, node.kwargs), known)
    out = node.func(*args, **kwargs)
    moved: Tensor = out if isinstance(out, Tensor) else out[node.slot]
    return moved


def _keeps_order(node: Node) -> bool:
    views = IDENTITY - {"clone", "contiguous", "_to_copy", "detach", "alias", "native_dropout", "dropout"}
    moving = {"flip", "gather", "index", "index_select", "roll", "channel_shuffle"}
    return node.op not in views | moving


def arranged(units: Tensor, count: int) -> tuple[int, bool]:
    """Read in which order a layer's inputs number units and positions.

    Args:
        units: The unit of every input, (inputs, entries).
        count: How many units there are.

    Returns:
        Positions of every unit, and whether positions are numbered before units.

    Raises:
        Refused: Another order, or units that are left out.
    """
    order = units[:, :1] if units.shape[1] else units
    if not torch.equal(units, order.expand_as(units)):
        raise Refused("an input holds another unit at another position")
    if not count:
        raise Refused("it reads no units")
    positions, rest = divmod(len(order), count)
    order = order.flatten()
    if rest == 0 and positions:
        if torch.equal(order, torch.arange(count).repeat_interleave(positions)):
            return positions, False
        if torch.equal(order, torch.arange(count).repeat(positions)):
            return positions, True
    raise Refused("it reads the units of the layer before in an order of its own, or not all of them")
