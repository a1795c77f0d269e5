"""What becomes of one signal, entry by entry, before it meets another signal or another weight."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isometry.errors import ModelError
from isometry.flow.graph import LINEAR, REDUCTION, Flow, Node, Ref

_MERGING = frozenset(["cat", "stack"])
_UNDOING = frozenset(["rsqrt", "sqrt", "reciprocal", "div", "pow"])
PARTS = frozenset(
    ["slice", "split", "split_with_sizes", "chunk", "unbind", "select", "unsafe_split", "index", "narrow"]
)
_RUN = frozenset(["neg", "masked_fill", "where"])  # linear, but no view
_FILLED = frozenset(["zeros_like", "ones_like", "full_like"])


@dataclass(frozen=True)
class Exit:
    """Where a cone ends: `consumer` reads `last`, the cone's last node, and is no part of it."""

    last: int
    consumer: int


@dataclass(frozen=True)
class Cone:
    """The nodes that are computed from one node and constants alone, without sums over weights.

    Attributes:
        source: The node it begins at.
        nodes: All its nodes, the source included.
        exits: Where it ends; an output of the model ends it without a consumer.
        output: Whether the model returns one of its nodes.
        nonlinear: The names of its pointwise functions, in order, linear ones left out.
        normalised: Whether it divides by a mean of itself, as a norm written out by hand does.
        divided: Whether it computes with parts of itself, as `a, b = x.chunk(2)` does.
        pooled: Whether it sums over entries.
    """

    source: int
    nodes: frozenset[int]
    exits: tuple[Exit, ...]
    output: bool
    nonlinear: tuple[str, ...]
    normalised: bool
    divided: bool
    pooled: bool


def cone_of(flow: Flow, source: Node) -> Cone:
    """Follow a node forward as far as nothing but itself and constants is involved.

    Args:
        flow: The graph.
        source: The node.

    Returns:
        Its cone.
    """
    inside = {source.index}
    exits: list[Exit] = []
    waiting = list(flow.consumers[source.index])
    heapq.heapify(waiting)
    seen = set(waiting)
    while waiting:
        node = flow.nodes[heapq.heappop(waiting)]
        if not (node.signal or node.follows):
            continue
        if _joins(flow, node, inside):
            inside.add(node.index)
            for i in flow.consumers[node.index]:
                if i not in seen:
                    seen.add(i)
                    heapq.heappush(waiting, i)
        elif node.signal:
            read = (i for i in dict.fromkeys(node.inputs) if flow.nodes[i].signal)
            exits += [Exit(i, node.index) for i in read if i in inside]
    order = [flow.nodes[i] for i in sorted(inside) if i != source.index]
    return Cone(
        source=source.index,
        nodes=frozenset(inside),
        exits=tuple(exits),
        output=not inside.isdisjoint(flow.outputs),
        nonlinear=tuple(n.op for n in order if _bends(flow, n)),
        normalised=_normalises(flow, order),
        divided=any(n.op in PARTS for n in order) and any(len(flow.signals(n)) > 1 for n in order),
        pooled=any(n.op in REDUCTION or "pool" in n.op for n in order),
    )


def _joins(flow: Flow, node: Node, inside: set[int]) -> bool:
    if any(s.index not in inside for s in flow.sources(node)):
        return False
    return node.pointwise or node.op in LINEAR or node.op in _MERGING or node.op in REDUCTION


def _bends(flow: Flow, node: Node) -> bool:
    """Return whether a node is a pointwise function and not a linear one."""
    return (
        node.signal
        and node.pointwise
        and not flow.transparent(node)
        and node.op not in ("add", "sub", "rsub")
    )


def _normalises(flow: Flow, order: list[Node]) -> bool:
    """Return whether a mean over entries is divided by: reduce, then a root or quotient, then a product."""
    reduced: set[int] = set()
    for node in order:
        if node.op in REDUCTION:
            reduced.add(node.index)
        elif any(i in reduced for i in node.inputs):
            if node.op in _UNDOING:
                return True
            reduced.add(node.index)
    return False


def replayed(flow: Flow, start: Node, end: Node) -> Callable[[Tensor], Tensor]:
    """Return the pointwise function that leads from one node to another, as a function of tensors.

    The recorded operations are run again on whatever tensor is given; views are left out, so the function
    maps entry to entry.

    Args:
        flow: The graph.
        start: What the function is of.
        end: What it gives; in the cone of `start`.

    Returns:
        The function.

    Raises:
        ModelError: What lies between is no function of single entries.
    """
    inside = cone_of(flow, start).nodes
    needed, waiting = {start.index}, [end.index]
    while waiting:
        i = waiting.pop()
        if i in needed:
            continue
        if i not in inside:
            raise ModelError(f"node {end.op} is no pointwise function of {start.op}")
        needed.add(i)
        waiting += [s.index for s in flow.sources(flow.nodes[i])]
    steps = [flow.nodes[i] for i in sorted(needed) if i != start.index]
    for node in steps:
        if node.op in REDUCTION or node.op in _MERGING or "pool" in node.op:
            raise ModelError(f"{node.op} between {start.op} and {end.op} is no function of single entries")

    def function(x: Tensor) -> Tensor:
        known = {start.index: x}
        for node in steps:
            if node.op in LINEAR and node.op not in _RUN and flow.signals(node):
                known[node.index] = known[flow.signals(node)[0].index]
                continue
            for i in node.inputs:
                if i not in known and (constant := _constant(flow, flow.nodes[i], x)) is not None:
                    known[i] = constant
            args, kwargs = mapped_refs((node.args, node.kwargs), known)
            kwargs.pop("device", None)  # that of the recorded run
            out = node.func(*args, **kwargs)
            known[node.index] = out if isinstance(out, Tensor) else out[node.slot]
        return known[end.index]

    return function


def _constant(flow: Flow, node: Node, x: Tensor) -> Tensor | None:
    """Return a constant that an activation was written with, in the type of its argument, if it is known."""
    while node.op in LINEAR and len(node.inputs) == 1:
        node = flow.nodes[node.inputs[0]]
    if node.op in _FILLED:
        made: Tensor = node.func(x, *node.args[1:])
        return made
    return None if node.value is None else torch.tensor(node.value, dtype=x.dtype)


def mapped_refs(tree: Any, known: dict[int, Tensor]) -> Any:
    """Return a node's arguments with references replaced by tensors.

    Raises:
        ModelError: A tensor is not known.
    """
    if isinstance(tree, Ref):
        if tree.node not in known:
            raise ModelError("a pointwise function with tensors of its own cannot be run on other entries")
        return known[tree.node]
    if isinstance(tree, list | tuple):
        return type(tree)(mapped_refs(x, known) for x in tree)
    if isinstance(tree, dict):
        return {k: mapped_refs(v, known) for k, v in tree.items()}
    return tree
