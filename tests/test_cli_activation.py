"""`--activation` beside starts that have no use for it is an error, not silence."""

import pytest

from isometry.__main__ import main

SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "model_for_activation.py"
    path.write_text(SOURCE)
    return f"{path}:build"


@pytest.mark.parametrize("activation", ["nosuch", "relu"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["measure", "-i", "4x64", "--init", "auto"], "with --init auto:"),
        (["measure", "-i", "4x64", "--init", "recipe:lecun"], "with --init recipe:lecun:"),
        (["measure", "-i", "4x64"], "with no --init:"),
        (["compare", "--steps", "1", "--inits", "auto,torch"], "with --init auto, --init torch:"),
    ],
)
def test_an_activation_that_changes_nothing_is_refused(capsys, target, options, told, activation):
    assert main([options[0], target, *options[1:], "--activation", activation]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --activation {activation} changes nothing")
    assert told in captured.err


def test_an_unknown_one_is_named_where_it_is_used(capsys, target):
    assert main(["measure", target, "-i", "4x64", "--init", "kaiming", "--activation", "nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err
    assert main(["measure", target, "-i", "4x64", "--init", "kaiming", "--activation", "relu"]) == 0
