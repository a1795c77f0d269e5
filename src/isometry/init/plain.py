"""Constants and independent draws that look at no fan: the plain names of torch.nn.init."""

import torch
from torch import Tensor

from isometry.init.bounded import bounded_normal
from isometry.init.scaling import check_weight
from isometry.init.structured import check_finite, check_number
from isometry.sampling import Constant, Normal, Uniform, fill_, fill_keyed_


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a tensor with N(mean, std²).

    Example:
        >>> round(float(normal_(torch.empty(100, 1000), std=0.02).std()), 3)
        0.02
    """
    check_weight(tensor)
    return fill_(tensor, Normal(std, mean), generator=generator)


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a tensor with U(a, b).

    Example:
        >>> w = uniform_(torch.empty(100), a=2, b=3)
        >>> bool(w.min() >= 2), bool(w.max() <= 3)
        (True, True)
    """
    check_weight(tensor)
    return fill_(tensor, Uniform(a, b), generator=generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a tensor with a normal law cut to [a, b] whose own mean and std are those asked for.

    Differs from torch on purpose: there `mean` and `std` belong to the law before the cut, and with the
    default bounds the weights drawn have std 0.8796. As in torch `a` and `b` are absolute: (std=0.02,
    a=-2, b=2) cuts nothing; write a=-2·std, b=2·std for a cut at two deviations of the result.

    Args:
        tensor: Any shape.
        mean: Mean of the values drawn, between the bounds.
        std: Standard deviation of the values drawn.
        a: Lower bound, absolute, or -inf.
        b: Upper bound, absolute, or inf.
        generator: Source of randomness; torch's global one by default.

    Returns:
        The tensor itself.

    Raises:
        InvalidValueError: The mean lies outside the bounds, or no normal law cut to them has this std.

    Example:
        >>> w = trunc_normal_(torch.empty(100, 1000))
        >>> round(float(w.std()), 2), bool(w.abs().max() <= 2)
        (1.0, True)
    """
    check_weight(tensor)
    for argument, value in (("mean", mean), ("std", std), ("a", a), ("b", b)):
        check_number(argument, value)
    return fill_(tensor, bounded_normal(std, mean, a, b), generator=generator)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill a tensor with a value.

    Example:
        >>> constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    check_weight(tensor)
    check_finite("val", val)
    return fill_keyed_(tensor, Constant(val), seed=0, name="")


def zeros_(tensor: Tensor) -> Tensor:
    """Fill a tensor with zeros.

    Example:
        >>> zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill a tensor with ones.

    Example:
        >>> ones_(torch.empty(2))
        tensor([1., 1.])
    """
    return constant_(tensor, 1.0)
