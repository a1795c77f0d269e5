"""Follow the signal through a model: attach hooks, gather statistics per module call, leave no trace.

What is known to be hard about hooks, and what is done about it:

- `register_full_backward_hook` raises with in-place activations and in-place residual adds. Here a forward
  hook puts a hook on the output *tensor*, which sees the gradient at the value before any in-place change.
- A tensor that is kept shows what an in-place operation made of it. Here all is reduced inside the hook.
- Activation checkpointing runs a module again during the backward pass. A recomputation is no new call: only
  its gradient is taken, and only where the first run could not give it (reentrant checkpointing).
- Reading a number from an accelerator waits for it. Here the reductions stay there until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from inspect import isgenerator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isometry.errors import InvalidTypeError, ModelError, described
from isometry.names import canonical_name, unwrap
from isometry.profile import Signal
from isometry.statistics import Pool, reduce_cosine, reduce_entries, saturation

Key = tuple[str, int]


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's modules by canonical name, the wrappers around them left out.

    Args:
        model: The model.

    Returns:
        Name → module, parents first; a module that is registered twice has its first name.

    Example:
        >>> list(named_modules(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
        ['', '0', '1']
    """
    return {
        canonical_name(name): module for name, module in model.named_modules() if unwrap(module) is module
    }


def is_compiled(model: nn.Module) -> bool:
    """Tell whether `torch.compile` or `Module.compile` was applied to a model or to a part of it.

    Args:
        model: The model.

    Returns:
        True if compiled code would run in place of some module's forward.

    Example:
        >>> is_compiled(nn.Linear(2, 3))
        False
    """
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules()
    )


def checked_model(model: object) -> nn.Module:
    """Return the user's module inside all wrappers, or say why its signal cannot be followed.

    Args:
        model: What the user gave.

    Returns:
        The module.

    Raises:
        InvalidTypeError: It is no module.
        ModelError: It has no parameters, or parameters without values, or is scripted.
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {described(model)}")
    module = unwrap(model)
    check_unscripted(module)
    parameters = dict(module.named_parameters())
    if not parameters:
        kind = type(module).__name__
        raise ModelError(f"{kind} has no parameters: there is nothing to initialise or measure")
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"parameter {name!r} has no shape yet: run the model once on data, then try again"
            )
        if parameter.is_meta:
            raise ModelError(
                f"parameter {name!r} is on the meta device and has no values: build the model on a "
                "real device, or call model.to_empty(device=...) and initialise it"
            )
    return module


def check_unscripted(model: nn.Module) -> None:
    """Raise ModelError where a model or a part of it is scripted, which hides what happens inside."""
    for name in (n for n, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)):
        what = f"module {name!r}" if name else "the model"
        raise ModelError(f"{what} is a scripted model without hooks: give the one it was made from")


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output: itself, or in tuples, lists, mappings and dataclasses.

    Args:
        value: What a module returned.

    Yields:
        The tensors, in order.

    Example:
        >>> [tensor.item() for tensor in tensors_in((torch.tensor(1), {"a": [torch.tensor(2)], "b": None}))]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


def checked_output(output: object) -> object:
    """Return what a model gave, or say that nothing of its code has run.

    Args:
        output: What it returned.

    Returns:
        The same.

    Raises:
        ModelError: It is a generator.
    """
    if isgenerator(output):
        raise ModelError(
            "the model's forward holds a yield and returned a generator, so that nothing of it has run: give "
            "a module whose forward returns a list of what it gives"
        )
    return output


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor carries a signal: real or complex numbers, not integers or booleans."""
    return tensor.is_floating_point() or tensor.is_complex()


def main_tensor(output: object) -> Tensor | None:
    """Return the tensor of a module's output that its row describes.

    That is the first one with values and at least one dimension (a loss beside the logits is passed over),
    else the first one with values, else the first one.

    Args:
        output: What a module returned.

    Returns:
        The tensor; None if there is none.

    Example:
        >>> main_tensor((torch.tensor(0.5), torch.ones(2, 3))).shape
        torch.Size([2, 3])
    """
    tensors = list(tensors_in(output))
    valued = [tensor for tensor in tensors if has_values(tensor)]
    arrays = [tensor for tensor in valued if tensor.dim() > 0]
    return next(iter(arrays or valued or tensors), None)


