"""Prediction and measurement side by side: where a model does not do what its initialisation implies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError, ModelError
from isometry.measure import measure
from isometry.plots import lines_by_depth
from isometry.predict import predict
from isometry.profile import Profile, Side, Signal
from isometry.rehearsal import REAL_LIMIT
from isometry.restore import random_state
from isometry.strictjson import dump, number_to_data
from isometry.tables import Column, Table, compact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY = 0.02  # what the rules themselves may be off by, see docs/predict.md
UNTOLD = 0.1  # relative deviation allowed where no scatter is predicted
ZERO = 1e-6  # of the median RMS: below this a value is rounding noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One RMS, predicted and measured.

    Attributes:
        name: Path of the module or parameter.
        call: Which call of the module.
        kind: Its class.
        side: "forward" for values, "backward" for gradients.
        predicted: The predicted RMS; None where it is unknown.
        measured: The measured RMS; None where the model was not run.
        scatter: Expected relative standard deviation of the measured RMS around the predicted one.
        outside: Whether the measured value lies outside the expected scatter.
    """

    name: str
    call: int
    kind: str
    side: Side
    predicted: float | None
    measured: float | None
    scatter: float | None
    outside: bool

    @property
    def error(self) -> float | None:
        """predicted/measured − 1; None where one of them is not known or nothing was measured but zero."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class Audit:
    """Prediction and measurement of one model.

    Attributes:
        rows: The module calls, each side a row.
        parameters: The parameters' gradients.
        predicted: The predicted profile.
        draws: How many measurements the measured values are the mean of; 0 where the model was too large.
        notes: What the prediction noted.
        measured: The profile of the first draw; None where the model was too large.
    """

    rows: tuple[Compared, ...]
    parameters: tuple[Compared, ...]
    predicted: Profile
    draws: int
    notes: tuple[str, ...]
    measured: Profile | None = None

    @property
    def outside(self) -> tuple[Compared, ...]:
        """The rows outside the expected scatter."""
        return tuple(row for row in (*self.rows, *self.parameters) if row.outside)

    def table(self, *, parameters: bool = False) -> Table:
        """Lay the comparison out, one row per module call; "*" marks what lies outside the expected scatter.

        Args:
            parameters: Show the parameters' gradients in place of the module calls.

        Returns:
            The table.
        """
        headings = [Column("Parameter" if parameters else "Module", "left")]
        rows: list[list[str]] = []
        if parameters:
            headings += [Column(h) for h in ("Predicted", "Measured", "Error", "±", "")]
            rows = [[row.name, *_cells(row)] for row in self.parameters]
        else:
            sides = ("RMS", "Measured", "Error", "±", "")
            headings += [Column(h) for h in (*sides, *(f"Grad {h}".strip() if h else "" for h in sides))]
            pairs: dict[tuple[str, int], dict[str, Compared]] = {}
            for row in self.rows:
                pairs.setdefault((row.name, row.call), {})[row.side] = row
            for (name, call), both in pairs.items():
                kind = next(iter(both.values())).kind
                label = (f"{name} ({kind})" if name else kind) + (f" #{call}" if call else "")
                cells = [_cells(both[side]) if side in both else ["–"] * 4 + [""] for side in _SIDES]
                rows.append([label, *cells[0], *cells[1]])
        return Table(headings, rows, title="Predicted and measured", footer=[self.summary(), *self.notes])

    def summary(self) -> str:
        """Return one sentence on how far they agree.

        Returns:
            The sentence.
        """
        if not self.draws:
            return "Not measured: the model is too large to run here."
        known = [abs(row.error) for row in (*self.rows, *self.parameters) if row.error is not None]
        if not known:
            return "Nothing could be compared."
        median = sorted(known)[len(known) // 2]
        outside = len(self.outside)
        where = "none lies" if not outside else f"{outside} {'lies' if outside == 1 else 'lie'}"
        return (
            f"{len(known)} figures compared over {self.draws} draw{'s' if self.draws > 1 else ''}: "
            f"median error {100 * median:.2g} %; {where} outside the expected scatter."
        )

    def __str__(self) -> str:
        return str(self.table())

    def plot(self, path: str | Path | None = None, *, title: str | None = None) -> Figure:
        """Draw the predicted and the measured RMS of values and gradients by depth.

        Args:
            path: Write the picture there (the ending chooses the format); None only returns it.
            title: A title; None for a plain one.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        leaves = {(row.name, row.call) for row in self.predicted.leaves()}
        panels = {}
        for side, heading in zip(_SIDES, ("Forward (values)", "Backward (gradients)"), strict=True):
            rows = [row for row in self.rows if row.side == side and (row.name, row.call) in leaves]
            series = {
                "predicted": [row.predicted for row in rows],
                "measured": [row.measured for row in rows],
            }
            panels[heading] = {name: values for name, values in series.items() if set(values) - {None}}
        return lines_by_depth(
            {heading: series for heading, series in panels.items() if series},
            title="Predicted and measured" if title is None else title,
            path=path,
        )

    def to_json(self) -> str:
        """Write the comparison as strict JSON.

        Returns:
            The text.
        """

        def row(r: Compared) -> dict[str, Any]:
            numbers = {
                "predicted": r.predicted,
                "measured": r.measured,
                "error": r.error,
                "scatter": r.scatter,
            }
            told = {k: None if v is None else number_to_data(v) for k, v in numbers.items()}
            return {
                "name": r.name,
                "call": r.call,
                "kind": r.kind,
                "side": r.side,
                **told,
                "outside": r.outside,
            }

        return dump(
            {
                "schema": "isometry.audit",
                "version": 1,
                "draws": self.draws,
                "rows": [row(r) for r in self.rows],
                "parameters": [row(r) for r in self.parameters],
                "notes": list(self.notes),
            }
        )


