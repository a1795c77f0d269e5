"""How large residual branches arrive at their sums, whatever lies behind the weights that end them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isometry.flow.factors import multiplied
from isometry.flow.roles import Role, Roles
from isometry.flow.streams import Residual, ends_of
from isometry.solving.passes import Balance
from isometry.solving.solver import Aim, Solver


def summed_ends(roles: Roles, role: Role, residual: Residual) -> float:
    """Return how many ends of a branch are summed in one of its entries; halves side by side are not.

    Args:
        roles: The roles.
        role: One of the ends.
        residual: The residual sum.

    Returns:
        The number on average, 1 or more.
    """
    ends = [r for r in roles.by_name.values() if r.ends is residual and r.kind == role.kind]
    read = ([u for u in end.uses if u.kind == end.kind][-1] for end in ends)
    entries = sum(math.prod(use.node.shape) for use in read)
    return max(entries / max(math.prod(roles.flow.nodes[residual.node].shape), 1), 1.0)


def stream_size(solver: Solver, residual: Residual) -> float:
    """Return the RMS of the stream that a branch is added to, as far as the pass has come.

    Args:
        solver: The pass.
        residual: The residual sum.

    Returns:
        The size; 1 where it is not known, or zero.
    """
    size = solver.rms(residual.skip)
    if size is None and not residual.skips:
        size = solver.rms(residual.fork)
    return 1.0 if size is None or not size > 0.0 else size


def branch_balances(roles: Roles, aims: Sequence[Aim]) -> list[Balance]:
    """Return what makes up for numbers and gates that multiply branches behind their ends.

    k ends of size s are to arrive as √k·s: a branch times 0.1, or times shares of experts, is as large at the
    sum as one that is added as it is.

    Args:
        roles: The roles.
        aims: What the weights are solved for.

    Returns:
        A balance for each branch that is multiplied.
    """
    found = []
    ended = [(aim, _ended(roles, aim)) for aim in aims if aim.role.ends is not None]
    for residual in roles.streams.residuals.values():
        ends = [aim for aim, its in ended if its is residual]
        if ends and multiplied(roles.flow, residual, [aim.node.index for aim in ends]):
            first = ends[0].role
            target = math.sqrt(summed_ends(roles, first, first.ends or residual))
            names = tuple(aim.role.name for aim in ends)
            found.append(Balance(residual.branch, names, target, of=ends[0].node.index))
    return found


def _ended(roles: Roles, aim: Aim) -> Residual | None:
    """Return the branch that an aim's weight ends where it is solved: of a loop that of its last step."""
    if len(aim.role.uses) > 1:
        residuals = roles.streams.residuals
        for residual in reversed(residuals.values()):
            if any(n is aim.node for n in ends_of(roles.flow, residual, residuals)):
                return residual
    return aim.role.ends
