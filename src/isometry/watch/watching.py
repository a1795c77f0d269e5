"""Follow the signal through the first steps of a training run, and warn when something breaks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryWarning, ModelError
from isometry.hooks import Key, Recorder, checked_model, fetch, has_values, is_compiled
from isometry.names import canonical_name
from isometry.profile import Profile, Side, Signal
from isometry.statistics import Pool, reduce_entries
from isometry.watch import symptoms
from isometry.watch.history import Finding, History, Snapshot
from isometry.watch.units import Units, can_fall_silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An explosion ends a run within a few steps, and units are counted over several steps already; everything
# else may be a start from zero or a single odd batch.
_AT_ONCE = ("nonfinite", "exploding gradient", "exploding variance", "dead units", "saturated units")
# Halving 2¹⁶ five times over is a search for the scale; gradients that overflow longer are themselves broken.
_TOO_MANY_SKIPS = 5


class Scaler(Protocol):
    """What is needed of a loss scaler such as `torch.amp.GradScaler`."""

    def get_scale(self) -> float:
        """Return the factor that the loss was multiplied by."""


class watch:  # noqa: N801 - read as a verb: with isometry.watch(model) as watch
    """Follow activations and gradients through training and warn when something breaks.

    Use as a context manager and call `step` once after every optimizer step. Every `every`-th step is
    observed: mean, std, RMS √E[x²] and the other statistics of `isometry.measure` for every module call,
    forward and backward, and for every parameter, its gradient and its update. Between observed steps no
    hook is attached to the model.

    Warns (`IsometryWarning`, once per module and symptom) when

    - anything stops being finite: at once, naming the module where it came up first;
    - the gradient's norm at the first layer is below 1e-3 or above 1e3 of that at the last, widened by two
      standard deviations of the scatter that finite widths cause (Hanin & Nica 2018);
    - an output's std exceeds 100 times the largest one of the first observed step, or falls below 1 % of its
      own; its mean moves by more than 10 standard deviations (empirical, see `isometry.watch.symptoms`);
    - more than half of a layer's units, beyond chance, are dead or saturated: unit by unit, on at least 300
      observations, so that a dead unit is active in less than 1 % of the cases with 95 % confidence.

    Explosions are reported at once, the others after `patience` observed steps in a row.

    The training is equal to the bit with and without the watch; hooks are gone afterwards, also after an
    exception. Forward passes without gradients (validation) are not observed. Under gradient accumulation
    the micro-batches of a step are pooled. *Assumes* an eager model: hooks do not reach compiled code.

    Args:
        model: The model.
        optimizer: Its optimizer; then parameters are measured right before its step (gradients as it sees
            them) and after it (the size of the update).
        every: Observe every so many steps.
        steps: Stop observing after so many steps; None goes on.
        patience: Observed steps in a row before a symptom counts.
        scaler: The loss scaler of mixed precision: gradients are divided by its scale, and steps that it
            skips are not judged.
        log: Called with the numbers of each observed step (`Snapshot.scalars`) and the step, such as
            `wandb.log`, `mlflow.log_metrics` or the `log_metrics` of a Lightning logger.

    Attributes:
        findings: What was found so far.
        history: Everything that was observed so far.

    Raises:
        InvalidTypeError: `model` is no module, `optimizer` no optimizer, `scaler` no scaler, or `log` no
            function.
        InvalidValueError: A number is out of range, or the optimizer holds none of the model's parameters.
        ModelError: The model is compiled, or has no parameters or no values.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer=optimizer, every=5) as seen:
        ...     for _ in range(10):
        ...         x = torch.randn(32, 8)
        ...         loss = (model(x) - x[:, :1]).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         _ = optimizer.step()
        ...         seen.step(loss)
        >>> [snapshot.step for snapshot in seen.history.snapshots], seen.findings
        ([0, 5], [])

    Reference:
        Zhang et al. (2021), AUTOTRAINER; Ben Braiek & Khomh (2023), TheDeepChecker: the symptoms.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        every: int = 10,
        steps: int | None = None,
        patience: int = 2,
        scaler: Scaler | None = None,
        log: Callable[[dict[str, float], int], object] | None = None,
    ) -> None:
        self._model = checked_model(model)
        if is_compiled(model):
            raise ModelError(
                "the model is compiled, and hooks added after compilation are ignored: watch its first steps "
                "before compiling it"
            )
        numbers = {"every": every, "patience": patience, "steps": 1 if steps is None else steps}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise InvalidTypeError(
                f"scaler must be a loss scaler such as torch.amp.GradScaler, got {type(scaler).__name__}"
            )
        if log is not None and not callable(log):
            raise InvalidTypeError(
                f"log must be a function of (numbers by name, step), got {type(log).__name__}"
            )
        self._check_optimizer(optimizer)
        self._log = log
        self._optimizer = optimizer
        self._every, self._steps, self._patience, self._scaler = every, steps, patience, scaler
        self.findings: list[Finding] = []
        self._snapshots: list[Snapshot] = []
        self._units = Units(patience)
        self._seen: dict[tuple[str, str, int], int] = {}
        self._silencing: dict[Key, bool] = {}
        self._handles: list[RemovableHandle] = []
        self._recorder: Recorder | None = None
        self._open = False
        self._step = 0
        self._values: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._updates: dict[str, Tensor] = {}
        self._stepped = False
        self._skips = 0

    def _check_optimizer(self, optimizer: Optimizer | None) -> None:
        if optimizer is None:
            return
        if not isinstance(optimizer, Optimizer):
            raise InvalidTypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(id(parameter) for parameter in self._model.parameters()):
            raise InvalidValueError(
                "the optimizer holds none of the model's parameters, so its steps would change nothing: "
                "build it from model.parameters() after the model has its final parameters"
            )

    def __repr__(self) -> str:
        state = "running" if self._open else "not running"
        return (
            f"<watch on {type(self._model).__name__}: {state}, step {self._step}, "
            f"{len(self._snapshots)} observed, {len(self.findings)} found>"
        )

    # --- the run -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._open:
            raise InvalidValueError("this watch is already running: make a second one")
        self._open = True
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_pre_hook(self._before_update))
            self._handles.append(self._optimizer.register_step_post_hook(self._after_update))
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None
        while self._handles:
            self._handles.pop().remove()
        self._units.drop_step()
        self._forget()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Close a training step: call it once, after the optimizer's step.

        Args:
            loss: The loss of this step, for the history.

        Raises:
            InvalidValueError: The watch is not running.
            InvalidTypeError: The loss is no number.
        """
        if not self._open:
            raise InvalidValueError(
                "step() belongs inside the block: with isometry.watch(model) as watch: ..."
            )
        if loss is not None and not hasattr(loss, "__float__"):
            raise InvalidTypeError(f"loss must be a number or a tensor of one, got {type(loss).__name__}")
        if self._recorder is not None:
            self._observe(loss)
        self._step += 1
        self._begin()

    def _begin(self) -> None:
        due = self._step % self._every == 0 and (self._steps is None or self._step < self._steps)
        if due:
            self._recorder = Recorder(
                self._model,
                gradient_scale=None if self._scaler is None else self._scaler.get_scale,
                only_training=True,
                observer=self._take_output,
                gradient_observer=self._units.observe_gradient,
                shape=False,
            )
            self._recorder.attach()

    def _take_output(self, name: str, call: int, module: nn.Module, tensor: Tensor) -> None:
        self._silencing[name, call] = can_fall_silent(module)
        self._units.observe(name, call, module, tensor)

    # --- parameters --------------------------------------------------------------------------------------

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            if has_values(parameter):
                yield canonical_name(name), parameter

    def _before_update(self, optimizer: Optimizer, *_: object) -> None:
        if self._recorder is None:
            return
        self._stepped = True
        with torch.no_grad():
            # A fused optimizer divides by the loss scale itself, inside its step.
            self._take_parameters(getattr(optimizer, "grad_scale", None))
            self._before = {name: parameter.detach().clone() for name, parameter in self._named_parameters()}

    def _take_parameters(self, scale: Tensor | None = None) -> None:
        for name, parameter in self._named_parameters():
            self._values[name] = reduce_entries(parameter)
            if parameter.grad is not None:
                gradient = parameter.grad if scale is None else parameter.grad / scale
                self._gradients[name] = reduce_entries(gradient)

    def _after_update(self, *_: object) -> None:
        if not self._before:
            return
        with torch.no_grad():
            for name, parameter in self._named_parameters():
                before = self._before.get(name)
                if before is not None and parameter.numel():
                    change = torch.linalg.vector_norm(parameter - before, dtype=_wide(parameter.dtype))
                    size = torch.linalg.vector_norm(before, dtype=_wide(parameter.dtype))
                    self._updates[name] = (change / size).to(torch.float64)
        self._before = {}

    # --- an observed step --------------------------------------------------------------------------------

    def _observe(self, loss: Tensor | float | None) -> None:
        assert self._recorder is not None
        recorder, self._recorder = self._recorder, None
        recorder.detach()
        with torch.no_grad():
            if not self._values:
                self._take_parameters()
            signals, parameters = recorder.signals(), self._parameters()
        skipped = self._skipped(signals)
        if skipped:
            signals, parameters = _without_gradients(signals), _without_gradients(parameters)
            self._units.drop_step()
        snapshot = Snapshot(
            step=self._step,
            loss=None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss),
            profile=Profile(signals=signals, parameters=parameters, source="watched"),
            updates=dict(self._ratios()),
        )
        self._units.end_step()
        self._forget()
        if signals:
            self._snapshots.append(snapshot)
            if self._log is not None:
                self._log(snapshot.scalars(), self._step)
            self._judge(snapshot, judge_loss=not skipped)

    def _skipped(self, signals: tuple[Signal, ...]) -> bool:
        """Whether the loss scaler left this step out, as it does until it has found its scale."""
        if self._scaler is None:
            return False
        overflow = any(row.backward is not None and row.backward.nonfinite for row in signals)
        skipped = overflow or (self._optimizer is not None and not self._stepped)
        self._skips = self._skips + 1 if skipped else 0
        return skipped and self._skips < _TOO_MANY_SKIPS

    def _parameters(self) -> tuple[Signal, ...]:
        numbers = fetch([*self._values.values(), *self._gradients.values()])
        rows = []
        for name, parameter in self._named_parameters():
            forward, backward = Pool(), Pool()
            if name in self._values:
                forward.add(numbers[id(self._values[name])])
            if name in self._gradients:
                backward.add(numbers[id(self._gradients[name])])
            known = backward.stats() if name in self._gradients else None
            shape = tuple(parameter.shape)
            rows.append(Signal(name=name, shape=shape, forward=forward.stats(), backward=known))
        return tuple(rows)

    def _ratios(self) -> Iterator[tuple[str, float]]:
        numbers = fetch(list(self._updates.values()))
        for name, ratio in self._updates.items():
            value = numbers[id(ratio)]
            if not math.isnan(value):  # 0/0: a parameter of zeros that stayed so
                yield name, value

    def _forget(self) -> None:
        self._values, self._gradients, self._before, self._updates = {}, {}, {}, {}
        self._stepped = False

    # --- findings ----------------------------------------------------------------------------------------

    def _judge(self, snapshot: Snapshot, *, judge_loss: bool) -> None:
        step, profile = snapshot.step, snapshot.profile
        found = list(symptoms.nonfinite(step, profile, snapshot.loss if judge_loss else None))
        if found:
            # Everything behind the first nan is nan: there is nothing else to learn from this step.
            found = [] if any(finding.symptom == "nonfinite" for finding in self.findings) else found
        else:
            found += symptoms.gradients(step, profile)
            found += symptoms.spreads(step, profile, self._snapshots[0].profile)
            found += symptoms.units(step, profile, self._units.shares(), self._silencing)
        keys = {(finding.symptom, finding.name, finding.call): finding for finding in found}
        self._seen = {key: self._seen.get(key, 0) + 1 for key in keys}
        told = {(finding.symptom, finding.name, finding.call) for finding in self.findings}
        fresh = [
            finding
            for key, finding in keys.items()
            if key not in told and (finding.symptom in _AT_ONCE or self._seen[key] >= self._patience)
        ]
        self.findings += fresh
        for symptom in dict.fromkeys(finding.symptom for finding in fresh):
            # In one step the same symptom runs through module after module: warn of the first.
            first, *others = [finding for finding in fresh if finding.symptom == symptom]
            more = f" ({len(others)} more modules: see watch.findings)" if others else ""
            warnings.warn(f"{first}{more}", IsometryWarning, stacklevel=4)

    # --- what was seen -----------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """Everything that was observed so far."""
        return History(snapshots=tuple(self._snapshots), findings=tuple(self.findings))

    def save(self, path: str | Path) -> None:
        """Write the history to a JSON file; `isometry.watch.History.load` reads it.

        Args:
            path: The file; an existing one is replaced.
        """
        self.history.save(path)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        side: Side = "forward",
        statistic: Literal["rms", "std"] = "rms",
    ) -> Figure:
        """Draw a statistic as a heat map, layer × step.

        Args:
            path: Write the picture there; None only returns it.
            side: "forward" for the values, "backward" for the gradients.
            statistic: Which of their statistics.

        Returns:
            The matplotlib figure.

        Raises:
            InvalidValueError: Nothing was observed.
            MissingExtraError: matplotlib is not installed.
        """
        return self.history.plot(path, side=side, statistic=statistic)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A dtype in which a norm can be summed up: half precision would stop growing."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _without_gradients(rows: tuple[Signal, ...]) -> tuple[Signal, ...]:
    return tuple(
        Signal(name=row.name, call=row.call, kind=row.kind, shape=row.shape, forward=row.forward)
        for row in rows
    )
