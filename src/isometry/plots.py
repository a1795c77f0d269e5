"""Pictures of plain numbers: lines by depth, curves and heat maps. Knows nothing of profiles or models.

Nothing here touches matplotlib's global state or needs a display. The colours are those of Okabe and Ito
(2008), which colour-blind readers can tell apart; every series also carries its name at the end of its line.
Zero, infinity and nan have no place on a logarithmic axis: they are marked at its edges, never dropped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isometry.errors import InvalidValueError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Literal["linear", "log"]
Values = Sequence[float | None]
Points = Sequence[tuple[float, float | None]]

# Okabe & Ito (2008) without yellow, which is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_INK, _QUIET, _GRID = "#222222", "#666666", "#E4E4E4"
_LOG_FLOOR, _LOG_CEILING = 1e-300, 1e300  # matplotlib's own log axis gives up beyond


def lines_by_depth(
    panels: Mapping[str, Mapping[str, Values]],
    *,
    labels: Sequence[str] = (),
    title: str = "",
    xlabel: str = "module, in order of execution",
    ylabel: str = "RMS",
    path: str | Path | None = None,
) -> Figure:
    """Draw several series by depth on a logarithmic axis, a panel beside the other.

    The distance that matters is the one from 1, so a line is drawn there.

    Args:
        panels: Heading of a panel → name of a series → its values, one per layer; None leaves a gap.
        labels: Names of the layers; shown where there is room for them.
        title: A title above all panels.
        xlabel: What the x axis counts.
        ylabel: What the y axis shows.
        path: Write the picture there; None only returns it.

    Returns:
        The figure.

    Raises:
        InvalidValueError: There is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    curves = {
        panel: {name: list(enumerate(values)) for name, values in series.items()}
        for panel, series in panels.items()
    }
    figure, axes = _panels(curves, title=title)
    for ax, (heading, series) in zip(axes, curves.items(), strict=True):
        _draw(ax, series, scale="log")
        ax.axhline(1.0, color=_QUIET, linewidth=0.8, zorder=1)
        _dress(ax, heading, xlabel, ylabel if ax is axes[0] else "")
        _whole_numbers(ax, labels, panels=len(axes))
    return _finish(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Points]],
    *,
    title: str = "",
    xlabel: str = "step",
    scales: Mapping[str, Scale] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw curves over a common x axis, a panel beside the other.

    Args:
        panels: Heading of a panel → name of a series → its points (x, y); a y of None leaves a gap.
        title: A title above all panels.
        xlabel: What the x axis counts.
        scales: Heading of a panel → "linear" (the default) or "log".
        path: Write the picture there; None only returns it.

    Returns:
        The figure.

    Raises:
        InvalidValueError: There is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _panels(panels, title=title)
    for ax, (heading, series) in zip(axes, panels.items(), strict=True):
        _draw(ax, series, scale=(scales or {}).get(heading, "linear"))
        _dress(ax, heading, xlabel, "")
    return _finish(figure, path)


