"""The record: rows, printing, JSON."""

import json
import math

import pytest
import torch
from plan_cases import Model, Unregistered, plan_of

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError
from isometry.init.structured import Orthogonal
from isometry.plans import Plan, Row
from isometry.sampling import Constant, Normal

PLAN = plan_of(Model(), rates={"up.weight": 0.5}, laws={"down.bias": None})


def test_a_plan_is_a_sequence_of_rows_by_name():
    assert isometry.Plan is Plan
    assert len(PLAN) == 7
    assert [row.name for row in PLAN][:2] == ["embed.weight", "up.weight"]
    assert PLAN["up.weight"] is PLAN[1]
    assert "up.weight" in PLAN
    assert "up" not in PLAN
    assert set(PLAN.laws) == {row.name for row in PLAN} - {"down.bias"}
    with pytest.raises(NotFoundError, match=r"did you mean 'down.weight'"):
        PLAN["down.weights"]


def test_rows_know_their_size():
    row = Row("w", (4, 2), "weight", Orthogonal(0.3), "")
    assert (row.std, row.mean) == (0.3, 0.0)
    kept = Row("w", (4, 2), "weight", None, "")
    assert (kept.std, kept.mean) == (None, None)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": ""}, InvalidTypeError, "name of a parameter"),
        ({"shape": [3]}, InvalidTypeError, "row 'w': shape"),
        ({"shape": (3, -1)}, InvalidTypeError, "row 'w': shape"),
        ({"shape": (True,)}, InvalidTypeError, "row 'w': shape"),
        ({"law": 0.02}, InvalidTypeError, "row 'w': law"),
        ({"role": None}, InvalidTypeError, "row 'w': role"),
        ({"marks": (3,)}, InvalidTypeError, "row 'w': a mark"),
        ({"rate": 0.0}, InvalidValueError, "row 'w': rate"),
        ({"rate": math.nan}, InvalidValueError, "row 'w': rate"),
        ({"fans": (1.0, -1.0)}, InvalidValueError, "row 'w': fans"),
        ({"fans": (1.0, math.nan)}, InvalidValueError, "row 'w': fans"),
    ],
)
def test_what_is_no_row(change, error, words):
    with pytest.raises(error, match=words):
        Row(**({"name": "w", "shape": (3,), "role": "", "law": None, "reason": ""} | change))


def test_rows_are_of_different_parameters():
    row = Row("w", (3,), "bias", Constant(0.0), "")
    with pytest.raises(InvalidValueError, match="two rows for 'w'"):
        Plan((row, row), "auto", "forward")
    with pytest.raises(InvalidTypeError, match="tuple of"):
        Plan([row], "auto", "forward")


def test_the_table_has_the_columns_that_say_something():
    text = str(PLAN)
    title, _, headings, *_ = text.split("\n")
    assert title == "Plan: recipe tested, objective forward, 7 parameters, 1 kept"
    assert headings.split() == ["Parameter", "Shape", "Role", "Law", "Std", "Rate", "Reason"]
    assert text.split("\n")[-1] == "a note"
    line = next(line for line in text.split("\n") if line.startswith("up.weight"))
    assert line.split() == ["up.weight", "8×6", "weight", "normal", "0.2", "0.5", "as", "tested"]
    kept = next(line for line in text.split("\n") if line.startswith("down.bias"))
    assert kept.split() == ["down.bias", "6", "weight", "kept", "–", "1", "as", "tested"]
    assert "Rate" not in str(plan_of(Model()))
    marked = Plan((Row("w", (3,), "bias", Constant(0.0), "", marks=("unsolved",)),), "auto", "forward")
    assert "Marks" in str(marked)
    assert "unsolved" in str(marked)


def deep(layers, std=lambda i: 0.02):
    rows = [Row("embed.weight", (50, 8), "embedding", Normal(1.0), "rows of unit size")]
    for i in range(layers):
        sizes = {"attn.q": (8, 8), "attn.o": (8, 8), "up": (32, 8), "down": (8, 32)}
        for name, shape in sizes.items():
            ends = f", ends branch {2 * i + 1} of {2 * layers}" if name == "attn.o" else ""
            law = Normal(std(i))
            rows.append(Row(f"layers.{i}.{name}.weight", shape, f"weight{ends}", law, "solved"))
            rows.append(Row(f"layers.{i}.{name}.bias", shape[:1], "bias", Constant(0.0), "zero"))
    return Plan((*rows, Row("head.weight", (50, 8), "head", Normal(0.1), "chance")), "auto", "forward")


