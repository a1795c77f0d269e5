"""The commands that predict: `isometry predict | audit | scaling`."""

from typing import Annotated, Any

import typer
from rich.text import Text
from torch import nn

from isometry.audit import audit
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
from isometry.errors import InvalidValueError
from isometry.faults import before_and_after, faults
from isometry.predict import predict
from isometry.scaling import scaling
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
    draws: Annotated[int, typer.Option(help="How many models are drawn and measured.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first draw.")] = 0,
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
    told = faults(source, spec, found.predicted)
    for fault in told:
        console.print(Text(str(fault)), soft_wrap=True)
    if fix:
        show_table(console, before_and_after(source, spec, seed=seed))
    write_json(found.to_json(), json)


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
