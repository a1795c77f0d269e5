"""Plan an initialisation: read a model's roles, let a recipe decide, write it down."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import nn

import isometry.recipes  # noqa: F401  (registers the recipes)
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryWarning, described
from isometry.flow.tracing import study
from isometry.init.structured import Kind as Family
from isometry.plans import Plan, Row, scaled, std_of
from isometry.plans.overriding import Override
from isometry.recipes.base import OBJECTIVES, Choice, Objective, Subject, find_recipe, neutral
from isometry.recipes.given import frozen_copies, given_choices
from isometry.sampling.streams import stream_key
from isometry.solving.calibration import calibrated
from isometry.solving.passes import Problem

MARKS = {
    "measured": "solved on real values, because a record is unknown there",
    "unsolved": "no signal could be predicted or measured there: scaled by its fan alone",
    "unused": "no signal meets it with these inputs",
    "kept": "left as constructed; the reason says why",
    "frozen": "not trained (requires_grad is False), so kept; `overrides` give it a law",
    "calibrated": "rescaled by what one draw gave on the batch",
}


def plan(
    model: nn.Module | Callable[[], nn.Module],
    inputs: object,
    *,
    recipe: str = "auto",
    objective: Objective = "forward",
    distribution: Family | None = None,
    overrides: Mapping[str, Override] | None = None,
    calibrate: bool = False,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Decide what every parameter of a model is drawn from; touch nothing.

    The model's forward code is run once on meta tensors to see what each parameter is for (see docs/flow.md):
    which activation or norm a weight feeds, which residual branch it ends, query, key, gate or head. A recipe
    then gives each a distribution and a reason; what is not trained is kept. "auto" carries second moments
    along the code and solves each weight's standard deviation from the signal that arrives there: σ = aim/RMS
    at σ = 1, exact where the prediction is.

    Args:
        model: The model, with values or on meta, or the function that builds it. Never written.
        inputs: A tensor, a tuple, a dict, a loader (its first batch is used) or a spec such as `"32x1024"`.
        recipe: A name from `isometry recipes` or docs/recipes.md.
        objective: "forward" keeps the size of signals, "backward" that of gradients, "balanced" the
            geometric mean of both; recipes from the literature have their own.
        distribution: "normal", "uniform", "truncated_normal" or "orthogonal"; None: the recipe's own.
        overrides: Laws, standard deviations or None (keep) by name pattern or `"role:<words>"`.
        calibrate: Rescale every weight by what one draw with `seed` gives on the inputs, so that the RMS
            behind it is the predicted one to rounding. Needs a model with values, or a builder.
        seed: Of what several parameters share and of calibration; pass the same to `apply_`.
        **options: The recipe's own options.

    Returns:
        The plan: a row per parameter; `print` it, `apply_` it.

    Raises:
        InvalidValueError: An unknown recipe, objective, distribution or option.
        NotFoundError: A pattern of `overrides` matches nothing.
        The errors of `isometry.predict`.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 10))
        >>> planned = plan(model, "32x64")
        >>> round(planned["0.weight"].std, 4), planned["3.weight"].role
        (0.125, 'head')
        >>> _ = planned.apply_(model, seed=0)
    """
    subject, decided = _choices(model, inputs, recipe, objective, distribution, seed, options)
    rows = tuple(_row(subject, name, choice) for name, choice in decided.items())
    marks = {mark for row in rows for mark in row.marks}
    notes = (*subject.notes, *(f"{mark}: {MARKS[mark]}" for mark in MARKS if mark in marks))
    made = Plan(rows, recipe, objective, notes)
    if overrides:
        made = made.override(overrides)
    return _calibrated(subject, made) if calibrate else made


