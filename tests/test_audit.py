"""Prediction and measurement side by side."""

import json

import pytest
from torch import nn

from isometry.audit import audit
from isometry.errors import InvalidValueError


def build(width=256):
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 48)
    )


def test_what_theory_explains_is_inside():
    found = audit(build, "64x64", draws=4)
    assert not any(row.outside for row in found.rows)
    assert found.draws == 4
    assert "figures compared over 4 draws" in found.summary()
    assert all(abs(row.error) < 0.2 for row in found.rows)


def test_what_theory_does_not_explain_is_marked():
    model = build()
    model[2].register_forward_hook(lambda module, args, output: output * (3.0 if not output.is_meta else 1.0))
    found = audit(model, "64x64")
    assert {row.name for row in found.outside if row.side == "forward"} >= {"2", "3", "4"}
    assert not any(row.name in ("0", "1") and row.side == "forward" for row in found.outside)
    assert "*" in str(found)


def test_writes_strict_json():
    data = json.loads(audit(build, "64x64").to_json(), parse_constant=lambda name: pytest.fail(name))
    assert {(row["name"], row["side"]) for row in data["rows"]} >= {("0", "forward"), ("4", "backward")}
    assert len(data["parameters"]) == 6


def test_a_model_that_is_too_large_is_predicted_only():
    found = audit(lambda: nn.Sequential(nn.Linear(1 << 16, 1 << 16), nn.ReLU()), "2x65536")
    assert found.draws == 0
    assert found.rows[0].measured is None
    assert found.rows[0].predicted is not None
    assert "too large" in found.summary()


def test_draws_are_for_builders():
    with pytest.raises(InvalidValueError, match="draws"):
        audit(build(), "4x64", draws=2)
    with pytest.raises(InvalidValueError, match="draws"):
        audit(build, "4x64", draws=0)
