"""Residual branches: where two paths from one node meet in a sum, and how such sums follow one another."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from isometry.flow.graph import ADD, MULTIPLY, NORM, REDUCTION, Flow, Node


@dataclass
class Residual:
    """A sum of a skip path and a branch, both from one fork.

    Attributes:
        node: The sum.
        fork: The node that both paths come from.
        skip: The sum's operand at the end of the path with fewer weights (none: an identity).
        branch: The other operand.
        layers: How many weights follow one another in the branch.
        depths: Of each weighted contraction in the branch, which of them it is, from 1.
        skips: The weighted contractions of the skip path.
        stream: Which stream it belongs to, from 0.
        order: Which sum of the stream it is, from 1.
        number: How many sums the stream has.
        since: Which sum it is since the stream was last normalised, from 1.
    """

    node: int
    fork: int
    skip: int
    branch: int
    layers: int
    depths: dict[int, int]
    skips: frozenset[int]
    stream: int = 0
    order: int = 1
    number: int = 1
    since: int = 1


@dataclass
class Streams:
    """All residual sums by their node, and the sums of parallel paths that are none."""

    residuals: dict[int, Residual] = field(default_factory=dict)
    number: list[int] = field(default_factory=list)


def streams_of(flow: Flow) -> Streams:
    """Find the residual branches of a graph and the streams that they form.

    Of the two operands of a sum the nearest common ancestor is the fork. The operand with fewer weights on
    the shortest way from it is the skip path; paths of equal length are parallel, and no residual. A path
    with weights is a skip path only where no weight is used twice: a recurrent state is none.

    Args:
        flow: The graph.

    Returns:
        The streams.
    """
    uses = Counter(w.index for n in flow.nodes if (w := flow.weight(n)) is not None and w.parameters)
    shared = _shared(flow, uses)
    found = Streams()
    for node in flow.nodes:
        if node.op in ADD and node.signal and len(flow.signals(node)) == 2:
            residual = _residual(flow, node, shared, found.residuals)
            if residual is not None:
                found.residuals[node.index] = residual
    _join(flow, found)
    return found


def _shared(flow: Flow, uses: Counter[int]) -> set[int]:
    """Return the contractions whose parameters serve several contractions."""
    leaves: Counter[int] = Counter()
    for weight in uses:
        leaves.update(dict.fromkeys(flow.nodes[weight].parameters, uses[weight]))
    return {
        n.index
        for n in flow.nodes
        if (w := flow.weight(n)) is not None and any(leaves[leaf] > 1 for leaf in w.parameters)
    }


def _residual(flow: Flow, node: Node, shared: set[int], found: Mapping[int, Residual]) -> Residual | None:
    a, b = (s.index for s in flow.signals(node))
    for skip, branch in ((a, b), (b, a)):
        if skip in found and (again := _second_branch(flow, node, found[skip], branch)) is not None:
            return again
    fork, region, beside = _fork(flow, a, b)
    if fork is None:
        return None
    depth_a, depths_a = _depths(flow, region[0], fork, a)
    depth_b, depths_b = _depths(flow, region[1], fork, b)
    if depth_a == depth_b:
        return None
    if depth_a > depth_b:
        a, b, depths_a, depths_b = b, a, depths_b, depths_a
    if shared & (depths_a.keys() | depths_b.keys()) and (depths_a or beside):
        return None
    if not depths_b and abs(depth_a - depth_b) == 1:
        return None  # a gate alone, as in n + z·(h − n)
    layers = max(depths_b.values(), default=0)
    return Residual(node.index, fork, a, b, layers, depths_b, frozenset(depths_a))


def _second_branch(flow: Flow, node: Node, first: Residual, branch: int) -> Residual | None:
    """Return the residual of x + f(x) + g(x), where the sum so far is no part of g(x); None for any other."""
    region, waiting = {branch}, [branch]
    while waiting:
        for s in flow.signals(flow.nodes[waiting.pop()]):
            if s.index == first.node:
                return None
            if s.index > first.fork and s.index not in region:
                region.add(s.index)
                waiting.append(s.index)
    if not any(s.index == first.fork for i in region for s in flow.signals(flow.nodes[i])):
        return None
    _, depths = _depths(flow, list(region), first.fork, branch)
    if not depths:
        return None
    return Residual(node.index, first.fork, first.node, branch, max(depths.values()), depths, frozenset())


def _fork(flow: Flow, a: int, b: int) -> tuple[int | None, tuple[list[int], list[int]], bool]:
    """Return two nodes' nearest common ancestor, what lies between, and whether there are others beside."""
    colours = {a: 1}
    colours[b] = colours.get(b, 0) | 2
    heap = [-i for i in colours]
    heapq.heapify(heap)
    region: tuple[list[int], list[int]] = ([], [])
    while heap:
        i = -heapq.heappop(heap)
        colour = colours[i]
        if colour == 3:
            return i, region, bool(heap)
        region[colour - 1].append(i)
        for s in flow.signals(flow.nodes[i]):
            if s.index not in colours:
                heapq.heappush(heap, -s.index)
            colours[s.index] = colours.get(s.index, 0) | colour
    return None, region, True


