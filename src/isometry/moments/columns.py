"""What a latent has in common with the successive ones of a loop: asked at ever fewer of its steps.

A loop over time makes one latent after another in the same way. What one made before has in common with them
is forgotten, or settles at what all steps share. So it is computed step by step until it is seen to follow

    a(t) = a(t₃) + ∫ r·q^(s − t₃) ds from t₃ to t

for the three steps t₁ < t₂ < t₃ that were computed last, where the rate r and its decay q ≤ 1 are those
between them. As long as such predictions come true, to within `TRUE` of an answer's size, the next ones are
told for twice as many steps, and for `FLAT` times as many where the answer no longer changes. A sequence of n
steps asks for n·log n answers in place of n². *Asymptotic*: an answer is off by about as much as the
predictions that were checked.

An answer is told for steady latents alone, which the loop makes with the same numbers as those of the step
before: not at its beginning, and not on the way back to it (see `steady`). What never becomes steady is
computed at every step.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isometry.moments.axes import Array
from isometry.moments.latents import Latent
from isometry.moments.origins import Centred, Contraction, Sum, parents_of
from isometry.moments.places import Axes, View, common, view

TRUE = 5e-4  # of an answer's size: a prediction that is off by less, and by `NOTHING`, is true
NOTHING = 3e-5
FLAT = 8  # how many times as far an answer is told that no longer changes
EVEN = 1e-3  # numbers that differ by less are the same
DEPTH = 7  # of what a latent was made from, as a gradient of the states of its step, that must be so too
FORGOTTEN = 1e-4  # correlations below are none

Told = Array | None | Literal["unknown"]


# --- where in a loop a latent stands ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Turn:
    """Where in a loop a latent stands.

    Attributes:
        strands: The contractions that began the loops which it comes from: the first of a weight with what
            comes from a contraction with that weight.
        weights: The first contraction with each weight that it depends on and that was used again.
        step: How many turns there were before.
        begun: The birth of the youngest such contraction that it depends on.
    """

    strands: frozenset[Contraction] = frozenset()
    weights: frozenset[Contraction] = frozenset()
    step: int = 0
    begun: int = 0


_NOWHERE = Turn()


def turn_of(latent: Latent) -> Turn:
    """Return where in a loop a latent stands; it is entered among its peers."""
    stack = [] if latent.turn is not None else [latent]
    while stack:
        top = stack[-1]
        if top.turn is None:
            open_ = [p for p in parents_of(top.origin) if p.turn is None]
            if open_:
                stack += open_
                continue
            _enter(top)
        stack.pop()
    found: Turn = latent.turn
    return found


def _enter(latent: Latent) -> None:
    """Find a latent's place in a loop.

    Its peers are the latents that are as many births behind the loop's latest contraction with a weight.
    """
    latent.turn = turn = _turn(latent)
    if turn.strands:
        kind = (latent.birth - turn.begun, turn.strands, latent.axes)
        latent.peers = min(turn.strands, key=id).loops.setdefault(kind, [])
        insort(latent.peers, (turn.step, latent), key=lambda peer: peer[0])


def _turn(latent: Latent) -> Turn:
    turns = {p.turn: None for p in parents_of(latent.origin) if p.turn is not _NOWHERE}
    before = next(iter(turns), _NOWHERE)
    if len(turns) > 1:
        before = Turn(
            frozenset[Contraction]().union(*[t.strands for t in turns]),
            frozenset[Contraction]().union(*[t.weights for t in turns]),
            max(t.step for t in turns),
            max(t.begun for t in turns),
        )
    origin = latent.origin
    if not isinstance(origin, Contraction) or origin.first is None:
        return before
    strands, weight = before.strands, origin.first
    if weight not in before.weights:
        return Turn(strands, before.weights | {weight}, before.step, before.begun)
    if all(strand.first is not weight for strand in strands):
        strands = strands | {origin}
    return Turn(strands, before.weights, before.step + 1, latent.birth)


def steady(latent: Latent, depth: int = DEPTH) -> bool:
    """Return whether a loop makes a latent with the numbers of the step before, and what it is made from."""
    known: dict[int, bool] = latent.steady
    if depth not in known:
        if 0 not in known:
            known[0] = _even(latent)
        known[depth] = known[0] and (
            depth == 0 or all(steady(p, depth - 1) for p in parents_of(latent.origin))
        )
    return known[depth]


def _even(latent: Latent) -> bool:
    """Return whether a latent has the numbers of its peer of the step before; so has what no loop makes."""
    turn = turn_of(latent)
    if not turn.strands:
        return True
    at = _behind(latent, turn.step - 1)
    if at == 0 or latent.peers[at - 1][0] == turn.step:
        return False
    ours, theirs = _numbers(latent), _numbers(latent.peers[at - 1][1])
    return ours.shape == theirs.shape and float(np.abs(ours - theirs).max()) <= EVEN


def _behind(latent: Latent, step: int) -> int:
    """Return which of a latent's peers is the first behind a step."""
    return bisect(latent.peers, step, key=lambda peer: peer[0])


def _numbers(latent: Latent) -> Array:
    """Return the numbers that a latent was made with."""
    origin, arrays = latent.origin, [latent.rho]
    if isinstance(origin, Sum):
        arrays += [weight for weight, _ in origin.parents]
    elif isinstance(origin, Centred):
        arrays.append(origin.weight)
    elif isinstance(origin, Contraction):
        arrays += [m.table / max(float(np.abs(m.table).max()), 1e-300) for m in origin.summands]
    return np.concatenate([array.ravel() for array in arrays])


