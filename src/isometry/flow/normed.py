"""Tables behind a norm: no signal depends on how large their rows are."""

from __future__ import annotations

from collections.abc import Mapping

from isometry.flow.degrees import degree_through
from isometry.flow.graph import ADD, CONTRACTION, NORM, Flow, Node
from isometry.flow.roles import Role

_EPS = 0.05  # of the rows' mean square: a larger number added to it is no small one


def normed_tables(flow: Flow, tables: Mapping[str, Role], size: float) -> frozenset[str]:
    """Find the tables that nothing reads but through a norm, alone or summed with other such tables.

    f(c·rows) = f(rows) for all that lies behind the norms: what is between is of degree 1 in the rows, the
    norm's output of degree 0.

    Args:
        flow: The graph.
        tables: The roles of the tables that may be made as small as each other, by name.
        size: The RMS that the rows are to have: a norm's eps must be small beside it.

    Returns:
        The names of those tables.
    """
    free = dict(tables)
    while free and (bound := _bound(flow, free, size)):
        free = {name: role for name, role in free.items() if name not in bound}
    return frozenset(free)


def _bound(flow: Flow, tables: Mapping[str, Role], size: float) -> set[str]:
    """Return the tables whose size something depends on, were all of them scaled alike."""
    degrees: dict[int, float | None] = {}
    owners: dict[int, set[str]] = {}
    for name, role in tables.items():
        for use in role.uses:
            if use.kind in ("embedding", "position"):
                rows = use.node if use.kind == "embedding" else use.operand
                degrees[rows.index] = 1.0
                owners.setdefault(rows.index, set()).add(name)
    bound: set[str] = set()
    for node in flow.nodes:
        scaled = [i for i in node.inputs if owners.get(i)]
        if node.index in degrees or not scaled:
            continue
        behind = set[str]().union(*(owners[i] for i in scaled))
        if node.op in NORM and node.slot:
            continue  # statistics, kept for the backward pass
        degrees[node.index] = degree = degree_through(flow, node, degrees)
        if degree is None or _depends(node, size):
            bound |= behind
            degrees[node.index] = 0.0
        elif degree != 0.0:
            owners[node.index] = behind
    return bound.union(*(owners.get(i, ()) for i in flow.outputs))


def _depends(node: Node, size: float) -> bool:
    """Return whether an operation takes rows as they are: a weight, running statistics, a number to add."""
    if node.op in CONTRACTION or "batch_norm" in node.op:
        return True
    kinds = {*[float] * (node.op in NORM), *[float, int] * (node.op in ADD)}
    return any(abs(number) > _EPS * size**2 for number in node.args if type(number) in kinds)
