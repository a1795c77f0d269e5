"""The record of a comparison: one `Entry` per start, with a table, a sentence each, plots and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

from isometry.compare.training import Run
from isometry.compare.verdicts import Evidence, arrow, evidence, hidden, sentence
from isometry.errors import InvalidValueError, NotFoundError
from isometry.plots import curves, lines_by_depth, save
from isometry.profile import Profile
from isometry.strictjson import Record, expect, number_from_data, number_to_data, refuse_unknown
from isometry.tables import Table, compact, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One start in a comparison: its signal before training, and all of its runs.

    Args:
        name: of the initialisation.
        description: what it does, in a few words.
        profile: the untrained model on the first batch (first seed).
        runs: every run, all learning rates and seeds.
        lr: the learning rate that served this start best, by the final training loss.
    """

    name: str
    description: str
    profile: Profile
    runs: tuple[Run, ...]
    lr: float

    @property
    def evidence(self) -> Evidence:
        """The numbers of the profile that explain the runs."""
        return evidence(self.profile)

    @property
    def best(self) -> tuple[Run, ...]:
        """The runs at the best learning rate, one per seed."""
        return tuple(run for run in self.runs if run.lr == self.lr)

    @property
    def run(self) -> Run:
        """The run at the best learning rate whose result is the median over the seeds."""
        ranked = sorted(self.best, key=_score)
        return ranked[(len(ranked) - 1) // 2]


@dataclass(frozen=True, repr=False)
class Comparison(Record, Sequence[Entry]):
    """What `compare` found; a sequence of `Entry`, also by name: `comparison["kaiming"]`.

    Args:
        title: what was compared.
        data: name of the data.
        chance: accuracy of guessing, 1/classes; None for a regression.
        threshold: accuracy that counts as learnt.
        entries: one per start, in the order asked for.
        skipped: `(name, reason)` of every start that this model cannot have.
    """

    schema: ClassVar[str] = "isometry.comparison"

    title: str
    data: str
    chance: float | None
    threshold: float
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(entry.name for entry in self.entries)
        return f"<Comparison, {self.title} on {self.data}: {names}>"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @overload
    def __getitem__(self, key: int | str) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Entry | tuple[Entry, ...]:
        if not isinstance(key, str):
            return self.entries[key]
        for entry in self.entries:
            if entry.name == key:
                return entry
        raise NotFoundError(
            f"no start {key!r} in this comparison (it has {', '.join(entry.name for entry in self.entries)})"
        )

    def sentences(self) -> dict[str, str]:
        """Say of every start what happened and why, from its measured numbers.

        Returns:
            Name of the start → a sentence.
        """
        return {
            entry.name: sentence(entry.evidence, entry.run, chance=self.chance, threshold=self.threshold)
            for entry in self.entries
        }

    def table(self) -> Table:
        """Lay the starts out as a table, a row each.

        RMS, its factor per layer, gradient and cosine are those of the hidden layers before training: first
        → last layer; for the gradient, the RMS at the first layer over that at the last.

        Returns:
            The table; `str()` of it is plain text.
        """
        headings = ["Start", "RMS", "a layer", "gradient", "cosine", "lr", "loss", "accuracy"]
        headings.append(f"{percent(self.threshold)} after")
        rows = [self._row(entry) for entry in self.entries]
        footer = [f"{name}: left out, {reason}" for name, reason in self.skipped]
        return Table(headings, rows, title=f"{self.title} on {self.data}", footer=footer)

    def _row(self, entry: Entry) -> list[str]:
        found, run = entry.evidence, entry.run
        factor = found.forward_factor
        reached = run.steps_to(self.threshold)
        return [
            entry.name,
            arrow(found.forward),
            "–" if factor is None else f"×{compact(factor)}",
            compact(found.gradient_ratio, digits=2),
            arrow(found.cosine),
            f"{entry.lr:g}",
            compact(run.losses[-1] if run.diverged is not None else run.final_loss, digits=2),
            _accuracies(entry.best) if run.diverged is None else f"diverged, step {run.diverged}",
            "–" if reached is None or run.diverged is not None else f"{reached} steps",
        ]

    def __str__(self) -> str:
        lines = [f"{name}: {text}" for name, text in self.sentences().items()]
        return "\n".join([str(self.table()), "", *lines])

    def plot(self, directory: str | Path) -> list[Path]:
        """Draw the signal by depth and the training curves, a PNG each.

        Args:
            directory: where `signal.png` and `training.png` go; made if it does not exist.

        Returns:
            The paths of the two files; of the second alone for a model without hidden layers.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        folder = Path(directory)
        return [save(figure, folder / f"{name}.png") for name, figure in self.figures().items()]

    def figures(self) -> dict[str, Figure]:
        """Draw the signal by depth and the training curves.

        Returns:
            `signal`, for a model with hidden layers, and `training`: matplotlib figures.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        drawn = {"signal": self._signal()} if hidden(self.entries[0].profile) else {}
        return drawn | {"training": self._training()}

    def _training(self) -> Figure:
        lost = any(entry.run.diverged is not None for entry in self.entries)
        loss = "Training loss (▲ = diverged)" if lost else "Training loss"
        labels = self._labels()
        panels = {loss: {labels[entry.name]: _loss_curve(entry.run) for entry in self.entries}}
        if self.chance is not None:
            panels["Test accuracy"] = {
                labels[entry.name]: _accuracy_curve(entry.run) for entry in self.entries
            }
        return curves(panels, title=f"{self.title} on {self.data}", scales={loss: "log"})

    def _signal(self) -> Figure:
        labels = self._labels()
        rows = {labels[entry.name]: hidden(entry.profile) for entry in self.entries}
        return lines_by_depth(
            {
                "Forward: RMS of the hidden layers": {
                    name: [None if row.forward is None else row.forward.rms for row in way]
                    for name, way in rows.items()
                },
                "Backward: RMS of the gradient there": {
                    name: [None if row.backward is None else row.backward.rms for row in way]
                    for name, way in rows.items()
                },
            },
            title=f"{self.title} on {self.data}: the signal before training",
            xlabel="hidden layer, from the input on",
        )

    def _labels(self) -> dict[str, str]:
        """Names as the plots write them: long ones are numbered and cut, so that they leave room to draw."""
        names = [entry.name for entry in self.entries]
        room = 20
        return {
            name: name if len(name) <= room else f"{number} {name[: room - 3]}…"
            for number, name in enumerate(names, 1)
        }

    def contents(self) -> dict[str, Any]:
        """The entries of the JSON form besides schema and version."""
        return {
            "title": self.title,
            "data": self.data,
            "chance": self.chance,
            "threshold": self.threshold,
            "entries": [_entry_to_data(entry) for entry in self.entries],
            "skipped": [list(pair) for pair in self.skipped],
            "sentences": self.sentences(),
        }

    @classmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make a comparison from what `contents` gave."""
        entries = expect(table.get("entries"), list, "entries")
        skipped = expect(table.get("skipped"), list, "skipped")
        return cls(
            title=expect(table.get("title"), str, "title"),
            data=expect(table.get("data"), str, "data"),
            chance=number_from_data(table.get("chance"), "chance"),
            threshold=_number(table.get("threshold"), "threshold"),
            entries=tuple(_entry_from_data(entry, f"entries[{i}]") for i, entry in enumerate(entries)),
            skipped=tuple(_pair_from_data(pair, f"skipped[{i}]") for i, pair in enumerate(skipped)),
        )


# --- cells --------------------------------------------------------------------------------------------------


def _score(run: Run) -> tuple[float, ...]:
    """How far a run came: the later the divergence, the more accurate, the lower the loss, the better."""
    if run.diverged is not None:
        return (0.0, float(run.diverged))
    return (1.0, -1.0 if run.accuracy is None else run.accuracy, -run.final_loss)


def _accuracies(runs: Sequence[Run]) -> str:
    """The median over the seeds, with the range where there are several."""
    known = sorted(run.accuracy for run in runs if run.accuracy is not None)
    if not known:
        return "–"
    middle = percent(known[(len(known) - 1) // 2])
    if len(runs) == 1:
        return middle
    lost = f", {len(runs) - len(known)} diverged" if len(known) < len(runs) else ""
    return f"{middle} ({percent(known[0])} to {percent(known[-1])}{lost})"


def _loss_curve(run: Run) -> list[tuple[float, float | None]]:
    """The training loss averaged from one evaluation to the next: single batches would hide the course."""
    points: list[tuple[float, float | None]] = []
    for start, end in pairwise(run.evaluated):
        part = run.losses[start:end]
        points.append((end, sum(part) / len(part)))
    if run.diverged is not None:
        points.append((run.diverged, math.inf))  # its size would squeeze all other curves
    return points


def _accuracy_curve(run: Run) -> list[tuple[float, float | None]]:
    return list(zip(run.evaluated, run.accuracies, strict=True))


# --- JSON ---------------------------------------------------------------------------------------------------


def _entry_to_data(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "description": entry.description,
        "lr": entry.lr,
        "profile": entry.profile.to_data(),
        "runs": [_run_to_data(run) for run in entry.runs],
    }


def _run_to_data(run: Run) -> dict[str, Any]:
    return {
        "lr": run.lr,
        "seed": run.seed,
        "losses": [number_to_data(value) for value in run.losses],
        "evaluated": list(run.evaluated),
        "accuracies": list(run.accuracies),
        "test_losses": [number_to_data(value) for value in run.test_losses],
        "diverged": run.diverged,
    }


def _entry_from_data(data: object, what: str) -> Entry:
    table = expect(data, dict, what)
    refuse_unknown(table, ("name", "description", "lr", "profile", "runs"), what)
    runs = expect(table.get("runs"), list, f"{what}.runs")
    return Entry(
        name=expect(table.get("name"), str, f"{what}.name"),
        description=expect(table.get("description"), str, f"{what}.description"),
        lr=_number(table.get("lr"), f"{what}.lr"),
        profile=Profile.from_data(table.get("profile")),
        runs=tuple(_run_from_data(run, f"{what}.runs[{index}]") for index, run in enumerate(runs)),
    )


def _run_from_data(data: object, what: str) -> Run:
    table = expect(data, dict, what)
    refuse_unknown(table, (field.name for field in fields(Run)), what)
    diverged = table.get("diverged")
    return Run(
        lr=_number(table.get("lr"), f"{what}.lr"),
        seed=expect(table.get("seed"), int, f"{what}.seed"),
        losses=_numbers(table.get("losses"), f"{what}.losses"),
        evaluated=tuple(expect(n, int, f"{what}.evaluated") for n in _list(table, "evaluated", what)),
        accuracies=_numbers(table.get("accuracies"), f"{what}.accuracies"),
        test_losses=_numbers(table.get("test_losses"), f"{what}.test_losses"),
        diverged=None if diverged is None else expect(diverged, int, f"{what}.diverged"),
    )


def _pair_from_data(data: object, what: str) -> tuple[str, str]:
    pair = expect(data, list, what)
    if len(pair) != 2:
        raise InvalidValueError(f"{what} must be a name and a reason, got {data!r}")
    return expect(pair[0], str, what), expect(pair[1], str, what)


def _list(table: dict[str, Any], key: str, what: str) -> list[Any]:
    return expect(table.get(key), list, f"{what}.{key}")


def _numbers(data: object, what: str) -> tuple[float, ...]:
    return tuple(_number(value, what) for value in expect(data, list, what))


def _number(data: object, what: str) -> float:
    return expect(number_from_data(data, what), float, what)
