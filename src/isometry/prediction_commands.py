"""The commands that predict: `isometry predict | audit | scaling | diagnose | report`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from torch import nn

from isometry.audit import audit
from isometry.console import (
    Arguments,
    Depth,
    Draws,
    Inputs,
    JsonFile,
    Leaves,
    Parameters,
    Plot,
    Seed,
    Target,
    examples,
    require_plots,
    screen,
    show_table,
    spec_of,
    write_json,
)
from isometry.diagnosis import before_and_after, diagnose, faults, sentences
from isometry.errors import InvalidValueError, IsometryError
from isometry.planning import plan
from isometry.predict import predict
from isometry.report import Section, report
from isometry.scaling import scaling
from isometry.strictjson import dump
from isometry.targets import builder, find, parse_arguments

app = typer.Typer()


def _source(target: str, arguments: dict[str, Any]) -> Any:
    """The model itself where the target is one, else the function that builds it."""
    build = builder(target, arguments)
    found = find(target)
    return found if isinstance(found, nn.Module) else build


@app.command(
    name="predict",
    epilog=examples("predict model.py:build -i 64x1024", "predict model.py:gpt -i 8x1024:int64<50257"),
)
def _predict(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    leaves: Leaves = False,
    depth: Depth = None,
    parameters: Parameters = False,
    plot: Plot = None,
    json: JsonFile = None,
) -> None:
    """Tell the signal in every module, forward and backward, without weights, data or memory."""
    if plot is not None:
        require_plots()
    profile = predict(_source(target, parse_arguments(arg or [])), spec_of(inputs))
    console = screen(json)
    show_table(console, profile.table(depth=depth, leaves=leaves, parameters=parameters))
    if plot is not None:
        profile.plot(plot)
        console.print(f"wrote {plot}", style="dim", soft_wrap=True)
    write_json(profile.to_json(), json)


@app.command(
    name="audit",
    epilog=examples(
        "audit model.py:build -i 64x1024",
        "audit model.py:build -i 64x1024 --draws 10",
        "audit model.py:build -i 64x1024 --fix",
    ),
)
def _audit(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    draws: Draws = 1,
    seed: Seed = 0,
    parameters: Parameters = False,
    fix: Annotated[bool, typer.Option("--fix", help="Show what recipe auto would make of it.")] = False,
    json: JsonFile = None,
) -> None:
    """Set prediction and measurement side by side; name faults, and what causes them."""
    source = _source(target, parse_arguments(arg or []))
    spec = spec_of(inputs)
    found = audit(source, spec, draws=draws, seed=seed)
    console = screen(json)
    show_table(console, found.table(parameters=parameters))
    told = faults(source, spec, found.predicted, found.measured)
    for line in sentences(told):
        console.print(Text(line), soft_wrap=True)
    if fix:
        show_table(console, before_and_after(source, spec, seed=seed))
    write_json(found.to_json(), json)


@app.command(
    name="diagnose",
    epilog=examples("diagnose model.py:build -i 64x1024", "diagnose model.py:build -i 64x1024 --json -"),
)
def _diagnose(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    json: JsonFile = None,
) -> None:
    """Say what is wrong with an initialisation, why, and what to do; the exit code is 1 where anything is."""
    found = diagnose(_source(target, parse_arguments(arg or [])), spec_of(inputs), seed=seed)
    console = screen(json)
    for line in sentences(found) or ["Nothing is wrong."]:
        console.print(Text(line), soft_wrap=not console.is_terminal)
    write_json(dump({"faults": [asdict(fault) for fault in found]}), json)
    if found:
        raise typer.Exit(1)


@app.command(
    name="report",
    epilog=examples("report model.py:build -i 64x1024", "report model.py:build -i 64x1024 --out audit.html"),
)
def _report(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    draws: Draws = 1,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
) -> None:
    """Write one HTML page: the signal predicted and measured, what is wrong, and what auto would write."""
    require_plots()
    source, spec = _source(target, parse_arguments(arg or [])), spec_of(inputs)
    found = audit(source, spec, draws=draws, seed=seed)
    told = faults(source, spec, found.predicted, found.measured)
    parts: dict[str, object] = (
        {"What is wrong": Section("What is wrong", sentences=sentences(told))} if told else {}
    )
    parts["The signal at the start"] = found
    try:
        parts["What recipe auto would write"] = plan(source, spec, seed=seed)
        if found.draws:
            parts["Before and after"] = before_and_after(source, spec, seed=seed)
    except IsometryError as error:  # the page says what is known without it
        parts["No plan"] = str(error)
    report(parts, out, title=f"{target} on {spec}")
    screen(None).print(f"wrote {out}", style="dim", soft_wrap=True)


@app.command(
    name="scaling",
    epilog=examples(
        "scaling model.py:build -i 64x1024 --over width=256,512,1024",
        "scaling model.py:build -i 64x1024 --over depth=8,16,32 --optimizer sgd",
    ),
)
def _scaling(
    target: Target,
    inputs: Inputs,
    over: Annotated[
        str, typer.Option(metavar="KEY=N,N,…", help="The callable's argument that grows, and its values.")
    ],
    arg: Arguments = None,
    optimizer: Annotated[str, typer.Option(help="Whose first step is judged: adam or sgd.")] = "adam",
    signals: Annotated[bool, typer.Option("--signals", help="Show the module calls too.")] = False,
    json: JsonFile = None,
) -> None:
    """Fit with which power of a width or depth signals, gradients and first steps grow."""
    argument, sizes = _over(over)
    fixed = parse_arguments(arg or [])

    def build(**size: int) -> Any:
        return builder(target, fixed | size)()

    found = scaling(build, spec_of(inputs), {argument: sizes})
    lines = found.breaks(optimizer)
    console = screen(json)
    if signals:
        show_table(console, found.table(parameters=False))
    show_table(console, found.table())
    for line in lines or (f"Nothing depends on {argument}.",):
        console.print(Text(line), soft_wrap=not console.is_terminal)
    write_json(found.to_json(), json)


def _over(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, values = text.partition("=")
    try:
        sizes = tuple(int(value) for value in values.split(","))
    except ValueError:
        sizes = ()
    if not equals or not name.isidentifier() or not sizes:
        raise InvalidValueError(f"--over is written key=N,N,… (such as width=256,512,1024), got {text!r}")
    return name, sizes
