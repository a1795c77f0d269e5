"""What a model is fed: one form for tensors, tuples, dicts, spec strings and data loaders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from isometry.errors import InvalidTypeError, InvalidValueError

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+)(?:<(?P<high>\d+))?)?"
)
_SPEC_HELP = 'a spec reads "32x1024", "4x128:int64<50257" or "input_ids=4x128:int64<50257, mask=4x128:bool"'


@dataclass(frozen=True, slots=True)
class Batch:
    """One call of a model: `model(*args, **kwargs)`, and the target that a data loader gave with it.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        target: What the loss compares with; None where nobody gave one.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None


def batches(
    inputs: object, *, limit: int | None = None, floats: torch.dtype = torch.float32
) -> Iterator[Batch]:
    """Turn whatever a user feeds a model into calls of that model.

    | `inputs` | becomes |
    |---|---|
    | a tensor | one batch `model(tensor)` |
    | a tuple | one batch `model(*tuple)` |
    | a dict (or other mapping) | one batch `model(**dict)` |
    | a spec string such as `"32x1024"` | one batch of random tensors, always the same ones |
    | a `Batch` | itself |
    | a DataLoader or other iterable | a batch per item |

    An item of a loader is read like `inputs` itself, but the last of two or more entries of a tuple or list
    is the target: `(x, y)` becomes `model(x)` with target `y`. A spec draws floats from N(0, 1), integers
    uniformly below the bound, and booleans with probability ½, from a generator of its own.

    Args:
        inputs: The inputs in one of these forms.
        limit: At most so many items of a loader.
        floats: What a spec's tensors are of where it names no dtype.

    Yields:
        The batches.

    Raises:
        InvalidTypeError: `inputs` has none of these forms.
        InvalidValueError: A spec string cannot be read.

    Example:
        >>> [batch] = batches("4x128:int64<50257")
        >>> batch.args[0].shape, batch.args[0].dtype
        (torch.Size([4, 128]), torch.int64)
    """
    if isinstance(inputs, Batch):
        yield inputs
    elif isinstance(inputs, str):
        yield _from_spec(inputs, floats)
    elif isinstance(inputs, Tensor | tuple | Mapping):
        yield _single(inputs)
    elif isinstance(inputs, np.ndarray):
        raise InvalidTypeError("inputs must be tensors, got an ndarray: torch.from_numpy(inputs) makes one")
    elif isinstance(inputs, Iterable):
        for item in islice(inputs, limit):
            yield _from_item(item)
    else:
        raise InvalidTypeError(
            "inputs must be a tensor, a tuple, a dict, a DataLoader or a spec string such as "
            f'"32x1024", got {type(inputs).__name__}'
        )


