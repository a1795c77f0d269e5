"""Strict JSON for records of numbers: nan and infinities as strings, a versioned schema, errors that help."""

from __future__ import annotations

import difflib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from isometry.errors import InvalidValueError, NotFoundError

_T = TypeVar("_T")

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def number_to_data(value: float | None) -> float | str | None:
    """Write a number for strict JSON, which knows neither nan nor infinity.

    Args:
        value: The number or None.

    Returns:
        The number itself, or "nan", "inf", "-inf".

    Example:
        >>> number_to_data(0.5), number_to_data(float("-inf")), number_to_data(None)
        (0.5, '-inf', None)
    """
    return value if value is None or math.isfinite(value) else str(float(value))


def number_from_data(value: object, what: str) -> float | None:
    """Read a number that `number_to_data` wrote.

    Args:
        value: The parsed JSON value.
        what: Its name in the error message.

    Returns:
        The number or None.

    Raises:
        InvalidValueError: The value is no number.

    Example:
        >>> number_from_data("inf", "rms")
        inf
    """
    if value is None:
        return None
    if isinstance(value, str) and value in _NONFINITE:
        return _NONFINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError(f'{what} must be a number, "nan", "inf", "-inf" or null, got {value!r}')
    return float(value)


def expect(value: object, kind: type[_T], what: str) -> _T:
    """Return a parsed value if it has the expected type.

    Args:
        value: The parsed JSON value.
        kind: The type it must have.
        what: Its name in the error message.

    Returns:
        The value itself.

    Raises:
        InvalidValueError: It has another type.

    Example:
        >>> expect([1, 2], list, "shape")
        [1, 2]
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidValueError(f"{what} must be of type {kind.__name__}, got {value!r:.80}")
    return value


def refuse_unknown(table: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse a JSON object with entries that nobody would read.

    Args:
        table: The parsed object.
        known: The names it may have.
        what: Its name in the error message.

    Raises:
        InvalidValueError: There are others.
    """
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InvalidValueError(f"{what} has entries this version does not know: {', '.join(unknown)}")


def check_schema(table: Mapping[str, Any], schema: str, version: int) -> None:
    """Refuse a JSON object that is of another kind or of a version this package does not know.

    Args:
        table: The parsed object.
        schema: The name its "schema" must have.
        version: The newest version that can be read.

    Raises:
        InvalidValueError: Name or version do not fit.
    """
    if table.get("schema") != schema:
        raise InvalidValueError(f'expected an object with "schema": "{schema}", got {table.get("schema")!r}')
    found = table.get("version")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= version:
        raise InvalidValueError(
            f"this package reads versions 1 to {version} of {schema}, the file has version {found!r}"
        )


def parse(text: str) -> dict[str, Any]:
    """Parse JSON text that must hold an object.

    Args:
        text: The text.

    Returns:
        The object.

    Raises:
        InvalidValueError: The text is no JSON or no object.

    Example:
        >>> parse('{"version": 1}')
        {'version': 1}
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidValueError(f"this is no JSON: {error}") from error
    return expect(data, dict, "the JSON text")


def dump(data: Mapping[str, Any]) -> str:
    """Write an object as strict JSON, one list item to a line where it is short.

    Args:
        data: The object; nan and infinities already went through `number_to_data`.

    Returns:
        The text.
    """
    return json.dumps(data, allow_nan=False, indent=1, ensure_ascii=False)


def read_text(path: str | Path) -> str:
    """Read a text file, with an error that helps when there is none.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        NotFoundError: There is no such file.
        InvalidValueError: It is no text file.
    """
    file = Path(path)
    if not file.is_file():
        neighbours = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, neighbours, n=1)
        raise NotFoundError(
            f"there is no file {str(file)!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{str(file)!r} is no text file") from error


class Record(ABC):
    """A record that is kept as strict JSON with a versioned schema and checked when it is read.

    Attributes:
        schema: What its JSON says it is, such as "isometry.profile".
        version: The newest version of the schema that can be read, and the one written.
    """

    __slots__ = ()
    schema: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """The entries besides schema and version, as plain data."""

    @classmethod
    @abstractmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make the record from what `contents` gave; raises InvalidValueError for anything else."""

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data for JSON; nan and infinities become strings.

        Returns:
            The object; `from_data` reads it.
        """
        return {"schema": self.schema, "version": self.version, **self.contents()}

    @classmethod
    def from_data(cls, data: object) -> Self:
        """Read a record from parsed JSON.

        Args:
            data: The object that `json.loads` returned.

        Returns:
            The record.

        Raises:
            InvalidValueError: The object is of another kind, or of an unknown version.
        """
        table = expect(data, dict, f"the {cls.__name__.lower()}")
        check_schema(table, cls.schema, cls.version)
        return cls.from_contents(table)

    def to_json(self) -> str:
        """Write the record as strict JSON.

        Returns:
            The text.
        """
        return dump(self.to_data())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record from the text that `to_json` wrote.

        Args:
            text: The JSON text.

        Returns:
            The record, equal to the one that was written.

        Raises:
            InvalidValueError: The text is no JSON, of another kind, or of an unknown version.
        """
        return cls.from_data(parse(text))

    def save(self, path: str | Path) -> None:
        """Write the record to a JSON file.

        Args:
            path: The file; an existing one is replaced, missing folders are made.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record from a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            The record.

        Raises:
            NotFoundError: There is no such file.
            InvalidValueError: The file holds no such record.
        """
        text = read_text(path)
        try:
            return cls.from_json(text)
        except InvalidValueError as error:
            raise InvalidValueError(f"{str(path)!r} cannot be read: {error}") from error
