"""How an activation responds to Gaussian input: its values and slopes at nodes fitted to it.

Gains, moments and mean-field maps are all sums over these few arrays. Responses of activations in the
table are cached, so that a second call costs microseconds.

Shapes: k functions (more than one when the activation is random), n nodes.
"""

import functools
import math
import numbers
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isometry import gaussian
from isometry.activations import Activation, pointwise
from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.gaussian import Nodes

_CONVERGED = 1e-5  # bound on the error of E|f|, far above what is reached: it tells convergence from none
_TAIL = 1e-9
_NOTHING = 1e-24  # a second moment below this, relative to the input's, is zero for practical purposes


@dataclass(frozen=True)
class Response:
    """φ(mean + std·z) for z ~ N(0, 1), at nodes that resolve its kinks and jumps.

    Attributes:
        activation: The map.
        mean: Mean of the input.
        std: Standard deviation of the input.
        nodes: Nodes z with weights.
        probability: Of each of the k functions, (k,).
        value: φ at the nodes, (k, n).
        slope: φ′ at the nodes, as autograd has it, (k, n); None when there is none to integrate.
        slope_error: Why `slope` is None, or empty.
    """

    activation: Activation
    mean: float
    std: float
    nodes: Nodes = field(repr=False)
    probability: Tensor = field(repr=False)
    value: Tensor = field(repr=False)
    slope: Tensor | None = field(repr=False)
    slope_error: str

    def expect(self, values: Tensor) -> float:
        """Expectation over the input and over the activation's own randomness: (k, n) → number."""
        return float(self.probability @ self.nodes.expect(values))

    @functools.cached_property
    def second_moment(self) -> float:
        """E[φ²]."""
        return self.expect(self.value**2)

    @functools.cached_property
    def slope_second_moment(self) -> float:
        """E[φ′²]; raises InvalidValueError when there is none."""
        if self.slope is None:
            raise InvalidValueError(self.slope_error)
        return self.expect(self.slope**2)

    @functools.cached_property
    def jumps(self) -> tuple[float, ...]:
        """Inputs x at which φ jumps, where its derivative is no function and autograd sees nothing."""
        edges, name = self.nodes.edges, self.activation.name
        found = torch.zeros(len(edges), dtype=torch.bool, device="cpu")
        for _, function in self.activation.mixture:

            def rise(step: float, function: pointwise.Pointwise = function) -> Tensor:
                above = pointwise.values(function, self.mean + self.std * (edges + step), name)
                below = pointwise.values(function, self.mean + self.std * (edges - step), name)
                return (above - below).abs()

            # However close one looks, a jump stays as high as it is; a steep slope does not.
            wide, close = rise(1e-9), rise(1e-11)
            found |= (close > 1e-3 * math.sqrt(self.second_moment)) & (close > 0.5 * wide)
        return tuple((self.mean + self.std * edges[found]).tolist())

    @functools.cached_property
    def _breaks(self) -> tuple[float, ...]:
        rows = _rows(self.activation, self.mean, self.std, slopes=self.slope is not None)
        return tuple(gaussian.breakpoints(rows, self.nodes).tolist())

    def _require_one_function(self) -> None:
        if len(self.activation.mixture) > 1:
            raise InvalidValueError(
                f"{self.activation.name} has no correlation map: it is random or differs between channels; "
                "put the module in eval mode, or pass the deterministic form"
            )

    def dual(self, correlation: float) -> float:
        """E[φ(x₁)·φ(x₂)] for two inputs whose z have the given correlation."""
        self._require_one_function()
        name, fn = self.activation.name, self.activation.fn

        def value(z: Tensor) -> Tensor:
            return pointwise.values(fn, self.mean + self.std * z, name)

        return float(gaussian.dual(value, correlation, breaks=self._breaks))

    def slope_dual(self, correlation: float) -> float:
        """E[φ′(x₁)·φ′(x₂)], the derivative of the dual by the covariance of the inputs."""
        self._require_one_function()
        if self.slope is None:
            raise InvalidValueError(self.slope_error)
        name, fn = self.activation.name, self.activation.fn

        def slope(z: Tensor) -> Tensor:
            return pointwise.values_and_slopes(fn, self.mean + self.std * z, name)[1]

        return float(gaussian.dual(slope, correlation, breaks=self._breaks))

    def require_output(self) -> None:
        """Refuse an activation that is zero for practically every input."""
        if self.second_moment <= _NOTHING * (self.mean**2 + self.std**2):
            raise InvalidValueError(
                f"{self.activation.name} has no gain: it is zero for practically every input of mean "
                f"{self.mean:g} and standard deviation {self.std:g}, so that no weights bring the signal back"
            )

    def require_slope(self) -> None:
        """Refuse an activation without a slope, or one that is flat for practically every input."""
        if self.slope_second_moment <= _NOTHING:
            raise InvalidValueError(
                f"{self.activation.name} has no backward gain: its slope is zero for practically every input "
                f"of mean {self.mean:g} and standard deviation {self.std:g}, so that no gradient comes back"
            )


