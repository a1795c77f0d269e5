"""Plain chains: weights with only pointwise functions, reshapes, pooling and concatenation between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from isometry.errors import ModelError
from isometry.flow.arrangement import SPATIAL, Refused, arranged, axis_out, moved
from isometry.flow.cones import mapped_refs
from isometry.flow.graph import CONTRACTION, LINEAR, NORM, SOFTMAX, Flow, Node
from isometry.flow.roles import Role, Roles
from isometry.flow.streams import is_norm

_OUTSIDE = frozenset(["query", "key", "value", "attention output", "gate", "gated"])
_SOFT = SOFTMAX | {"_log_softmax", "log_softmax"}


Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a layer reads of one layer before it.

    Attributes:
        layer: That layer.
        function: The pointwise function between the two.
        key: The same for equal functions.
        bends: Whether anything but sums and products with numbers is in it.
        positions: How many entries of every unit of that layer one output reads, flattened.
        interleaved: Whether positions are numbered before units.
        averaged: How many entries are averaged into one.
        maxima: Whether a largest entry is chosen.
    """

    layer: Layer
    function: Function
    key: Any
    bends: bool
    positions: int = 1
    interleaved: bool = False
    averaged: float = 1.0
    maxima: bool = False


@dataclass(eq=False)
class Layer:
    """A weight in a chain.

    Attributes:
        role: Its role.
        node: The contraction.
        start: The node that it reads where no layer of the chain is before it.
        entry: The pointwise function between `start` and the layer, where it can be run.
        reads: What it reads, several of a concatenation.
        refused: Why it cannot be woven; empty where it can.
        readers: The layers that read it.
        leaves: The operations outside the chain that read it.
        output: Whether the model returns it.
    """

    role: Role
    node: Node
    start: Node | None = None
    entry: Function | None = None
    reads: list[Reading] = field(default_factory=list)
    refused: str = ""
    readers: list[Layer] = field(default_factory=list)
    leaves: list[Node] = field(default_factory=list)
    output: bool = False

    @property
    def sources(self) -> list[Layer]:
        """The layers that it reads."""
        return [reading.layer for reading in self.reads]


@dataclass(eq=False)
class Chain:
    """Layers joined by what they read, in the order of execution."""

    layers: list[Layer]

    @cached_property
    def bends(self) -> int:
        """How many activations the longest way through it has."""
        depth: dict[int, int] = {}
        for layer in self.layers:
            depth[id(layer)] = max((depth[id(r.layer)] + r.bends for r in layer.reads), default=0)
        return max(depth.values())

    @property
    def refused(self) -> str:
        """Why it cannot be woven; empty where it can."""
        return next((f"{a.role.name}: {a.refused}" for a in self.layers if a.refused), "")


def chains_of(roles: Roles, values: Mapping[int, float] | None = None) -> list[Chain]:
    """Find the plain chains of a model.

    A weight of a residual branch, of an attention, of a gate, and one that is used twice is in none; sums,
    products and norms of signals end a chain, and another begins behind them.

    Args:
        roles: The roles of a model's parameters.
        values: What a parameter's leaf is in the functions between layers; by default by its role, a bias 0,
            a scale neutral, a slope 0.25.

    Returns:
        The chains, single layers too, in the order of execution.
    """
    return _Search(roles, dict(values or _values(roles))).chains()


def _values(roles: Roles) -> dict[int, float]:
    found: dict[int, float] = {}
    for role in roles.by_name.values():
        value = {"bias": 0.0, "position": 0.0, "scale": role.neutral, "slope": 0.25}.get(role.kind)
        if value is not None:
            found.update(dict.fromkeys(role.nodes, value))
    return found


