"""Residual branches: where two paths from one node meet in a sum, and how such sums follow one another."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod

from isometry.flow.graph import ADD, CHOOSING, CONTRACTION, MULTIPLY, NORM, REDUCTION, SOFTMAX, Flow, Node

# Several signals side by side, or one written into another: all of them are part of the result.
_TOGETHER = CHOOSING | {"cat", "stack", "slice_scatter", "select_scatter", "where", "lerp", "index_copy"}
_GATES = SOFTMAX | {"sigmoid", "hardsigmoid", "tanh", "softplus", "clamp", "hardtanh", "exp", "rsqrt"}
# Not 0 at 0: however small what they read, what they give is not.
_NEVER_SMALL = SOFTMAX | {"exp", "sigmoid", "softplus", "hardsigmoid", "cos", "cosh", "rsqrt", "reciprocal"}


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
    """All residual sums by their node.

    Attributes:
        residuals: The sums.
        number: How many sums each stream has.
        outer: Of a sum inside another one's branch, that other one.
    """

    residuals: dict[int, Residual] = field(default_factory=dict)
    number: list[int] = field(default_factory=list)
    outer: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Skip:
    """A path on which nothing but views, pools, norms and weights lies, back from a sum's operand.

    Attributes:
        end: The operand.
        fork: Where the path begins: the first of its nodes that the other operand is computed from too.
        weights: The weighted contractions on it.
    """

    end: int
    fork: int
    weights: tuple[int, ...]


def streams_of(flow: Flow) -> Streams:
    """Find the residual branches of a graph and the streams that they form.

    A residual sum has an operand, the skip path, that comes from its fork by views, pools, norms and weights
    alone, and another one, the branch, that comes from the same fork and has more weights in a row. Paths of
    equal length are parallel, and no residual; so are two linear maps of one signal. A path with weights is a
    skip path only where no weight is used twice (a recurrent state is none) and no sum lies in the branch (a
    pyramid of scales is none). A branch without weights is one where it has a norm.

    Args:
        flow: The graph.

    Returns:
        The streams.
    """
    shared = _shared(flow)
    found = Streams()
    for node in flow.nodes:
        if node.op in ADD and node.signal and len(flow.signals(node)) == 2:
            residual = None if _is_factor(flow, node) else _residual(flow, node, shared, found)
            if residual is not None:
                found.residuals[node.index] = residual
    _join(flow, found)
    return found


def _is_factor(flow: Flow, node: Node) -> bool:
    """Return whether a sum is only a factor of something: a state's change before its gate."""
    readers = [flow.nodes[i] for i in flow.consumers[node.index] if flow.nodes[i].signal]
    return bool(readers) and all(
        n.op in MULTIPLY and len(flow.signals(n)) == 2 and not is_norm(flow, n) for n in readers
    )


def _shared(flow: Flow) -> set[int]:
    """Return the contractions whose parameters serve several contractions."""
    uses: list[tuple[int, frozenset[int]]] = []
    leaves: Counter[int] = Counter()
    for node in flow.nodes:
        if node.op in CONTRACTION and (weight := flow.weight(node)) is not None:
            uses.append((node.index, weight.parameters))
            leaves.update(weight.parameters)
    return {index for index, parameters in uses if any(leaves[leaf] > 1 for leaf in parameters)}


def _residual(flow: Flow, node: Node, shared: set[int], found: Streams) -> Residual | None:
    a, b = (s.index for s in flow.signals(node))
    skips = [
        (skip, other)
        for end, other in ((a, b), (b, a))
        if _whole(flow.nodes[end], node) and (skip := _skip(flow, end, other, shared, found)) is not None
    ]
    skips.sort(key=lambda pair: len(pair[0].weights))
    if not skips or (len(skips) == 2 and bool(skips[0][0].weights) == bool(skips[1][0].weights)):
        return None
    skip, other = skips[0]
    layers, places, inner, normalised = _depths(flow, skip.fork, other, found)
    if layers <= len(skip.weights) and not (normalised and layers == 0):
        return None
    if skip.weights and inner:
        return None  # two scales of one pyramid
    for i in inner:
        found.outer.setdefault(i, node.index)
    return Residual(node.index, skip.fork, skip.end, other, layers, places, frozenset(skip.weights))


