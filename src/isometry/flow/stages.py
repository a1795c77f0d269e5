"""Stages of a residual stream: sums in a row that have one shape, and what decides how large each begins."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.flow.graph import Flow
from isometry.flow.streams import Streams, deciders


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        stream: The stream it is a part of.
        first: Its first sum.
        begin: The node that is the stream there: the fork of that sum, or the end of its skip path where a
            weight lies on that.
        deciders: The operations with a parameter that decide how large the stream is there; none where it
            comes from the stage before as it is.
    """

    stream: int
    first: int
    begin: int
    deciders: tuple[int, ...]


def stages_of(flow: Flow, streams: Streams) -> list[Stage]:
    """Cut the residual streams of a graph where the shape of their sums changes.

    Args:
        flow: The graph.
        streams: Its streams.

    Returns:
        The stages in the order of execution.
    """
    found: list[Stage] = []
    shapes: dict[int, tuple[int, ...]] = {}
    for residual in streams.residuals.values():
        shape = flow.nodes[residual.node].shape
        if shapes.get(residual.stream) != shape:
            shapes[residual.stream] = shape
            begin = residual.skip if residual.skips else residual.fork
            nodes = deciders(flow, flow.nodes[begin], sums=streams.residuals)
            found.append(Stage(residual.stream, residual.node, begin, tuple(n.index for n in nodes)))
    return found
