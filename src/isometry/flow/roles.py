"""What each parameter of a model is for, told by the operations that read it, never by names or classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from isometry.errors import ModelError
from isometry.fans import Fans, known_fans
from isometry.flow.attention import Attention, attentions_of, averages
from isometry.flow.cones import Cone, mapped_refs
from isometry.flow.degrees import degree_of
from isometry.flow.fans_of_use import fans_of_use
from isometry.flow.graph import ADD, CONTRACTION, LINEAR, MULTIPLY, NORM, SOFTMAX, Flow, Node
from isometry.flow.streams import Residual, Streams, ends_of, is_norm, streams_of
from isometry.flow.uses import Kind as Kind
from isometry.flow.uses import Use as Use
from isometry.flow.uses import uses_of
from isometry.flow.walks import walk
from isometry.parametrised import shape_of
from isometry.sampling.places import Places

Part = Literal["query", "key", "value", "attention output", "gate", "gated", "head", "input", "router"]

_CHANCES = SOFTMAX | {"_log_softmax", "log_softmax"}


@dataclass(eq=False)
class Role:
    """What one parameter, or one parametrised weight, is for.

    Attributes:
        name: Canonical first name, as in `sampling.write_`.
        shape: Its (logical) shape.
        kind: What it is: a "weight" of a linear map, a "bias", a "scale" that multiplies entry by entry, an
            "embedding" table, of rows that are looked up or multiplied by a number each, a "position" that is
            added to a signal, a "token" that stands beside it, a "slope"; "other" where it is used in another
            way, "unused" where no signal meets it.
        uses: Every operation that reads it beside a signal, in order of execution.
        fans: Of a weight its logical fans.
        parts: What a weight is part of, see `Part`.
        feeds: What its output reaches first, in words: names of pointwise functions, "norm", "softmax",
            "sum", "product", "linear", "output".
        residual: The innermost residual branch it lies in.
        layer: Which of the weights that follow one another in that branch it is, from 1.
        ends: The residual sum whose branch it ends, so that it decides how large the branch is.
        skips: The residual sum on whose skip path it lies.
        undone: Of a weight, whether the code divides it by its own size.
        gain: Of such a weight, the scale that it is multiplied with instead.
        neutral: Of a scale, the value that leaves the signal as it is: 1, or 0 for a factor 1 + w.
        trainable: Whether it requires a gradient.
        aliases: Its other names, of tied weights.
        owner: The module that holds it.
        leaf: Its name there.
        nodes: The leaves in the graph that it stands for.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "unused"
    uses: tuple[Use, ...] = ()
    fans: Fans | None = None
    parts: frozenset[Part] = frozenset()
    feeds: tuple[str, ...] = ()
    residual: Residual | None = None
    layer: int = 0
    ends: Residual | None = None
    skips: Residual | None = None
    undone: bool = False
    gain: str | None = None
    neutral: float = 1.0
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    owner: nn.Module | None = None
    leaf: str = ""
    nodes: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """The role in a few words."""
        if self.kind != "weight":
            text = {"scale": "norm scale" if "norm" in self.feeds else "scale"}.get(self.kind, self.kind)
        else:
            order: tuple[Part, ...] = (
                "query", "key", "value", "attention output", "gate", "gated", "router", "head",
            )  # fmt: skip
            named = [p for p in order if p in self.parts]
            text = ", ".join(named) or "weight"
            shown = [f for f in self.feeds if f not in ("sum", "product", "linear", "output")]
            if shown and not named:
                text += f" → {shown[0]}"
        if self.ends is not None:
            text += f", ends branch {self.ends.order} of {self.ends.number}"
        elif self.skips is not None and self.kind == "weight":
            text += ", skip path"
        if self.aliases:
            text += f", tied with {self.aliases[0]}"
        return text


