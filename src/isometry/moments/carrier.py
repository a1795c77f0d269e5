"""What a prediction runs on: a copy of the model on meta tensors, or on real ones where meta does not carry.

On meta tensors nothing is computed and nothing is held in memory. A model whose own code needs values that
only real tensors have (routing by data, `nonzero`, `.tolist()`) runs on a real copy instead, with the same
records beside it: every tensor then has a value as well, and integers and masks take theirs from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, ModelError
from isometry.moments import algebra as alg
from isometry.moments import singular
from isometry.moments.concrete import LIMIT, Concrete, moments_of
from isometry.moments.interpreter import Interpreter
from isometry.moments.record import Moments
from isometry.moments.recording import Recording, of_values
from isometry.moments.rules.base import Value

Kind = Literal["meta", "real"]
Assumed = Callable[[str, Tensor], Value]


@dataclass(frozen=True)
class Carrier:
    """Which tensors the model runs on, and where their records are kept.

    Attributes:
        kind: "meta" or "real".
        interpreter: Carries the records.
        assumed: What a buffer without values is taken for, by its name; None: that is an error.
    """

    kind: Kind
    interpreter: Interpreter
    assumed: Assumed | None = None

    def model(self, model: nn.Module, values: Mapping[str, Value]) -> nn.Module:
        """Copy a model onto the carrier, ties kept; the original is left as it is.

        Args:
            model: The model; for a real carrier with values.
            values: The records of its parameters, and of buffers on meta, by name.

        Returns:
            The copy. Its parameters and buffers have records.
        """
        memo: dict[int, Any] = {}
        for name, p in model.named_parameters():
            memo[id(p)] = nn.Parameter(self._like(p), requires_grad=p.requires_grad)
            self.interpreter.assign(memo[id(p)], values[name])
        found = singular.divisions(model)
        for tensor in [t for division in found for t in division.state]:
            memo[id(tensor)] = self._like(tensor)  # nobody reads them
        for name, tensor in _owned(model):
            if id(tensor) in memo:
                continue
            value = values.get(name) if tensor.is_meta else None
            if tensor.is_meta and value is None and self.assumed is not None:
                value = self.assumed(name, tensor)
            if value is not None:
                memo[id(tensor)] = self._like(tensor)
                self.interpreter.assign(memo[id(tensor)], value)
            else:
                memo[id(tensor)] = self.known(tensor)
        twin = copy.deepcopy(model, memo)
        singular.divide(twin, found)
        return twin

    def known(self, tensor: Tensor) -> Tensor:
        """Copy a tensor whose values are known onto the carrier."""
        twin = self._like(tensor)
        if tensor.is_meta:
            raise ModelError(
                f"a buffer of shape {tuple(tensor.shape)} is on meta and has no values; give predict the "
                "function that builds the model"
            )
        value = tensor.detach().cpu().clone()
        self.interpreter.assign(twin, Concrete(value) if value.numel() <= LIMIT else moments_of(value))
        return twin.requires_grad_(tensor.requires_grad)

    def given(self, tensor: Tensor, where: str, *, normal: bool) -> Tensor:
        """Copy an input onto the carrier.

        Args:
            tensor: The input; on meta it stands for N(0, 1) draws.
            where: What to call it in messages.
            normal: Whether the floats in it stand for any draw of N(0, 1), as those of a spec do.

        Returns:
            The copy, with its record.
        """
        if tensor.is_meta and not tensor.is_floating_point():
            raise InvalidTypeError(
                f"{where} holds integers on the meta device, which have no values: give real ones, or a spec "
                'such as "4x128:int64<50257"'
            )
        if not (tensor.is_meta or (normal and tensor.is_floating_point())):
            return self.known(tensor)
        twin = torch.randn(tensor.shape).to(tensor.dtype) if tensor.is_meta and self.kind == "real" else None
        twin = self._like(tensor) if twin is None else twin
        self._vary(twin)
        return twin.requires_grad_(tensor.requires_grad)

    def seed(self, tensor: Tensor) -> Tensor:
        """Return an i.i.d. unit gradient for an output."""
        made = torch.empty_like(tensor) if self.kind == "meta" else torch.randn_like(tensor)
        self._vary(made)
        return made

    def _vary(self, tensor: Tensor) -> None:
        drawn = alg.normal(tensor.shape)
        self.interpreter.assign(tensor, drawn)
        self.interpreter.spread.begin(drawn)

    def _like(self, tensor: Tensor) -> Tensor:
        if self.kind == "meta":
            return torch.empty_like(tensor, device="meta", requires_grad=False)
        return tensor.detach().cpu().clone()


def _owned(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model that are no parameters: buffers, and what its attributes hold."""
    yield from model.named_buffers()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                for k, tensor in enumerate(_inside(value)):
                    yield f"{path}.{name}[{k}]", tensor


def _inside(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _inside(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _inside(entry)


def values_of(
    model: nn.Module, recording: Recording | None, assumed: Assumed | None = None
) -> dict[str, Value]:
    """Return the records of a model's parameters by name: recorded where it was built on meta, else measured.

    And those of other tensors that were filled on meta, by name.

    Args:
        model: The model.
        recording: How it was built; None for a model that the user gave.
        assumed: What a parameter is taken for that has neither values nor an initialiser; None: an error.

    Returns:
        The records.

    Raises:
        ModelError: A parameter has neither values nor an initialiser that was seen.
    """
    values: dict[str, Value] = {}
    measured: dict[object, list[tuple[Tensor, Value]]] = {}
    for name, p in model.named_parameters():
        value = recording.value(p) if recording is not None else None
        if value is None and p.is_meta:
            if assumed is not None:
                values[name] = assumed(name, p)
                continue
            raise ModelError(
                f"parameter {name!r} is on the meta device and has no values: give predict the function that "
                "builds the model, so that its initialisers are recorded"
            )
        values[name] = _measured(p, measured) if value is None else value
    for name, tensor in _owned(model):
        value = recording.value(tensor) if recording is not None and tensor.is_meta else None
        if value is not None:
            values[name] = value
    return values


def _measured(parameter: Tensor, known: dict[object, list[tuple[Tensor, Value]]]) -> Value:
    """Return the record of a parameter with values: the same where another has the same, as a copy does.

    Those that were measured are kept in `known`.
    """
    value = of_values(parameter)
    if not isinstance(value, Moments) or not value.variance.any():
        return value
    alike = known.setdefault((tuple(parameter.shape), float(value.square.flat[0])), [])
    for other, its in alike:
        if torch.equal(parameter, other):
            return its
    alike.append((parameter, value))
    return value
