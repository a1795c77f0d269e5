"""Assumptions of a prediction that a model can be seen to violate, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from isometry.moments import record as rec
from isometry.moments.record import Moments
from isometry.moments.rules.base import Unknown, Value

NARROW = 16  # a sum of fewer terms is visibly not normal


def violations(
    model: nn.Module, values: Mapping[str, Value], calls: Iterable[tuple[str, int]]
) -> tuple[str, ...]:
    """Return a sentence per violated assumption that can be seen, with its consequence.

    Args:
        model: The model.
        values: The records of its parameters by name.
        calls: The module calls of its forward pass, as (name, call).

    Returns:
        The sentences.
    """
    found = [
        _uninitialised(values),
        _cloned(model, values),
        _tied(model),
        _again(model, calls),
        _narrow(model),
    ]
    return tuple(line for line in found if line)


def _uninitialised(values: Mapping[str, Value]) -> str:
    names = [name for name, value in values.items() if isinstance(value, Unknown)]
    if not names:
        return ""
    return f"assumption: no initialiser was seen for {few(names)}; what depends on them is unknown"


def _cloned(model: nn.Module, values: Mapping[str, Value]) -> str:
    """Layers that begin with the same values, as copies of one module do."""
    groups: dict[object, list[str]] = {}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        value = values.get(name)
        if isinstance(value, Moments) and sum(n > 1 for n in parameter.shape) > 1 and _drawn(value):
            groups.setdefault(_identity(parameter, value), []).append(name)
    cloned = [names for names in groups.values() if len(names) > 1]
    if not cloned:
        return ""
    return (
        f"assumption: identical values in {few(cloned[0])}"
        + (f" and in {len(cloned) - 1} more groups" if len(cloned) > 1 else "")
        + "; what their layers have in common is followed through matrix products, convolutions, attention, "
        "norms, sums and gates; beyond them each is taken as new, independent weights"
    )


def _drawn(value: Moments) -> bool:
    """Whether entries seem to be independent draws: a pattern, as of decays, is the same by design."""
    square, axes = float(value.square.max()), value.axes
    pairs = (rec.average_differ(value.table, axes, (k,)) for k, axis in enumerate(axes) if sum(axis) > 1)
    mean = rec.average(value.mean, axes) ** 2
    return float(value.variance.max()) > 0 and all(abs(p - mean) <= 1e-6 * square for p in pairs)


def _identity(parameter: Tensor, value: Moments) -> object:
    """What two parameters share if they hold the same values: numbers, or on meta their latent."""
    if parameter.is_meta:
        return tuple(f.key for term in value.terms for f in term.factors)
    values = parameter.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    sample = values.reshape(-1)[:64].to("cpu", torch.float64)
    return (tuple(parameter.shape), float(values.double().sum()), tuple(sample.tolist()))


def _tied(model: nn.Module) -> str:
    """Parameters that several modules have; a module with several names is one, and tied to nothing."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append(leaf)
    tied = [" = ".join(group) for group in names.values() if len(group) > 1]
    if not tied:
        return ""
    return (
        f"assumption: tied parameters ({few(tied)}); their uses are taken as independent, so signals that "
        "meet the same weights twice are off"
    )


def _again(model: nn.Module, calls: Iterable[tuple[str, int]]) -> str:
    owners = dict(model.named_modules())
    names = [
        name
        for name, call in calls
        if call == 1 and name in owners and next(owners[name].parameters(), None) is not None
    ]
    if not names:
        return ""
    return (
        f"assumption: {few(names)} used more than once in a pass; what the uses have in common is followed "
        "through matrix products, convolutions, attention, norms, sums and gates; beyond them each use is "
        "taken as new, independent weights"
    )


def _narrow(model: nn.Module) -> str:
    names = [name for name, p in model.named_parameters() if p.dim() > 1 and 1 < p.shape[1:].numel() < NARROW]
    if not names:
        return ""
    return (
        f"assumption: sums of fewer than {NARROW} terms at {few(names)}; they are not quite normal, and a "
        "single draw scatters widely"
    )


def few(names: list[str]) -> str:
    """Return at most three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