@dataclass
class Roles:
    """The roles of a model's parameters, with the graph they were read from.

    Attributes:
        flow: The graph.
        streams: Its residual sums.
        attentions: Its attentions.
        by_name: The roles by canonical first name, in the order of the model.
    """

    flow: Flow
    streams: Streams
    attentions: list[Attention]
    by_name: dict[str, Role] = field(default_factory=dict)

    @cached_property
    def positions(self) -> frozenset[int]:
        """The nodes that add a table to a signal."""
        found = (use for role in self.by_name.values() for use in role.uses if use.kind == "position")
        return frozenset(use.node.index for use in found)

    @cached_property
    def lookups_by_place(self) -> frozenset[int]:
        """The nodes that look up rows of a table by what is no input: positions made on the way."""
        found = (u.node for r in self.by_name.values() for u in r.uses if u.kind == "embedding")
        found = (node for node in found if node.op not in MULTIPLY)
        return frozenset(n.index for n in found if not any(self.flow.nodes[i].ids for i in n.inputs))

    def __getitem__(self, name: str) -> Role:
        return self.by_name[name]


def roles_of(model: nn.Module, flow: Flow) -> Roles:
    """Read the roles of all parameters from the data flow.

    Args:
        model: The user's model, for the shapes and names of its parameters; never run.
        flow: The graph of its forward pass.

    Returns:
        The roles.
    """
    streams = streams_of(flow)
    roles = Roles(flow, streams, attentions_of(flow, streams.residuals))
    ends: dict[int, Residual] = {}
    for residual in streams.residuals.values():
        for n in ends_of(flow, residual, streams.residuals):
            ends.setdefault(n.index, residual)
    branches, skips = _places_in_branches(streams)
    leading = _leading_to_weights(flow)
    uses = uses_of(flow)
    for role in _named(model, flow):
        role.uses = tuple(_told(role, use) for leaf in role.nodes for use in uses.get(leaf, []))
        role.kind = _kind(role)
        roles.by_name[role.name] = role
        if role.kind == "weight":
            _describe_weight(roles, role, leading)
        elif role.kind == "scale" and role.uses[0].node.op not in CONTRACTION:
            _describe_scale(flow, role)
        for use in role.uses:
            if role.kind in ("weight", "scale") and use.node.index in ends and role.ends is None:
                role.ends = ends[use.node.index]
        for use in role.uses:
            role.skips = skips.get(use.node.index, role.skips)
            within = branches.get(use.node.index)
            if within and (role.residual is None or len(within.depths) < len(role.residual.depths)):
                role.residual, role.layer = within, within.depths[use.node.index]
    _attention_outputs(roles)
    for role in roles.by_name.values():
        if role.kind == "weight" and len(role.nodes) == 1:
            _tell_gain(roles, role)
    return roles


# --- names --------------------------------------------------------------------------------------------------


def _named(model: nn.Module, flow: Flow) -> list[Role]:
    """Return a bare role of every parameter, parametrised weights under their own name."""
    places = Places(model)
    modules = dict(model.named_modules())
    from_pieces: dict[str, str] = {}
    for name, place in places.computed.items():
        from_pieces.update(dict.fromkeys(place.parameters, name))
    aliases: dict[str, list[str]] = {}
    for other, name in places.aliases.items():
        aliases.setdefault(name, []).append(other)
    found: dict[str, Role] = {}
    for name, parameter in places.parameters.items():
        whole = from_pieces.get(name, name)
        if whole not in found:
            path, _, leaf = whole.rpartition(".")
            owner = modules.get(path) or _owner(model, path)
            shape = tuple(parameter.shape) if whole == name else shape_of(owner, leaf)
            found[whole] = Role(
                whole,
                shape,
                trainable=parameter.requires_grad,
                aliases=tuple(aliases.get(name, ())),
                owner=owner,
                leaf=leaf,
            )
        found[whole].nodes += (flow.parameters[name],)
    return list(found.values())


def _owner(model: nn.Module, path: str) -> nn.Module:
    from isometry.hooks import named_modules

    return named_modules(model)[path]


def _told(role: Role, use: Use) -> Use:
    """Return a use of rows that numbers multiply as a scale's, where all entries are constructed alike."""
    if use.kind != "embedding" or use.node.op not in MULTIPLY or role.owner is None:
        return use
    values = getattr(role.owner, role.leaf).detach()
    even = not values.is_meta and bool((values == values.reshape(-1)[0]).all())
    return replace(use, kind="scale") if even else use


