"""Time isometry.sampling beside torch.nn.init on this machine, in one run.

    python benchmarks/sampling.py                       # a few minutes
    python benchmarks/sampling.py --max-elements 1e9 --max-side 4096 --gpt 1.3b --json sampling.json
    python benchmarks/sampling.py --numpy               # without the compiled code

Rivals are timed in turn, A B A B, and their medians are compared, so that a busy machine slows both. Where it
slows them unevenly (torch's `normal_` runs on one thread, ours on all, which then get a larger share of the
machine, but hand Python's lock over more slowly) the columns of processor time tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from isometry.sampling import (
    Constant,
    Distribution,
    Normal,
    TruncatedNormal,
    Uniform,
    fill_keyed_,
    haar,
    kernels,
    transforms,
    words,
    write_,
)
from isometry.tables import Table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAWS: dict[str, tuple[Distribution, Callable[[torch.Tensor], Any]]] = {
    "normal": (Normal(0.02), lambda x: nn.init.normal_(x, std=0.02)),
    "uniform": (Uniform(-0.1, 0.1), lambda x: nn.init.uniform_(x, -0.1, 0.1)),
    "truncated ±2σ": (TruncatedNormal(0.02), lambda x: nn.init.trunc_normal_(x, std=0.02, a=-0.04, b=0.04)),
    "truncated ±3σ": (
        TruncatedNormal(0.02, cut=3.0),
        lambda x: nn.init.trunc_normal_(x, std=0.02, a=-0.06, b=0.06),
    ),
}
GPTS = {"tiny": (2, 256, 1024), "124m": (12, 768, 50257), "1.3b": (24, 2048, 50257)}
Row = dict[str, Any]


class Cost(NamedTuple):
    """Seconds on the clock, and of processor time over all threads, which feels a busy machine less."""

    wall: float
    cpu: float


def rivals(*runs: Callable[[], Any], budget: float, least: int = 3, most: int = 301) -> list[Cost]:
    """Median cost of each, timed in turn, back and forth, until the budget of seconds is spent."""
    times: list[list[Cost]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.perf_counter() + budget
    order = list(zip(runs, times, strict=True))
    while len(times[0]) < least or (time.perf_counter() < end and len(times[0]) < most):
        for run, taken in order:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
        order.reverse()
    return [
        Cost(statistics.median(c.wall for c in taken), statistics.median(c.cpu for c in taken))
        for taken in times
    ]


def elementwise(largest: float, budget: float) -> list[Row]:
    """Every law and dtype at sizes from 1e4; `fill_` is the limit that memory sets."""
    rows = []
    for power in range(4, 10):
        size = 10**power
        if size > largest:
            break
        for name, dtype in DTYPES.items():
            x = torch.empty(10 ** (power // 2), 10 ** (power - power // 2), dtype=dtype)
            for law, (distribution, rival) in LAWS.items():
                ours, theirs, fill = rivals(
                    lambda d=distribution, x=x: fill_keyed_(x, d, seed=0, name="w"),
                    lambda r=rival, x=x: r(x),
                    lambda x=x: x.fill_(1.0),
                    budget=budget,
                )
                rows.append(
                    row(law, f"1e{power}", name, ours, theirs, size)
                    | {"of fill_": fill.wall / ours.wall, "of fill_ CPU": fill.cpu / ours.cpu}
                )
    return rows


def row(what: str, size: str, dtype: str, ours: Cost, theirs: Cost | None, elements: int) -> Row:
    """One line of the table; the ratio says how many times as fast as torch."""
    return {
        "what": what,
        "size": size,
        "dtype": dtype,
        "ns/element": ours.wall / elements * 1e9,
        "torch": None if theirs is None else theirs.wall / elements * 1e9,
        "ratio": None if theirs is None else theirs.wall / ours.wall,
        "CPU ns": ours.cpu / elements * 1e9,
        "torch CPU": None if theirs is None else theirs.cpu / elements * 1e9,
        "CPU ratio": None if theirs is None else theirs.cpu / ours.cpu,
    }


def orthogonal(largest: int, budget: float) -> list[Row]:
    """Square matrices; torch.nn.init.orthogonal_ has no bfloat16."""
    rows = []
    for side in (256, 512, 1024, 2048, 4096):
        if side > largest:
            break
        for name, dtype in DTYPES.items():
            x = torch.empty(side, side)
            generator = torch.Generator().manual_seed(0)
            runs = [lambda s=side, d=dtype, g=generator: haar(1, s, s, g, dtype=d)]
            if dtype == torch.float32:
                runs.append(lambda x=x: nn.init.orthogonal_(x))
            ours, *theirs = rivals(*runs, budget=budget)
            rows.append(row("orthogonal", f"{side}²", name, ours, theirs[0] if theirs else None, side * side))
    return rows


def gpt(layers: int, width: int, vocabulary: int) -> nn.Module:
    """A GPT's parameters without its constructor's own initialisation."""
    with torch.device("meta"):
        blocks = [
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        ]
        model = nn.ModuleDict({"embed": nn.Embedding(vocabulary, width), "blocks": nn.ModuleList(blocks)})
    return model.to_empty(device="cpu")


def whole_model(size: str, budget: float) -> list[Row]:
    """A GPT with the usual rule: weights N(0, 0.02²), biases 0, norms 1."""
    model = gpt(*GPTS[size])

    def law(name: str) -> Distribution:
        if name.endswith("bias"):
            return Constant(0.0)
        return Constant(1.0) if "norm" in name else Normal(0.02)

    laws = {name: law(name) for name, _ in model.named_parameters()}

    def theirs() -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    count = sum(p.numel() for p in model.parameters())
    ours, rival = rivals(lambda: write_(model, laws, keep=()), theirs, budget=budget)
    return [row("whole GPT", f"{count / 1e6:.0f}M", "float32", ours, rival, count)]


def many_parameters(budget: float) -> list[Row]:
    """A hundred to ten thousand parameters of 64 elements: the cost is per parameter."""
    rows = []
    for count in (100, 1000, 10_000):
        model = nn.ParameterList(nn.Parameter(torch.empty(64)) for _ in range(count))
        laws: dict[str, Distribution] = {str(i): Normal(0.02) for i in range(count)}

        def theirs(model: nn.Module = model) -> None:
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.02)

        ours, rival = rivals(lambda m=model, d=laws: write_(m, d, keep=()), theirs, budget=budget)
        rows.append(row(f"{count} parameters", "64 each", "float32", ours, rival, 64 * count))
    return rows


def one_tile(budget: float) -> list[Row]:
    """What compiled code takes for one tile on one thread, beside NumPy (in the column of torch)."""
    native = kernels.compiled()
    if native is None:
        return []
    size, state = 2**18, bytes(range(24))
    bits, out = np.empty(size, np.int32), np.empty(size, np.float32)
    pieces: dict[str, Callable[[Any, Any], Any]] = {
        "words of a tile": lambda draw, _: draw.streams(state, bits),
        "normal values of them": lambda _, turn: turn.normal(bits, out, 0.02),
        "truncated values of them": lambda _, turn: turn.truncated(bits, out, 0.02, 0.954, 0.046),
    }
    rows = []
    for what, run in pieces.items():
        ours, numpys = rivals(
            lambda run=run: run(native, native), lambda run=run: run(words, transforms), budget=budget
        )
        rows.append(row(f"{what}, beside NumPy", "2.6e5", "float32", ours, numpys, size))
    return rows


def threads(budget: float) -> list[Row]:
    """Growth with threads, on 16 million elements; `ratio` is against torch with as many."""
    mine = torch.get_num_threads()
    rows = []
    x = torch.empty(4000, 4000)
    try:
        for count in sorted({1, 2, 4, 8, 16, mine} & set(range(1, (os.cpu_count() or 1) + 1))):
            torch.set_num_threads(count)
            ours, theirs = rivals(
                lambda: fill_keyed_(x, Normal(0.02), seed=0, name="w"),
                lambda: nn.init.normal_(x, std=0.02),
                budget=budget,
            )
            rows.append(row(f"normal, {count} threads", "1.6e7", "float32", ours, theirs, x.numel()))
    finally:
        torch.set_num_threads(mine)
    return rows


def on_gpu(budget: float) -> list[Row]:
    """Normal values for tensors on a GPU, beside its own generator; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    rows = []
    for power in (6, 8):
        for name, dtype in DTYPES.items():
            x = torch.empty(10 ** (power // 2), 10 ** (power - power // 2), dtype=dtype, device="cuda")

            def theirs(x: torch.Tensor = x) -> None:
                nn.init.normal_(x, std=0.02)
                torch.cuda.synchronize()

            ours, rival = rivals(
                lambda x=x: fill_keyed_(x, Normal(0.02), seed=0, name="w"), theirs, budget=budget
            )
            rows.append(row("normal, on a GPU", f"1e{power}", name, ours, rival, x.numel()))
    return rows


def drawn_by() -> str:
    """Whether compiled code draws."""
    return "compiled code" if kernels.compiled() else "NumPy"


def table(rows: list[Row]) -> Table:
    """Lay the lines out for people."""
    columns = ["what", "size", "dtype", "ns/element", "torch", "ratio", "CPU ns", "torch CPU", "CPU ratio"]
    columns += ["of fill_", "of fill_ CPU"]

    def cell(value: object) -> str:
        return "–" if value is None else value if isinstance(value, str) else f"{value:.3g}"

    return Table(
        title=f"isometry.sampling, by {drawn_by()}, beside torch.nn.init",
        columns=columns,
        rows=[[cell(found.get(column)) for column in columns] for found in rows],
    )


def main() -> None:
    """Run what was asked for, print a table, and write the numbers if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-elements", type=float, default=1e7, help="largest tensor (1e4 to 1e9)")
    parser.add_argument("--max-side", type=int, default=2048, help="largest orthogonal matrix")
    parser.add_argument("--gpt", choices=GPTS, default="124m", help="the whole model")
    parser.add_argument(
        "--budget", type=float, default=1.5, help="seconds per comparison (three repeats at least)"
    )
    parser.add_argument("--numpy", action="store_true", help="leave the compiled code alone")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    if options.numpy:
        kernels.compiled = lambda: None
    rows = elementwise(options.max_elements, options.budget)
    rows += orthogonal(options.max_side, options.budget)
    rows += whole_model(options.gpt, options.budget)
    rows += many_parameters(options.budget)
    rows += one_tile(options.budget)
    rows += threads(options.budget)
    rows += on_gpu(options.budget)
    print(table(rows))
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "drawn by": drawn_by(),
        }
        options.json.write_text(
            json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
