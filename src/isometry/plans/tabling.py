"""A plan as a text table."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from isometry.plans.folding import folded, masked, span, spanning
from isometry.plans.row import Row
from isometry.sampling import Constant, Distribution
from isometry.tables import Column, Table, compact

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CLOSE = 2.0  # layers whose deviations differ by more than this factor are not shown as one


def table_of(rows: Sequence[Row], title: str, notes: Sequence[str]) -> Table:
    """Lay rows out as a table; layers that are alike share a line.

    Args:
        rows: The rows.
        title: The line above.
        notes: The lines below.

    Returns:
        The table; `str()` of it is plain text.
    """
    with_rates = any(row.rate != 1 for row in rows)
    with_marks = any(row.marks for row in rows)
    columns = [Column(heading, "left") for heading in ("Parameter", "Shape", "Role", "Law")]
    columns += [Column("Std"), *([Column("Rate")] if with_rates else [])]
    columns += [*([Column("Marks", "left")] if with_marks else []), Column("Reason", "left")]
    cells = []
    for label, same in close_folds(rows):
        cells.append([
            label + (f" ×{len(same)}" if len(same) > 1 else ""),
            shape_words(same[0].shape),
            spanning([row.role for row in same]),
            spanning([law_words(row.law) for row in same]),
            _span([row.std for row in same]),
            *([_span([row.rate for row in same])] if with_rates else []),
            *([", ".join(same[0].marks)] if with_marks else []),
            spanning([row.reason for row in same]),
        ])  # fmt: skip
    return Table(columns, cells, title=title, footer=notes)


def close_folds(rows: Sequence[Row]) -> list[tuple[str, tuple[Row, ...]]]:
    """Fold rows that are alike, unless their deviations lie far apart."""
    found: list[tuple[str, tuple[Row, ...]]] = []
    for fold in folded(rows, lambda row: row.name, _alike):
        stds = [row.std for row in fold.items if row.std]
        if stds and max(stds) > _CLOSE * min(stds):
            found += [(row.name, (row,)) for row in fold.items]
        else:
            found.append((fold.label, fold.items))
    return found


def law_words(law: Distribution | None) -> str:
    """A law in a few words, without its standard deviation.

    Example:
        >>> law_words(Constant(1.0)), law_words(None)
        ('= 1', 'kept')
    """
    if law is None:
        return "kept"
    if isinstance(law, Constant):
        return f"= {compact(law.value)}"
    words = _CAPITAL.sub(" ", type(law).__name__)
    words = words if words.isupper() else words.lower()
    mean, part = getattr(law, "mean", 0.0), getattr(law, "part", None)
    if isinstance(part, str):
        words += f", {part}"
    return words + (f", mean {compact(mean)}" if isinstance(mean, float) and mean else "")


def _alike(row: Row) -> Hashable:
    return (row.shape, masked(row.role), masked(law_words(row.law)), row.marks, row.rate, masked(row.reason))


def shape_words(shape: tuple[int, ...]) -> str:
    """A shape in print.

    Example:
        >>> shape_words((3, 4)), shape_words(())
        ('3×4', '–')
    """
    return "×".join(map(str, shape)) or "–"


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return span(known) if len(known) == len(values) else compact(None)
