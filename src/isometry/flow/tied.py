"""Tables that are also weights: the rows that tokens are looked up in, tied with the head."""

from __future__ import annotations

from collections.abc import Collection

from isometry.flow.graph import Flow, Node
from isometry.flow.roles import Roles
from isometry.flow.stages import Stage
from isometry.flow.streams import is_norm
from isometry.flow.walks import walk


def tied_lookups(roles: Roles) -> dict[int, str]:
    """Return the nodes that look up rows of what is elsewhere the weight of a linear map, and its name.

    Args:
        roles: The roles.

    Returns:
        The names by node.
    """
    weights = (role for role in roles.by_name.values() if role.kind == "weight")
    return {u.node.index: role.name for role in weights for u in role.uses if u.kind == "embedding"}


def begins_with(flow: Flow, stage: Stage, lookups: Collection[int]) -> bool:
    """Return whether a stage's first state is rows looked up, with no weight and no norm between.

    Args:
        flow: The graph.
        stage: The stage.
        lookups: The nodes that look up the rows.

    Returns:
        Whether it is.
    """

    def back(node: Node) -> list[Node]:
        return [] if flow.weight(node) is not None or is_norm(flow, node) else flow.signals(node)

    return any(n.index in lookups for n in walk([flow.nodes[stage.begin]], back))