def _kind(role: Role) -> Kind:
    kinds = [use.kind for use in role.uses]
    for kind in ("weight", "embedding", "scale", "slope", "token", "position", "bias", "other"):
        if kind in kinds:
            return kind
    return "unused"


def _describe_scale(flow: Flow, role: Role) -> None:
    role.neutral = _neutral(flow, role)
    read = role.uses[0].node
    if is_norm(flow, read) or any(is_norm(flow, n) for n in list(flow.upstream(read))[1:4]):
        role.feeds = ("norm",)


def _neutral(flow: Flow, role: Role) -> float:
    """Return the value of a scale that leaves the signal as it is: 1, or 0 where the factor is 1 + w."""
    use = role.uses[0]
    try:
        at = {value: float(_along(flow, role, use, value)) for value in (0.0, 1.0)}
    except (ModelError, RuntimeError, TypeError):
        return 1.0
    return 0.0 if at[0.0] == 1.0 and at[1.0] != 1.0 else 1.0


def _along(flow: Flow, role: Role, use: Use, value: float) -> Tensor:
    """Return what an operation reads where the parameter has one value."""
    known = {leaf: torch.tensor(value) for leaf in role.nodes}
    path: list[Node] = []
    node = use.operand
    while node.index not in known:
        path.append(node)
        (node,) = [flow.nodes[i] for i in node.inputs if flow.nodes[i].parameters]
    for node in reversed(path):
        if node.op in LINEAR:
            (before,) = [i for i in node.inputs if i in known]
            known[node.index] = known[before]
        else:
            args, kwargs = mapped_refs((node.args, node.kwargs), known)
            known[node.index] = node.func(*args, **kwargs)
    return known[use.operand.index]


# --- weights ------------------------------------------------------------------------------------------------


def _describe_weight(roles: Roles, role: Role, leading: set[int]) -> None:
    flow = roles.flow
    use = next(u for u in role.uses if u.kind == "weight")
    known = known_fans(role.owner, role.leaf) if role.owner is not None and role.leaf else None
    own = fans_of_use(flow, use.node, flow.nodes[role.nodes[0]]) if len(role.nodes) == 1 else None
    if own is not None and isinstance(role.owner, nn.Embedding | nn.EmbeddingBag):
        known = None  # a table that is multiplied, too: tied with the head
    role.fans = known or own
    parts: set[Part] = set()
    feeds: dict[str, None] = {}
    for u in role.uses:
        if u.cone is None:
            continue
        feeds.update(dict.fromkeys(_feeds(flow, u.cone)))
        parts |= _parts(roles, u, leading)
    role.feeds, role.parts = tuple(feeds), frozenset(parts)


def _tell_gain(roles: Roles, role: Role) -> None:
    """Say of a weight that the code standardises which parameter has its scale."""
    operand = next(u.operand for u in role.uses if u.kind == "weight")
    role.undone = degree_of(roles.flow, operand, role.nodes[0]) == 0.0
    if role.undone:
        scales = [r for r in roles.by_name.values() if r.kind == "scale" and len(r.nodes) == 1]
        found = [r.name for r in scales if r.nodes[0] in operand.parameters]
        role.gain = found[0] if len(found) == 1 else None


def _feeds(flow: Flow, cone: Cone) -> list[str]:
    words: list[str] = []
    if cone.normalised:
        words.append("norm")
    elif cone.nonlinear:
        words.append(_function(cone.nonlinear))
    for exit_ in cone.exits:
        op = flow.nodes[exit_.consumer].op
        if op in NORM:
            words.append("norm")
        elif op in SOFTMAX or op == "_log_softmax":
            words.append("softmax")
        elif op in ADD:
            words.append("sum")
        elif op in MULTIPLY:
            words.append("product")
        elif op in CONTRACTION:
            words.append("linear" if flow.weight(flow.nodes[exit_.consumer]) is not None else "product")
        else:
            words.append(op)
    if cone.output:
        words.append("output")
    return words


