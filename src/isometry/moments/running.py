"""Running an operation where meta kernels refuse: shapes that depend on values, dtypes they demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Real = Callable[[Tensor], Tensor | None]


def run(func: Any, args: Any, kwargs: dict[str, Any], real: Real) -> Any:
    """Return func's outputs on meta tensors.

    Args:
        func: The ATen operation.
        args: Its arguments.
        kwargs: Likewise.
        real: Returns the known values of a tensor, or None.

    Raises:
        RuntimeError: The operation's own, where it cannot be helped.
    """
    name = func._schema.name.split("::")[1]
    if name == "_grouped_mm" and args[0].is_meta:
        return _grouped_mm(*args, **kwargs)
    if name == "masked_select" and args[0].is_meta and (mask := real(args[1])) is not None:
        shape = args[0].shape if args[0].dim() >= mask.dim() else mask.shape
        return args[0].new_empty(int(mask.expand(shape).sum()))
    try:
        return func(*args, **kwargs)
    except (NotImplementedError, RuntimeError):
        if name in ("index", "index_put", "index_put_"):
            return func(args[0], masks_as_positions(args[1], real), *args[2:], **kwargs)
        known = _on_values(func, args, kwargs, real)
        if known is None:
            raise
        return known


def masks_as_positions(indices: Any, real: Real) -> list[Tensor | None]:
    """Return indices with known boolean masks replaced by the positions that they select."""
    result: list[Tensor | None] = []
    for index in indices:
        values = None if index is None else real(index)
        if values is not None and values.dtype in (torch.bool, torch.uint8):
            result += [p.to(index.device) for p in values.nonzero(as_tuple=True)]
        else:
            result.append(index)
    return result


def _grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """Return an empty output of a grouped product; its own meta kernel takes bfloat16 alone."""
    if a.dim() == 2 and b.dim() == 2 and offs is not None:
        shape = (offs.shape[0], a.shape[0], b.shape[1])
    else:
        shape = (*(b.shape[:1] if a.dim() == b.dim() == 3 else ()), a.shape[-2], b.shape[-1])
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


def _on_values(func: Any, args: Any, kwargs: dict[str, Any], real: Real) -> Any:
    """Run an operation on known values; return empty tensors like its outputs, None where values lack."""
    missing = False

    def known(x: Any) -> Any:
        nonlocal missing
        if isinstance(x, Tensor):
            values = real(x)
            missing |= values is None
            return values
        return type(x)(known(y) for y in x) if isinstance(x, list | tuple) else x

    ready, named = known(tuple(args)), {k: known(v) for k, v in kwargs.items()}
    if missing:
        return None
    out = func(*ready, **{k: torch.device("cpu") if k == "device" else v for k, v in named.items()})

    def empty(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty_like(x, device="meta")
        return type(x)(empty(y) for y in x) if isinstance(x, list | tuple) else x

    return empty(out)


def decomposed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return a composite operation's result by its parts, or NotImplemented where it has none."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
        return NotImplemented
    return func.decompose(*args, **kwargs)
