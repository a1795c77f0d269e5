"""Initialisers for one kind of layer: sines, pixel shuffles, LSTM gates, identity and sparse maps."""

import math
from typing import Unpack

import torch
from torch import Tensor

from isometry.errors import InvalidValueError
from isometry.init.scaling import Axes, check_weight, gain_squared, is_double, tensor_fans
from isometry.init.structured import ICNR, Chrono, Identity, Kind, Sparse, check_finite, of_kind
from isometry.layout import grouped
from isometry.sampling import Uniform, fill_, fill_keyed_


def siren_uniform_(
    tensor: Tensor,
    omega: float = 30.0,
    generator: torch.Generator | None = None,
    *,
    first: bool = False,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill the weight of a sine layer, sin(omega·(W·x + b)).

    U(-l, l) with l = √(6/fan_in)/omega, or 1/fan_in in the first layer.

    Args:
        tensor: The weight, two axes or more.
        omega: The frequency factor inside the sine.
        generator: Source of randomness; torch's global one by default.
        first: Whether the layer reads the coordinates, in [-1, 1].
        **axes: As in `variance_scaling_`.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: omega is not positive, or a fan of zero.

    Example:
        >>> bool(siren_uniform_(torch.empty(8, 600)).abs().max() <= 0.1 / 30)
        True

    Reference:
        Sitzmann et al. (2020), "Implicit neural representations with periodic activation functions".
    """
    check_finite("omega", omega)
    if not omega > 0:
        raise InvalidValueError(f"omega must be positive, got {omega}")
    fan = tensor_fans(tensor, axes).by_mode("fan_in")
    limit = 1 / fan if first else math.sqrt(6 / fan) / omega
    return fill_(tensor, Uniform(-limit, limit), generator=generator)


def icnr_(
    tensor: Tensor,
    upscale_factor: int = 2,
    generator: torch.Generator | None = None,
    *,
    gain: float = 1.0,
    distribution: Kind = "normal",
) -> Tensor:
    """Fill the kernel before a pixel shuffle so that it starts as nearest-neighbour upscaling.

    The factor^d output channels of one upscaled channel get one common draw of variance gain²/fan_in.

    Args:
        tensor: (channels·factor^d, in, *taps) with d taps axes.
        upscale_factor: Of the pixel shuffle, along each axis.
        generator: Source of randomness; torch's global one by default.
        gain: Factor on the weights.
        distribution: As in `variance_scaling_`.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: The output channels are no multiple of factor^d, or no taps axis.

    Example:
        >>> kernel = icnr_(torch.empty(8, 3, 3, 3))
        >>> torch.equal(kernel[0], kernel[3])
        True

    Reference:
        Aitken et al. (2017), "Checkerboard artifact free sub-pixel convolution".
    """
    fans = tensor_fans(tensor, {})
    if not fans.layout.taps:
        raise InvalidValueError(f"icnr_ needs a convolution kernel, got shape {tuple(tensor.shape)}")
    if isinstance(upscale_factor, bool) or not isinstance(upscale_factor, int) or upscale_factor < 1:
        raise InvalidValueError(f"upscale_factor must be a whole number of 1 or more, got {upscale_factor!r}")
    std = math.sqrt(gain_squared(gain) / fans.by_mode("fan_in"))
    copies = upscale_factor ** len(fans.layout.taps)
    base = of_kind(distribution, std, precise=is_double(tensor))
    return fill_(tensor, ICNR(base, copies), generator=generator)


def chrono_(tensor: Tensor, t_max: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill the bias of an LSTM so that its units remember for 1 to t_max steps.

    b_f = log U(1, t_max - 1), b_i = -b_f, other gates 0. torch adds two biases: give this to `bias_ih` and
    zero to `bias_hh`.

    Args:
        tensor: The bias of four gates (i, f, g, o), 4·hidden entries.
        t_max: The longest dependency expected, in steps, more than 2.
        generator: Source of randomness; torch's global one by default.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: t_max is 2 or less, or the tensor is no bias of four gates.

    Example:
        >>> lstm = torch.nn.LSTM(3, 5)
        >>> bias = chrono_(lstm.bias_ih_l0, t_max=100)
        >>> torch.equal(bias[:5], -bias[5:10])
        True

    Reference:
        Tallec and Ollivier (2018), "Can recurrent neural networks warp time?", equation 16.
    """
    check_weight(tensor)
    return fill_(tensor, Chrono(t_max), generator=generator)


def identity_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill a matrix (out, in) with gain on the diagonal and zeros elsewhere.

    Example:
        >>> identity_(torch.empty(2, 3), gain=0.5)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])

    Reference:
        Le, Jaitly and Hinton (2015), "A simple way to initialize recurrent networks of ReLUs".
    """
    check_weight(tensor)
    if tensor.ndim != 2:
        raise InvalidValueError(
            f"identity_ needs a matrix (out, in), got shape {tuple(tensor.shape)}: use dirac_ for a kernel"
        )
    return fill_keyed_(tensor, Identity(gain), seed=0, name="")


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix (out, in) with the identity; the name in torch.nn.init.

    Example:
        >>> eye_(torch.empty(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    return identity_(tensor)


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fill a convolution kernel so that it copies its input channels, as many as fit, in every group.

    One on the tap k//2 along each axis (as in torch), zero elsewhere.

    Args:
        tensor: (out, in/groups, *taps).
        groups: Groups of the convolution; must divide the output channels.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: Not three axes or more, or groups that do not divide.

    Example:
        >>> kernel = dirac_(torch.empty(3, 3, 3))
        >>> x = torch.randn(1, 3, 8)
        >>> torch.equal(torch.conv1d(x, kernel, padding=1), x)
        True

    Reference:
        Zagoruyko and Komodakis (2017), "DiracNets".
    """
    check_weight(tensor)
    if tensor.ndim < 3:
        raise InvalidValueError(
            f"dirac_ needs a convolution kernel (out, in, *taps), got shape {tuple(tensor.shape)}: use eye_"
        )
    return fill_keyed_(tensor, Identity(1.0, grouped(tensor.shape, groups)), seed=0, name="")


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a matrix with N(0, std²) and zero a fixed share of every column.

    Args:
        tensor: (out, in).
        sparsity: Share of zeros in each column, 0 to 1, rounded up to whole entries.
        std: Standard deviation of the entries that stay.
        generator: Source of randomness; torch's global one by default.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: Not a matrix, a share outside [0, 1], or a bad std.

    Example:
        >>> (sparse_(torch.empty(10, 3), sparsity=0.25) == 0).sum(dim=0)
        tensor([3, 3, 3])

    Reference:
        Martens (2010), "Deep learning via Hessian-free optimization".
    """
    check_weight(tensor)
    if tensor.ndim != 2:
        raise InvalidValueError(f"sparse_ needs a matrix (out, in), got shape {tuple(tensor.shape)}")
    return fill_(tensor, Sparse(sparsity, std), generator=generator)
