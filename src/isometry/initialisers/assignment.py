"""Which parameters of a model an initialiser writes, which it keeps, and which nobody recognises.

A parameter that several modules share (tied weights, equal memory) is one slot with several uses.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.names import canonical_name
from isometry.parametrised import shape_of, weight_norm_hooks
from isometry.roles import Role, role_of
from isometry.sampling import Distribution

Selector = str | type[nn.Module]
T = TypeVar("T")


@dataclass(frozen=True)
class Use:
    """One module's use of a parameter."""

    name: str  # canonical, from the root
    leaf: str  # the owner's attribute
    owner: nn.Module
    path: tuple[tuple[str, nn.Module], ...]  # the modules from the root to the owner, with canonical names

    @property
    def role(self) -> Role | None:
        """What the owner uses the parameter for."""
        return role_of(self.owner, self.leaf)


@dataclass
class Slot:
    """One parameter, or one parametrised weight, with all its uses."""

    tensor: Tensor  # of a parametrised weight, the first parameter it is computed from
    uses: list[Use]

    @property
    def name(self) -> str:
        """The first name in registration order, as `named_parameters` gives it."""
        return self.uses[0].name

    @property
    def use(self) -> Use:
        """The use that decides: a linear map before an embedding that shares its weight, else the first."""
        return next((use for use in self.uses if use.role == "weight"), self.uses[0])

    def describe(self) -> str:
        """The slot in words for a message."""
        return f"{self.name!r} of {type(self.uses[0].owner).__name__}, shape {self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values to draw; a parametrised weight's own."""
        return shape_of(self.uses[0].owner, self.uses[0].leaf)


@dataclass(frozen=True)
class Assignment:
    """What an initialiser does with each parameter of a model.

    Attributes:
        distributions: What each parameter is drawn from, by canonical name.
        kept: Parameters left as they are on purpose, with the reason.
        unrecognised: Parameters left as they are because nobody knows their kind, with a description.
    """

    distributions: Mapping[str, Distribution]
    kept: Mapping[str, str] = field(default_factory=dict)
    unrecognised: Mapping[str, str] = field(default_factory=dict)


def slots_of(model: nn.Module) -> list[Slot]:
    """Every parameter of a model once, in registration order, with all its uses.

    Args:
        model: Any module.

    Returns:
        The slots. The pieces of a parametrised weight (weight_norm, spectral_norm, …) make one slot.

    Raises:
        ModelError: A lazy parameter, one on the meta device, or two that overlap in memory.

    Example:
        >>> tied = nn.Linear(3, 5, bias=False)
        >>> model = nn.Sequential(nn.Embedding(5, 3), tied)
        >>> tied.weight = model[0].weight
        >>> [[use.name for use in slot.uses] for slot in slots_of(model)]
        [['0.weight', '1.weight']]
    """
    found: dict[object, Slot] = {}
    for use, tensor in uses_of(model):
        if is_lazy(tensor):
            raise ModelError(
                f"{use.name!r} is lazy and has no shape yet: run the model once on an example first"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{use.name!r} is on the meta device and has no values: "
                "call model.to_empty(device=...) first, then initialise"
            )
        slot = found.setdefault(_memory(tensor), Slot(tensor, []))
        slot.uses.append(use)
    slots = list(found.values())
    _refuse_overlaps(slots)
    return slots


def uses_of(model: nn.Module) -> Iterator[tuple[Use, Tensor]]:
    """Every use of every parameter, a shared module once under each of its names.

    A parametrised weight goes by its own name, not by the parameters it is computed from.
    """
    for place in modules_of(model):
        module, hooks = place.owner, weight_norm_hooks(place.owner)
        norms = {f"{name}_g" for name in hooks}
        for raw, parameter in module._parameters.items():
            if parameter is not None and raw not in norms:
                base = raw.removesuffix("_v")
                leaf = base if base in hooks else raw
                yield Use(_join(place.name, leaf), leaf, module, place.path), parameter
        if parametrize.is_parametrized(module):
            for leaf, steps in cast("nn.ModuleDict", module.parametrizations).items():
                original = next(steps.parameters(recurse=False), None)
                if original is not None:
                    yield Use(_join(place.name, leaf), leaf, module, place.path), original


