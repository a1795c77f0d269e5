"""Variance scaling: one core, and He, Glorot and LeCun as thin specialisations of it."""

import math
import warnings
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from isometry.activations import ActivationLike
from isometry.activations.catalogue import row_named
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryWarning
from isometry.fans import Fans, Mode, check_mode, fans_of_layout
from isometry.gain import Direction
from isometry.gain import gain as gain_of
from isometry.init.structured import Kind, check_finite, of_kind
from isometry.layout import Axis, grouped, layout_of_axes
from isometry.sampling import fill_

_DIRECTIONS: dict[Mode, Direction] = {
    "fan_in": "forward",
    "fan_out": "backward",
    "fan_avg": "balanced",
    "fan_geo": "balanced",
}
# What torch.nn.init.calculate_gain takes without a parameter; it ignores `a` there.
_CONVOLUTIONS = tuple(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))
_WITHOUT_A = ("linear", "sigmoid", "tanh", "relu", "selu", *_CONVOLUTIONS)


class Axes(TypedDict, total=False):
    """The keywords that say which axis is what; axes not named are the receptive field."""

    in_axis: Axis
    out_axis: Axis
    batch_axis: Axis
    groups: int


def variance_scaling_(
    tensor: Tensor,
    scale: float = 1.0,
    mode: Mode = "fan_in",
    distribution: Kind = "normal",
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a tensor with weights of variance scale/fan: the core of kaiming, xavier and lecun.

    Var(w) = scale/fan exactly, for every distribution; "orthogonal" has this mean square of its entries.

    Args:
        tensor: The weight, two axes or more.
        scale: The variance times the fan: the gain squared.
        mode: "fan_in", "fan_out", "fan_avg" (their mean) or "fan_geo" (their geometric mean).
        distribution: "normal", "uniform", "truncated_normal" (cut at two parent deviations) or "orthogonal".
        generator: Source of randomness; torch's global one by default.
        **axes: `in_axis=1`, `out_axis=0`, `batch_axis=()`, `groups=1`.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: A negative or non-finite scale, an unknown mode or distribution, a fan of zero.
        InvalidTypeError: Not a floating-point tensor, or a complex one for "orthogonal".

    Example:
        >>> experts = torch.empty(8, 512, 256)
        >>> std = variance_scaling_(experts, in_axis=1, out_axis=2, batch_axis=0).std()
        >>> abs(float(std) * 512**0.5 - 1) < 0.01
        True

    Reference:
        The parametrisation of jax.nn.initializers.variance_scaling.
    """
    check_finite("scale", scale)
    if scale < 0:
        raise InvalidValueError(f"scale is a variance times a fan and cannot be negative, got {scale}")
    fans = tensor_fans(tensor, axes)
    std = math.sqrt(scale / fans.by_mode(mode))
    law = of_kind(distribution, std, layout=fans.layout, precise=is_double(tensor))
    return fill_(tensor, law, generator=generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: ActivationLike = "leaky_relu",
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a tensor with N(0, gain²/fan): He initialisation.

    Differs from torch on purpose: the gain is exact (tanh 1.5925, not 5/3), for any activation, and
    belongs to the direction that `mode` keeps: forward 1/√E[φ²] for fan_in, backward 1/√E[φ′²] for
    fan_out, their geometric mean for the averages. For relu and leaky_relu the result is torch's.

    Args:
        tensor: The weight, two axes or more.
        a: Negative slope of leaky_relu (or the parameter of another activation).
        mode: "fan_in" keeps the forward signal, "fan_out" the gradient.
        nonlinearity: The activation before this layer: a name, a module, a class or a callable.
        generator: Source of randomness; torch's global one by default.
        **axes: As in `variance_scaling_`.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: An unknown mode, an activation without a gain, a fan of zero.
        NotFoundError: An unknown activation name.

    Example:
        >>> round(float(kaiming_normal_(torch.empty(400, 900), nonlinearity="relu").std()), 3)
        0.047

    Reference:
        He et al. (2015), "Delving deep into rectifiers", equations 10 and 14.
    """
    scale = activation_gain(nonlinearity, a, mode) ** 2
    return variance_scaling_(tensor, scale, mode, "normal", generator, **axes)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: ActivationLike = "leaky_relu",
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a tensor with U(-√3·std, √3·std), std = gain/√fan: He initialisation; see `kaiming_normal_`.

    Example:
        >>> w = kaiming_uniform_(torch.empty(400, 600), nonlinearity="relu")
        >>> bool(w.abs().max() <= 0.1)  # √(3·2/600)
        True

    Reference:
        He et al. (2015), "Delving deep into rectifiers", equations 10 and 14.
    """
    scale = activation_gain(nonlinearity, a, mode) ** 2
    return variance_scaling_(tensor, scale, mode, "uniform", generator, **axes)


def xavier_normal_(
    tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None, **axes: Unpack[Axes]
) -> Tensor:
    """Fill a tensor with N(0, gain²·2/(fan_in + fan_out)): Glorot initialisation.

    Example:
        >>> round(float(xavier_normal_(torch.empty(300, 500)).std()), 2)
        0.05

    Reference:
        Glorot and Bengio (2010), equation 12.
    """
    return variance_scaling_(tensor, gain_squared(gain), "fan_avg", "normal", generator, **axes)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None, **axes: Unpack[Axes]
) -> Tensor:
    """Fill a tensor with U(-l, l), l = gain·√(6/(fan_in + fan_out)): Glorot initialisation.

    Example:
        >>> bool(xavier_uniform_(torch.empty(200, 400)).abs().max() <= 0.1)  # √(6/600)
        True

    Reference:
        Glorot and Bengio (2010), equation 16.
    """
    return variance_scaling_(tensor, gain_squared(gain), "fan_avg", "uniform", generator, **axes)


def lecun_normal_(tensor: Tensor, generator: torch.Generator | None = None, **axes: Unpack[Axes]) -> Tensor:
    """Fill a tensor with N(0, 1/fan_in): unit forward gain, for linear, selu and gateless layers.

    Example:
        >>> round(float(lecun_normal_(torch.empty(300, 400)).std()), 2)
        0.05

    Reference:
        LeCun et al. (1998), "Efficient BackProp", equation 16.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "normal", generator, **axes)


