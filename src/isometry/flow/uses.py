"""Operations that read a parameter beside a signal, and what they read it for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from isometry.flow.cones import Cone, cone_of
from isometry.flow.degrees import bent, degree_of
from isometry.flow.graph import ADD, CONTRACTION, IDENTITY, LINEAR, MULTIPLY, NORM, Flow, Node, Ref

Kind = Literal["weight", "bias", "scale", "embedding", "position", "token", "slope", "other", "unused"]

_VIEWS = IDENTITY - {"native_dropout", "dropout", "roll"}
_TOKENS = _VIEWS | {"cat", "stack", "where", "index_put", "slice_scatter", "copy", "select_scatter", "lerp"}

# Where biases and scales stand among the arguments of torch's norms.
_NORM_PLACES = {
    "native_layer_norm": (2, 3),
    "native_group_norm": (1, 2),
    "_fused_rms_norm": (2, None),
}


@dataclass(frozen=True, eq=False)
class Use:
    """One operation that reads a parameter beside a signal.

    Attributes:
        node: The operation.
        operand: What it reads: the parameter, or what was computed from parameters alone.
        kind: What for.
        cone: Of a weight, what becomes of its output.
    """

    node: Node
    operand: Node
    kind: Kind
    cone: Cone | None = None


def uses_of(flow: Flow) -> dict[int, list[Use]]:
    """Find the operations that read parameters beside a signal.

    Args:
        flow: The graph.

    Returns:
        The uses by parameter leaf, in order of execution.
    """
    found: dict[int, list[Use]] = {}
    for node in flow.nodes:
        if not node.signal or node.slot:
            continue
        for i in dict.fromkeys(node.inputs):
            operand = flow.nodes[i]
            if operand.signal or not operand.parameters:
                continue
            kind = _use_kind(flow, node, operand)
            cone = cone_of(flow, node) if kind == "weight" else None
            for leaf in operand.parameters:
                use = Use(node, operand, kind, cone)
                if kind == "weight" and not _makes(flow, leaf, operand):
                    use = Use(node, operand, "scale" if degree_of(flow, operand, leaf) == 1.0 else "other")
                elif kind == "weight" and bent(flow, operand, leaf):
                    use = Use(node, operand, "other")
                found.setdefault(leaf, []).append(use)
    return found


def _makes(flow: Flow, leaf: int, operand: Node) -> bool:
    """Return whether a parameter is the weight, not what turns or updates a weight that is another one's."""
    size = prod(operand.shape)
    whole = [i for i in operand.parameters if prod(flow.nodes[i].shape) == size]
    return not whole or leaf in whole


def _use_kind(flow: Flow, node: Node, operand: Node) -> Kind:
    """Tell what an operation reads a parameter for."""
    if node.op in CONTRACTION:
        if operand in flow.operands(node):
            return "weight" if flow.weight(node) is operand else "token"
        return "bias"
    if node.op.startswith(("embedding", "_embedding_bag")):
        return "embedding"
    if node.op in NORM:
        places = _NORM_PLACES.get(node.op, (1, 2))
        position = next(
            (k for k, a in enumerate(node.args) if getattr(a, "node", None) == operand.index), places[0]
        )
        if position == 0:
            return "token"
        return "bias" if position == places[1] else "scale"
    if node.op in MULTIPLY:
        return _factor(flow, node, operand) if _plain(flow, operand) else "other"
    first = isinstance(node.args[0], Ref) and node.args[0].node == operand.index if node.args else False
    if node.op == "addcmul" and not first:
        return "scale" if _plain(flow, operand) else "other"
    if node.op in ADD or node.op == "addcmul":
        return "bias" if _channels_only(operand) else "position"
    if node.op in _TOKENS:
        return "token"
    if node.op in ("_prelu_kernel", "prelu"):
        return "slope"
    return "embedding" if node.op in ("index", "index_select", "gather", "take") else "other"


def _factor(flow: Flow, node: Node, operand: Node) -> Kind:
    """Tell what a parameter is that multiplies a signal entry by entry.

    A scale, unless the products are then summed along an axis that it varies on: a contraction written out,
    whose weights they are. Where the signal is one number along such an axis, x[:, None]·w, it says how much
    there is of each row of w, as of those of a table.
    """
    varies = [k for k in range(-len(operand.shape), 0) if operand.shape[k] > 1]
    readers = [flow.nodes[i] for i in flow.consumers[node.index] if flow.nodes[i].signal]
    if len(readers) == 1 and readers[0].op in ("sum", "mean") and prod(readers[0].shape) > 1:
        dims = readers[0].args[1] if len(readers[0].args) > 1 else None
        summed = [k % len(node.shape) for k in dims or range(len(node.shape))]
        if any(k % len(node.shape) in summed for k in varies):
            return "other"
    shapes = [s.shape for s in flow.signals(node) if s is not operand]
    single = any(all(k < -len(shape) or shape[k] == 1 for shape in shapes) for k in varies)
    return "embedding" if shapes and single and node.op == "mul" else "scale"


def _plain(flow: Flow, operand: Node) -> bool:
    """Return whether an operand is one parameter, viewed, or shifted by a number."""
    node = operand
    while node.op != "parameter":
        before = [flow.nodes[i] for i in node.inputs if flow.nodes[i].parameters]
        if len(before) != 1 or not (node.op in LINEAR or node.op in ADD or node.op == "mul"):
            return False
        node = before[0]
    return True


def _channels_only(operand: Node) -> bool:
    """Return whether a tensor varies along one axis alone, as a bias does."""
    return sum(n > 1 for n in operand.shape) <= 1
