"""Joint distributions of a whole parameter: orthogonal, identity, sparse, gate biases, ICNR.

Shape legend: B blocks, O outputs, I inputs, K taps, as in `isometry.layout`.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.layout import Layout, grouped
from isometry.sampling import Distribution, Normal, TruncatedNormal, Uniform, Whole, fill_, haar

Kind = Literal["normal", "uniform", "truncated_normal", "orthogonal"]
KINDS = ("normal", "uniform", "truncated_normal", "orthogonal")


@dataclass(frozen=True)
class Orthogonal(Whole):
    """Independent Haar (semi-)orthogonal matrices of shape (O, I·K), one per block.

    W = std·√max(O, I·K)·Q with QQᵀ = 1 or QᵀQ = 1, so that the root mean square of the entries is exactly
    `std`, whatever the sides. Exact.

    Attributes:
        std: Root mean square of the entries.
        layout: The parameter as blocks; None: (out, in, *taps).
        precise: Orthogonalise in float64 (for float64 parameters, and where thousands of layers multiply).

    Example:
        >>> q = Orthogonal(1.0).draw((6, 2), torch.Generator().manual_seed(0))
        >>> torch.allclose(q.T @ q, 6 * torch.eye(2), atol=1e-5)
        True

    Reference:
        Saxe, McClelland and Ganguli (2014).
    """

    std: float
    layout: Layout | None = None
    precise: bool = False

    def __post_init__(self) -> None:
        check_scale("std", self.std)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        layout = self.layout or grouped(shape)
        blocks, outputs, inputs, *taps = layout.kernels_shape
        cols = inputs * math.prod(taps)
        dtype = torch.float64 if self.precise else torch.float32
        q = haar(blocks, outputs, cols, generator, dtype=dtype)
        return layout.restore(q * (self.std * math.sqrt(max(outputs, cols))), shape)


@dataclass(frozen=True)
class DeltaOrthogonal(Whole):
    """Convolution kernels that are zero but for one tap, which holds a Haar (semi-)orthogonal (O, I) matrix.

    K[:, :, tap] = std·√max(O, I)·Q: at stride 1, away from borders, the convolution is an orthogonal map of
    every position (exact), so even thousands of layers keep all singular values at one.

    Attributes:
        std: Root mean square of the entries of that one tap.
        layout: The parameter as blocks; None: (out, in, *taps).
        tap: Which tap; None: the central one, (k - 1)//2 of an even side k.
        precise: Orthogonalise in float64.

    Example:
        >>> kernel = DeltaOrthogonal(1.0).draw((4, 2, 3, 3), torch.Generator().manual_seed(0))
        >>> kernel[:, :, 1, 1].count_nonzero() == kernel.count_nonzero()
        tensor(True)

    Reference:
        Xiao et al. (2018), "Dynamical isometry and a mean field theory of CNNs".
    """

    std: float
    layout: Layout | None = None
    tap: tuple[int, ...] | None = None
    precise: bool = False

    def __post_init__(self) -> None:
        check_scale("std", self.std)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        layout = self.layout or grouped(shape)
        blocks, outputs, inputs, *taps = layout.kernels_shape
        dtype = torch.float64 if self.precise else torch.float32
        q = haar(blocks, outputs, inputs, generator, dtype=dtype) * (
            self.std * math.sqrt(max(outputs, inputs))
        )
        return layout.restore(on_tap(q, tuple(taps), self.tap), shape)


@dataclass(frozen=True)
class Identity(Whole):
    """gain on the diagonal of each block (of the given tap), zero elsewhere: min(O, I) units pass unchanged.

    Attributes:
        gain: The value on the diagonal.
        layout: The parameter as blocks; None: (out, in, *taps).
        tap: Which tap; None: k//2 of each side, as torch.nn.init.dirac_.

    Example:
        >>> Identity().draw((2, 3), torch.Generator())
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """

    gain: float = 1.0
    layout: Layout | None = None
    tap: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_finite("gain", self.gain)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter (nothing in it is random)."""
        layout = self.layout or grouped(shape)
        blocks, outputs, inputs, *taps = layout.kernels_shape
        eye = (self.gain * torch.eye(outputs, inputs)).expand(blocks, outputs, inputs)
        tap = tuple(side // 2 for side in taps) if self.tap is None else self.tap
        return layout.restore(on_tap(eye, tuple(taps), tap), shape)


@dataclass(frozen=True)
class Sparse(Whole):
    """A matrix (out, in) with a fixed share of zeros in every column, N(0, std²) elsewhere.

    Attributes:
        sparsity: Share of zeros in each column, from 0 to 1, rounded up to whole entries.
        std: Standard deviation of the entries that are not zero.

    Example:
        >>> matrix = Sparse(sparsity=0.75, std=0.01).draw((8, 3), torch.Generator().manual_seed(0))
        >>> (matrix == 0).sum(dim=0)
        tensor([6, 6, 6])

    Reference:
        Martens (2010), "Deep learning via Hessian-free optimization".
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        check_scale("std", self.std)
        check_finite("sparsity", self.sparsity)
        if not 0 <= self.sparsity <= 1:
            raise InvalidValueError(f"sparsity is a share from 0 to 1, got {self.sparsity}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        if len(shape) != 2:
            raise InvalidValueError(f"a sparse initialisation needs a matrix (out, in), got shape {shape}")
        rows, cols = shape
        values = torch.randn(rows, cols, generator=generator) * self.std
        order = torch.rand(rows, cols, generator=generator).argsort(dim=0)
        zeros = order[: math.ceil(rows * self.sparsity)]
        return values.scatter_(0, zeros, 0.0)


@dataclass(frozen=True)
class Gates(Whole):
    """A bias whose equal blocks (gates) are constants, in the order the module stacks them.

    Attributes:
        values: One value per gate.

    Example:
        >>> Gates((0.0, 1.0, 0.0, 0.0)).draw((8,), torch.Generator())  # LSTM: i, f, g, o
        tensor([0., 0., 1., 1., 0., 0., 0., 0.])
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            check_finite("a gate's bias", value)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter (nothing in it is random)."""
        size = gate_size(shape, len(self.values))
        return torch.tensor(self.values).repeat_interleave(size)


@dataclass(frozen=True)
class Chrono(Whole):
    """The LSTM bias whose forget gates remember for times spread over 1 to t_max steps.

    b_f = log U(1, t_max - 1), b_i = -b_f, zero for the cell and the output gate: a unit with forget gate
    σ(b_f) = t/(1 + t) forgets at the rate 1/(1 + t).

    Attributes:
        t_max: The longest dependency expected, in steps, more than 2.

    Example:
        >>> bias = Chrono(100).draw((8,), torch.Generator().manual_seed(0))
        >>> torch.equal(bias[:2], -bias[2:4]), float(bias[4:].abs().sum())
        (True, 0.0)

    Reference:
        Tallec and Ollivier (2018), "Can recurrent neural networks warp time?", equation 16.
    """

    t_max: float

    def __post_init__(self) -> None:
        check_finite("t_max", self.t_max)
        if not self.t_max > 2:
            raise InvalidValueError(f"t_max is a number of steps greater than 2, got {self.t_max}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        size = gate_size(shape, 4)
        forget = torch.empty(size).uniform_(1, self.t_max - 1, generator=generator).log_()
        return torch.cat([-forget, forget, torch.zeros(2 * size)])


@dataclass(frozen=True)
class ICNR(Whole):
    """Kernels for a pixel shuffle that starts as nearest-neighbour upscaling: no checkerboard.

    The factor^d output channels that become one upscaled channel get one common draw of `base`.

    Attributes:
        base: What one kernel (out/factor^d, in, *taps) is drawn from.
        copies: factor^d, how many output channels share one draw.

    Example:
        >>> from isometry.sampling import Normal
        >>> kernel = ICNR(Normal(0.1), copies=4).draw((8, 3, 3, 3), torch.Generator().manual_seed(0))
        >>> torch.equal(kernel[0], kernel[3]), torch.equal(kernel[3], kernel[4])
        (True, False)

    Reference:
        Aitken et al. (2017), "Checkerboard artifact free sub-pixel convolution".
    """

    base: Distribution
    copies: int

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the whole parameter."""
        first, *rest = shape
        if self.copies < 1 or first % self.copies:
            raise InvalidValueError(
                f"the {first} output channels must be a multiple of upscale_factor^d = {self.copies}"
            )
        small = draw_any(self.base, (first // self.copies, *rest), generator)
        return small.repeat_interleave(self.copies, dim=0)


def of_kind(kind: Kind, std: float, *, layout: Layout | None = None, precise: bool = False) -> Distribution:
    """The distribution of a kind whose values have mean square std², exactly.

    Args:
        kind: "normal", "uniform", "truncated_normal" (cut at two parent deviations) or "orthogonal".
        std: Root mean square of the values drawn.
        layout: For "orthogonal", the parameter as blocks.
        precise: For "orthogonal", work in float64.

    Returns:
        The distribution.

    Raises:
        InvalidValueError: An unknown kind (with the nearest suggestion) or a bad std.

    Example:
        >>> of_kind("normal", 0.02)
        Normal(std=0.02, mean=0.0)
    """
    check_scale("std", std)
    match kind:
        case "normal":
            return Normal(std)
        case "uniform":
            return Uniform(-math.sqrt(3) * std, math.sqrt(3) * std)
        case "truncated_normal":
            return TruncatedNormal(std)
        case "orthogonal":
            return Orthogonal(std, layout, precise)
    near = difflib.get_close_matches(str(kind), KINDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidValueError(f"unknown distribution {kind!r}: {hint}expected one of {', '.join(KINDS)}")


def draw_any(distribution: Distribution, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A new CPU tensor drawn from a distribution of either kind.

    Example:
        >>> from isometry.sampling import Constant
        >>> draw_any(Constant(2.0), (2,), torch.Generator())
        tensor([2., 2.])
    """
    if isinstance(distribution, Whole):
        return distribution.draw(shape, generator)
    return fill_(torch.empty(shape, dtype=torch.float32), distribution, generator=generator)


def on_tap(matrices: Tensor, taps: tuple[int, ...], tap: tuple[int, ...] | None = None) -> Tensor:
    """Kernels (B, O, I, *taps) that hold the matrices (B, O, I) on one tap and zeros elsewhere.

    Args:
        matrices: Shape (B, O, I).
        taps: The sides of the receptive field.
        tap: Which tap; None: (k - 1)//2 of each side, the centre, which for an even side is the tap that
            `padding="same"` aligns with the output.

    Returns:
        The kernels.

    Raises:
        InvalidValueError: The tap lies outside the receptive field.
    """
    where = tuple((side - 1) // 2 for side in taps) if tap is None else tap
    if len(where) != len(taps) or any(not 0 <= at < side for at, side in zip(where, taps, strict=True)):
        raise InvalidValueError(f"tap {where} lies outside the receptive field {taps}")
    kernels = matrices.new_zeros((*matrices.shape, *taps))
    slot = kernels
    for at in where:
        slot = slot.select(3, at)
    slot.copy_(matrices)
    return kernels


def gate_size(shape: tuple[int, ...], gates: int) -> int:
    """How many units each of the stacked gates of a bias has.

    Example:
        >>> gate_size((12,), 4)
        3
    """
    if len(shape) != 1 or gates < 1 or shape[0] % gates:
        raise InvalidValueError(f"a bias of {gates} equal gates is needed, got shape {tuple(shape)}")
    return shape[0] // gates


def check_finite(argument: str, value: float) -> None:
    """Raise an error that names the argument unless the value is a finite number.

    Raises:
        InvalidTypeError: It is no number.
        InvalidValueError: It is nan or infinite.

    Example:
        >>> check_finite("gain", 1.0)
    """
    check_number(argument, value)
    if not math.isfinite(value):
        raise InvalidValueError(f"{argument} must be finite, got {value}")


def check_number(argument: str, value: float) -> None:
    """Raise an `InvalidTypeError` that names the argument unless the value is a real number.

    Example:
        >>> check_number("a", -math.inf)
    """
    try:
        math.isfinite(value)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{argument} must be a number, got {value!r}") from None


def check_scale(argument: str, value: float) -> None:
    """Raise an `InvalidValueError` that names the argument unless the value is finite and not negative.

    Example:
        >>> check_scale("std", 0.0)
    """
    check_finite(argument, value)
    if value < 0:
        raise InvalidValueError(f"{argument} must not be negative, got {value}")
