"""What differs between a plan and another one, or the weights that a model has: the record and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from isometry.errors import InvalidValueError
from isometry.plans.folding import Fold, folded, masked, span, spanning
from isometry.strictjson import Record, expect, number_from_data, number_to_data, refuse_unknown
from isometry.tables import Column, Table, compact

Value = float | str | None


@dataclass(frozen=True)
class Difference:
    """One thing that a plan says of a parameter, beside what the other says.

    Attributes:
        name: The parameter.
        field: "row", "shape", "role", "law", "std", "mean" or "rate".
        planned: What the plan says; None where it says nothing.
        found: What the other says, or what the weights have.
        differs: Whether the two do not agree.
        shape: The parameter's logical shape.
    """

    name: str
    field: str
    planned: Value
    found: Value
    differs: bool = True
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlanDiff(Record):
    """What `Plan.diff` found; true where anything differs.

    Attributes:
        rows: Against a plan what differs, against a model mean and standard deviation of every parameter.
        against: "plan" or "model".
    """

    schema: ClassVar[str] = "isometry.plan-diff"

    rows: tuple[Difference, ...]
    against: str = "plan"

    def __bool__(self) -> bool:
        return any(row.differs for row in self.rows)

    def __len__(self) -> int:
        return sum(row.differs for row in self.rows)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.rows)

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """Lay the comparison out as a table, layers that are alike in one line.

        Returns:
            The table; `str()` of it is plain text.
        """
        by_name: dict[str, list[Difference]] = {}
        for row in self.rows:
            by_name.setdefault(row.name, []).append(row)
        folds = folded(list(by_name.values()), lambda same: same[0].name, _alike)
        count = len({row.name for row in self.rows if row.differs})
        says = "no difference" if not count else f"{count} parameter{'s differ' if count > 1 else ' differs'}"
        if self.against == "model":
            return _table_of_weights(folds, f"Plan and present weights: {says}")
        return _table_of_changes(folds, f"Two plans: {says}")

    def contents(self) -> dict[str, Any]:
        """The entries of the JSON form besides schema and version."""
        rows = [
            {
                "name": row.name,
                "field": row.field,
                "planned": _to_data(row.planned),
                "found": _to_data(row.found),
                "differs": row.differs,
                "shape": list(row.shape),
            }
            for row in self.rows
        ]
        return {"against": self.against, "rows": rows}

    @classmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make a comparison from what `contents` gave."""
        against = table.get("against")
        if against not in ("plan", "model"):
            raise InvalidValueError(f'against must be "plan" or "model", got {against!r}')
        rows = enumerate(expect(table.get("rows"), list, "rows"))
        return cls(tuple(_from_data(row, f"rows[{index}]") for index, row in rows), against)


def _table_of_changes(folds: Sequence[Fold[list[Difference]]], title: str) -> Table:
    """One line per change."""
    cells = []
    for fold in folds:
        for index, row in enumerate(fold.items[0]):
            same = [changes[index] for changes in fold.items]
            sides = [_span([one.planned for one in same]), _span([one.found for one in same])]
            cells.append([_label(fold) if index == 0 else "", row.field, *sides])
    headings = ("Parameter", "What", "This plan", "The other")
    return Table([Column(heading, "left") for heading in headings], cells, title=title)


def _table_of_weights(folds: Sequence[Fold[list[Difference]]], title: str) -> Table:
    """One line per parameter: mean and deviation, planned and present."""
    cells = []
    for fold in folds:
        numbers = {row.field: [changes[i] for changes in fold.items] for i, row in enumerate(fold.items[0])}
        line = [_label(fold)]
        for field in ("mean", "std"):
            found = numbers.get(field, [])
            line += [_span([one.planned for one in found]), _span([one.found for one in found])]
        cells.append([*line, _verdict(fold.items[0])])
    columns = [Column("Parameter", "left"), *map(Column, ("Planned mean", "Mean", "Planned std", "Std"))]
    return Table([*columns, Column("", "left")], cells, title=title)


def _verdict(changes: Sequence[Difference]) -> str:
    """What is wrong with one parameter, in words."""
    for change in changes:
        if change.field == "shape":
            return f"planned with shape {change.planned}, has {change.found}"
        if change.field == "row":
            return "not in the plan" if change.planned is None else "not in the model"
    wrong = [change.field for change in changes if change.differs]
    return f"{' and '.join(wrong)} off" if wrong else ""


def _label(fold: Fold[list[Difference]]) -> str:
    return fold.label + (f" ×{len(fold.items)}" if len(fold.items) > 1 else "")


def _alike(changes: list[Difference]) -> tuple[object, ...]:
    return tuple((c.shape, c.field, c.differs, _sort(c.planned), _sort(c.found)) for c in changes)


def _sort(value: Value) -> object:
    """What must be equal for values to share a line: words, and which numbers are zero."""
    if isinstance(value, str):
        return masked(value)
    return None if value is None else value == 0


def _span(values: Sequence[Value]) -> str:
    """Values that are alike as one text: words with first and last numbers, or the range of numbers."""
    words = [value for value in values if isinstance(value, str)]
    if words:
        return spanning(words)
    known = [value for value in values if isinstance(value, int | float)]
    return span(known) if known else compact(None)


def _to_data(value: Value) -> Value:
    return value if isinstance(value, str) else number_to_data(value)


def _from_data(data: object, what: str) -> Difference:
    table = expect(data, dict, what)
    refuse_unknown(table, ("name", "field", "planned", "found", "differs", "shape"), what)
    field = expect(table.get("field"), str, f"{what}.field")
    read = _read_text if field in ("row", "shape", "role", "law") else number_from_data
    return Difference(
        expect(table.get("name"), str, f"{what}.name"),
        field,
        read(table.get("planned"), f"{what}.planned"),
        read(table.get("found"), f"{what}.found"),
        expect(table.get("differs"), bool, f"{what}.differs"),
        tuple(
            expect(side, int, f"{what}.shape") for side in expect(table.get("shape"), list, f"{what}.shape")
        ),
    )


def _read_text(value: object, what: str) -> str | None:
    return None if value is None else expect(value, str, what)
