"""Set a plan beside another one, or beside the weights that a model has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isometry.errors import ModelError, NotFoundError
from isometry.initialisers.assignment import uses_of
from isometry.initialisers.finishing import padding_rows
from isometry.parametrised import weight_norm_hooks
from isometry.plans.difference import Difference, PlanDiff, Value
from isometry.plans.row import Row
from isometry.plans.sizes import Size, size_of
from isometry.plans.tabling import law_words, shape_words
from isometry.sampling.places import Place, Places
from isometry.sampling.shards import is_dtensor
from isometry.statistics import Pool, reduce_entries

_SIGMAS = 5.0
_ROUNDING = 1e-5  # relative: matrices orthogonalised in float32


def against_rows(rows: Sequence[Row], others: Sequence[Row]) -> PlanDiff:
    """Compare two plans row by row, in the order of the first."""
    theirs = {row.name: row for row in others}
    ours = {row.name for row in rows}
    found: list[Difference] = []
    for row in rows:
        other = theirs.get(row.name)
        if other is None:
            found.append(Difference(row.name, "row", law_words(row.law), None, shape=row.shape))
            continue
        pairs: dict[str, tuple[Value, Value]] = {
            "shape": (shape_words(row.shape), shape_words(other.shape)),
            "role": (row.role, other.role),
            "law": (law_words(row.law), law_words(other.law)),
            "std": (row.std, other.std),
            "rate": (row.rate, other.rate),
        }
        if row.law != other.law and pairs["law"][0] == pairs["law"][1] and row.std == other.std:
            pairs["law"] = (repr(row.law), repr(other.law))  # they differ in a detail
        for field, (planned, other_planned) in pairs.items():
            if planned != other_planned:
                found.append(Difference(row.name, field, planned, other_planned, shape=row.shape))
    new = [row for row in others if row.name not in ours]
    found += [Difference(row.name, "row", None, law_words(row.law), shape=row.shape) for row in new]
    return PlanDiff(tuple(found), "plan")


def against_model(rows: Sequence[Row], model: nn.Module) -> PlanDiff:
    """Compare planned means and deviations with those of a model's weights."""
    places = Places(model)
    padded = {places.find(use.name).name: row for use, row in padding_rows(use for use, _ in uses_of(model))}
    found: list[Difference] = []
    seen: set[str] = set()
    for row in rows:
        try:
            place = places.find(row.name)
        except NotFoundError:
            found.append(Difference(row.name, "row", law_words(row.law), None, shape=row.shape))
            continue
        seen |= set(place.parameters)
        if row.law is None:
            continue
        value = _present(place)
        shape = tuple(value.shape)
        if shape != row.shape:
            words = shape_words(row.shape), shape_words(shape)
            found.append(Difference(row.name, "shape", *words, shape=row.shape))
            continue
        testable = place.owner is None or place.leaf in weight_norm_hooks(place.owner)
        found += _compare(row, value, padded.get(place.name), testable=testable)
    rest = [name for name in places.parameters if name not in seen]
    shapes = {name: tuple(places.parameters[name].shape) for name in rest}
    found += [Difference(name, "row", None, "parameter", shape=shape) for name, shape in shapes.items()]
    return PlanDiff(tuple(found), "model")


def _present(place: Place) -> Tensor:
    """The values of a parameter or of a parametrised weight."""
    for name, parameter in place.parameters.items():
        if is_lazy(parameter) or parameter.is_meta:
            state = "lazy" if is_lazy(parameter) else "on the meta device"
            raise ModelError(f"{name!r} is {state} and has no values to compare with the plan")
    owner = place.owner
    hook = None if owner is None else weight_norm_hooks(owner).get(place.leaf)
    with torch.no_grad():
        value = place.like if owner is None or hook is None else hook.compute_weight(owner)
    assert isinstance(value, Tensor)
    return value.detach()


def _compare(row: Row, value: Tensor, padding: int | None, *, testable: bool) -> list[Difference]:
    """Mean and deviation, planned and present, with the verdict of the test."""
    assert row.law is not None
    size = size_of(row.law, row.shape)
    if is_dtensor(value):
        value = value.full_tensor()  # type: ignore[attr-defined]
    if padding is not None:
        value = torch.cat([value[:padding], value[padding + 1 :]])
    pool = Pool()
    pool.add(reduce_entries(value).tolist())
    stats = pool.stats()
    eps = torch.finfo(value.dtype).eps
    unlike = (False, False)
    if size is not None and testable and stats.mean is not None and stats.std is not None:
        unlike = misfits(size, stats.mean, stats.std, value.numel(), eps)
    planned: tuple[Value, Value] = (None, None) if size is None else (size.mean, size.std)
    return [
        Difference(row.name, "mean", planned[0], stats.mean, unlike[0], row.shape),
        Difference(row.name, "std", planned[1], stats.std, unlike[1], row.shape),
    ]


def misfits(size: Size, mean: float, std: float, count: int, eps: float = 0.0) -> tuple[bool, bool]:
    """Whether mean and deviation of a sample are too far from those of a law.

    The mean of n entries has standard deviation σ·√(c/n), their mean square deviation from the planned mean
    σ²·√((κ − 1)·c/n), where c entries share one draw; five times that is allowed (asymptotic).

    Args:
        size: Of the law.
        mean: Mean of the sample.
        std: Its standard deviation.
        count: Its number of entries n.
        eps: Rounding of the sample's dtype, relative.

    Returns:
        Whether the mean, and whether the deviation, does not fit.

    Example:
        >>> misfits(Size(0.0, 1.0), 0.2, 1.0, 1000)
        (True, False)
    """
    share = size.copies / max(count, 1)
    rounding = eps + _ROUNDING
    allowed = _SIGMAS * size.std * math.sqrt(share) + rounding * (abs(size.mean) + size.std)
    spread = _SIGMAS * math.sqrt((size.kurtosis - 1) * share) / 2
    off = math.hypot(std, mean - size.mean) - size.std
    wide = size.std * spread + rounding * (abs(size.mean) + size.std)
    # The opposite of "fits", so that nan does not fit.
    return not abs(mean - size.mean) <= allowed, not abs(off) <= wide
