"""An operation's call taken apart: its tensors, and the simpler operation that equals it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that does without the compiler: neither its import nor a detour at every operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@lru_cache(maxsize=4096)
def name_of(func: Any) -> str:
    """Return an operation's name without its namespace and overload."""
    return str(func._schema.name.split("::")[1])


def functional(func: Any) -> Any:
    """Return the twin of an in-place operation that writes nothing."""
    packet = getattr(torch.ops.aten, func._schema.name.split("::")[1][:-1], None)
    if packet is None:
        return None
    overload = "int" if func._schema.name == "aten::transpose_" else func._overloadname
    return getattr(packet, overload, getattr(packet, "default", None))


Call = tuple[str, int]


class Numbering:
    """Numbers the operations of a run, each kind by itself.

    So an operation keeps its number in any run of the same code, though torch puts in one of its own now and
    then: a `detach` where autograd keeps a tensor, or where a factory is first used in a process.
    """

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def next(self, func: Any) -> Call:
        """Return the number of an operation that runs now; an in-place one counts with its twin."""
        name = func._schema.name
        kind = name.removesuffix("_") if func._schema.is_mutable else name
        number = self._count[kind] = self._count.get(kind, -1) + 1
        return kind, number


def part_of_split(
    func: Any, args: tuple[Any, ...], part: Tensor, k: int, start: int
) -> tuple[Any, tuple[Any, ...]]:
    """Return the one-output operation that makes the k-th output of a split."""
    base = args[0]
    if func._schema.name == "aten::unbind":
        return torch.ops.aten.select.int, (base, (args[1] if len(args) > 1 else 0) % base.dim(), k)
    dim = (args[2] if len(args) > 2 else 0) % base.dim()
    return torch.ops.aten.slice.Tensor, (base, dim, start, start + part.shape[dim])


def listed(result: Any) -> list[Any]:
    """The results of an operation, one or several."""
    return list(result) if isinstance(result, tuple | list) else [result]


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors among an operation's arguments or results, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if not isinstance(tree, list | tuple):
        return []
    found = []
    for item in tree:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, list | tuple | dict):
            found += tensors_in(item)
    return found


def identity(tree: Any, of: Callable[[Tensor], int]) -> object:
    """Return a hashable stand-in for an operation's arguments, tensors by what `of` tells of them."""
    if isinstance(tree, Tensor):
        return ("tensor", of(tree))
    if isinstance(tree, list | tuple):
        return tuple(identity(x, of) for x in tree)
    if isinstance(tree, dict):
        return tuple((k, identity(v, of)) for k, v in tree.items())
    return type(tree), tree


def mapped(tree: Any, fn: Callable[[Tensor], Any]) -> Any:
    """An operation's arguments with every tensor replaced by `fn` of it."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(x, fn) for x in tree)
    if isinstance(tree, dict):
        return {k: mapped(v, fn) for k, v in tree.items()}
    return tree