def _single(inputs: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Batch:
    if isinstance(inputs, Mapping):
        return Batch(kwargs=dict(inputs))
    return Batch(args=inputs if isinstance(inputs, tuple) else (inputs,))


def _from_item(item: object) -> Batch:
    if isinstance(item, Batch):
        return item
    if isinstance(item, tuple | list):
        entries = tuple(item)
        if len(entries) < 2:
            return Batch(args=entries)
        if len(entries) == 2 and isinstance(entries[0], Mapping):
            return Batch(kwargs=dict(entries[0]), target=entries[1])
        return Batch(args=entries[:-1], target=entries[-1])
    if isinstance(item, Tensor | Mapping):
        return _single(item)
    raise InvalidTypeError(
        f"an item of inputs must be a tensor, a tuple or a dict, got {type(item).__name__}: a list is "
        "read as a loader, batch by batch"
    )


def _from_spec(spec: str, floats: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for part in spec.split(","):
        match = _SPEC.fullmatch(part.strip())
        if match is None:
            raise InvalidValueError(f"cannot read the input spec {part.strip()!r}: {_SPEC_HELP}")
        tensor = _draw(match, generator, floats)
        name = match["name"]
        if name is None and kwargs:
            raise InvalidValueError(f"a nameless input cannot follow a named one in {spec!r}")
        if name is None:
            args.append(tensor)
        else:
            kwargs[name] = tensor
    return Batch(args=tuple(args), kwargs=kwargs)


def _draw(match: re.Match[str], generator: torch.Generator, floats: torch.dtype) -> Tensor:
    shape = [int(size) for size in match["shape"].split("x")]
    name = match["dtype"] or str(floats).removeprefix("torch.")
    if match["dtype"] is not None and name not in _DTYPES:
        raise InvalidValueError(f"unknown dtype {name!r} in an input spec; known: {', '.join(_DTYPES)}")
    dtype = _DTYPES[name] if match["dtype"] is not None else floats
    if dtype.is_floating_point:
        if match["high"] is not None:
            raise InvalidValueError(f'a bound ("<{match["high"]}") is for integers, not for {name}')
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if match["high"] is None or int(match["high"]) < 1:
        raise InvalidValueError(f'integers need a bound of 1 or more, such as "{match["shape"]}:{name}<1000"')
    return torch.randint(int(match["high"]), shape, generator=generator).to(dtype)


@contextmanager
def loader_state(inputs: object) -> Iterator[None]:
    """Give a DataLoader's own generators their state back, so that its next epoch is unchanged.

    Args:
        inputs: In any of the forms of `batches`.
    """
    generators: list[torch.Generator] = []
    if isinstance(inputs, DataLoader):
        owners = (inputs, inputs.sampler, inputs.batch_sampler)
        found = [getattr(owner, "generator", None) for owner in owners]
        generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def mismatch(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what to do about inputs that are no arguments of a model's forward; nothing where they are.

    Args:
        forward: The model's forward.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The end of an error message.

    Example:
        >>> mismatch(torch.nn.ReLU().forward, (torch.ones(2), torch.ones(2)), {})[:36]
        '; it was called as model(Tensor, Ten'
    """
    try:
        signature(forward).bind(*args, **kwargs)
    except ValueError:  # a forward without a signature
        return ""
    except TypeError:
        missing = _missing(forward, args, kwargs)
        given = [type(arg).__name__ for arg in args]
        given += [f"{name}={type(arg).__name__}" for name, arg in kwargs.items()]
        if args and all(isinstance(arg, int) for arg in args):
            hint = f'random inputs of a shape are written "{"x".join(map(str, args))}"'
        elif missing:
            hint = (
                f"it needs {' and '.join(missing)} too: a tuple is model(*inputs), a dict model(**inputs), "
                "and the last entry of a loader's item is the target"
            )
        elif kwargs:
            hint = "a dict is model(**inputs): give one that is itself the argument as (batch,)"
        else:
            hint = "a tuple is model(*inputs): a list, [(x, target)], keeps the target out"
        return f"; it was called as model({', '.join(given)}), and {hint}"
    return ""


def _missing(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that a call lacks; none where what it has does not fit either."""
    try:
        bound = signature(forward).bind_partial(*args, **kwargs)
    except TypeError:
        return []
    return [
        name
        for name, parameter in bound.signature.parameters.items()
        if name not in bound.arguments
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def map_tensors(value: Any, change: Callable[[Tensor, str], Tensor], where: str = "inputs") -> Any:
    """Rebuild tuples, lists, dicts and dataclasses with every tensor in them changed.

    Args:
        value: A tensor, or a container of tensors, to any depth; anything else is passed on as it is.
        change: Takes a tensor and the place where it was found, such as `inputs[0]['mask']`.
        where: The name of the whole.

    Returns:
        The same structure with changed tensors.

    Example:
        >>> map_tensors((torch.ones(2), {"n": 3}), lambda tensor, where: 2 * tensor)
        (tensor([2., 2.]), {'n': 3})
    """
    if isinstance(value, Tensor):
        return change(value, where)
    if isinstance(value, Mapping):
        changed = {key: map_tensors(entry, change, f"{where}[{key!r}]") for key, entry in value.items()}
        return changed if type(value) is dict else _rebuilt_mapping(value, changed)
    if isinstance(value, tuple | list):
        entries = [map_tensors(entry, change, f"{where}[{index}]") for index, entry in enumerate(value)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*entries)
        return type(value)(entries)
    if is_dataclass(value) and not isinstance(value, type):
        entries_by_name = {
            part.name: map_tensors(getattr(value, part.name), change, f"{where}.{part.name}")
            for part in fields(value)
            if part.init
        }
        return replace(value, **entries_by_name)
    return value


def _rebuilt_mapping(value: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    try:
        return type(value)(changed)  # type: ignore[call-arg]
    except TypeError:
        return changed


def check_finite(batch: Batch) -> None:
    """Refuse a batch with nan or infinite values, naming the tensor and the number of bad entries.

    A float tensor that holds nothing but 0 and −∞ is an additive attention mask and passes.

    Args:
        batch: The batch.

    Raises:
        InvalidValueError: A tensor holds nan or infinities.

    Example:
        >>> check_finite(Batch(args=(torch.tensor([1.0, float("nan")]),)))
        Traceback (most recent call last):
        ...
        isometry.errors.InvalidValueError: inputs[0] holds 1 nan and 0 infinite values among 2: ...
    """

    def check(tensor: Tensor, where: str) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta or tensor.is_sparse:
            return tensor
        if bool(torch.isfinite(tensor).all()) or bool(((tensor == 0) | (tensor == -math.inf)).all()):
            return tensor
        bad, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
        raise InvalidValueError(
            f"{where} holds {bad} nan and {infinite} infinite values among {tensor.numel()}: "
            "clean the data first"
        )

    map_tensors(batch.args, check)
    map_tensors(dict(batch.kwargs), check)
