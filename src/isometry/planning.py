"""Plan an initialisation: read a model's roles, let a recipe decide, write it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from torch import nn

from isometry.errors import InvalidValueError
from isometry.flow.tracing import study
from isometry.init.structured import Kind as Family
from isometry.recipes.base import OBJECTIVES, Choice, Objective, Subject, find_recipe, neutral


def choices(
    model: nn.Module | Callable[[], nn.Module],
    inputs: object,
    *,
    recipe: str = "auto",
    objective: Objective = "forward",
    distribution: Family | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Subject, dict[str, Choice]]:
    """Decide what every parameter of a model is drawn from.

    Args:
        model: The model, or the function that builds it.
        inputs: In any of the forms of `isometry.inputs.batches`.
        recipe: Name of the recipe.
        objective: What the weights' scale keeps.
        distribution: "normal", "uniform", "truncated_normal" or "orthogonal"; None: the recipe's own.
        seed: Key of laws that several parameters share.
        **options: The recipe's own options.

    Returns:
        What the recipe was given, and its choice for every parameter.

    Raises:
        InvalidValueError: An unknown recipe, objective, distribution or option.
        The errors of `isometry.predict`.
    """
    found = find_recipe(recipe)
    if objective not in OBJECTIVES:
        raise InvalidValueError(
            f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}"
        )
    if distribution is not None and distribution not in get_args(Family):
        known = ", ".join(map(repr, get_args(Family)))
        raise InvalidValueError(f"distribution must be one of {known} or None, got {distribution!r}")
    for name in options:
        if name not in found.options:
            has = f"it has {', '.join(found.options)}" if found.options else "it has none"
            raise InvalidValueError(f"recipe {recipe!r} has no option {name!r}: {has}")
    studied = study(model, inputs)
    subject = Subject(
        model=studied.stage.model,
        roles=studied.roles,
        source=model,
        inputs=inputs,
        objective=objective,
        family=distribution,
        options=options,
        seed=seed,
    )
    subject.notes += [f"{name} has no values: taken as {value}" for name, value in studied.assumed.items()]
    decided = dict(found.rule(subject))
    return subject, {
        role.name: decided.get(role.name) or neutral(role) for role in studied.roles.by_name.values()
    }
