"""The initialisations that a comparison sets side by side, by name or of one's own.

| Name | Weights |
|---|---|
| standard_normal | N(0, 1), biases 0: what `torch.randn` gives |
| torch | as the model was built: for most layers uniform with Var(W)·fan_in = 1/3 |
| kaiming | normal, std = gain / √fan_in with the activation's own gain |
| xavier | normal, std = √(2 / (fan_in + fan_out)), gain 1 |
| orthogonal | orthogonal matrices times the activation's own gain |
| mirrored | orthogonal in mirrored blocks, where the activation allows it |
| wrong_gain | like kaiming, with the gain of another activation |
| auto | what `isometry.init_` writes, planned on the first training batch |
| recipe:NAME | the same with another recipe, such as recipe:deepnorm |
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import Tensor, nn

from isometry.activations import resolve
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError, NotFoundError
from isometry.gain import gain, mirrored_slope
from isometry.initialisers import Kaiming, Mirrored, Orthogonal, StandardNormal, Xavier
from isometry.planning import init_
from isometry.recipes.base import find_recipe

StartName = Literal[
    "standard_normal", "torch", "kaiming", "xavier", "orthogonal", "mirrored", "wrong_gain", "auto"
]
Initialise = Callable[[nn.Module], object]
Start = str | Initialise | tuple[str, Initialise]
Activation = str | nn.Module | Callable[[Tensor], Tensor]

RECIPE = "recipe:"  # what begins the name of a start that is any other recipe

# Modules of torch.nn.modules.activation that are no pointwise activation of a hidden layer.
_NOT_POINTWISE = (nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax, nn.GLU)


@dataclass(frozen=True, slots=True)
class Contender:
    """An initialisation with a name.

    Args:
        name: what tables and plots call it.
        description: what it does, in a few words.
        initialise: `(model, seed)`; writes the model's parameters in place.
    """

    name: str
    description: str
    initialise: Callable[[nn.Module, int], object]


def contender(
    start: Start, activation: Callable[[], Activation], inputs: Callable[[int], object] | None = None
) -> Contender:
    """Make a contender of a name, a callable, or a pair of both.

    Args:
        start: one of the names above; a callable that initialises a model in place, such as
            `isometry.Kaiming(mode="fan_out")`; or `(name, callable)`.
        activation: returns the activation whose gain is meant; only called where one is needed.
        inputs: returns what the model is fed, by seed; only called by starts that plan.

    Returns:
        The contender.

    Raises:
        NotFoundError: no start has this name.
        InvalidValueError: no recipe has this name, or there are no inputs to plan on.
        InvalidTypeError: neither a name nor a callable nor a pair, or a class.
        InvalidValueError: mirrored blocks with an activation that has no mirrored slope.

    Example:
        >>> contender("kaiming", lambda: "relu").description
        "Kaiming with relu's gain 1.414"
        >>> contender(nn.Module.double, lambda: "relu").name
        'double'
    """
    if isinstance(start, str):
        if start == "auto" or start.startswith(RECIPE):
            return Contender(start, *_planned(start.removeprefix(RECIPE), inputs))
        if start not in _MAKE:
            near = get_close_matches(start, STARTS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = f"{', '.join(STARTS)}, {RECIPE}NAME"
            raise NotFoundError(f"no initialisation is called {start!r}{hint} (known: {known})")
        description, initialise = _MAKE[start](activation)
        return Contender(start, description, initialise)
    if isinstance(start, tuple) and len(start) == 2 and isinstance(start[0], str):
        name, initialise_own = start
    else:
        initialise_own = start
        name = getattr(start, "__name__", type(start).__name__)
    if not callable(initialise_own):
        raise InvalidTypeError(
            f"a start is a name, a callable that takes the model, or (name, callable); got {start!r}"
        )
    if isinstance(initialise_own, type):
        raise InvalidTypeError(
            f"the start {name!r} is a class; give an instance of it, or a function that takes the model"
        )
    return Contender(name, f"your own {name}", _guarded(name, initialise_own))


def _guarded(name: str, initialise: Initialise) -> Callable[[nn.Module, int], None]:
    """A start of the user's own, whose errors come with its name."""

    def run(model: nn.Module, seed: int) -> None:
        try:
            initialise(model)
        except IsometryError:
            raise
        except Exception as error:
            raise ModelError(f"the start {name!r} failed with {type(error).__name__}: {error}") from error

    return run