@dataclass
class _Search:
    roles: Roles
    values: dict[int, float]

    def __post_init__(self) -> None:
        self.flow: Flow = self.roles.flow
        self.layers: dict[int, Layer] = {}
        for role in self.roles.by_name.values():
            if role.kind == "weight" and _is_plain(role):
                self.layers[role.uses[0].node.index] = Layer(role, role.uses[0].node)
        self.origin: list[int] = []

    def chains(self) -> list[Chain]:
        """Walk through the graph once, then join what belongs together."""
        for node in self.flow.nodes:
            self.origin.append(self._origin(node))
        for index in sorted(self.layers):
            layer = self.layers[index]
            try:
                self._read(layer)
            except Refused as reason:
                layer.refused = str(reason)
            except (ModelError, RuntimeError, TypeError) as error:
                layer.refused = f"what it reads cannot be run again on its own ({error})"
            for source in layer.sources:
                source.readers.append(layer)
        self._leaves()
        return self._joined()

    # --- where a signal comes from ---

    def _origin(self, node: Node) -> int:
        """Return the contraction, concatenation or other node that a signal is a plain function of."""
        signals = self.flow.signals(node) if node.signal else []
        origins = {self.origin[s.index] for s in signals}
        if len(origins) != 1 or not self._carries(node):
            return node.index
        (origin,) = origins
        return origin

    def _carries(self, node: Node) -> bool:
        if (
            node.op in CONTRACTION
            or node.op in NORM
            or node.op in ("cat", "stack")
            or is_norm(self.flow, node)
        ):
            return False
        return node.pointwise or node.op in LINEAR or any(word in node.op for word in SPATIAL)

    def _way(self, origin: int, end: int) -> list[Node]:
        """Return the nodes between an origin and what is computed from it, in order."""
        needed, waiting = {origin}, [end]
        while waiting:
            i = waiting.pop()
            if i not in needed:
                needed.add(i)
                waiting += [s.index for s in self.flow.signals(self.flow.nodes[i])]
        return [self.flow.nodes[i] for i in sorted(needed) if i != origin]

    # --- what a layer reads ---

    def _read(self, layer: Layer) -> None:
        flow, node = self.flow, layer.node
        weight = flow.weight(node)
        operands = flow.operands(node)
        (data,) = [n for n in operands if n is not weight]
        left = operands[0] is data or "convolution" in node.op
        axis = 1 if "convolution" in node.op else len(data.shape) - (1 if left else 2)
        origin = flow.nodes[self.origin[data.index]]
        if not self._inside(origin):
            layer.start = origin
            try:
                layer.entry = self._function(origin, self._way(origin.index, data.index), data)[0]
            except Refused:  # then the input's own size is not known, and taken as one
                layer.entry = None
            return
        layer.reads = parts = self._parts(data)
        outside = self._outside(origin)
        if outside is not None:
            raise Refused(f"it reads a concatenation with {outside.op}, which is no weight of the chain")
        units = self._units(data)
        count = sum(part.layer.node.shape[axis_out(flow, part.layer.node)] for part in parts)
        positions, interleaved = arranged(units.movedim(axis, 0).flatten(1), count)
        layer.reads = [replace(part, positions=positions, interleaved=interleaved) for part in parts]

    def _inside(self, origin: Node) -> bool:
        """Return whether an origin is a layer, or a concatenation with one among its parts."""
        if origin.op != "cat":
            return origin.index in self.layers
        return any(self._inside(self.flow.nodes[self.origin[s.index]]) for s in self.flow.signals(origin))

    def _outside(self, origin: Node) -> Node | None:
        """Return a part of a concatenation that no layer wrote."""
        if origin.op != "cat":
            return None if origin.index in self.layers else origin
        parts = (self.flow.nodes[self.origin[s.index]] for s in self.flow.signals(origin))
        return next((found for part in parts if (found := self._outside(part)) is not None), None)

    def _parts(self, end: Node) -> list[Reading]:
        """Return the layers whose outputs stand side by side in a node, and what was done to each."""
        flow = self.flow
        origin = flow.nodes[self.origin[end.index]]
        way = self._way(origin.index, end.index)
        function, key = self._function(origin, way, end)
        averaged = prod(_averaged(n, flow.signals(n)[0]) for n in way)
        bends = any(_bends(flow, n) for n in way)
        maxima = any("max_pool" in n.op for n in way)
        if origin.op != "cat":
            layer = self.layers.get(origin.index)
            if layer is None:
                return []
            return [Reading(layer, function, key, bends, averaged=averaged, maxima=maxima)]
        return [
            replace(
                part,
                function=_composed(part.function, function),
                key=(part.key, key) if key else part.key,
                bends=part.bends or bends,
                averaged=part.averaged * averaged,
                maxima=part.maxima or maxima,
            )
            for ref in origin.args[0]
            for part in self._parts(flow.nodes[ref.node])
        ]

    def _function(self, origin: Node, way: list[Node], end: Node) -> tuple[Function, Any]:
        """Return the pointwise function along a way, and a key that equal functions share."""
        steps = [n for n in way if not _hands_on(n)]
        same = {n.index: self.flow.signals(n)[0].index for n in way if _hands_on(n)}
        given = {i: self._value(i) for n in steps for i in n.inputs if not self.flow.nodes[i].signal}
        number = {n.index: k for k, n in enumerate([origin, *way])}

        def place(i: int) -> int | float:
            while i in same:
                i = same[i]
            return number.get(i, -1) if i in number else given[i]

        key = tuple((n.op, _told(n.args, place), _told(n.kwargs, place)) for n in steps)

        def function(x: Tensor) -> Tensor:
            known = {i: x.new_tensor(v) for i, v in given.items()}
            known[origin.index] = x
            for node in way:
                if node.index in same:
                    known[node.index] = known[same[node.index]]
                else:
                    args, kwargs = mapped_refs((node.args, node.kwargs), known)
                    out = node.func(*args, **kwargs)
                    known[node.index] = out if isinstance(out, Tensor) else out[node.slot]
            return known[end.index]

        return function, key

    def _value(self, i: int) -> float:
        """Return the one value of what is no signal: a parameter by its role."""
        node = self.flow.nodes[i]
        while node.index not in self.values:
            before = [self.flow.nodes[k] for k in node.inputs if self.flow.nodes[k].parameters]
            if len(before) != 1 or node.op not in LINEAR:
                raise Refused("the function between has tensors of its own")
            node = before[0]
        return self.values[node.index]

    # --- which unit of the layer before an input is ---

    def _units(self, end: Node) -> Tensor:
        """Return, at every entry of a node, the unit it comes from, counted over all layers it reads."""
        origin = self.flow.nodes[self.origin[end.index]]
        if origin.op == "cat":
            parts, first = [], 0
            for ref in origin.args[0]:
                part = self._units(self.flow.nodes[ref.node])
                parts.append(part + first)
                first += int(part.max()) + 1
            known = {origin.index: torch.cat(parts, *origin.args[1:])}
        else:
            axis = axis_out(self.flow, origin)
            shape = [1] * len(origin.shape)
            shape[axis] = origin.shape[axis]
            known = {origin.index: torch.arange(origin.shape[axis]).view(shape).expand(origin.shape)}
        for node in self._way(origin.index, end.index):
            signals = self.flow.signals(node)
            before = known[signals[0].index]
            if any(not torch.equal(before, known[s.index]) for s in signals[1:]):
                raise Refused("parts of it are computed with one another")
            known[node.index] = moved(node, before, known)
        return known[end.index]

    # --- chains ---

    def _leaves(self) -> None:
        """Note what reads a layer beside the layers of its chain."""
        flow = self.flow
        reading = {layer.node.index for layer in self.layers.values() if layer.sources}
        reading |= self._joining(reading)
        for node in flow.nodes:
            for s in flow.signals(node):
                layer = self.layers.get(self.origin[s.index])
                outside = node.signal and self.origin[node.index] == node.index and node.index not in reading
                if layer is not None and outside:
                    layer.leaves.append(node)
        for i in flow.outputs:
            layer = self.layers.get(self.origin[i])
            if layer is not None:
                layer.output = True
            for s in flow.signals(flow.nodes[i]) if flow.nodes[i].op in _SOFT else ():
                behind = self.layers.get(self.origin[s.index])
                if behind is not None:
                    behind.output = True
                    behind.leaves = [n for n in behind.leaves if n.index != i]

    def _joining(self, reading: set[int]) -> set[int]:
        """Return the concatenations that nothing but layers of chains reads."""
        found: set[int] = set()
        for node in reversed(self.flow.nodes):
            if node.op == "cat" and node.signal:
                behind = {
                    n.index
                    for n in self.flow.nodes[node.index + 1 :]
                    if any(self.origin[s.index] == node.index for s in self.flow.signals(n))
                    and self.origin[n.index] == n.index
                }
                if behind and behind <= reading | found and node.index not in self.flow.outputs:
                    found.add(node.index)
        return found

    def _joined(self) -> list[Chain]:
        found: dict[int, list[Layer]] = {}
        for index in sorted(self.layers):
            layer = self.layers[index]
            members = {layer.node.index: layer}
            for source in layer.sources:
                members |= {member.node.index: member for member in found[id(source)]}
            group = [members[i] for i in sorted(members)]
            for member in group:
                found[id(member)] = group
        unique = {id(group): group for group in found.values()}
        chains = [Chain(group) for group in unique.values()]
        for chain in chains:
            for layer in chain.layers:
                if layer.readers and layer.leaves and not layer.refused:
                    layer.refused = f"{layer.leaves[0].op} reads it beside the next layer"
        return chains


