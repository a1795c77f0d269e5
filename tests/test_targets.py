import sys

import pytest
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.targets import builder, find, parse_arguments

SOURCE = """
from dataclasses import dataclass
from torch import nn
import sibling_of_the_target

@dataclass
class Settings:
    width: int = 5

def build(width: int, depth: int = 2, **rest):
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

def build_strict(width: int = 3):
    return nn.Linear(width, 2)

def no_model():
    return 7

def fails():
    raise KeyError("weights")

class Zoo:
    @staticmethod
    def small():
        return nn.Linear(2, 3)

instance = nn.Linear(3, 4)
number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sibling_of_the_target.py").write_text("value = 1\n")
    path = tmp_path / "model_for_targets.py"
    path.write_text(SOURCE)
    yield path
    for name in ("sibling_of_the_target", "model_for_targets"):
        sys.modules.pop(name, None)


def test_a_file_and_its_siblings_are_imported(file):
    assert find(f"{file}:number") == 3
    assert find(f"{file}:Settings")().width == 5
    assert isinstance(builder(f"{file}:Zoo.small")(), nn.Linear)


def test_a_module_is_imported_from_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert find("model_for_targets:number") == 3
    assert find("torch.nn:Linear") is nn.Linear


def test_a_callable_is_called_afresh_with_the_arguments(file):
    build = builder(f"{file}:build", {"width": 3, "depth": 4})
    first, second = build(), build()
    assert first is not second
    assert len(first) == 4
    assert first[0].in_features == 3


def test_an_instance_stays_itself_and_takes_no_arguments(file):
    build = builder(f"{file}:instance")
    assert build() is build()
    with pytest.raises(InvalidValueError, match="takes no arguments, got width"):
        builder(f"{file}:instance", {"width": 3})


def test_a_file_does_not_take_the_place_of_a_module_of_its_name(file):
    other = file.parent / "math.py"
    other.write_text("answer = 42\n")
    import math

    assert find(f"{other}:answer") == 42
    assert sys.modules["math"] is math


@pytest.mark.parametrize("target", ["", "torch.nn", "torch.nn:", ":Linear", "model.py"])
def test_a_target_needs_both_halves(target):
    with pytest.raises(InvalidValueError, match=r"package\.module:attr"):
        find(target)


def test_what_is_not_there_comes_with_the_nearest_name(file):
    with pytest.raises(NotFoundError, match=r"no file .*did you mean 'model_for_targets\.py'"):
        find(f"{file.parent}/model_for_target.py:build")
    with pytest.raises(NotFoundError, match=r"no file [^;]*$"):  # only the ending is alike
        find(f"{file.parent}/xyz.py:build")
    with pytest.raises(NotFoundError, match="no file"):
        find("/no/such/folder/x.py:build")
    with pytest.raises(NotFoundError, match="no attribute 'bulld'; did you mean 'build'"):
        find(f"{file}:bulld")
    with pytest.raises(NotFoundError, match="no module 'no_such_package'"):
        find("no_such_package.models:build")
    with pytest.raises(NotFoundError, match=r"no module 'torch\.no_such_part'"):
        find("torch.no_such_part:build")


def test_a_file_that_fails_says_how(file):
    bad = file.parent / "bad_for_targets.py"
    bad.write_text("import no_such_thing_at_all\n")
    with pytest.raises(ModelError, match="ModuleNotFoundError: No module named 'no_such_thing_at_all'"):
        find(f"{bad}:build")
    bad.write_text("def build(:\n")
    with pytest.raises(ModelError, match="SyntaxError"):
        find(f"{bad}:build")


def test_a_module_whose_own_import_fails_is_not_called_missing(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "broken_for_targets.py").write_text("import no_such_thing_at_all\n")
    with pytest.raises(ModelError, match="no_such_thing_at_all"):
        find("broken_for_targets:build")


def test_arguments_are_checked_before_the_call(file):
    with pytest.raises(InvalidValueError, match="needs width: add --arg width=VALUE"):
        builder(f"{file}:build")
    with pytest.raises(
        InvalidValueError, match=r"no argument 'widtx'; did you mean 'width'\? \(it takes width\)"
    ):
        builder(f"{file}:build_strict", {"widtx": 3})


def test_what_is_no_model_is_named(file):
    with pytest.raises(InvalidTypeError, match="returned a int"):
        builder(f"{file}:no_model")()
    with pytest.raises(InvalidTypeError, match="is a int"):
        builder(f"{file}:number")
    with pytest.raises(ModelError, match="KeyError: 'weights'"):
        builder(f"{file}:fails")()


def test_arguments_are_literals_where_they_read_as_such():
    pairs = ["a=3", "b=0.5", "c=True", "d=None", "e=(1, 2)", "f=gelu", "g=a=b", "h="]
    expected = {"a": 3, "b": 0.5, "c": True, "d": None, "e": (1, 2), "f": "gelu", "g": "a=b", "h": ""}
    assert parse_arguments(pairs) == expected


@pytest.mark.parametrize("pairs", [["depth"], ["=3"], ["1x=3"], ["a=1", "a=2"]])
def test_arguments_that_make_no_sense_are_refused(pairs):
    with pytest.raises(InvalidValueError):
        parse_arguments(pairs)