def modules_of(model: nn.Module) -> Iterator[Use]:
    """Every module under each of its names, as a use without a parameter.

    Example:
        >>> [place.name for place in modules_of(nn.Sequential(nn.ReLU()))]
        ['', '0']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for raw, module in modules.items():
        if not isinstance(module, parametrize.ParametrizationList):
            yield Use(canonical_name(raw), "", module, _path(modules, raw))


def _path(modules: Mapping[str, nn.Module], raw: str) -> tuple[tuple[str, nn.Module], ...]:
    parts = raw.split(".") if raw else []
    names = [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
    return tuple((canonical_name(name), modules[name]) for name in names)


def _join(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}" if prefix else leaf


def _plain(tensor: Tensor) -> bool:
    """Whether the tensor owns ordinary memory (a DTensor or another subclass need not)."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.numel() > 0


def _memory(tensor: Tensor) -> object:
    if not _plain(tensor):
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _refuse_overlaps(slots: Sequence[Slot]) -> None:
    """Two different contiguous parameters on the same memory would each overwrite the other."""
    dense = [slot for slot in slots if _plain(slot.tensor) and slot.tensor.is_contiguous()]
    spans = sorted(
        (
            str(slot.tensor.device),
            slot.tensor.data_ptr(),
            slot.tensor.data_ptr() + slot.tensor.numel() * slot.tensor.element_size(),
            slot.name,
        )
        for slot in dense
    )
    for (device, _, end, name), (other, start, _, second) in pairwise(spans):
        if device == other and start < end:
            raise ModelError(
                f"{name!r} and {second!r} share memory without being the same parameter: "
                "tie them (one Parameter in both places) or clone one, then initialise"
            )


@dataclass(frozen=True)
class Selection:
    """The only= and skip= of an initialiser: module types and name patterns."""

    only: tuple[Selector, ...]
    skip: tuple[Selector, ...]

    def reason_to_keep(self, uses: Sequence[Use]) -> str | None:
        """Why a parameter with these uses is not initialised, None where it is."""
        for selector in self.skip:
            if any(matches(selector, use) for use in uses):
                return f"skip={_show(selector)}"
        if self.only and not any(matches(selector, use) for selector in self.only for use in uses):
            return "not in only="
        return None

    def check(self, slots: Sequence[Slot]) -> None:
        """Raise where a name pattern matches nothing: it would be ignored in silence."""
        for argument, selectors in (("only", self.only), ("skip", self.skip)):
            for selector in selectors:
                if isinstance(selector, str):
                    used = any(matches(selector, use) for slot in slots for use in slot.uses)
                    require_use(argument, selector, slots, used=used)


def selectors(argument: str, value: Selector | Sequence[Selector]) -> tuple[Selector, ...]:
    """One selector or several as a tuple, checked.

    Example:
        >>> selectors("skip", "head.*")
        ('head.*',)
    """
    single = isinstance(value, str | type) or not isinstance(value, Iterable)
    several: tuple[object, ...] = (value,) if single else tuple(cast("Iterable[object]", value))
    checked: list[Selector] = []
    for one in several:
        if not (isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module))):
            raise InvalidTypeError(f"{argument}= takes name patterns and module types, got {one!r}")
        checked.append(one)
    return tuple(checked)


def matches(selector: Selector, use: Use) -> bool:
    """Whether a selector means a parameter: by its name, or by the name or type of a module that holds it.

    Example:
        >>> slot = slots_of(nn.Sequential(nn.Linear(2, 3)))[0]
        >>> [matches(selector, slot.uses[0]) for selector in ("0.weight", "0", "*.bias", nn.Linear)]
        [True, True, False, True]
    """
    if isinstance(selector, type):
        return any(isinstance(module, selector) for _, module in use.path)
    holders = (name for name, _ in use.path if name)
    return fnmatchcase(use.name, selector) or any(fnmatchcase(name, selector) for name in holders)


def require_use(argument: str, pattern: str, slots: Sequence[Slot], *, used: bool) -> None:
    """Raise a `NotFoundError` with the nearest name where a pattern matched no parameter."""
    if used:
        return
    names = [use.name for slot in slots for use in slot.uses]
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:6]) or 'none'}"
    raise NotFoundError(f"{argument}= has the pattern {pattern!r}, which matches no parameter: {hint}")


def first_match(patterns: Mapping[str, T], slot: Slot) -> T | None:
    """The value of the first pattern that matches one of the slot's names."""
    for pattern, value in patterns.items():
        if any(fnmatchcase(use.name, pattern) for use in slot.uses):
            return value
    return None


def check_slot(slot: Slot) -> None:
    """Raise, naming the parameter, where it has no elements."""
    if slot.tensor.numel() == 0:
        raise InvalidValueError(
            f"parameter {slot.describe()} is empty: there is nothing to initialise; "
            f"give every axis at least one element or leave it out with skip={slot.name!r}"
        )


def _show(selector: Selector) -> str:
    return repr(selector) if isinstance(selector, str) else selector.__name__
