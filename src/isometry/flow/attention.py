"""Queries, keys and values: products of two signals before and behind a softmax."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from isometry.flow.graph import CONTRACTION, MULTIPLY, NORM, SOFTMAX, Flow, Node
from isometry.flow.walks import walk


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


def attentions_of(flow: Flow, sums: Collection[int] = ()) -> list[Attention]:
    """Find every softmax of a product of two signals.

    Args:
        flow: The graph.
        sums: The residual sums, which are not looked behind.

    Returns:
        The attentions in the order of execution.
    """
    found = []
    for node in flow.nodes:
        if not is_softmax(flow, node) or not (products := _scores(flow, node, sums)):
            continue
        scores = max(products, key=lambda n: (prod(n.shape), -n.index))
        query, key = _query_and_key(flow, scores, node)
        queries, keys = _weights(flow, query, sums), _weights(flow, key, sums)
        for product in products:  # with positions relative to the query, in a product of their own
            if product is not scores:
                q, k = (_weights(flow, side, sums) for side in _query_and_key(flow, product, node))
                queries, keys = queries + q, keys + k
        values: tuple[int, ...] = ()
        for product in averages(flow, node):
            values += _weights(flow, _averaged(flow, product, node), sums)
        found.append(
            Attention(
                scores=scores.index,
                softmax=node.index,
                queries=tuple(dict.fromkeys(queries)),
                keys=tuple(dict.fromkeys(keys)),
                values=tuple(dict.fromkeys(values)),
                width=query.shape[-1] if query.shape else 1,
            )
        )
    return found


def is_softmax(flow: Flow, node: Node) -> bool:
    """Return whether a node is a softmax: torch's, or exponentials over their sum.

    Args:
        flow: The graph.
        node: The node.

    Returns:
        Whether it is one.
    """
    if node.op in SOFTMAX:
        return node.signal and not node.slot
    if node.op not in MULTIPLY or len(signals := flow.signals(node)) != 2:
        return False
    powers, total = sorted(signals, key=lambda n: -prod(n.shape))
    if node.op == "div" and flow.nodes[node.inputs[0]] is not powers:
        return False
    powers = _first(flow, powers)
    if powers.op != "exp":
        return False
    steps = list(flow.upstream(total))
    if steps[-1].op == "reciprocal" and (before := flow.signals(steps[-1])):
        steps += flow.upstream(before[0])
    elif node.op != "div":
        return False
    return steps[-1] is powers and any(n.op in ("sum", "cumsum") for n in steps)


def _first(flow: Flow, node: Node) -> Node:
    """Return what lies before a node through views and scales."""
    *_, first = flow.upstream(node)
    return first


def _scores(flow: Flow, softmax: Node, sums: Collection[int]) -> list[Node]:
    """Return the products whose entries a softmax is of.

    Biases, soft caps and one mixing of heads may lie between; no norm, and no residual sum.
    """
    for mixings in (0, 1):
        found, waiting, seen = [], [(s, mixings) for s in flow.signals(softmax)], {softmax.index}
        while waiting:
            node, left = waiting.pop()
            if node.index in seen or node.index in sums or node.op in NORM or is_softmax(flow, node):
                continue
            seen.add(node.index)
            weighted = flow.weight(node) is not None
            if node.op in CONTRACTION and not weighted:
                operands = flow.operands(node)
                averaging = any(is_softmax(flow, n) for o in operands for n in flow.upstream(o))
                if len(flow.signals(node)) == 2 and not averaging:
                    found.append(node)
            elif not weighted or left:
                waiting += [(s, left - weighted) for s in flow.signals(node)]
        if found:
            return found
    return []


def _query_and_key(flow: Flow, scores: Node, softmax: Node) -> tuple[Node, Node]:
    """Return the factors of scores, first the one whose entries the softmax does not run over."""
    first, second = flow.operands(scores)
    dim = softmax.args[1] if softmax.op in SOFTMAX and len(softmax.args) > 1 else -1
    if (
        isinstance(dim, int)
        and dim % max(len(softmax.shape), 1) == len(softmax.shape) - 2
        and len(softmax.shape) == len(scores.shape)
    ):
        return second, first
    return first, second


def averages(flow: Flow, softmax: Node) -> list[Node]:
    """Return the products of a softmax's output and another signal.

    Args:
        flow: The graph.
        softmax: The softmax.

    Returns:
        The products; heads may have been mixed before.
    """
    found, waiting, seen = [], [softmax.index], {softmax.index}
    while waiting:
        for i in flow.consumers[waiting.pop()]:
            node = flow.nodes[i]
            if i in seen or not node.signal:
                continue
            seen.add(i)
            if node.op in CONTRACTION and flow.weight(node) is None:
                found.append(node)
            elif flow.transparent(node) or (node.op in CONTRACTION and len(softmax.shape) > 3):
                waiting.append(i)
    return found


def _averaged(flow: Flow, product: Node, softmax: Node) -> Node:
    """Return the factor of a product that does not come from the softmax."""
    first, second = flow.operands(product)
    return second if _comes_from(flow, first, softmax) else first


def _comes_from(flow: Flow, node: Node, source: Node) -> bool:
    while node.index >= source.index:
        if node is source:
            return True
        signals = flow.signals(node)
        if len(signals) != 1:
            return False
        node = signals[0]
    return False


def _weights(flow: Flow, operand: Node, sums: Collection[int]) -> tuple[int, ...]:
    """Return the weighted contractions behind an operand: back through views, norms and rotations."""

    def before(node: Node) -> list[Node]:
        ends = node.index in sums or node.op in CONTRACTION or is_softmax(flow, node)
        return [] if ends else flow.signals(node)

    found = (n.index for n in walk([operand], before) if flow.weight(n) is not None and n.index not in sums)
    return tuple(sorted(found))
