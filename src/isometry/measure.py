"""Run a model on data and measure what happens to the signal, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError
from isometry.hooks import (
    Recorder,
    checked_model,
    checked_output,
    fetch,
    has_values,
    is_compiled,
    named_modules,
    tensors_in,
)
from isometry.inputs import Batch, batches, check_finite, loader_state, map_tensors, mismatch
from isometry.names import canonical_name
from isometry.profile import Profile, Signal, Stats
from isometry.restore import preserved
from isometry.statistics import Pool, reduce_entries

Loss = Callable[..., Tensor]


def measure(
    model: nn.Module,
    inputs: object,
    *,
    loss: Loss | None = None,
    backward: bool = True,
    limit: int = 8,
) -> Profile:
    """Run a model on data and return the statistics of every module call, forward and backward.

    For the output x of every call: mean, std, RMS √E[x²], extremes, share of zeros, share saturated,
    kurtosis E[(x − mean)⁴]/std⁴ and the mean cosine between two samples (dimension 0; 1 in modules that are
    not `batch_first`). For the gradient g at that output: mean, std, RMS, extremes, zeros. The same for
    parameters and their gradients. All sums are float64; several batches are pooled, gradients as one draw
    per batch. A call whose output is no single tensor is described by its first one with values and a
    dimension.

    Without a `loss` every output of the model is given an i.i.d. N(0, 1) gradient (from a generator of its
    own, always the same), so that a backward RMS reads "per unit of output gradient"; a model that returns
    only a scalar is taken to return its loss. With a `loss` the gradients are those of the loss.

    The model runs in the mode (train or eval) it is in. Afterwards parameters, gradients, buffers, mode,
    hooks and random states are as before, bit for bit, also after an error. Inputs are copied and moved to
    the model's device. Functional calls (`F.relu`, `x + y`) belong to the module that makes them and have
    no row.

    Args:
        model: The model; wrappers (DDP, `torch.compile`) are looked through, compiled code runs eagerly.
        inputs: A tensor, a tuple, a dict, a DataLoader or other iterable of batches, or a spec such as
            `"32x1024"`, floats in the model's dtype; see `isometry.inputs.batches`.
        loss: `loss(output)`, or `loss(output, target)` where the batches of a loader bring a target.
        backward: Whether to run backward.
        limit: At most so many batches of a loader.

    Returns:
        The profile, `source="measured"`.

    Raises:
        InvalidTypeError: `model`, `inputs` or what `loss` returned has a type that cannot be used.
        InvalidValueError: The inputs hold nan or infinities, or there is no batch.
        ModelError: The model has no parameters or no values, or failed; the message names the module.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> profile = measure(model, torch.randn(32, 8))
        >>> profile["1"].forward.zeros > 0.1, profile["2"].shape
        (True, (32, 3))
        >>> 0.8 < profile["2"].backward.rms < 1.2  # 96 draws of the N(0, 1) gradient it is given
        True
    """
    module = checked_model(model)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidValueError(f"limit must be a whole number of 1 or more, got {limit!r}")
    gradients: dict[str, Pool] = {}
    with ExitStack() as stack:
        stack.enter_context(preserved(module))
        stack.enter_context(loader_state(inputs))
        stack.enter_context(_no_updates(module))
        stack.enter_context(_eager(module))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(backward))
        recorder = stack.enter_context(Recorder(module, backward=backward))
        count, found = 0, batches(inputs, limit=limit, floats=_floats(module))
        for count, batch in enumerate(found, start=1):  # noqa: B007
            check_finite(batch)
            output = _forward(module, _private(batch, module), recorder)
            if backward:
                _backward(module, output, batch, loss, gradients)
            del output
        if count == 0:
            raise InvalidValueError("inputs gave no batch: there is nothing to measure")
        return Profile(
            signals=recorder.signals(),
            parameters=_parameters(module, gradients),
            source="measured",
            notes=_notes(module, recorder, gradients),
        )


# --- the surroundings of a run --------------------------------------------------------------------


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """Run every submodule through its own forward: no compiled code, no fused attention path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # in eval mode it passes the submodules by
    try:
        if is_compiled(module):  # asked first, because the import of the compiler takes a second
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _no_updates(module: nn.Module) -> Iterator[None]:
    """Silence the hooks that run when a gradient is complete: some users let their optimizer step there."""
    tables = [getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in module.parameters()]
    kept = [(table, dict(table)) for table in tables if table]
    for table, _ in kept:
        table.clear()
    try:
        yield
    finally:
        for table, content in kept:
            table.update(content)


