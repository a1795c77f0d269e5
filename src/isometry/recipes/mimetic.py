"""Attention that begins as pretrained attention looks: queries near their own keys, values taken back."""

from __future__ import annotations

from collections.abc import Mapping

from isometry.errors import InvalidValueError
from isometry.flow.attention import Attention
from isometry.flow.roles import Part, Role
from isometry.flow.units import Units, units_of
from isometry.init.shared import Blocks, Factor, Piece, runs_of
from isometry.init.structured import check_finite
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.laws import scaled

_SCORES, _VALUES = 0, 1  # groups of pieces that share their random numbers


@recipe(
    "mimetic",
    source="Trockman and Kolter (2023), Mimetic initialization of self-attention layers",
    options=("query_key", "value_out"),
)
def mimetic(subject: Subject) -> Mapping[str, Choice]:
    """Per head W_Q·W_Kᵀ ≈ α·Z + β·1 and W_V·W_O ≈ α·Z − β·1, Z of entries N(0, 1/d); other weights Glorot.

    (α, β) = (0.7, 0.7) for `query_key` and (0.4, 0.4) for `value_out`, the paper's for vision transformers; a
    negative β turns a sign, as in language models. The paper's sinusoidal positions are the model's to have.
    """
    pairs = {
        name: _pair(subject, name, default) for name, default in (("query_key", 0.7), ("value_out", 0.4))
    }
    found = {
        role.name: scaled(role, 1.0, "Glorot", mode="fan_avg", family=subject.family or "normal")
        for role in subject.weights()
    }
    made: dict[str, tuple[list[Piece], int, str]] = {}
    for attention in subject.roles.attentions:
        _attend(subject, attention, pairs, made)
    for name, (pieces, axis, stream) in made.items():
        role = subject.roles[name]
        covered = {u for piece in pieces for start, stop in piece.runs for u in range(start, stop)}
        if covered != set(range(role.shape[axis])):
            subject.notes.append(f"mimetic: {name} holds more than one attention's maps and got Glorot's")
            continue
        product = "values times output" if any(p.group == _VALUES for p in pieces) else "queries times keys"
        if len({p.group for p in pieces}) > 1:
            product = "queries times keys, and values times output,"
        found[name] = Choice(Blocks(tuple(pieces), axis, stream), f"{product} begin near the identity")
    return found


def _pair(subject: Subject, name: str, default: float) -> tuple[float, float]:
    value = subject.option(name, (default, default))
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidValueError(f"{name} must be a pair (alpha, beta), got {value!r}")
    for item in value:
        check_finite(name, item)
    return float(value[0]), float(value[1])


def _attend(
    subject: Subject,
    attention: Attention,
    pairs: Mapping[str, tuple[float, float]],
    made: dict[str, tuple[list[Piece], int, str]],
) -> None:
    """Add the pieces of one attention's weights to `made`."""
    roles = subject.roles
    by_part: dict[Part, tuple[Role, Units]] = {}
    for part, nodes in (("query", attention.queries), ("key", attention.keys), ("value", attention.values)):
        role = _reader(subject, nodes)
        units = None if role is None else units_of(roles, role)
        if role is not None and units is not None and units.of(part):  # type: ignore[arg-type]
            by_part[part] = role, units  # type: ignore[index]
    stream = f"attention {next((role.name for role, _ in by_part.values()), '')}"
    query, key, value = by_part.get("query"), by_part.get("key"), by_part.get("value")
    if query and key:
        heads = len(query[1].heads["query"])
        if heads == len(key[1].heads["key"]) and _width(query) == _width(key):
            alpha, beta = pairs["query_key"]
            for part, (role, units), side in (("query", query, "left"), ("key", key, "right")):
                law = Factor(side, alpha, beta, heads, turned=units.axis == 1)  # type: ignore[arg-type]
                _add(made, role, units, Piece(law, runs_of(units.of(part)), _SCORES), stream)  # type: ignore[arg-type]
        else:
            subject.notes.append(
                f"mimetic: {query[0].name}: queries and keys differ in heads or width: Glorot"
            )
    out = _output(subject, attention)
    if value and out is not None and len(value[1].of("value")) == _width(value) == out[0].shape[1 - out[1]]:
        alpha, beta = pairs["value_out"]
        role, units = value
        law = Factor("left", alpha, -beta, turned=units.axis == 1)
        _add(made, role, units, Piece(law, runs_of(units.of("value")), _VALUES), stream)
        role, axis = out
        law = Factor("right", alpha, -beta, turned=axis == 1)
        whole = Piece(law, ((0, role.shape[axis]),), _VALUES)
        _add(made, role, Units(axis), whole, stream)
    elif value and out is not None:
        name = value[0].name
        subject.notes.append(f"mimetic: {name}: values are not as wide as the stream: Glorot")


def _add(
    made: dict[str, tuple[list[Piece], int, str]], role: Role, units: Units, piece: Piece, stream: str
) -> None:
    pieces, _, first = made.setdefault(role.name, ([], units.axis, stream))
    if first == stream and not any(piece.runs == p.runs for p in pieces):
        pieces.append(piece)


def _width(found: tuple[Role, Units]) -> int:
    """Return how many features a weight reads."""
    role, units = found
    return role.shape[1 - units.axis] if len(role.shape) == 2 else -1


def _reader(subject: Subject, nodes: tuple[int, ...]) -> Role | None:
    """Return the one weight that contractions read; None where there are several."""
    found = [r for r in subject.weights() if any(u.node.index in nodes for u in r.uses)]
    return found[0] if len(found) == 1 else None


def _output(subject: Subject, attention: Attention) -> tuple[Role, int] | None:
    """Return the weight that reads an attention's average, and the axis along which it reads."""
    flow = subject.roles.flow
    for role in subject.weights():
        if "attention output" not in role.parts or len(role.shape) != 2 or role.fans is None:
            continue
        use = next(u for u in role.uses if u.kind == "weight")
        factor = next((f for f in flow.operands(use.node) if f is not use.operand), None)
        waiting, seen = ([] if factor is None else [factor]), set[int]()
        while waiting:
            node = waiting.pop()
            if node.index == attention.softmax:
                return role, role.fans.layout.inp[0]
            if node.index > attention.softmax and node.index not in seen and flow.weight(node) is None:
                seen.add(node.index)
                waiting += flow.signals(node)
    return None
