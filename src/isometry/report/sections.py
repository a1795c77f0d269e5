"""What a page shows of each kind of result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TYPE_CHECKING, get_args

from isometry.audit import Audit
from isometry.compare.comparison import Comparison
from isometry.compare.verdicts import at_the_start, evidence
from isometry.diagnosis import Fault
from isometry.errors import InvalidTypeError, described
from isometry.plans import Plan
from isometry.plans.difference import PlanDiff
from isometry.profile import Profile, Side
from isometry.scaling import Scaling
from isometry.tables import Table
from isometry.watch import History, watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CALLS, _PARAMETERS = "Module calls", "Parameters"


@dataclass(frozen=True)
class Section:
    """A part of a page, in the order in which it is read.

    Attributes:
        heading: What it is about.
        sentences: What to know first.
        figures: Pictures.
        tables: The numbers.
    """

    heading: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@singledispatch
def section(result: object, heading: str | None = None) -> Section:
    """Lay a result out; further kinds are added by `section.register`.

    Args:
        result: What was found.
        heading: A heading of one's own; None takes the result's.

    Returns:
        The section.

    Raises:
        InvalidTypeError: Nobody knows how to show it.
    """
    raise InvalidTypeError(
        "a report shows what measure, predict, audit, scaling, plan and compare return, histories, tables "
        f"and texts, got {described(result)}"
    )


@section.register
def _(result: Section, heading: str | None = None) -> Section:
    return result


@section.register
def _(result: str, heading: str | None = None) -> Section:
    return Section(heading or "", sentences=[result])


@section.register
def _(result: Fault, heading: str | None = None) -> Section:
    return Section(heading or "What is wrong", sentences=[str(result)])


@section.register
def _(result: Table, heading: str | None = None) -> Section:
    return Section(heading or "", tables=[result])


@section.register
def _(result: Profile, heading: str | None = None) -> Section:
    shown = any(row.forward is not None or row.backward is not None for row in result.leaves())
    tables = [replace(result.table(), title=_CALLS)]
    if result.parameters:
        tables.append(replace(result.table(parameters=True), title=_PARAMETERS))
    return Section(
        heading or f"{result.source.capitalize()} signal",
        sentences=_said(result),
        figures=[result.plot(title="")] if shown else [],
        tables=tables,
    )


@section.register
def _(result: Audit, heading: str | None = None) -> Section:
    tables = [replace(result.table(), title=_CALLS, footer=result.notes)]
    if result.parameters:
        tables.append(replace(result.table(parameters=True), title=_PARAMETERS, footer=()))
    return Section(
        heading or "Prediction beside measurement",
        sentences=[result.summary(), *_said(result.predicted)],
        figures=[result.plot(title="")] if result.rows else [],
        tables=tables,
    )


@section.register
def _(result: Plan, heading: str | None = None) -> Section:
    return Section(heading or f"Plan {result.recipe}", tables=[result.table()])


@section.register
def _(result: PlanDiff, heading: str | None = None) -> Section:
    return Section(heading or "Difference of plans", tables=[result.table()])


@section.register
def _(result: Scaling, heading: str | None = None) -> Section:
    breaks = result.breaks()
    return Section(
        heading or f"Growth with {result.argument}",
        sentences=breaks or [f"Nothing depends on {result.argument}."],
        tables=[result.table(parameters=False), result.table()],
    )


@section.register
def _(result: History, heading: str | None = None) -> Section:
    rows = [row for snapshot in result.snapshots for row in snapshot.profile.leaves()]
    sides = [side for side in get_args(Side) if any(row.stats(side) is not None for row in rows)]
    return Section(
        heading or "The first steps",
        sentences=[str(finding) for finding in result.findings] or ["Nothing was found."],
        figures=[result.plot(side=side) for side in sides],
    )


@section.register
def _(result: watch, heading: str | None = None) -> Section:
    return section(result.history, heading)


@section.register
def _(result: Comparison, heading: str | None = None) -> Section:
    return Section(
        heading or f"{result.title} on {result.data}",
        sentences=[f"{name}: {text}" for name, text in result.sentences().items()],
        figures=list(result.figures().values()),
        tables=[result.table()],
    )


def _said(profile: Profile) -> list[str]:
    """How the signal travels through the hidden layers, where that is known."""
    text = at_the_start(evidence(profile))
    return [text] if text else []
