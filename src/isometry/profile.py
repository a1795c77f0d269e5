"""One record for every signal, predicted, measured or watched: `Stats`, `Signal` and `Profile`.

A `Profile` lists the calls of a model's modules in the order in which they began (a parent before its
children). `forward` describes the values of a call's output, `backward` the gradient at that output; for a
parameter they describe its values and its gradient.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args, overload

from isometry.errors import InvalidValueError, NotFoundError
from isometry.plots import lines_by_depth
from isometry.strictjson import Record, expect, number_from_data, number_to_data, refuse_unknown
from isometry.tables import Column, Table, compact, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = Literal["measured", "predicted", "watched"]
Side = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What is known about the entries of one tensor; a value nobody knows is None.

    With a nan among the entries `mean`, `std` and `rms` are nan; with an infinity `rms` is infinite. `min`
    and `max` are those of the finite entries; `kurtosis` and `cosine` are None then.

    Attributes:
        mean: Mean of the entries.
        std: Their standard deviation (divided by n, not n − 1).
        rms: Root of the mean square, √E[x²]: the size that the next layer sees.
        min: Smallest finite entry.
        max: Largest finite entry.
        zeros: Share of entries that are exactly zero.
        saturated: Share of entries at which a bounded activation is flat; None for every other module.
        kurtosis: E[(x − mean)⁴]/std⁴, 3 for a normal distribution; None for a constant.
        cosine: Mean cosine between the outputs of two different samples of a batch; None below two samples.
        nonfinite: Share of entries that are nan or infinite.
        scatter: Relative standard deviation of `rms` from one random draw of weights and inputs to the
            next, as predicted for this finite width; None where it is not predicted.
    """

    mean: float | None = None
    std: float | None = None
    rms: float | None = None
    min: float | None = None
    max: float | None = None
    zeros: float | None = None
    saturated: float | None = None
    kurtosis: float | None = None
    cosine: float | None = None
    nonfinite: float | None = None
    scatter: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One call of one module (or one parameter) and what flowed there.

    Attributes:
        name: Path of the module or parameter, wrappers stripped; the model itself is "".
        call: 0 for a module's first call in a forward pass, 1 for its second, …
        kind: Class of the module (for a parameter: of the module that owns it).
        shape: Shape of the tensor; () where the module returned none.
        forward: Statistics of the values.
        backward: Statistics of the gradient.
    """

    name: str
    call: int = 0
    kind: str = ""
    shape: tuple[int, ...] = ()
    forward: Stats | None = None
    backward: Stats | None = None

    def stats(self, side: Side) -> Stats | None:
        """Return what is known of one side: of the values ("forward") or of their gradient ("backward")."""
        return self.forward if side == "forward" else self.backward

    def rms(self, side: Side = "forward") -> float | None:
        """Return the RMS of the values, or of their gradient; None where nobody knows it."""
        stats = self.stats(side)
        return None if stats is None else stats.rms


@dataclass(frozen=True, repr=False)
class Profile(Record, Sequence[Signal]):
    """The signals of a model, call by call, as `measure`, `predict` and `watch` return them.

    A sequence of `Signal` rows in the order in which the calls began. `profile["layers.3"]` is the first
    call of that module, `profile["layers.3", 1]` its second, `profile[0]` the first row. `print(profile)`
    shows a table.

    Attributes:
        signals: The module calls.
        parameters: The parameters: values in `forward`, gradients in `backward`.
        source: Where the numbers come from: "measured", "predicted" or "watched".
        notes: What the reader should know, such as modules that never ran.

    Example:
        >>> profile = Profile((Signal(name="fc", forward=Stats(mean=0.0, rms=1.0)),))
        >>> profile["fc"].forward.rms
        1.0
        >>> Profile.from_json(profile.to_json()) == profile
        True
    """

    schema: ClassVar[str] = "isometry.profile"

    signals: tuple[Signal, ...]
    parameters: tuple[Signal, ...] = ()
    source: Source = "measured"
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Profile, {self.source}: {len(self.signals)} calls, {len(self.parameters)} parameters>"

    def __len__(self) -> int:
        return len(self.signals)

    def __iter__(self) -> Iterator[Signal]:
        return iter(self.signals)

    @overload
    def __getitem__(self, key: int | str | tuple[str, int]) -> Signal: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Signal, ...]: ...
    def __getitem__(self, key: int | slice | str | tuple[str, int]) -> Signal | tuple[Signal, ...]:
        if isinstance(key, int | slice):
            return self.signals[key]
        name, call = (key, 0) if isinstance(key, str) else key
        rows = [row for row in (*self.signals, *self.parameters) if row.name == name]
        for row in rows:
            if row.call == call:
                return row
        if rows:
            raise NotFoundError(
                f"{name!r} was called {len(rows)} times, so there is no call {call} (the first is 0)"
            )
        raise NotFoundError(f"no module or parameter named {name!r} in this profile" + self._suggest(name))

    def _suggest(self, name: str) -> str:
        known = [row.name for row in (*self.signals, *self.parameters)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""

    def leaves(self) -> tuple[Signal, ...]:
        """Return the calls of modules that contain no other module of this profile.

        Returns:
            The rows, in order, without the containers that only repeat what is inside them.

        Example:
            >>> rows = (Signal(name=""), Signal(name="body"), Signal(name="body.0"), Signal(name="head"))
            >>> [row.name for row in Profile(rows).leaves()]
            ['body.0', 'head']
        """
        parents = {parent for row in self.signals for parent in _parents(row.name)}
        return tuple(row for row in self.signals if row.name not in parents)

    def table(self, *, depth: int | None = None, leaves: bool = False, parameters: bool = False) -> Table:
        """Lay the profile out as a table, one row per module call, indented like the model.

        Columns nobody knows anything about are left out.

        Args:
            depth: Show modules at most this many levels below the model; None for all.
            leaves: Show only modules without submodules, with their full names.
            parameters: Show the parameters in place of the module calls.

        Returns:
            The table; `str()` of it is plain text.

        Raises:
            InvalidValueError: `depth` is negative.

        Example:
            >>> row = Signal(name="fc", kind="Linear", shape=(32, 10), forward=Stats(rms=1.0))
            >>> print(Profile((row,)).table())
            Measured signal
            ────────────────────────
            Module       Output  RMS
            ────────────────────────
            fc (Linear)  32×10     1
            ────────────────────────
        """
        if depth is not None and depth < 0:
            raise InvalidValueError(f"depth must be 0 or more, got {depth}")
        rows = self.parameters if parameters else self.leaves() if leaves else self.signals
        shown = [row for row in rows if depth is None or _depth(row.name) <= depth]
        columns = [column for column in _COLUMNS if any(_known(row, column) for row in shown)]
        headings = [Column("Parameter" if parameters else "Module", "left")]
        headings += [Column("Shape" if parameters else "Output", "left")]
        headings += [Column(column.heading) for column in columns]
        labels = [row.name for row in shown] if parameters else _labels(shown, tree=not leaves)
        cells = [
            [label, _shape(row.shape), *(_cell(row, column) for column in columns)]
            for label, row in zip(labels, shown, strict=True)
        ]
        footer = list(self.notes)
        if len(shown) < len(rows):
            footer.insert(0, f"{len(rows) - len(shown)} deeper rows are not shown.")
        title = f"{self.source.capitalize()} {'parameters' if parameters else 'signal'}"
        return Table(headings, cells, title=title, footer=footer)

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Table:
        return self.table()

    def plot(self, path: str | Path | None = None, *, title: str | None = None) -> Figure:
        """Draw the RMS of values and gradients by depth on a logarithmic axis.

        The leaves of the model lie along the x axis in the order in which they ran. Zero, infinity and nan
        have no place on a logarithmic axis and are marked at its edges.

        Args:
            path: Write the picture there (the ending chooses the format); None only returns it.
            title: A title; None for a plain one.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        rows = [row for row in self.leaves() if row.forward is not None or row.backward is not None]
        series = {
            "forward (values)": [row.forward.rms if row.forward else None for row in rows],
            "backward (gradients)": [row.backward.rms if row.backward else None for row in rows],
        }
        known = {name: values for name, values in series.items() if any(v is not None for v in values)}
        return lines_by_depth(
            {"": known},
            labels=[row.name or row.kind for row in rows],
            title=f"{self.source.capitalize()} signal by depth" if title is None else title,
            path=path,
        )

    def contents(self) -> dict[str, Any]:
        """The entries of the JSON form besides schema and version."""
        return {
            "source": self.source,
            "signals": [_signal_to_data(row) for row in self.signals],
            "parameters": [_signal_to_data(row) for row in self.parameters],
            "notes": list(self.notes),
        }

    @classmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make a profile from what `contents` gave."""
        source = table.get("source")
        if source not in get_args(Source):
            raise InvalidValueError(f"the profile's source must be one of {get_args(Source)}, got {source!r}")
        return cls(
            signals=_signals_from_data(table.get("signals"), "signals"),
            parameters=_signals_from_data(table.get("parameters"), "parameters"),
            source=cast("Source", source),
            notes=tuple(expect(note, str, "a note") for note in expect(table.get("notes"), list, "notes")),
        )


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """A column of the text table: which side of which row it reads, and how it writes a value."""

    heading: str
    side: Side
    field: str
    share: bool = False
    only_if_any: bool = False  # left out while every value is zero


# min and max are left out so that the table stays readable at 110 columns.
_COLUMNS = (
    _Shown("Mean", "forward", "mean"),
    _Shown("Std", "forward", "std"),
    _Shown("RMS", "forward", "rms"),
    _Shown("±", "forward", "scatter", share=True),
    _Shown("Zeros", "forward", "zeros", share=True, only_if_any=True),
    _Shown("Satur.", "forward", "saturated", share=True),
    _Shown("Kurt.", "forward", "kurtosis"),
    _Shown("Cosine", "forward", "cosine"),
    _Shown("Nonfinite", "forward", "nonfinite", share=True, only_if_any=True),
    _Shown("Grad RMS", "backward", "rms"),
    _Shown("Grad ±", "backward", "scatter", share=True),
    _Shown("Grad nonfinite", "backward", "nonfinite", share=True, only_if_any=True),
)


def _value(row: Signal, column: _Shown) -> float | None:
    stats = row.stats(column.side)
    return None if stats is None else getattr(stats, column.field)


def _known(row: Signal, column: _Shown) -> bool:
    value = _value(row, column)
    return value is not None and not (column.only_if_any and value == 0)


def _cell(row: Signal, column: _Shown) -> str:
    value = _value(row, column)
    return percent(value) if column.share else compact(value)


def _parents(name: str) -> Iterator[str]:
    """Every path above `name`, the model itself ("") included."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _labels(rows: Sequence[Signal], *, tree: bool) -> list[str]:
    """Names of the rows; in a tree each is indented below its nearest parent and says only what is new."""
    names = {row.name for row in rows}
    labels = []
    for row in rows:
        above = [parent for parent in _parents(row.name) if parent and parent in names] if tree else []
        label = row.name.removeprefix(above[0] + ".") if above else row.name
        kind = f" ({row.kind})" if row.kind and row.name else row.kind
        call = f" #{row.call}" if row.call else ""
        labels.append("  " * len(above) + label + call + kind)
    return labels


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "–"


