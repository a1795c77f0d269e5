"""Tables that are also heads: the rows that tokens are looked up in, tied with the last weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isometry.flow.graph import Flow, Node
from isometry.flow.roles import Role, Roles, Use


@dataclass(frozen=True)
class Tied:
    """One such table.

    Attributes:
        lookups: The nodes that look up its rows.
        scale: The scale that alone decides how large what it reads as a head is; none: there is no such.
    """

    lookups: tuple[int, ...]
    scale: str | None


def tied_tables(roles: Roles) -> dict[str, Tied]:
    """Find the heads whose rows are looked up, too.

    Args:
        roles: The roles.

    Returns:
        The tables by name.
    """
    found = {}
    for role in roles.by_name.values():
        lookups = tuple(use.node.index for use in role.uses if use.kind == "embedding")
        if lookups and "head" in role.parts:
            found[role.name] = Tied(lookups, _scale_before(roles, role))
    return found


def _scale_before(roles: Roles, head: Role) -> str | None:
    """Return the scale of the norm that a head reads, where nothing else reads that."""
    scales = {
        use.node.index: role for role in roles.by_name.values() if role.kind == "scale" for use in role.uses
    }
    read = {n for use in head.uses if use.kind == "weight" for n in _factors(roles.flow, use)}
    found = {_scale_of(roles.flow, node, scales) for node in read}
    return found.pop() if len(found) == 1 else None


def _factors(flow: Flow, use: Use) -> list[Node]:
    return [n for n in flow.operands(use.node) if n is not use.operand]


def _scale_of(flow: Flow, read: Node, scales: Mapping[int, Role]) -> str | None:
    for node in flow.upstream(read):
        if len([i for i in flow.consumers[node.index] if flow.nodes[i].signal]) > 1:
            return None
        if node.index in scales:
            role = scales[node.index]
            return role.name if len(role.uses) == 1 and role.ends is None else None
    return None
