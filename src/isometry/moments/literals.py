"""Numbers that a model's code writes into tensors on meta or reads from them, past any dispatch.

Tensors on meta forget what they are made from, and cannot be written out: their values are recorded and read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from isometry.moments.calls import tensors_in
from isometry.moments.concrete import Concrete
from isometry.moments.interpreter import Interpreter
from isometry.moments.rules.base import Value

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_READERS = (Tensor.tolist, Tensor.__format__)


class Literals(TorchFunctionMode):
    """Record what `torch.tensor([…], device=x.device)` and `x[[…]]` hold; tell `x.tolist()` and `f"{x}"`.

    Where x is on meta: operations are dispatched to whoever keeps the values, these are not.
    """

    def __init__(
        self, interpreter: Interpreter, record: Callable[[Tensor, Value], None] | None = None
    ) -> None:
        """Keep the values with the interpreter, by `record` where that is given."""
        super().__init__()
        self.interpreter = interpreter
        self._assign = record or interpreter.assign

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READERS and args[0].is_meta:
            known = self.interpreter.value(args[0])
            args = (known.tensor if isinstance(known, Concrete) else args[0], *args[1:])
        if func in _INDEXING:
            args = (args[0], self._with_tensors(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if func in _MAKERS and out.is_meta and self.interpreter.value(out) is None:
            at = 1 if func is Tensor.new_tensor else 0
            self._record(out, args[at] if len(args) > at else kwargs["data"])
        return out

    def _record(self, out: Tensor, data: Any) -> None:
        if not tensors_in(data):
            with _disable_current_modes():
                self._assign(out, Concrete(torch.tensor(data, dtype=out.dtype)))

    def _with_tensors(self, index: Any) -> Any:
        """Return an index with lists and arrays of numbers as tensors on the CPU, which keep their values."""
        if isinstance(index, tuple):
            return tuple(self._with_tensors(part) for part in index)
        listed = isinstance(index, list) and index and _numbers(index)
        if not (listed or isinstance(index, np.ndarray)):
            return index
        with _disable_current_modes():
            known = torch.as_tensor(index)
            self.interpreter.assign(known, Concrete(known))
        return known


def _numbers(tree: Any) -> bool:
    return all(_numbers(x) if isinstance(x, list) else isinstance(x, int) for x in tree)
