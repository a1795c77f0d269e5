"""A mark on a model whose writing has begun and not ended, so that nobody uses it by mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakSet

from torch import nn

from isometry.errors import ModelError

_writing: WeakSet[nn.Module] = WeakSet()


def incomplete(model: nn.Module) -> bool:
    """Whether writing this model was interrupted, so that some of its parameters lack their new values.

    Such a model, and a copy of it, raises `ModelError` from `forward` and `state_dict` until all that was to
    be written is.

    Args:
        model: The model that was passed to `write_` or `materialize_`.

    Returns:
        True between an interrupt and the next success; exact.

    Example:
        >>> incomplete(nn.Linear(2, 3))
        False
    """
    return _mark(model) is not None


@contextmanager
def unfinished(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Mark the model; if the block ends without an exception of any kind, take `names` off the mark.

    The mark goes when no name is left of those that interrupted blocks were about. Within another such block
    for the same model this does nothing: the outer one decides.
    """
    if model in _writing:
        yield
        return
    before = _mark(model)
    _put(model, _Refuse(frozenset(names) | (before.names if before else frozenset())))
    _writing.add(model)
    try:
        yield
    finally:
        _writing.discard(model)
    rest = before.names.difference(names) if before else frozenset()
    _put(model, _Refuse(rest) if rest else None)


class _Refuse:
    """A hook that lets nobody use the model; it is the mark itself, so that a copied model has it, too."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def __call__(self, model: nn.Module, *_: Any) -> NoReturn:
        raise ModelError(
            f"this {type(model).__name__} is incomplete: writing its initial values was interrupted. "
            "Write it again, with the same seed for the same values, or build it anew"
        )


def _mark(model: nn.Module) -> _Refuse | None:
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Refuse)), None)


def _put(model: nn.Module, mark: _Refuse | None) -> None:
    """Replace the model's mark."""
    for hooks in (model._forward_pre_hooks, model._state_dict_pre_hooks):
        for number in [number for number, hook in hooks.items() if isinstance(hook, _Refuse)]:
            del hooks[number]
    if mark is not None:
        model.register_forward_pre_hook(mark, prepend=True)
        model.register_state_dict_pre_hook(mark)  # type: ignore[no-untyped-call]
