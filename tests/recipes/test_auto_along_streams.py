"""What the recipe auto does along a residual stream: stages, and branches without a weight."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def staged(*widths: int) -> nn.Sequential:
    """Two blocks per width, a linear map between widths, a head behind a norm."""
    layers: list[nn.Module] = [nn.Linear(16, widths[0])]
    for number, width in enumerate(widths):
        if number:
            layers.append(nn.Linear(widths[number - 1], width))
        layers += [Block(width), Block(width)]
    return nn.Sequential(*layers, nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], 10))


def measured(model: nn.Module) -> dict[str, tuple[float, float]]:
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    isometry.init_(model, x, seed=0)
    profile = isometry.measure(model, x)
    return {s.name: (s.forward.rms, s.backward.rms) for s in profile.signals if s.name.isdigit()}


def test_sizes_and_gradients_share_what_changes_between_stages():
    found = measured(staged(256, 128, 32))
    (f0, b0), (f1, b1), (f2, b2) = (found[name] for name in ("1", "4", "7"))
    # size · gradient · √entries is kept by a linear map of any scale
    assert f2 * b2 / (f0 * b0) == pytest.approx(math.sqrt(8), rel=0.1)
    assert f2 / f0 == pytest.approx(8**0.25, rel=0.1)
    assert b2 / b0 == pytest.approx(8**0.25, rel=0.1)
    assert f1 / f0 == pytest.approx(2**0.25, rel=0.1)
    assert b1 / b0 == pytest.approx(2**0.25, rel=0.1)


def test_stages_within_a_factor_two_keep_their_size():
    plan = isometry.plan(staged(128, 64), "256x16")
    assert plan["3.weight"].std == pytest.approx(1 / math.sqrt(128), rel=0.05)


class Pooling(nn.Module):
    """Branches that hold no weight: the mean of neighbours, less what it is the mean of."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, 32) for _ in range(depth))
        self.first, self.head = nn.Conv2d(3, 32, 1), nn.Linear(32, 10)

    def forward(self, x):
        x = self.first(x)
        for norm in self.norms:
            y = norm(x)
            x = x + (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("depth", [4, 16])
def test_branches_without_a_weight_leave_the_stream_its_size_at_any_depth(depth):
    model = Pooling(depth)
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    isometry.init_(model, x, seed=0)
    seen: list[float] = []
    for norm in model.norms:
        norm.register_forward_pre_hook(lambda _, args: seen.append(float(args[0].square().mean().sqrt())))
    with torch.no_grad():
        model(x)
    assert 0.75 < seen[-1] / seen[0] <= 1.0


def test_the_branches_that_read_the_encoder_add_as_much_as_the_stream():
    """Of 9 branches, 3 read the encoder and share 1; the others share 0.3."""
    model = nn.Transformer(16, 2, 2, 3, 32, dropout=0.0, batch_first=True)
    plan = isometry.plan(model, "4x6x16,4x5x16")
    told = {
        name: plan[f"decoder.layers.0.{name}.weight"].reason.split(": ")[1].split()[0]
        for name in ("self_attn.out_proj", "multihead_attn.out_proj", "linear2")
    }
    assert told == {
        "self_attn.out_proj": f"{0.3 / 3:.2g}",
        "multihead_attn.out_proj": f"{1 / math.sqrt(3):.2g}",
        "linear2": f"{0.3 / 3:.2g}",
    }
