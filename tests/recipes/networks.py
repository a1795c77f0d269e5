"""Models that the tests of recipes share: names and classes tell nothing of what a weight is for."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer layer with fused queries, keys and values, as x@W + b with W (in, out)."""

    def __init__(self, d: int, heads: int, interleaved: bool = False, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.interleaved, self.causal = heads, interleaved, causal
        self.a, self.c = nn.LayerNorm(d), nn.LayerNorm(d)
        self.p = nn.Parameter(torch.randn(d, 3 * d))
        self.q = nn.Parameter(torch.randn(d, d))
        self.r = nn.Parameter(torch.randn(d, 4 * d))
        self.s = nn.Parameter(torch.randn(4 * d, d))
        self.t = nn.Parameter(torch.zeros(4 * d))

    def forward(self, x):
        n, t, d = x.shape
        h = self.a(x) @ self.p
        if self.interleaved:
            q, k, v = h.view(n, t, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in h.split(d, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d) @ self.q
        return x + F.gelu(self.c(x) @ self.r + self.t) @ self.s


class Language(nn.Module):
    """A language model whose head is its table."""

    def __init__(self, d: int = 16, heads: int = 2, layers: int = 3, words: int = 11, **options) -> None:
        super().__init__()
        self.w, self.x = nn.Embedding(words, d), nn.Embedding(9, d)
        self.y = nn.ModuleList(Block(d, heads, **options) for _ in range(layers))
        self.z = nn.LayerNorm(d)

    def forward(self, i):
        h = self.w(i) + self.x(torch.arange(i.shape[1]))
        for block in self.y:
            h = block(h)
        return self.z(h) @ self.w.weight.T


class Residual(nn.Module):
    """x + s·f(x), f of two or three layers."""

    def __init__(self, d: int = 6, layers: int = 2, scale: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.w = nn.ModuleList(nn.Linear(d, d) for _ in range(layers))
        self.s = nn.Parameter(torch.ones(1)) if scale else None
        self.n = nn.LayerNorm(d) if norm else None

    def forward(self, x):
        h = x
        for k, layer in enumerate(self.w):
            h = layer(F.relu(h) if k else h)
        h = self.n(h) if self.n is not None else h
        return x + (h if self.s is None else self.s * h)


def residual_network(number: int = 4, **options) -> nn.Module:
    """A stem, residual blocks, a head."""
    blocks = (Residual(**options) for _ in range(number))
    return nn.Sequential(nn.Linear(5, 6), *blocks, nn.ReLU(), nn.Linear(6, 3))


class Translator(nn.Module):
    """torch's encoder and decoder with tables and a head."""

    def __init__(self, d: int = 8, encoder: int = 2, decoder: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(7, d)
        self.both = nn.Transformer(d, 2, encoder, decoder, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(d, 7)

    def forward(self, a, b):
        return self.head(self.both(self.table(a), self.table(b)))


TOKENS = torch.randint(11, (2, 6))
PAIR = torch.randint(7, (2, 6)), torch.randint(7, (2, 5))
