"""Laws of weights that hold several maps at once: queries, keys and values in one parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

from isometry.flow.roles import Part, Role, Roles
from isometry.flow.units import units_of
from isometry.init.shared import Blocks, Piece, runs_of
from isometry.init.structured import Kind, of_kind
from isometry.recipes.base import Choice
from isometry.recipes.laws import scaled

Std = Callable[[frozenset[Part], float, float], float]
_MAPS: tuple[Part, ...] = ("query", "key", "value")


def glorot(factor: Callable[[frozenset[Part]], float]) -> Std:
    """Return Glorot's standard deviation times a factor that depends on what a weight is part of."""
    return lambda parts, inputs, outputs: factor(parts) * math.sqrt(2 / (inputs + outputs))


def by_part(roles: Roles, role: Role, std: Std, reason: str, family: Kind) -> Choice:
    """Return the choice of a weight whose standard deviation depends on what it is part of.

    Args:
        roles: The roles.
        role: The weight.
        std: Its standard deviation, from its parts and its fans.
        reason: Why.
        family: The distribution.

    Returns:
        One law; or one for each of the queries, keys and values in it, each with fans of its own.
    """
    plain = scaled(role, 1.0, reason, family=family)
    if plain.law is None or plain.marks or role.fans is None:
        return plain
    layout, fans = role.fans.layout, role.fans
    own = frozenset(p for p in _MAPS if p in role.parts)
    if len(own) < 2:
        return Choice(of_kind(family, std(role.parts, fans.forward, fans.backward), layout=layout), reason)
    units = units_of(roles, role)
    if units is None:
        both = f"{reason}; {', '.join(sorted(own))} could not be told apart"
        law = of_kind(family, std(frozenset(), fans.forward, fans.backward), layout=layout)
        return Choice(law, both, marks=("fused",))
    pieces: list[Piece] = []
    taken: set[int] = set()
    for part in _MAPS:
        members = tuple(u for u in units.of(part) if u not in taken)
        taken.update(members)
        if members:
            size = std(frozenset([part]), fans.forward, float(len(members)))
            pieces.append(Piece(of_kind(family, size), runs_of(members), group=len(pieces)))
    rest = tuple(u for u in range(role.shape[units.axis]) if u not in taken)
    if rest:
        size = std(frozenset(), fans.forward, float(len(rest)))
        pieces.append(Piece(of_kind(family, size), runs_of(rest), group=len(pieces)))
    if len({piece.law for piece in pieces}) == 1:
        return Choice(pieces[0].law, reason)
    return Choice(Blocks(tuple(pieces), units.axis), reason)
