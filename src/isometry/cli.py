"""The command line: parses, calls, prints; nothing is computed here.

Every command prints for people and writes `--json` for programs; an `IsometryError` becomes one line and the
exit code 2.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from isometry import demo, planning_commands, prediction_commands
from isometry.compare import DEFAULT_INITS, compare, contenders
from isometry.compare import Progress as Report
from isometry.compare.comparison import Comparison
from isometry.compare.contenders import Start
from isometry.compare.training import OPTIMIZERS
from isometry.console import (
    Arguments,
    Depth,
    Inputs,
    JsonFile,
    Leaves,
    Parameters,
    Plot,
    Target,
    examples,
    require_plots,
    screen,
    show_table,
    spec_of,
    write_json,
)
from isometry.datasets import DATASETS
from isometry.errors import InvalidValueError, IsometryError, IsometryWarning
from isometry.gain import Direction, describe, gain
from isometry.gain_table import gain_table
from isometry.measure import measure
from isometry.report import report
from isometry.strictjson import dump
from isometry.targets import builder, find, parse_arguments

app = typer.Typer(
    name="isometry",
    help="Initial weights that keep the signal alive.\n\nStart with: isometry compare --demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(prediction_commands.app)
app.add_typer(planning_commands.app)

# The one place for defaults is `compare` itself.
_DEFAULT: dict[str, Any] = {name: p.default for name, p in signature(compare).parameters.items()}

# Activations in one table, so that it fits a screen of 100 columns.
_ABREAST = 5


Activation = Annotated[
    str | None,
    typer.Option(help="Whose gain is meant: a name or module:function. Left out: the one the model has."),
]


def run(arguments: Sequence[str]) -> int:
    """Run a command line and turn every expected error into one line.

    Args:
        arguments: what follows the command's name.

    Returns:
        The exit code: 0, or 2 where the input cannot be used.

    Example:
        >>> run(["--version"])
        isometry ...
        0
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with _warnings_as_lines(errors):
            app(_with_bare_json(arguments), prog_name="isometry")
    except IsometryError as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)))
        return 2
    except OSError as error:  # a file or folder that cannot be written
        errors.print(Text.assemble(("error: ", "bold red"), str(error)))
        return 2
    except SystemExit as stop:  # how typer ends, always
        return stop.code if isinstance(stop.code, int) else 0
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version_: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version_:
        typer.echo(f"isometry {version('isometry')} (torch {torch.__version__})")
        raise typer.Exit


@app.command(
    name="gain", epilog=examples("gain silu gelu tanh", "gain my_file.py:my_activation --direction backward")
)
def _gain(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Names such as silu, leaky_relu(0.2), swiglu; or package.module:function, "
            "or path/file.py:function.",
        ),
    ],
    direction: Annotated[
        str | None,
        typer.Option(help="Print only this gain, a line each: forward, backward or balanced."),
    ] = None,
    gated: Annotated[
        bool,
        typer.Option(
            "--gated", help="Take each as the φ of a gated unit φ(a)·b; swiglu and its like are already."
        ),
    ] = False,
    mean: Annotated[float, typer.Option(help="Mean of the activation's input.")] = 0.0,
    std: Annotated[float, typer.Option(help="Standard deviation of the activation's input.")] = 1.0,
    json: JsonFile = None,
) -> None:
    """Show the gain of activations, what follows for a deep network, and where torch differs."""
    activations = [find(name) if ":" in name else name for name in names]
    is_gated = True if gated else None
    if direction is not None:
        gains = {
            name: gain(activation, direction=cast("Direction", direction), gated=is_gated, mean=mean, std=std)
            for name, activation in zip(names, activations, strict=True)
        }
        for name, value in gains.items():
            typer.echo(f"{name} {value:.9g}", err=json == "-")
        write_json(dump(gains), json)
        return
    found = [describe(activation, gated=is_gated, mean=mean, std=std) for activation in activations]
    console = screen(json)
    for start in range(0, len(found), _ABREAST):
        show_table(console, gain_table(found[start : start + _ABREAST]))
    write_json(dump({name: one.to_dict() for name, one in zip(names, found, strict=True)}), json)


