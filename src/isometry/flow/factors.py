"""What a residual branch is multiplied by behind the weights that end it: numbers, gates, shares."""

from __future__ import annotations

from collections.abc import Collection

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
    numbers = (a for a in node.args if isinstance(a, int | float) and not isinstance(a, bool))
    read = (flow.nodes[i] for i in node.inputs)
    return any(abs(n) != 1 for n in numbers) or any(
        n.op == "constant" and all(side == 1 for side in n.shape) for n in read
    )
