"""A small text table: plain with `str`, coloured where rich prints it, and compact numbers to fill it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from isometry.errors import InvalidValueError, MissingExtraError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Align = Literal["left", "right"]


def compact(value: float | None, *, digits: int = 3) -> str:
    """Write a number in few characters: `digits` significant digits, a short exponent, `–` for None.

    Args:
        value: The number; None stands for "nobody knows".
        digits: Significant digits.

    Returns:
        The text, such as `0.98`, `-12.3`, `1.2e-05`, `nan`, `inf` or `–`.

    Example:
        >>> compact(0.0000123456), compact(123456.0), compact(1.5), compact(0.0), compact(None)
        ('1.23e-05', '1.23e+05', '1.5', '0', '–')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(float(value))
    text = f"{value:.{digits}g}"
    plain_limit = 10**digits
    if "e" in text and abs(value) < plain_limit * 10 and abs(value) >= plain_limit:
        text = f"{value:.0f}"
    return text


def percent(share: float | None) -> str:
    """Write a share between 0 and 1 as a percentage; a small share is never rounded down to zero.

    Args:
        share: The share; None stands for "nobody knows".

    Returns:
        The text.

    Example:
        >>> percent(0.5), percent(0.00001), percent(0.0), percent(1.0), percent(None)
        ('50%', '<0.1%', '0%', '100%', '–')
    """
    if share is None:
        return "–"
    if math.isnan(share):
        return "nan"
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.3g}%"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Table`: its heading and the side its cells lean to."""

    heading: str
    align: Align = "right"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headings, with a title above and remarks below.

    `str(table)` is plain text; `rich.print(table)` (rich comes with the extra `cli`) draws it with colour.

    Args:
        columns: The headings, as `Column` or as text (first column to the left, the others to the right).
        rows: The cells, as many in each row as there are columns.
        title: A line above the table.
        footer: Lines below it.

    Raises:
        InvalidValueError: A row has more or fewer cells than there are columns.

    Example:
        >>> print(Table(["Layer", "RMS"], [["fc1", "0.98"], ["fc2", "1.02"]], title="Signal"))
        Signal
        ───────────
        Layer   RMS
        ───────────
        fc1    0.98
        fc2    1.02
        ───────────
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    footer: Sequence[str] = ()

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InvalidValueError(
                    f"row {index} of the table has {len(row)} cells in place of {len(self.columns)}"
                )

    @property
    def headings(self) -> list[Column]:
        """The columns, each with the side that its cells lean to."""
        return [
            column if isinstance(column, Column) else Column(column, "left" if index == 0 else "right")
            for index, column in enumerate(self.columns)
        ]

    def __str__(self) -> str:
        columns = self.headings
        widths = [
            max([len(column.heading), *(len(row[index]) for row in self.rows)])
            for index, column in enumerate(columns)
        ]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if column.align == "left" else cell.rjust(width)
                for cell, width, column in zip(cells, widths, columns, strict=True)
            ]
            return "  ".join(padded).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [self.title] if self.title else []
        lines += [rule, line([column.heading for column in columns]), rule]
        lines += [line(row) for row in self.rows]
        lines.append(rule)
        for remark in self.footer:
            lines += textwrap.wrap(remark, max(len(rule), 80))
        return "\n".join(lines)

    def __rich__(self) -> RichTable:
        try:
            from rich import box
            from rich.table import Table as RichTable
            from rich.text import Text
        except ImportError as error:
            raise MissingExtraError("rich", "cli") from error
        table = RichTable(
            title=Text(self.title) if self.title else None,
            caption=Text("\n".join(self.footer)) if self.footer else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for column in self.headings:
            table.add_column(Text(column.heading), justify=column.align, no_wrap=True)
        for row in self.rows:
            # Text, not str: square brackets in a module name are not markup.
            table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        return table


def _style(cell: str) -> str:
    """Numbers that stopped being finite stand out."""
    return "bold red" if cell in {"nan", "inf", "-inf"} else ""
