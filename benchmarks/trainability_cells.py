"""What benchmarks/trainability.py trains: plain networks, convolutions, transformers, real architectures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus import available
from isometry.datasets import Data, characters, digits
from isometry.hooks import tensors_in

PARTS = ("mlp", "cnn", "transformer", "corpus")
SEEDS = (0, 1, 2)
TUNING = 4  # the share of the steps that finds the learning rate, as a divisor
Pointwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid: a model, its task, and the budget that every start gets.

    Attributes:
        part: one of `PARTS`.
        name: unique within its part; depth or architecture comes last.
        build: returns the model with the weights of its constructor.
        data: the task.
        activation: of the hidden layers; None where the model mixes several.
        steps, every, batch: the budget: steps, steps between two evaluations, samples a step (0: all).
        rates: the grid of learning rates.
        level: what counts as trained, as in `trainability_report.Result`.
        width: of the model.
        thorough: whether both of the two best rates run on all seeds.
        settings: everything that decides a result besides the start, to tell a kept one from an old one.
    """

    part: str
    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    activation: str | Pointwise | None
    steps: int
    every: int
    batch: int
    rates: tuple[float, ...]
    level: tuple[str, float]
    width: int = 0
    thorough: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a kept result must agree with."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "rates": list(self.rates),
            "level": list(self.level),
            "width": self.width,
            "every": self.every,
            "tuning": TUNING,
            "thorough": self.thorough,
            "seeds": list(SEEDS),
        }


def cells(part: str, *, quick: bool = False) -> Iterator[Cell]:
    """The cells of one part of the grid, the cheap ones first; `quick` keeps only those."""
    found = {"mlp": _mlps, "cnn": _cnns, "transformer": _transformers, "corpus": _corpus}[part](quick)
    yield from found


# --- plain networks -----------------------------------------------------------------------------------------

# Rates half a decade apart, the same for all starts of a cell; deep networks live on small ones.
SMALL, LARGE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MIDDLE, DEEPEST = (1e-4, 3e-4, 1e-3), (1e-5, 3e-5, 1e-4)
ACCURATE = ("accuracy", 0.9)


def custom(x: Tensor) -> Tensor:
    """An activation no catalogue has: not odd, not mirrored, unbounded, with a mean."""
    return torch.asinh(x) + 0.25 * torch.exp(-x * x)


class Custom(nn.Module):
    """`custom` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return custom(x)


MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish, "custom": Custom,
}  # fmt: skip
MLP_WIDTH, CNN_WIDTH = 64, 16
# depth → (steps, steps between two evaluations): fewer steps where each costs more.
MLP_STEPS = {10: (150, 10), 30: (150, 10), 100: (120, 10), 300: (80, 5), 1000: (40, 5)}
CNN_STEPS = {30: (60, 5), 100: (60, 5), 300: (40, 5), 1000: (60, 5)}


def mlp(depth: int, activation: str, width: int = MLP_WIDTH) -> nn.Sequential:
    """`depth` linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([64, *[width] * (depth - 1), 10]):
        layers += [nn.Linear(fan_in, fan_out), MODULES[activation]()]
    return nn.Sequential(*layers[:-1])