def heat_map(
    values: Sequence[Values],
    *,
    rows: Sequence[str],
    columns: Sequence[int],
    title: str = "",
    xlabel: str = "step",
    label: str = "log10 RMS",
    path: str | Path | None = None,
) -> Figure:
    """Draw log10 of positive values as colours, rows × columns.

    Blue is below 1, red above, white is 1. Zero, infinity and nan are grey and carry a sign.

    Args:
        values: One sequence per row, one value per column; None leaves the cell empty.
        rows: Names of the rows, from top to bottom.
        columns: Numbers of the columns.
        title: A title.
        xlabel: What the columns count.
        label: What the colours mean.
        path: Write the picture there; None only returns it.

    Returns:
        The figure.

    Raises:
        InvalidValueError: There is nothing to draw, or the sizes do not fit together.
        MissingExtraError: matplotlib is not installed.
    """
    if not rows or not columns:
        raise InvalidValueError("there is nothing to draw: a heat map needs at least one row and one column")
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise InvalidValueError(f"expected {len(rows)} rows of {len(columns)} values for the heat map")
    figure_class = _figure_class()
    height = min(3.0 + 0.2 * len(rows), 24.0)
    figure = figure_class(
        figsize=(min(6.0 + 0.12 * len(columns), 16.0), height), layout="constrained", dpi=150
    )
    ax = figure.subplots()
    logs = [[_log(value) for value in row] for row in values]
    reach = max([1.0, *(abs(log) for row in logs for log in row if math.isfinite(log))])
    grid = ax.pcolormesh(logs, cmap="RdBu_r", vmin=-reach, vmax=reach, shading="flat")
    grid.set_rasterized(True)
    ax.invert_yaxis()
    ax.set_facecolor("#F2F2F2")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            sign = _sign(value)
            if sign:
                ax.text(x + 0.5, y + 0.5, sign, ha="center", va="center", fontsize=7, color=_INK)
    _sparse_ticks(ax, rows, columns)
    ax.set_xlabel(xlabel, color=_INK)
    ax.set_title(title, loc="left", fontsize=12, color=_INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    figure.colorbar(grid, ax=ax, label=label, aspect=30, pad=0.02)
    if any(_sign(value) for row in values for value in row):
        figure.supxlabel("0 = exactly zero    ∞ = infinite    × = nan", fontsize=8, color=_QUIET)
    return _finish(figure, path)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a picture; the ending of the path chooses its format.

    Args:
        figure: What to write.
        path: Where; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        InvalidValueError: There is no such format.
    """
    known = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix
    if suffix and suffix[1:].lower() not in known:
        raise InvalidValueError(f"a picture cannot be written as {suffix}: {path}; use .png, .svg or .pdf")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return Path(path)


def svg(figure: Figure) -> str:
    """Return a picture as SVG, the same text for the same picture.

    Args:
        figure: The picture.

    Returns:
        The SVG document.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "isometry"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


# --- axes -----------------------------------------------------------------------------------------


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    return Figure


def _panels(panels: Mapping[str, Mapping[str, Points]], *, title: str) -> tuple[Figure, list[Axes]]:
    if not any(len(points) for series in panels.values() for points in series.values()):
        raise InvalidValueError("there is nothing to draw: no series has a value")
    width = {1: 9.0}.get(len(panels), 6.5 * len(panels))
    figure = _figure_class()(figsize=(width, 5.0), layout="constrained", dpi=150)
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=_INK)
    return figure, axes