_SIDES: tuple[Side, Side] = ("forward", "backward")


def audit(
    model: nn.Module | Callable[[], nn.Module],
    inputs: object,
    *,
    loss: Callable[..., Tensor] | None = None,
    backward: bool = True,
    draws: int = 1,
    sigmas: float = 3.0,
    seed: int = 0,
) -> Audit:
    """Predict and measure a model, and mark where they differ by more than a finite width explains.

    A row is outside where |ln(measured/predicted)| > sigmas·scatter/√draws + 2 %; where no scatter is
    predicted, beyond 10 %. A model with values is one draw: its own.

    Args:
        model: The model, or a function without arguments that builds it.
        inputs: As for `predict`.
        loss: As for `predict`.
        backward: Whether to compare gradients.
        draws: How many models a builder draws; their mean squares are averaged.
        sigmas: How many standard deviations of scatter are allowed.
        seed: Of the builder's draws; the global random state is left as it was.

    Returns:
        The comparison. A model of more than 2³¹ parameters is predicted only.

    Raises:
        InvalidValueError: `draws` is not positive, or is above 1 for a model with values.
        ModelError: The model failed.

    Example:
        >>> build = lambda: nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
        >>> any(row.outside for row in audit(build, "64x256", draws=4).rows)
        False
    """
    if draws < 1 or (draws > 1 and isinstance(model, nn.Module)):
        raise InvalidValueError(f"draws must be 1 or more, and 1 for a model with values; got {draws}")
    predicted = predict(model, inputs, loss=loss, backward=backward)
    measured: list[Profile] = []
    if sum(math.prod(row.shape) for row in predicted.parameters) <= REAL_LIMIT:
        restore = random_state()
        try:
            measured = [_measured(model, inputs, loss, backward, seed + draw) for draw in range(draws)]
        finally:
            restore()
    rows = [
        _compared(row, side, [_find(p.signals, row) for p in measured], sigmas, _floor(measured, side))
        for row in predicted.signals
        for side in _SIDES
    ]
    parameters = [
        _compared(row, "backward", [_find(p.parameters, row) for p in measured], sigmas, 0.0)
        for row in predicted.parameters
    ]
    return Audit(
        tuple(r for r in rows if r is not None),
        tuple(r for r in parameters if r is not None),
        predicted,
        len(measured),
        predicted.notes,
        measured[0] if measured else None,
    )


def _measured(
    model: nn.Module | Callable[[], nn.Module], inputs: object, loss: Any, backward: bool, seed: int
) -> Profile:
    torch.manual_seed(seed)
    built = model if isinstance(model, nn.Module) else model()
    if not isinstance(built, nn.Module):
        raise ModelError(f"the builder must return a torch.nn.Module, got {type(built).__name__}")
    return measure(built, inputs, loss=loss, backward=backward, limit=1)


def _find(rows: tuple[Signal, ...], like: Signal) -> Signal | None:
    return next((row for row in rows if (row.name, row.call) == (like.name, like.call)), None)


def _floor(profiles: list[Profile], side: Side) -> float:
    sizes = sorted(s for p in profiles for row in p if (s := row.rms(side)) is not None and math.isfinite(s))
    return ZERO * sizes[len(sizes) // 2] if sizes else 0.0


def _compared(
    row: Signal, side: Side, found: list[Signal | None], sigmas: float, floor: float
) -> Compared | None:
    stats, told = row.stats(side), row.rms(side)
    sizes = [s for one in found if one is not None and (s := one.rms(side)) is not None]
    if told is None and not sizes:
        return None
    real = math.sqrt(sum(s * s for s in sizes) / len(sizes)) if sizes else None
    scatter = (
        None if stats is None or stats.scatter is None else stats.scatter / math.sqrt(max(len(sizes), 1))
    )
    outside = False
    if told is not None and real is not None and max(told, real) > floor:
        allowed = UNTOLD if scatter is None else sigmas * scatter + ACCURACY
        outside = min(told, real) <= 0 or not math.isfinite(real) or abs(math.log(real / told)) > allowed
    return Compared(
        name=row.name,
        call=row.call,
        kind=row.kind,
        side=side,
        predicted=told,
        measured=real,
        scatter=scatter,
        outside=outside,
    )


def _cells(row: Compared) -> list[str]:
    error = "–" if row.error is None else f"{100 * row.error:+.1f} %"
    scatter = "–" if row.scatter is None else f"{100 * row.scatter:.1f} %"
    return [compact(row.predicted), compact(row.measured), error, scatter, "*" if row.outside else ""]