def _floats(module: nn.Module) -> torch.dtype:
    """What the model computes in: the dtype of its first real parameter."""
    dtypes = (parameter.dtype for parameter in module.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _private(batch: Batch, module: nn.Module) -> Batch:
    """Copy the inputs, which an in-place activation could overwrite, to where the model is."""
    device = next(module.parameters()).device

    def copy(tensor: Tensor, where: str) -> Tensor:
        if tensor.is_meta:
            raise InvalidValueError(f"{where} is on the meta device: measuring needs values")
        own = tensor.detach().to(device, copy=True)
        return own.requires_grad_(tensor.requires_grad)

    return Batch(args=map_tensors(batch.args, copy), kwargs=map_tensors(dict(batch.kwargs), copy))


# --- forward and backward -------------------------------------------------------------------------


def _forward(module: nn.Module, batch: Batch, recorder: Recorder) -> Any:
    try:
        return checked_output(module(*batch.args, **batch.kwargs))
    except IsometryError:
        raise
    except Exception as error:
        path = recorder.running
        where = (
            f"in module {path!r} ({type(named_modules(module)[path]).__name__})" if path else "in its forward"
        )
        hint = "" if path else mismatch(module.forward, batch.args, batch.kwargs)
        raise ModelError(f"the model failed {where}: {type(error).__name__}: {error}{hint}") from error


def _backward(
    module: nn.Module, output: Any, batch: Batch, loss: Loss | None, gradients: dict[str, Pool]
) -> None:
    """Run one backward pass and pool the gradients of the parameters; `preserved` brings each `.grad` back.

    `torch.autograd.grad` would spare us that, but it skips reentrant checkpoints, some without a word.
    """
    named = [(canonical_name(name), p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        return
    ends, seeds = _seeded(output) if loss is None else ([_loss(output, batch, loss)], None)
    if not ends:
        return
    for _, parameter in named:
        parameter.grad = None
    try:
        torch.autograd.backward(ends, seeds)
    except RuntimeError as error:
        raise ModelError(f"the backward pass failed: {error}") from error
    pieces = {name: reduce_entries(p.grad) for name, p in named if p.grad is not None}
    numbers = fetch(list(pieces.values()))
    for name, piece in pieces.items():
        gradients.setdefault(name, Pool()).add(numbers[id(piece)])


def _seeded(output: Any) -> tuple[list[Tensor], list[Tensor] | None]:
    """The outputs that get a gradient, and i.i.d. unit normal gradients for them."""
    ends = [tensor for tensor in tensors_in(output) if has_values(tensor) and tensor.requires_grad]
    if all(tensor.dim() == 0 for tensor in ends):
        return ends, None
    ends = list({id(tensor): tensor for tensor in ends if tensor.dim() > 0}.values())
    generator = torch.Generator().manual_seed(0)
    seeds = []
    for tensor in ends:
        dtype = torch.complex64 if tensor.is_complex() else torch.float32
        draw = torch.randn(tensor.shape, generator=generator, dtype=dtype)
        seeds.append(draw.to(device=tensor.device, dtype=tensor.dtype))
    return ends, seeds


def _loss(output: Any, batch: Batch, loss: Loss) -> Tensor:
    if not callable(loss):
        raise InvalidTypeError(f"loss must be a callable, got {type(loss).__name__}")
    device = next((tensor.device for tensor in tensors_in(output)), torch.device("cpu"))
    call = "loss(output)" if batch.target is None else "loss(output, target)"
    target = () if batch.target is None else (map_tensors(batch.target, lambda t, _: t.to(device), "target"),)
    try:
        value = loss(output, *target)
    except Exception as error:
        raise ModelError(f"{call} failed: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        raise InvalidTypeError(f"{call} must return a tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.requires_grad:
        raise InvalidValueError(
            f"{call} must return one number that depends on the parameters, got a tensor of shape "
            f"{tuple(value.shape)}" + ("" if value.requires_grad else " that needs no gradient")
        )
    return value


# --- the profile ----------------------------------------------------------------------------------


def _parameters(module: nn.Module, gradients: dict[str, Pool]) -> tuple[Signal, ...]:
    rows = []
    kinds = {name: type(owner).__name__ for name, owner in named_modules(module).items()}
    named = [(canonical_name(name), parameter) for name, parameter in module.named_parameters()]
    pieces = {
        name: reduce_entries(parameter, shape=True) for name, parameter in named if has_values(parameter)
    }
    numbers = fetch(list(pieces.values()))
    for name, parameter in named:
        values: Stats | None = None
        if name in pieces:
            pool = Pool()
            pool.add(numbers[id(pieces[name])])
            values = pool.stats()
        rows.append(
            Signal(
                name=name,
                kind=kinds.get(name.rpartition(".")[0], ""),
                shape=tuple(parameter.shape),
                forward=values,
                backward=gradients[name].stats() if name in gradients else None,
            )
        )
    return tuple(rows)


def _notes(module: nn.Module, recorder: Recorder, gradients: dict[str, Pool]) -> tuple[str, ...]:
    """What the reader could miss: modules that never ran, because nobody called them."""
    called = {name for name, _ in recorder.records}
    silent = [
        name
        for name, part in named_modules(module).items()
        if name not in called and next(part.parameters(recurse=False), None) is not None
    ]
    used = [name for name in silent if any(key.rpartition(".")[0] == name for key in gradients)]
    unused = [name for name in silent if name not in used]
    notes = []
    if used:
        notes.append(f"Not called, their weights are used by another module directly: {_few(used)}.")
    if unused:
        notes.append(f"Never ran: {_few(unused)}.")
    return tuple(notes)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
