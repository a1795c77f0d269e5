"""Initialisers of whole models, for `model.apply(isometry.Kaiming(nonlinearity="gelu"))` or a direct call.

Weights by their logical fans, biases zero (LSTM forget gates 1), normalisations to the identity, embeddings
N(0, 1), PReLU slopes as constructed; docs/initialisers.md has every rule. All take the options of
`Initialiser`: only, skip, axes, distributions, forget_bias, include_frozen, seed, generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from isometry.activations import ActivationLike
from isometry.errors import InvalidValueError
from isometry.fans import Fans, Mode, check_mode
from isometry.gain import mirrored_slope
from isometry.init.scaling import activation_gain
from isometry.init.structured import DeltaOrthogonal as DeltaOrthogonalKernel
from isometry.init.structured import Kind, check_finite, check_scale, of_kind
from isometry.initialisers.base import Initialiser
from isometry.initialisers.chain import Weight, mirrored_chain
from isometry.sampling import Distribution, Normal


@dataclass(kw_only=True, eq=False, repr=False)
class VarianceScaling(Initialiser):
    """Weights of standard deviation gain·g(φ)/√fan, with logical fans and the activation's exact gain.

    *Assumes* one activation for the whole model, fed by every weight's own layer; a layer behind a
    normalisation or a sum wants its own gain (use `only=`).

    Attributes:
        gain: A factor on the activation's gain.
        nonlinearity: The activation before the layers: a name, a module, a class or a callable; None: gain 1.
        a: Its parameter, leaky_relu's negative slope.
        gated: Whether the activation is the φ of a unit φ(a)·b; by default what its name says.
        mode: "fan_in" keeps the forward signal, "fan_out" the gradient, "fan_avg" and "fan_geo" compromise.
        distribution: "normal", "uniform", "truncated_normal" or "orthogonal".
        input_gain: Gain of the first weight in registration order, which reads the data and follows no
            activation; None: as the others, which is He's convention. 1 is exact for data of second moment 1.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 100))
        >>> _ = model.apply(VarianceScaling(nonlinearity="tanh", input_gain=1.0))
        >>> round(model[2].weight.std().item() * 300**0.5, 1)
        1.6

    Reference:
        He et al. (2015), equations 10 and 14.
    """

    gain: float = 1.0
    nonlinearity: ActivationLike | None = None
    a: float = 0.0
    gated: bool | None = None
    mode: Mode = "fan_in"
    distribution: Kind = "normal"
    input_gain: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("gain", self.gain)
        check_mode(self.mode)
        of_kind(self.distribution, 1.0)
        if self.input_gain is not None:
            check_scale("input_gain", self.input_gain)
        self._gain = self.gain
        if self.nonlinearity is not None:
            self._gain *= activation_gain(self.nonlinearity, self.a, self.mode, gated=self.gated)

    def weight_laws(self, weights: Sequence[Weight], seed: int) -> Sequence[Distribution]:
        """One law per weight; the first may have its own gain."""
        gains = [self._gain] * len(weights)
        if weights and self.input_gain is not None:
            gains[0] = self.input_gain
        return [self.law(weight, gain) for weight, gain in zip(weights, gains, strict=True)]

    def law(self, weight: Weight, gain: float) -> Distribution:
        """The distribution of one weight."""
        std = gain / math.sqrt(fan_of(weight, weight.fans, self.mode))
        return of_kind(self.distribution, std, layout=weight.fans.layout, precise=weight.precise)


@dataclass(kw_only=True, eq=False, repr=False)
class Kaiming(VarianceScaling):
    """He initialisation: N(0, gain²/fan) with the gain of the activation in the direction that `mode` keeps.

    Differs from torch's on purpose: logical fans, an exact gain for any activation, and the backward gain for
    fan_out. The options are those of `VarianceScaling`.

    Example:
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 4))
        >>> _ = mlp.apply(Kaiming(nonlinearity="gelu"))

    Reference:
        He et al. (2015), "Delving deep into rectifiers".
    """

    nonlinearity: ActivationLike | None = "leaky_relu"


@dataclass(kw_only=True, eq=False, repr=False)
class Xavier(VarianceScaling):
    """Glorot initialisation: N(0, gain²·2/(fan_in + fan_out)), a compromise of both directions.

    The options are those of `VarianceScaling`.

    Example:
        >>> from torch import nn
        >>> Xavier(gain=2.0).plan(nn.Linear(6, 2)).distributions["weight"]
        Normal(std=1.0, mean=0.0)

    Reference:
        Glorot and Bengio (2010), equation 12.
    """

    mode: Mode = "fan_avg"


@dataclass(kw_only=True, eq=False, repr=False)
class LeCun(VarianceScaling):
    """LeCun initialisation: N(0, 1/fan_in), for linear and selu layers.

    The options are those of `VarianceScaling`.

    Example:
        >>> from torch import nn
        >>> LeCun().plan(nn.Linear(4, 2)).distributions["weight"]
        Normal(std=0.5, mean=0.0)

    Reference:
        LeCun et al. (1998), "Efficient BackProp"; Klambauer et al. (2017) for selu.
    """


@dataclass(kw_only=True, eq=False, repr=False)
class Orthogonal(VarianceScaling):
    """Haar (semi-)orthogonal weights per block (gate, group, projection), scaled to keep the second moment.

    W = gain·√(max(O, I·K)/fan)·Q: the entries have exactly the mean square gain²/fan. The other options are
    those of `VarianceScaling`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = Orthogonal(gain=2.0)(nn.Linear(4, 8))
        >>> torch.allclose(layer.weight.T @ layer.weight, 8 * torch.eye(4), atol=1e-5)  # 2²·8/4
        True

    Reference:
        Saxe, McClelland and Ganguli (2014).
    """

    distribution: Kind = field(default="orthogonal", init=False)


@dataclass(kw_only=True, eq=False, repr=False)
class DeltaOrthogonal(Orthogonal):
    """Orthogonal weights, and for convolutions kernels that hold an orthogonal map on the central tap alone.

    Fans of a kernel then count its channels and strides, not its taps. Where nothing is strided, all singular
    values of a convolution of equal channels are `gain`, away from borders. The other options are those of
    `VarianceScaling`.

    Example:
        >>> from torch import nn
        >>> conv = DeltaOrthogonal()(nn.Conv2d(8, 8, 3, padding=1))
        >>> int(conv.weight.count_nonzero())
        64

    Reference:
        Xiao et al. (2018), "Dynamical isometry and a mean field theory of CNNs".
    """

    def law(self, weight: Weight, gain: float) -> Distribution:
        """A delta kernel for a convolution, a plain orthogonal matrix for the rest."""
        layout = weight.fans.layout
        taps = math.prod(layout.taps_shape)
        if not layout.taps:
            return super().law(weight, gain)
        one_tap = Fans(
            forward=weight.fans.forward / taps, backward=weight.fans.backward / taps, layout=layout
        )
        std = gain / math.sqrt(fan_of(weight, one_tap, self.mode))
        return DeltaOrthogonalKernel(std, layout, precise=weight.precise)


@dataclass(kw_only=True, eq=False, repr=False)
class Mirrored(Initialiser):
    """Looks-linear weights: the network starts as an orthogonal linear map, however deep. Exact.

    For activations with φ(x) - φ(-x) = c·x (relu, leaky_relu, gelu, silu, hardswish, softplus). The first
    weight is [W; -W], hidden ones [[W, -W], [-W, W]]/c, the last [W, -W]/c, kernels on their central tap. All
    singular values of input to output are one, as many as the narrowest width (half a hidden layer)
    allows, and the others zero; an odd width leaves one unit that nothing reads at first.

    *Assumes* a plain chain of linear layers and convolutions whose modules are registered in the order in
    which they run, one activation between two of them, none before the first or after the last. Pooling,
    normalisation, borders and strides keep the linearity only where they treat u and -u alike.

    Attributes:
        nonlinearity: The activation between the layers.
        a: Its parameter, leaky_relu's negative slope; None: its own default, 0.01 for leaky_relu.
        gain: Factor on the map of each layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layers = [nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 6)]
        >>> model = nn.Sequential(*layers).apply(Mirrored(nonlinearity="gelu"))
        >>> x = torch.randn(5, 6)
        >>> torch.allclose(model(x).norm(dim=1), x.norm(dim=1), atol=1e-4)
        True

    Reference:
        Balduzzi et al. (2017), "The shattered gradients problem"; for changing widths see
        `isometry.initialisers.chain`.
    """

    nonlinearity: ActivationLike = "relu"
    a: float | None = None
    gain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("gain", self.gain)
        if self.a is not None:
            check_finite("a", self.a)
        self._slope = mirrored_slope(self.nonlinearity, self.a)

    def weight_laws(self, weights: Sequence[Weight], seed: int) -> Sequence[Distribution]:
        """One law per layer of the chain."""
        return mirrored_chain(weights, slope=self._slope, gain=self.gain, seed=seed)


@dataclass(kw_only=True, eq=False, repr=False)
class StandardNormal(Initialiser):
    """Weights N(0, std²) whatever the fans: what goes wrong in deep networks, as a baseline for comparisons.

    Attributes:
        std: Standard deviation of every weight.

    Example:
        >>> from torch import nn
        >>> StandardNormal().plan(nn.Linear(6, 2)).distributions["weight"]
        Normal(std=1.0, mean=0.0)
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("std", self.std)

    def weight_laws(self, weights: Sequence[Weight], seed: int) -> Sequence[Distribution]:
        """The same law for all."""
        return [Normal(self.std)] * len(weights)


def fan_of(weight: Weight, fans: Fans, mode: Mode) -> float:
    """The fan of a weight by mode; an error names the parameter.

    Raises:
        InvalidValueError: The fan is zero.
    """
    try:
        return fans.by_mode(mode)
    except InvalidValueError as error:
        raise InvalidValueError(f"parameter {weight.name!r}: {error}") from None
