"""Train the same model from several initialisations: same data, same batches, same budget."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isometry.compare.comparison import Comparison, Entry
from isometry.compare.contenders import Activation, Contender, Start, activation_of, contender, no_mirror
from isometry.compare.training import Budget, Loss, OptimizerFactory, OptimizerName, Run, default_loss, train
from isometry.datasets import Data, load
from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError
from isometry.measure import measure
from isometry.profile import Profile

DEFAULT_INITS: tuple[Start, ...] = (
    "standard_normal",
    "torch",
    "kaiming",
    "xavier",
    "orthogonal",
    "mirrored",
)
Progress = Callable[[str, int, int], None]


def compare(
    build: Callable[[], nn.Module] | nn.Module,
    data: Data | str | tuple[Tensor, Tensor],
    *,
    inits: Sequence[Start] = DEFAULT_INITS,
    activation: Activation | None = None,
    steps: int = 150,
    lr: float | Sequence[float] = 0.01,
    optimizer: OptimizerName | OptimizerFactory = "sgd",
    batch_size: int = 64,
    seeds: Sequence[int] = (0,),
    loss: Loss = default_loss,
    threshold: float = 0.9,
    evaluate_every: int = 10,
    diverge_above: float = 1e3,
    title: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train the same model from several initialisations and set them side by side.

    For every start and seed the model is built anew (torch's generator seeded alike), initialised,
    measured on the first batch, and trained on the same batches in the same order with the same number
    of steps. Of several learning rates every start keeps the one with the lowest final training loss,
    so that none is judged at another's rate; the record holds all runs.

    *Assumes* a model that maps a batch of inputs to scores `[n, ..., classes]` for integer targets, or
    to values for floating-point ones; pass `loss` for anything else.

    Args:
        build: returns the model; called once per start and seed. A module instance is copied, never
            changed, and "torch" then stands for the weights it has.
        data: `Data`, the name of one of `isometry.datasets`, or `(inputs, targets)`, of which every
            fifth sample is set aside for the test.
        inits: names ("standard_normal", "torch", "kaiming", "xavier", "orthogonal", "mirrored",
            "wrong_gain", "auto", "recipe:<name>"), callables that initialise a model in place, or
            `(name, callable)`. "auto" and recipes are planned on the first training batch. Mirrored
            weights are left out, with the reason in the record, where model or activation cannot have them.
        activation: whose gain is meant; None looks for the one kind of activation among the modules.
        steps: optimiser steps per run.
        lr: one learning rate for all, or several of which every start keeps its best.
        optimizer: "sgd", "momentum", "adam", "adamw" or `(parameters, lr) -> Optimizer`.
        batch_size: samples per step.
        seeds: of weights, batch order and dropout; the table shows the median run.
        loss: `(outputs, targets) -> scalar`.
        threshold: test accuracy that counts as learnt.
        evaluate_every: steps between two evaluations.
        diverge_above: a training loss beyond it ends the run as diverged, like nan.
        title: of table and plots; None makes one of the model's class.
        progress: called with (start, steps done, steps in all) as the work goes on.

    Returns:
        The record. The global random state is as before.

    Raises:
        NotFoundError: an unknown start or data set.
        InvalidTypeError: `build` or `data` of no usable type.
        InvalidValueError: an option out of range, two starts of one name, or no usable start.
        ModelError: the model cannot be built, initialised, measured or trained.

    Example:
        >>> from isometry.demo import plain
        >>> found = compare(lambda: plain(depth=20, width=32), "digits", inits=("torch", "kaiming"), steps=60)
        >>> found["torch"].evidence.gradient_ratio < 1e-4 < 0.1 < found["kaiming"].evidence.gradient_ratio
        True

    Reference: K. He et al. (2015), Delving Deep into Rectifiers, figure 3; X. Glorot, Y. Bengio (2010).
    """
    budget = Budget(
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        evaluate_every=evaluate_every,
        diverge_above=diverge_above,
    )
    rates = _rates(lr)
    task = _data(data)
    if not 0 < threshold <= 1:
        raise InvalidValueError(f"threshold must be an accuracy above 0 and at most 1, got {threshold!r}")
    if not seeds:
        raise InvalidValueError("seeds must hold at least one number")
    first = _build(build, seeds[0])

    def batch(seed: int) -> Tensor:
        return next(task.batches(batch_size, seed=seed))[0]

    contenders, skipped = _contenders(inits, first, activation, batch)
    total = len(contenders) * len(rates) * len(seeds) * steps
    work = _Work(build, task, budget, rates, loss, _reporter(progress, total))
    entries = tuple(_entry(work, one, seeds) for one in contenders)
    classes = task.classes
    return Comparison(
        title=title or type(first).__name__,
        data=task.name,
        chance=None if classes is None else 1 / classes,
        threshold=threshold,
        entries=entries,
        skipped=skipped,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What all runs of a comparison share."""

    build: Callable[[], nn.Module] | nn.Module
    data: Data
    budget: Budget
    rates: tuple[float, ...]
    loss: Loss
    report: Callable[[str, int], None]


def _entry(work: _Work, one: Contender, seeds: Sequence[int]) -> Entry:
    """Everything about one start: build, initialise, measure, train at every rate."""
    profile: Profile | None = None
    runs: list[Run] = []
    for seed in seeds:
        model = _build(work.build, seed)
        _initialise(model, one, seed)
        if profile is None:
            profile = _measure(work, model, seed)
        for lr in work.rates:
            run = train(
                copy.deepcopy(model),
                work.data,
                lr=lr,
                budget=work.budget,
                seed=seed,
                loss=work.loss,
                on_step=lambda: work.report(one.name, 1),
            )
            runs.append(run)
            work.report(one.name, work.budget.steps - run.updates)
    assert profile is not None  # there is at least one seed
    return Entry(
        name=one.name,
        description=one.description,
        profile=profile,
        runs=tuple(runs),
        lr=min(work.rates, key=lambda lr: _cost([run for run in runs if run.lr == lr])),
    )


def _cost(runs: Sequence[Run]) -> tuple[float, float]:
    """What the best learning rate has least of: final loss, or, where all diverge, early divergence."""
    return (
        sum(run.final_loss for run in runs) / len(runs),
        -sum(run.updates for run in runs) / len(runs),
    )


def _build(build: Callable[[], nn.Module] | nn.Module, seed: int) -> nn.Module:
    """A model of its own for one start; a module that `build` hands out again and again is copied."""
    if isinstance(build, nn.Module):
        return copy.deepcopy(build)
    if not callable(build):
        raise InvalidTypeError(
            f"build must be a torch.nn.Module or a function that returns one, got {type(build).__name__}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = build()
        except IsometryError:
            raise
        except Exception as error:
            raise ModelError(f"build failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"build returned a {type(model).__name__}; expected a torch.nn.Module")
    return copy.deepcopy(model)


def _initialise(model: nn.Module, one: Contender, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        one.initialise(model, seed)


def _measure(work: _Work, model: nn.Module, seed: int) -> Profile:
    """The signal on the first batch; a gradient of N(0, 1) at the output, so that no loss colours it."""
    inputs, _ = next(work.data.batches(work.budget.batch_size, seed=seed))
    return measure(model, inputs)


def _contenders(
    inits: Sequence[Start],
    model: nn.Module,
    activation: Activation | None,
    batch: Callable[[int], Tensor],
) -> tuple[list[Contender], tuple[tuple[str, str], ...]]:
    """Resolve the starts; those that this model cannot have are returned with the reason."""
    if isinstance(inits, str) or not inits:
        raise InvalidTypeError(f"inits must be a sequence of starts, got {inits!r}")
    found: list[Contender] = []
    skipped: list[tuple[str, str]] = []
    for start in inits:
        if start == "mirrored" and (reason := no_mirror(model, _activation(model, activation))):
            skipped.append(("mirrored", reason))
            continue
        found.append(contender(start, lambda: _activation(model, activation), batch))
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidValueError(f"two starts are called {twice[0]!r}; name your own with (name, callable)")
    if not found:
        raise InvalidValueError(f"no start is left to compare: {'; '.join(reason for _, reason in skipped)}")
    return found, tuple(skipped)


def _activation(model: nn.Module, activation: Activation | None) -> Activation:
    return activation_of(model) if activation is None else activation


def _rates(lr: float | Sequence[float]) -> tuple[float, ...]:
    rates = (lr,) if isinstance(lr, int | float) else tuple(lr)
    if not rates or not all(isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates):
        raise InvalidValueError(f"lr must be one positive number or several, got {lr!r}")
    return tuple(dict.fromkeys(float(rate) for rate in rates))


def _data(data: Data | str | tuple[Tensor, Tensor]) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(data, str):
        return load(data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = data
        if len(inputs) != len(targets):
            raise InvalidValueError(
                f"data needs as many targets as inputs, got {len(inputs)} inputs and {len(targets)} targets"
            )
        if len(inputs) < 5:
            raise InvalidValueError(
                f"data needs at least five samples, one in five for the test; got {len(inputs)}"
            )
        test = torch.arange(len(inputs)) % 5 == 4
        return Data(
            name="your data",
            train_inputs=inputs[~test],
            train_targets=targets[~test],
            test_inputs=inputs[test],
            test_targets=targets[test],
        )
    raise InvalidTypeError(
        f"data must be isometry.datasets.Data, the name of a data set, or (inputs, targets), "
        f"got {type(data).__name__}"
    )


def _reporter(progress: Progress | None, total: int) -> Callable[[str, int], None]:
    done = 0

    def report(name: str, steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(name, done, total)

    return report
