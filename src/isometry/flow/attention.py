"""Queries, keys and values: products of two signals before and behind a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.flow.graph import CONTRACTION, SOFTMAX, Flow, Node


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        scores: The product of queries and keys.
        softmax: The softmax of the scores.
        queries: The weighted contractions that the queries come from.
        keys: Likewise.
        values: Likewise, of what the softmax averages.
        width: How many entries a query and a key have (the size of a head).
    """

    scores: int
    softmax: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    width: int


def attentions_of(flow: Flow) -> list[Attention]:
    """Find every softmax of a product of two signals.

    Args:
        flow: The graph.

    Returns:
        The attentions in the order of execution.
    """
    found = []
    for node in flow.nodes:
        if node.op not in SOFTMAX or node.slot or not node.signal:
            continue
        scores = _scores(flow, node)
        if scores is None:
            continue
        query, key = flow.operands(scores)
        values: tuple[int, ...] = ()
        for product in _products(flow, node):
            factors = flow.operands(product)
            other = [f for f in factors if node.index not in {n.index for n in flow.upstream(f)}]
            if len(other) == 1:
                values += _weights(flow, other[0])
        found.append(
            Attention(
                scores=scores.index,
                softmax=node.index,
                queries=_weights(flow, query),
                keys=_weights(flow, key),
                values=tuple(dict.fromkeys(values)),
                width=query.shape[-1] if query.shape else 1,
            )
        )
    return found


def _scores(flow: Flow, softmax: Node) -> Node | None:
    """Return the product whose entries the softmax is of; sums with a bias and soft caps lie between."""
    node = softmax
    for _ in range(40):
        signals = flow.signals(node)
        if not signals:
            return None
        if node.op in CONTRACTION:
            return node if flow.weight(node) is None and len(flow.operands(node)) == 2 else None
        node = max(signals, key=lambda s: (len(s.shape), s.index))
    return None


def _products(flow: Flow, softmax: Node) -> list[Node]:
    """Return the products that read the softmax's output."""
    found, waiting, seen = [], [softmax.index], {softmax.index}
    while waiting:
        for i in flow.consumers[waiting.pop()]:
            node = flow.nodes[i]
            if i in seen or not node.signal:
                continue
            seen.add(i)
            if node.op in CONTRACTION:
                found.append(node)
            elif flow.transparent(node):
                waiting.append(i)
    return found


def _weights(flow: Flow, operand: Node) -> tuple[int, ...]:
    """Return the weighted contractions behind an operand: back through views, norms and rotations."""
    found: list[int] = []
    waiting, seen = [operand], set()
    while waiting:
        node = waiting.pop()
        if node.index in seen:
            continue
        seen.add(node.index)
        if flow.weight(node) is not None:
            found.append(node.index)
        elif node.op not in CONTRACTION and node.op not in SOFTMAX:
            waiting += flow.signals(node)
    return tuple(sorted(found))
