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


class UnavailableError(Exception):
    """A start that this installation or this model cannot have."""


def starts(part: str) -> tuple[str, ...]:
    """The names of the starts a part of the grid is run from."""
    return ("torch", "auto") if part == "corpus" else (*RIVALS, "auto")


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


def _auto(model: nn.Module, cell: Cell, inputs: Any, seed: int) -> None:
    """Ours, in one line; plain chains get the recipe "isometric" from it."""
    if isinstance(model, OneBatch):
        isometry.init_(model.model, model.fixed, seed=seed)
    else:
        isometry.init_(model, inputs, seed=seed)


_START: dict[str, Callable[[nn.Module, Cell, Any, int], None]] = {
    "torch": _torch,
    "xavier": _xavier,
    "kaiming": _with_gain(isometry.Kaiming),
    "orthogonal": _with_gain(isometry.Orthogonal),
    "lsuv": _lsuv,
    "auto": _auto,
}
