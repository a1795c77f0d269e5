"""Depth, width, encoder and decoder of residual streams, and what multiplies skips and branches."""

import pytest
import torch
from torch import nn

from isometry.flow.stacks import (
    multipliers,
    residual_of,
    skip_factor,
    stacks_of,
)
from isometry.flow.tracing import study


class Both(nn.Module):
    def __init__(self, d=8, encoder=2, decoder=3):
        super().__init__()
        self.t = nn.Transformer(d, 2, encoder, decoder, 12, dropout=0.0, batch_first=True)

    def forward(self, a, b):
        return self.t(a, b)


def test_an_encoder_and_its_decoder_are_told_apart():
    roles = study(Both(), (torch.randn(2, 5, 8), torch.randn(2, 4, 8))).roles
    encoder, decoder = stacks_of(roles)
    assert (encoder.layers, len(encoder.residuals), encoder.width) == (2, 4, 8)
    assert (decoder.layers, len(decoder.residuals), decoder.width) == (3, 9, 8)
    assert decoder.reads == {encoder.stream}
    assert encoder.read_by == {decoder.stream}
    assert not encoder.reads
    assert encoder.attends
    assert residual_of(roles["t.decoder.layers.0.linear1.weight"]).stream == decoder.stream


@pytest.mark.parametrize("parallel", [False, True])
def test_layers_count_serial_and_parallel_branches_alike(parallel):
    class Layers(nn.Module):
        def __init__(self, d=6, number=4):
            super().__init__()
            self.q, self.o, self.f = (
                nn.ModuleList(nn.Linear(d, d * k) for _ in range(number)) for k in (3, 1, 1)
            )

        def forward(self, x):
            for q, o, f in zip(self.q, self.o, self.f, strict=True):
                a, b, c = q(x).chunk(3, -1)
                averaged = o((a @ b.mT).softmax(-1) @ c)
                if parallel:
                    x = x + averaged + torch.relu(f(x))
                else:
                    x = x + averaged
                    x = x + torch.relu(f(x))
            return x

    (stack,) = stacks_of(study(Layers(), torch.randn(2, 5, 6)).roles)
    assert (stack.layers, stack.width) == (4, 6)


class Scaled(nn.Module):
    def __init__(self, number, scale):
        super().__init__()
        self.w, self.number = nn.Linear(6, 6), number
        self.s = nn.Parameter(torch.ones(())) if scale else None

    def forward(self, x):
        branch = torch.relu(self.w(x))
        if self.s is not None:
            branch = branch * self.s
        return (x * self.number) / 2 + branch


@pytest.mark.parametrize("scale", [False, True])
def test_what_multiplies_skip_and_branch(scale):
    roles = study(Scaled(3.0, scale), torch.randn(2, 6)).roles
    (residual,) = roles.streams.residuals.values()
    assert skip_factor(roles.flow, residual) == pytest.approx(1.5)
    found = multipliers(roles.flow, residual)
    assert len(found) == scale
    assert not scale or found[0].index in {u.node.index for u in roles["s"].uses}


def test_positions_are_looked_up_whatever_the_input():
    class Tables(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.place, self.next = (nn.Embedding(9, 4) for _ in range(3))

        def forward(self, i):
            return self.word(i) + self.place(torch.arange(i.shape[1])) + self.next((i + 1) % 9)

    roles = study(Tables(), torch.randint(9, (2, 5))).roles
    found = {
        name: roles[f"{name}.weight"].uses[0].node.index in roles.lookups_by_place
        for name in ("word", "place", "next")
    }
    assert found == {"word": False, "place": True, "next": False}
