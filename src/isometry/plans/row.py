"""What a plan says of one parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.plans.fitting import fits
from isometry.plans.laws import law_from_data, law_to_data, read_number
from isometry.plans.sizes import mean_of, std_of
from isometry.sampling import Distribution
from isometry.strictjson import expect, number_to_data, refuse_unknown


@dataclass(frozen=True)
class Row:
    """One parameter of a plan.

    Attributes:
        name: Canonical first name of the parameter, as in `isometry.sampling.write_`.
        shape: Its logical shape.
        role: What it is for, in short words between commas, such as "weight → gelu, ends branch 3 of 24".
        law: What it is drawn from; None: it is kept as it is.
        reason: Why, in one sentence.
        fans: Its logical fans, forward and backward, where it has any.
        rate: Factor on the learning rate.
        marks: Short words such as "measured" that the plan's notes explain.

    Example:
        >>> from isometry.sampling import Normal
        >>> Row("0.weight", (3, 4), "weight → relu", Normal(0.5), "unit second moment for relu").std
        0.5
    """

    name: str
    shape: tuple[int, ...]
    role: str
    law: Distribution | None
    reason: str
    fans: tuple[float, float] | None = None
    rate: float = 1.0
    marks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise InvalidTypeError(f"a row's name must be the name of a parameter, got {self.name!r}")
        what = f"row {self.name!r}"
        sizes = isinstance(self.shape, tuple) and all(isinstance(side, int) for side in self.shape)
        if not sizes or any(isinstance(side, bool) or side < 0 for side in self.shape):
            raise InvalidTypeError(f"{what}: shape must be a tuple of sizes, got {self.shape!r}")
        if self.law is not None and not isinstance(self.law, Distribution):
            raise InvalidTypeError(f"{what}: law must be a Distribution or None, got {self.law!r}")
        for field, value in (
            ("role", self.role),
            ("reason", self.reason),
            *(("a mark", m) for m in self.marks),
        ):
            if not isinstance(value, str):
                raise InvalidTypeError(f"{what}: {field} must be text, got {value!r}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InvalidValueError(f"{what}: rate must be finite and positive, got {self.rate}")
        if self.fans is not None and (len(self.fans) != 2 or not all(fan >= 0 for fan in self.fans)):
            raise InvalidValueError(f"{what}: fans must be two numbers, not negative, got {self.fans}")

    @property
    def std(self) -> float | None:
        """Root mean square deviation of the entries from their mean: exact; None where nobody knows it."""
        return std_of(self.law, self.shape)

    @property
    def mean(self) -> float | None:
        """Mean of the entries: exact; None where nobody knows it."""
        return mean_of(self.law, self.shape)


def row_to_data(row: Row) -> dict[str, Any]:
    """Write a row as plain data for JSON."""
    try:
        law = None if row.law is None else law_to_data(row.law)
    except InvalidValueError as error:
        raise InvalidValueError(f"row {row.name!r}: {error}") from None
    return {
        "name": row.name,
        "shape": list(row.shape),
        "role": row.role,
        "law": law,
        "reason": row.reason,
        "fans": None if row.fans is None else [number_to_data(fan) for fan in row.fans],
        "rate": row.rate,
        "marks": list(row.marks),
    }


def row_from_data(data: object, what: str) -> Row:
    """Read a row that `row_to_data` wrote, and check that its law fits its shape.

    Raises:
        InvalidValueError: A missing or unknown entry, a wrong type, an unknown law, or one that does not fit.
    """
    table: Mapping[str, Any] = expect(data, dict, what)
    refuse_unknown(table, (field.name for field in fields(Row)), what)
    shape = tuple(
        expect(side, int, f"{what}.shape") for side in expect(table.get("shape"), list, f"{what}.shape")
    )
    law = None if table.get("law") is None else law_from_data(table["law"], f"{what}.law")
    if "law" not in table:
        raise InvalidValueError(f'{what} lacks "law": null means that the parameter is kept')
    marks = expect(table.get("marks", []), list, f"{what}.marks")
    try:
        row = Row(
            name=expect(table.get("name"), str, f"{what}.name"),
            shape=shape,
            role=expect(table.get("role"), str, f"{what}.role"),
            law=law,
            reason=expect(table.get("reason"), str, f"{what}.reason"),
            fans=_fans(table.get("fans"), f"{what}.fans"),
            rate=read_number(table.get("rate", 1.0), f"{what}.rate"),
            marks=tuple(expect(mark, str, f"{what}.marks") for mark in marks),
        )
        if law is not None:
            fits(law, shape)
    except (InvalidTypeError, InvalidValueError) as error:
        text = str(error)
        raise InvalidValueError(text if text.startswith(what) else f"{what}: {text}") from error
    return row


def _fans(data: object, what: str) -> tuple[float, float] | None:
    if data is None:
        return None
    pair = expect(data, list, what)
    if len(pair) != 2:
        raise InvalidValueError(f"{what} must be null or two numbers, got {data!r:.80}")
    return read_number(pair[0], what), read_number(pair[1], what)
