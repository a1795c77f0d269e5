"""How what a residual branch adds follows what it reads: in proportion, as a power, or not at all."""

from __future__ import annotations

from isometry.flow.graph import ADD, CONTRACTION, MULTIPLY, SOFTMAX, Flow, Node
from isometry.flow.streams import Residual, is_norm
from isometry.flow.walks import walk

_NEVER_SMALL = SOFTMAX | {"sigmoid", "hardsigmoid", "softplus", "exp", "cos", "rsqrt", "reciprocal"}


def growth_of(flow: Flow, residual: Residual) -> float:
    """Return the power of a small factor on its stream by which a branch is smaller.

    0 behind a norm or what is not zero at zero, the sum of the factors' powers for a product, otherwise the
    least of what is read: 1 for linear maps, gelu or attention, 2 for a gated layer, where no norm precedes.

    Args:
        flow: The graph.
        residual: The branch's sum.

    Returns:
        The power.
    """
    back = walk([flow.nodes[residual.branch]], lambda n: flow.signals(n) if n.index > residual.fork else [])
    known = {residual.fork: 1.0}
    for i in sorted(n.index for n in back if n.index > residual.fork):
        known[i] = _growth(flow, flow.nodes[i], known)
    return known.get(residual.branch, 0.0)


def _growth(flow: Flow, node: Node, known: dict[int, float]) -> float:
    read = [known.get(i, 0.0) for i in node.inputs if flow.nodes[i].signal]
    if node.op in _NEVER_SMALL or is_norm(flow, node) or not read:
        return 0.0
    if node.op in ADD and len(read) == 1 and any(isinstance(a, int | float) and a for a in node.args[:2]):
        return 0.0  # 1 + tanh(x) is not zero at zero
    if node.op == "pow" and len(node.args) > 1 and isinstance(node.args[1], int | float):
        return read[0] * max(float(node.args[1]), 0.0)
    if node.op == "div" and len(read) == 2:
        return max(read[0] - read[1], 0.0)
    if node.op in MULTIPLY or node.op in CONTRACTION:
        return sum(read)
    return min(read)