def lecun_uniform_(tensor: Tensor, generator: torch.Generator | None = None, **axes: Unpack[Axes]) -> Tensor:
    """Fill a tensor with U(-√(3/fan_in), √(3/fan_in)): unit forward gain.

    Example:
        >>> bool(lecun_uniform_(torch.empty(200, 300)).abs().max() <= 0.1)
        True

    Reference:
        LeCun et al. (1998), "Efficient BackProp", equation 16.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "uniform", generator, **axes)


def activation_gain(
    nonlinearity: ActivationLike, a: float = 0.0, mode: Mode = "fan_in", *, gated: bool | None = None
) -> float:
    """The gain of an activation in the direction that a mode keeps.

    Args:
        nonlinearity: A name, a module, a class or a callable.
        a: Its parameter, as in torch.nn.init: leaky_relu's slope.
        mode: "fan_in" forward, "fan_out" backward, the averages their geometric mean.
        gated: Whether the unit is φ(a)·b; by default what its name says.

    Returns:
        The gain.

    Example:
        >>> round(activation_gain("tanh", mode="fan_out"), 6)
        1.467414
    """
    check_mode(mode)
    return gain_of(
        nonlinearity, activation_parameter(nonlinearity, a), direction=_DIRECTIONS[mode], gated=gated
    )


def activation_parameter(nonlinearity: ActivationLike, a: float) -> float | None:
    """Torch's `a`: always the slope of a leaky_relu given by name, for others a parameter where it is not 0.

    Warns:
        IsometryWarning: An activation by one of torch's names that has no parameter; torch ignores `a` there.

    Example:
        >>> activation_parameter("leaky_relu", 0.0), activation_parameter("gelu", 0.0)
        (0.0, None)
    """
    check_finite("a", a)
    if not isinstance(nonlinearity, str) or "(" in nonlinearity:
        return a or None
    row = row_named(nonlinearity)
    if a and nonlinearity in _WITHOUT_A:
        warnings.warn(
            f"a={a} is the slope of leaky_relu and is ignored for {nonlinearity!r}, as in torch.nn.init",
            IsometryWarning,
            stacklevel=4,
        )
        return None
    return a if a or row.name == "leaky_relu" else None


def tensor_fans(tensor: Tensor, axes: Axes) -> Fans:
    """The fans of a tensor whose axes are declared, after a check that it is one that can be filled."""
    check_weight(tensor)
    groups = axes.get("groups", 1)
    if groups == 1:
        named = {key: axis for key, axis in axes.items() if key != "groups"}
        return fans_of_layout(layout_of_axes(tensor.shape, **named))  # type: ignore[arg-type]
    if len(axes) > 1:
        raise InvalidValueError(
            "groups= stacks blocks on the first axis: give either groups= or in_axis=/out_axis="
        )
    return fans_of_layout(grouped(tensor.shape, groups))


def check_weight(tensor: Tensor) -> None:
    """Raise unless the argument is a floating-point or complex tensor with at least one element.

    Example:
        >>> check_weight(torch.zeros(2, 3))
    """
    if not isinstance(tensor, Tensor):
        raise InvalidTypeError(f"a tensor is needed, got {type(tensor).__name__}")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise InvalidTypeError(f"a floating-point tensor is needed, got {tensor.dtype}: convert it first")
    if tensor.numel() == 0:
        raise InvalidValueError(
            f"the tensor is empty, shape {tuple(tensor.shape)}: there is nothing to initialise"
        )


def is_double(tensor: Tensor) -> bool:
    """Whether orthogonal matrices for this tensor are worth float64."""
    return tensor.dtype == torch.float64


def gain_squared(gain: float) -> float:
    """gain², after a check that the gain is finite."""
    check_finite("gain", gain)
    return gain * gain
