import math

import pytest

from isometry.errors import InvalidValueError
from isometry.tables import Column, Table, compact, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.98765, "0.988"),
        (1234.5, "1234"),
        (12345.6, "1.23e+04"),
        (1.2e-5, "1.2e-05"),
        (-3.14159, "-3.14"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "–"),
    ],
)
def test_compact_keeps_three_digits(value, text):
    assert compact(value) == text


def test_percent_never_hides_a_small_or_nearly_full_share():
    assert [percent(share) for share in (0.0, 1e-9, 0.25, 1 - 1e-9, 1.0)] == [
        "0%",
        "<0.1%",
        "25%",
        ">99.9%",
        "100%",
    ]


def test_columns_line_up():
    table = Table([Column("Name", "left"), Column("Value")], [["a", "1"], ["long name", "12345"]], title="T")
    lines = str(table).splitlines()
    assert lines[0] == "T"
    body = [line for line in lines if "a" in line and "─" not in line]
    assert {len(line) for line in lines[1:]} == {len("long name  12345")}
    assert body[0].startswith("Name")
    assert body[-1].endswith("12345")


def test_long_remarks_are_wrapped_and_kept():
    table = Table(["A", "B"], [["x", "y"]], footer=["word " * 60])
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert str(table).count("word") == 60


def test_a_ragged_row_is_refused():
    with pytest.raises(InvalidValueError, match="row 1 of the table has 1 cells in place of 2"):
        Table(["A", "B"], [["x", "y"], ["z"]])


def test_rich_takes_brackets_literally_and_marks_broken_numbers():
    from rich.console import Console

    console = Console(record=True, width=60, color_system="truecolor", file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(Table(["Module", "RMS"], [["[bold]x", "nan"]], title="Title", footer=["remark"]))
    text = console.export_text(clear=False)
    assert "[bold]x" in text
    assert "Title" in text
    assert "remark" in text
    assert "\x1b[1;31mnan" in console.export_text(styles=True)
