"""Which units of a fused parameter are queries, keys and values, or one gate of several."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from isometry.errors import ModelError
from isometry.flow.attention import Attention
from isometry.flow.cones import mapped_refs
from isometry.flow.fans_of_use import viewed
from isometry.flow.graph import CONTRACTION, LINEAR, REDUCTION, Flow, Node
from isometry.flow.roles import Part, Role, Roles, Use

_NOWHERE = -1


@dataclass
class Units:
    """The units of a parameter by what they are part of.

    Attributes:
        axis: The parameter's axis that numbers them.
        heads: Of each part the units of each head, in the head's order.
    """

    axis: int
    heads: dict[Part, list[tuple[int, ...]]] = field(default_factory=dict)

    def of(self, part: Part) -> tuple[int, ...]:
        """Return the units of a part, head after head."""
        return tuple(dict.fromkeys(unit for head in self.heads.get(part, []) for unit in head))


def units_of(roles: Roles, role: Role) -> Units | None:
    """Tell the queries, keys and values in a weight apart.

    The numbers of a contraction's outputs are sent through the views that follow it, up to the attention's
    products.

    Args:
        roles: The roles.
        role: A weight with a part "query", "key" or "value".

    Returns:
        Its units; None where they cannot be told.
    """
    found: Units | None = None
    for use in role.uses:
        for attention in roles.attentions:
            for part, end, features in _ends(roles.flow, attention, use):
                rows = _rows(roles.flow, role, use)
                places = places_at(roles.flow, use.node, end, _axis(roles.flow, use))
                if rows is None or places is None:
                    return None
                found = found or Units(rows[0])
                if part in found.heads:
                    continue  # the same weight again, in a loop
                found.heads[part] = _heads(places.movedim(features, -1), rows[1])
    return found


def _ends(flow: Flow, attention: Attention, use: Use) -> list[tuple[Part, Node, int]]:
    """Return the factors of an attention's products that a use's output goes into, and where features lie."""
    at, found = use.node.index, list[tuple[Part, Node, int]]()
    waiting, seen = [at], {at}
    while waiting:
        for i in flow.consumers[waiting.pop()]:
            node = flow.nodes[i]
            if i in seen or not node.signal:
                continue
            if node.op not in CONTRACTION:
                seen.add(i)
                waiting.append(i)
                continue
            left, right = (*flow.operands(node), node)[:2]
            for factor, other in ((left, right), (right, left)):
                if factor.index not in seen:
                    continue
                if i == attention.scores:
                    part: Part = "query" if factor is left and at in attention.queries else "key"
                    found.append((part, factor, -1 if factor is left else -2))
                elif at in attention.values and any(
                    n.index == attention.softmax for n in flow.upstream(other)
                ):
                    found.append(("value", factor, -1 if factor is right else -2))
    return found


def _axis(flow: Flow, use: Use) -> int:
    """Return the axis of a contraction's output that numbers its units."""
    if "convolution" in use.node.op:
        return 1
    return -2 if flow.operands(use.node)[0] is use.operand else -1


def _rows(flow: Flow, role: Role, use: Use) -> tuple[int, Tensor] | None:
    """Return the axis of a parameter that numbers its outputs, and which of them a contraction makes."""
    if len(role.nodes) != 1 or len(role.shape) < 2:
        return None
    leaf, axis = flow.nodes[role.nodes[0]], 0 if "convolution" in use.node.op else _axis(flow, use)
    for own, size in enumerate(role.shape):
        numbers = torch.arange(size).reshape([-1 if a == own else 1 for a in range(len(role.shape))])
        view = viewed(flow, leaf, use.operand, numbers.expand(role.shape))
        if view is None or not view.numel():
            return None
        line = view.movedim(axis, 0).flatten(1)[:, 0]
        if size > 1 and len(set(line.tolist())) == len(line):
            return own, line
    return None


def places_at(flow: Flow, start: Node, end: Node, axis: int) -> Tensor | None:
    """Return, for every entry of a node, which unit of an earlier one it came from through views.

    Sums, norms and pointwise functions between the two count as acting on each entry alone.

    Args:
        flow: The graph.
        start: The earlier node.
        end: The later one.
        axis: The axis of `start` that numbers its units.

    Returns:
        The numbers of the units, -1 where an entry came from elsewhere; None where no path is found.
    """
    needed, waiting = {end.index}, [end.index]
    while waiting:
        for s in flow.signals(flow.nodes[waiting.pop()]):
            if s.index >= start.index and s.index not in needed:
                needed.add(s.index)
                waiting.append(s.index)
    if start.index not in needed:
        return None
    size = start.shape[axis]
    line = torch.arange(size, dtype=torch.int32).reshape([size] + [1] * (-1 - axis if axis < 0 else 0))
    if axis >= 0:
        line = line.reshape([size] + [1] * (len(start.shape) - 1 - axis))
    known = {start.index: line.expand(start.shape)}
    for i in sorted(needed - {start.index}):
        node = flow.nodes[i]
        if any(s.index in known for s in flow.signals(node)) and node.op not in CONTRACTION:
            carried = _carried(flow, node, known)
            if carried is not None:
                known[i] = carried
    return known.get(end.index)


def _carried(flow: Flow, node: Node, known: dict[int, Tensor]) -> Tensor | None:
    """Return the units behind a node's entries from those behind its inputs."""
    before = [known[s.index] for s in flow.signals(node) if s.index in known]
    if node.op in ("view", "_unsafe_view", "_reshape_alias", "reshape"):
        return before[0].reshape(node.shape)  # what was contiguous in the run need not be so here
    if node.op == "view_as_complex":
        return before[0][..., 0]
    if node.op == "view_as_real":
        return before[0].unsqueeze(-1).expand(node.shape)
    if node.op in ("cat", "stack") or (node.op in LINEAR and node.op not in REDUCTION):
        tensors = {
            i: known.get(i, torch.full((), _NOWHERE, dtype=torch.int32).expand(flow.nodes[i].shape))
            for i in node.inputs
            if flow.nodes[i].floating
        }
        try:
            args, kwargs = mapped_refs((node.args, node.kwargs), tensors)
            kwargs.pop("dtype", None)
            out = node.func(*args, **kwargs)
            found = out if isinstance(out, Tensor) else out[node.slot]
            if tuple(found.shape) == node.shape:
                return found
        except (ModelError, RuntimeError, TypeError, IndexError):
            pass  # not for whole numbers: taken as acting on each entry
    return next((b.expand(node.shape) for b in before if tuple(b.shape) == node.shape), None)


def _heads(places: Tensor, rows: Tensor) -> list[tuple[int, ...]]:
    """Return the units of each head, from the numbers at a factor (..., positions, features)."""
    table = places[..., 0, :].reshape(-1, places.shape[-1])
    heads = dict.fromkeys(tuple(line) for line in table.tolist())
    return [tuple(int(rows[unit]) for unit in head if unit != _NOWHERE) for head in heads]
