"""Networks of sines, and gates that remember."""

from __future__ import annotations

import math
from collections.abc import Mapping

from isometry.flow.arrivals import arrival_of
from isometry.flow.factors import factor_between
from isometry.flow.gates import Cell, cells_of, loops
from isometry.flow.graph import Node
from isometry.flow.roles import Role
from isometry.flow.units import places_at
from isometry.init.shared import Blocks, Piece, Times, runs_of
from isometry.init.structured import Chrono
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.laws import kept, number, scaled
from isometry.sampling import Constant, Uniform


@recipe(
    "siren",
    source="Sitzmann, Martel, Bergman, Lindell and Wetzstein (2020), Implicit neural representations with "
    "periodic activation functions",
    options=("omega",),
)
def siren(subject: Subject) -> Mapping[str, Choice]:
    """The first layer U(±1/fan), others U(±√(6/fan)/ω), ω the factor within the sines; biases U(±1/√fan).

    ω is read from the graph, sin(ω·(W·x + b)), unless the option gives it. Weights that neither feed nor read
    a sine get 1/fan_in. Biases are those of the released code, which keeps torch's.
    """
    flow = subject.roles.flow
    sines = {role.name: _omega(subject, role) for role in subject.weights()}
    known = [omega for omega in sines.values() if omega is not None]
    if not known:
        subject.notes.append("siren: no weight feeds a sine")
    last = number(subject, "omega", known[-1] if known else 30.0)
    found = {}
    fan_at: dict[int, float] = {}
    for role in subject.weights():
        use = next(u for u in role.uses if u.kind == "weight")
        if role.fans is None or not role.fans.forward:
            found[role.name] = kept(role)
            continue
        fan, arrival = role.fans.forward, arrival_of(flow, use.node)
        omega = sines[role.name]
        if omega is None and arrival.name != "sin":
            found[role.name] = scaled(role, 1.0, "no sine near: 1/fan_in", family=subject.family or "normal")
            continue
        fan_at[use.node.index] = fan
        if arrival.kind == "input":
            found[role.name] = Choice(Uniform(-1 / fan, 1 / fan), "the first layer of sines: U(±1/fan)")
        else:
            factor = last if omega is None else number(subject, "omega", omega)
            bound = math.sqrt(6 / fan) / factor
            found[role.name] = Choice(Uniform(-bound, bound), f"U(±√(6/fan)/ω), ω = {factor:g}")
    for role in subject.roles.by_name.values():
        fan_ = _fan_of_bias(subject, role, fan_at)
        if fan_ is not None:
            found[role.name] = Choice(Uniform(-(fan_**-0.5), fan_**-0.5), "U(±1/√fan), as released")
    return found


def _omega(subject: Subject, role: Role) -> float | None:
    """Return the number that multiplies a weight's output within a sine; None where it feeds none."""
    flow = subject.roles.flow
    for use in role.uses:
        for i in use.cone.nodes if use.cone is not None else ():
            if flow.nodes[i].op in ("sin", "cos"):
                omega = factor_between(flow, flow.signals(flow.nodes[i])[0], lambda n, at=use.node: n is at)  # type: ignore[misc]
                return abs(omega)
    return None


def _fan_of_bias(subject: Subject, role: Role, fan_at: Mapping[int, float]) -> float | None:
    if role.kind != "bias":
        return None
    flow = subject.roles.flow
    return next((fan_at[n.index] for n in flow.upstream(role.uses[0].node) if n.index in fan_at), None)


@recipe(
    "chrono",
    source="Tallec and Ollivier (2018), Can recurrent neural networks warp time?",
    options=("t_max",),
)
def chrono(subject: Subject) -> Mapping[str, Choice]:
    """Forget gates' biases log U(1, T − 1), input gates' minus the same; recurrent weights orthogonal.

    T is `t_max`, by default the number of steps the model was given. Other weights are Glorot's, other biases
    zero.
    """
    flow = subject.roles.flow
    found = {}
    for role in subject.weights():
        if loops(flow, role):
            family = subject.family or "orthogonal"
            found[role.name] = scaled(role, 1.0, "reads its own state: orthogonal", family=family)
        else:
            family = subject.family or "normal"
            found[role.name] = scaled(role, 1.0, "Glorot", mode="fan_avg", family=family)
    cells = cells_of(flow)
    steps = max((sum(u.kind == "weight" for u in r.uses) for r in subject.weights()), default=1)
    t_max = number(subject, "t_max", float(max(steps, 3)), low=2.0)
    if "t_max" not in subject.options:
        subject.notes.append(f"chrono: t_max = {t_max:g}, as many steps as the inputs have; it is an option")
    biases = [role for role in subject.roles.by_name.values() if role.kind == "bias" and len(role.shape) == 1]
    settled: set[tuple[int, str]] = set()
    for role in biases:
        choice = _bias(subject, role, cells, t_max, settled)
        if choice is not None:
            found[role.name] = choice
    if not settled:
        subject.notes.append("chrono: no cell f·c + i·g with biased gates was found")
    return found


def _bias(
    subject: Subject, role: Role, cells: list[Cell], t_max: float, settled: set[tuple[int, str]]
) -> Choice | None:
    """Return the choice of a bias that reaches the gates of a cell first; None where it does not."""
    node = role.uses[0].node
    for cell in cells:
        gates = {"f": _reached(subject, node, cell.forget), "i": _reached(subject, node, cell.insert)}
        if not any(gates.values()):
            continue
        fresh = {g: units for g, units in gates.items() if units and (cell.state.index, g) not in settled}
        settled.update((cell.state.index, g) for g in fresh)
        if not fresh:
            return Choice(Constant(0.0), "another bias of the same gates remembers")
        quarter = role.shape[0] // 4
        if fresh == {"i": tuple(range(quarter)), "f": tuple(range(quarter, 2 * quarter))}:
            return Choice(Chrono(t_max), f"gates that remember for 1 to {t_max:g} steps")
        pieces = [
            Piece(Times(t_max, 1.0 if gate == "f" else -1.0), runs_of(units)) for gate, units in fresh.items()
        ]
        rest = tuple(u for u in range(role.shape[0]) if not any(u in units for units in fresh.values()))
        if rest:
            pieces.append(Piece(Constant(0.0), runs_of(rest), group=1))
        # The gates of one cell share a draw, in one parameter or in two.
        law = Blocks(tuple(pieces), 0, f"cell {cell.state.index}")
        return Choice(law, f"gates that remember for 1 to {t_max:g} steps")
    return None


def _reached(subject: Subject, start: Node, gate: Node) -> tuple[int, ...]:
    """Return which units of a bias go into a gate."""
    flow = subject.roles.flow
    before = flow.signals(gate)
    if not before or not start.shape:
        return ()
    places = places_at(flow, start, before[0], -1) if start.index <= before[0].index else None
    if places is None:
        return ()
    return tuple(sorted({int(unit) for unit in places.flatten().tolist() if unit >= 0}))
