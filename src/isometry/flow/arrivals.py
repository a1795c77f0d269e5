"""What a weight reads: the activation, norm, sum or input that made the signal which arrives there."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from isometry.errors import ModelError
from isometry.flow.cones import PARTS, replayed
from isometry.flow.graph import ADD, CONTRACTION, LINEAR, MULTIPLY, REDUCTION, SOFTMAX, Flow, Node, Ref
from isometry.flow.streams import is_norm
from isometry.flow.walks import walk

Kind = Literal["input", "activation", "product", "norm", "sum", "linear", "average", "table", "other"]
# Arithmetic that many activations are written with; another name tells more.
_ARITHMETIC = frozenset(["add", "sub", "rsub", "mul", "div", "pow", "abs", "where", "reciprocal", "exp"])


@dataclass(frozen=True)
class Arrival:
    """What made the signal that a weight reads.

    Attributes:
        kind: The model's "input"; an "activation"; a "product" of two signals, one of them perhaps behind an
            activation; a "norm"; a "sum" of two signals; another weight's output ("linear"); the "average" of
            an attention; rows of a "table"; or something "other".
        name: The activation's name, a word for the rest.
        function: The activation, of tensors; of a product, the one that its one bent factor is behind.
        key: The same for equal functions.
        source: Of an activation and of a product's, the node that it is a function of; of a linear map its
            output.
    """

    kind: Kind
    name: str
    function: Callable[[Tensor], Tensor] | None = None
    key: Hashable = None
    source: int | None = None


def arrival_of(flow: Flow, contraction: Node) -> Arrival:
    """Find what made the signal that a weighted contraction reads.

    Views, pooling, concatenation, dropout, biases and scales on the way are passed through.

    Args:
        flow: The graph.
        contraction: The operation that reads the weight.

    Returns:
        What arrives.
    """
    weight = flow.weight(contraction)
    factors = [n for n in flow.operands(contraction) if n is not weight]
    if not factors:
        return Arrival("other", contraction.op)
    node = factors[0]
    while True:
        if node.op == "input":
            return Arrival("input", "the input")
        signals = flow.signals(node)
        plain = _plain(flow, node, signals)
        if plain is not None:
            return plain
        if len(signals) == 1 and _passes(flow, node):
            node = signals[0]
            continue
        if node.op in ("cat", "stack"):
            node = max(signals, key=lambda s: (s.op != "input", s.index))
            continue
        source = _source(flow, node)
        if _bends(flow, source, node):
            return _activation(flow, source, node)
        if source is not node:
            node = source
            continue
        return _join(flow, node, signals)


def _plain(flow: Flow, node: Node, signals: list[Node]) -> Arrival | None:
    """Return what arrives where one node tells it."""
    if not signals:
        table = node.op.startswith(("embedding", "_embedding_bag"))
        return Arrival("table", "a table's rows") if table else Arrival("other", node.op)
    if is_norm(flow, node):
        return Arrival("norm", "a norm")
    if node.op in CONTRACTION:
        if flow.weight(node) is not None:
            return Arrival("linear", "a linear map", source=node.index)
        return Arrival("average", "an average") if _averages(flow, node) else Arrival("product", "a product")
    if node.op in SOFTMAX:
        return Arrival("other", "softmax")
    return None


def _averages(flow: Flow, node: Node) -> bool:
    return any(n.op in SOFTMAX for f in flow.operands(node) for n in flow.upstream(f))


def _passes(flow: Flow, node: Node) -> bool:
    """Return whether a node hands its signal on but for views, pooling, scales and offsets."""
    if node.op in LINEAR or node.op in REDUCTION or "pool" in node.op:
        return True
    own = any(flow.nodes[i].parameters for i in node.inputs)
    return own and (node.op in ADD or node.op in MULTIPLY) and flow.transparent(node)


def _source(flow: Flow, node: Node) -> Node:
    """Return the farthest node that a node is a function of, entry by entry; itself where it is none."""
    found = node
    heap, seen = [-node.index], {node.index}
    while heap:
        current = flow.nodes[-heapq.heappop(heap)]
        if not heap:
            found = current
        if not _opens(flow, current):
            break
        for signal in flow.signals(current):
            if signal.index not in seen:
                seen.add(signal.index)
                heapq.heappush(heap, -signal.index)
    return found


def _opens(flow: Flow, node: Node) -> bool:
    """Return whether a node is a function of its signals' single entries."""
    if not flow.signals(node) or is_norm(flow, node) or node.op in REDUCTION or node.op in PARTS:
        return False
    if any(flow.nodes[i].parameters for i in node.inputs if not flow.nodes[i].signal):
        return False
    return node.pointwise or (node.op in LINEAR and "pool" not in node.op)


def _region(flow: Flow, source: Node, node: Node) -> list[Node]:
    """Return the nodes between a node and its source, in order, views left out."""
    back = walk([node], lambda n: [] if n is source else flow.signals(n))
    found = [n for n in back if n is not source and n.op not in LINEAR]
    return sorted(found, key=lambda n: n.index)


def _bends(flow: Flow, source: Node, node: Node) -> bool:
    return any(not flow.transparent(n) for n in _region(flow, source, node))


def _activation(flow: Flow, source: Node, node: Node, kind: Kind = "activation") -> Arrival:
    region = _region(flow, source, node)
    name = next((n.op for n in region if n.op not in _ARITHMETIC), region[-1].op)
    try:
        function = replayed(flow, source, node)
    except ModelError:
        return Arrival(kind, name, source=source.index)
    places = {n.index: k for k, n in enumerate(region)}
    key = tuple((n.op, _said(n.args, places), _said(n.kwargs, places)) for n in region)
    return Arrival(kind, name, function, key, source.index)


def _said(tree: Any, places: dict[int, int]) -> str:
    """Write arguments down so that equal functions read alike, wherever in the graph they are."""
    if isinstance(tree, Ref):
        return f"<{places.get(tree.node, 'x')}>"
    if isinstance(tree, list | tuple):
        return f"({','.join(_said(item, places) for item in tree)})"
    if isinstance(tree, dict):
        return f"({','.join(f'{k}={_said(v, places)}' for k, v in sorted(tree.items()))})"
    return repr(tree)


def _join(flow: Flow, node: Node, signals: list[Node]) -> Arrival:
    """Return what arrives from a sum or a product of signals that come from different places."""
    if node.op in ADD:
        return Arrival("sum", "a sum")
    if node.op not in MULTIPLY:
        return Arrival("other", node.op)
    bent = [s for s in signals if _bent(flow, s)]
    if len(bent) == 1 and (source := _source(flow, bent[0])) is not bent[0]:
        return _activation(flow, source, bent[0], "product")
    return Arrival("product", "a product")


def _bent(flow: Flow, node: Node) -> bool:
    """Return whether a factor is behind an activation; one written in place has no source of its own."""
    plain = node.op in ADD or node.op in MULTIPLY or node.op in LINEAR
    return _bends(flow, _source(flow, node), node) or (node.pointwise and not plain)
