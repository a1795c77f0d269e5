"""The commands that plan: `isometry init | recipes`."""

import copy
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.text import Text
from torch import nn

from isometry.console import (
    Arguments,
    Inputs,
    JsonFile,
    Target,
    examples,
    screen,
    show_table,
    spec_of,
    write_json,
)
from isometry.errors import InvalidValueError, MissingExtraError
from isometry.init.structured import Kind
from isometry.planning import plan
from isometry.plans import Plan
from isometry.recipes.base import OBJECTIVES, RECIPES
from isometry.strictjson import dump
from isometry.tables import Column, Table
from isometry.targets import builder, find, parse_arguments

app = typer.Typer()


@app.command(
    name="init",
    epilog=examples(
        "init model.py:build -i 64x1024 --dry-run",
        "init model.py:build -i 64x1024 --seed 0 -o model.safetensors",
        "init model.py:build -i 64x1024 --recipe kaiming --json plan.json --dry-run",
    ),
)
def _init(
    target: Target,
    inputs: Inputs,
    arg: Arguments = None,
    recipe: Annotated[str, typer.Option(help="See `isometry recipes`.")] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the recipe; may be repeated."),
    ] = None,
    objective: Annotated[str, typer.Option(help=f"What is kept: {', '.join(OBJECTIVES)}.")] = "forward",
    distribution: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(Kind))}.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Polish by one run on the inputs.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="For the weights: .safetensors, .pt."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write no weights.")] = False,
    json: JsonFile = None,
) -> None:
    """Plan a model's initial weights from what its code does, and write them to a file."""
    if output is None and not dry_run:
        raise InvalidValueError("say where the weights go with --output FILE, or ask for --dry-run")
    if output is not None:
        _check_output(output)
    build = builder(target, parse_arguments(arg or []))
    found = find(target)
    source = found if isinstance(found, nn.Module) else build
    made = plan(
        source,
        spec_of(inputs),
        recipe=recipe,
        objective=objective,  # type: ignore[arg-type]
        distribution=distribution,  # type: ignore[arg-type]
        calibrate=calibrate,
        seed=seed,
        **_options(option or []),
    )
    console = screen(json)
    show_table(console, made.table())
    if output is not None and not dry_run:
        model = copy.deepcopy(found) if isinstance(found, nn.Module) else build()
        made.apply_(model, seed=seed)
        _write(model, output, made)
        console.print(Text(f"wrote {output}"), style="dim", soft_wrap=True)
    write_json(made.to_json(), json)


def _options(pairs: list[str]) -> dict[str, Any]:
    """Read the options of the recipe, which are no arguments of the plan."""
    options = parse_arguments(pairs)
    for name in options:
        if name in signature(plan).parameters:
            raise InvalidValueError(f"--option is for options of the recipe, and {name!r} is none")
    return options


def _check_output(output: Path) -> None:
    """Say what is wrong with the file before the work, not after it."""
    if output.suffix not in (".safetensors", ".pt", ".pth"):
        raise InvalidValueError(f"--output must end in .safetensors, .pt or .pth, got {str(output)!r}")
    if output.suffix == ".safetensors" and find_spec("safetensors") is None:
        raise MissingExtraError("safetensors", "weights")


def _write(model: nn.Module, output: Path, made: Plan) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb"):  # torch and safetensors do not say why they cannot
            pass
    except OSError as error:
        raise InvalidValueError(f"--output cannot be written: {error}") from error
    if output.suffix != ".safetensors":
        torch.save(model.state_dict(), output)
        return
    from safetensors.torch import save_model

    save_model(model, str(output), metadata={"isometry.recipe": made.recipe})


@app.command(name="recipes", epilog=examples("recipes", "recipes --json recipes.json"))
def _recipes(json: JsonFile = None) -> None:
    """List the recipes: what they do, where they come from, their options."""
    found = [recipe for _, recipe in sorted(RECIPES.items())]
    columns = [Column("Recipe", "left"), Column("What it does", "left")]
    told = screen(json)
    show_table(told, Table(columns, [[r.name, r.summary] for r in found], title="Recipes"))
    for r in found:
        options = f"; options: {', '.join(r.options)}" if r.options else ""
        told.print(Text(f"{r.name}: {r.source}{options}"), style="dim", soft_wrap=True)
    rows: list[dict[str, Any]] = [
        {"name": r.name, "summary": r.summary, "options": list(r.options), "source": r.source} for r in found
    ]
    write_json(dump({"schema": "isometry.recipes", "version": 1, "recipes": rows}), json)
