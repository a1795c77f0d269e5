"""The results of benchmarks/trainability.py as they are kept: trainability.jsonl, a line per cell and start.

The lines are strict JSON in the order of the page, numbers with five digits, so that a rerun shows in a
review as the lines it changed. A line with "page" says what the page said of a run that was not kept: its
settings are lost, so it is shown, but never taken for a run of today's settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isometry.strictjson import number_from_data, number_to_data
from trainability_cells import PARTS, Cell, cells
from trainability_report import Result, Told
from trainability_starts import starts

KEPT = Path(__file__).with_name("trainability.jsonl")


def load(path: Path = KEPT) -> list[Result]:
    """Every kept result, in the order of the page."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [from_line(line) for line in lines]


def kept(cell: Cell, start: str, path: Path = KEPT) -> Result | None:
    """The kept result of one start in one cell, if it is of the cell's settings."""
    key = (cell.part, cell.name, start)
    found = next((r for r in load(path) if (r.part, r.cell, r.start) == key), None)
    return found if found is not None and found.settings == strict(cell.settings) else None


def current(path: Path = KEPT) -> list[Result]:
    """Every kept result but those whose cell has other settings by now."""
    today = {(cell.part, cell.name): strict(cell.settings) for part in PARTS for cell in cells(part)}
    found = load(path)
    return [r for r in found if isinstance(r, Told) or r.settings == today.get((r.part, r.cell), r.settings)]


def keep(result: Result, path: Path = KEPT) -> None:
    """Put a result in place of the one of its cell and start; a break leaves the old file or the new."""
    key = (result.part, result.cell, result.start)
    others = [r for r in load(path) if (r.part, r.cell, r.start) != key]
    save([*others, result], path)


def save(results: list[Result], path: Path = KEPT) -> None:
    """Write all results, in the order of the page."""
    places = {place: i for i, place in enumerate(_places())}

    def order(result: Result) -> tuple[int, int, str, str]:
        place = places.get((result.part, result.cell, result.start), len(places))  # an architecture not here
        return PARTS.index(result.part), place, result.cell, result.start

    fresh = path.with_suffix(".part")
    fresh.write_text("".join(to_line(r) + "\n" for r in sorted(results, key=order)), encoding="utf-8")
    fresh.replace(path)


def _places() -> Iterator[tuple[str, str, str]]:
    for part in PARTS:
        for cell in cells(part):
            for start in starts(part):
                yield part, cell.name, start


def to_line(result: Result) -> str:
    """A result as strict JSON, without what says nothing."""
    data = {key: strict(value) for key, value in asdict(result).items()}
    data = {key: value for key, value in data.items() if value != _DEFAULTS[key]}
    return json.dumps(data, allow_nan=False, ensure_ascii=False)


def from_line(line: str) -> Result:
    """The result that `to_line` wrote."""
    data = json.loads(line)
    data["lr"] = number_from_data(data.get("lr", "nan"), "lr")
    data["quality"] = [number_from_data(value, "quality") for value in data.get("quality", ())]
    data["tuning"] = {lr: number_from_data(loss, lr) for lr, loss in data.get("tuning", {}).items()}
    return Told(**data) if "page" in data else Result(**data)


def strict(value: Any) -> Any:
    """Numbers as strict JSON knows them, with five digits, all through a structure."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.5g}")
    return number_to_data(value) if isinstance(value, float) else value


_DEFAULTS = strict(asdict(Told(part="", cell="", start="", settings={})))
