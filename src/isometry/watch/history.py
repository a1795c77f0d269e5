"""What a watch keeps: a profile per observed step, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

from isometry.errors import InvalidValueError
from isometry.plots import heat_map
from isometry.profile import Profile, Side
from isometry.strictjson import Record, expect, number_from_data, number_to_data, refuse_unknown
from isometry.tables import Column, Table, compact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Symptom = Literal[
    "nonfinite",
    "exploding gradient",
    "vanishing gradient",
    "exploding variance",
    "collapsing variance",
    "drifting mean",
    "dead units",
    "saturated units",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that went wrong, once per module and symptom.

    Attributes:
        step: The step at which it was seen.
        symptom: What it is.
        name: The module or parameter; "" for the whole model.
        call: Which call of the module.
        message: The numbers, and a sentence on the likely cause.
    """

    step: int
    symptom: Symptom
    name: str
    call: int = 0
    message: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.name or 'the model'}: {self.symptom}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One observed training step.

    Attributes:
        step: Its number, from 0.
        loss: The loss, if the watch was told.
        profile: What was measured in it.
        updates: Name of a parameter → RMS of its update / RMS of its values before; empty without an
            optimizer.
    """

    step: int
    loss: float | None = None
    profile: Profile
    updates: Mapping[str, float] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Return the numbers of this step by name, as loggers such as TensorBoard and wandb take them.

        Returns:
            `loss`; the RMS of what each call of a module without modules inside gave, `forward/NAME`, and of
            the gradient there, `backward/NAME` (`NAME#1` for its second call); `weight/NAME`,
            `gradient/NAME` and `update/NAME` for each parameter: RMS of its values, of its gradient, and
            `updates`. What is unknown is left out; nan and infinities are not.

        Example:
            >>> from isometry.profile import Signal, Stats
            >>> rows = (Signal(name="fc", forward=Stats(rms=1.0)),)
            >>> Snapshot(step=0, loss=2.3, profile=Profile(rows)).scalars()
            {'loss': 2.3, 'forward/fc': 1.0}
        """
        told: dict[str, float | None] = {"loss": self.loss}
        for row in self.profile.leaves():
            place = (row.name or "(model)") + (f"#{row.call}" if row.call else "")
            told |= {f"forward/{place}": row.rms("forward"), f"backward/{place}": row.rms("backward")}
        for row in self.profile.parameters:
            told |= {f"weight/{row.name}": row.rms("forward"), f"gradient/{row.name}": row.rms("backward")}
        told |= {f"update/{name}": ratio for name, ratio in self.updates.items()}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True, repr=False)
