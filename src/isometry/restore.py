"""Put a model and every random state back as they were, whatever happened in between."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from isometry.errors import IsometryWarning
from isometry.names import canonical_name


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's collector of cycles from looking through all objects of a large model again and again.

    Thousands of short-lived objects set it off, none of which forms a cycle. It is put back as it was.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread_for_numpy() -> Iterator[None]:
    """Keep NumPy from sharing products of small matrices among threads, which takes longer than the products.

    Prediction makes tens of thousands of them. The number of threads is put back as it was.
    """
    with _pools().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run a block that may change a model's buffers, attributes and mode, then put the model back.

    Inside the block every buffer and every tensor attribute is a copy, so the originals keep their bits,
    their identity and their version. Afterwards attributes, mode, `requires_grad`, `.grad` and the random
    states of Python, NumPy, the CPU and the accelerators are as before, and hooks that were added are gone:
    some models hook themselves on their first pass, and note it in an attribute. Parameters are not copied
    (that would double a model's memory): a forward pass that overwrites its own parameters is reported.

    *Assumes* that the model keeps its state in parameters, buffers and attributes; what it appends to a
    list or writes into an object of its own stays.

    Args:
        model: The model.

    Yields:
        Nothing.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> with preserved(norm):
        ...     _ = norm(torch.randn(8, 3))
        >>> norm.running_mean.tolist(), norm.num_batches_tracked.item()
        ([0.0, 0.0, 0.0], 0)
    """
    modules = list(model.modules())
    tables = [table for module in modules for table in (module._parameters, module._buffers, module._modules)]
    contents = [dict(table) for table in tables]
    attributes = [dict(module.__dict__) for module in modules]
    hooks = [(table, set(table)) for module in modules for table in _hook_tables(module)]
    parameters = [(name, parameter, parameter.grad) for name, parameter in model.named_parameters()]
    flags = [parameter.requires_grad for _, parameter, _ in parameters]
    versions = [_version(parameter) for _, parameter, _ in parameters]
    restore_random_state = random_state()
    _swap_in_copies(modules)
    try:
        yield
    finally:
        for module, before in zip(modules, attributes, strict=True):
            _restore(module.__dict__, before)
        for table, content in zip(tables, contents, strict=True):
            _restore(table, content)
        for table, known in hooks:
            for key in [key for key in table if key not in known]:
                del table[key]
        for (_, parameter, gradient), flag in zip(parameters, flags, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)
        restore_random_state()
    for (name, parameter, _), version in zip(parameters, versions, strict=True):
        if _version(parameter) != version:
            warnings.warn(
                f"the model's own forward pass overwrote its parameter {canonical_name(name)!r} in place; "
                "isometry does not copy parameters, so that change stays",
                IsometryWarning,
                stacklevel=4,
            )


def _hook_tables(module: nn.Module) -> list[dict[Any, Any]]:
    return [v for name, v in module.__dict__.items() if "_hooks" in name and isinstance(v, dict)]


def _swap_in_copies(modules: list[nn.Module]) -> None:
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        # One tensor that two modules share stays shared.
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return copies[id(tensor)]

    for module in modules:
        for table in (module._buffers, module.__dict__):
            for key, value in list(table.items()):
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_leaf:
                    table[key] = copy(value)


def _restore(table: dict[str, Any], before: dict[str, Any]) -> None:
    if list(table) == list(before):
        for key, value in before.items():
            if table[key] is not value:
                table[key] = value
        return
    table.clear()
    table.update(before)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def random_state() -> Callable[[], None]:
    """Take down the random states of Python, NumPy, the CPU and every accelerator in use.

    Returns:
        A function that restores them.

    Example:
        >>> restore = random_state()
        >>> first = torch.rand(3)
        >>> restore()
        >>> bool((torch.rand(3) == first).all())
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # An accelerator nobody has used yet is left asleep.
    devices: list[tuple[Any, list[Tensor]]] = [
        (device, device.get_rng_state_all())
        for device in (torch.cuda, torch.xpu)
        if device.is_available() and device.is_initialized()
    ]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, states in devices:
            device.set_rng_state_all(states)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore
