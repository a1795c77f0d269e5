"""What the README and the pages beside it show is run, so that it stays true."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from isometry.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/compare.md", "docs/cli.md", "docs/predict.md")


def blocks(language):
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(code, id=f"{page}-{number}")
        for page in PAGES
        for number, code in enumerate(pattern.findall((ROOT / page).read_text(encoding="utf-8")))
    ]


def commands():
    lines = [line.strip() for block in blocks("sh") for line in block.values[0].splitlines()]
    return [pytest.param(line, id=line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<page>", "exec"), {"__name__": "__page__"})


@pytest.mark.parametrize("command", commands())
def test_a_command_runs(command, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    if words[0] == "make":
        # The targets call this suite and the demo: here it is enough that they exist.
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[0] == "isometry":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert main(words[1:]) == 0, capsys.readouterr().err
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()  # tests/test_examples.py runs the examples
    else:
        assert words[:2] in (["git", "clone"], ["pip", "install"]) or words[0] == "cd", "unknown command"


def test_a_block_is_the_quickstart_and_the_first_is_the_one_line():
    first, *others = [block.values[0] for block in blocks("python")]
    example = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert "isometry.init_(model, " in first
    assert any(block in example.replace("  # fmt: skip", "") for block in others)


def test_the_readme_stays_short_and_its_links_and_pictures_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []


def test_the_first_commands_are_the_demo_and_the_tests():
    found = [param.values[0] for param in commands()]
    assert found[:2] == ["make demo", "make test"]
