"""What multiplies a signal on its way: numbers on a path, and gates and shares behind a branch's weights."""

from __future__ import annotations

from collections.abc import Callable, Collection

from isometry.flow.graph import CONTRACTION, MULTIPLY, Flow, Node
from isometry.flow.streams import Residual
from isometry.flow.walks import walk

_TRANSFORMS = frozenset(["_fft_c2c", "_fft_r2c", "_fft_c2r"])  # of n entries, √n as large


def multiplied(flow: Flow, residual: Residual, ends: Collection[int]) -> bool:
    """Return whether something multiplies a branch between its ends and the sum, but for parameters.

    Masks of dropout do not count: what they multiply is as large on average.

    Args:
        flow: The graph.
        residual: The residual sum.
        ends: The nodes that decide how large the branch is.

    Returns:
        Whether a number that is not 1, a constant of one entry, a known matrix, a Fourier transform or
        another signal does.
    """

    def before(node: Node) -> list[Node]:
        if node.index in ends or node.index <= residual.fork:
            return []
        return flow.signals(node)

    path = walk([flow.nodes[residual.branch]], before)
    return any(_multiplies(flow, node) for node in path if node.index not in ends)


def _multiplies(flow: Flow, node: Node) -> bool:
    if node.op in _TRANSFORMS:
        return True
    if node.op in CONTRACTION:  # with a known matrix: a basis, a filter
        return len(flow.signals(node)) == 1 and flow.weight(node) is None
    if node.op not in MULTIPLY:
        return False
    if len(flow.signals(node)) > 1:
        return True
    read = (flow.nodes[i] for i in node.inputs)
    return any(abs(n) != 1 for n in _numbers(node)) or any(
        n.op == "constant" and all(side == 1 for side in n.shape) for n in read
    )


def factor_between(flow: Flow, node: Node, stop: Callable[[Node], bool]) -> float:
    """Return the product of the numbers that multiply a signal before a node, back to where it stops."""
    factor = 1.0
    for current in flow.upstream(node):
        if stop(current):
            break
        numbers = _numbers(current)
        if current.op in MULTIPLY and numbers:
            factor = factor * numbers[0] if current.op == "mul" else factor / numbers[0]
    return factor


def factor_behind(flow: Flow, node: Node) -> float:
    """Return the product of the numbers that multiply a signal between a node and the model's output.

    Args:
        flow: The graph.
        node: Such as the contraction of a head.

    Returns:
        The factor of the first output that the node reaches with nothing else on the way; 1 without one.
    """
    for output in flow.outputs:
        end = flow.nodes[output]
        if any(n is node for n in flow.upstream(end)):
            return factor_between(flow, end, lambda n: n is node)
    return 1.0


def _numbers(node: Node) -> list[float]:
    """Return the factors of a product or quotient that the code wrote as numbers."""
    return [a for a in node.args[:2] if isinstance(a, int | float) and not isinstance(a, bool)]
