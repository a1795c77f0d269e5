"""Predict a model's signal, forward and backward, from its code and initialisers alone: no weights, no data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import isometry.moments.rules  # noqa: F401  (registers the rules)
from isometry.errors import ModelError
from isometry.hooks import has_values, main_tensor, named_modules, tensors_in
from isometry.inputs import batches, map_tensors
from isometry.moments import algebra as alg
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments import regrouping as reg
from isometry.moments.concrete import LIMIT, Concrete, moments_of
from isometry.moments.interpreter import Interpreter
from isometry.moments.record import Moments
from isometry.names import canonical_name
from isometry.profile import Profile, Signal, Stats

Loss = Callable[..., Tensor]


def predict(model: nn.Module, inputs: object, *, loss: Loss | None = None, backward: bool = True) -> Profile:
    """Return the expected statistics of every module call, forward and backward, without running on numbers.

    The model's own forward code and autograd's own backward run on meta tensors, and the second moments of
    every tensor are
    carried along. Each number is an expectation over random weights and inputs; a parameter with values
    contributes their mean
    and spread.

    Without a `loss` every output is given an i.i.d. unit gradient, as `measure` does.

    Args:
        model: The model.
        inputs: A tensor, a tuple, a dict or a spec such as `"32x1024"`; see `isometry.inputs.batches`.
        loss: `loss(output)`; must return one number.
        backward: Whether to run backward.

    Returns:
        The profile, `source="predicted"`. What an operation without a rule made unknown is None; the notes
        name it.

    Raises:
        ModelError: The model failed on meta tensors; the message names the module.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> profile = predict(model, "32x64")
        >>> 0.4 < profile["1"].forward.rms < 0.42, round(profile["1"].forward.zeros, 2)
        (True, 0.5)
    """
    interpreter = Interpreter()
    twin = _on_meta(model, interpreter)
    (batch,) = batches(inputs)
    args, kwargs = map_tensors((batch.args, dict(batch.kwargs)), lambda t, _: _carried(t, interpreter))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    recorder = _Recorder(twin, interpreter)
    try:
        with interpreter, torch.set_grad_enabled(backward):
            try:
                output = twin(*args, **kwargs)
            except Exception as error:
                raise ModelError(
                    f"the model failed in {interpreter.module!r}: {type(error).__name__}: {error}"
                ) from error
            if backward:
                _run_backward(twin, output, loss, interpreter)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Profile(
        signals=tuple(r.signal() for r in recorder.rows.values()),
        parameters=_parameters(twin, interpreter),
        source="predicted",
        notes=_notes(interpreter),
    )


def _on_meta(model: nn.Module, interpreter: Interpreter) -> nn.Module:
    """Copy a model to meta tensors, ties kept, and give each tensor its record."""
    memo: dict[int, Any] = {}
    for name, p in model.named_parameters():
        twin = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        memo[id(p)] = twin
        interpreter.assign(twin, _of_parameter(name, p))
    owned = list(model.buffers())
    owned += [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    for b in owned:
        if id(b) not in memo:
            memo[id(b)] = _carried(b, interpreter)
    return copy.deepcopy(model, memo)


def _of_parameter(name: str, p: Tensor) -> Moments:
    if p.is_meta:
        raise ModelError(
            f"parameter {name!r} is on meta and has no values; give predict the function that builds the model"
        )
    values = p.detach().to(torch.float64)
    mean = float(values.mean())
    std = float((values - mean).square().mean().sqrt())
    return alg.normal(p.shape, mean, std if std > 1e-12 * abs(mean) else 0.0)


def _carried(tensor: Tensor, interpreter: Interpreter) -> Tensor:
    """Return the meta twin of a known tensor."""
    twin = torch.empty_like(tensor, device="meta")
    known = tensor.detach().cpu()
    interpreter.assign(twin, Concrete(known) if known.numel() <= LIMIT else moments_of(known))
    return twin.requires_grad_(tensor.requires_grad)


def _run_backward(twin: nn.Module, output: Any, loss: Loss | None, interpreter: Interpreter) -> None:
    if loss is not None:
        torch.autograd.backward(loss(output))
        return
    ends = [t for t in tensors_in(output) if has_values(t) and t.requires_grad]
    if not ends:
        return
    if all(t.dim() == 0 for t in ends):
        torch.autograd.backward(ends)
        return
    ends = list({id(t): t for t in ends if t.dim() > 0}.values())
    seeds = [torch.empty_like(t) for t in ends]
    for seed in seeds:
        interpreter.assign(seed, alg.normal(seed.shape))
    torch.autograd.backward(ends, seeds)


@dataclass
class _Row:
    name: str
    call: int
    kind: str
    shape: tuple[int, ...] = ()
    forward: Stats | None = None
    backward: Stats | None = None

    def signal(self) -> Signal:
        return Signal(
            name=self.name,
            call=self.call,
            kind=self.kind,
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
        for module in self._names:
            module.register_forward_pre_hook(self._before)
            module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, args: Any) -> None:
        name = self._names[module]
        call = sum(1 for n, _ in self.rows if n == name)
        row = self.rows[name, call] = _Row(name, call, type(module).__name__)
        self._stack.append(row)
        self.interpreter.module = name

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        row = self._stack.pop()
        self.interpreter.module = self._stack[-1].name if self._stack else ""
        tensor = main_tensor(output)
        if tensor is None:
            return
        row.shape = tuple(tensor.shape)
        row.forward = self._stats(tensor)
        if tensor.requires_grad:
            tensor.register_hook(lambda g: self._gradient(row, g))  # type: ignore[no-untyped-call]

    def _gradient(self, row: _Row, g: Tensor) -> None:
        if row.backward is None:
            row.backward = self._stats(g)

    def _stats(self, tensor: Tensor) -> Stats | None:
        m = self.interpreter.moments(tensor) if has_values(tensor) else None
        return None if m is None else stats_of(m)


def stats_of(m: Moments) -> Stats:
    """Return the statistics that a record tells."""
    mean = rec.average(m.mean, m.axes)
    square = rec.average(m.square, m.axes)
    cosine = None
    if len(m.dims) > 1 and m.dims[0] and square > 0:
        s = reg.single_axis(m, 0)
        cosine = rec.average_differ(s.table, s.axes, 0) / square
    return Stats(
        mean=mean,
        std=float(np.sqrt(max(square - mean**2, 0.0))),
        rms=float(np.sqrt(max(square, 0.0))),
        zeros=_zeros(m),
        cosine=cosine,
    )


def _zeros(m: Moments) -> float:
    """Share of exact zeros: a product vanishes where one of its factors does, a sum where all its terms do."""
    share: Any = 1.0
    for term in m.terms:
        present: Any = (term.coef != 0).astype(float)
        for f in term.factors:
            present = present * (1.0 - latents.mean((f.values == 0).astype(float)))
        share = share * (1.0 - present)
    return float(
        min(
            max(
                rec.average(
                    np.asarray(share).reshape([1] * (len(m.axes) - np.ndim(share)) + list(np.shape(share))),
                    m.axes,
                ),
                0.0,
            ),
            1.0,
        )
    )


def _parameters(twin: nn.Module, interpreter: Interpreter) -> tuple[Signal, ...]:
    rows = []
    owners = {id(p): type(m).__name__ for m in twin.modules() for p in m._parameters.values()}
    for name, p in twin.named_parameters():
        gradient = None if p.grad is None else interpreter.moments(p.grad)
        own = interpreter.moments(p)
        rows.append(
            Signal(
                name=canonical_name(name),
                kind=owners.get(id(p), ""),
                shape=tuple(p.shape),
                forward=None if own is None else stats_of(own),
                backward=None if gradient is None else stats_of(gradient),
            )
        )
    return tuple(rows)


def _notes(interpreter: Interpreter) -> tuple[str, ...]:
    lines = [
        f"unknown: {u.op} in {u.module or 'the model'} ({u.reason}), {n}×"
        for u, n in interpreter.unknown.items()
    ]
    return (*lines, *(f"{text}, {n}×" for text, n in interpreter.notes.items()))
