"""Predict a model's signal, forward and backward, from its code and initialisers: no weights, no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import isometry.moments.rules  # noqa: F401  (registers the rules)
from isometry.assumptions import violations
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.hooks import has_values, main_tensor, named_modules, tensors_in
from isometry.inputs import Batch, batches, check_finite, map_tensors
from isometry.moments.carrier import Carrier, Kind, values_of
from isometry.moments.interpreter import Interpreter
from isometry.moments.reading import stats_of
from isometry.moments.recording import recorded
from isometry.moments.rules.base import Value
from isometry.names import canonical_name, unwrap
from isometry.profile import Profile, Signal, Stats
from isometry.restore import random_state

Loss = Callable[..., Tensor]
Builder = Callable[[], nn.Module]

REAL_LIMIT = 1 << 31  # parameters; a larger model is not copied or built on real tensors


def predict(
    model: nn.Module | Builder, inputs: object, *, loss: Loss | None = None, backward: bool = True
) -> Profile:
    """Return the expected statistics of every module call, forward and backward, without running on numbers.

    The model's own forward code and autograd's own backward run on meta tensors, and the second moments of
    every tensor are carried along: mean, RMS √E[x²], share of zeros and cosine between samples of every
    output, the RMS of the gradient there, and of every parameter's gradient. `scatter` is how far a single
    draw of a network of this width is expected to lie from it.

    A *builder* is run on meta too, and what its initialisers would draw is recorded: no memory at any size.
    Of a model with values the parameters' own mean and spread are used. A model whose code needs values
    that meta tensors lack runs on a real copy; the notes say so, and list what is unknown, which
    approximations were used, and which assumptions the model violates.

    *Assumes* random, independent weights and (as mean-field theory does) gradients that do not depend on the
    weights they pass; exact as widths grow, for most operations; see docs/predict.md for the errors measured.
    Without a `loss` every output is given an i.i.d. unit gradient, as `measure` does.

    Args:
        model: The model, or a function without arguments that builds it.
        inputs: A tensor, a tuple, a dict, a loader (its first batch is used) or a spec such as `"32x1024"`;
        see
            `isometry.inputs.batches`. Integers and masks keep their values; the floats of a spec and of meta
            tensors stand for N(0, 1).
        loss: `loss(output)`, or `loss(output, target)` where a loader brings a target; returns one number.
        backward: Whether to run backward.

    Returns:
        The profile, `source="predicted"`. What an operation without a rule made unknown is None; the notes
        name it.

    Raises:
        InvalidTypeError: `model` is neither a module nor a function that returns one, or `inputs` has a type
            that cannot be used.
        InvalidValueError: The inputs hold nan or infinities, or there is no batch.
        ModelError: The model failed; the message names the module.

    Example:
        >>> build = lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> profile = predict(build, "32x64")
        >>> 0.4 < profile["1"].forward.rms < 0.42, round(profile["1"].forward.zeros, 2)
        (True, 0.5)

    Reference:
        Poole et al. 2016, Schoenholz et al. 2017 (mean-field maps); Yang 2019 (tensor programs).
    """
    batch = _first(inputs)
    restore = random_state()
    try:
        with torch.inference_mode(mode=False), _plain_kernels():
            return _Prediction(model, batch, loss, backward, isinstance(inputs, str)).run()
    finally:
        restore()


def _first(inputs: object) -> Batch:
    batch = next(iter(batches(inputs, limit=1)), None)
    if batch is None:
        raise InvalidValueError("inputs gave no batch: there is nothing to predict")
    check_finite(batch)
    return batch


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Let attention and recurrent layers run as ordinary operations, which have rules."""
    fast, fused = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused)