def init_(
    model: nn.Module,
    inputs: object,
    *,
    recipe: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Plan a model's initial weights and write them: `plan(...)` and `plan.apply_(model)` in one line.

    Args:
        model: The model, with memory; of one on meta make the `plan` and `apply_` it with `build=`.
        inputs: As in `plan`.
        recipe: As in `plan`.
        seed: With a parameter's canonical name it determines the values; torch's random state is not used.
        **options: The other arguments of `plan`, and the recipe's own options.

    Returns:
        The plan that was applied.

    Raises:
        The errors of `plan` and `Plan.apply_`; the model is then as before.

    Warns:
        IsometryWarning: Frozen parameters had the values of trained ones, which were drawn anew.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 10))
        >>> print(init_(model, "32x64", seed=0)["2.weight"].role)
        head
    """
    if not isinstance(model, nn.Module):
        hint = "; of a function that builds one make the plan, and apply it to what the function returns"
        raise InvalidTypeError(
            f"model must be a torch.nn.Module, got {described(model)}{hint if callable(model) else ''}"
        )
    made = plan(model, inputs, recipe=recipe, seed=seed, **options)
    made.apply_(model, seed=seed)
    for note in made.notes:
        if note.startswith("copies:"):
            warnings.warn(note.removeprefix("copies: "), IsometryWarning, stacklevel=2)
    return made


def _choices(
    model: nn.Module | Callable[[], nn.Module],
    inputs: object,
    recipe: str,
    objective: Objective,
    distribution: Family | None,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[Subject, dict[str, Choice]]:
    """Let the recipe decide about every parameter."""
    found = find_recipe(recipe)
    if objective not in OBJECTIVES:
        known = ", ".join(map(repr, OBJECTIVES))
        raise InvalidValueError(f"objective must be one of {known}, got {objective!r}")
    if distribution is not None and distribution not in get_args(Family):
        known = ", ".join(map(repr, get_args(Family)))
        raise InvalidValueError(f"distribution must be one of {known} or None, got {distribution!r}")
    for name in options:
        if name not in found.options:
            has = f"it has {', '.join(found.options)}" if found.options else "it has none"
            raise InvalidValueError(f"recipe {recipe!r} has no option {name!r}: {has}")
    stream_key(seed, "")  # refuses a seed that is none
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
        constructed=studied.stage.values,
    )
    copies = frozen_copies(subject.model)
    subject.settled = given_choices(studied.roles, studied.stage.values, copies)
    subject.notes += _told_of_copies(copies)
    subject.notes += [f"{name} has no values: taken as {value}" for name, value in studied.assumed.items()]
    decided = dict(found.rule(subject)) | dict(subject.settled)
    roles = studied.roles.by_name.values()
    return subject, {role.name: decided.get(role.name) or neutral(role) for role in roles}


def _told_of_copies(copies: Mapping[str, str]) -> list[str]:
    """Return what the user must do about frozen copies of weights that are drawn anew."""
    if not copies:
        return []
    (copy, original), *others = copies.items()
    more = f" (and {len(others)} more)" if others else ""
    return [
        f"copies: {copy} is frozen and has the values of {original}{more}, which are drawn anew: copy them "
        "again after writing"
    ]


def _row(subject: Subject, name: str, choice: Choice) -> Row:
    role = subject.roles[name]
    fans = None if role.fans is None else (role.fans.forward, role.fans.backward)
    return Row(name, role.shape, role.words, choice.law, choice.reason, fans, choice.rate, choice.marks)


def _calibrated(subject: Subject, made: Plan) -> Plan:
    """Return the plan with every law multiplied by what a measurement asks for."""
    laws = {row.name: (row.law, std_of(row.law, row.shape) or 0.0) for row in made if row.law is not None}
    problem = Problem(subject.source, subject.inputs, subject.roles, subject.seed)
    found = calibrated(problem, laws)
    rows = tuple(
        replace(row, law=scaled(row.law, found.factors[row.name]), marks=_once(*row.marks, "calibrated"))
        if row.law is not None and row.name in found.factors
        else row
        for row in made
    )
    note = f"calibrated: {MARKS['calibrated']}, with seed {subject.seed}"
    others = (told for told in made.notes if not told.startswith("calibrated:"))
    return replace(made, rows=rows, notes=(*others, note))


def _once(*marks: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(marks))