def _whole(part: Node, node: Node) -> bool:
    """Return whether an operand has all entries of the sum, but for a leading dim that it lacks."""
    if prod(part.shape) == prod(node.shape):
        return True
    shape = tuple(part.shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    return len(shape) > 1 and shape == node.shape[len(node.shape) - len(shape) :]


def _skip(flow: Flow, end: int, other: int, shared: set[int], found: Streams) -> _Skip | None:
    """Go back from an operand until a node that the other operand is computed from as well."""
    seen: set[int] = set()
    heap = [-other]
    weights: list[int] = []
    current: int | None = end
    while current is not None:
        while heap and -heap[0] > current:
            i = -heapq.heappop(heap)
            if i not in found.residuals:
                _expand(flow, i, heap, seen)
            elif (before := found.residuals[i].skip) not in seen:  # not all that went into the stream
                seen.add(before)
                heapq.heappush(heap, -before)
        if heap and -heap[0] == current:
            return _Skip(end, current, tuple(weights)) if current != other else None
        node = flow.nodes[current]
        if flow.weight(node) is not None:
            if current in shared:
                return None
            weights.append(current)
        current = _before(flow, node, found)
    return None


def _expand(flow: Flow, index: int, heap: list[int], seen: set[int]) -> None:
    for s in flow.signals(flow.nodes[index]):
        if s.index not in seen:
            seen.add(s.index)
            heapq.heappush(heap, -s.index)


def _before(flow: Flow, node: Node, found: Streams) -> int | None:
    """Return what lies before a node on a skip path; None where it is none, or begins there."""
    if node.index in found.residuals:
        return found.residuals[node.index].skip
    signals = flow.signals(node)
    if not signals:
        return None
    if is_norm(flow, node):
        return main_input(flow, node).index
    if len(signals) > 1:
        return None
    linear = flow.transparent(node) or "pool" in node.op or flow.weight(node) is not None
    return signals[0].index if linear else None


def _depths(flow: Flow, fork: int, end: int, found: Streams) -> tuple[int, dict[int, int], list[int], bool]:
    """Return how many weights follow one another from a fork to a node, and each one's place.

    Weights that the branch reads beside what comes from the fork have their place in their own row. Also
    returned: which residual sums lie between, and whether a norm does.
    """
    seen = {end}
    heap, order = [-end], []
    while heap:
        i = -heapq.heappop(heap)
        if i > fork:
            order.append(i)
            _expand(flow, i, heap, seen)
    own: dict[int, int] = {fork: 0}
    beside: dict[int, int] = {}
    places: dict[int, int] = {}
    inner: list[int] = []
    normalised = False
    for i in reversed(order):
        node = flow.nodes[i]
        before = [s.index for s in flow.signals(node)]
        weighted = flow.weight(node) is not None
        inside = [own[j] for j in before if j in own]
        depth = max(inside or [beside.get(j, 0) for j in before], default=0) + weighted
        (own if inside else beside)[i] = depth
        normalised |= bool(inside) and is_norm(flow, node)
        if inside and i in found.residuals:
            inner.append(i)
        if weighted:
            places[i] = depth
    return own.get(end, 0), places, inner, normalised


def _join(flow: Flow, found: Streams) -> None:
    """Number the streams, and the sums within each."""
    before: dict[int, tuple[int | None, bool]] = {}
    for residual in found.residuals.values():
        start = residual.skip if residual.skip in found.residuals else residual.fork
        previous, normalised = _previous(flow, found, start, before)
        outer = found.outer.get(residual.node)
        if previous is None or found.outer.get(previous) != outer:
            residual.stream = len(found.number)
            found.number.append(1)
            continue
        last = found.residuals[previous]
        residual.stream = last.stream
        found.number[last.stream] += 1
        residual.order = found.number[last.stream]
        fresh = normalised or _normed(flow, found, residual)
        residual.since = 1 if fresh else last.since + 1
    for residual in found.residuals.values():
        residual.number = found.number[residual.stream]


def _normed(flow: Flow, found: Streams, residual: Residual) -> bool:
    """Return whether the skip path has a norm of its own."""
    i: int | None = residual.skip
    while i is not None and i > residual.fork:
        if is_norm(flow, flow.nodes[i]):
            return True
        i = None if i in found.residuals else _before(flow, flow.nodes[i], found)
    return False


def _previous(
    flow: Flow, found: Streams, start: int, memo: dict[int, tuple[int | None, bool]]
) -> tuple[int | None, bool]:
    """Return the last residual sum before a node on its main path, and whether a norm lies between."""
    i = start
    path: list[tuple[int, bool]] = []
    last: tuple[int | None, bool] = (None, False)
    while i not in memo:
        if i in found.residuals:
            last = i, False
            break
        node = flow.nodes[i]
        path.append((i, is_norm(flow, node)))
        if not flow.signals(node):
            break
        i = main_input(flow, node).index
    else:
        last = memo[i]
    for p, norm in reversed(path):
        last = memo[p] = last[0], last[1] or norm
    return last


def main_input(flow: Flow, node: Node) -> Node:
    """Return the input of a node that carries the stream: what is normalised, gated or averaged.

    Args:
        flow: The graph.
        node: A node that reads a signal.

    Returns:
        The signal.
    """
    signals = flow.signals(node)
    if len(signals) == 1:
        return signals[0]
    if node.op in MULTIPLY and is_norm(flow, node):
        return max(signals, key=lambda s: (prod(s.shape), -s.index))
    free = [s for s in signals if not _gates(flow, s)]
    if node.op in MULTIPLY or node.op in CONTRACTION:
        signals = free or signals
    return max(signals, key=lambda s: prod(s.shape))


def _gates(flow: Flow, node: Node) -> bool:
    """Return whether a factor is bounded: a gate, or the weights of an average."""
    *_, first = flow.upstream(node)
    return first.op in _GATES


def ends_of(flow: Flow, residual: Residual, sums: Collection[int] = ()) -> list[Node]:
    """Return the nodes that decide how large a branch is: the last weights, norms or scales before the sum.

    Args:
        flow: The graph.
        residual: The residual sum.
        sums: The residual sums: one inside the branch has ends of its own.

    Returns:
        Contractions with weights, norms with a scale, or products with a parameter; several where parallel
        paths are summed, none where the branch has no parameter that could scale it.
    """
    return deciders(flow, flow.nodes[residual.branch], residual.fork, sums)


def deciders(flow: Flow, node: Node, stop: int = -1, sums: Collection[int] = ()) -> list[Node]:
    """Return the nodes with a parameter that decide how large a node is; see `ends_of`.

    Args:
        flow: The graph.
        node: The node.
        stop: Nodes up to this one are not looked at.
        sums: Nodes that are not looked behind.

    Returns:
        The nodes in order of execution.
    """
    ends: list[Node] = []
    waiting: list[tuple[Node, Node | None]] = [(node, None)]  # with the scale that was met on the way
    seen: set[int] = set()
    while waiting:
        node, scale = waiting.pop()
        if node.index in seen or node.index <= stop or node.index in sums:
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
            waiting.append((signals[0], scale or node))
        elif (node.op in ADD and len(signals) == 2) or node.op in _TOGETHER:
            waiting += [(s, scale) for s in signals]
        elif signals and node.op not in _NEVER_SMALL:
            waiting.append((_factor(flow, node), scale))
    return sorted(ends, key=lambda n: n.index)


def _factor(flow: Flow, node: Node) -> Node:
    """Return the input whose size a branch's end has most to do with: no gate, nothing bent if possible."""
    signals = flow.signals(node)
    if len(signals) == 1:
        return signals[0]
    free = [s for s in signals if not _gates(flow, s)] or signals
    entries = max(prod(s.shape) for s in free)
    free = [s for s in free if prod(s.shape) == entries]
    straight = [s for s in free if not _bent(flow, s)]
    return max(straight or free, key=lambda s: s.index)


def _bent(flow: Flow, node: Node) -> bool:
    *_, first = flow.upstream(node)
    return first.pointwise and bool(flow.signals(first)) and first.op not in ADD


def is_norm(flow: Flow, node: Node) -> bool:
    """Return whether the output does not depend on the input's scale: torch's norms, or one by hand.

    One by hand is a product or quotient of a signal and something that a mean of the same signal went into.

    Args:
        flow: The graph.
        node: The node.

    Returns:
        Whether it is one.
    """
    if node.op in NORM:
        return True
    if node.op not in MULTIPLY:
        return False
    if node.index not in flow.norms:
        flow.norms[node.index] = _divides_by_own_size(flow, node)
    return flow.norms[node.index]


def _divides_by_own_size(flow: Flow, node: Node) -> bool:
    signals = flow.signals(node)
    if len(signals) != 2:
        return False
    narrow, wide = sorted(signals, key=lambda n: (prod(n.shape), -n.index))  # it may be expanded
    undone = node.op == "div" and narrow is not flow.nodes[node.inputs[0]]
    reduced, own = False, _without_mean(flow, wide)
    for _ in range(16):  # x·rsqrt(mean(x²) + eps) has five steps
        if narrow.index in own:
            return reduced and undone
        reduced |= narrow.op in REDUCTION
        undone |= narrow.op in ("rsqrt", "reciprocal", "pow")
        before = flow.signals(narrow)
        if not before or (len(before) > 1 and narrow.op != "sub"):
            return False
        narrow = max(before, key=lambda n: prod(n.shape))  # x, of x minus its mean
    return False


def _without_mean(flow: Flow, node: Node) -> set[int]:
    """Return the nodes that lie before one through views and scales, and before its mean was taken off."""
    own: set[int] = set()
    for n in flow.upstream(node):
        own.add(n.index)
        if n.op == "sub" and len(signals := flow.signals(n)) == 2:
            wide = max(signals, key=lambda s: prod(s.shape))
            own.update(m.index for m in flow.upstream(wide))
    return own
