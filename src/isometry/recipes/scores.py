"""The spread of attention scores: which weights decide it, or which factor where their outputs are normed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from isometry.flow.attention import Attention, is_softmax
from isometry.flow.graph import CONTRACTION, Node
from isometry.flow.roles import Role, Roles
from isometry.flow.streams import is_norm
from isometry.flow.walks import walk
from isometry.solving.passes import Balance


def score_balances(
    roles: Roles, readers: Callable[[tuple[int, ...]], tuple[str, ...]], settled: Collection[str]
) -> Iterator[tuple[Balance, list[Role]]]:
    """Yield what lets scores vary by 1 along their softmax, for each attention.

    Args:
        roles: The roles.
        readers: Returns the parameters that are solved for and that operations read.
        settled: The parameters that are not to be changed.

    Yields:
        The balance, and the factors that it needs solved: none where queries or keys have a size of their
        own. Attentions whose scores nothing can change are left out.
    """
    for attention in roles.attentions:
        scores = roles.flow.signals(roles.flow.nodes[attention.softmax])[0].index
        names = readers(free_weights(roles, attention))
        if names:
            # A fused weight makes both factors, two weights one each: a half of what is missing.
            yield Balance(scores, names, 1.0, spread=True, power=0.5), []
        elif factors := [r for r in temperatures(roles, attention) if r.name not in settled]:
            named = tuple(role.name for role in factors)
            yield Balance(scores, named, 1.0, spread=True, power=1.0 / len(factors)), factors


def free_weights(roles: Roles, attention: Attention) -> tuple[int, ...]:
    """Return the contractions with weights that decide how large scores are: no norm lies between.

    Args:
        roles: The roles.
        attention: The attention.

    Returns:
        The nodes; queries and keys that are normed, or divided by their own length, are left out.
    """
    flow = roles.flow
    free, normed = set[int](), set[int]()
    for operand in flow.operands(flow.nodes[attention.scores]):
        path = list(_back(roles, operand))
        bound = any(is_norm(flow, node) for node in path)
        (normed if bound else free).update(n.index for n in path if flow.weight(n) is not None)
    return tuple(n for n in (*attention.queries, *attention.keys) if n in free or n not in normed)


def temperatures(roles: Roles, attention: Attention) -> list[Role]:
    """Return the factors on scores, or on normed queries and keys, that are parameters and no norm's own.

    Args:
        roles: The roles.
        attention: The attention.

    Returns:
        Their roles.
    """
    path = {n.index for n in _back(roles, roles.flow.nodes[attention.softmax], through=attention.scores)}
    return [
        role
        for role in roles.by_name.values()
        if role.kind == "scale" and "norm" not in role.feeds and len(role.nodes) == 1 and role.ends is None
        and role.uses[-1].node.index in path and len(role.uses) == 1
    ]  # fmt: skip


def _back(roles: Roles, start: Node, *, through: int = -1) -> Iterator[Node]:
    """Yield the nodes before one as far as weights, averages and sums of a residual stream."""
    flow, sums = roles.flow, roles.streams.residuals

    def before(node: Node) -> list[Node]:
        inner = node is not start and is_softmax(flow, node)
        product = node.op in CONTRACTION and node.index != through
        return [] if inner or product or node.index in sums else flow.signals(node)

    return walk([start], before)
