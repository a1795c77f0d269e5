"""Recurrent cells: what keeps a state and lets news in, and weights that read their own output."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.flow.cones import cone_of
from isometry.flow.graph import ADD, MULTIPLY, Flow, Node
from isometry.flow.roles import Role
from isometry.flow.walks import walk


@dataclass(frozen=True)
class Cell:
    """A state that is kept in part and added to in part: state = f·before + i·news.

    Attributes:
        state: The sum.
        forget: The sigmoid f that keeps what was before.
        insert: The sigmoid i that lets news in.
    """

    state: Node
    forget: Node
    insert: Node


def cells_of(flow: Flow) -> list[Cell]:
    """Find the cells of long short-term memories, one for every step.

    Args:
        flow: The graph.

    Returns:
        The cells in order of execution.
    """
    found = []
    for node in flow.nodes:
        products = flow.signals(node) if node.op in ADD else []
        if len(products) != 2 or any(p.op not in MULTIPLY for p in products):
            continue
        factors = [[flow.nodes[i] for i in p.inputs] for p in products]
        news = [any(f.op == "tanh" for f in fs) for fs in factors]
        gates = [[f for f in fs if f.op in ("sigmoid", "hardsigmoid")] for fs in factors]
        if sum(news) == 1 and all(len(g) == 1 for g in gates):
            at = news.index(True)
            found.append(Cell(node, gates[1 - at][0], gates[at][0]))
    return found


def sets_decay(flow: Flow, node: Node) -> bool:
    """Return whether a node is how long a step of a state is: exp(A·f(node)), A a parameter, keeps the state.

    Args:
        flow: The graph.
        node: A signal.

    Returns:
        Whether nothing but itself and constants is in such an exponential.
    """
    inside = [flow.nodes[i] for i in sorted(cone_of(flow, node).nodes)]
    rates = [flow.signals(n)[0] for n in inside if n.op == "exp" and n is not node]
    return any(
        step.op in MULTIPLY and any(flow.nodes[i].parameters for i in step.inputs)
        for rate in rates
        for step in flow.upstream(rate)
        if step.index > node.index
    )


def loops(flow: Flow, role: Role) -> bool:
    """Return whether a weight reads what came of its own output, as those between hidden states do.

    Args:
        flow: The graph.
        role: A weight.

    Returns:
        Whether its last use depends on its first through the operand that is no weight.
    """
    uses = [u for u in role.uses if u.kind == "weight"]
    if len(uses) < 2:
        return False
    first, last = uses[0].node.index, uses[-1].node
    back = walk([last], lambda n: [s for s in flow.signals(n) if s.index >= first])
    return last.index != first and any(n.index == first for n in back)