@app.command(
    name="measure",
    epilog=examples(
        "measure model.py:build -i 64x1024",
        "measure model.py:build --arg depth=30 -i 64x1024 --init kaiming",
    ),
)
def _measure(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    init: Annotated[
        str | None,
        typer.Option(
            help=f"Initialise first: {', '.join(contenders.STARTS)}, recipe:NAME, or where:callable."
        ),
    ] = None,
    activation: Activation = None,
    leaves: Leaves = False,
    depth: Depth = None,
    parameters: Parameters = False,
    plot: Plot = None,
    json: JsonFile = None,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Run a model once on random inputs and show the signal in every module, forward and backward."""
    if plot is not None:
        require_plots()
    _check_activation(activation, [init] if init is not None else [])
    spec = spec_of(inputs)
    torch.manual_seed(seed)
    model = builder(target, parse_arguments(arg or []))()
    if init is not None:
        contenders.contender(
            _start(init), lambda: _activation(activation) or contenders.activation_of(model), lambda _: spec
        ).initialise(model, seed)
    profile = measure(model, spec)
    console = screen(json)
    show_table(console, profile.table(depth=depth, leaves=leaves, parameters=parameters))
    if plot is not None:
        profile.plot(plot)
        console.print(f"wrote {plot}", style="dim", soft_wrap=True)
    write_json(profile.to_json(), json)


@app.command(
    name="compare",
    epilog=examples(
        "compare --demo --out out",
        "compare model.py:build --data digits32 --init torch --init kaiming",
    ),
)
def _compare(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]", help="The model, as for measure; none with --demo.", show_default=False
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--demo", help="Compare on deep plain networks (relu, tanh, gelu), no TARGET.")
    ] = False,
    data: Annotated[str, typer.Option(help=f"The data: {', '.join(DATASETS)}.")] = "digits",
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START",
            help=f"A start: {', '.join(contenders.STARTS)}, recipe:NAME, or where:callable of your own. "
            f"May be repeated; left out: {', '.join(map(str, DEFAULT_INITS))} (the demo: all).",
        ),
    ] = None,
    inits: Annotated[
        str | None, typer.Option(metavar="START,START,…", help="Several starts at once.")
    ] = None,
    arg: Arguments = None,
    activation: Activation = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps per run.")] = _DEFAULT["steps"],
    lr: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATE",
            help=f"Learning rate. Repeated: every start keeps its best. Left out: {_DEFAULT['lr']} "
            f"(the demo: {', '.join(map(str, demo.RATES))}).",
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = _DEFAULT["optimizer"],
    batch_size: Annotated[int, typer.Option(help="Samples per step.")] = _DEFAULT["batch_size"],
    seed: Annotated[
        list[int] | None,
        typer.Option(
            metavar="SEED", help="Of weights and batches. Repeated: the median run is shown. Left out: 0."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Test accuracy that counts as learnt.")] = _DEFAULT[
        "threshold"
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write plots, report.html and comparison.json there.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Train the same model from several initialisations: same data, same batches, same budget."""
    if show == (target is not None):
        raise InvalidValueError("name a TARGET such as model.py:build, or use --demo (one of the two)")
    if out is not None:
        require_plots()
    options: dict[str, Any] = {
        "steps": steps,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "seeds": seed or _DEFAULT["seeds"],
        "threshold": threshold,
    }
    if starts := [*(init or []), *(inits.split(",") if inits else [])]:
        options["inits"] = [_start(name.strip()) for name in starts]
        if not show:
            _check_activation(activation, [name.strip() for name in starts])
    if lr:
        options["lr"] = lr
    arguments = parse_arguments(arg or [])
    console = screen(json)
    found: dict[str, Comparison] = {}
    with _progress(console) as progress:
        if target is None:
            shown = [activation] if activation else list(demo.ACTIVATIONS)
            with _one_thread():
                for name, one in demo.run(
                    activations=shown, data=data, arguments=arguments, progress=progress, **options
                ):
                    found[name] = one
                    _show(console, one, out and out / name)
        else:
            build, phi = builder(target, arguments), _activation(activation)
            one = compare(build, data, activation=phi, title=_title(target), progress=progress, **options)
            _show(console, one, out)
    if target is None:
        write_json(dump({name: one.to_data() for name, one in found.items()}), json)
    else:
        write_json(one.to_json(), json)


# --- reading ------------------------------------------------------------------------------------------------


def _with_bare_json(arguments: Sequence[str]) -> list[str]:
    """Give a `--json` without a file the file "-", the standard output."""
    read: list[str] = []
    for here, after in zip_longest(arguments, arguments[1:]):
        read.append(here)
        if here == "--json" and (after is None or (after.startswith("-") and after != "-")):
            read.append("-")
    return read


def _start(text: str) -> Start:
    """A start by its name, or by where to find a callable."""
    own = ":" in text and not text.startswith(contenders.RECIPE)
    return (text.rpartition(":")[2], find(text)) if own else text


def _title(target: str) -> str:
    """A target without the folders of its file."""
    where, _, attribute = target.rpartition(":")
    return f"{Path(where).name}:{attribute}"


def _activation(text: str | None) -> contenders.Activation | None:
    """An activation by its name, or by where to find it; a class from torch.nn counts as its module."""
    return find(text) if text is not None and ":" in text else text


def _check_activation(text: str | None, starts: Sequence[str]) -> None:
    """Refuse an activation that none of the starts asks for, which would change nothing."""
    if text is None or not contenders.WITH_GAIN.isdisjoint(starts):
        return
    given = ", ".join(f"--init {name}" for name in starts) or "no --init"
    known = ", ".join(sorted(contenders.WITH_GAIN))
    raise InvalidValueError(
        f"--activation {text} changes nothing with {given}: only {known} have the gain of an activation"
    )


# --- printing -----------------------------------------------------------------------------------------------


def _show(console: Console, found: Comparison, folder: Path | None) -> None:
    show_table(console, found.table())
    for name, text in found.sentences().items():
        console.print(Text.assemble((name, "bold"), ": ", text), soft_wrap=not console.is_terminal)
    if folder is not None:
        page = report(found, folder / "report.html", title=f"{found.title} on {found.data}")
        written = [*found.plot(folder), page, folder / "comparison.json"]
        found.save(written[-1])
        console.print(f"wrote {', '.join(map(str, written))}", style="dim", soft_wrap=True)
    console.print()


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """A progress bar that goes away when it is done; none where nobody watches."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting")
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the demo's small matrices gain nothing from more, and lose on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _warnings_as_lines(errors: Console) -> Iterator[None]:
    """Print the package's own warnings as one line each."""

    def show(message: Warning | str, *rest: Any, **options: Any) -> None:
        errors.print(Text.assemble(("warning: ", "bold yellow"), str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", IsometryWarning)
        warnings.showwarning = show
        yield
