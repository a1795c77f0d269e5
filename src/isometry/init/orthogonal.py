"""Orthogonal, delta-orthogonal and mirrored weights: all singular values alike."""

import math
from typing import Unpack

import torch
from torch import Tensor

from isometry.activations import ActivationLike
from isometry.errors import InvalidValueError
from isometry.fans import Fans, Mode
from isometry.gain import mirrored_slope
from isometry.init.mirrored import Mirrored, Part
from isometry.init.scaling import (
    Axes,
    gain_squared,
    is_double,
    tensor_fans,
    variance_scaling_,
)
from isometry.init.structured import DeltaOrthogonal, Orthogonal, check_finite, check_scale
from isometry.sampling import fill_


def orthogonal_(
    tensor: Tensor,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    mode: Mode | None = "fan_in",
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a tensor with a Haar (semi-)orthogonal matrix per block, scaled to keep the second moment.

    W = gain·√(max(O, I·K)/fan)·Q. For out ≤ in this is gain·Q as in torch. Differs from torch on purpose for
    out > in, where Q alone would keep only in/out of the forward second moment; `mode=None` gives torch's
    gain·Q.

    Args:
        tensor: The weight, two axes or more; taps count as inputs.
        gain: Factor on the weights.
        generator: Source of randomness; torch's global one by default.
        mode: Which second moment the scaling keeps; None: no scaling.
        **axes: As in `variance_scaling_`; `groups=` makes each group or gate orthogonal by itself.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: A non-finite gain, an unknown mode, an empty tensor.
        InvalidTypeError: A complex tensor.

    Example:
        >>> w = orthogonal_(torch.empty(1024, 256))
        >>> torch.allclose(w.T @ w, 4 * torch.eye(256), atol=1e-4)  # √(1024/256) = 2
        True

    Reference:
        Saxe, McClelland and Ganguli (2014).
    """
    scale = gain_squared(gain)
    if mode is not None:
        return variance_scaling_(tensor, scale, mode, "orthogonal", generator, **axes)
    layout = tensor_fans(tensor, axes).layout
    longest = max(layout.outputs, layout.inputs * math.prod(layout.taps_shape))
    law = Orthogonal(math.sqrt(scale / longest), layout, precise=is_double(tensor))
    return fill_(tensor, law, generator=generator)


def delta_orthogonal_(
    tensor: Tensor,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    mode: Mode = "fan_in",
    tap: tuple[int, ...] | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a convolution kernel with zeros but for one tap, a (semi-)orthogonal map of the channels.

    K[:, :, tap] = gain·√(max(O, I)/fan)·Q, with fans that count channels alone, since one tap is read. At
    stride 1, away from borders, the forward signal and the gradient keep their second moment where O = I.
    With a stride each output still reads one input, while the inputs in between are read by none.

    Args:
        tensor: (out, in/groups, *taps), one to three taps axes.
        gain: Factor on the weights.
        generator: Source of randomness; torch's global one by default.
        mode: Which second moment the scaling keeps.
        tap: The tap that is not zero; None: (k - 1)//2 along each axis, the centre.
        **axes: As in `variance_scaling_`.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: No taps axis, a tap outside the kernel, a non-finite gain, an empty tensor.

    Example:
        >>> kernel = delta_orthogonal_(torch.empty(8, 4, 3, 3))
        >>> torch.allclose(kernel[..., 1, 1].T @ kernel[..., 1, 1], 2 * torch.eye(4), atol=1e-5)
        True

    Reference:
        Xiao et al. (2018), "Dynamical isometry and a mean field theory of CNNs".
    """
    layout = tensor_fans(tensor, axes).layout
    if not layout.taps:
        raise InvalidValueError(
            "delta_orthogonal_ needs a convolution kernel (out, in, *taps), "
            f"got shape {tuple(tensor.shape)}: use orthogonal_ for a matrix"
        )
    channels = Fans(forward=float(layout.inputs), backward=float(layout.outputs), layout=layout)
    std = math.sqrt(gain_squared(gain) / channels.by_mode(mode))
    return fill_(tensor, DeltaOrthogonal(std, layout, tap, precise=is_double(tensor)), generator=generator)


def mirrored_(
    tensor: Tensor,
    nonlinearity: ActivationLike = "relu",
    generator: torch.Generator | None = None,
    *,
    a: float | None = None,
    part: Part = "hidden",
    gain: float = 1.0,
) -> Tensor:
    """Fill a weight with the looks-linear blocks [[W, -W], [-W, W]]/c of an orthogonal W.

    c is the slope of φ(x) - φ(-x) = c·x (relu, gelu, silu, hardswish: 1; leaky_relu: 1 + a). A chain of such
    layers, first [W; -W], last [W, -W]/c, biases zero, is an exactly orthogonal linear map at the start. A
    whole model whose widths change is better left to `isometry.Mirrored`, which aligns neighbouring layers.

    Args:
        tensor: (out, in) or (out, in, *taps); a kernel holds the blocks on its central tap.
        nonlinearity: The activation between the layers.
        generator: Source of randomness; torch's global one by default.
        a: Negative slope of leaky_relu (or the parameter of another activation); None: the activation's own
            default, 0.01 for leaky_relu as in torch.nn.
        part: "first", "hidden", "last", or "only" (a chain of one layer).
        gain: Factor on the map, 1 for isometry.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: φ(x) - φ(-x) is not proportional to x, or a side has a single unit.

    Example:
        >>> w = mirrored_(torch.empty(6, 4))
        >>> torch.equal(w[:3, :2], -w[:3, 2:])
        True

    Reference:
        Balduzzi et al. (2017), "The shattered gradients problem".
    """
    check_scale("gain", gain)
    tensor_fans(tensor, {})
    if a is not None:
        check_finite("a", a)
    slope = mirrored_slope(nonlinearity, a)
    scale = gain if part in ("first", "only") else gain / slope
    return fill_(tensor, Mirrored(scale, part), generator=generator)
