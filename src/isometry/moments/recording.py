"""What a model's constructor would draw: run it without memory, and keep the distribution of every parameter.

`recorded(build, interpreter)` runs the user's own function under two modes. The dispatch mode turns every
tensor that is drawn, uninitialised or large into a meta tensor, whose record the interpreter then carries
through `normal_`, `uniform_`, `mul_`, `erfinv_`, `clamp_`, `copy_`, … as through any other operation. What is
small and known (zeros, ranges, tables of positions) stays a real tensor. No default device is set, so
libraries that skip their initialisers inside a meta context (transformers) run them here.

Four functions of `torch.nn.init` (`trunc_normal_`, `orthogonal_`, `dirac_`, `sparse_`) do nothing on meta
tensors. They find out by reading `tensor.is_meta`; the function mode answers that question, and records what
they were about to draw. So it does not matter under which name a library has imported them.

A small real tensor that is drawn into (`nn.Parameter(torch.zeros(d)).normal_()`) has a meta *twin* on which
every write is repeated; its record is the twin's. One that a meta tensor is written into
(`pos.data.copy_(torch.randn(n, d))`) is *hollow* from then on: its own values mean nothing, and the twin
stands for it in all that follows.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from isometry.errors import ModelError
from isometry.moments import algebra as alg
from isometry.moments import latents, regrouping, rotations
from isometry.moments.aliasing import key_of
from isometry.moments.axes import Array
from isometry.moments.calls import Mode, mapped
from isometry.moments.concatenation import concatenate
from isometry.moments.concrete import LIMIT, Concrete, moments_of, pair_means
from isometry.moments.interpreter import Interpreter
from isometry.moments.literals import Literals
from isometry.moments.record import Moments
from isometry.moments.rules.base import Unknown, Value
from isometry.restore import random_state

_EMPTY = frozenset(["empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"])
_FILLED = frozenset(["zeros", "ones", "full", "zeros_like", "ones_like", "full_like"])
_DRAWN = frozenset(["rand", "randn", "rand_like", "randn_like", "normal"])
RUNS = 5  # stretches of rows that a table is cut into by rows of zeros, at most
SMALL = 1 << 18  # entries; filled tensors up to this size stay real


@dataclass
class Recording:
    """A model built without memory, and what is known of the tensors it is made of."""

    model: nn.Module
    interpreter: Interpreter
    written: set[int]
    twins: dict[Any, Tensor]

    def value(self, tensor: Tensor) -> Value | None:
        """Return what a parameter or buffer would hold; None for a real tensor that was not drawn into."""
        twin = self.twins.get(key_of(tensor))
        if twin is not None:
            return self.interpreter.value(twin)
        if not tensor.is_meta:
            return None
        if tensor.untyped_storage()._cdata not in self.written:
            return Unknown("empty", "", "its memory is never initialised")
        return self.interpreter.value(tensor)


def recorded(build: Callable[[], nn.Module], interpreter: Interpreter) -> Recording:
    """Run a function that builds a model, drawing nothing, and record the distributions of its parameters.

    Args:
        build: The function; called once, without arguments.
        interpreter: Carries the records.

    Returns:
        The model, partly on meta, with the records. Random states are as before.
    """
    restore = random_state()
    mode = _OnMeta(interpreter)
    try:
        with interpreter, mode, Literals(interpreter, mode.made), _Initialisers(interpreter, mode):
            model = build()
    finally:
        restore()
    return Recording(model, interpreter, mode.written, mode.twins)


@contextmanager
def bounded(entries: int) -> Iterator[None]:
    """Let no more than so many entries be made inside the `with` block.

    Args:
        entries: How many.

    Yields:
        Nothing.

    Raises:
        ModelError: More are asked for.
    """
    with _Bounded(entries):
        yield


class _Bounded(Mode):  # type: ignore[no-untyped-call]
    def __init__(self, left: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = left

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[1] in _EMPTY | _FILLED | _DRAWN:
            with _disable_current_modes():
                like = func(*args, **{**(kwargs or {}), "device": "meta", "pin_memory": False})
            self.left -= like.numel()
            if self.left < 0:
                raise ModelError("the model is too large to be built on real tensors")
        return func(*args, **(kwargs or {}))


class _OnMeta(Mode):  # type: ignore[no-untyped-call]
    """Make what is drawn, uninitialised or large a meta tensor; run what is small and known as it is."""

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.interpreter = interpreter
        self.written: set[int] = set()
        self.twins: dict[Any, Tensor] = {}
        self.hollow: dict[int, Tensor] = {}  # by storage; kept, so that no other tensor takes their place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [t for t in _flat((args, kwargs)) if isinstance(t, Tensor)]
        if self._moves(name, args, kwargs):
            kwargs["device"] = torch.device("meta")
            kwargs.pop("pin_memory", None)
        elif (
            not any(t.is_meta or self._is_hollow(t) for t in tensors)
            and torch.device(kwargs.get("device") or "cpu").type != "meta"
        ):
            self._repeat(func, name, args, kwargs)
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._hollow_out(args[0])
        args, kwargs = (mapped(x, self._meta) for x in (args, kwargs))
        out = kwargs.get("out")
        if isinstance(out, Tensor):
            return self._out(func, args, kwargs, out)
        result = func(*args, **kwargs)
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self.written.add(args[0].untyped_storage()._cdata)
        elif name not in _EMPTY:
            self.written.update(
                t.untyped_storage()._cdata
                for t in _flat(result)
                if isinstance(t, Tensor) and t._base is None and not func.is_view
            )
        return result

    def _moves(self, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        """Tell whether the tensor that a factory is about to make becomes a meta tensor."""
        if name not in _EMPTY and name not in _FILLED and name not in _DRAWN:
            return False
        source = args[0] if args and isinstance(args[0], Tensor) else None
        dtype = kwargs.get("dtype") or (source.dtype if source is not None else torch.get_default_dtype())
        if not (dtype.is_floating_point or dtype.is_complex):
            return False
        if name not in _FILLED:
            return True
        return math.prod(source.shape if source is not None else args[0]) > SMALL

    def _repeat(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        """Repeat a write to a real tensor on its twin, which is made when the tensor is first drawn into."""
        if not (func._schema.is_mutable and args and isinstance(args[0], Tensor)):
            return
        key = key_of(args[0])
        if torch.Tag.nondeterministic_seeded in func.tags and args[0].is_floating_point() and args[0].dim():
            self.twins[key] = self._twin(args[0])
        if key not in self.twins:
            return
        if any(isinstance(t, Tensor) for t in _flat((args[1:], kwargs))):
            del self.twins[key]  # overwritten by other values: they tell
            return
        func(self.twins[key], *args[1:], **{k: v for k, v in kwargs.items() if k != "generator"})

    def _is_hollow(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage()._cdata in self.hollow

    def _hollow_out(self, tensor: Tensor) -> None:
        """Let a twin stand for a real tensor that a meta tensor is about to be written into."""
        if tensor.is_meta or self._is_hollow(tensor):
            return
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() != storage.nbytes():
            raise ModelError("random values are written into a part of a tensor of known values")
        if key_of(tensor) not in self.twins:
            self.twins[key_of(tensor)] = self._meta(tensor)
        self.hollow[storage._cdata] = tensor

    def _meta(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if self._is_hollow(tensor):
            if key_of(tensor) not in self.twins:
                raise ModelError("a view is read of a tensor that random values were written into since")
            return self.twins[key_of(tensor)]
        with _disable_current_modes():
            twin = torch.empty_like(tensor, device="meta")
            known = tensor.detach().clone()
        self.interpreter.assign(twin, Concrete(known) if known.numel() <= LIMIT else moments_of(known))
        return twin

    def _out(self, func: Any, args: Any, kwargs: dict[str, Any], out: Tensor) -> Tensor:
        """Write the result of an operation with `out=` (torch.nn.init.eye_) into a meta tensor."""
        rest = {k: v for k, v in kwargs.items() if k != "out"}
        if out.numel() <= LIMIT and not any(isinstance(t, Tensor) for t in _flat((args, rest))):
            packet = getattr(torch.ops.aten, func._schema.name.split("::")[1])
            with _disable_current_modes():
                known = packet(*args, **rest, dtype=out.dtype)
            self.interpreter.write(out, Concrete(known))
        else:
            self.interpreter.write(out, Unknown(func._schema.name, "", "no rule for writing with out="))
        self.written.add(out.untyped_storage()._cdata)
        return out

    def record(self, tensor: Tensor, value: Value) -> None:
        """Give a tensor the record of what an initialiser would have drawn."""
        if not tensor.is_meta:
            tensor = self.twins.setdefault(key_of(tensor), self._twin(tensor))
        self.written.add(tensor.untyped_storage()._cdata)
        self.interpreter.write(tensor, value)

    def made(self, tensor: Tensor, value: Value) -> None:
        """Take down a tensor on meta whose values are known."""
        self.written.add(tensor.untyped_storage()._cdata)
        self.interpreter.assign(tensor, value)

    def _twin(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            twin = torch.empty_like(tensor, device="meta").detach()
            self.interpreter.assign(twin, Concrete(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)))
        return twin


# --- initialisers that ask for meta -------------------------------------------------------------------------


class _Initialisers(TorchFunctionMode):
    """Answer `tensor.is_meta` where one of torch's initialisers asks, by recording what it would draw."""

    def __init__(self, interpreter: Interpreter, mode: _OnMeta) -> None:
        super().__init__()
        self.interpreter, self.mode = interpreter, mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META:
            frame = sys._getframe(1)
            draw = _DRAWS.get(frame.f_code)
            if draw is not None:
                self._draw(args[0], draw, frame)
                return True
        if func == Tensor.__deepcopy__ and not args[0].is_meta:
            with _disable_current_modes():  # a number, as a batch norm's counter: its copy is no meta tensor
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _draw(self, tensor: Tensor, draw: Callable[..., Value], frame: FrameType) -> None:
        given = frame.f_locals
        if not tensor.is_meta:
            with _disable_current_modes(), torch.no_grad():
                _CALLS[frame.f_code](*[given[name] for name in inspect.getargs(frame.f_code).args])
        names = [n for n in inspect.getargs(frame.f_code).args if n not in ("tensor", "generator")]
        self.mode.record(tensor, draw(tuple(tensor.shape), *[given[name] for name in names]))


