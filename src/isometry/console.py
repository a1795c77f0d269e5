"""What the commands share: the options that several take, and how they print."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from isometry.errors import MissingExtraError
from isometry.tables import Table


def examples(*lines: str) -> str:
    """The end of a help page; a blank line keeps each example on a line of its own."""
    return "Examples:\n\n" + "\n\n".join(f"isometry {line}" for line in lines)


Target = Annotated[
    str,
    typer.Argument(
        help="The model: package.module:attr or path/file.py:attr, either a torch.nn.Module "
        "or a callable that returns one.",
        metavar="TARGET",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", "-a", metavar="KEY=VALUE", help="An argument for the callable; may be repeated."),
]
JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="[FILE]", help="Write JSON to FILE; without FILE, to the standard output."
    ),
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--inputs",
        "-i",
        metavar="SPEC",
        help="The inputs: 32x1024 for floats, 4x128:int64<50257 for token ids. May be repeated.",
    ),
]
Parameters = Annotated[bool, typer.Option("--parameters", help="Show weights and their gradients instead.")]
Draws = Annotated[int, typer.Option(help="How many models are drawn and measured.")]
Seed = Annotated[int, typer.Option(help="Of the first draw.")]
Leaves = Annotated[bool, typer.Option("--leaves", help="Only modules without submodules.")]
Depth = Annotated[int | None, typer.Option(help="Only modules at most so many levels down.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw RMS by depth, forward and backward (.png, .svg, .pdf)."),
]


def spec_of(inputs: list[str]) -> str:
    """One spec of all inputs that were given."""
    return ", ".join(inputs)


def screen(json: str | None) -> Console:
    """The screen; where JSON goes to the standard output, people read the standard error."""
    return Console(stderr=json == "-", highlight=False)


def show_table(console: Console, table: Table) -> None:
    """Draw a table with rich where there is room for it, and as plain text otherwise."""
    width = max(map(len, str(table).splitlines()))
    if console.is_terminal and width + 2 * len(table.columns) <= console.width:
        console.print(table)
    else:
        console.print(Text(str(table)), soft_wrap=True)


def require_plots() -> None:
    """Say that matplotlib is missing before the work, not after it."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plots")


def write_json(text: str, json: str | None) -> None:
    """Write JSON where `--json` says, if it says."""
    if json == "-":
        typer.echo(text)
    elif json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        Path(json).write_text(text + "\n", encoding="utf-8")
