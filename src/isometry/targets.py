"""Finding what a command line names: `package.module:attr` or `path/file.py:attr`.

A target is a module instance, or a callable that returns one, called with the `key=value`
arguments that go with it. Importing runs the user's file, as `python file.py` would.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError


def find(target: str) -> Any:
    """Import what a target names.

    The working directory (and, for a file, the file's own directory) goes to the front of
    `sys.path`, so that the user's own modules can be imported the way `python` itself allows.

    Args:
        target: `package.module:attr` or `path/file.py:attr`; the attribute may have dots.

    Returns:
        The object, whatever it is.

    Raises:
        InvalidValueError: the target does not have the form `where:attr`.
        NotFoundError: no such file, module or attribute; the message names the nearest.
        ModelError: the file or module fails while it is imported.

    Example:
        >>> find("torch.nn:Linear").__name__
        'Linear'
    """
    where, colon, attribute = target.rpartition(":")
    if not colon or not where or not attribute:
        raise InvalidValueError(
            f"a target is 'package.module:attr' or 'path/file.py:attr', got {target!r}; "
            f"for example {_example(target)!r}"
        )
    found: Any = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise NotFoundError(f"{where} has no attribute {attribute!r}{_nearest(part, names)}")
        found = getattr(found, part)
    return found


def builder(target: str, arguments: Mapping[str, Any] | None = None) -> Callable[[], nn.Module]:
    """Turn a target into a function that builds the model afresh on every call.

    A module instance stays the instance it is: every call returns the same one.

    Args:
        target: see `find`.
        arguments: keyword arguments for a callable target.

    Returns:
        A function without arguments that returns a `torch.nn.Module`.

    Raises:
        InvalidTypeError: the target is neither a module nor callable, or returns something else.
        InvalidValueError: arguments are missing, unknown, or given to an instance.
        ModelError: the callable fails (raised when the function is called).

    Example:
        >>> builder("torch.nn:Linear", {"in_features": 3, "out_features": 2})()
        Linear(in_features=3, out_features=2, bias=True)
    """
    arguments = dict(arguments or {})
    found = find(target)
    if isinstance(found, nn.Module):
        if arguments:
            raise InvalidValueError(
                f"{target} is a module instance and takes no arguments, got {', '.join(arguments)}; "
                f"name a function or class to pass arguments"
            )
        return lambda: found
    if not callable(found):
        raise InvalidTypeError(
            f"{target} is a {type(found).__name__}; expected a torch.nn.Module or a callable that returns one"
        )
    _check_arguments(target, found, arguments)

    def build() -> nn.Module:
        try:
            model = found(**arguments)
        except Exception as error:
            raise ModelError(f"{target} failed with {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(
                f"{target} returned a {type(model).__name__}; expected a callable that returns a "
                f"torch.nn.Module"
            )
        return model

    return build


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` pairs; a value is a Python literal where it reads as one, else text.

    Args:
        pairs: such as `["depth=30", "activation=gelu", "bias=False"]`.

    Returns:
        The arguments by name.

    Raises:
        InvalidValueError: a pair has no `=`, its key is no Python name, or a key comes twice.

    Example:
        >>> parse_arguments(["depth=30", "activation=gelu", "sizes=(64, 10)"])
        {'depth': 30, 'activation': 'gelu', 'sizes': (64, 10)}
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise InvalidValueError(f"an argument is written key=value (such as depth=30), got {pair!r}")
        if key in arguments:
            raise InvalidValueError(f"the argument {key!r} is given twice")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
    return arguments


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        siblings = [file.stem for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise NotFoundError(f"there is no file {path}{_nearest(path.stem, siblings, '.py')}")
    path = path.resolve()
    _put_first(path.parent)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise NotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(specification)
    earlier = sys.modules.get(path.stem)
    # Dataclasses and pickle look a class's module up by its name while the file runs.
    sys.modules[path.stem] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path} failed on import with {type(error).__name__}: {error}") from error
    finally:
        # A file named like an installed module (torch.py) must not take its place for good.
        if earlier is not None:
            sys.modules[path.stem] = earlier
    return module


def _import_module(name: str) -> ModuleType:
    _put_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise NotFoundError(
                f"there is no module {missing!r} (searched from {Path.cwd()}); a file is named by its path, "
                f"such as 'path/file.py:attr'"
            ) from error
        raise ModelError(f"{name} failed on import with {type(error).__name__}: {error}") from error
    except Exception as error:
        raise ModelError(f"{name} failed on import with {type(error).__name__}: {error}") from error


def _check_arguments(target: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none: the call itself will tell
        return
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in named:
                known = f" (it takes {', '.join(named)})" if named else " (it takes none)"
                raise InvalidValueError(f"{target} has no argument {key!r}{_nearest(key, named)}{known}")
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in arguments]
    if missing:
        flags = " ".join(f"--arg {name}=VALUE" for name in missing)
        raise InvalidValueError(f"{target} needs {', '.join(missing)}: add {flags}")


def _put_first(directory: Path) -> None:
    text = str(directory)
    if text not in sys.path:
        sys.path.insert(0, text)


def _nearest(name: str, names: Iterable[str], ending: str = "") -> str:
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0] + ending!r}?" if near else ""


def _example(target: str) -> str:
    if target.endswith(".py"):
        return f"{target}:build"
    head, dot, tail = target.rpartition(".")
    return f"{head}:{tail}" if dot else f"{target or 'my_model'}:build"