class History(Record):
    """The observed steps of a training run, in order, with everything that was found.

    Attributes:
        snapshots: The observed steps.
        findings: What went wrong.

    Example:
        >>> history = History((Snapshot(step=0, loss=2.3, profile=Profile(())),))
        >>> History.from_json(history.to_json()) == history
        True
    """

    schema: ClassVar[str] = "isometry.history"

    snapshots: tuple[Snapshot, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        return f"<History: {len(self.snapshots)} steps observed, {len(self.findings)} found>"

    def table(self) -> Table:
        """Lay out what was found.

        Returns:
            A table with one row per finding.

        Example:
            >>> finding = Finding(step=3, symptom="dead units", name="relu", message="60 of 64 are silent")
            >>> print(History(findings=(finding,)).table())
            0 steps observed, 1 finding
            ─────────────────────────────────────────────
            Step  Module  Symptom     What
            ─────────────────────────────────────────────
               3  relu    dead units  60 of 64 are silent
            ─────────────────────────────────────────────
        """
        count = len(self.findings)
        rows = [
            [compact(finding.step), finding.name or "(model)", finding.symptom, finding.message]
            for finding in self.findings
        ]
        columns = [
            Column("Step"),
            Column("Module", "left"),
            Column("Symptom", "left"),
            Column("What", "left"),
        ]
        title = f"{len(self.snapshots)} steps observed, {count} finding{'' if count == 1 else 's'}"
        return Table(columns, rows, title=title)

    def __str__(self) -> str:
        return str(self.table())

    def plot(
        self,
        path: str | Path | None = None,
        *,
        side: Side = "forward",
        statistic: Literal["rms", "std"] = "rms",
        title: str | None = None,
    ) -> Figure:
        """Draw log10 of a statistic as a heat map, layer × step.

        Args:
            path: Write the picture there; None only returns it.
            side: "forward" for the values, "backward" for the gradients.
            statistic: Which of their statistics.
            title: A title; None for a plain one.

        Returns:
            The matplotlib figure.

        Raises:
            InvalidValueError: Nothing was observed, or `side` or `statistic` is unknown.
            MissingExtraError: matplotlib is not installed.
        """
        if side not in get_args(Side) or statistic not in ("rms", "std"):
            raise InvalidValueError(
                f'side must be "forward" or "backward", statistic "rms" or "std", got {side!r}, {statistic!r}'
            )
        columns = []
        for snapshot in self.snapshots:
            rows = {(row.name, row.call): row.stats(side) for row in snapshot.profile.leaves()}
            columns.append(
                {key: getattr(stats, statistic) for key, stats in rows.items() if stats is not None}
            )
        keys = list(dict.fromkeys(key for column in columns for key in column))
        if not keys:
            raise InvalidValueError(f"nothing was observed {side}, so there is nothing to draw")
        what = "values" if side == "forward" else "gradients"
        return heat_map(
            [[column.get(key) for column in columns] for key in keys],
            rows=[name + (f" #{call}" if call else "") for name, call in keys],
            columns=[snapshot.step for snapshot in self.snapshots],
            title=f"{statistic.upper()} of the {what}" if title is None else title,
            label=f"log10 {statistic.upper()}",
            path=path,
        )

    def contents(self) -> dict[str, Any]:
        """The entries of the JSON form besides schema and version."""
        return {
            "snapshots": [
                {
                    "step": snapshot.step,
                    "loss": number_to_data(snapshot.loss),
                    "profile": snapshot.profile.to_data(),
                    "updates": {name: number_to_data(ratio) for name, ratio in snapshot.updates.items()},
                }
                for snapshot in self.snapshots
            ],
            "findings": [
                {part.name: getattr(finding, part.name) for part in fields(Finding)}
                for finding in self.findings
            ],
        }

    @classmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make a history from what `contents` gave."""
        snapshots = expect(table.get("snapshots"), list, "snapshots")
        findings = expect(table.get("findings"), list, "findings")
        return cls(
            snapshots=tuple(_snapshot(entry, f"snapshots[{index}]") for index, entry in enumerate(snapshots)),
            findings=tuple(_finding(entry, f"findings[{index}]") for index, entry in enumerate(findings)),
        )


def _snapshot(data: object, what: str) -> Snapshot:
    table = expect(data, dict, what)
    refuse_unknown(table, (part.name for part in fields(Snapshot)), what)
    updates = expect(table.get("updates"), dict, f"{what}.updates")
    return Snapshot(
        step=expect(table.get("step"), int, f"{what}.step"),
        loss=number_from_data(table.get("loss"), f"{what}.loss"),
        profile=Profile.from_data(table.get("profile")),
        updates={
            name: expect(number_from_data(ratio, f"{what}.updates"), float, f"{what}.updates")
            for name, ratio in updates.items()
        },
    )


def _finding(data: object, what: str) -> Finding:
    table = expect(data, dict, what)
    refuse_unknown(table, (part.name for part in fields(Finding)), what)
    symptom = table.get("symptom")
    if symptom not in get_args(Symptom):
        raise InvalidValueError(f"{what}.symptom must be one of {get_args(Symptom)}, got {symptom!r}")
    return Finding(
        step=expect(table.get("step"), int, f"{what}.step"),
        symptom=cast("Symptom", symptom),
        name=expect(table.get("name"), str, f"{what}.name"),
        call=expect(table.get("call"), int, f"{what}.call"),
        message=expect(table.get("message"), str, f"{what}.message"),
    )
