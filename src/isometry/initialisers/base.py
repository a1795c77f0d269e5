"""What all initialisers of models share: which parameters, which seed, and every rule but the weights'."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, IsometryWarning
from isometry.fans import Fans, fans, gate_count, known_fans
from isometry.init.structured import Gates, check_finite
from isometry.initialisers.assignment import (
    Assignment,
    Selection,
    Selector,
    Slot,
    Use,
    check_slot,
    first_match,
    require_use,
    selectors,
    slots_of,
)
from isometry.initialisers.chain import Weight
from isometry.initialisers.finishing import finish
from isometry.parametrised import invertible
from isometry.sampling import Constant, Distribution, Normal, Whole, write_

_FROZEN = "requires_grad=False"


@dataclass(kw_only=True, eq=False, repr=False)
class Initialiser(ABC):
    """Base of the initialisers of models, such as `Kaiming`: a callable that takes a module.

    A call initialises the module and all below it. Under `model.apply`, which visits every submodule, only
    the outermost visit acts, so that `model.apply(init)` equals `init(model)`, name patterns included. Any
    error leaves the model untouched. The same call gives the same values (unless a `generator` moves on).

    Attributes:
        only: Initialise nothing but these: module types, or name patterns (fnmatch) of parameters or modules.
        skip: Leave these as they are.
        axes: Axes of custom weights by name pattern, for example
            {"experts.*.w": dict(in_axis=1, out_axis=2, batch_axis=0)}.
        distributions: Distributions by name pattern; they come before every other rule.
        forget_bias: Total bias of LSTM forget gates.
        include_frozen: Initialise parameters with requires_grad=False too; otherwise they are kept.
        seed: With a parameter's canonical name it determines the values.
        generator: A torch.Generator to draw the seed from instead.
        assignment: After a call, what was drawn, kept and not recognised.
    """

    only: Selector | Sequence[Selector] = ()
    skip: Selector | Sequence[Selector] = ()
    axes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    forget_bias: float = 1.0
    include_frozen: bool = False
    seed: int = 0
    generator: torch.Generator | None = None
    assignment: Assignment | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._selection = Selection(selectors("only", self.only), selectors("skip", self.skip))
        check_finite("forget_bias", self.forget_bias)
        for argument, patterns in (("axes", self.axes), ("distributions", self.distributions)):
            if not isinstance(patterns, Mapping):
                raise InvalidTypeError(f"{argument}= must be a dict by name pattern, got {patterns!r}")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InvalidTypeError(f"generator must be a torch.Generator, got {self.generator!r}")
        for pattern, law in self.distributions.items():
            if not isinstance(law, Distribution):
                raise InvalidTypeError(f"distributions[{pattern!r}] must be a Distribution, got {law!r}")
        for pattern, axes in self.axes.items():
            if not isinstance(axes, Mapping) or not set(axes) <= {"in_axis", "out_axis", "batch_axis"}:
                raise InvalidTypeError(
                    f"axes[{pattern!r}] must be a dict of in_axis, out_axis and batch_axis, got {axes!r}"
                )

    def __repr__(self) -> str:
        """The options that are not the default."""
        options = []
        for option in fields(self):
            value = getattr(self, option.name)
            default = {} if option.default is MISSING else option.default
            if option.init and option.repr and not (value is default or value == default):
                options.append(f"{option.name}={value!r}")
        return f"{type(self).__name__}({', '.join(options)})"

    @abstractmethod
    def weight_laws(self, weights: Sequence[Weight], seed: int) -> Sequence[Distribution]:
        """The distribution of each weight, given in registration order."""

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise a module and all below it.

        Args:
            module: The model.

        Returns:
            The same module.

        Raises:
            InvalidTypeError: Not a module, or a parameter that cannot be drawn.
            InvalidValueError: An empty parameter, or axes that do not fit.
            NotFoundError: A name pattern that matches nothing.
            ModelError: A lazy or meta parameter, or different parameters that share memory.

        Warns:
            IsometryWarning: Parameters nobody recognises, which stay as they are.
        """
        if not isinstance(module, nn.Module):
            raise InvalidTypeError(
                f"{type(self).__name__} initialises a torch.nn.Module, got {type(module).__name__}: "
                "pass the model itself, not what builds it"
            )
        if not self._is_inner_visit():
            seed = self._seed()
            slots = slots_of(module)
            assignment = self._assign(slots, seed)
            untouched = {*assignment.kept, *assignment.unrecognised}
            written = [use for slot in slots if slot.name not in untouched for use in slot.uses]
            end = partial(finish, module, written, self._selects)
            write_(module, assignment.distributions, seed=seed, finish=end)
            self.assignment = assignment
            self._report(assignment)
        return module

    def plan(self, module: nn.Module) -> Assignment:
        """What a call with `seed` would do; touches nothing.

        Args:
            module: The model.

        Returns:
            The distribution of every parameter, and what would be kept or is not recognised.

        Example:
            >>> from isometry.initialisers import Kaiming
            >>> Kaiming(nonlinearity="linear").plan(nn.Linear(4, 3)).distributions["weight"]
            Normal(std=0.5, mean=0.0)
        """
        return self._assign(slots_of(module), self.seed)

    def _seed(self) -> int:
        if self.generator is None:
            return self.seed
        device = self.generator.device
        return int(torch.randint(0, 2**62, (), generator=self.generator, device=device))

    def _is_inner_visit(self) -> bool:
        """Whether `Module.apply` visits a submodule and will come to its parent later.

        The visits share no state, and name patterns mean nothing on a part of the model; the call stack
        tells.
        """
        visits = 0
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is nn.Module.apply.__code__ and frame.f_locals.get("fn") is self:
                visits += 1
            frame = frame.f_back
        return visits > 1

    def _assign(self, slots: Sequence[Slot], seed: int) -> Assignment:
        self._check_patterns(slots)
        laws: dict[str, Distribution] = {}
        kept: dict[str, str] = {}
        unrecognised: dict[str, str] = {}
        weights: list[Weight] = []
        for slot in slots:
            reason = self._selection.reason_to_keep(slot.uses)
            if reason is None and not (slot.tensor.requires_grad or self.include_frozen):
                reason = _FROZEN
            if reason is not None:
                kept[slot.name] = reason
                continue
            law = self._given_law(slot) or self._plain_law(slot)
            known = self._fans(slot) if law is None else None
            if not invertible(slot.use.owner, slot.use.leaf):
                unrecognised[slot.name] = f"{slot.describe()} (its parametrisation has no right_inverse)"
                continue
            if law is None and known is None:
                unrecognised[slot.name] = slot.describe()
                continue
            check_slot(slot)
            if law is not None:
                laws[slot.name] = law
            elif known is not None:
                weights.append(Weight(slot.name, slot.use.owner, known, slot.tensor.dtype == torch.float64))
        names = [weight.name for weight in weights]
        laws |= dict(zip(names, self.weight_laws(weights, seed), strict=True))
        return Assignment(laws, kept, unrecognised)

    def _check_patterns(self, slots: Sequence[Slot]) -> None:
        self._selection.check(slots)
        for argument, patterns in (("axes", self.axes), ("distributions", self.distributions)):
            for pattern in patterns:
                used = any(first_match({pattern: True}, slot) for slot in slots)
                require_use(argument, pattern, slots, used=used)

    def _given_law(self, slot: Slot) -> Distribution | None:
        """The user's own distribution; one that cannot draw this shape fails before any write."""
        law = first_match(self.distributions, slot)
        if isinstance(law, Whole):
            try:
                law.draw(slot.shape, torch.Generator())
            except IsometryError as error:
                raise InvalidValueError(f"distributions= for {slot.describe()}: {error}") from error
        return law

    def _plain_law(self, slot: Slot) -> Distribution | None:
        """The distribution of everything but weights, None for those and for what nobody knows."""
        use = slot.use
        if first_match(self.axes, slot) is not None:
            return None
        if use.role == "bias":
            is_lstm = gate_count(use.owner) == 4
            # torch adds bias_ih and bias_hh, so one of them carries the forget gate's bias and the other none
            if is_lstm and use.leaf.startswith("bias_ih"):
                return Gates((0.0, self.forget_bias, 0.0, 0.0))
            return Constant(0.0)
        if use.role == "scale":
            return Constant(1.0)
        if use.role == "slope" and isinstance(use.owner, nn.PReLU):
            return Constant(use.owner.init)
        return Normal(1.0) if use.role == "embedding" else None

    def _fans(self, slot: Slot) -> Fans | None:
        axes = first_match(self.axes, slot)
        if axes is not None:
            return fans(slot.use.owner, slot.use.leaf, **axes)
        return known_fans(slot.use.owner, slot.use.leaf) if slot.use.role == "weight" else None

    def _selects(self, place: Use) -> bool:
        return self._selection.reason_to_keep([place]) is None

    def _report(self, assignment: Assignment) -> None:
        # The warning points at the line that called the initialiser or `model.apply`.
        level = 4 if sys._getframe(2).f_code is nn.Module.apply.__code__ else 3
        if assignment.kept and not assignment.distributions and set(assignment.kept.values()) == {_FROZEN}:
            warnings.warn(
                "nothing was initialised: every parameter is frozen (requires_grad=False); "
                "pass include_frozen=True to initialise them all the same",
                IsometryWarning,
                stacklevel=level,
            )
        if assignment.unrecognised:
            listed = "; ".join(assignment.unrecognised.values())
            warnings.warn(
                f"left as they are, because nobody knows what they are for: {listed}. "
                "Declare weights with axes=, anything else with distributions=, or confirm with skip=",
                IsometryWarning,
                stacklevel=level,
            )
