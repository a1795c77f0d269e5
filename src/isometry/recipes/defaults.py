"""What torch's own modules draw when they are constructed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from isometry.fans import plain_name
from isometry.flow.roles import Role
from isometry.parametrised import shape_of
from isometry.recipes.base import Choice, Subject, recipe
from isometry.sampling import Constant, Distribution, Normal, Uniform


@recipe("torch", source="torch.nn: reset_parameters of each module, as of torch 2")
def torch_defaults(subject: Subject) -> Mapping[str, Choice]:
    """Every torch module's parameters as its own constructor draws them; others are kept."""
    glorot = {
        id(module)
        for parent in subject.model.modules()
        if isinstance(parent, nn.Transformer)
        for module in parent.modules()
    }
    found = {}
    for role in subject.roles.by_name.values():
        owner = role.owner
        if owner is not None and id(owner) in glorot and len(role.shape) > 1:
            law: Distribution | None = _xavier(role.shape)
            reason = "nn.Transformer draws all its matrices over again, Glorot uniform"
        else:
            law = _law(role)
            reason = f"{_class(owner)}'s own default"
        if law is None:
            reason = "no module of torch's holds it: kept as constructed"
            found[role.name] = Choice(None, reason, marks=("kept",))
        else:
            found[role.name] = Choice(law, reason)
    return found


def _law(role: Role) -> Distribution | None:
    """Return what a parameter's module draws it from; None: it is not torch's, or has its own way."""
    module = role.owner
    if module is None or 0 in role.shape:
        return None
    name = plain_name(module, role.leaf)
    for kind, reset, rule in _RULES:
        if isinstance(module, kind):
            own = getattr(type(module), reset, None)
            return rule(module, name) if own is getattr(kind, reset) else None
    return None


def _class(module: nn.Module | None) -> str:
    """Return the name of the torch class that a module is."""
    kinds = (kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules"))
    return f"nn.{next(kinds, nn.Module).__name__}"


def _within(fan: float) -> Distribution:
    """U(-1/√fan, 1/√fan): what kaiming_uniform_ with a = √5 comes to."""
    bound = 1 / math.sqrt(fan) if fan else 0.0
    return Uniform(-bound, bound)


def _xavier(shape: tuple[int, ...]) -> Distribution:
    taps = math.prod(shape[2:])
    bound = math.sqrt(6 / ((shape[0] + shape[1]) * taps))
    return Uniform(-bound, bound)


def _linear(module: Any, name: str) -> Distribution | None:
    if name == "bias" and isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return Constant(0.0)  # the output projection of nn.MultiheadAttention
    return _within(module.in_features) if name in ("weight", "bias") else None


def _bilinear(module: Any, name: str) -> Distribution | None:
    return _within(module.in1_features) if name in ("weight", "bias") else None


def _convolution(module: Any, name: str) -> Distribution | None:
    # torch takes the second axis for the inputs, of a transposed convolution too.
    return _within(math.prod(shape_of(module, "weight")[1:])) if name in ("weight", "bias") else None


def _recurrent(module: Any, name: str) -> Distribution | None:
    return _within(module.hidden_size) if name.startswith(("weight_", "bias_")) else None


def _table(module: Any, name: str) -> Distribution | None:
    return Normal(1.0) if name == "weight" else None


def _norm(module: Any, name: str) -> Distribution | None:
    return {"weight": Constant(1.0), "bias": Constant(0.0)}.get(name)


def _slope(module: Any, name: str) -> Distribution | None:
    return Constant(float(module.init)) if name == "weight" else None


def _attention(module: Any, name: str) -> Distribution | None:
    if name == "in_proj_bias":
        return Constant(0.0)
    if name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return _xavier(shape_of(module, name))
    if name in ("bias_k", "bias_v"):  # shape (1, 1, d): both fans are d
        return Normal(1 / math.sqrt(module.embed_dim))
    return None


_Rule = tuple[type[nn.Module], str, Callable[[Any, str], Distribution | None]]
_RULES: tuple[_Rule, ...] = (
    (nn.Linear, "reset_parameters", _linear),
    (nn.Bilinear, "reset_parameters", _bilinear),
    (nn.modules.conv._ConvNd, "reset_parameters", _convolution),
    (nn.RNNBase, "reset_parameters", _recurrent),
    (nn.RNNCellBase, "reset_parameters", _recurrent),
    (nn.Embedding, "reset_parameters", _table),
    (nn.EmbeddingBag, "reset_parameters", _table),
    (nn.modules.batchnorm._NormBase, "reset_parameters", _norm),
    (nn.LayerNorm, "reset_parameters", _norm),
    (nn.GroupNorm, "reset_parameters", _norm),
    (nn.RMSNorm, "reset_parameters", _norm),
    (nn.PReLU, "reset_parameters", _slope),
    (nn.MultiheadAttention, "_reset_parameters", _attention),
)
