"""Stacks of residual branches: their layers and width, and which encodes for which."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.flow.attention import Attention
from isometry.flow.factors import factor_between
from isometry.flow.graph import MULTIPLY, Flow, Node
from isometry.flow.roles import Role, Roles
from isometry.flow.streams import Residual, is_norm


@dataclass(frozen=True)
class Stack:
    """The residual branches along one stream.

    Attributes:
        stream: Its number.
        residuals: Its sums in order.
        layers: How many layers it has: branches without an attention, or all where each has one.
        width: How many features the stream has.
        attends: Whether a branch has an attention.
        reads: The streams whose values its attentions read: it decodes them.
        read_by: The streams that read it: it encodes for them.
        reading: Its sums whose branch reads another stream.
    """

    stream: int
    residuals: tuple[Residual, ...]
    layers: int
    width: int
    attends: bool
    reads: frozenset[int]
    read_by: frozenset[int]
    reading: frozenset[int]


def stacks_of(roles: Roles) -> list[Stack]:
    """Describe the residual streams of a model.

    Args:
        roles: The roles.

    Returns:
        A stack per stream.
    """
    residuals: dict[int, list[Residual]] = {}
    for residual in roles.streams.residuals.values():
        residuals.setdefault(residual.stream, []).append(residual)
    within = {s: _attentions(roles, found) for s, found in residuals.items()}
    reads = {s: _read(roles, s, [a for _, a in found]) for s, found in within.items()}
    stacks = []
    for stream, found in residuals.items():
        attending = {r.node for r, _ in within[stream]}
        plain = [r for r in found if r.node not in attending]
        read_by = frozenset(other for other, seen in reads.items() if stream in seen)
        stacks.append(
            Stack(
                stream,
                tuple(found),
                len(plain) or len(found),
                _width(roles, stream, found),
                bool(attending),
                reads[stream],
                read_by,
                frozenset(r.node for r, a in within[stream] if _read(roles, stream, [a])),
            )
        )
    return stacks


def _attentions(roles: Roles, residuals: list[Residual]) -> list[tuple[Residual, Attention]]:
    return [
        (r, a)
        for r in residuals
        for a in roles.attentions
        if any(q in r.depths for q in (*a.queries, *a.values))
    ]


def _read(roles: Roles, stream: int, attentions: list[Attention]) -> frozenset[int]:
    """Return the other streams that attentions take keys from."""
    flow, found = roles.flow, set()
    for attention in attentions:
        for i in attention.keys:
            node: Node | None = flow.nodes[i]
            while node is not None and node.index not in roles.streams.residuals:
                signals = flow.signals(node)
                node = signals[0] if signals else None
            if node is not None:
                found.add(roles.streams.residuals[node.index].stream)
    return frozenset(found - {stream})


def _width(roles: Roles, stream: int, residuals: list[Residual]) -> int:
    """Return the outputs of the weights that end its branches; else the last axis of its sums."""
    for role in roles.by_name.values():
        if role.ends is not None and role.ends.stream == stream and role.kind == "weight" and role.fans:
            return role.fans.layout.blocks * role.fans.layout.outputs
    shape = roles.flow.nodes[residuals[0].node].shape
    return shape[1] if len(shape) > 3 else shape[-1] if shape else 1


def residual_of(role: Role) -> Residual | None:
    """Return the residual sum that a parameter belongs to: in its branch, at its end, or on its skip path."""
    return role.residual or role.ends or role.skips


def multipliers(flow: Flow, residual: Residual) -> list[Node]:
    """Return the products with a parameter between a branch's last weight or norm and the sum.

    Args:
        flow: The graph.
        residual: The sum.

    Returns:
        The products, the last first; none where the branch has no scale of its own.
    """
    found = []
    for node in flow.upstream(flow.nodes[residual.branch]):
        if node.index <= residual.fork or is_norm(flow, node):
            break
        if node.op in MULTIPLY and any(flow.nodes[i].parameters for i in node.inputs):
            found.append(node)
    return found


def skip_factor(flow: Flow, residual: Residual) -> float:
    """Return the number that multiplies the skip path of a residual sum.

    Args:
        flow: The graph.
        residual: The sum.

    Returns:
        The product of all numbers on the way; 1 where there is none.
    """
    node = flow.nodes[residual.node]
    refs = [getattr(arg, "node", None) for arg in node.args[:2]]
    second = refs.index(residual.skip) == 1 if residual.skip in refs else False
    factor = float(node.kwargs.get("alpha", 1.0)) if second else 1.0
    return factor * factor_between(flow, flow.nodes[residual.skip], lambda n: n.index <= residual.fork)