_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]


def truncated(shape: tuple[int, ...], mean: float, std: float, a: float, b: float) -> Moments:
    """Return the record of N(mean, std²) cut off at a and b; exact."""
    return alg.independent(shape, truncated_values(mean, std, a, b)) if std > 0 else alg.constant(shape, mean)


def truncated_values(mean: float, std: float, a: float, b: float) -> Array:
    """Return the quantile function of a truncated normal distribution at the nodes."""
    low, high = (torch.tensor((x - mean) / std, dtype=torch.float64) for x in (a, b))
    z = torch.from_numpy(latents.NODES)
    ndtr, ndtri = torch.special.ndtr, torch.special.ndtri
    below = ndtri(ndtr(low) + (ndtr(high) - ndtr(low)) * ndtr(z))
    above = -ndtri(ndtr(-high) + (ndtr(-low) - ndtr(-high)) * ndtr(-z))  # keeps its digits in the upper tail
    cut = torch.where(z < 0, below, above)
    return np.asarray((mean + std * torch.minimum(torch.maximum(cut, low), high)).numpy())


def orthogonal(shape: tuple[int, ...], gain: float) -> Moments:
    """Return the record of a Haar-distributed semi-orthogonal matrix; exact second moments, normal entries.

    E[w²] = gain²/max(rows, cols), and different entries are uncorrelated.
    """
    rows, cols = shape[0], math.prod(shape[1:])
    made = alg.normal(shape, 0.0, gain / math.sqrt(max(rows, cols)))
    return rotations.orthogonal(made) if shape == (rows, rows) else made