def activation_of(model: nn.Module) -> nn.Module:
    """Find the one activation of a model's hidden layers among its modules.

    Args:
        model: any model; activations called as functions cannot be seen.

    Returns:
        A module of the one kind there is.

    Raises:
        InvalidValueError: there is no activation module, or more than one kind of them.

    Example:
        >>> activation_of(nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 2)))
        LeakyReLU(negative_slope=0.2)
    """
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _NOT_POINTWISE):
            found.setdefault(resolve(module).name, module)
    if len(found) == 1:
        return next(iter(found.values()))
    seen = f"has several ({', '.join(found)})" if found else "has no activation module"
    raise InvalidValueError(
        f"{type(model).__name__} {seen}, so the gain is not clear: say which activation is meant, "
        f"such as 'relu' ('linear' for none)"
    )


def no_mirror(model: nn.Module, activation: Activation) -> str | None:
    """Say why a model cannot have mirrored weights.

    Args:
        model: any model; it is not changed.
        activation: a name, module or function.

    Returns:
        The reason; None where φ(x) − φ(−x) = c·x and the layers form a chain.

    Example:
        >>> no_mirror(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), "gelu") is None
        True
        >>> print(no_mirror(nn.Linear(3, 4), "tanh"))
        tanh has no mirrored slope: ...
    """
    try:
        mirrored_slope(activation)
        Mirrored(nonlinearity=activation)(copy.deepcopy(model))
    except (InvalidValueError, ModelError) as error:
        return str(error)
    return None


_Made = tuple[str, Callable[[nn.Module, int], object]]


def _standard_normal(activation: Callable[[], Activation]) -> _Made:
    return "N(0, 1) weights", lambda model, seed: StandardNormal(seed=seed)(model)


def _torch(activation: Callable[[], Activation]) -> _Made:
    return "as the model was built", lambda model, seed: None


def _kaiming(activation: Callable[[], Activation]) -> _Made:
    phi = activation()
    text = f"Kaiming with {resolve(phi).name}'s gain {gain(phi):.4g}"
    return text, lambda model, seed: Kaiming(nonlinearity=phi, seed=seed)(model)


def _wrong_gain(activation: Callable[[], Activation]) -> _Made:
    right = gain(activation())
    # relu's is the gain most often used where it does not belong; where it does, tanh's is.
    wrong = "tanh" if abs(right / gain("relu") - 1) < 0.05 else "relu"
    text = f"Kaiming with {wrong}'s gain {gain(wrong):.4g} for {resolve(activation()).name}"
    return text, lambda model, seed: Kaiming(nonlinearity=wrong, seed=seed)(model)


def _xavier(activation: Callable[[], Activation]) -> _Made:
    return "Xavier, gain 1", lambda model, seed: Xavier(seed=seed)(model)


def _orthogonal(activation: Callable[[], Activation]) -> _Made:
    phi = activation()
    own = gain(phi)
    return f"orthogonal times {own:.4g}", lambda model, seed: Orthogonal(gain=own, seed=seed)(model)


def _mirrored(activation: Callable[[], Activation]) -> _Made:
    phi = activation()
    slope = mirrored_slope(phi)
    text = f"mirrored orthogonal blocks, slope {slope:.4g}"
    return text, lambda model, seed: Mirrored(nonlinearity=phi, seed=seed)(model)


def _planned(recipe: str, inputs: Callable[[int], object] | None) -> _Made:
    found = find_recipe(recipe)
    if inputs is None:
        raise InvalidValueError(f"the start {recipe!r} plans on what the model is fed: give inputs")
    text = f"isometry.init_, recipe {found.name}"
    return text, lambda model, seed: init_(model, inputs(seed), recipe=found.name, seed=seed)


_MAKE: dict[str, Callable[[Callable[[], Activation]], _Made]] = {
    "standard_normal": _standard_normal,
    "torch": _torch,
    "kaiming": _kaiming,
    "xavier": _xavier,
    "orthogonal": _orthogonal,
    "mirrored": _mirrored,
    "wrong_gain": _wrong_gain,
}

STARTS: Sequence[str] = (*_MAKE, "auto")
WITH_GAIN = frozenset(
    ["kaiming", "orthogonal", "mirrored", "wrong_gain"]
)  # those that ask for the activation
