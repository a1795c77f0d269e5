"""The walk that most questions about a graph begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from isometry.flow.graph import Node


def walk(starts: Iterable[Node], onwards: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    """Yield nodes and what lies onwards from them, each once, in no particular order.

    Args:
        starts: Where the walk begins.
        onwards: Returns the neighbours of a node that the walk goes on to.

    Yields:
        The nodes, those it begins at included.
    """
    waiting, seen = list(starts), set[int]()
    while waiting:
        node = waiting.pop()
        if node.index not in seen:
            seen.add(node.index)
            yield node
            waiting += onwards(node)
