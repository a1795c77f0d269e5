"""What a recipe is: a function from the roles of a model's parameters to their distributions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

from isometry.errors import InvalidValueError
from isometry.flow.roles import Role, Roles
from isometry.init.structured import Kind as Family
from isometry.moments.rules.base import Value
from isometry.sampling import Constant, Distribution, Normal

Objective = Literal["forward", "backward", "balanced"]
OBJECTIVES = ("forward", "backward", "balanced")


@dataclass(frozen=True)
class Choice:
    """What a recipe decides for one parameter.

    Attributes:
        law: The distribution; None: the parameter is kept as it is.
        reason: Why, in one sentence.
        rate: Learning-rate multiplier.
        marks: Short words that the plan shows, such as "measured".
    """

    law: Distribution | None
    reason: str
    rate: float = 1.0
    marks: tuple[str, ...] = ()


@dataclass
class Subject:
    """What a recipe is given.

    Attributes:
        model: The model, for names and modules; never run and never written.
        roles: The roles of its parameters, with the graph and the residual streams.
        source: What the user gave: the model or the function that builds it.
        inputs: What it is fed.
        objective: What the weights' scale should keep.
        family: The distribution asked for; None: the recipe's own.
        options: The recipe's own options, by name.
        seed: Key of laws that several parameters share.
        notes: What the plan should tell beside its rows; recipes add to it.
        settled: Choices that no recipe changes: of parameters that are not trained, see `recipes.given`.
        constructed: The records of the parameters as constructed, by name.
    """

    model: nn.Module
    roles: Roles
    source: nn.Module | Callable[[], nn.Module]
    inputs: object
    objective: Objective = "forward"
    family: Family | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    settled: Mapping[str, Choice] = field(default_factory=dict)
    constructed: Mapping[str, Value] = field(default_factory=dict)

    def weights(self) -> list[Role]:
        """Return the weights of linear maps, in order of execution."""
        found = [r for r in self.roles.by_name.values() if r.kind == "weight"]
        return sorted(found, key=lambda r: r.uses[0].node.index)

    def option(self, name: str, default: Any) -> Any:
        """Return one of the recipe's own options."""
        return self.options.get(name, default)


class Rule(Protocol):
    """The function of a recipe."""

    def __call__(self, subject: Subject) -> Mapping[str, Choice]:
        """Return the choices by parameter; what it leaves out gets `neutral`."""


@dataclass(frozen=True)
class Recipe:
    """A recipe by name.

    Attributes:
        name: Its name, as in `isometry.plan(..., recipe=name)`.
        rule: Its function.
        source: Author, year and place of the publication.
        options: The names of its own options.
    """

    name: str
    rule: Rule
    source: str
    options: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first sentence of its function's docstring."""
        return (self.rule.__doc__ or "").strip().split("\n")[0]


RECIPES: dict[str, Recipe] = {}


def recipe(name: str, *, source: str, options: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Register a recipe.

    Args:
        name: Its name.
        source: Author, year and place of the publication.
        options: The names of its own options.

    Returns:
        A decorator that hands the function back as it is.
    """

    def register(rule: Rule) -> Rule:
        if name in RECIPES:
            raise InvalidValueError(f"two recipes are named {name!r}")
        RECIPES[name] = Recipe(name, rule, source, options)
        return rule

    return register


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        InvalidValueError: There is none; the message names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidValueError(f"unknown recipe {name!r}: {hint}there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def neutral(role: Role) -> Choice:
    """Return the choice for what is no weight: what leaves the signal as it is.

    Biases 0, scales their neutral value, tables and positions N(0, 1), slopes and unknown ones kept.

    Args:
        role: The parameter's role.

    Returns:
        The choice.
    """
    if role.kind == "bias":
        return Choice(Constant(0.0), "a bias starts at zero")
    if role.kind == "scale":
        return Choice(Constant(role.neutral), "a scale starts neutral")
    if role.kind in ("embedding", "position", "token"):
        article = "an" if role.kind == "embedding" else "a"
        return Choice(Normal(1.0), f"{article} {role.kind} is a row of unit entries")
    if role.kind == "slope":
        return Choice(Constant(0.25), "torch's own slope of a PReLU")
    if role.kind == "unused":
        return Choice(None, "no signal meets it with these inputs: kept", marks=("unused",))
    return Choice(None, "used in a way of its own: kept as constructed", marks=("kept",))
