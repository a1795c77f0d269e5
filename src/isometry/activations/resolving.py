"""Activations, from whatever names them: a name, a module, a class or any function on tensors.

`resolve` turns each into an `Activation`, a pointwise map on float64 tensors; the names are in
`catalogue.py`, the care that functions of other people need in `pointwise.py`.
"""

import ast
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isometry.activations import pointwise
from isometry.activations.catalogue import BY_FUNCTION, BY_MODULE, REQUIRED, Parameter, Row, row_named
from isometry.activations.pointwise import Mixture, Pointwise
from isometry.errors import InvalidTypeError, InvalidValueError


@dataclass(frozen=True)
class Activation:
    """A resolved activation.

    Attributes:
        name: What to call it, parameters included.
        fn: Its pointwise map on float64 tensors; the mean map when it is random. The gate's for a gated unit.
        gated: True for φ(a)·b.
        mixture: The functions it may be with their probabilities; one function unless it is random.
        key: Table name and parameters; None for a function the table does not know.
    """

    name: str
    fn: Pointwise = field(compare=False)
    gated: bool
    mixture: Mixture = field(compare=False, repr=False)
    key: tuple[str, tuple[tuple[str, Parameter], ...]] | None


ActivationLike = str | nn.Module | type[nn.Module] | Callable[..., Tensor] | Activation


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split "leaky_relu(0.2)" or "elu(alpha=2)" into name, positional and keyword parameters."""
    if "(" not in text:
        return text, [], {}
    name, _, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call):
            raise TypeError
        keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
        return name, [ast.literal_eval(a) for a in call.args], keywords
    except (SyntaxError, TypeError, ValueError) as error:
        raise InvalidValueError(
            f"cannot read the activation '{text}': expected a form like 'leaky_relu(0.2)' or 'elu(alpha=2.0)'"
        ) from error


def _checked(row: Row, key: str, value: Any) -> Parameter:
    default = row.params[key]
    if isinstance(default, str):
        if not isinstance(value, str):
            raise InvalidTypeError(f"{row.name}: {key} must be a string such as {default!r}, got {value!r}")
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(f"{row.name}: {key} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise InvalidValueError(f"{row.name}: {key} must be finite, got {value}")
    return float(value)


def _from_row(row: Row, param: float | None, params: Mapping[str, Any]) -> Activation:
    given = dict(params)
    if param is not None:
        if row.positional is None:
            takes = f"takes {', '.join(row.params)} by keyword" if row.params else "has no parameter"
            raise InvalidValueError(f"{row.name} {takes}, got param={param}")
        if row.positional in given:
            raise InvalidValueError(f"{row.name}: both param and {row.positional} were given")
        given[row.positional] = param
    if unknown := sorted(set(given) - set(row.params)):
        takes = f"its parameters are {', '.join(row.params)}" if row.params else "it has none"
        raise InvalidValueError(f"{row.name} has no parameter {unknown[0]}: {takes}")
    full = {key: _checked(row, key, given[key]) if key in given else d for key, d in row.params.items()}
    if missing := [key for key, value in full.items() if value is REQUIRED]:
        raise InvalidValueError(f"{row.name} needs {' and '.join(missing)}: pass them by keyword")
    shown = ", ".join(f"{k}={v!r}" for k, v in full.items() if v != row.params[k])
    fn = functools.partial(row.fn, **full) if full else row.fn
    mixture = row.mixture(**full) if row.mixture else ((1.0, fn),)
    name = f"{row.name}({shown})" if shown else row.name
    return Activation(name, fn, row.gated, mixture, (row.name, tuple(full.items())))


def _from_class(cls: type, param: float | None, params: Mapping[str, Any]) -> Activation:
    if not issubclass(cls, nn.Module):
        raise InvalidTypeError(f"expected an activation, got the class {cls.__name__}, which is no nn.Module")
    if row := BY_MODULE.get(cls):
        return _from_row(row, param, params)
    if param is not None:
        raise InvalidValueError(
            f"param={param} needs an activation from the table; pass an instance of the class"
        )
    try:
        module = cls(**params)
    except TypeError as error:
        raise InvalidValueError(f"{cls.__name__} cannot be built: {error}; pass an instance") from error
    return _from_module(module)


def _from_module(module: nn.Module) -> Activation:
    row = BY_MODULE.get(type(module))
    if row is not None:
        # nn.SiLU has no beta: parameters the module does not have keep their defaults.
        given = {key: getattr(module, key) for key in row.params if hasattr(module, key)}
        return _from_row(row, None, given)
    name = pointwise.label(module)
    mixture = pointwise.frozen(module, name)
    return _from_mixture(name, mixture)


def _from_mixture(name: str, mixture: Mixture) -> Activation:
    for _, function in mixture:
        pointwise.require_pointwise(function, name)
    return Activation(name, _mean_of(mixture), False, mixture, None)


def _mean_of(mixture: Mixture) -> Pointwise:
    if len(mixture) == 1:
        return mixture[0][1]

    def mean(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for weight, function in mixture:
            total = total + weight * function(x)
        return total

    return mean


def resolve(activation: ActivationLike, param: float | None = None, **params: Any) -> Activation:
    """Turn a name, module, class or function into a pointwise map on float64 tensors.

    A name may carry its parameters: "leaky_relu(0.2)". A module is copied and never changed; its mode
    counts, so that nn.RReLU is random until it is in eval mode. RReLU, dropout and a PReLU with several
    slopes, alone or inside another module, become mixtures: all they may be, with probabilities.

    Args:
        activation: Name from the catalogue, `nn.Module` or its class, any function on tensors, or what
            `resolve` returned.
        param: The parameter that torch.nn.init.calculate_gain takes second, such as leaky_relu's slope.
        **params: Parameters by keyword, such as negative_slope, alpha, beta.

    Returns:
        The resolved activation.

    Raises:
        NotFoundError: No activation has that name; the message has the nearest.
        InvalidValueError: It is no pointwise map, is random in a way that cannot be averaged, gives nan or
            inf, or a parameter is unknown or missing.
        InvalidTypeError: `activation` is neither a name nor callable.

    Example:
        >>> resolve("leaky_relu", 0.2).name
        'leaky_relu(negative_slope=0.2)'
        >>> resolve(nn.GELU(approximate="tanh")).name
        "gelu(approximate='tanh')"
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        name, positional, keywords = _parse(activation)
        if len(positional) > 1 or (positional and param is not None):
            raise InvalidValueError(f"'{activation}': give one parameter by position, the others by keyword")
        row = row_named(name)
        return _from_row(row, positional[0] if positional else param, {**keywords, **params})
    if isinstance(activation, type):
        return _from_class(activation, param, params)
    if not callable(activation):
        raise InvalidTypeError(
            f"expected an activation's name, module or function, got {type(activation).__name__}"
        )
    row_of_function = BY_FUNCTION.get(id(activation))
    if row_of_function is not None:
        return _from_row(row_of_function, param, params)
    if param is not None:
        raise InvalidValueError(f"param={param} needs an activation from the table; pass it by keyword")
    if isinstance(activation, nn.Module):
        if params:
            raise InvalidValueError(
                f"{pointwise.label(activation)} carries its own parameters, got {', '.join(params)}"
            )
        return _from_module(activation)
    function: Pointwise = functools.partial(activation, **params) if params else activation
    return _from_mixture(pointwise.label(function), ((1.0, function),))
