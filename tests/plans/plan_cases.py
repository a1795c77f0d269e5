"""A model with every kind of parameter that a plan must care for, and plans for models."""

from dataclasses import dataclass

import torch
from torch import nn

from isometry.init.structured import Orthogonal
from isometry.names import canonical_name
from isometry.plans import Plan, Row
from isometry.sampling import Constant, Normal, Whole


class Model(nn.Module):
    """Tied table with a row of padding, a norm with running statistics, a buffer, a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6, padding_idx=2)
        self.up = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.plain = nn.BatchNorm1d(8, affine=False)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.down.bias.requires_grad_(False)
        self.register_buffer("shift", torch.full((6,), 0.5), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.shift
        return self.head(self.down(self.plain(self.norm(self.up(x))).relu()))


ROLES = {"embed.weight": "embedding, tied with head.weight", "norm.weight": "norm scale"}


def law_of(name, shape):
    if name.endswith("norm.weight"):
        return Constant(1.0)
    if len(shape) < 2:
        return Constant(0.0) if "norm" in name else Normal(0.1)
    return Orthogonal(0.3) if "down" in name else Normal(0.2)


def plan_of(model, laws=None, rates=None):
    """A plan with a row for every parameter of a model; `laws` and `rates` change some by name."""
    rows = []
    for raw, parameter in model.named_parameters():
        name, shape = canonical_name(raw), tuple(parameter.shape)
        law = (laws or {}).get(name, law_of(name, shape))
        rate = (rates or {}).get(name, 1.0)
        rows.append(Row(name, shape, ROLES.get(name, "weight"), law, "as tested", rate=rate))
    return Plan(tuple(rows), recipe="tested", objective="forward", notes=("a note",))


@dataclass(frozen=True)
class Unregistered(Whole):
    """A joint law of one's own that no plan can save; `error` is raised when it is drawn."""

    std: float = 1.0
    error: type[BaseException] | None = None

    def draw(self, shape, generator):
        if self.error is not None:
            raise self.error
        return self.std * torch.randn(shape, generator=generator)


def state(model):
    """Copies of all tensors, and of the flags."""
    tensors = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    return tensors, {name: p.requires_grad for name, p in model.named_parameters()}


def same(first, second):
    return first[1] == second[1] and all(torch.equal(first[0][name], second[0][name]) for name in first[0])
