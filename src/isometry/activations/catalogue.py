"""The catalogue of activations: one row for each name, torch module and torch function.

To add an activation, add a row to `ROWS`: a name, a function of a float64 tensor, its parameters with
their defaults, other names for it, and the torch module or functions that mean the same. Case, hyphens
and underscores make no difference in names: "LeakyReLU", "leaky-relu" and "leaky_relu" are one.

Sources of the less common ones: relu2 (So et al., Primer, 2021), star_relu (Yu et al., 2022), laplace
(Ma et al., Mega, 2022), xielu (Huang and Schlag, 2024), snake (Ziyin et al., 2020), squareplus (Barron,
2021), smelu (Shamir et al., 2020), serf (Nag et al., 2021), telu (Fernandez and Mali, 2024), phish
(Naveen, 2022), softcap (Gemma team, 2024), gated units (Shazeer, 2020).
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isometry.activations import pointwise
from isometry.activations.pointwise import Mixture
from isometry.errors import InvalidValueError, NotFoundError

Parameter = float | str | None
REQUIRED = None  # the default of a parameter that has none


@dataclass(frozen=True)
class Row:
    """One activation of the table.

    Attributes:
        name: The name it is listed under.
        fn: Its pointwise map, f(x, **params); for a gated unit the map φ of its gate.
        params: Parameters and defaults; None marks one that must be given.
        positional: The parameter that `param` sets, as in torch.nn.init.calculate_gain.
        aliases: Other names.
        module: The torch module that computes it, whose attributes carry the parameters' names.
        functions: torch functions that compute it.
        gated: True for φ(a)·b with two separate inputs.
        mixture: Builds the functions it may be, with probabilities, when it is random.
    """

    name: str
    fn: Callable[..., Tensor]
    params: Mapping[str, Parameter] = field(default_factory=dict)
    positional: str | None = None
    aliases: tuple[str, ...] = ()
    module: type[nn.Module] | None = None
    functions: tuple[Callable[..., Tensor], ...] = ()
    gated: bool = False
    mixture: Callable[..., Mixture] | None = None


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta=beta, threshold=threshold)


def _xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float) -> Tensor:
    negative = x.clamp(max=0.0)
    return torch.where(x > 0, alpha_p * x * x, alpha_n * (torch.expm1(negative) - x)) + beta * x


def _smelu(x: Tensor, beta: float) -> Tensor:
    return torch.where(x.abs() <= beta, (x + beta) ** 2 / (4 * beta), x.relu())


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_LINEAR = ("identity", "none", "conv1d", "conv2d", "conv3d")
_LINEAR_T = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

ROWS: tuple[Row, ...] = (
    # torch.nn
    Row("linear", lambda x: 1.0 * x, aliases=_LINEAR + _LINEAR_T, module=nn.Identity),
    Row("relu", torch.relu, module=nn.ReLU, functions=(F.relu, F.relu_, torch.relu, torch.relu_)),
    Row("relu6", F.relu6, module=nn.ReLU6, functions=(F.relu6,)),
    Row(
        "leaky_relu",
        F.leaky_relu,
        {"negative_slope": 0.01},
        "negative_slope",
        ("lrelu",),
        nn.LeakyReLU,
        (F.leaky_relu, F.leaky_relu_),
    ),
    Row("prelu", lambda x, init: F.leaky_relu(x, init), {"init": 0.25}, "init"),
    Row(
        "rrelu",
        lambda x, lower, upper: F.leaky_relu(x, (lower + upper) / 2),
        {"lower": 1 / 8, "upper": 1 / 3},
        mixture=pointwise.uniform_slope_mixture,
    ),
    Row("elu", F.elu, {"alpha": 1.0}, "alpha", module=nn.ELU, functions=(F.elu, F.elu_)),
    Row("celu", F.celu, {"alpha": 1.0}, "alpha", module=nn.CELU, functions=(F.celu, F.celu_)),
    Row("selu", F.selu, module=nn.SELU, functions=(F.selu, F.selu_)),
    Row("gelu", F.gelu, {"approximate": "none"}, None, ("gelu_python",), nn.GELU, (F.gelu,)),
    Row(
        "gelu_tanh",
        _gelu_tanh,
        aliases=("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
    ),
    Row(
        "silu",
        lambda x, beta: x * torch.sigmoid(beta * x),
        {"beta": 1.0},
        "beta",
        ("swish",),
        nn.SiLU,
        (F.silu,),
    ),
    Row("mish", F.mish, module=nn.Mish, functions=(F.mish,)),
    Row("sigmoid", torch.sigmoid, {}, None, ("logistic",), nn.Sigmoid, (F.sigmoid, torch.sigmoid)),
    Row("tanh", torch.tanh, module=nn.Tanh, functions=(F.tanh, torch.tanh)),
    Row(
        "softplus",
        _softplus,
        {"beta": 1.0, "threshold": 20.0},
        "beta",
        module=nn.Softplus,
        functions=(F.softplus,),
    ),
    Row("softsign", F.softsign, module=nn.Softsign, functions=(F.softsign,)),
    Row("logsigmoid", F.logsigmoid, module=nn.LogSigmoid, functions=(F.logsigmoid,)),
    Row("tanhshrink", F.tanhshrink, module=nn.Tanhshrink, functions=(F.tanhshrink,)),
    Row("softshrink", F.softshrink, {"lambd": 0.5}, "lambd", (), nn.Softshrink, (F.softshrink,)),
    Row("hardshrink", F.hardshrink, {"lambd": 0.5}, "lambd", (), nn.Hardshrink, (F.hardshrink,)),
    Row(
        "hardtanh",
        F.hardtanh,
        {"min_val": -1.0, "max_val": 1.0},
        None,
        (),
        nn.Hardtanh,
        (F.hardtanh, F.hardtanh_),
    ),
    Row("hardsigmoid", F.hardsigmoid, module=nn.Hardsigmoid, functions=(F.hardsigmoid,)),
    Row("hardswish", F.hardswish, {}, None, ("hard_silu",), nn.Hardswish, (F.hardswish,)),
    Row("threshold", F.threshold, {"threshold": REQUIRED, "value": REQUIRED}, None, (), nn.Threshold),
    Row(
        "dropout",
        lambda x, p: 1.0 * x,
        {"p": 0.5},
        "p",
        functions=(F.dropout,),
        mixture=pointwise.dropout_mixture,
    ),
    # met elsewhere
    Row("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x), aliases=("gelu_quick",)),
    Row(
        "clipped_gelu",
        lambda x, min_val, max_val: F.gelu(x).clamp(min_val, max_val),
        {"min_val": -10.0, "max_val": 10.0},
        aliases=("gelu_10",),
    ),
    Row(
        "relu2",
        lambda x: x.relu().square(),
        aliases=("relu²", "relu^2", "relu_squared", "squared_relu", "relu_square", "sqrelu"),
    ),
    Row(
        "star_relu",
        lambda x, scale, bias: scale * x.relu().square() + bias,
        {"scale": 0.8944, "bias": -0.4472},
    ),
    Row("smelu", _smelu, {"beta": 1.0}, "beta"),
    Row("xielu", _xielu, {"alpha_p": 0.8, "alpha_n": 0.8, "beta": 0.5}),
    Row(
        "laplace",
        lambda x, mu, sigma: 0.5 * (1 + torch.erf((x - mu) / (sigma * math.sqrt(2)))),
        {"mu": 0.707107, "sigma": 0.282095},
    ),
    Row(
        "softcap",
        lambda x, cap: cap * torch.tanh(x / cap),
        {"cap": 30.0},
        "cap",
        ("soft_cap", "logit_softcap"),
    ),
    Row("squareplus", lambda x, b: (x + torch.sqrt(x * x + b)) / 2, {"b": 4.0}, "b"),
    Row("shifted_softplus", lambda x: F.softplus(x) - math.log(2), aliases=("ssp",)),
    Row("serf", lambda x: x * torch.erf(F.softplus(x))),
    Row("telu", lambda x: x * torch.tanh(torch.exp(x))),
    Row("phish", lambda x: x * torch.tanh(F.gelu(x))),
    Row("hard_mish", lambda x: 0.5 * x * (x + 2).clamp(0, 2)),
    Row("snake", lambda x, alpha: x + torch.sin(alpha * x).square() / alpha, {"alpha": 1.0}, "alpha"),
    Row("sin", lambda x, omega: torch.sin(omega * x), {"omega": 1.0}, "omega", ("sine",), None, (torch.sin,)),
    Row(
        "cos", lambda x, omega: torch.cos(omega * x), {"omega": 1.0}, "omega", ("cosine",), None, (torch.cos,)
    ),
    Row("gaussian", lambda x, sigma: torch.exp(-0.5 * (x / sigma) ** 2), {"sigma": 1.0}, "sigma", ("gauss",)),
    Row("erf", torch.erf, functions=(torch.erf, torch.special.erf)),
    Row("atan", torch.atan, aliases=("arctan",), functions=(torch.atan, torch.arctan)),
    Row("asinh", torch.asinh, aliases=("arcsinh",), functions=(torch.asinh, torch.arcsinh)),
    Row("abs", torch.abs, aliases=("absolute",), functions=(torch.abs, torch.absolute)),
    Row("square", torch.square, aliases=("quadratic",), functions=(torch.square,)),
    Row("cube", lambda x: x**3, aliases=("cubic",)),
    Row("exp", torch.exp, aliases=("exponential",), functions=(torch.exp,)),
    Row("sign", torch.sign, aliases=("sgn",), functions=(torch.sign, torch.sgn)),
    Row("step", lambda x: (x > 0).to(x.dtype), aliases=("heaviside", "binary_step")),
    # gated units φ(a)·b, by their φ
    Row("glu", torch.sigmoid, module=nn.GLU, functions=(F.glu,), gated=True),
    Row("bilinear", lambda x: 1.0 * x, gated=True),
    Row("reglu", torch.relu, aliases=("gated_relu",), gated=True),
    Row("geglu", F.gelu, aliases=("gated_gelu",), gated=True),
    Row("geglu_tanh", _gelu_tanh, aliases=("gated_gelu_tanh", "gated_gelu_new"), gated=True),
    Row("swiglu", F.silu, aliases=("siglu", "gated_silu", "gated_swish"), gated=True),
)

# Known names that are no pointwise map, and why; modules and functions show it when they are evaluated.
_NO_GAIN = {
    "softmax": "it normalises over a dimension",
    "softmax2d": "it normalises over the channels",
    "softmin": "it normalises over a dimension",
    "log_softmax": "it normalises over a dimension",
    "gumbel_softmax": "it normalises over a dimension",
    "layer_norm": "it normalises; its output has the second moment of its weight, whatever comes in",
    "rms_norm": "it normalises; its output has the second moment of its weight, whatever comes in",
    "batch_norm": "it normalises; its output has the second moment of its weight, whatever comes in",
    "group_norm": "it normalises; its output has the second moment of its weight, whatever comes in",
    "maxout": "it takes the maximum over several inputs",
    "crelu": "it doubles the width; relu of x beside relu of -x keeps the second moment in total",
}


def _squeeze(name: str) -> str:
    """The form in which names are compared: last dotted part, lower case, no separators."""
    return re.sub(r"[\s_-]", "", name.rsplit(".", 1)[-1].lower().replace("²", "2"))


def _index() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in ROWS:
        modules = (row.module.__name__,) if row.module else ()
        for name in {_squeeze(n) for n in (row.name, *row.aliases, *modules)}:
            if name in found:
                raise AssertionError(f"two activations are called {name}: {found[name].name} and {row.name}")
            found[name] = row
    return found


_BY_NAME = _index()
BY_MODULE = {row.module: row for row in ROWS if row.module}
# By identity: torch has functions that compare or hash in their own ways.
BY_FUNCTION = {id(function): row for row in ROWS for function in row.functions}
_NO_GAIN_SQUEEZED = {_squeeze(name): reason for name, reason in _NO_GAIN.items()}


def names() -> tuple[str, ...]:
    """The names of the table, in its order.

    Example:
        >>> names()[:3]
        ('linear', 'relu', 'relu6')
    """
    return tuple(row.name for row in ROWS)


def row_named(name: str) -> Row:
    """The row with that name or alias.

    Raises:
        NotFoundError: There is none; the message has the nearest.
        InvalidValueError: The name is known, but for something without a gain.
    """
    squeezed = _squeeze(name)
    if row := _BY_NAME.get(squeezed):
        return row
    if reason := _NO_GAIN_SQUEEZED.get(squeezed):
        raise InvalidValueError(f"{name} has no gain: it is no pointwise map, {reason}")
    near = [_BY_NAME[close].name for close in difflib.get_close_matches(squeezed, _BY_NAME, n=1)]
    hint = f"did you mean '{near[0]}'? Or" if near else "see isometry.activations.catalogue.names(), or"
    raise NotFoundError(f"no activation is called '{name}': {hint} pass the function itself")
