"""The package's errors and warnings.

Every error is an `IsometryError` and also the built-in it resembles, so that both
`except IsometryError` and `except ValueError` catch a bad value. A message says what was
expected, what was got and what to do, and names the parameter, module or argument.
"""


class IsometryError(Exception):
    """Base of every error that isometry raises on purpose."""


class InvalidValueError(IsometryError, ValueError):
    """An argument has the right type but a value that cannot be used."""


class InvalidTypeError(IsometryError, TypeError):
    """An argument has a type that cannot be used."""


class NotFoundError(IsometryError, LookupError):
    """A name, file, module or attribute does not exist."""

    def __str__(self) -> str:
        # KeyError-like classes would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class ModelError(IsometryError, RuntimeError):
    """The user's model cannot do what was asked of it."""


class MissingExtraError(IsometryError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed for this and is not installed: pip install 'isometry[{extra}]'"
        )


def described(value: object) -> str:
    """Return what to call a value that has the wrong type.

    Args:
        value: The value.

    Returns:
        The name of its type; for a class that it is one.

    Example:
        >>> described(3), described(dict)
        ('int', 'the class dict: build one first, dict(...)')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}: build one first, {value.__name__}(...)"
    return type(value).__name__


class IsometryWarning(UserWarning):
    """Something the user should know that does not stop the work."""
