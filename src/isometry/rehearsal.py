"""A model's own code run on records instead of numbers: what prediction and planning stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import isometry.moments.rules  # noqa: F401  (registers the rules)
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError, described
from isometry.hooks import (
    check_unscripted,
    checked_output,
    has_values,
    is_compiled,
    named_modules,
    tensors_in,
)
from isometry.inputs import Batch, batches, check_finite, loader_state, map_tensors, mismatch
from isometry.moments.carrier import Assumed, Carrier, Kind, values_of
from isometry.moments.interpreter import Interpreter
from isometry.moments.literals import Literals
from isometry.moments.recording import Recording, bounded, recorded
from isometry.moments.rules.base import NoRule, Value
from isometry.names import unwrap
from isometry.restore import collector_paused, one_thread_for_numpy, random_state

Loss = Callable[..., Tensor]
Builder = Callable[[], nn.Module]
T = TypeVar("T")

REAL_LIMIT = 1 << 31  # parameters; a larger model is not copied or built on real tensors


@dataclass
class Stage:
    """One run: the copy of the model that is run, and what is known of its tensors.

    Attributes:
        kind: Whether it runs on meta or on real tensors.
        model: The user's model, or the one that the builder made; never run, never written.
        twin: The copy that is run.
        interpreter: Carries the records.
        values: The records of the parameters by name.
        args: What the twin is called with.
        kwargs: Likewise, by name.
        note: Why it runs, or was built, on real tensors, if it does.
        output: What the twin returned.
        between: Called after the forward pass and before the backward one.
    """

    kind: Kind
    model: nn.Module
    twin: nn.Module
    interpreter: Interpreter
    values: Mapping[str, Value]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    note: str | None = None
    output: Any = None
    between: Callable[[], None] | None = None
    _running: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = {module: name for name, module in named_modules(self.twin).items()}
        for module in self._names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._running.append(self._names[module])
        self.interpreter.module = self._running[-1]

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        self._running.pop()
        self.interpreter.module = self._running[-1] if self._running else ""

    def failure(self, error: Exception) -> str:
        """Say in which module the model failed.

        Args:
            error: What it raised.

        Returns:
            The message.
        """
        path = self.interpreter.module
        where = "in its forward"
        if path:
            where = f"in module {path!r} ({type(named_modules(self.twin)[path]).__name__})"
        hint = "" if path else mismatch(self.twin.forward, self.args, self.kwargs)
        return f"the model failed {where}: {type(error).__name__}: {error}{hint}"


@dataclass
class Rehearsal(Generic[T]):
    """A model, what it is fed, and who watches; run on meta first, on real tensors where that fails.

    Attributes:
        source: The model or the function that builds it.
        inputs: A tensor, a tuple, a dict, a loader (its first batch is used) or a spec.
        loss: `loss(output)` or `loss(output, target)`; None for an i.i.d. unit gradient at every output.
        backward: Whether to run backward.
        assumed: What a parameter or buffer without values is taken for; None: that is an error.
        prefer: The carrier to begin with.
        predicted: Whether moments are carried along; else only what is known in numbers is, which is all that
            most models' code asks for, in a small part of the time.
    """

    source: nn.Module | Builder
    inputs: object
    loss: Loss | None = None
    backward: bool = True
    assumed: Assumed | None = None
    prefer: Kind = "meta"
    predicted: bool = True

    def run(self, begin: Callable[[Stage], T]) -> tuple[Stage, T]:
        """Run the model.

        Args:
            begin: Called with the stage before the model runs; attaches whatever watches. Called anew where
                the model turns out to need real tensors.

        Returns:
            The stage after the run, and what `begin` returned for it.

        Raises:
            InvalidTypeError: `source` is neither a module nor a function that returns one, or `inputs` has a
                type that cannot be used.
            InvalidValueError: The inputs hold nan or infinities, or there is no batch.
            ModelError: The model failed; the message names the module.
        """
        self._note: str | None = None
        restore = random_state()
        try:
            self._batch = first_batch(self.inputs)
            # What explodes is told as infinite, or as unknown where infinities meet.
            quiet = np.errstate(over="ignore", invalid="ignore")
            with (
                quiet,
                torch.inference_mode(mode=False),
                _plain_kernels(),
                collector_paused(),
                one_thread_for_numpy(),
            ):
                return self._run(begin)
        finally:
            restore()

    def _run(self, begin: Callable[[Stage], T]) -> tuple[Stage, T]:
        interpreter = Interpreter()
        model, values = self._built(interpreter)
        if not self.predicted and self.prefer == "meta":
            with suppress(ModelError):
                return self._on("meta", model, values, _Unpredicted(), begin)
        if self.prefer == "real":
            return self._on("real", self._real(model, ModelError("no values")), values, Interpreter(), begin)
        try:
            return self._on("meta", model, values, interpreter, begin)
        except (InvalidTypeError, InvalidValueError):
            raise
        except Exception as error:
            stage, watcher = self._on("real", self._real(model, error), values, Interpreter(), begin)
            first = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            carrier = f"carrier: real tensors, because the model does not run on meta ones ({first})"
            stage.note = carrier if stage.note is None else f"{stage.note}; {carrier}"
            return stage, watcher

    def _built(self, interpreter: Interpreter) -> tuple[nn.Module, dict[str, Value]]:
        if isinstance(self.source, nn.Module):
            model = unwrap(self.source)
            _check(model)
            return model, values_of(model, None, self.assumed)
        if not callable(self.source):
            raise InvalidTypeError(
                "model must be a torch.nn.Module or a function without arguments that builds one, got "
                f"{type(self.source).__name__}"
            )
        recording: Recording | None = None
        try:
            recording = recorded(self.source, interpreter)
            made = recording.model
        except Exception as error:
            made = self._built_for_real()
            why = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            self._note = f"builder: run on real tensors, because it fails on meta ones ({why})"
        if not isinstance(made, nn.Module):
            raise InvalidTypeError(f"the builder must return a torch.nn.Module, got {type(made).__name__}")
        model = unwrap(made)
        _check(model)
        return model, values_of(model, recording, self.assumed)

    def _built_for_real(self) -> nn.Module:
        """Run the builder as it is, where it cannot be run without memory."""
        assert not isinstance(self.source, nn.Module)
        try:
            with bounded(REAL_LIMIT):
                return self.source()
        except IsometryError:
            raise
        except Exception as error:
            hint = f"; got {described(self.source)}" if isinstance(self.source, type) else ""
            raise ModelError(f"the builder failed: {type(error).__name__}: {error}{hint}") from error

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
        self,
        kind: Kind,
        model: nn.Module,
        values: dict[str, Value],
        interpreter: Interpreter,
        begin: Callable[[Stage], T],
    ) -> tuple[Stage, T]:
        carrier = Carrier(kind, interpreter, self.assumed)
        twin = carrier.model(model, values)
        args, kwargs = map_tensors(
            (self._batch.args, dict(self._batch.kwargs)),
            lambda t, where: carrier.given(t, where, normal=isinstance(self.inputs, str)),
        )
        stage = Stage(kind, model, twin, interpreter, values, args, kwargs, self._note)
        watcher = begin(stage)
        # The compiler would follow the rules' own code; its import takes a second.
        eager = torch.compiler.set_stance("force_eager") if is_compiled(twin) else nullcontext()
        with eager, interpreter, _EveryLayer(), Literals(interpreter), torch.set_grad_enabled(self.backward):
            try:
                stage.output = checked_output(twin(*args, **kwargs))
            except IsometryError:
                raise
            except Exception as error:
                raise ModelError(stage.failure(error)) from error
            interpreter.observer = None  # it follows the forward pass
            if stage.between is not None:
                stage.between()
            if self.backward:
                self._run_backward(carrier, stage.output)
        return stage, watcher

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
        except (InvalidTypeError, InvalidValueError, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"the backward pass failed: {type(error).__name__}: {error}") from error

    def _loss(self, carrier: Carrier, output: Any) -> Tensor:
        if not callable(self.loss):
            raise InvalidTypeError(f"loss must be a callable, got {type(self.loss).__name__}")
        target: tuple[Any, ...] = ()
        if self._batch.target is not None:
            target = (map_tensors(self._batch.target, lambda t, _: carrier.known(t), "target"),)
        call = "loss(output, target)" if target else "loss(output)"
        try:
            value = self.loss(output, *target)
        except NoRule:
            raise
        except Exception as error:
            hint = "" if target else "; a loss with a target needs inputs that bring one, batches (x, y)"
            raise ModelError(f"{call} failed: {type(error).__name__}: {error}{hint}") from error
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"loss(output) must return a tensor, got {type(value).__name__}")
        if value.numel() != 1 or not value.requires_grad:
            raise InvalidValueError(
                "loss(output) must return one number that depends on the parameters, got a tensor of shape "
                f"{tuple(value.shape)}"
            )
        return value.reshape(())


def first_batch(inputs: object) -> Batch:
    """Return the first batch of inputs, checked.

    Args:
        inputs: In any of the forms of `isometry.inputs.batches`.

    Returns:
        The batch.

    Raises:
        InvalidTypeError: `inputs` has none of these forms.
        InvalidValueError: There is no batch, or it is empty, or holds nan or infinities.
    """
    with loader_state(inputs):
        batch = next(iter(batches(inputs, limit=1)), None)
    if batch is None:
        raise InvalidValueError("inputs gave no batch: there is nothing to run the model on")
    check_finite(batch)
    given = list(tensors_in((batch.args, dict(batch.kwargs))))
    if given and not any(t.numel() for t in given):
        raise InvalidValueError(f"inputs are empty: the first tensor has the shape {tuple(given[0].shape)}")
    return batch


class _Unpredicted(Interpreter):  # type: ignore[no-untyped-call]
    """Carries numbers alone: whatever else an operation gives is unknown, and its rule is not asked."""

    def _by_rule(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> list[Value | None]:
        return [self._no_rule(name, "not predicted")] * len(outputs)


class _EveryLayer(TorchFunctionMode):
    """Let every layer run that a single random number might drop: it is taken as the largest below 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return torch.full_like(out, 1.0 - 2.0**-24) if func is torch.rand and out.numel() == 1 else out


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


def _check(model: nn.Module) -> None:
    check_unscripted(model)
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"parameter {name!r} has no shape yet: run the model once on data, then try again"
            )