def sparse(shape: tuple[int, ...], sparsity: float, std: float) -> Moments:
    """Return the record of normal entries of which a share is 0; how many per column is taken as random."""
    share = math.ceil(sparsity * shape[0]) / shape[0]
    u = torch.special.ndtr(torch.from_numpy(latents.NODES))
    half = (1.0 - share) / 2.0
    lower = torch.special.ndtri((u / (1.0 - share)).clamp(max=0.5)) if share < 1 else torch.zeros_like(u)
    upper = -torch.special.ndtri(((1.0 - u) / (1.0 - share)).clamp(max=0.5)) if share < 1 else lower
    values = torch.where(u < half, lower, torch.where(u > 1.0 - half, upper, torch.zeros_like(u)))
    values = values * math.sqrt((1.0 - share) / max(float(latents.mean(values.numpy() ** 2)), 1e-300))
    return alg.independent(shape, std * values.numpy())


def dirac(shape: tuple[int, ...], groups: int) -> Value:
    """Return the kernel that hands its input through, as values."""
    if math.prod(shape) > LIMIT:
        return Unknown("dirac_", "", f"a kernel of {math.prod(shape)} entries is too large to hold")
    with _disable_current_modes():
        return Concrete(nn.init.dirac_(torch.empty(shape), groups))


_DRAWS: dict[CodeType, Callable[..., Value]] = {
    nn.init._no_grad_trunc_normal_.__code__: truncated,
    nn.init.orthogonal_.__code__: orthogonal,
    nn.init.sparse_.__code__: sparse,
    nn.init.dirac_.__code__: dirac,
}
_CALLS: dict[CodeType, Callable[..., Any]] = {
    f.__code__: f
    for f in (nn.init._no_grad_trunc_normal_, nn.init.orthogonal_, nn.init.sparse_, nn.init.dirac_)
}


