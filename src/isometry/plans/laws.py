"""Laws as plain data: a registry of classes, and strict reading by the types of their fields."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.init.bounded import BoundedNormal
from isometry.init.channels import PerChannel
from isometry.init.mirrored import Flattened, Mirrored, Rotation, Width
from isometry.init.shared import Blocks, Factor, Piece, Times
from isometry.init.structured import (
    ICNR,
    Chrono,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
)
from isometry.layout import Layout
from isometry.plans.scales import Scaled
from isometry.sampling import Constant, Distribution, Normal, TruncatedNormal, Uniform
from isometry.strictjson import expect, number_to_data, refuse_unknown

_KIND = "type"
_registry: dict[str, type] = {}
_C = TypeVar("_C", bound=type)


def register_law(kind: _C) -> _C:
    """Let plans with a law of one's own be saved and loaded; usable as a decorator.

    The law is a frozen dataclass of numbers, text, tuples, None and registered dataclasses, with type hints.
    It may have methods `moments(shape)` (mean and standard deviation), `scaled(factor)` and `check(shape)`
    (raises where it cannot be drawn); without them a plan does not show its size, multiplies what it draws,
    and draws once before it writes.

    Args:
        kind: The class.

    Returns:
        The class itself.

    Raises:
        InvalidTypeError: It is no frozen dataclass.
        InvalidValueError: Another class of that name is registered.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_law
        ... @dataclass(frozen=True)
        ... class Half(Normal):
        ...     pass
        >>> law_from_data(law_to_data(Half(0.5)), "the law")
        Half(std=0.5, mean=0.0)
    """
    if not (isinstance(kind, type) and is_dataclass(kind) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise InvalidTypeError(f"a law is a frozen dataclass, got {kind!r}")
    known = _registry.get(kind.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise InvalidValueError(f"a law named {kind.__name__!r} is registered already: {known!r}")
    _registry[kind.__name__] = kind
    return kind


for _kind in (
    *(Constant, Normal, TruncatedNormal, Uniform, BoundedNormal, Scaled),
    *(Orthogonal, DeltaOrthogonal, Identity, Sparse, Gates, Chrono, ICNR, Mirrored),
    *(Blocks, Piece, Factor, Times, PerChannel),
    *(Layout, Width, Rotation, Flattened),
):
    register_law(_kind)


def law_to_data(law: Distribution) -> dict[str, Any]:
    """Write a law as plain data for JSON.

    Raises:
        InvalidValueError: Its class, or that of a part, is not registered.
    """
    return cast("dict[str, Any]", _write(law))


def law_from_data(data: object, what: str) -> Distribution:
    """Read a law that `law_to_data` wrote; `what` names it in errors.

    Raises:
        InvalidValueError: An unknown law or field, a missing field, a wrong type, or a value that the law
            refuses.
    """
    return cast("Distribution", _read_object(data, (Distribution,), what))


def _write(value: object) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, tuple | list):
        return [_write(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if _registry.get(kind.__name__) is not kind:
            raise InvalidValueError(
                f"{kind.__name__} is not registered, so nobody could read it back: "
                "decorate the class with isometry.plans.register_law"
            )
        found = {field.name: _write(getattr(value, field.name)) for field in fields(value) if field.init}
        return {_KIND: kind.__name__, **found}
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidValueError(
            f"{value!r} of type {type(value).__name__} cannot be kept as JSON: a law that is saved is a "
            "dataclass of numbers, text, tuples and registered dataclasses"
        ) from None
    return number_to_data(number)


def _read_object(data: object, wanted: tuple[type, ...], what: str) -> object:
    table = expect(data, dict, what)
    name = table.get(_KIND)
    kind = _registry.get(name) if isinstance(name, str) else None
    if kind is None or not issubclass(kind, wanted):
        known = [known for known, kind in _registry.items() if issubclass(kind, wanted)]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise InvalidValueError(f"{what} has the unknown type {name!r}: {hint}")
    return _read_fields(kind, {key: value for key, value in table.items() if key != _KIND}, what)


def _read_fields(kind: type, table: Mapping[str, object], what: str) -> object:
    own = [field for field in fields(kind) if field.init]
    refuse_unknown(table, (field.name for field in own), what)
    hints = _hints(kind)
    values = {}
    for field in own:
        if field.name in table:
            values[field.name] = _read(table[field.name], hints[field.name], f"{what}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InvalidValueError(f"{what} of type {kind.__name__} lacks {field.name!r}")
    try:
        return kind(**values)
    except (InvalidValueError, InvalidTypeError) as error:
        raise InvalidValueError(f"{what}: {error}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(data: object, hint: Any, what: str) -> object:
    """Read a value of the type that a field's hint names."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _read_one_of(data, parts, what)
    if origin is Literal:
        if data not in parts:
            raise InvalidValueError(f"{what} must be one of {', '.join(map(repr, parts))}, got {data!r}")
        return data
    if origin is tuple:
        items = expect(data, list, what)
        kinds = parts[:1] * len(items) if parts[-1:] == (...,) else parts
        if len(kinds) != len(items):
            raise InvalidValueError(f"{what} must have {len(kinds)} entries, got {len(items)}")
        pairs = zip(items, kinds, strict=True)
        return tuple(_read(item, part, f"{what}[{index}]") for index, (item, part) in enumerate(pairs))
    if hint is float:
        return read_number(data, what)
    if hint in (int, bool, str):
        return expect(data, hint, what)
    return _read_object(data, (hint,), what)


def _read_one_of(data: object, hints: tuple[Any, ...], what: str) -> object:
    if data is None and NoneType in hints:
        return None
    rest = tuple(hint for hint in hints if hint is not NoneType)
    if isinstance(data, dict):
        return _read_object(data, tuple(hint for hint in rest if isinstance(hint, type)), what)
    for hint in rest[:-1]:
        try:
            return _read(data, hint, what)
        except InvalidValueError:
            continue
    return _read(data, rest[-1], what)


def read_number(data: object, what: str) -> float:
    """Return a number that may be infinite, as `number_to_data` wrote it.

    Raises:
        InvalidValueError: It is no number, or nan.
    """
    number = {"inf": math.inf, "-inf": -math.inf}.get(data) if isinstance(data, str) else data
    if not isinstance(number, bool) and isinstance(number, int | float):
        try:
            read = float(number)
        except OverflowError:
            raise InvalidValueError(f"{what} is too large: {data!r:.40}") from None
        if not math.isnan(read):
            return read
    raise InvalidValueError(f'{what} must be a number, "inf" or "-inf", got {data!r}')