def _rows(activation: Activation, mean: float, std: float, *, slopes: bool) -> gaussian.Rows:
    """φ, φ² and, on demand, φ′ and φ′² of every function of the mixture, as functions of z."""

    def rows(z: Tensor) -> Tensor:
        found: list[Tensor] = []
        for _, function in activation.mixture:
            x = mean + std * z
            if slopes:
                value, slope = pointwise.values_and_slopes(function, x, activation.name)
                found += [value, value**2, slope, slope**2]
            else:
                value = pointwise.values(function, x, activation.name)
                found += [value, value**2]
        return torch.stack(found)

    return rows


def _unbounded(fit: gaussian.Refined) -> Tensor:
    # `not (a < b)` so that nan, from an overflow, counts as unbounded.
    return ~((fit.residual < _CONVERGED) & (fit.tail < _TAIL))


def _slopes_fail(activation: Activation, mean: float, std: float) -> str:
    """Why the slope cannot be integrated, or empty."""
    probe = mean + std * gaussian.nodes().z
    try:
        for _, function in activation.mixture:
            pointwise.values_and_slopes(function, probe, activation.name)
    except InvalidValueError as error:
        return str(error)
    return ""


def _respond(activation: Activation, mean: float, std: float) -> Response:
    slope_error = _slopes_fail(activation, mean, std)
    rows = _rows(activation, mean, std, slopes=not slope_error)
    try:
        fit = gaussian.refine(rows)
    except InvalidValueError as error:
        if slope_error:
            raise
        # A slope that is infinite at a single point shows only when the panels close in on it.
        slope_error = str(error)
    if not slope_error and bool(_unbounded(fit).reshape(-1, 4)[:, 2:].any()):
        slope_error = (
            f"{activation.name} has no backward gain: E[φ′²] is infinite or does not converge, as the slope "
            "has a pole, grows too fast or varies without end"
        )
    if slope_error:
        rows = _rows(activation, mean, std, slopes=False)
        fit = gaussian.refine(rows)
    count = len(activation.mixture)
    if bool(_unbounded(fit).reshape(count, -1)[:, :2].any()):
        raise InvalidValueError(
            f"{activation.name} has no gain: E[φ²] is infinite or does not converge for input of mean "
            f"{mean:g} and standard deviation {std:g}, as φ has a pole, grows too fast or is computed too "
            "coarsely"
        )
    table = rows(fit.nodes.z).reshape(count, -1, len(fit.nodes.z))
    weights = [weight for weight, _ in activation.mixture]
    return Response(
        activation=activation,
        mean=mean,
        std=std,
        nodes=fit.nodes,
        probability=torch.tensor(weights, dtype=torch.float64, device="cpu"),
        value=table[:, 0],
        slope=None if slope_error else table[:, 2],
        slope_error=slope_error,
    )


_cached = functools.lru_cache(maxsize=256)(_respond)


def respond(activation: Activation, *, mean: float = 0.0, std: float = 1.0) -> Response:
    """Evaluate an activation on Gaussian input, x = mean + std·z with z ~ N(0, 1).

    Numerically exact, see `gaussian.refine`.

    Args:
        activation: From `activations.resolve`.
        mean: Mean of the input.
        std: Standard deviation of the input, positive.

    Returns:
        The response; from a cache when the activation is one of the table.

    Raises:
        InvalidValueError: E[φ²] is infinite or undefined, a value is nan or infinite, or mean or std are no
            usable numbers.
        InvalidTypeError: mean or std is no number.

    Example:
        >>> from isometry.activations import resolve
        >>> round(respond(resolve("relu2")).second_moment, 12)
        1.5
    """
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InvalidValueError(
            f"expected a finite mean and a positive finite std, got mean={mean}, std={std}"
        )
    make = _respond if activation.key is None else _cached
    return make(activation, float(mean), float(std))
