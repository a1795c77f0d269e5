"""The initialisations that benchmarks/trainability.py sets side by side, and which of them a part knows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import isometry
from trainability_cells import Cell, OneBatch

RIVALS = ("torch", "xavier", "kaiming", "orthogonal", "lsuv")
OURS = ("auto", "isometric")


class UnavailableError(Exception):
    """A start that this installation or this model cannot have."""


def starts(part: str) -> tuple[str, ...]:
    """The names of the starts a part of the grid is run from."""
    if part == "corpus":
        return ("torch", "auto")
    # The recipe "isometric" is for networks without norm and skip connections.
    return (*RIVALS, "auto") if part == "transformer" else (*RIVALS, *OURS)


def initialise(start: str, model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
    """Write the weights of one start into a freshly built model.

    Raises:
        UnavailableError: nothing here provides the start.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _START[start](model, cell, inputs, seed)


def _torch(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
    """As constructed."""


def _xavier(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
    isometry.Xavier(seed=seed)(model)


def _with_gain(kind: Callable[..., Any]) -> Callable[[nn.Module, Cell, Any, int], None]:
    """Every weight the exact gain of what it reads: the activation's, or 1 behind data, sums and norms."""

    def run(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
        if cell.part == "transformer":
            kind(nonlinearity="linear", seed=seed)(model)
            kind(nonlinearity=cell.activation, seed=seed, only="*.down.weight")(model)
        else:
            kind(nonlinearity=cell.activation, input_gain=1.0, seed=seed)(model)

    return run


def _lsuv(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
    """The package of the method's author, as its documentation calls it."""
    if importlib.util.find_spec("lsuv") is None:
        raise UnavailableError("the package lsuv is not installed (pip install --no-deps lsuv==0.3.0)")
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(model, inputs, verbose=False)


def _ours(recipe: str) -> Callable[[nn.Module, Cell, Any, int], None]:
    def run(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
        init_: Any = getattr(isometry, "init_", None)
        if init_ is None:
            raise UnavailableError("isometry.init_ is not there yet")
        if isinstance(model, OneBatch):
            init_(model.model, model.fixed, recipe=recipe, seed=seed)
        else:
            init_(model, inputs, recipe=recipe, seed=seed)

    return run


_START: dict[str, Callable[[nn.Module, Cell, Any, int], None]] = {
    "torch": _torch,
    "xavier": _xavier,
    "kaiming": _with_gain(isometry.Kaiming),
    "orthogonal": _with_gain(isometry.Orthogonal),
    "lsuv": _lsuv,
    "auto": _ours("auto"),
    "isometric": _ours("isometric"),
}
