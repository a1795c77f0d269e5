"""How what is computed from parameters depends on the scale of each: its degree in that parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping

from isometry.flow.graph import ADD, BLANK, CONTRACTION, LINEAR, MULTIPLY, NORM, SOFTMAX, Flow, Node
from isometry.flow.walks import walk

_POWERS = {
    "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "abs": 1.0, "clamp": 1.0, "clamp_min": 1.0,
    "std": 1.0, "var": 2.0, "linalg_vector_norm": 1.0, "norm": 1.0, "amax": 1.0,
    "maximum": 1.0,
}  # fmt: skip
_NOT_ZERO_AT_ZERO = SOFTMAX | {"exp", "exp2", "sigmoid", "softplus", "cos", "cosh"}
_PAIRS = {"var_mean": (2.0, 1.0), "std_mean": (1.0, 1.0)}


def degree_of(flow: Flow, node: Node, leaf: int) -> float | None:
    """Return the power of a factor on a parameter by which a node grows: f(c·w) = c^degree·f(w).

    1 for a weight times a number, 0 for one that is divided by its own size. Numbers that are added, or below
    which nothing falls, such as the eps of a norm, are taken as small.

    Args:
        flow: The graph.
        node: What is computed from the parameter; no signal.
        leaf: The parameter.

    Returns:
        The degree; None where the node is no power of the parameter's scale.
    """
    known: dict[int, float | None] = {}
    needed = _between(flow, node, leaf)
    for i in needed:
        known[i] = 1.0 if i == leaf else degree_through(flow, flow.nodes[i], known)
    return known.get(node.index, 0.0)


def bent(flow: Flow, node: Node, leaf: int) -> bool:
    """Return whether a node depends on a parameter through a function that is not zero at zero.

    exp(w), softmax(w), cos(w): the parameter is the logarithm, the rank or the angle of what is used, and no
    scale of it makes that small.

    Args:
        flow: The graph.
        node: What is computed from the parameter; no signal.
        leaf: The parameter.

    Returns:
        Whether it does, and is no power of the parameter's scale.
    """
    if degree_of(flow, node, leaf) is not None:
        return False
    return any(flow.nodes[i].op in _NOT_ZERO_AT_ZERO for i in _between(flow, node, leaf))


def _between(flow: Flow, node: Node, leaf: int) -> list[int]:
    """Return the nodes on the way from a parameter to a node, in order."""

    def before(n: Node) -> list[Node]:
        return [flow.nodes[i] for i in n.inputs if leaf in flow.nodes[i].parameters]

    return sorted(n.index for n in walk([node], before))


def degree_through(flow: Flow, node: Node, known: Mapping[int, float | None]) -> float | None:
    """Return a node's degree, given those of what it reads.

    Args:
        flow: The graph.
        node: The node.
        known: The degrees of the nodes before it; what is not named there does not depend on the parameter.

    Returns:
        The degree; None where the node is no power of the parameter's scale.
    """
    if node.op in BLANK:
        return 0.0
    read = [known.get(i, 0.0) for i in node.inputs]
    degrees = [d for d in read if d is not None]
    if len(degrees) < len(read):
        return None
    if node.op in NORM:
        return sum(degrees[1:]) if not node.slot else None
    if node.op in MULTIPLY and len(degrees) == 2:
        return degrees[0] + (degrees[1] if node.op == "mul" else -degrees[1])
    if node.op in CONTRACTION:
        return math.fsum(degrees)
    if node.op in ADD or node.op == "maximum":  # an eps may be a tensor
        degrees = [d for d, i in zip(degrees, node.inputs, strict=True) if i in known or flow.nodes[i].shape]
    if len(set(degrees)) > 1:
        return None
    power = _power(node)
    return None if power is None else power * degrees[0]


def _power(node: Node) -> float | None:
    """Return the degree of an operation in the one thing, or the several like ones, that it reads."""
    if node.op in _PAIRS:
        return _PAIRS[node.op][node.slot]
    if node.op == "pow":
        return float(node.args[1]) if isinstance(node.args[1], int | float) else None
    plain = node.op in LINEAR or node.op in MULTIPLY or node.op in ADD
    return _POWERS.get(node.op, 1.0 if plain else None)
