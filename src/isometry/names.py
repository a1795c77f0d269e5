"""Canonical names: the name a parameter or module had before anything wrapped it.

DistributedDataParallel, `torch.compile`, FSDP and activation checkpointing put a module of their own around
the user's and so add a part to every name below it. A canonical name has none of these parts, so that a seed,
a name pattern or a saved profile means the same with and without wrappers.
"""

from __future__ import annotations

import torch
from torch import nn

# `module` is also a name people give to their own attributes, so it is a wrapper's part only where it leads
# the name (DDP, DataParallel, AveragedModel) or where the module that holds it is a known wrapper.
_ALWAYS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LEADING = "module"


def canonical_name(name: str) -> str:
    """Strip the parts that wrappers add to the name of a parameter, buffer or module.

    `_orig_mod` (torch.compile), `_fsdp_wrapped_module` (FSDP) and `_checkpoint_wrapped_module` (activation
    checkpointing) go wherever they stand; `module` (DistributedDataParallel, DataParallel) only where it
    leads.

    Args:
        name: Dotted name as `named_parameters()` or `named_modules()` gives it.

    Returns:
        The dotted name in the model as the user wrote it; exact.

    Example:
        >>> canonical_name("module._orig_mod.layers.0._checkpoint_wrapped_module.weight")
        'layers.0.weight'
        >>> canonical_name("encoder.module.weight")
        'encoder.module.weight'
    """
    if _LEADING not in name and "_orig_mod" not in name:
        return name  # as almost every name
    kept = [part for part in name.split(".") if part not in _ALWAYS]
    while len(kept) > 1 and kept[0] == _LEADING:
        kept.pop(0)
    return ".".join(kept)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the user's own module inside DDP, DataParallel, `torch.compile`, FSDP and checkpoint wrappers.

    Args:
        module: A module, wrapped any number of times or not at all.

    Returns:
        The innermost module that is no wrapper; `module` itself where nothing wraps it.

    Example:
        >>> from torch import nn
        >>> inner = nn.Linear(2, 3)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    while not isinstance(module, torch.jit.ScriptModule):  # its submodules are no dict
        for part in (*_ALWAYS, _LEADING):
            inner = module._modules.get(part)
            if inner is not None and (part in _ALWAYS or _is_parallel(module)):
                module = inner
                break
        else:
            break
    return module


def _is_parallel(module: nn.Module) -> bool:
    return isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
