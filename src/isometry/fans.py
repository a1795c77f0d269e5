"""Logical fans: how many independent terms a parameter sums in the forward and in the backward pass.

With weights of variance v and inputs of second moment 1, one output is a sum of `forward` products, so its
second moment is v·forward; with output gradients of second moment 1, one input gradient has v·backward.
The shape alone does not tell: groups, strides, fused projections, gates and layouts do.

Shape legend: k = product of the kernel's sides, s = product of the strides, g = groups.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.layout import Axis, Layout, grouped, layout_of_axes
from isometry.parametrised import shape_of

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo"]
_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo")
_Conv = nn.modules.conv._ConvNd
_ConvTransposed = nn.modules.conv._ConvTransposeNd
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fans:
    """The logical fans of one parameter and the layout that shows it as a batch of linear maps.

    Attributes:
        forward: Independent terms in one output (a mean over positions where they differ).
        backward: Independent terms in one input gradient (likewise).
        layout: The parameter as B kernels of shape (O, I, *taps).

    Example:
        >>> conv = nn.Conv2d(6, 12, 3, groups=3, stride=2)
        >>> fans(conv, "weight").forward, fans(conv, "weight").backward
        (18.0, 9.0)
    """

    forward: float
    backward: float
    layout: Layout

    def by_mode(self, mode: Mode = "fan_in") -> float:
        """The fan a mode asks for: forward, backward, their mean or their geometric mean.

        Args:
            mode: "fan_in" keeps the forward signal, "fan_out" the gradient; "fan_avg" (f + b)/2 and
                "fan_geo" √(f·b) are compromises.

        Returns:
            The fan, exact.

        Raises:
            InvalidValueError: Unknown mode, or a fan that is not positive.

        Example:
            >>> fans(nn.Linear(2, 8)).by_mode("fan_geo")
            4.0
        """
        check_mode(mode)
        fan = {
            "fan_in": self.forward,
            "fan_out": self.backward,
            "fan_avg": (self.forward + self.backward) / 2,
            "fan_geo": math.sqrt(self.forward * self.backward),
        }[mode]
        if not fan > 0:
            raise InvalidValueError(
                f"{mode} is {fan:g}: a tensor with a side of length zero has no variance to set; "
                "give every axis at least one element"
            )
        return fan


def check_mode(mode: str) -> None:
    """Raise an `InvalidValueError` with the nearest suggestion unless `mode` is one of the four.

    Example:
        >>> check_mode("fan_in")
    """
    if mode not in _MODES:
        near = difflib.get_close_matches(str(mode), _MODES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidValueError(f"unknown mode {mode!r}: {hint}expected one of {', '.join(_MODES)}")


def fans(
    module: nn.Module,
    name: str = "weight",
    *,
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis | None = None,
    bag_size: float = 1.0,
) -> Fans:
    """The logical fans of a module's parameter.

    forward = Var(output)/Var(weight), backward = Var(input gradient)/Var(weight), for inputs and output
    gradients of second moment one. For example Conv: C_in·k/g and C_out·k/(g·s); transposed: C_in·k/(g·s) and
    C_out·k/g; gates and fused projections: one block; see docs/fans.md for every kind.

    Assumes zero-mean weights, independent of each other and of uncorrelated inputs. Where positions differ (a
    stride that does not divide the kernel) the fan is the mean over positions; zeros padded at the border are
    left out of account, so near a border the true count is smaller. Exact otherwise.

    Args:
        module: The module that uses the parameter, or any parent with a dotted `name`.
        name: The parameter, "weight" or "encoder.0.weight".
        in_axis: Input axis or axes of a custom layout; any of the three axes overrides the module's own.
        out_axis: Output axis or axes of a custom layout.
        batch_axis: Axis or axes of independent maps (experts) of a custom layout.
        bag_size: Rows an EmbeddingBag reads per bag.

    Returns:
        The fans and the layout.

    Raises:
        InvalidTypeError: `module` is no module, or another argument has the wrong type.
        NotFoundError: It has no such parameter (with the nearest suggestion).
        InvalidValueError: A bias, or a parameter whose axes nobody declared.
        ModelError: The parameter is lazy and has no shape yet.

    Example:
        >>> fans(nn.Linear(1024, 256)).forward
        1024.0
        >>> fans(nn.MultiheadAttention(64, 4), "in_proj_weight").forward  # per projection, not 3·64
        64.0

    Reference:
        He et al. (2015), equations 10 and 14; Glorot and Bengio (2010), equation 12.
    """
    if not isinstance(module, nn.Module):
        raise InvalidTypeError(
            f"fans needs a torch.nn.Module, got {type(module).__name__}: pass the module itself"
        )
    if not isinstance(name, str):
        raise InvalidTypeError(f"name must be a parameter's name such as 'weight', got {name!r}")
    owner, leaf = _owner(module, name)
    what = f"{name!r} of {type(owner).__name__}"
    parameter = owner._parameters.get(leaf)
    if parameter is not None and is_lazy(parameter):
        raise ModelError(
            f"{what} is lazy and has no shape yet: run the model once on an example, then ask again"
        )
    declared = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    explicit = {key: axis for key, axis in declared.items() if axis is not None}
    if explicit:
        return fans_of_layout(layout_of_axes(shape_of(owner, leaf), what=what, **explicit))
    found = known_fans(owner, leaf, bag_size=bag_size)
    if found is None:
        raise InvalidValueError(
            f"{what} with shape {shape_of(owner, leaf)} has no known layout: if it is a weight, declare its "
            "axes with in_axis=, out_axis= (and batch_axis= for experts); a bias has no fans"
        )
    return found


def fans_of_tensor(tensor: Tensor, *, in_axis: Axis = 1, out_axis: Axis = 0, batch_axis: Axis = ()) -> Fans:
    """The fans of a tensor whose axes are declared; axes not named are the receptive field.

    forward = I·k, backward = O·k. The module is unknown, so groups and strides are too.

    Args:
        tensor: At least two axes.
        in_axis: Axis or axes that number inputs.
        out_axis: Axis or axes that number outputs.
        batch_axis: Axis or axes that number independent maps; they do not count.

    Returns:
        The fans; exact for a layer of stride 1.

    Raises:
        InvalidTypeError: `tensor` is no tensor.
        InvalidValueError: Too few axes, an axis outside the shape, or one axis in two roles.

    Example:
        >>> import torch
        >>> experts = torch.empty(8, 512, 256)
        >>> fans_of_tensor(experts, in_axis=1, out_axis=2, batch_axis=0).forward  # torch says 131072
        512.0
    """
    if not isinstance(tensor, Tensor):
        raise InvalidTypeError(f"a tensor is needed, got {type(tensor).__name__}")
    return fans_of_layout(
        layout_of_axes(tensor.shape, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis)
    )


def known_fans(module: nn.Module, name: str, *, bag_size: float = 1.0) -> Fans | None:
    """The fans of a parameter of a module kind this file knows, None where it knows none.

    Args:
        module: The module that owns the parameter.
        name: The parameter's own name, without dots.
        bag_size: Rows an EmbeddingBag reads per bag.

    Returns:
        The fans, or None for biases and unknown parameters.

    Example:
        >>> known_fans(nn.Linear(2, 3), "bias") is None
        True
    """
    name = plain_name(module, name)
    if isinstance(module, nn.EmbeddingBag) and name == "weight":
        return _embedding_bag(module, bag_size)
    for kinds, rule in _RULES:
        if isinstance(module, kinds):
            return rule(module, name)
    if is_transposed_linear(module) and name == "weight":
        return fans_of_layout(layout_of_axes(shape_of(module, name), in_axis=0, out_axis=1))
    return None


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is the `Conv1D` of the transformers library: a linear layer with weight (in, out).

    Recognised by its name, its `nf` (outputs) and its weight, so that the library need not be imported.

    Example:
        >>> is_transposed_linear(nn.Conv1d(2, 3, 1))
        False
    """
    if not any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return False
    shape = shape_of(module, "weight") if isinstance(getattr(module, "weight", None), Tensor) else ()
    return len(shape) == 2 and shape[1] == getattr(module, "nf", None)


def _linear(module: nn.Module, name: str) -> Fans | None:
    return fans_of_layout(layout_of_axes(shape_of(module, name))) if name == "weight" else None


def _bilinear(module: nn.Module, name: str) -> Fans | None:
    """One output sums I1·I2 products; the backward fan is the mean over the gradients of both inputs."""
    if name != "weight":
        return None
    layout = Layout(shape_of(module, name), out=(0,), inp=(1, 2))
    outputs, first, second = layout.shape
    both = 2 * first * second / (first + second) if first + second else 0.0
    return Fans(forward=float(first * second), backward=outputs * both, layout=layout)


def _conv(module: nn.Module, name: str) -> Fans | None:
    if name != "weight":
        return None
    assert isinstance(module, _Conv)
    layout = grouped(shape_of(module, name), module.groups)
    strides = math.prod(module.stride)
    plain = fans_of_layout(layout)
    return Fans(forward=plain.forward, backward=plain.backward / strides, layout=layout)


def _conv_transposed(module: nn.Module, name: str) -> Fans | None:
    """The weight is (C_in, C_out/g, *taps): inputs come first, and an output sees every s-th tap."""
    if name != "weight":
        return None
    assert isinstance(module, _ConvTransposed)
    inputs, *rest = shape_of(module, name)
    split = (module.groups, inputs // module.groups, *rest)
    layout = Layout(split, batch=(0,), inp=(1,), out=(2,), taps=tuple(range(3, len(split))))
    strides = math.prod(module.stride)
    plain = fans_of_layout(layout)
    return Fans(forward=plain.forward / strides, backward=plain.backward, layout=layout)


def _embedding(module: nn.Module, name: str) -> Fans | None:
    """One row is read: forward 1. The backward fan is that of a one-hot input."""
    if name != "weight":
        return None
    layout = Layout(shape_of(module, name), out=(1,), inp=(0,))
    return Fans(forward=1.0, backward=float(layout.outputs), layout=layout)


def _embedding_bag(module: nn.EmbeddingBag, bag_size: float) -> Fans:
    """A bag of L rows: sum L, mean 1/L; a maximum is not linear and has fans for L = 1 alone."""
    row = _embedding(module, "weight")
    assert row is not None
    if isinstance(bag_size, bool) or not isinstance(bag_size, numbers.Real):
        raise InvalidTypeError(f"bag_size must be a number of rows, got {bag_size!r}")
    if not (math.isfinite(bag_size) and bag_size >= 1):
        raise InvalidValueError(f"bag_size must be a finite number of rows, 1 or more, got {bag_size}")
    if module.mode == "max" and bag_size != 1:
        raise InvalidValueError(
            f"an EmbeddingBag in mode 'max' is not linear, no fans for bag_size={bag_size}: use bag_size=1"
        )
    if module.mode == "mean":
        return Fans(forward=1 / bag_size, backward=row.backward / bag_size**2, layout=row.layout)
    return Fans(forward=float(bag_size), backward=row.backward, layout=row.layout)


def _recurrent(module: nn.Module, name: str) -> Fans | None:
    """weight_ih, weight_hh: G gates stacked on the first axis; weight_hr projects the state of an LSTM."""
    if not name.startswith(("weight_ih", "weight_hh", "weight_hr")):
        return None
    shape = shape_of(module, name)
    gates = 1 if name.startswith("weight_hr") else gate_count(module)
    return fans_of_layout(grouped(shape, gates))


def gate_count(module: nn.Module) -> int:
    """How many gates a recurrent module stacks: LSTM 4 (i, f, g, o), GRU 3 (r, z, n), RNN 1.

    Example:
        >>> gate_count(nn.GRUCell(2, 3))
        3
    """
    if isinstance(module, nn.RNNBase):
        return _GATES[module.mode]
    return 4 if isinstance(module, nn.LSTMCell) else 3 if isinstance(module, nn.GRUCell) else 1


def _attention(module: nn.Module, name: str) -> Fans | None:
    if name == "in_proj_weight":
        return fans_of_layout(grouped(shape_of(module, name), 3))
    if name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return fans_of_layout(layout_of_axes(shape_of(module, name)))
    return None


def _norm(module: nn.Module, name: str) -> Fans | None:
    """A scale acts on each unit alone."""
    if name != "weight":
        return None
    shape = shape_of(module, name)
    layout = Layout(shape, batch=tuple(range(len(shape))), out=(), inp=())
    return Fans(forward=1.0, backward=1.0, layout=layout)


# The first kind that fits decides; transposed convolutions are convolutions too, so they come first.
_RULES: Sequence[tuple[tuple[type[nn.Module], ...], Callable[[nn.Module, str], Fans | None]]] = (
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((_ConvTransposed,), _conv_transposed),
    ((_Conv,), _conv),
    ((nn.Embedding,), _embedding),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((nn.MultiheadAttention,), _attention),
    (NORMS, _norm),
)


def fans_of_layout(layout: Layout) -> Fans:
    """The fans of a layer of stride 1 with this layout: I·k and O·k.

    Example:
        >>> fans_of_layout(layout_of_axes((4, 3, 5))).forward
        15.0
    """
    taps = math.prod(layout.taps_shape)
    return Fans(forward=float(layout.inputs * taps), backward=float(layout.outputs * taps), layout=layout)


def plain_name(module: nn.Module, name: str) -> str:
    """The attribute behind the pieces that weight_norm, spectral_norm and pruning hooks register."""
    for suffix in ("_v", "_orig"):
        base = name.removesuffix(suffix)
        if base != name and isinstance(getattr(module, base, None), Tensor):
            return base
    return name


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the parameter, and the parameter's own name."""
    owner, path = module, name.split(".")
    for part in path[:-1]:
        child = owner._modules.get(part)
        if child is None:
            break
        owner = child
    else:
        parametrised = parametrize.is_parametrized(owner, path[-1])
        if parametrised or isinstance(getattr(owner, path[-1], None), Tensor):
            return owner, path[-1]
    known = [known for known, _ in module.named_parameters()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:8]) or 'no parameters'}"
    raise NotFoundError(f"{type(module).__name__} has no parameter {name!r}: {hint}")
