"""What the recipe auto does along a residual stream: stages, and branches without a weight."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry


class Block(nn.Module):
    def __init__(self, width: int, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.bend = nn.LayerNorm(width), bend
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.down(self.bend(self.up(self.norm(x))))


def in_place(x: Tensor) -> Tensor:
    return F.hardswish(x, inplace=True)  # autograd copies what it overwrites


def staged(*widths: int, bend: Callable[[Tensor], Tensor] = F.gelu) -> nn.Sequential:
    """Two blocks per width, a linear map between widths, a head behind a norm."""
    layers: list[nn.Module] = [nn.Linear(16, widths[0])]
    for number, width in enumerate(widths):
        if number:
            layers.append(nn.Linear(widths[number - 1], width))
        layers += [Block(width, bend), Block(width, bend)]
    return nn.Sequential(*layers, nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], 10))


def measured(model: nn.Module) -> dict[str, tuple[float, float]]:
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    isometry.init_(model, x, seed=0)
    profile = isometry.measure(model, x)
    return {s.name: (s.forward.rms, s.backward.rms) for s in profile.signals if s.name.isdigit()}


@pytest.mark.parametrize("bend", [F.gelu, in_place])
def test_sizes_and_gradients_share_what_changes_between_stages(bend):
    found = measured(staged(256, 128, 32, bend=bend))
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
    """Of 9 branches, 3 read the encoder and share 1; the others share 0.3, and no norm precedes them."""
    model = nn.Transformer(16, 2, 2, 3, 32, dropout=0.0, batch_first=True)
    plan = isometry.plan(model, "4x6x16,4x5x16")
    told = {
        name: plan[f"decoder.layers.0.{name}.weight"].reason.split(": ")[1].split()[0]
        for name in ("self_attn.out_proj", "multihead_attn.out_proj", "linear2")
    }
    assert told == {
        "self_attn.out_proj": f"{0.3 / 3 * 9 ** (-1 / 3):.2g}",
        "multihead_attn.out_proj": f"{1 / math.sqrt(3):.2g}",
        "linear2": f"{0.3 / 3 * 9 ** (-1 / 3):.2g}",
    }


class Gated(nn.Module):
    """Gated branches, with a norm before them, after their sums or nowhere."""

    def __init__(self, depth: int, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(depth if norm else 0))
        self.gates, self.ups = (nn.ModuleList(nn.Linear(64, 128) for _ in range(depth)) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(128, 64) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        for i, (gate, up, down) in enumerate(zip(self.gates, self.ups, self.downs, strict=True)):
            y = self.norms[i](x) if self.norm == "before" else x
            x = x + down(F.silu(gate(y)) * up(y))
            x = self.norms[i](x) if self.norm == "after" else x
        return self.head(x)


@pytest.mark.parametrize(
    ("norm", "within", "power"), [("", 27 ** (-1 / 3), 2), ("after", 27 ** (-1 / 3), 2), ("before", 1.0, 0)]
)
def test_signals_within_branches_that_no_norm_precedes_fall_with_their_number(norm, within, power):
    model = Gated(27, norm)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    isometry.init_(model, x, seed=0)
    found = {row.name: row.forward.rms for row in isometry.measure(model, x) if row.kind == "Linear"}
    for name in ("gates.0", "ups.0"):
        assert found[name] == pytest.approx(within, rel=0.1)
    assert found["downs.0"] == pytest.approx(0.3 * 27**-0.5 * within**power, rel=0.25)


def test_the_first_step_of_many_gated_branches_leaves_the_stream_its_size():
    """Without a norm a step that comes back squared from every branch would grow beyond all bounds."""
    model = Gated(48, "")
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    isometry.init_(model, x, seed=0)
    targets = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(3):
        loss = F.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert F.cross_entropy(model(x), targets) < 2.3


class Halves(nn.Module):
    """A branch that ends in two maps, whose outputs are put side by side or added."""

    def __init__(self, *, added: bool) -> None:
        super().__init__()
        self.added, width = added, 32 if added else 16
        self.up, self.a, self.b = nn.Linear(32, 32), nn.Linear(32, width), nn.Linear(32, width)

    def forward(self, x):
        h = torch.relu(self.up(x))
        a, b = self.a(h), self.b(h)
        return x + (a + b if self.added else torch.cat([a, b], -1))


@pytest.mark.parametrize("added", [True, False])
def test_ends_side_by_side_do_not_share(added):
    plan = isometry.plan(Halves(added=added), "64x32")
    share = 0.3 / math.sqrt(2) if added else 0.3
    assert f"{share:.2g} of the stream" in plan["a.weight"].reason