def on_gradient(tensor: Tensor, take: Callable[[Tensor], Any]) -> RemovableHandle:
    """Call `take` with the gradient of a tensor during the backward pass.

    A view of what was written to in place gets a new node in the graph when it is next asked for one, and
    forgets its hooks at that moment: a hook put on it before crashes the process. So it is asked for first.

    Args:
        tensor: One that requires a gradient.
        take: Called with the gradient.

    Returns:
        What removes the hook.
    """
    _ = tensor.grad_fn
    handle: RemovableHandle = tensor.register_hook(take)  # type: ignore[no-untyped-call]
    return handle


def recomputing() -> bool:
    """Tell whether this forward code runs inside a backward pass, as activation checkpointing does it."""
    return bool(torch._C._current_graph_task_id() != -1)  # private; the tests hold it to its meaning


@dataclass(slots=True)
class Record:
    """What is gathered about one call of one module."""

    name: str
    call: int
    kind: str
    shape: tuple[int, ...] = ()
    forward: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    backward: list[Tensor] = field(default_factory=list)
    saturates: bool = False
    divisor: float = 1.0


Values = tuple[Tensor, Tensor | None]
Observer = Callable[[str, int, nn.Module, Tensor], None]


class Recorder:
    """Hooks on every module of a model that gather the statistics of outputs and of the gradients there.

    Attach with `with`, or with `attach` and `detach`. Each forward pass of the whole model starts to count
    calls anew, so that several batches pool into the same records.

    Args:
        model: The model.
        backward: Whether to follow the gradients too.
        gradient_scale: Asked when a gradient arrives; gradients are divided by its answer.
        only_training: Look away while gradients are disabled, as during a validation pass.
        observer: Called with name, call, module and tensor for every output with values.
        gradient_observer: Called likewise with every gradient at such an output.
        shape: Whether to gather kurtosis and cosine of the values too.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        backward: bool = True,
        gradient_scale: Callable[[], float] | None = None,
        only_training: bool = False,
        observer: Observer | None = None,
        gradient_observer: Observer | None = None,
        shape: bool = True,
    ) -> None:
        self.model = model
        self.records: dict[Key, Record] = {}
        self._names = {module: name for name, module in named_modules(model).items()}
        self._backward = backward
        self._gradient_scale = gradient_scale
        self._only_training = only_training
        self._observer = observer
        self._gradient_observer = gradient_observer
        self._shape = shape
        self._last_values: tuple[Tensor, tuple[int, int, int | None], Values] | None = None
        self._last_gradient: tuple[Tensor, Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._stack: list[tuple[nn.Module, Record]] = []
        self._calls: dict[str, int] = {}
        self._looking = True

    def attach(self) -> None:
        """Put the hooks on."""
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after))

    def detach(self) -> None:
        """Take every hook off, those on tensors that are still alive included."""
        while self._handles:
            self._handles.pop().remove()
        self._stack.clear()
        self._last_values = self._last_gradient = None

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def running(self) -> str | None:
        """Name of the innermost module whose forward has begun and not ended."""
        return self._stack[-1][1].name if self._stack else None

    def _before(self, module: nn.Module, args: object) -> None:
        if recomputing():
            return
        if module is self.model:
            self._stack.clear()  # what an exception in an earlier pass may have left
            self._calls.clear()
        if not self._stack:
            self._looking = torch.is_grad_enabled() or not self._only_training
        name = self._names[module]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        record = self.records.get((name, call)) or Record(name, call, type(module).__name__)
        if self._looking:
            self.records[name, call] = record
        self._stack.append((module, record))

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        if recomputing():
            self._after_recomputation(module, output)
            return
        record = self._pop(module)
        if record is None or not self._looking:
            return
        tensor = main_tensor(output)
        if tensor is None:
            return
        record.shape = tuple(tensor.shape)
        if has_values(tensor):
            with torch.no_grad():
                self._take_values(record, module, tensor)
            self._follow_gradient(record, module, tensor)

    def _pop(self, module: nn.Module) -> Record | None:
        """The record of the call that ends now; calls inside it that an exception ended are dropped."""
        while self._stack:
            begun, record = self._stack.pop()
            if begun is module:
                return record
        return None

    def _take_values(self, record: Record, module: nn.Module, tensor: Tensor) -> None:
        mask = saturation(module)
        record.saturates = mask is not None
        axis = _sample_axis(module, tensor) if self._shape else None
        # A container hands on the very tensor of its last part: there is nothing new to count.
        same = (id(tensor), 0 if tensor.is_inference() else tensor._version, axis)
        if mask is not None or self._last_values is None or self._last_values[1] != same:
            cosine = None if axis is None else reduce_cosine(tensor, axis)
            values = reduce_entries(tensor, mask, shape=self._shape), cosine
            self._last_values = (tensor, same, values) if mask is None else None
        else:
            values = self._last_values[2]
        record.forward.append(values)
        if self._observer is not None:
            self._observer(record.name, record.call, module, tensor)

    def _follow_gradient(self, record: Record, module: nn.Module, tensor: Tensor) -> None:
        if self._backward and tensor.requires_grad:
            self._handles.append(on_gradient(tensor, partial(self._take_gradient, record, module)))

    def _take_gradient(self, record: Record, module: nn.Module, gradient: Tensor) -> None:
        if self._gradient_scale is not None:
            record.divisor = self._gradient_scale()
        with torch.no_grad():
            if self._last_gradient is None or self._last_gradient[0] is not gradient:
                self._last_gradient = gradient, reduce_entries(gradient)
            record.backward.append(self._last_gradient[1])
            if self._gradient_observer is not None:
                self._gradient_observer(record.name, record.call, module, gradient)

    def _after_recomputation(self, module: nn.Module, output: object) -> None:
        """Reentrant checkpointing: the first run had no graph, this one has; match it to its first run."""
        tensor = main_tensor(output)
        if tensor is None or not tensor.requires_grad or not has_values(tensor):
            return
        name = self._names[module]
        waiting = [record for record in self.records.values() if record.name == name and not record.backward]
        if len(waiting) > 1:
            with torch.no_grad():
                again = reduce_entries(tensor, saturation(module), shape=self._shape)
            waiting = [
                record for record in waiting if any(_equal(entries, again) for entries, _ in record.forward)
            ]
        if waiting:
            self._follow_gradient(waiting[0], module, tensor)

    def signals(self) -> tuple[Signal, ...]:
        """Read everything gathered so far.

        Returns:
            A row per module call, in the order in which the calls began.
        """
        numbers = fetch([piece for record in self.records.values() for piece in _pieces(record)])
        return tuple(_signal(record, numbers) for record in self.records.values())


def _equal(entries: Tensor, others: Tensor) -> bool:
    return entries.shape == others.shape and bool(torch.isclose(entries, others, 0, 0, equal_nan=True).all())


def _sample_axis(module: nn.Module, tensor: Tensor) -> int | None:
    """The dimension of the samples: 0, or 1 for sequence-first modules; None where there is no such thing."""
    if tensor.dim() < 2 or tensor.layout is not torch.strided or tensor.is_nested or tensor.numel() == 0:
        return None
    return 1 if getattr(module, "batch_first", True) is False and tensor.dim() == 3 else 0


def _pieces(record: Record) -> Iterator[Tensor]:
    for entries, cosine in record.forward:
        yield entries
        if cosine is not None:
            yield cosine
    yield from record.backward


def fetch(tensors: list[Tensor]) -> dict[int, Any]:
    """Bring many small tensors to the host in one transfer per device.

    Args:
        tensors: The tensors, all float64.

    Returns:
        id of a tensor → its values as nested lists.

    Example:
        >>> tensor = torch.ones(2, dtype=torch.float64)
        >>> fetch([tensor])[id(tensor)]
        [1.0, 1.0]
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    values: dict[int, Any] = {}
    for group in by_device.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            values[id(tensor)] = part.reshape(tensor.shape).tolist()
    return values


def _signal(record: Record, numbers: Mapping[int, Any]) -> Signal:
    forward, backward = Pool(), Pool()
    for entries, cosine in record.forward:
        pair = (0.0, 0.0) if cosine is None else numbers[id(cosine)]
        forward.add(numbers[id(entries)], pair, saturation=record.saturates)
    for entries in record.backward:
        backward.add(numbers[id(entries)])
    return Signal(
        name=record.name,
        call=record.call,
        kind=record.kind,
        shape=record.shape,
        forward=forward.stats() if record.forward else None,
        backward=backward.stats(divisor=record.divisor) if record.backward else None,
    )
