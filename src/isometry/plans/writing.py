"""Write a plan into a model, and hand its learning rates to an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from isometry.errors import (
    InvalidTypeError,
    InvalidValueError,
    IsometryError,
    ModelError,
    NotFoundError,
    described,
)
from isometry.init.mirrored import Flattened, Rotation
from isometry.init.structured import check_finite
from isometry.initialisers.assignment import uses_of
from isometry.initialisers.finishing import finish
from isometry.plans.fitting import fits
from isometry.plans.row import Row
from isometry.sampling import Distribution, materialize_, write_
from isometry.sampling.places import Place, Places, nearest
from isometry.sampling.streams import stream_key, subkey


def places_of(rows: Sequence[Row], model: nn.Module) -> dict[str, Place]:
    """Find the place of every row in a model that has the parameters of the plan and no others.

    Args:
        rows: The rows of a plan.
        model: The model.

    Returns:
        The places by the rows' names.

    Raises:
        InvalidTypeError: `model` is no module.
        NotFoundError: A row without a parameter, or a parameter without a row.
        InvalidValueError: Another shape, or two rows for one parameter.
        ModelError: A lazy parameter.
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {described(model)}")
    places = Places(model)
    found: dict[str, Place] = {}
    planned: dict[str, str] = {}
    for row in rows:
        try:
            place = places.find(row.name)
        except NotFoundError as error:
            raise NotFoundError(f"{error}; the plan has a row for it: plan this model anew") from None
        for part, parameter in place.parameters.items():
            if part in planned:
                raise InvalidValueError(
                    f"{planned[part]!r} and {row.name!r} are one parameter of this model, but two rows of "
                    "the plan: plan this model anew"
                )
            if is_lazy(parameter):
                raise ModelError(
                    f"{part!r} is lazy and has no shape yet: run the model once on an example first"
                )
            planned[part] = row.name
        shape = tuple(place.like.shape)
        if shape != row.shape:
            raise InvalidValueError(f"{row.name!r} is planned with shape {row.shape}, the model has {shape}")
        found[row.name] = place
    missing = [name for name in places.parameters if name not in planned]
    if missing:
        shown = ", ".join(map(repr, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise NotFoundError(
            f"the plan has no row for {shown}{nearest(missing[0], found)}: plan this model anew"
        )
    return found


def write_rows_(
    rows: Sequence[Row],
    model: nn.Module,
    *,
    seed: int,
    device: torch.device | str | None,
    build: Callable[[], nn.Module] | None,
) -> None:
    """Give a model's parameters the values of a plan; see `Plan.apply_`."""
    places = places_of(rows, model)
    _check_drawable(rows)
    laws = {row.name: seeded(row.law, seed) for row in rows if row.law is not None}
    kept = [row.name for row in rows if row.law is None]
    names = {places[name].name for name in laws}
    found = Places(model)
    written = [use for use, _ in uses_of(model) if found.find(use.name).name in names]
    end = partial(finish, model, written, lambda _: True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        materialize_(model, laws, device=device, seed=seed, build=build, keep=kept, finish=end)
        return
    if device is not None:
        raise InvalidValueError(
            f"device={str(device)!r} is for models on the meta device, and this one has memory: move it with "
            "model.to(...)"
        )
    write_(model, laws, seed=seed, keep=kept, finish=end)


def _check_drawable(rows: Sequence[Row]) -> None:
    """Raise before the first write where a law cannot be drawn in its shape."""
    tried = set()
    for row in rows:
        if row.law is None or (row.law, row.shape) in tried:
            continue
        tried.add((row.law, row.shape))
        try:
            if not fits(row.law, row.shape):
                row.law.draw(row.shape, torch.Generator())  # type: ignore[attr-defined]
        except IsometryError as error:
            raise InvalidValueError(f"the law of {row.name!r} cannot be drawn: {error}") from error


def seeded(law: Distribution, seed: int) -> Distribution:
    """Return a law whose rotations depend on the seed: other matrices, still shared between neighbours.

    Raises:
        InvalidTypeError: `seed` is no integer.

    Example:
        >>> from isometry.init.mirrored import Mirrored
        >>> law = Mirrored(1.0, source=Rotation(7, 4, 2), target=Rotation(8, 4, 2))
        >>> seeded(law, 1).source == seeded(law, 2).source
        False
    """
    made = _with_key(law, stream_key(seed, "rotations"))
    assert isinstance(made, Distribution)
    return made


def _with_key(value: object, key: bytes) -> object:
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed: dict[str, object] = {}
    for field in fields(value):
        before = getattr(value, field.name)
        after = _with_key(before, key)
        if after is not before:
            changed[field.name] = after
    if isinstance(value, Rotation | Flattened):
        changed["key"] = int.from_bytes(subkey(key, str(value.key))[:8], "little") >> 1
    return replace(value, **changed) if changed else value


def groups_of(
    rows: Sequence[Row], model: nn.Module, lr: float, weight_decay: float, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Parameter groups by learning rate; see `Plan.parameter_groups`."""
    check_finite("lr", lr)
    if "params" in options:
        raise InvalidValueError("params is what the groups hold: leave it out")
    places = places_of(rows, model)
    groups: dict[float, list[nn.Parameter]] = {}
    for row in rows:
        trained = [p for p in places[row.name].parameters.values() if p.requires_grad]
        if trained:
            groups.setdefault(row.rate, []).extend(trained)
    return [
        {"params": parameters, "lr": lr * rate, "weight_decay": weight_decay, **options}
        for rate, parameters in groups.items()
    ]