# --- parameters with values ---------------------------------------------------------------------------------


def of_values(parameter: Tensor) -> Moments | Concrete:
    """Return the record of a parameter with values: what its initialiser seems to have drawn.

    Independent normal entries with the values' mean and standard deviation (constants where nothing varies).
    Where pairs of entries along an axis are correlated far beyond chance (frequencies, equal rows), the exact
    table of the values; where most entries of a matrix are the same (an identity), the values themselves.
    Rows of zeros, as that of an embedding's padding, stay zeros.
    """
    if parameter.is_complex():
        return _of_complex_values(parameter.detach().to("cpu", torch.complex128))
    values = parameter.detach().to("cpu", torch.float64)
    mean = float(values.mean()) if values.numel() else 0.0
    variance = float((values - mean).square().mean()) if values.numel() else 0.0
    if variance <= (1e-12 * mean) ** 2:
        return alg.constant(parameter.shape, mean)
    if parameter.dim() > 1 and values.numel() <= LIMIT and (values == values.median()).double().mean() > 0.5:
        return Concrete(parameter.detach().cpu().clone())
    if (zeros := _rows_of_zeros(values)) is not None:
        rest = values[~zeros]
        return (
            _with_zeros(of_values(rest), zeros)
            if len(rest) > 1
            else Concrete(parameter.detach().cpu().clone())
        )
    if parameter.dim() > 1 and values.numel() <= LIMIT // 4 and _structured(values, mean, variance):
        return moments_of(values)
    if _is_orthogonal(values):
        return rotations.orthogonal(alg.normal(parameter.shape, 0.0, float(values.square().mean()) ** 0.5))
    return alg.normal(parameter.shape, mean, math.sqrt(variance))


def _is_orthogonal(values: Tensor) -> bool:
    """Tell whether a square matrix is a multiple of an orthogonal one; two rows tell of most that are not."""
    if values.dim() != 2 or len(values) != values.shape[1] or len(values) < 2:
        return False
    if abs(float(values[0] @ values[1])) > 1e-4 * float(values[0].square().sum()):
        return False
    gram = values @ values.T / values[0].square().sum()
    return bool((gram - torch.eye(len(values), dtype=values.dtype)).abs().max() < 1e-4)


def _rows_of_zeros(values: Tensor) -> Tensor | None:
    """Return which rows hold nothing but zeros; None where no row does."""
    if values.dim() < 2 or not (values[:, ..., 0] == 0).any():
        return None
    zeros = (values == 0).flatten(1).all(1)
    runs = 1 + int((zeros[1:] != zeros[:-1]).sum())
    return zeros if 1 < runs <= RUNS else None


def _with_zeros(rest: Moments | Concrete, zeros: Tensor) -> Moments:
    """Return the record of rows as `rest` has them, with rows of zeros between."""
    rows = rest.moments if isinstance(rest, Concrete) else rest
    parts, taken = [], 0
    for kind, count in zip(*torch.unique_consecutive(zeros, return_counts=True), strict=True):
        n = int(count)
        if kind:
            parts.append(alg.constant((n, *rows.shape[1:]), 0.0))
        else:
            parts.append(regrouping.sliced(rows, 0, taken, taken + n, 1))
            taken += n
    return concatenate(parts, 0)


def _of_complex_values(values: Tensor) -> Moments:
    """Return the record of complex numbers, E|x|² in all; with a mean beyond chance, their exact table."""
    square = float(values.abs().square().mean()) if values.numel() else 0.0
    if values.numel() and float(values.mean().abs()) ** 2 > 64.0 * square / values.numel():
        return moments_of(values)
    return alg.normal(values.shape, 0.0, math.sqrt(square))


def _structured(values: Tensor, mean: float, variance: float) -> bool:
    """Tell whether pairs of entries are correlated by over eight standard errors of independent draws."""
    array = (values - mean).numpy().reshape([n for n in values.shape if n != 1])
    if array.ndim < 2:
        return False
    table = pair_means(array) / variance
    for index in np.ndindex(table.shape):
        if any(index):
            pairs = math.prod(n * (n - 1) if d else n for n, d in zip(array.shape, index, strict=True))
            if abs(float(table[index])) > 8.0 * math.sqrt(2.0 / pairs) + 8.0 / array.size:
                return True
    return False


# --- trees of arguments -------------------------------------------------------------------------------------


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, list | tuple):
        return [leaf for item in tree for leaf in _flat(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in _flat(item)]
    return [tree]
