"""Biases that set how long a state lasts."""

import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.flow.gates import sets_decay
from isometry.flow.tracing import study


class Scan(nn.Module):
    """A state that decays by exp(−a·softplus(step)) and is fed what comes in."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.step, self.feed, self.head = (nn.Linear(width, width) for _ in range(3))
        self.rate = nn.Parameter(torch.zeros(width))
        nn.init.constant_(self.step.bias, -3.0)

    def forward(self, x):
        step = F.softplus(self.step(x))
        keep, news = torch.exp(step * -torch.exp(self.rate)), step * self.feed(x)
        state = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = keep[:, t] * state + news[:, t]
        return self.head(state)


def test_the_bias_of_a_step_is_told_from_other_biases():
    roles = study(Scan(), "4x6x8").roles
    told = {name: sets_decay(roles.flow, roles[name].uses[0].node) for name in ("step.bias", "feed.bias")}
    assert told == {"step.bias": True, "feed.bias": False}


def test_auto_keeps_it():
    model = Scan()
    plan = isometry.init_(model, "4x6x8", seed=0)
    assert plan["step.bias"].law is None
    assert plan["step.bias"].marks == ("kept",)
    assert bool((model.step.bias == -3.0).all())
    assert not bool(model.feed.bias.any())


def test_an_exponential_of_a_signal_alone_is_no_decay():
    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(torch.exp(self.a(x)))

    roles = study(Exponential(), "4x8").roles
    assert not sets_decay(roles.flow, roles["a.bias"].uses[0].node)
