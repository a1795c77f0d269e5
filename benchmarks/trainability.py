"""How much of a grid of networks trains from each initialisation, at an equal budget.

python benchmarks/trainability.py                            the whole grid; what is kept is not run again
python benchmarks/trainability.py --part mlp --quick         the cheap cells of one part
python benchmarks/trainability.py --only "relu 1000" --starts auto kaiming
python benchmarks/trainability.py --report                   the tables of what is kept, without running
python benchmarks/trainability.py --report --write           all of them into docs/trainability.md

Every start has the same optimiser (Adam), batches, steps and seeds, and its own learning rate, found by
halving on the first seed: all rates of the grid run for a quarter of the steps, the two with the lowest
training loss at their end run in full, and the better of these on the other seeds, too (in the cells marked
as thorough both run on all seeds, and the lower mean counts). Where no rate has moved the loss by 2 % in a
quarter of the steps, only the best one runs in full. A start that by then is not half way from guessing to
the level is not repeated on the other seeds. Results are kept in benchmarks/trainability.jsonl, with their
settings.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from isometry.compare.training import Budget, Run, train
from isometry.compare.verdicts import evidence
from isometry.measure import measure
from trainability_cells import PARTS, SEEDS, TUNING, Cell, cells
from trainability_kept import current, keep, kept
from trainability_report import Result, report, write
from trainability_starts import UnavailableError, initialise, starts


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam in one kernel: with a thousand layers the optimiser would otherwise cost as much as the model."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def run(cell: Cell, start: str) -> Result:
    """Tune, train and judge one start in one cell.

    Raises:
        UnavailableError: nothing here provides the start.
    """
    began = time.process_time()
    result = Result(part=cell.part, cell=cell.name, start=start, settings=cell.settings)
    try:
        first = _model(cell, start, SEEDS[0])
        result.signal = _signal(cell, first)
        result.tuning = _tune(cell, first)
        for done in _full(cell, start, first, result):
            result.lr = done.lr
            result.add(done)
        for seed in SEEDS[len(result.quality) :] if result.promising else ():
            result.add(_train(cell, _model(cell, start, seed), result.lr, seed, cell.steps))
    except UnavailableError:
        raise
    except Exception as error:  # a start that fails is a result
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = time.process_time() - began
    return result


def _batch(cell: Cell) -> int:
    return cell.batch or len(cell.data().train_inputs)


def _model(cell: Cell, start: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cell.build()
    inputs, _ = next(cell.data().batches(_batch(cell), seed=seed))
    initialise(start, model, cell, inputs, seed)
    return model


def _train(cell: Cell, model: nn.Module, lr: float, seed: int, steps: int) -> Run:
    budget = Budget(steps=steps, batch_size=_batch(cell), optimizer=adam, evaluate_every=cell.every)
    return train(model, cell.data(), lr=lr, budget=budget, seed=seed)


def _tune(cell: Cell, model: nn.Module) -> dict[str, float]:
    """The mean loss over the last quarter of a short run, for every rate; the first loss under "0"."""
    steps = math.ceil(cell.steps / TUNING)
    short = replace(cell, every=steps)
    found: dict[str, float] = {}
    for lr in cell.rates:
        done = _train(short, copy.deepcopy(model), lr, SEEDS[0], steps)
        tail = done.losses[-math.ceil(steps / 4) :]
        found.setdefault("0", done.losses[0])
        found[f"{lr:g}"] = math.inf if done.diverged is not None else sum(tail) / len(tail)
    return found


def _finalists(tuning: dict[str, float]) -> list[float]:
    """The two best rates, or the best alone where it learnt nothing."""
    start = tuning["0"]
    ranked = sorted((lr for lr in tuning if lr != "0"), key=lambda lr: tuning[lr])
    learnt = tuning[ranked[0]] < 0.98 * start or not math.isfinite(start)
    return [float(lr) for lr in ranked[: 2 if learnt else 1]]


def _full(cell: Cell, start: str, first: nn.Module, result: Result) -> list[Run]:
    """The full runs at the better of the best rates: on the first seed; in a thorough cell on all seeds."""
    found: dict[float, list[Run]] = {}
    hopeful = False
    for lr in _finalists(result.tuning):
        found[lr] = [_train(cell, copy.deepcopy(first), lr, SEEDS[0], cell.steps)]
        trial = replace(result, quality=[], reached=[], diverged=[])
        trial.add(found[lr][0])
        hopeful = hopeful or trial.promising
    if cell.thorough and hopeful:
        for lr, runs in found.items():
            runs += [_train(cell, _model(cell, start, seed), lr, seed, cell.steps) for seed in SEEDS[1:]]
    return min(found.values(), key=lambda runs: sum(run.final_loss for run in runs))


def _signal(cell: Cell, model: nn.Module) -> dict[str, Any]:
    """The numbers that explain what follows; none for real architectures, where they are many."""
    if cell.part == "corpus":
        return {}
    inputs, _ = next(cell.data().batches(_batch(cell), seed=SEEDS[0]))
    return asdict(evidence(measure(model, inputs)))


# --- command line -------------------------------------------------------------------------------------------


def main() -> None:
    """Run what is missing, then print the tables of what was asked for, and write all into the page."""
    options = _options()
    torch.set_num_threads(1)  # the matrices are small: more threads gain nothing
    warnings.filterwarnings("ignore", category=UserWarning)
    asked: set[tuple[str, str, str]] = set()
    for part in options.part or PARTS:
        for cell in cells(part, quick=options.quick):
            if options.only and not any(word in (cell.name, *cell.name.split()) for word in options.only):
                continue
            for start in starts(part):
                if not options.starts or start in options.starts:
                    asked.add((part, cell.name, start))
                    if not options.report:
                        _run(cell, start, again=options.again)
    print(report([r for r in current() if (r.part, r.cell, r.start) in asked]))
    if options.write:
        write(current())


def _run(cell: Cell, start: str, *, again: bool) -> None:
    if not again and kept(cell, start) is not None:
        return
    try:
        result = run(cell, start)
    except UnavailableError as reason:
        print(f"{cell.part} {cell.name} {start}: {reason}", flush=True)
        return
    keep(result)
    print(f"{cell.part:12} {cell.name:22} {result.line()}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, help="these parts of the grid alone")
    parser.add_argument("--quick", action="store_true", help="the cheap cells alone")
    parser.add_argument("--only", nargs="+", help="cells of these names, or with one of these words in it")
    parser.add_argument("--starts", nargs="+", help="these starts alone")
    parser.add_argument("--again", action="store_true", help="run again what is kept")
    parser.add_argument("--report", action="store_true", help="run nothing, show what is kept")
    parser.add_argument(
        "--write", action="store_true", help="put the tables of all that is kept into docs/trainability.md"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