def _composed(first: Function, second: Function) -> Function:
    return lambda x: second(first(x))


def _is_plain(role: Role) -> bool:
    if len(role.uses) != 1 or role.residual is not None or role.ends is not None or role.skips is not None:
        return False
    cone = role.uses[0].cone
    return role.parts.isdisjoint(_OUTSIDE) and role.fans is not None and not (cone and cone.normalised)


def _bends(flow: Flow, node: Node) -> bool:
    return node.pointwise and not flow.transparent(node)


def _hands_on(node: Node) -> bool:
    """Return whether a node's entries are entries, or averages or maxima of entries, of its signal."""
    if node.op in ("neg", "masked_fill", "where"):
        return False
    return node.op in LINEAR or any(word in node.op for word in SPATIAL)


def _averaged(node: Node, before: Node) -> float:
    """Return how many entries one entry is the average of."""
    if node.op == "mean" or "avg_pool" in node.op:
        if node.op.startswith("avg_pool"):
            sides = node.args[1]
            return float(prod(sides))
        return max(prod(before.shape) / max(prod(node.shape), 1), 1.0)
    return 1.0


def _told(tree: Any, place: Callable[[int], int | float]) -> Any:
    """Return arguments as a key, references as places."""
    if hasattr(tree, "node"):
        return ("ref", place(tree.node))
    if isinstance(tree, list | tuple):
        return tuple(_told(x, place) for x in tree)
    if isinstance(tree, dict):
        return tuple((k, _told(v, place)) for k, v in sorted(tree.items()))
    return repr(tree)