def _dress(ax: Axes, heading: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(heading, loc="left", fontsize=11, color=_INK)
    ax.set_xlabel(xlabel, color=_INK)
    ax.set_ylabel(ylabel, color=_INK)
    ax.grid(visible=True, axis="y", color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=_QUIET, labelsize=9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#BBBBBB")


def _whole_numbers(ax: Axes, labels: Sequence[str], *, panels: int) -> None:
    """Layers are counted in whole numbers; their names stand there where they fit."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if labels and len(labels) * panels <= 40:
        ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)


def _sparse_ticks(ax: Axes, rows: Sequence[str], columns: Sequence[int]) -> None:
    every_row = max(1, math.ceil(len(rows) / 100))
    every_column = max(1, math.ceil(len(columns) / 16))
    ax.set_yticks([y + 0.5 for y in range(0, len(rows), every_row)], rows[::every_row], fontsize=7)
    ax.set_xticks(
        [x + 0.5 for x in range(0, len(columns), every_column)],
        [str(column) for column in columns[::every_column]],
        fontsize=8,
    )
    ax.tick_params(length=0, colors=_INK)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure


# --- series ---------------------------------------------------------------------------------------


def _draw(ax: Axes, series: Mapping[str, Points], *, scale: Scale) -> None:
    """Draw every series, mark what an axis cannot show, and write each name at the end of its line."""
    from matplotlib.ticker import NullFormatter

    ax.set_yscale(scale)
    ax.set_autoscale_on(False)  # its margins overflow near the ends of float64
    ax.yaxis.set_minor_formatter(NullFormatter())
    ends: list[tuple[str, str, float | None]] = []
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        ax.plot(
            [x for x, _ in points],
            [_place(y, scale) for _, y in points],
            color=colour,
            linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
            # Later lines are thinner, so that one that lies exactly below another still shows.
            linewidth=max(3.2 - 0.4 * index, 1.2),
            marker="o" if len(points) <= 40 else "",
            markersize=max(4.6 - 0.4 * index, 2.6),
            zorder=3,
        )
        last = next((y for _, y in reversed(points) if y is not None), None)
        ends.append((name, colour, last))
    _frame(ax, series, scale)
    marks = [_mark_edges(ax, points, scale, index) for index, points in enumerate(series.values())]
    if any(marks):
        ax.annotate(
            "▲ infinite   × nan   ▼ zero",
            (1.0, 1.0),
            xycoords="axes fraction",
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=_QUIET,
        )
    _label_ends(ax, ends, scale)


def _place(value: float | None, scale: Scale) -> float:
    """Where a value stands on the axis; nan where it has no place."""
    if value is None or not math.isfinite(value) or (scale == "log" and value <= 0):
        return math.nan
    return value if scale == "linear" else min(max(value, _LOG_FLOOR), _LOG_CEILING)


def _frame(ax: Axes, series: Mapping[str, Points], scale: Scale) -> None:
    """Leave room for the marks at the edges, and never zoom a flat line into noise."""
    places = [_place(y, scale) for points in series.values() for _, y in points]
    values = [place for place in places if not math.isnan(place)]
    xs = [x for points in series.values() for x, _ in points]
    ax.set_xlim(min(xs) - 0.02 * (max(xs) - min(xs) or 1), max(xs) + 0.02 * (max(xs) - min(xs) or 1))
    if not values:
        ax.set_ylim((0.1, 10.0) if scale == "log" else (0.0, 1.0))
        return
    low, high = min(values), max(values)
    if scale == "log":
        bottom, top = min(math.log10(low), -1.0), max(math.log10(high), 1.0)
        room = 0.08 * (top - bottom)
        ax.set_ylim(10.0 ** max(bottom - room, -307), 10.0 ** min(top + room, 307))
    else:
        room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(low - room, high + room)


def _mark_edges(ax: Axes, points: Points, scale: Scale, index: int) -> bool:
    """Mark nan, infinity and (on a logarithmic axis) zero at the edge of the axes; True if there was one."""
    found = False
    for sign, marker in (("∞", "^"), ("×", "x"), ("0", "v")):
        xs = [x for x, y in points if _sign(y) == sign and not (sign == "0" and scale == "linear")]
        if xs:
            found = True
            # Series that stop being finite together would hide one another.
            height = 0.015 + 0.018 * index if sign == "0" else 0.985 - 0.018 * index
            colour = _COLOURS[index % len(_COLOURS)]
            transform = ax.get_xaxis_transform()
            ax.scatter(
                xs, [height] * len(xs), s=16, marker=marker, color=colour, transform=transform, zorder=4
            )
    return found


def _sign(value: float | None) -> str:
    """The sign for a value that a logarithmic axis cannot show, "" for any other."""
    if value is None:
        return ""
    if math.isnan(value):
        return "×"
    if math.isinf(value):
        return "∞"
    return "0" if value == 0 else ""


def _label_ends(ax: Axes, ends: Sequence[tuple[str, str, float | None]], scale: Scale) -> None:
    """Write each series' name right of the axes, at the height of its end."""
    low, high = (math.log10(y) if scale == "log" else y for y in ax.get_ylim())

    def height(value: float | None) -> float:
        if value is None:
            return 0.5
        if _sign(value) in {"×", "∞"}:
            return 1.0
        place = _place(value, scale)
        if math.isnan(place):
            return 0.0
        return ((math.log10(place) if scale == "log" else place) - low) / (high - low)

    wanted = sorted(((height(last), name, colour) for name, colour, last in ends), key=lambda end: end[0])
    heights = _spread([at for at, _, _ in wanted], gap=0.05)
    for at, (_, name, colour) in zip(heights, wanted, strict=True):
        ax.annotate(
            name,
            (1.0, at),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move sorted heights in [0, 1] as little as possible until neighbours are `gap` apart.

    Labels that would touch form a group, which is centred on the mean of their heights.
    """
    groups: list[list[float]] = []

    def bottom(group: Sequence[float]) -> float:
        span = gap * (len(group) - 1)
        return max(0.0, min(sum(group) / len(group) - span / 2, 1.0 - span))

    for height in heights:
        groups.append([height])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + gap * len(groups[-2]) - 1e-9:
            last = groups.pop()
            groups[-1] += last
    return [bottom(group) + gap * index for group in groups for index in range(len(group))]


def _log(value: float | None) -> float:
    return math.log10(value) if value is not None and math.isfinite(value) and value > 0 else math.nan
