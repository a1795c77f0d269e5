"""Rows of tables that nothing reads but through a norm: only an optimiser notices how large they are."""

from __future__ import annotations

from collections.abc import Mapping

from isometry.flow.normed import normed_tables
from isometry.flow.tied import Tied
from isometry.recipes.base import Subject

ROWS = 0.02  # the RMS of the sum of such rows


def small_tables(subject: Subject, tied: Mapping[str, Tied]) -> frozenset[str]:
    """Return the tables whose rows begin small because a norm makes up for it.

    A step of an optimiser turns small rows further than large ones: gradients grow as rows shrink, and the
    steps of one that knows no sizes stay as they are. Rows of unit size hardly move while the weights behind
    them are learnt.

    Args:
        subject: The model and its roles.
        tied: The heads that are also tables: those whose logits no scale makes are not free.

    Returns:
        Their names.
    """
    roles = [role for role in subject.roles.by_name.values() if role.name not in subject.settled]
    tables = {r.name: r for r in roles if r.kind in ("embedding", "position")}
    tables |= {r.name: r for r in roles if r.name in tied and tied[r.name].scale}
    return normed_tables(subject.roles.flow, tables, ROWS)