@dataclass
class _Prediction:
    """One call of `predict`: on meta first, on real tensors where that fails."""

    source: nn.Module | Builder
    batch: Batch
    loss: Loss | None
    backward: bool
    normal: bool

    def run(self) -> Profile:
        interpreter = Interpreter()
        model, values = self._built(interpreter)
        try:
            return self._on("meta", model, values, interpreter)
        except (InvalidTypeError, InvalidValueError):
            raise
        except Exception as error:
            real = self._real(model, error)
            profile = self._on("real", real, values, Interpreter())
            first = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            note = f"carrier: real tensors, because the model does not run on meta ones ({first})"
            return Profile(profile.signals, profile.parameters, profile.source, (note, *profile.notes))

    def _built(self, interpreter: Interpreter) -> tuple[nn.Module, dict[str, Value]]:
        if isinstance(self.source, nn.Module):
            model = unwrap(self.source)
            _check(model)
            return model, values_of(model, None)
        if not callable(self.source):
            raise InvalidTypeError(
                "model must be a torch.nn.Module or a function without arguments that builds one, got "
                f"{type(self.source).__name__}"
            )
        try:
            recording = recorded(self.source, interpreter)
        except Exception as error:
            raise ModelError(f"the builder failed on meta: {type(error).__name__}: {error}") from error
        if not isinstance(recording.model, nn.Module):
            raise InvalidTypeError(
                f"the builder must return a torch.nn.Module, got {type(recording.model).__name__}"
            )
        model = unwrap(recording.model)
        _check(model)
        return model, values_of(model, recording)

    def _real(self, model: nn.Module, error: Exception) -> nn.Module:
        size = sum(p.numel() for p in model.parameters())
        if size > REAL_LIMIT:
            raise error
        if isinstance(self.source, nn.Module):
            if any(p.is_meta for p in model.parameters()):
                raise error
            return model
        return unwrap(self.source())

    def _on(
        self, kind: Kind, model: nn.Module, values: dict[str, Value], interpreter: Interpreter
    ) -> Profile:
        carrier = Carrier(kind, interpreter)
        twin = carrier.model(model, values)
        args, kwargs = map_tensors(
            (self.batch.args, dict(self.batch.kwargs)),
            lambda t, where: carrier.given(t, where, normal=self.normal),
        )
        recorder = _Recorder(twin, interpreter)
        with interpreter, torch.set_grad_enabled(self.backward):
            try:
                output = twin(*args, **kwargs)
            except Exception as error:
                raise ModelError(_failure(recorder, twin, error)) from error
            if self.backward:
                self._run_backward(carrier, output)
        return Profile(
            signals=tuple(row.signal() for row in recorder.rows.values()),
            parameters=_parameters(twin, interpreter),
            source="predicted",
            notes=(
                *_notes(interpreter),
                *violations(model, values, [row.key for row in recorder.rows.values()]),
            ),
        )

    def _run_backward(self, carrier: Carrier, output: Any) -> None:
        try:
            if self.loss is not None:
                self._loss(carrier, output).backward()  # type: ignore[no-untyped-call]
                return
            ends = [t for t in tensors_in(output) if has_values(t) and t.requires_grad]
            if all(t.dim() == 0 for t in ends):
                if ends:
                    torch.autograd.backward(ends)
                return
            ends = list({id(t): t for t in ends if t.dim() > 0}.values())
            torch.autograd.backward(ends, [carrier.seed(t) for t in ends])
        except (InvalidTypeError, InvalidValueError):
            raise
        except Exception as error:
            raise ModelError(f"the backward pass failed: {type(error).__name__}: {error}") from error

    def _loss(self, carrier: Carrier, output: Any) -> Tensor:
        if not callable(self.loss):
            raise InvalidTypeError(f"loss must be a callable, got {type(self.loss).__name__}")
        target: tuple[Any, ...] = ()
        if self.batch.target is not None:
            target = (map_tensors(self.batch.target, lambda t, _: carrier.known(t), "target"),)
        value = self.loss(output, *target)
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"loss(output) must return a tensor, got {type(value).__name__}")
        if value.numel() != 1 or not value.requires_grad:
            raise InvalidValueError(
                "loss(output) must return one number that depends on the parameters, got a tensor of shape "
                f"{tuple(value.shape)}"
            )
        return value.reshape(())


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("a scripted model hides its operations: give the model it was made from")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"parameter {name!r} has no shape yet: run the model once on data, then try again"
            )