def _depths(flow: Flow, region: list[int], fork: int, end: int) -> tuple[int, dict[int, int]]:
    """Return the fewest weights between fork and node, and of each weight its place on the longest way."""
    longest, shortest = {fork: 0}, {fork: 0}
    places: dict[int, int] = {}
    for i in sorted(region):
        node = flow.nodes[i]
        before = [s.index for s in flow.signals(node) if s.index in shortest]
        weighted = flow.weight(node) is not None
        longest[i] = max((longest[b] for b in before), default=0) + weighted
        if before:
            gated = (
                node.op in MULTIPLY and len(flow.signals(node)) > 1
            )  # a state behind a gate is no skip path
            shortest[i] = min(shortest[b] for b in before) + (weighted or gated)
        if weighted:
            places[i] = longest[i]
    return shortest[end], places


def _join(flow: Flow, found: Streams) -> None:
    """Number the streams, and the sums within each."""
    before: dict[int, tuple[int | None, bool]] = {}
    for residual in found.residuals.values():
        start = residual.skip if residual.skip in found.residuals else residual.fork
        previous, normalised = _previous(flow, found, start, before)
        if previous is None:
            residual.stream = len(found.number)
            found.number.append(1)
            continue
        last = found.residuals[previous]
        residual.stream = last.stream
        found.number[last.stream] += 1
        residual.order = found.number[last.stream]
        residual.since = 1 if normalised else last.since + 1
    for residual in found.residuals.values():
        residual.number = found.number[residual.stream]


def _previous(
    flow: Flow, found: Streams, start: int, memo: dict[int, tuple[int | None, bool]]
) -> tuple[int | None, bool]:
    """Return the last residual sum before a node on its main path, and whether a norm lies between."""
    i, normalised = start, False
    path: list[tuple[int, bool]] = []
    while i not in found.residuals:
        if i in memo:
            previous, before = memo[i]
            memo.update({p: (previous, before or n) for p, n in path})
            return previous, before or normalised
        node = flow.nodes[i]
        path.append((i, normalised))
        inputs = flow.signals(node)
        if not inputs:
            return None, normalised
        normalised = normalised or is_norm(flow, node)
        i = inputs[0].index
    return i, normalised


def ends_of(flow: Flow, residual: Residual) -> list[Node]:
    """Return the nodes that decide how large a branch is: the last weights, norms or scales before the sum.

    Args:
        flow: The graph.
        residual: The residual sum.

    Returns:
        Contractions with weights, norms with a scale, or products with a parameter; several where parallel
        paths are summed, none where the branch has no parameter that could scale it.
    """
    return deciders(flow, flow.nodes[residual.branch], residual.fork)


def deciders(flow: Flow, node: Node, stop: int = -1) -> list[Node]:
    """Return the nodes with a parameter that decide how large a node is; see `ends_of`.

    Args:
        flow: The graph.
        node: The node.
        stop: Nodes up to this one are not looked at.

    Returns:
        The nodes in order of execution.
    """
    ends: list[Node] = []
    waiting, seen = [node], set()
    scale: Node | None = None
    while waiting:
        node = waiting.pop()
        if node.index in seen or node.index <= stop:
            continue
        seen.add(node.index)
        signals = flow.signals(node)
        scaled = any(flow.nodes[i].parameters for i in node.inputs)
        if flow.weight(node) is not None:
            ends.append(node)
        elif is_norm(flow, node):
            if scaled or scale is not None:
                ends.append(node if scaled else scale or node)
        elif node.op in MULTIPLY and len(signals) == 1 and scaled:
            scale = scale or node
            waiting += signals
        elif node.op in ADD and len(signals) == 2:
            waiting += signals
        elif signals:
            waiting.append(max(signals, key=lambda s: (prod(s.shape), s.index)))
    return sorted(ends, key=lambda n: n.index)


def is_norm(flow: Flow, node: Node) -> bool:
    """Return whether the output does not depend on the input's scale: torch's norms, or one by hand.

    One by hand is a product or quotient of a signal and something that a mean of the same signal went into.
    """
    if node.op in NORM:
        return True
    signals = flow.signals(node)
    if node.op not in MULTIPLY or len(signals) != 2:
        return False
    narrow, wide = sorted(signals, key=lambda n: prod(n.shape))
    sources = {n.index for n in flow.upstream(wide)}
    reduced, undone = False, node.op == "div" and narrow is not flow.nodes[node.inputs[0]]
    for _ in range(12):  # x·rsqrt(mean(x²) + eps) has five steps
        if narrow.index in sources:
            return reduced and undone
        reduced |= narrow.op in REDUCTION
        undone |= narrow.op in ("rsqrt", "reciprocal", "pow")
        before = flow.signals(narrow)
        if len(before) != 1:
            return False
        narrow = before[0]
    return False