# --- JSON -----------------------------------------------------------------------------------------


def _signal_to_data(row: Signal) -> dict[str, Any]:
    return {
        "name": row.name,
        "call": row.call,
        "kind": row.kind,
        "shape": list(row.shape),
        "forward": _stats_to_data(row.forward),
        "backward": _stats_to_data(row.backward),
    }


def _stats_to_data(stats: Stats | None) -> dict[str, Any] | None:
    # What nobody knows is left out: most parameters know little.
    if stats is None:
        return None
    values = {field.name: getattr(stats, field.name) for field in fields(Stats)}
    return {name: number_to_data(value) for name, value in values.items() if value is not None}


def _signals_from_data(data: object, what: str) -> tuple[Signal, ...]:
    return tuple(
        _signal_from_data(row, f"{what}[{index}]") for index, row in enumerate(expect(data, list, what))
    )


def _signal_from_data(data: object, what: str) -> Signal:
    table = expect(data, dict, what)
    refuse_unknown(table, (field.name for field in fields(Signal)), what)
    shape = expect(table.get("shape"), list, f"{what}.shape")
    return Signal(
        name=expect(table.get("name"), str, f"{what}.name"),
        call=expect(table.get("call"), int, f"{what}.call"),
        kind=expect(table.get("kind"), str, f"{what}.kind"),
        shape=tuple(expect(size, int, f"{what}.shape") for size in shape),
        forward=_stats_from_data(table.get("forward"), f"{what}.forward"),
        backward=_stats_from_data(table.get("backward"), f"{what}.backward"),
    )


def _stats_from_data(data: object, what: str) -> Stats | None:
    if data is None:
        return None
    table = expect(data, dict, what)
    refuse_unknown(table, (field.name for field in fields(Stats)), what)
    return Stats(**{name: number_from_data(value, f"{what}.{name}") for name, value in table.items()})
