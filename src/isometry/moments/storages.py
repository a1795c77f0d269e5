"""What the interpreter keeps of each storage: the records of its tensors, and how views of it were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from isometry.moments.aliasing import Key
from isometry.moments.rules.base import Value


@dataclass(frozen=True, eq=False)
class StorageView:
    """How a view was made, so that a write to it reaches its base and a write to the base reaches it."""

    base: Tensor
    func: Any
    args: tuple[Any, ...]

    def written(self, base: Tensor, part: Tensor) -> Tensor:
        """Return known values of the base with other known values in place of the view."""
        with _disable_current_modes():
            made = base.clone(memory_format=torch.contiguous_format)
            self.func(made, *self.args[1:]).copy_(part)
        return made


@dataclass
class Storage:
    """The records of one storage; holding it keeps its address from being used again.

    Not a tensor of it: that holds its history, whose hooks hold whoever reads gradients, and so this run.
    """

    keep: torch.UntypedStorage
    values: dict[Key, Value] = field(default_factory=dict)
    views: dict[Key, StorageView] = field(default_factory=dict)
