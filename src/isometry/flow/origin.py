"""What each node of a graph is computed from: the inputs' values, parameters alone, or neither.

A contraction of parameters with parameters or constants is one of two things. A weight may be computed by
one: a low-rank update, an orthogonal matrix, a norm by power iteration. Or a parameter is the signal itself:
learned queries, a table of frequencies. What becomes of it tells: whatever is only ever read where a
contraction has its weight is a weight, anything else a signal.
"""

from __future__ import annotations

from isometry.flow.graph import BLANK, CONTRACTION, NORM, Flow, Node

_TABLES = frozenset(["index", "index_select", "gather", "take"])
_BATCHING = frozenset(["expand", "repeat", "bmm", "baddbmm"])


def tell(flow: Flow) -> None:
    """Say of every node whether it is a signal, and which parameters it is computed from where it is none.

    Args:
        flow: The graph; changed in place.
    """
    _mark(flow, set())
    signals = _begins(flow)
    if signals:
        _mark(flow, signals)
    flow.outputs = tuple(i for i in flow.outputs if flow.nodes[i].signal)


def _mark(flow: Flow, begins: set[int]) -> None:
    """Go through the graph once; the nodes in `begins` are signals whatever they read."""
    for node in flow.nodes:
        if node.op == "parameter":
            node.parameters = frozenset([node.index])
        elif node.op == "input":
            node.signal, node.ids = node.floating, not node.floating
        elif node.op != "constant" and node.op not in BLANK:
            _judge(flow, node, node.index in begins)


def _judge(flow: Flow, node: Node, begins: bool) -> None:
    read = [flow.nodes[i] for i in node.inputs]
    parameters = frozenset[int]().union(*(n.parameters for n in read))
    signal = begins or any(n.signal for n in read)
    chosen = any(n.signal or n.follows for n in read)
    node.ids = any(n.ids for n in read)
    if parameters and not signal:
        signal = node.op.startswith(("embedding", "_embedding_bag"))
        signal = signal or (node.op in _TABLES and (chosen or node.ids))
        signal = signal or (node.op in CONTRACTION and (chosen or node.ids))
    node.signal = signal and node.floating
    node.follows = chosen and not node.signal
    node.parameters = frozenset() if signal else parameters


def _begins(flow: Flow) -> set[int]:
    """Return the nodes at which a parameter, or a constant behind a weight, becomes a signal."""
    candidates = [n for n in flow.nodes if n.op in CONTRACTION | NORM and n.parameters and not n.slot]
    weights: dict[int, bool] = {}
    found: set[int] = set()
    for node in reversed(flow.nodes):
        if node.parameters:
            weights[node.index] = _ends_as_weight(flow, node, weights)
    for node in candidates:
        biased = node.op in ("addmm", "baddbmm") and len(node.inputs) == 3
        if biased or not weights[node.index]:
            found.add(node.index)
            found |= _source(flow, node, found)
    return found


def _ends_as_weight(flow: Flow, node: Node, known: dict[int, bool]) -> bool:
    """Return whether all that is made of a node is the weight of a contraction, or nothing at all."""
    for i in flow.consumers[node.index]:
        reader = flow.nodes[i]
        if reader.parameters:
            if not known.get(i, True) or (
                reader.op in _BATCHING and node.op != "parameter" and len(reader.shape) > 2
            ):
                return False
        elif reader.signal and (
            flow.weight(reader) is not node or (reader.op in _BATCHING and len(node.shape) > 2)
        ):
            return False
    return node.index not in flow.outputs


def _source(flow: Flow, node: Node, found: set[int]) -> set[int]:
    """Return the nodes that lead from a parameter to the first operation that treats it as a signal."""
    if node.op in NORM:
        current = flow.nodes[node.inputs[0]]
    else:
        operands = flow.operands(node)
        current = operands[0] if len(operands) > 1 and operands[0].parameters else node
    path: set[int] = set()
    while current.parameters and current.op != "parameter" and current is not node:
        if current.index in found:
            break
        path.add(current.index)
        before = [flow.nodes[i] for i in current.inputs if flow.nodes[i].parameters]
        if current.op in CONTRACTION | NORM:
            before = before[:1]
        current = max(before, key=lambda n: len(n.shape) * 10**12 + _entries(n))
    return path


def _entries(node: Node) -> int:
    size = 1
    for n in node.shape:
        size *= n
    return size