def _function(names: tuple[str, ...]) -> str:
    """Name a chain of pointwise functions by its most telling member."""
    plain = {"mul", "div", "pow", "clamp", "clamp_min", "clamp_max", "abs", "sqrt", "rsqrt", "where"}
    return next((n for n in names if n not in plain), names[0])


def _parts(roles: Roles, use: Use, leading: set[int]) -> set[Part]:
    flow, cone = roles.flow, use.cone
    assert cone is not None
    parts: set[Part] = set()
    for attention in roles.attentions:
        at = use.node.index
        parts |= {
            word  # type: ignore[misc]
            for word, nodes in (
                ("query", attention.queries),
                ("key", attention.keys),
                ("value", attention.values),
            )
            if at in nodes
        }
    exits = [flow.nodes[e.consumer] for e in cone.exits]
    last = use.node.index not in leading
    if not parts and not cone.normalised:
        if cone.divided and cone.nonlinear:
            parts |= {"gate", "gated"}
        elif any(n.op in MULTIPLY and not is_norm(flow, n) for n in exits):
            parts.add("gate" if cone.nonlinear and not _gates_itself(flow, use) else "gated")
    softmaxed = any(n.op in _CHANCES for n in exits)
    if last and (cone.output or softmaxed):
        parts.add("head")
    elif softmaxed and not parts:
        parts.add("router")
    factors = [f for f in flow.operands(use.node) if f is not use.operand]
    if factors and any(n.op == "input" for n in flow.upstream(factors[0])):
        parts.add("input")
    return parts


def _gates_itself(flow: Flow, use: Use) -> bool:
    """Return whether the other factor of a product is computed from the weight's output, as in squeezing."""
    assert use.cone is not None
    for exit_ in use.cone.exits:
        consumer = flow.nodes[exit_.consumer]
        others = [s for s in flow.signals(consumer) if s.index not in use.cone.nodes]
        back = walk(
            others if consumer.op in MULTIPLY else [],
            lambda n: flow.signals(n) if n.index > use.node.index else [],
        )
        if any(n.index in use.cone.nodes for n in back):
            return True
    return False


def _attention_outputs(roles: Roles) -> None:
    """Mark the weights that read what an attention averaged."""
    flow = roles.flow
    behind: set[int] = set()
    for attention in roles.attentions:
        for i in _readers(flow, attention):
            behind.add(i)
    for role in roles.by_name.values():
        if role.kind == "weight" and any(u.node.index in behind for u in role.uses):
            role.parts |= {"attention output"}


def _readers(flow: Flow, attention: Attention) -> list[int]:
    """Return the weighted contractions that an attention's average reaches through views."""
    products = averages(flow, flow.nodes[attention.softmax])

    def readers(node: Node) -> list[Node]:
        if flow.weight(node) is not None:
            return []
        read = (flow.nodes[i] for i in flow.consumers[node.index])
        return [n for n in read if n.signal and (flow.transparent(n) or flow.weight(n) is not None)]

    return [n.index for n in walk(products, readers) if flow.weight(n) is not None]


def _places_in_branches(streams: Streams) -> tuple[dict[int, Residual], dict[int, Residual]]:
    """Return, by contraction, the innermost residual branch, and the skip path, that it lies in."""
    branches: dict[int, Residual] = {}
    skips: dict[int, Residual] = {}
    for residual in streams.residuals.values():
        skips.update(dict.fromkeys(residual.skips, residual))
        for i in residual.depths:
            if i not in branches or len(residual.depths) < len(branches[i].depths):
                branches[i] = residual
    return branches, skips


def _leading_to_weights(flow: Flow) -> set[int]:
    """Return the nodes from which a signal reaches another weight."""
    found: set[int] = set()
    for node in reversed(flow.nodes):
        for i in flow.consumers[node.index]:
            reader = flow.nodes[i]
            if reader.signal and (i in found or flow.weight(reader) is not None):
                found.add(node.index)
                break
    return found
