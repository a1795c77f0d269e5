"""The places of a model that take initial values, by canonical name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isometry.errors import ModelError, NotFoundError
from isometry.names import canonical_name
from isometry.parametrised import pieces_of, weight_norm_hooks


class Place(NamedTuple):
    """A parameter, or a weight that a parametrisation computes from parameters.

    Args:
        name: Canonical name, under which values are drawn.
        parameters: What is written, by canonical name: itself, or what the weight is computed from.
        owner: The module with the parametrised weight; None for a plain parameter.
        leaf: The weight's name in its owner.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    owner: nn.Module | None = None
    leaf: str = ""

    @property
    def like(self) -> Tensor:
        """A tensor with the shape, dtype and device of the values to draw."""
        if self.owner is None:
            return next(iter(self.parameters.values()))
        hook = weight_norm_hooks(self.owner).get(self.leaf)
        if hook is not None:
            return next(p for name, p in self.parameters.items() if name.endswith("_v"))
        assert isinstance(self.owner.parametrizations, nn.ModuleDict)
        steps = self.owner.parametrizations[self.leaf]
        # In training mode spectral_norm would move its buffers on.
        modes = [(module, module.training) for module in steps.modules()]
        try:
            with torch.no_grad():
                steps.eval()
                weight: Tensor = steps()
                return weight
        finally:
            for module, training in modes:
                module.training = training

    def pieces(self, value: Tensor) -> tuple[Tensor, ...]:
        """The values of `parameters` that give the weight this value, or the nearest one to it."""
        assert self.owner is not None
        try:
            return pieces_of(self.owner, self.leaf, value)
        except ModelError as error:
            names = " and ".join(repr(name) for name in self.parameters)
            raise ModelError(
                f"{self.name!r} cannot be assigned to ({error}): name {names} instead"
            ) from error


class Places:
    """All places of a model, with the names that lead to each.

    A tied parameter, and one of a module with several names, is one place under the first of its names; the
    others are aliases. A parametrised weight is a place of its own beside the parameters it is computed from.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for raw, parameter in model.named_parameters(remove_duplicate=False):
            name = canonical_name(raw)
            if id(parameter) in first:
                self.aliases[name] = first[id(parameter)]
            elif name in self.parameters:
                raise ModelError(f"two different parameters have the canonical name {name!r}: rename one")
            else:
                first[id(parameter)] = name
                self.parameters[name] = parameter
        self.computed: dict[str, Place] = {}
        whole: dict[tuple[int, str], str] = {}
        for place in _computed(model):
            name = whole.setdefault((id(place.owner), place.leaf), place.name)
            if name == place.name:
                self.computed[name] = place
            else:
                self.aliases[place.name] = name

    def find(self, name: str) -> Place:
        """The place of a name, canonical or as a wrapper gives it.

        Raises:
            NotFoundError: With the nearest name, if there is none.
        """
        parameter = self.parameters.get(name)
        if parameter is not None:  # as almost every name
            return Place(name, {name: parameter})
        name = self.aliases.get(name, name)
        if name not in self.parameters and name not in self.computed:
            bare = canonical_name(name)
            name = self.aliases.get(bare, bare)
        if name in self.parameters:
            return Place(name, {name: self.parameters[name]})
        if name in self.computed:
            place = self.computed[name]
            own = [self.aliases.get(part, part) for part in place.parameters]
            return Place(name, {part: self.parameters[part] for part in own}, place.owner, place.leaf)
        known = [*self.parameters, *self.aliases, *self.computed]
        raise NotFoundError(f"the model has no parameter named {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the closest known name, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {found[0]!r}?" if found else ""


def _computed(model: nn.Module) -> Iterable[Place]:
    """Yield the weights that parametrisations compute, those of a shared module under each of its names."""
    for path, module in model.named_modules(remove_duplicate=False):
        base = canonical_name(path)
        prefix = f"{base}." if base else ""
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for leaf, steps in module.parametrizations.items():
                originals = {
                    f"{prefix}parametrizations.{leaf}.{part}": p
                    for part, p in steps.named_parameters(recurse=False)
                }
                yield Place(prefix + leaf, originals, module, leaf)
        for leaf in weight_norm_hooks(module):
            names = (f"{leaf}_g", f"{leaf}_v")
            yield Place(prefix + leaf, {prefix + part: getattr(module, part) for part in names}, module, leaf)
