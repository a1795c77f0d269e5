"""Residual streams that begin with a table which is also the head, and so begin small.

Logits of chance want a head of small entries. Where its rows are also what tokens are looked up in, and no
norm follows, the stream has their size r, and Adam's steps, which know no sizes, are large beside it: one
step η of a branch's last weight adds about η·√n·h to the stream, h the size of what that weight reads. With
h = 1 and a stream of 0.03 the first steps bury the tokens. A small h asks a large last weight, e/h for a
branch of size e, and small weights before it; steps are equally large beside the stream and beside these
weights where h = √r.
"""

from __future__ import annotations

from collections.abc import Sequence

from isometry.flow.growth import growth_of
from isometry.flow.roles import Part, Role, Roles
from isometry.flow.stages import Stage
from isometry.flow.streams import Residual
from isometry.flow.tied import begins_with, tied_lookups
from isometry.flow.units import units_of
from isometry.init.shared import Blocks, Piece, runs_of
from isometry.plans import scaled
from isometry.sampling import Distribution

_SCORES: frozenset[Part] = frozenset(["query", "key"])


class SmallStreams:
    """The streams of a model that begin with a tied table.

    Args:
        roles: The roles.
        stages: The stages of its streams.
        split: Whether a weight may be drawn from a law for scores and another one for values.
    """

    def __init__(self, roles: Roles, stages: Sequence[Stage], *, split: bool = True) -> None:
        self._roles, self._split = roles, split
        self._both: dict[int, Role | None] = {}
        self._lookups = tied_lookups(roles)
        self._powers: dict[int, float] = {}
        self._streams = {s.stream for s in stages if begins_with(roles.flow, s, self._lookups)}

    def tied(self, nodes: Sequence[int]) -> dict[int, str]:
        """Return those of some nodes that are rows of a tied table, and its name."""
        flow, found = self._roles.flow, self._lookups
        rows = ((i, n.index) for i in nodes for n in flow.upstream(flow.nodes[i]) if n.index in found)
        return {i: found[n] for i, n in rows}

    def power(self, role: Role) -> float:
        """Return the power of the stream's size by which what a weight gives is smaller; 0 outside branches.

        1/2 over the number of factors in the product that the branch's last weight reads. Of a weight that
        makes scores too, which keep their size, it is the power for values.
        """
        residual = role.residual
        if residual is None or residual.stream not in self._streams or not _gives_values(role):
            return 0.0
        if residual.node not in self._powers:
            self._powers[residual.node] = self._power(residual)
        return self._powers[residual.node]

    def _power(self, residual: Residual) -> float:
        inner = (r for r in self._roles.by_name.values() if r.residual is residual and _gives_values(r))
        nodes = {u.node.index for r in inner for u in r.uses if u.kind == "weight"}
        factors = growth_of(self._roles.flow, residual, nodes) if nodes else 0.0
        return 0.5 / factors if factors else 0.0

    def both(self, residual: Residual) -> Role | None:
        """Return the one weight of a branch that makes scores and values, if its units can be told apart."""
        if residual.node not in self._both:
            found = [r for r in self._roles.by_name.values() if r.residual is residual and makes_both(r)]
            one = found[0] if len(found) == 1 and self._split and self.power(found[0]) else None
            self._both[residual.node] = one if one is not None and self._values(one) else None
        return self._both[residual.node]

    def _values(self, role: Role) -> tuple[int, ...]:
        units = units_of(self._roles, role)
        return () if units is None else units.of("value")

    def in_two(self, role: Role, law: Distribution, size: float) -> Blocks:
        """Return the law of a weight that makes scores and values, the values smaller by a factor."""
        units = units_of(self._roles, role)
        assert units is not None
        values = units.of("value")
        scores = tuple(sorted(set(range(role.shape[units.axis])) - set(values)))
        pieces = Piece(law, runs_of(scores)), Piece(scaled(law, size), runs_of(values), 1)
        return Blocks(pieces, units.axis)


def makes_both(role: Role) -> bool:
    """Return whether a weight makes scores and values."""
    return "value" in role.parts and bool(role.parts & _SCORES)


def _gives_values(role: Role) -> bool:
    """Return whether a weight in a branch gives what its last weight reads."""
    return role.kind == "weight" and role.ends is None and (makes_both(role) or not role.parts & _SCORES)
