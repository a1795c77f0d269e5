"""How signals, gradients and first optimiser steps grow with a model's width or depth, by prediction alone.

A model is predicted at several sizes, and the exponent p of size^p is fitted to each figure: the coordinate
check of μP (Yang et al. 2022) for any architecture at real sizes, without training and without memory.

The first step. Let a parameter W with gradient G move by ΔW at rate η: SGD by −ηG, Adam by −η·sign(G) (its
first step, whatever its betas). To first order the loss changes by ΔL = η·Σ G² or η·Σ |G|, which is
N_W·η·E[G²] and N_W·η·√(2/π)·√E[G²] for N_W normal entries. All of it passes through the output y of the
module that owns W: ΔL = Σ g·Δy with g the gradient there. A step moves y along g, so Δy has the size
ΔL/(N_y·√E[g²]); for a linear layer and one sample this is exactly n·x²·g under SGD and n·|x| under Adam. A
smaller alignment of Δy with g, as among many samples, changes the factor, not the exponent in a width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.predict import predict
from isometry.profile import Profile, Signal
from isometry.strictjson import dump, number_to_data
from isometry.tables import Column, Table

Rate = Callable[[str, tuple[int, ...], int], float]
_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How one figure grows.

    Attributes:
        values: The figure at each size.
        exponent: p in size^p by least squares on logarithms; None where a value is unknown, zero or infinite.
        residual: Largest |logarithm| of a value over its fit: near 0 for a true power law.
    """

    values: tuple[float | None, ...]
    exponent: float | None
    residual: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A module call or a parameter, and how its figures grow.

    Attributes:
        name: Path of the module or parameter.
        call: Which call of the module.
        kind: Its class, or that of the parameter's owner.
        size: RMS of the output, or of the parameter's values.
        gradient: RMS of the gradient there.
        sgd: RMS of the change of the owner's output by the parameter's first SGD step; None for module calls.
        adam: Likewise for Adam.
    """

    name: str
    call: int
    kind: str
    size: Growth
    gradient: Growth
    sgd: Growth | None = None
    adam: Growth | None = None


@dataclass(frozen=True)
class Scaling:
    """The growth of everything in a model with one of its builder's arguments.

    Attributes:
        argument: Its name.
        sizes: Its values.
        signals: The module calls that exist at every size.
        parameters: The parameters that exist at every size.
        notes: What the predictions noted, once each.
    """

    argument: str
    sizes: tuple[int, ...]
    signals: tuple[Scaled, ...]
    parameters: tuple[Scaled, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Scaled:
        for row in (*self.signals, *self.parameters):
            if row.name == name:
                return row
        raise InvalidValueError(f"no module or parameter named {name!r} exists at every {self.argument}")

    def breaks(self, optimizer: str = "adam", *, tolerance: float = 0.15) -> tuple[str, ...]:
        """Return a sentence for each signal and each parameter's step that depends on the size.

        Args:
            optimizer: "adam" or "sgd".
            tolerance: Exponents up to this count as 0.

        Returns:
            The sentences; a parameter's says how its learning rate has to scale.

        Raises:
            InvalidValueError: The optimizer is unknown.
        """
        if optimizer not in _OPTIMIZERS:
            raise InvalidValueError(f"optimizer must be 'adam' or 'sgd', got {optimizer!r}")
        lines = []
        for row in self.signals:
            p = row.size.exponent
            if p is not None and abs(p) > tolerance:
                lines.append(f"{row.name or 'the model'}: its output {_grows(p)} as {self.argument}^{p:.2f}")
        for row in self.parameters:
            growth = row.adam if optimizer == "adam" else row.sgd
            p = growth.exponent if growth is not None else None
            if p is not None and abs(p) > tolerance:
                step = (
                    f"its first {_OPTIMIZERS[optimizer]} step's effect {_grows(p)} as {self.argument}^{p:.2f}"
                )
                lines.append(f"{row.name}: {step}; scale its learning rate by {self.argument}^{-p:.2f}")
        return tuple(lines)

    def table(self, *, parameters: bool = True) -> Table:
        """Lay the exponents out as a table.

        Args:
            parameters: Show the parameters; else the module calls.

        Returns:
            The table.
        """
        rows = self.parameters if parameters else self.signals
        headings = [Column("Parameter" if parameters else "Module", "left")]
        headings += [Column("Values" if parameters else "Output"), Column("Gradient")]
        headings += [Column("SGD step"), Column("Adam step")] if parameters else []
        cells = []
        for row in rows:
            growths = [row.size, row.gradient, *((row.sgd, row.adam) if parameters else ())]
            label = (row.name or row.kind) + (f" #{row.call}" if row.call else "")
            cells.append([label, *(_exponent(g) for g in growths)])
        sizes = ", ".join(map(str, self.sizes))
        footer = [f"Exponents p of {self.argument}^p over {self.argument} = {sizes}.", *self.notes]
        if parameters:
            footer.insert(1, "Steps: change of the owner's output, learning rate independent of size.")
        return Table(headings, cells, title=f"Growth with {self.argument}", footer=footer)

    def __str__(self) -> str:
        return f"{self.table(parameters=False)}\n{self.table()}"

    def to_json(self) -> str:
        """Write everything as strict JSON.

        Returns:
            The text.
        """

        def growth(g: Growth | None) -> Any:
            return g and {
                "values": [v if v is None else number_to_data(v) for v in g.values],
                "exponent": g.exponent,
                "residual": g.residual,
            }

        def row(r: Scaled) -> dict[str, Any]:
            named = {"size": r.size, "gradient": r.gradient, "sgd": r.sgd, "adam": r.adam}
            return {"name": r.name, "call": r.call, "kind": r.kind} | {k: growth(g) for k, g in named.items()}

        return dump(
            {
                "schema": "isometry.scaling",
                "version": 1,
                "argument": self.argument,
                "sizes": list(self.sizes),
                "signals": [row(r) for r in self.signals],
                "parameters": [row(r) for r in self.parameters],
                "notes": list(self.notes),
            }
        )


def scaling(
    build: Callable[..., nn.Module],
    inputs: object,
    over: Mapping[str, Sequence[int]],
    *,
    loss: Callable[..., Tensor] | None = None,
    rate: Rate | None = None,
) -> Scaling:
    """Predict a model at several sizes and fit with which power of the size everything grows.

    log y = a + p·log size by least squares, for the RMS y of every output, of every gradient, and of the
    change that each parameter's first SGD and Adam step makes in its owner's output (see the module).

    *Assumes* what `predict` assumes; the exponents are asymptotic in a width.

    Args:
        build: Builds the model when it is called with the argument by name.
        inputs: As for `predict`; or a function of the size that returns them.
        over: One argument and its values, at least two: `{"hidden": (256, 512, 1024)}`.
        loss: As for `predict`; without one every output has an i.i.d. unit gradient.
        rate: Learning rate by parameter name, shape and size, so that a rule such as μP's can be checked;
            None for the same rate everywhere.

    Returns:
        The growth of every module call and parameter that exists at all sizes.

    Raises:
        InvalidTypeError: `over` is no mapping, or `build` cannot be called.
        InvalidValueError: `over` names more than one argument or less than two different positive sizes.
        ModelError: The model failed at a size.

    Example:
        >>> build = lambda width: nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width))
        >>> found = scaling(build, "8x16", {"width": (128, 256, 512)})
        >>> round(found["2.weight"].size.exponent, 2), round(found["2.weight"].adam.exponent, 2)
        (-0.5, 1.0)

    Reference:
        Yang et al. 2022, "Tensor Programs V", the coordinate check of appendix D.1 and table 3.
    """
    argument, sizes = _checked(build, over)
    profiles: list[Profile] = []
    for size in sizes:
        fed = inputs(size) if callable(inputs) and not isinstance(inputs, nn.Module) else inputs
        profiles.append(predict(partial(build, **{argument: size}), fed, loss=loss))
    signals = tuple(_signal(rows, sizes) for rows in _common([p.signals for p in profiles]))
    owners = [{(s.name, s.call): s for s in p.signals} for p in profiles]
    parameters = tuple(
        _parameter(rows, owners, sizes, rate) for rows in _common([p.parameters for p in profiles])
    )
    notes = dict.fromkeys(note for p in profiles for note in p.notes)
    return Scaling(argument, sizes, signals, parameters, tuple(notes))


def _checked(build: object, over: object) -> tuple[str, tuple[int, ...]]:
    if not callable(build) or isinstance(build, nn.Module):
        raise InvalidTypeError(
            f"build must be a function that builds the model at a size, got {type(build).__name__}"
        )
    if not isinstance(over, Mapping):
        raise InvalidTypeError(f'over must be a mapping such as {{"hidden": (256, 512)}}, got {over!r}')
    if len(over) != 1:
        raise InvalidValueError(f"over must name one argument of the builder, got {list(over)}")
    ((argument, given),) = over.items()
    sizes = tuple(given)
    if len(set(sizes)) < 2 or any(not isinstance(s, int) or isinstance(s, bool) or s < 1 for s in sizes):
        raise InvalidValueError(
            f"{argument} needs at least two different whole sizes of 1 or more, got {sizes}"
        )
    return str(argument), sizes


def _common(profiles: list[tuple[Signal, ...]]) -> list[tuple[Signal, ...]]:
    tables = [{(row.name, row.call): row for row in rows} for rows in profiles]
    return [tuple(t[key] for t in tables) for key in tables[0] if all(key in t for t in tables)]


def _signal(rows: tuple[Signal, ...], sizes: tuple[int, ...]) -> Scaled:
    first = rows[0]
    return Scaled(
        name=first.name,
        call=first.call,
        kind=first.kind,
        size=fit(sizes, [row.rms("forward") for row in rows]),
        gradient=fit(sizes, [row.rms("backward") for row in rows]),
    )


def _parameter(
    rows: tuple[Signal, ...],
    owners: list[dict[tuple[str, int], Signal]],
    sizes: tuple[int, ...],
    rate: Rate | None,
) -> Scaled:
    sgd: list[float | None] = []
    adam: list[float | None] = []
    for row, owner, size in zip(rows, owners, sizes, strict=True):
        output = owner.get((row.name.rpartition(".")[0], 0))
        eta = 1.0 if rate is None else rate(row.name, row.shape, size)
        both = _step(row, output, eta) if output is not None else (None, None)
        sgd.append(both[0])
        adam.append(both[1])
    return Scaled(
        name=rows[0].name,
        call=0,
        kind=rows[0].kind,
        size=fit(sizes, [row.rms("forward") for row in rows]),
        gradient=fit(sizes, [row.rms("backward") for row in rows]),
        sgd=fit(sizes, sgd),
        adam=fit(sizes, adam),
    )


def _step(row: Signal, output: Signal, eta: float) -> tuple[float | None, float | None]:
    """Return the RMS of the change of the owner's output by the first SGD and Adam step; see the module."""
    gradient, there = row.rms("backward"), output.rms("backward")
    if not gradient or not there:
        return None, None
    entries = math.prod(row.shape) / math.prod(output.shape)
    return eta * entries * gradient**2 / there, eta * entries * math.sqrt(2 / math.pi) * gradient / there


def fit(sizes: Sequence[int], values: Sequence[float | None]) -> Growth:
    """Fit a power of the size to positive values.

    Args:
        sizes: The sizes.
        values: A value per size; None where it is unknown.

    Returns:
        The growth; its exponent is None unless all values are positive and finite.

    Example:
        >>> round(fit((16, 64), (8.0, 4.0)).exponent, 3)
        -0.5
    """
    known = [v for v in values if v is not None and 0 < v < math.inf]
    if len(known) < len(sizes):
        return Growth(values=tuple(values), exponent=None, residual=None)
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in known]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    residual = max(abs(b - my - slope * (a - mx)) for a, b in zip(x, y, strict=True))
    return Growth(values=tuple(values), exponent=slope, residual=residual)


def _grows(p: float) -> str:
    return "grows" if p > 0 else "shrinks"


def _exponent(growth: Growth | None) -> str:
    if growth is None or growth.exponent is None:
        return "–"
    bent = "~" if growth.residual is not None and growth.residual > 0.1 else ""
    return f"{bent}{growth.exponent + 0.0:.2f}"
