"""A mark on a model whose writing has begun and not ended, so that nobody uses it by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.utils.hooks import RemovableHandle

from isometry.errors import ModelError

_marked: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()
_writing: WeakSet[nn.Module] = WeakSet()


def incomplete(model: nn.Module) -> bool:
    """Whether writing this model was interrupted, so that some of its parameters lack their new values.

    Such a model raises `ModelError` from `forward` and `state_dict` until it is written again with success.

    Args:
        model: The model that was passed to `write_` or `materialize_`.

    Returns:
        True between an interrupt and the next success; exact.

    Example:
        >>> incomplete(nn.Linear(2, 3))
        False
    """
    return model in _marked


@contextmanager
def unfinished(model: nn.Module) -> Iterator[None]:
    """Mark the model; take the mark away only if the block ends without an exception of any kind.

    Within another such block for the same model this does nothing: the outer one decides.
    """
    if model in _writing:
        yield
        return
    if model not in _marked:
        _marked[model] = [
            model.register_forward_pre_hook(_refuse, prepend=True),
            model.register_state_dict_pre_hook(_refuse),  # type: ignore[no-untyped-call]
        ]
    _writing.add(model)
    try:
        yield
    finally:
        _writing.discard(model)
    for handle in _marked.pop(model):
        handle.remove()


def _refuse(model: nn.Module, *_: Any) -> NoReturn:
    raise ModelError(
        f"this {type(model).__name__} is incomplete: writing its initial values was interrupted. "
        "Write it again, with the same seed for the same values, or build it anew"
    )
