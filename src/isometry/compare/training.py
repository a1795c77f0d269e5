"""Training one model for a fixed budget and recording what happens.

The loop is deliberately plain: the same batches in the same order for the same seed, no schedule, no
clipping, so that the only difference between two runs is where the weights started.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.datasets import Data
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError

Loss = Callable[[Any, Tensor], Tensor]
OptimizerName = Literal["sgd", "momentum", "adam", "adamw"]
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]

# Test samples per forward pass: bounds the memory of an evaluation.
_CHUNK = 512

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What every run of a comparison gets, equally.

    Args:
        steps: optimiser steps.
        batch_size: samples per step.
        optimizer: "sgd", "momentum" (0.9), "adam", "adamw", or a function
            `(parameters, lr) -> torch.optim.Optimizer`.
        evaluate_every: steps between two evaluations on the test part.
        diverge_above: a training loss above this level counts as diverged, like one that is not finite.

    Raises:
        InvalidValueError: a number is not positive, or no optimiser has this name.

    Example:
        >>> Budget(steps=100).optimizer
        'sgd'
    """

    steps: int = 150
    batch_size: int = 64
    optimizer: OptimizerName | OptimizerFactory = "sgd"
    evaluate_every: int = 10
    diverge_above: float = 1e3

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidValueError(f"{name} must be a positive integer, got {value!r}")
        if not self.diverge_above > 0:
            raise InvalidValueError(f"diverge_above must be a positive loss, got {self.diverge_above!r}")
        if not callable(self.optimizer) and self.optimizer not in OPTIMIZERS:
            raise InvalidValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)} or a function "
                f"(parameters, lr) -> Optimizer, got {self.optimizer!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one training run did.

    Args:
        lr: its learning rate.
        seed: its seed (weights, batch order, dropout).
        losses: training loss of every step, measured before that step's update.
        evaluated: number of updates done at each evaluation, from 0.
        accuracies: share of right answers on the test part at each evaluation; empty for a regression.
        test_losses: loss on the test part at each evaluation.
        diverged: the step, counted from 1, whose loss was not finite or beyond the stated level; None
            where the run stayed within it.
    """

    lr: float
    seed: int
    losses: tuple[float, ...]
    evaluated: tuple[int, ...]
    accuracies: tuple[float, ...]
    test_losses: tuple[float, ...]
    diverged: int | None

    @property
    def accuracy(self) -> float | None:
        """Test accuracy at the end; None after a divergence and for a regression."""
        return None if self.diverged is not None or not self.accuracies else self.accuracies[-1]

    @property
    def updates(self) -> int:
        """Number of updates done; a step that diverged made none."""
        return len(self.losses) if self.diverged is None else self.diverged - 1

    @property
    def final_loss(self) -> float:
        """Mean training loss over the last tenth of the steps; inf after a divergence."""
        if self.diverged is not None:
            return math.inf
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail)

    def steps_to(self, accuracy: float) -> int | None:
        """Updates until an evaluation first reached a test accuracy; None if none did.

        Args:
            accuracy: the level to reach, from 0 to 1.

        Returns:
            The number of updates, as fine as the evaluations are.

        Example:
            >>> run = Run(lr=0.1, seed=0, losses=(2.3, 0.4), evaluated=(0, 1, 2), accuracies=(0.1, 0.8, 0.95),
            ...           test_losses=(2.3, 0.5, 0.2), diverged=None)
            >>> run.steps_to(0.9)
            2
        """
        return next((n for n, a in zip(self.evaluated, self.accuracies, strict=False) if a >= accuracy), None)


def default_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy for integer targets, mean squared error for floating-point ones.

    Args:
        outputs: `[..., classes]` scores for class targets, or values of the targets' shape.
        targets: `[...]`.

    Returns:
        The mean loss, a scalar.

    Raises:
        ModelError: the outputs are no tensor, or their shape does not fit the targets.

    Example:
        >>> default_loss(torch.zeros(4, 7, 10), torch.zeros(4, 7, dtype=torch.int64)).exp().round()
        tensor(10.)
    """
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the model returned a {type(outputs).__name__} where the loss needs a tensor; pass "
            f"loss=lambda outputs, targets: ... that takes what your model returns"
        )
    if targets.is_floating_point():
        if outputs.shape != targets.shape:
            raise ModelError(
                f"the model's output has shape {tuple(outputs.shape)}, its targets {tuple(targets.shape)}; "
                f"for values they must agree"
            )
        return F.mse_loss(outputs, targets)
    if outputs.shape[:-1] != targets.shape:
        raise ModelError(
            f"the model's output has shape {tuple(outputs.shape)}; class targets of shape "
            f"{tuple(targets.shape)} need {(*targets.shape, 'classes')}"
        )
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def train(
    model: nn.Module,
    data: Data,
    *,
    lr: float,
    budget: Budget,
    seed: int = 0,
    loss: Loss = default_loss,
    on_step: Callable[[], None] | None = None,
) -> Run:
    """Train a model in place on the budget, and stop early only where it diverges.

    Args:
        model: trained in place, on whatever device its parameters are.
        data: training batches and test samples.
        lr: learning rate, constant.
        budget: steps, batch size, optimiser, evaluations.
        seed: of the batch order, and of torch's global generator for dropout and its like; the
            global state is put back afterwards.
        loss: maps what the model returns and the targets to a scalar.
        on_step: called after every step.

    Returns:
        The record of the run.

    Raises:
        ModelError: the model or the loss fails, or there is nothing to train.

    Example:
        >>> from isometry.datasets import digits
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     model = nn.Linear(64, 10)
        >>> run = train(model, digits(), lr=0.1, budget=Budget(steps=60))
        >>> run.accuracy > 0.8, len(run.losses)
        (True, 60)
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(f"{type(model).__name__} has no parameters to train")
    device = parameters[0].device
    test_inputs, test_targets = data.test_inputs.to(device), data.test_targets.to(device)
    losses: list[float] = []
    evaluations: list[tuple[int, float, float | None]] = []
    diverged: int | None = None
    stream = data.batches(budget.batch_size, seed=seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        optimizer = _optimizer(budget, parameters, lr)
        evaluations.append((0, *_evaluate(model, test_inputs, test_targets, loss)))
        for step in range(1, budget.steps + 1):
            inputs, targets = next(stream)
            value = _loss_of(model, inputs.to(device), targets.to(device), loss)
            losses.append(value.item())
            if not losses[-1] <= budget.diverge_above:  # also true of nan
                diverged = step
                break
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimizer.step()
            if step % budget.evaluate_every == 0 or step == budget.steps:
                evaluations.append((step, *_evaluate(model, test_inputs, test_targets, loss)))
            if on_step is not None:
                on_step()
        else:
            # The last update is only seen by the test: a model it broke has diverged, too.
            if not evaluations[-1][1] <= budget.diverge_above:
                diverged = budget.steps
    return Run(
        lr=lr,
        seed=seed,
        losses=tuple(losses),
        evaluated=tuple(step for step, _, _ in evaluations),
        accuracies=tuple(a for _, _, a in evaluations if a is not None),
        test_losses=tuple(value for _, value, _ in evaluations),
        diverged=diverged,
    )


def _optimizer(budget: Budget, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    make = budget.optimizer if callable(budget.optimizer) else OPTIMIZERS[budget.optimizer]
    optimizer = make(parameters, lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(
            f"optimizer must return a torch.optim.Optimizer for (parameters, lr), "
            f"got {type(optimizer).__name__}"
        )
    return optimizer


def _loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    try:
        value = loss(model(inputs), targets)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} failed on a batch of shape {tuple(inputs.shape)} "
            f"with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ModelError(f"the loss must be a tensor with one number, got {value!r}")
    return value


@torch.no_grad()
def _evaluate(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[float, float | None]:
    """Mean loss and share of right answers on the test part, in evaluation mode, a chunk at a time."""
    outputs: list[Any] = []

    def keep(value: Any, labels: Tensor) -> Tensor:
        outputs.append(value)
        return loss(value, labels)

    mode = model.training
    model.eval()
    total = 0.0
    try:
        for x, y in zip(torch.split(inputs, _CHUNK), torch.split(targets, _CHUNK), strict=True):
            total += _loss_of(model, x, y, keep).item() * len(x)
    finally:
        model.train(mode)
    if targets.is_floating_point() or not all(isinstance(scores, Tensor) for scores in outputs):
        return total / len(inputs), None
    scores = torch.cat(outputs)
    if scores.shape[:-1] != targets.shape:
        return total / len(inputs), None
    right = int((scores.argmax(-1) == targets).sum())
    return total / len(inputs), right / targets.numel()
