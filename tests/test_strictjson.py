import json
import math

import pytest

from isometry.errors import InvalidValueError, NotFoundError
from isometry.strictjson import check_schema, dump, expect, number_from_data, number_to_data, parse, read_text


@pytest.mark.parametrize("value", [None, 0.0, -1.5e-300, 5e307, math.inf, -math.inf])
def test_numbers_survive_strict_json(value):
    text = dump({"x": number_to_data(value)})
    assert number_from_data(json.loads(text, parse_constant=pytest.fail)["x"], "x") == value


def test_nan_survives():
    assert math.isnan(number_from_data(parse(dump({"x": number_to_data(math.nan)}))["x"], "x"))


@pytest.mark.parametrize("value", [True, "1", "NaN", [1]])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(InvalidValueError, match=r"signals\[3\]\.rms must be a number"):
        number_from_data(value, "signals[3].rms")


def test_a_boolean_is_no_integer():
    with pytest.raises(InvalidValueError, match="call must be of type int"):
        expect(True, int, "call")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidValueError):
        parse(text)


@pytest.mark.parametrize("table", [{}, {"schema": "other", "version": 1}, {"schema": "mine"}])
def test_another_schema_is_refused(table):
    with pytest.raises(InvalidValueError):
        check_schema(table, "mine", 1)


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_another_version_is_refused(version):
    with pytest.raises(InvalidValueError, match="versions 1 to 1 of mine"):
        check_schema({"schema": "mine", "version": version}, "mine", 1)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"did you mean 'profile\.json'"):
        read_text(tmp_path / "profil.json")
    with pytest.raises(NotFoundError, match="there is no file"):
        read_text(tmp_path / "nowhere" / "x.json")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidValueError, match="no text file"):
        read_text(tmp_path / "x.json")
