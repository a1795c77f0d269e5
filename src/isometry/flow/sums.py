"""Sums of parallel paths, none of which skips the other: embeddings, two weights before one gate."""

from __future__ import annotations

from typing import NamedTuple

from isometry.flow.graph import ADD, Flow, Node
from isometry.flow.roles import Roles
from isometry.flow.walks import walk


class Terms(NamedTuple):
    """What a sum of parallel paths is the sum of.

    Attributes:
        signals: The nodes that are signals.
        places: How many tables of positions are added to them.
    """

    signals: tuple[int, ...]
    places: int


def parallel_terms(roles: Roles, node: Node) -> Terms:
    """Return what the sum has that a node's output goes to first; one signal where there is none.

    Residual sums do not count, nor do those of functions of the node itself.

    Args:
        roles: The roles.
        node: The node.

    Returns:
        The terms.
    """
    flow, top = roles.flow, node
    waiting = [node]
    while waiting:
        current = waiting.pop()
        readers = [flow.nodes[i] for i in flow.consumers[current.index] if flow.nodes[i].signal]
        for reader in readers:
            if _adds(roles, reader) and not _of_itself(roles, reader, current, node):
                top, waiting = reader, [reader]
            elif flow.transparent(reader) and len(readers) == 1:
                waiting.append(reader)
    return _terms(roles, top)


def _of_itself(roles: Roles, total: Node, term: Node, node: Node) -> bool:
    """Return whether a sum's other term comes from the node, too: a function of it, such as x + x³."""
    others = roles.flow.signals(total)
    others.remove(term)
    back = walk(others, lambda n: [s for s in roles.flow.signals(n) if s.index >= node.index])
    return any(n is node for n in back)


def _adds(roles: Roles, node: Node) -> bool:
    """Return whether a node is a sum of terms of equal standing."""
    if node.op not in ADD or node.index in roles.streams.residuals:
        return False
    return len(roles.flow.signals(node)) == 2 or node.index in roles.positions


def _terms(roles: Roles, node: Node) -> Terms:
    for current in roles.flow.upstream(node):
        if _adds(roles, current):
            parts = [_terms(roles, s) for s in roles.flow.signals(current)]
            places = sum(p.places for p in parts) + (current.index in roles.positions)
            return Terms(tuple(i for p in parts for i in p.signals), places)
    return Terms((), 1) if current.index in roles.lookups_by_place else Terms((node.index,), 0)


def score_sums(roles: Roles) -> set[int]:
    """Return the nodes between attention scores and their softmax, where biases are added.

    Args:
        roles: The roles.

    Returns:
        The nodes.
    """
    flow = roles.flow
    found: set[int] = set()
    for attention in roles.attentions:
        node = flow.nodes[attention.softmax]
        while node.index > attention.scores and (signals := flow.signals(node)):
            found.add(node.index)
            behind = [s for s in signals if _reaches(flow, s, attention.scores)]
            node = behind[0] if behind else signals[0]
    return found


def _reaches(flow: Flow, node: Node, target: int) -> bool:
    """Return whether a node is computed from another one."""
    back = walk([node], lambda n: [s for s in flow.signals(n) if s.index >= target])
    return any(n.index == target for n in back)


def sums_behind(flow: Flow, node: Node) -> set[int]:
    """Return the sums of two signals that a node reaches through views, itself included.

    Args:
        flow: The graph.
        node: The node.

    Returns:
        The sums.
    """

    def adds(n: Node) -> bool:
        return n.op in ADD and len(flow.signals(n)) == 2

    def readers(n: Node) -> list[Node]:
        read = [flow.nodes[i] for i in flow.consumers[n.index]] if n is node or not adds(n) else []
        return [r for r in read if r.signal and (adds(r) or flow.transparent(r))]

    return {node.index} | {n.index for n in walk([node], readers) if adds(n)}