def _failure(recorder: _Recorder, twin: nn.Module, error: Exception) -> str:
    path = recorder.running
    where = f"in module {path!r} ({type(named_modules(twin)[path]).__name__})" if path else "in its forward"
    return f"the model failed {where}: {type(error).__name__}: {error}"


# --- reading ------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    name: str
    call: int
    module: nn.Module
    shape: tuple[int, ...] = ()
    forward: Stats | None = None
    backward: Stats | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.call

    @property
    def samples(self) -> int:
        """The dim along which the samples lie: 1 in sequence-first modules, as `measure` reads it."""
        return 1 if getattr(self.module, "batch_first", True) is False and len(self.shape) == 3 else 0

    def signal(self) -> Signal:
        return Signal(
            name=self.name,
            call=self.call,
            kind=type(self.module).__name__,
            shape=self.shape,
            forward=self.forward,
            backward=self.backward,
        )


@dataclass
class _Recorder:
    """Hooks on the twin that read the records of outputs and of the gradients there."""

    twin: nn.Module
    interpreter: Interpreter
    rows: dict[tuple[str, int], _Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {m: n for n, m in named_modules(self.twin).items()}
        self._stack: list[_Row] = []
        self._calls: dict[str, int] = {}
        for module in self._names:
            module.register_forward_pre_hook(self._before)
            module.register_forward_hook(self._after)

    @property
    def running(self) -> str:
        """Name of the innermost module whose forward has begun and not ended."""
        return self._stack[-1].name if self._stack else ""

    def _before(self, module: nn.Module, args: Any) -> None:
        name = self._names[module]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        row = self.rows[name, call] = _Row(name, call, module)
        self._stack.append(row)
        self.interpreter.module = name

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        row = self._stack.pop()
        self.interpreter.module = self.running
        tensor = main_tensor(output)
        if tensor is None:
            return
        row.shape = tuple(tensor.shape)
        row.forward = self._stats(row, tensor)
        if tensor.requires_grad:
            tensor.register_hook(lambda g: self._gradient(row, g))  # type: ignore[no-untyped-call]

    def _gradient(self, row: _Row, g: Tensor) -> None:
        if row.backward is None:
            row.backward = self._stats(row, g)

    def _stats(self, row: _Row, tensor: Tensor) -> Stats | None:
        return read(self.interpreter, tensor, samples=row.samples) if has_values(tensor) else None


def read(interpreter: Interpreter, tensor: Tensor, *, samples: int = 0) -> Stats | None:
    """Return the statistics of a tensor's record; None where it is unknown."""
    m = interpreter.moments(tensor)
    return None if m is None else stats_of(m, samples=samples, scatter=interpreter.spread.scatter(m))


def _parameters(twin: nn.Module, interpreter: Interpreter) -> tuple[Signal, ...]:
    kinds = {name: type(owner).__name__ for name, owner in named_modules(twin).items()}
    rows = []
    for path, p in twin.named_parameters():
        name = canonical_name(path)
        rows.append(
            Signal(
                name=name,
                kind=kinds.get(name.rpartition(".")[0], ""),
                shape=tuple(p.shape),
                forward=read(interpreter, p),
                backward=None if p.grad is None else read(interpreter, p.grad),
            )
        )
    return tuple(rows)


def _notes(interpreter: Interpreter) -> tuple[str, ...]:
    lines = [
        f"unknown: {u.op} in {u.module or 'the model'} ({u.reason}), {n}×"
        for u, n in interpreter.unknown.items()
    ]
    return (*lines, *(f"approximation: {text}, {n}×" for text, n in interpreter.notes.items()))