def test_a_plan_of_126_layers_fits_a_screen():
    plan = deep(126)
    lines = str(plan).split("\n")
    assert len(plan) == 126 * 8 + 2
    assert len(lines) == 8 + 2 + 5
    line = next(line for line in lines if "attn.o.weight" in line)
    assert line.startswith("layers.0…125.attn.o.weight ×126  8×8 ")
    assert "ends branch 1…251 of 252" in line


def test_layers_share_a_line_only_where_their_deviations_are_close():
    close = str(deep(4, lambda i: 0.02 + 0.005 * i))
    assert "0.02…0.035" in close
    far = str(deep(4, lambda i: 0.02 if i != 2 else 0.2))
    assert "layers.2.up.weight " in far
    assert "layers.0…3.up.bias ×4" in far
    other = deep(4).override({"layers.2.up.weight": Orthogonal(0.02)})
    assert "layers.2.up.weight " in str(other)


def test_a_plan_comes_back_equal(tmp_path):
    rows = (
        *PLAN.rows,
        Row("extra", (), "other", None, "kept", fans=(3.0, math.inf), rate=0.1, marks=("a", "b")),
    )
    plan = Plan(rows, "auto", "balanced", ("first", "second"))
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "new" / "plan.json")
    read = Plan.load(tmp_path / "new" / "plan.json")
    assert read == plan
    first, second = Model(), Model()
    extra = Plan(rows[:-1], "auto", "forward")
    extra.apply_(first, seed=3)
    Plan.from_json(extra.to_json()).apply_(second, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.ndim > 1
    )


SPARSE = {"type": "Sparse", "sparsity": 0.5}
DATA = json.loads(PLAN.to_json())


def edited(change):
    data = json.loads(json.dumps(DATA))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="isometry.profile"), '"schema": "isometry.plan"'),
        (lambda d: d.update(version=2), "reads versions 1 to 1"),
        (lambda d: d.update(author="me"), "the plan has entries this version does not know: author"),
        (lambda d: d.pop("notes"), "notes must be of type list"),
        (lambda d: d.update(recipe=None), "recipe must be of type str"),
        (lambda d: d["rows"][0].update(size=3), r"rows\[0\] has entries this version does not know: size"),
        (lambda d: d["rows"][0].pop("law"), r'rows\[0\] lacks "law"'),
        (lambda d: d["rows"][0].pop("name"), r"rows\[0\].name must be of type str"),
        (lambda d: d["rows"][0].update(shape=[9.0, 6]), r"rows\[0\].shape must be of type int"),
        (lambda d: d["rows"][0].update(rate="nan"), r"rows\[0\].rate must be a number"),
        (lambda d: d["rows"][0].update(rate=-1), r"rows\[0\]: row 'embed.weight': rate"),
        (lambda d: d["rows"][0].update(fans=[1]), r"rows\[0\].fans must be null or two numbers"),
        (lambda d: d["rows"][0]["law"].update(std=math.nan), r"rows\[0\].law.std must be a number"),
        (lambda d: d["rows"][0]["law"].update(type="Normals"), "did you mean 'Normal'"),
        (
            lambda d: d["rows"][0].update(law={"type": "Sparse", "sparsity": 0.5}, shape=[3]),
            r"rows\[0\]: a sparse",
        ),
        (lambda d: d["rows"].append(d["rows"][0]), "two rows for 'embed.weight'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(change, words):
    with pytest.raises(InvalidValueError, match=words):
        Plan.from_json(json.dumps(edited(change)))


def test_a_law_that_cannot_be_saved_names_its_row():
    with pytest.raises(InvalidValueError, match=r"row 'up.weight': Unregistered is not registered"):
        plan_of(Model(), laws={"up.weight": Unregistered()}).to_json()


def test_a_file_that_holds_no_plan_is_named(tmp_path):
    (tmp_path / "plan.json").write_text("weights = 3")
    with pytest.raises(InvalidValueError, match=r"plan\.json' cannot be read: this is no JSON"):
        Plan.load(tmp_path / "plan.json")
