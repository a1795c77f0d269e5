"""Numbers that a model's code writes into tensors on meta, which forget them: their values are recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from isometry.moments.concrete import Concrete
from isometry.moments.interpreter import Interpreter

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class Literals(TorchFunctionMode):
    """Record what `torch.tensor([…], device=x.device)` and `x[[…]]` hold where x is on meta.

    They are made below the dispatch of operations, which sees a tensor without a past.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()
        self.interpreter = interpreter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _INDEXING:
            args = (args[0], self._with_tensors(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if func in _MAKERS and out.is_meta and self.interpreter.value(out) is None:
            self._record(out, args[1 if func is Tensor.new_tensor else 0])
        return out

    def _record(self, out: Tensor, data: Any) -> None:
        with _disable_current_modes():
            self.interpreter.assign(out, Concrete(torch.tensor(data, dtype=out.dtype)))

    def _with_tensors(self, index: Any) -> Any:
        """Return an index with its lists of numbers as tensors on the CPU, which keep their values."""
        if isinstance(index, tuple):
            return tuple(self._with_tensors(part) for part in index)
        if not (isinstance(index, list) and index and _numbers(index)):
            return index
        with _disable_current_modes():
            known = torch.tensor(index)
            self.interpreter.assign(known, Concrete(known))
        return known


def _numbers(tree: Any) -> bool:
    return all(_numbers(x) if isinstance(x, list) else isinstance(x, int) for x in tree)
