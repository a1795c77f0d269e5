"""What a model's author has settled: parameters that are not trained, numbers that the code sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isometry.flow.roles import Role, Roles
from isometry.init.structured import Gates
from isometry.moments import record as rec
from isometry.moments.concrete import Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import Value
from isometry.moments.rules.pointwise import as_moments
from isometry.names import canonical_name
from isometry.parametrised import invertible
from isometry.recipes.base import Choice
from isometry.sampling import Constant

_LEARNT = ("weight", "embedding")
# Functions of a square matrix as a whole.
_OF_MATRICES = frozenset(
    ["_linalg_slogdet", "_linalg_det", "linalg_inv_ex", "linalg_matrix_exp", "_linalg_solve_ex"]
)


def given_choices(roles: Roles, values: Mapping[str, Value], copies: Mapping[str, str]) -> dict[str, Choice]:
    """Return the choices that no recipe changes.

    A parameter that is not trained (`requires_grad` is False) is pretrained or fixed on purpose: it is kept.
    Beside weights that are kept, what was constructed as zero stays zero: the second factor of a low-rank
    adapter, the last map of a control branch. So training begins at what the kept weights compute. A weight
    that nothing can be assigned to, because its parametrisation has no inverse, is kept, too.

    Args:
        roles: The roles.
        values: The records of the parameters as constructed, by name.
        copies: The frozen parameters that only repeat trained ones, see `frozen_copies`.

    Returns:
        The choices by name.
    """
    closed = [role for role in roles.by_name.values() if role.owner and not invertible(role.owner, role.leaf)]
    reason = "its parametrisation has no right_inverse, so that nothing can be assigned to it: kept"
    held = {role.name: Choice(None, reason, marks=("kept",)) for role in closed}
    fixed = [role for role in roles.by_name.values() if not role.trainable]
    found = {
        role.name: Choice(None, "not trained (requires_grad is False): kept", marks=("frozen",))
        for role in fixed
    }
    if any(role.kind in _LEARNT and role.name not in copies for role in fixed):
        zeros = (role for role in roles.by_name.values() if role.trainable and _is_zero(role, values))
        reason = "zero as constructed: training begins at what the frozen weights compute"
        found |= {role.name: Choice(Constant(0.0), reason) for role in zeros}
    return held | found


def set_weights(roles: Roles, values: Mapping[str, Value]) -> dict[str, Choice]:
    """Return the choices for weights that the model's code set and that work as they are.

    A matrix whose determinant, inverse or exponential is taken is one step of a map that can be inverted: it
    is kept. A weight that begins at zero and makes gates, shifts or factors lets each begin neutral, while a
    signal goes on beside it. Where half of a model's weights are zero, their memory was only cleared.

    Args:
        roles: The roles.
        values: The records of the parameters as constructed, by name.

    Returns:
        The choices by name.
    """
    names = {index: name for name, index in roles.flow.parameters.items()}
    whole = {names[i] for node in roles.flow.nodes if node.op in _OF_MATRICES for i in node.parameters}
    reason = "its determinant, inverse or exponential is taken: kept as constructed"
    kept = {name: Choice(None, reason, marks=("kept",)) for name in whole if name in roles.by_name}
    weights = [role for role in roles.by_name.values() if role.kind == "weight"]
    zeros = [role for role in weights if _is_zero(role, values)]
    if 2 * len(zeros) >= len(weights):
        return kept
    neutral = (role for role in zeros if role.parts & {"gate", "gated"})
    reason = "zero as constructed: what it gates or shifts begins neutral"
    return kept | {role.name: Choice(Constant(0.0), reason) for role in neutral}


def chosen_bias(role: Role, parameter: Tensor | None, value: Value | None) -> Choice | None:
    """Return the choice for a bias that the model's code set: numbers other than zero, none of them random.

    A gate that begins almost closed, a forget gate that begins open, a head that begins at rare classes: they
    are the model's to say.

    Args:
        role: The bias.
        parameter: Itself, if the model has one of this name.
        value: Its record as constructed.

    Returns:
        The choice; None for a bias that is zero or random.
    """
    entries = _entries(role, parameter, value)
    if entries is None or not entries.any():
        return None
    levels = len(np.unique(entries))
    if levels > 1 and 8 * levels > len(entries):
        return None
    for count in range(1, 9):
        if len(entries) % count == 0:
            parts = entries.reshape(count, -1)
            if (parts == parts[:, :1]).all():
                values = tuple(map(float, parts[:, 0]))
                law = Gates(values) if count > 1 else Constant(values[0])
                return Choice(law, "a bias that the code sets")
    return Choice(None, "a bias that the code sets: kept as constructed", marks=("kept",))


def _entries(role: Role, parameter: Tensor | None, value: Value | None) -> np.ndarray[Any, Any] | None:
    """Return the entries of a vector as constructed; None where they are random or unknown."""
    if len(role.shape) != 1:
        return None
    if parameter is not None and not parameter.is_meta:
        return parameter.detach().double().cpu().numpy() if len(parameter) > 1 else None
    if not isinstance(value, Moments) or float(value.variance.max()) > 0.0:
        return None
    sizes = value.axes[0] if len(value.axes) == 1 and value.mean.size > 1 else (1,)
    return np.repeat(value.mean.reshape(-1), sizes if len(sizes) > 1 else role.shape[0])


def _is_zero(role: Role, values: Mapping[str, Value]) -> bool:
    """Return whether a weight or a factor on a signal begins at zero."""
    value = values.get(role.name)
    if role.kind not in ("weight", "scale") or not isinstance(value, Moments | Concrete):
        return False
    moments = as_moments(value)
    return bool(rec.average(moments.square, moments.axes) == 0.0)


def frozen_copies(model: nn.Module) -> dict[str, str]:
    """Return the frozen parameters that have the values of trained ones, as the network of a moving average.

    Args:
        model: The model; parameters on meta have no values to compare.

    Returns:
        The name of the trained parameter by that of its copy.

    Example:
        >>> online = nn.Linear(3, 2)
        >>> target = nn.Linear(3, 2).requires_grad_(False)
        >>> _ = target.load_state_dict(online.state_dict())
        >>> frozen_copies(nn.ModuleDict({"online": online, "target": target}))
        {'target.weight': 'online.weight', 'target.bias': 'online.bias'}
    """
    named = {canonical_name(name): p for name, p in model.named_parameters() if _varies(p)}
    trained: dict[tuple[object, ...], list[str]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            trained.setdefault(_key(parameter), []).append(name)
    found: dict[str, str] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            alike = [n for n in trained.get(_key(parameter), []) if torch.equal(named[n], parameter)]
            if alike:
                found[name] = alike[0]
    return found


def _varies(parameter: Tensor) -> bool:
    """Return whether a parameter has values by which a copy can be told."""
    if parameter.is_meta or nn.parameter.is_lazy(parameter) or parameter.numel() < 2:
        return False
    return bool((parameter.detach().reshape(-1) != parameter.detach().reshape(-1)[0]).any())


def _key(parameter: Tensor) -> tuple[object, ...]:
    first = parameter.detach().reshape(-1)[:8].tolist()
    return (tuple(parameter.shape), parameter.dtype, parameter.device, *first)