def cnn(depth: int, activation: str, width: int = CNN_WIDTH) -> nn.Sequential:
    """`depth` weights: 3×3 convolutions with zero padding, the second of stride 2, and a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), MODULES[activation]()]
    for place in range(depth - 2):
        stride = 2 if place == 0 else 1
        layers += [nn.Conv2d(width, width, 3, padding=1, stride=stride), MODULES[activation]()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


def _mlps(quick: bool) -> Iterator[Cell]:
    for depth, (steps, every) in MLP_STEPS.items():
        for name in MODULES:
            if not quick or (depth <= 100 and name in ("relu", "tanh", "mish")):
                yield Cell(
                    part="mlp",
                    name=f"{name} {depth}",
                    build=lambda depth=depth, name=name: mlp(depth, name),
                    data=cache(digits),
                    activation=custom if name == "custom" else name,
                    steps=steps,
                    every=every,
                    batch=64,
                    rates=LARGE if depth <= 30 else SMALL if depth <= 300 else DEEPEST,
                    level=ACCURATE,
                    width=MLP_WIDTH,
                    thorough=depth <= 30,
                )


def _cnns(quick: bool) -> Iterator[Cell]:
    for depth, (steps, every) in CNN_STEPS.items():
        for name in ("relu", "tanh"):
            if not quick or depth <= 30:
                yield Cell(
                    part="cnn",
                    name=f"{name} {depth}",
                    build=lambda depth=depth, name=name: cnn(depth, name),
                    data=cache(lambda: digits(flat=False)),
                    activation=name,
                    steps=steps,
                    every=every,
                    batch=64,
                    rates=MIDDLE if depth <= 300 else DEEPEST,
                    level=ACCURATE,
                    width=CNN_WIDTH,
                    thorough=True,
                )


# --- transformers -------------------------------------------------------------------------------------------

BLOCK, MODEL_WIDTH, HEADS, CLASSES = 32, 48, 4, 97
TRANSFORMER_STEPS = {6: (60, 10), 16: (48, 8), 48: (32, 8)}
TRANSFORMER_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class FeedForward(nn.Module):
    """Two linear maps around gelu, or three around a silu gate."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        inner = MODEL_WIDTH * (8 if gated else 12) // 3
        self.up = nn.Linear(MODEL_WIDTH, inner)
        self.gate = nn.Linear(MODEL_WIDTH, inner) if gated else None
        self.down = nn.Linear(inner, MODEL_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Position by position."""
        inner = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        down: Tensor = self.down(inner)
        return down


class Attention(nn.Module):
    """Causal self-attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(MODEL_WIDTH, MODEL_WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions up to each one's own."""
        n, t, _ = x.shape
        q, k, v = (m(x).view(n, t, HEADS, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        return out


class Block(nn.Module):
    """Two residual branches, with the norm before them, after the sum, or nowhere."""

    def __init__(self, norm: str, gated: bool) -> None:
        super().__init__()
        self.norm = norm
        self.attention, self.feed = Attention(), FeedForward(gated)
        if norm != "none":
            self.first, self.second = nn.LayerNorm(MODEL_WIDTH), nn.LayerNorm(MODEL_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        if self.norm == "none":
            x = x + self.attention(x)
            return x + self.feed(x)
        if self.norm == "pre":
            x = x + self.attention(self.first(x))
            return x + self.feed(self.second(x))
        x = self.first(x + self.attention(x))
        found: Tensor = self.second(x + self.feed(x))
        return found


class Transformer(nn.Module):
    """A character model: embeddings of token and place, blocks, a final norm where they are pre-norm.

    With a head tied to the tokens, both tables are drawn from N(0, 0.02²), as such models usually are.
    """

    def __init__(self, depth: int, norm: str, gated: bool, tied: bool = False) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(CLASSES, MODEL_WIDTH), nn.Embedding(BLOCK, MODEL_WIDTH)
        self.blocks = nn.ModuleList(Block(norm, gated) for _ in range(depth))
        self.last = nn.LayerNorm(MODEL_WIDTH) if norm == "pre" else None
        self.head = nn.Linear(MODEL_WIDTH, CLASSES)
        if tied:
            self.head.weight = self.token.weight
            for table in (self.token, self.place):
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Score the next character at every position."""
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(x if self.last is None else self.last(x))
        return scores


@cache
def text() -> Data:
    """Blocks of 32 characters of a few modules of the standard library; 32 of them for the test."""
    data = characters(block=BLOCK, modules=("argparse", "heapq", "statistics", "textwrap"))
    return replace(data, test_inputs=data.test_inputs[::16][:32], test_targets=data.test_targets[::16][:32])


def _transformers(quick: bool) -> Iterator[Cell]:
    kinds = [*((norm, False) for norm in ("pre", "post", "none")), ("pre", True)]
    for depth, (steps, every) in TRANSFORMER_STEPS.items():
        for norm, tied in kinds:
            for gated in (False, True):
                if not quick or depth <= 6:
                    what = (norm, gated, tied)
                    yield Cell(
                        part="transformer",
                        name=f"{'tied ' * tied}{norm}-norm {'gated' if gated else 'plain'} {depth}",
                        build=lambda depth=depth, what=what: Transformer(depth, *what),
                        data=text,
                        activation="swiglu" if gated else "gelu",
                        steps=steps,
                        every=every,
                        batch=8,
                        rates=TRANSFORMER_RATES,
                        level=("loss", TEXT_LEVEL),
                        width=MODEL_WIDTH,
                    )


# Mean test loss in nats: guessing is ln 97 = 4.57, knowing the frequencies of the characters alone 3.0.
TEXT_LEVEL = 2.9


# --- real architectures -------------------------------------------------------------------------------------


class OneBatch(nn.Module):
    """A model on one fixed batch, whose first outputs are taken for scores of ten classes."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, inputs

    def forward(self, index: Tensor) -> Tensor:
        """Return `[rows, 10]` of the first floating-point output, the rows that the index names."""
        return self.rows()[index]

    def rows(self) -> Tensor:
        """Return all rows of the first floating-point output, ten scores of each."""
        inputs = self.fixed
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
        first = next(t for t in tensors_in(output) if t.is_floating_point())
        if first.dim() == 4:  # images: the channels are the classes
            first = first.movedim(1, -1)
        return first.flatten(0, -2)[:, :10]


ROWS = 192  # at most this many rows of scores count, so that no output is too easy or too hard by its size


def _fixed(build: Callable[[], nn.Module], inputs: Callable[[], object]) -> tuple[OneBatch, Data]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OneBatch(build(), inputs())
        with torch.no_grad():
            scores = model.rows()[:ROWS]
        targets = torch.randint(0, scores.shape[1], (len(scores),))
    index = torch.arange(len(scores))
    data = Data(
        name="one batch", train_inputs=index, train_targets=targets, test_inputs=index, test_targets=targets
    )
    return model, data


def _corpus(quick: bool) -> Iterator[Cell]:
    for entry in available():
        if not quick or entry.library == "torch":
            made = cache(lambda entry=entry: _fixed(entry.build, entry.inputs))
            yield Cell(
                part="corpus",
                name=entry.name,
                build=lambda entry=entry, made=made: OneBatch(entry.build(), made()[0].fixed),
                data=lambda made=made: made()[1],
                activation=None,
                steps=30,
                every=30,
                batch=0,
                rates=(1e-4, 3e-4, 1e-3, 3e-3),
                level=("fit", 0.5 * math.log(10)),
            )