# --- columns ------------------------------------------------------------------------------------------------


def follows(older: View, younger: View) -> bool:
    """Return whether a column tells of two views: of one loop, and of all that their latents have in common.

    What is no part of a loop, or of another run of it, may meet a single one of its steps.
    """
    strands = turn_of(younger.latent).strands
    if not strands or strands.isdisjoint(turn_of(older.latent).strands):
        return False
    return (older.whole and younger.whole) or common(older.latent.axes, younger.latent.axes) is None


def told(older: View, younger: View, axes: Axes) -> Told:
    """Return what a latent has in common with one of a loop, where other steps tell."""
    if not steady(younger.latent) or not follows(older, younger):
        return "unknown"
    return _column(older, younger, axes).told(turn_of(younger.latent).step)


def note(older: View, younger: View, axes: Axes, answer: Array | None) -> None:
    """Note what a latent has in common with a younger one, as computed."""
    if follows(older, younger):
        column = _column(older, younger, axes)
        column.add(turn_of(younger.latent).step, answer, steady=steady(younger.latent))


def nearer(older: View, younger: View, axes: Axes) -> Iterator[View]:
    """Yield those whose answers are to be known before that of a younger one, each in its turn."""
    if not steady(younger.latent) or not follows(older, younger):
        return
    last, column, peers = turn_of(younger.latent).step, _column(older, younger, axes), younger.latent.peers
    at = _behind(younger.latent, turn_of(older.latent).step)
    while True:
        if column.steps:
            at = max(at, _behind(younger.latent, column.steps[-1] + column.reach))
        if at >= len(peers) or peers[at][0] >= last:
            return
        if peers[at][1].birth > older.latent.birth:
            yield view(peers[at][1], younger.places)
        at += 1


def _column(older: View, younger: View, axes: Axes) -> Column:
    key = (id(younger.latent.peers), axes, None if younger.whole else younger.places)
    found: Column | None = older.columns.get(key)
    if found is None:
        found = older.columns[key] = Column()
    return found


class Column:
    """The answers of one latent with successive ones of a loop, as far as they were computed.

    Attributes:
        steps: The steps, in order.
        answers: The answer at each.
        reach: For how many steps behind the last an answer is told.
        proven: At what distance the latest prediction came true; 0 where it did not.
    """

    __slots__ = ("answers", "proven", "reach", "steps")

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.answers: dict[int, Array | None] = {}
        self.reach = self.proven = 0

    def told(self, step: int) -> Told:
        """Return the answer at a step, where it is known without computing it."""
        if step in self.answers:
            return self.answers[step]
        if not self.steps or step < self.steps[0]:
            return "unknown"
        if step < self.steps[-1]:
            return self._between(step)
        return self._predicted(step) if step - self.steps[-1] <= self.reach else "unknown"

    def add(self, step: int, answer: Array | None, *, steady: bool) -> None:
        """Note the answer at a step; what is not steady proves no prediction."""
        if step in self.answers:
            return
        if not self.steps or step > self.steps[-1]:
            self._prove(step, answer, steady=steady and len(self.steps) > 2)
        insort(self.steps, step)
        self.answers[step] = answer

    def _prove(self, step: int, answer: Array | None, *, steady: bool) -> None:
        flat = steady and _alike(self.answers[self.steps[-1]], answer)
        if not flat and not (steady and _alike(self._predicted(step), answer)):
            self.reach = self.proven = 0
            return
        far = step - self.steps[-1]
        self.reach = (FLAT if flat else 2) * far if self.proven else 0
        self.proven = far

    def _predicted(self, step: int) -> Array | None:
        s, t, u = self.steps[-3:]
        last = self.answers[u]
        if last is None:
            return None
        a, b, c = (np.zeros(1) if x is None else x for x in (self.answers[s], self.answers[t], last))
        early, late = (b - a) / (t - s), (c - b) / (u - t)
        shape = np.broadcast_shapes(late.shape, early.shape)
        ratio = np.divide(late, early, out=np.zeros(shape), where=early != 0)
        decay = -np.log(np.clip(ratio, 1e-9, 1.0 - 1e-9)) / (0.5 * (u - s))
        further = late * np.exp(-0.5 * decay * (u - t)) * -np.expm1(-decay * (step - u)) / decay
        found = np.clip(c + further, -1.0, 1.0)
        found = np.where(found * c < 0.0, 0.0, found)  # nothing changes its sign unseen
        return None if float(np.abs(found).max()) < FORGOTTEN else found

    def _between(self, step: int) -> Told:
        """Return the answer between two computed ones that hardly differ."""
        at = bisect(self.steps, step)
        before, after = self.steps[at - 1 : at + 1]
        a, b = self.answers[before], self.answers[after]
        if not _alike(a, b):
            return "unknown"
        return None if a is None or b is None else a + (b - a) * ((step - before) / (after - before))


def _alike(a: Array | None, b: Array | None) -> bool:
    if a is None or b is None:
        return a is b or max(float(np.abs(x).max()) for x in (a, b) if x is not None) < 2 * FORGOTTEN
    return float(np.abs(a - b).max()) <= TRUE * float(np.abs(b).max()) + NOTHING
