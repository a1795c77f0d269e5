from isometry.gain import describe
from isometry.gain_table import gain_table


def rows_of(*names):
    return {row[0]: row[1:] for row in gain_table([describe(name) for name in names]).rows}


def test_the_numbers_are_those_of_the_literature():
    rows = rows_of("relu", "tanh")
    assert rows["forward gain"] == ["1.41421", "1.59254"]
    assert rows["backward gain"] == ["1.41421", "1.46741"]
    assert rows["torch's gain"] == ["1.41421", "1.66667"]
    assert rows["mirrored slope"] == ["1", "–"]
    # What symmetry makes zero is written as zero, whatever the quadrature leaves.
    assert rows["E[φ]"][1] == rows["cosine 0 becomes"][1] == "0"


def test_what_nobody_has_is_left_out():
    assert "torch's gain" not in rows_of("gelu")
    assert "torch's gain" in rows_of("gelu", "relu")
    assert "mirrored slope" not in rows_of("tanh")


def test_gated_units_and_notes_are_marked():
    table = gain_table([describe("swiglu"), describe("tanh"), describe("silu", gated=True)])
    assert [str(column) for column in table.columns][1:] == ["swiglu (gated)", "tanh", "silu (gated)"]
    assert any(line.startswith("tanh: torch's gain") for line in table.footer)


def test_the_title_names_the_input():
    assert gain_table([describe("relu", mean=0.5, std=2.0)]).title == "For z ~ N(0.5, 4)"
