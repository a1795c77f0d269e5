"""The networks of `rules.py`: one operation each, fed by normal entries that may be correlated.

Every step is a module of its own, so that it has a row in a profile. Weights are normal and there are no
biases. What is drawn is drawn from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Source(nn.Module):
    """A share of the variance is common to all entries along the dims where the second input has size 1."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__()
        self.own, self.common = math.sqrt(1.0 - share), math.sqrt(share)

    def forward(self, own: Tensor, common: Tensor) -> Tensor:
        """Mix what each entry has for itself with what is common."""
        return self.own * own + self.common * common


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        return self.fn(*inputs)


class Chain(nn.Module):
    """A source and layers, one behind the other."""

    def __init__(self, source: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run them in order."""
        x = self.source(*inputs)
        for layer in self.layers:
            x = layer(x)
        return x


def normal(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Draw a layer's weight with the standard deviation gain/√fan_in, in place."""
    weight: Any = layer.weight
    nn.init.normal_(weight, std=gain / math.sqrt(weight[0].numel()))
    return layer


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Module:
    """A linear map without bias."""
    return normal(nn.Linear(inputs, outputs, bias=False), gain)


class Gated(nn.Module):
    """SwiGLU's product, silu(gate(x))·up(x)."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gate, self.up = linear(inputs, outputs, gain), linear(inputs, outputs)
        self.product = Apply(lambda a, b: F.silu(a) * b)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the one map by the other."""
        return self.product(self.gate(x), self.up(x))


class Attention(nn.Module):
    """Softmax attention over heads, written out step by step.

    Scores of uncorrelated tokens have the standard deviation `score`. `kind` is plain, causal, grouped (one
    key and value per two heads) or padded (the last quarter of the keys is masked).
    """

    def __init__(self, heads: int, size: int, score: float, kind: str = "plain", width: int = 0) -> None:
        super().__init__()
        self.heads, self.groups = heads, heads // 2 if kind == "grouped" else heads
        self.kind, self.scale = kind, size**-0.5
        width = width or heads * size
        self.query = linear(width, heads * size, math.sqrt(score))
        self.key = linear(width, self.groups * size, math.sqrt(score))
        self.value = linear(width, self.groups * size)
        self.scores = Apply(self._scores)
        self.weights = Apply(self._weights)
        self.mixed = Apply(lambda a, v: (a @ self._split(v, self.groups)).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        return x.repeat_interleave(self.heads // heads, 1) if heads < self.heads else x

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self._split(q, self.heads) @ self._split(k, self.groups).transpose(2, 3) * self.scale

    def _weights(self, scores: Tensor) -> Tensor:
        hidden = self._hidden(scores.shape[-1], scores.device)
        return torch.softmax(scores if hidden is None else scores.masked_fill(hidden, -math.inf), -1)

    def _hidden(self, length: int, device: torch.device) -> Tensor | None:
        if self.kind == "causal":
            return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        if self.kind == "padded":
            return torch.arange(length, device=device) >= length - length // 4
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return self.mixed(self.weights(self.scores(self.query(x), self.key(x))), self.value(x))


class Residual(nn.Module):
    """A stream plus a branch, x + scale·branch(norm(x)), or norm(x + branch(x))."""

    def __init__(self, *branch: nn.Module, scale: float = 1.0, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.total = Apply(lambda x, y: x + scale * y)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        total = self.total(x, self.branch(x))
        return total if self.norm is None else self.norm(total)


class Branches(nn.Module):
    """Several functions of one tensor, side by side along dim 1."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.joined = Apply(lambda *parts: torch.cat(parts, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches."""
        return self.joined(*[branch(x) for branch in self.branches])


class Classifier(nn.Module):
    """Tokens looked up, a head, and the cross entropy with known classes."""

    def __init__(self, words: int, width: int, classes: int, logit: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = linear(width, classes, logit)
        self.loss = Apply(lambda x, y: F.cross_entropy(x.flatten(0, -2), y.flatten()))

    def forward(self, ids: Tensor, classes: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(self.head(self.embedding(ids)), classes)
