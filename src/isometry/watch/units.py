"""Units that are dead or stuck: counted one by one, over several steps, never from one batch.

A unit is a feature (the last dimension of a linear layer's output) or a channel (dimension 1 of a
convolution's). Shapes: U units; an observation is one value of one unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isometry.hooks import Key, fetch
from isometry.statistics import saturation

# Rule of three (Hanley & Lippman-Hand 1983): a unit that was silent in all of n observations is active in
# less than 3/n of all cases, with 95 % confidence. 300 silent observations: active in less than 1 %.
ENOUGH = 300

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)
_CAN_FALL_SILENT = ("relu", "gelu", "silu", "swish", "mish")
# Gates (hard-sigmoid in squeeze-and-excite) are meant to open and close; these squash a signal.
_SQUASHING = (nn.Tanh, nn.Sigmoid, nn.Softsign, nn.Hardtanh)


def can_fall_silent(module: nn.Module) -> bool:
    """Tell whether a module is an activation that gives (nearly) nothing for every negative input.

    Args:
        module: The module.

    Returns:
        True for relu, gelu, silu, swish and mish of any make.

    Example:
        >>> can_fall_silent(nn.ReLU()), can_fall_silent(nn.Tanh())
        (True, False)
    """
    name = type(module).__name__.lower()
    return any(part in name for part in _CAN_FALL_SILENT) and next(module.parameters(), None) is None


@dataclass(slots=True)
class _Run:
    """For how long each unit has shown a symptom without a break."""

    observations: Tensor
    steps: Tensor

    def extend(self, symptom: Tensor, observations: int) -> None:
        self.observations = torch.where(symptom, self.observations + observations, 0)
        self.steps = torch.where(symptom, self.steps + 1, 0)


@dataclass(frozen=True, slots=True)
class Share:
    """How many of a layer's units show a symptom.

    Attributes:
        units: Number of units.
        ill: How many show it, over at least `ENOUGH` observations and `patience` steps.
    """

    units: int
    ill: int

    @property
    def most(self) -> bool:
        """Whether more than half do, beyond chance.

        With symmetric random weights a unit that hears nothing but its bias is off with probability ½, so a
        share of ½ + 3 standard deviations of that coin (√(¼/U)) needs another cause.
        """
        return self.ill >= min(self.units, math.ceil(self.units * (0.5 + 1.5 / math.sqrt(self.units))))


class Units:
    """Counts dead and saturated units call by call, from one observed step to the next.

    Dead: silent (an output of exactly 0 from relu, below 10⁻⁵ from the smooth ones) on every sample; or,
    for a linear or convolutional layer, a gradient of exactly 0 at every value of that unit, which also
    finds units that die in a functional `F.relu`. Saturated: flat on more than half of the samples.

    Args:
        patience: Steps in a row a unit must show a symptom.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._runs: dict[tuple[str, Key], _Run] = {}
        self._step: dict[tuple[str, Key], tuple[Tensor, int]] = {}
        self._axes: dict[tuple[int, ...], int] = {}

    def observe(self, name: str, call: int, module: nn.Module, tensor: Tensor) -> None:
        """Take in the output of a module call."""
        shape = tuple(tensor.shape)
        if isinstance(module, _CHANNELS_FIRST):
            self._axes[shape] = 1
        elif isinstance(module, _CHANNELS_LAST):
            self._axes[shape] = -1
        if can_fall_silent(module):
            limit = 0.0 if "relu" in type(module).__name__.lower() else 1e-5
            self._count("silent", (name, call), tensor.abs() <= limit)
        elif isinstance(module, _SQUASHING) and (mask := saturation(module)) is not None:
            self._count("saturated", (name, call), mask(tensor))

    def observe_gradient(self, name: str, call: int, module: nn.Module, gradient: Tensor) -> None:
        """Take in the gradient at the output of a module call."""
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            self._count("deaf", (name, call), gradient == 0)

    def _count(self, symptom: str, key: Key, flags: Tensor) -> None:
        axis = self._axes.get(tuple(flags.shape), 1 if flags.dim() >= 4 else -1)
        if flags.dim() < 2 or flags.numel() == 0 or flags.layout is not torch.strided:
            return
        counts = flags.movedim(axis, -1).flatten(0, -2).sum(0)
        before = self._step.get((symptom, key))
        if before is not None and before[0].shape == counts.shape:
            counts = counts + before[0]
        elif before is not None:
            return
        observations = flags.numel() // len(counts) + (before[1] if before else 0)
        self._step[symptom, key] = counts, observations

    def end_step(self) -> None:
        """Close an observed step: whoever showed the symptom in all of it has shown it for one step more."""
        for at, (counts, observations) in self._step.items():
            needed = observations if at[0] != "saturated" else observations / 2
            ill = counts >= needed
            run = self._runs.get(at)
            if run is None or run.steps.shape != ill.shape:
                run = self._runs[at] = _Run(torch.zeros_like(counts), torch.zeros_like(counts))
            run.extend(ill, observations)
        self._step.clear()

    def drop_step(self) -> None:
        """Forget what the open step has shown so far."""
        self._step.clear()

    def shares(self) -> Iterator[tuple[str, Key, Share]]:
        """Yield symptom ("silent", "deaf", "saturated"), module call, and how many of its units are ill."""
        counted = {
            at: ((run.steps >= self._patience) & (run.observations >= ENOUGH)).sum().to(torch.float64)
            for at, run in self._runs.items()
        }
        numbers = fetch(list(counted.values()))
        for (symptom, key), tensor in counted.items():
            yield symptom, key, Share(len(self._runs[symptom, key].steps), int(numbers[id(tensor)]))
