"""Change some rows of a plan by name or role."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError
from isometry.init.structured import check_scale
from isometry.plans.fitting import fits
from isometry.plans.row import Row
from isometry.plans.scales import scaled
from isometry.sampling import Constant, Distribution, Normal

Override = Distribution | float | None

_ROLE = "role:"
_WORDS = re.compile(r", | → ")


def overridden(rows: Sequence[Row], laws: Mapping[str, Override]) -> tuple[Row, ...]:
    """Return rows with other laws where a pattern matches; the first that does decides."""
    if not isinstance(laws, Mapping):
        raise InvalidTypeError(f"laws must be a dict by name pattern or 'role:…', got {laws!r}")
    for pattern, law in laws.items():
        if not isinstance(pattern, str):
            raise InvalidTypeError(f"a pattern must be text, got {pattern!r}")
        _check(pattern, law)
        if not any(matches(pattern, row) for row in rows):
            raise NotFoundError(_nothing(pattern, rows))
    return tuple(_override(row, laws) for row in rows)


def matches(pattern: str, row: Row) -> bool:
    """Whether a pattern means a row: by its name, or after "role:" by its role or a part of that.

    Example:
        >>> row = Row("fc.weight", (3, 2), "weight → gelu, ends branch 3 of 24", Normal(0.5), "")
        >>> [matches(p, row) for p in ("fc.*", "role:weight", "role:gelu", "role:ends*", "role:head")]
        [True, True, True, True, False]
    """
    if not pattern.startswith(_ROLE):
        return fnmatchcase(row.name, pattern)
    wanted = pattern.removeprefix(_ROLE).strip()
    return any(fnmatchcase(words, wanted) for words in _roles(row))


def _roles(row: Row) -> list[str]:
    return [row.role, *_WORDS.split(row.role)]


def _check(pattern: str, law: object) -> None:
    if law is None or isinstance(law, Distribution):
        return
    if isinstance(law, bool) or not isinstance(law, int | float):
        raise InvalidTypeError(
            f"the law for {pattern!r} must be a Distribution, a standard deviation or None (kept), "
            f"got {law!r}"
        )
    check_scale(f"the standard deviation for {pattern!r}", law)


def _override(row: Row, laws: Mapping[str, Override]) -> Row:
    for pattern, law in laws.items():
        if matches(pattern, row):
            made = _with_std(row, law) if isinstance(law, int | float) else law
            if made is not None:
                try:
                    fits(made, row.shape)
                except InvalidValueError as error:
                    raise InvalidValueError(
                        f"the law for {pattern!r} does not fit {row.name!r}: {error}"
                    ) from None
            return replace(row, law=made, reason=f"set by hand ({pattern})", marks=())
    return row


def _with_std(row: Row, std: float) -> Distribution:
    """The row's law with another standard deviation: of the same kind where it is centred, else normal."""
    mean = row.mean or 0.0
    if std == 0:
        return Constant(mean)
    if row.law is None or mean or not row.std:
        return Normal(std, mean)
    return scaled(row.law, std / row.std)


def _nothing(pattern: str, rows: Sequence[Row]) -> str:
    """What to say of a pattern that matches nothing."""
    by_role = pattern.startswith(_ROLE)
    wanted = pattern.removeprefix(_ROLE).strip() if by_role else pattern
    known = (
        list(dict.fromkeys(w for row in rows for w in _roles(row))) if by_role else [row.name for row in rows]
    )
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
    prefix = _ROLE if by_role else ""
    hint = f"did you mean {prefix + near[0]!r}?" if near else f"there are {', '.join(known[:6]) or 'none'}"
    return f"the pattern {pattern!r} matches no parameter of the plan: {hint}"
