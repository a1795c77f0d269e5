"""Running an operation where meta kernels refuse: shapes that depend on values, dtypes they demand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from isometry.moments.calls import mapped, name_of, tensors_in

Real = Callable[[Tensor], Tensor | None]


class Ran:
    """What operations on meta tensors returned, so that the layers of a model need not ask kernels again.

    Most meta kernels are Python code, slower than all else that happens to an operation. Their answer
    depends on the arguments' shapes, strides and dtypes alone.
    """

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}

    def run(self, func: Any, args: Any, kwargs: dict[str, Any], real: Real) -> Any:
        """Return func's outputs, as `run` does."""
        if not _answers_to_shapes(func):
            return run(func, args, kwargs, real)
        try:
            key = (func, _likeness(args), _likeness(kwargs) if kwargs else ())
            template = self._made.get(key)
        except TypeError:  # an argument that cannot be a key, or a tensor that is not on meta
            return run(func, args, kwargs, real)
        if template is not None:
            return args[0] if template is _WRITTEN else _empty(template)
        out = run(func, args, kwargs, real)
        if func._schema.is_mutable:
            if args and out is args[0] and _likeness(out) == key[1][0]:
                self._made[key] = _WRITTEN
        elif _is_new(out, (args, kwargs)):
            self._made[key] = mapped(out, _like)
        return out


_WRITTEN = object()  # the first argument is written in place and returned


@lru_cache(maxsize=4096)
def _answers_to_shapes(func: Any) -> bool:
    """Return whether an operation makes new tensors or writes to its first, and no values decide how."""
    valued = ("embedding", "masked_select", "nonzero", "index", "_grouped_mm", "repeat_interleave")
    if func.is_view or name_of(func) in valued:
        return False
    return not func._schema.is_mutable or len(func._schema.returns) == 1


class _Like(NamedTuple):
    """What a new tensor is to look like."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _like(tensor: Tensor) -> _Like:
    return _Like(tensor.shape, tensor.stride(), tensor.dtype)


def _likeness(tree: Any) -> Any:
    """Return what a meta kernel sees of its arguments; TypeError where a tensor is not on meta."""
    if isinstance(tree, Tensor):
        if not tree.is_meta or tree.dtype.is_complex:
            raise TypeError
        return tree.shape, tree.stride(), tree.dtype
    if isinstance(tree, list | tuple):
        return tuple([_likeness(x) for x in tree])
    if isinstance(tree, dict):
        return tuple([(k, _likeness(v)) for k, v in tree.items()])
    return type(tree), tree


def _is_new(out: Any, given: Any) -> bool:
    """Return whether all outputs are tensors on meta with storages of their own."""
    made = list(tensors_in(out))
    if not all(t.is_meta and t.storage_offset() == 0 and not t.dtype.is_complex for t in made):
        return False
    ours = {t.untyped_storage()._cdata for t in made}
    return len(ours) == len(made) > 0 and ours.isdisjoint(
        t.untyped_storage()._cdata for t in tensors_in(given)
    )


def _empty(template: Any) -> Any:
    if isinstance(template, _Like):
        return torch.empty_strided(template.shape, template.stride, dtype=template.dtype, device="meta")
    return type(template)(_empty(x) for x in template) if isinstance(template, list | tuple) else template


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
    name = name_of(func)
    if name == "embedding":
        _check_rows(args[0].shape[0], real(args[1]))
    if name == "_grouped_mm" and args[0].is_meta:
        return _grouped_mm(*args, **kwargs)
    if name in ("_ctc_loss", "_ctc_loss_backward") and tensors_in(args)[0].is_meta:
        return _ctc_loss(*args, real=real) if name == "_ctc_loss" else args[1].new_empty(args[1].shape)
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


def _check_rows(rows: int, ids: Tensor | None) -> None:
    """Refuse places outside a table, as a real one does."""
    if ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise IndexError(f"ids go from {int(ids.min())} to {int(ids.max())}, and the table has {rows} rows")


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


def _ctc_loss(
    scores: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, *_: Any, real: Real
) -> tuple[Tensor, Tensor]:
    """Return empty losses, and an empty table of alignments, which have no meta kernel."""
    known = real(target_lengths) if isinstance(target_lengths, Tensor) else target_lengths
    longest = max((int(n) for n in known), default=0) if known is not None else targets.shape[-1]
    steps, batch = scores.shape[:2]
    return scores.new_empty(batch), scores.new_empty(batch, steps, 2 * longest + 1)


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
    out = on_cpu(func, ready, {k: torch.device("cpu") if k == "device" else v for k, v in named.items()})

    def empty(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty_like(x, device="meta")
        return type(x)(empty(y) for y in x) if isinstance(x, list | tuple) else x

    return empty(out)


def on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return func's outputs on known values.

    Where the CPU has no kernel for integers, as of `histc`, which other devices have, in floats. Equal
    entries stay in their order when they are sorted, which torch leaves open: so rows sorted by expert lie
    sample by sample.
    """
    if func is torch.ops.aten.sort.default:
        func, kwargs = torch.ops.aten.sort.stable, {"stable": True, **kwargs}
    try:
        return func(*args, **kwargs)
    except NotImplementedError:
        whole = [t.dtype for t in tensors_in((args, kwargs)) if not t.is_floating_point()]
        if not whole:
            raise
    args, kwargs = mapped((args, kwargs), lambda t: t if t.is_floating_point() else t.double())
    return mapped(func(*args, **kwargs), lambda t: t.to(whole[0]))


def decomposed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return a composite operation's result by its parts, or NotImplemented where it has none."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
        return func.decompose(*args, **kwargs)
    parts = _parts(func)
    return NotImplemented if parts is None else parts(*args, **kwargs)


_OF_PARTS = frozenset(["addr", "block_diag", "count_nonzero", "linalg_cross", "rot90", "trace"])
_WHOLE = frozenset(["floor_divide", "is_same_size", "isin", "lift", "resize_as", "uniform"])


@lru_cache(maxsize=4096)
def _parts(func: Any) -> Callable[..., Any] | None:
    """Return torch's own code for a function of tensors in simpler ATen operations, None where it has none.

    Those of its references that end in primitives of its compiler, which have no rules, are left out.
    """
    found: Callable[..., Any] | None = decomposition_table.get(func)
    takes_tensors = any("Tensor" in str(a.type) for a in func._schema.arguments)
    if found is None or not takes_tensors or name_of(func) in _WHOLE:
        return None
    simple = inspect.unwrap(found).__module__ == "torch._decomp.decompositions"
    return found if simple or name_of(func).rstrip("_") in _OF_PARTS else None
