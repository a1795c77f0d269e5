"""Predict a model's signal, forward and backward, from its code and initialisers: no weights, no data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from isometry.assumptions import violations
from isometry.hooks import has_values, main_tensor, named_modules, on_gradient, recomputing
from isometry.moments.interpreter import Interpreter
from isometry.moments.reading import stats_of
from isometry.moments.rules.spectral import parts_of
from isometry.names import canonical_name
from isometry.profile import Profile, Signal, Stats
from isometry.rehearsal import Builder, Loss, Rehearsal, Stage
from isometry.restore import collector_paused


@collector_paused()  # until what it made and dropped is gone: else the collector looks through all of it
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
            see `isometry.inputs.batches`. Integers and masks keep their values; the floats of a spec and of
            meta tensors stand for N(0, 1).
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
    stage, recorder = Rehearsal[_Recorder](model, inputs, loss, backward).run(_Recorder)
    return Profile(
        signals=tuple(row.signal() for row in recorder.rows.values()),
        parameters=_parameters(stage),
        source="predicted",
        notes=(
            *([stage.note] if stage.note else []),
            *_notes(stage.interpreter),
            *violations(stage.model, stage.values, [row.key for row in recorder.rows.values()]),
        ),
    )


# --- reading ------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    name: str
    call: int
    module: nn.Module
    shape: tuple[int, ...] = ()
    forward: Stats | None = None
    backward: Stats | None = None
    again: bool = False  # run a second time on the way back

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

    stage: Stage
    rows: dict[tuple[str, int], _Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {m: n for n, m in named_modules(self.stage.twin).items()}
        self._stack: list[_Row] = []
        self._calls: dict[str, int] = {}
        for module in self._names:
            self.stage.watch(module, self._before, self._after)

    def _before(self, module: nn.Module, args: Any) -> None:
        if recomputing():  # activation checkpointing: no new call
            return
        name = self._names[module]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        row = self.rows[name, call] = _Row(name, call, module)
        self._stack.append(row)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if recomputing():
            if tensor is not None and tensor.requires_grad:
                self._after_recomputation(self._names[module], tensor)
            return
        row = self._stack.pop()
        if tensor is None:
            return
        row.shape = tuple(tensor.shape)
        row.forward = self._stats(row, tensor)
        if tensor.requires_grad:
            on_gradient(tensor, lambda g: self._gradient(row, g))

    def _after_recomputation(self, name: str, tensor: Tensor) -> None:
        """Take the gradient that reentrant checkpointing gives to a second run, last calls first."""
        waiting = [r for r in self.rows.values() if r.name == name and r.backward is None and not r.again]
        alike = [row for row in waiting if row.forward == self._stats(row, tensor)]
        if alike:
            row = alike[-1]
            row.again = True
            on_gradient(tensor, lambda g: self._gradient(row, g))

    def _gradient(self, row: _Row, g: Tensor) -> None:
        if row.backward is None:
            row.backward = self._stats(row, g)

    def _stats(self, row: _Row, tensor: Tensor) -> Stats | None:
        return read(self.stage.interpreter, tensor, samples=row.samples) if has_values(tensor) else None


def read(interpreter: Interpreter, tensor: Tensor, *, samples: int = 0) -> Stats | None:
    """Return the statistics of a tensor's record, of a complex one those of its parts; None if unknown."""
    m = interpreter.moments(tensor)
    if m is not None and tensor.is_complex():
        m = parts_of(m)
    return None if m is None else stats_of(m, samples=samples, scatter=interpreter.spread.scatter(m))


def _parameters(stage: Stage) -> tuple[Signal, ...]:
    twin, interpreter = stage.twin, stage.interpreter
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
