import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry

HIDDEN = 128


class Block(nn.Module):
    """A pre-norm block with everything written by hand: attention, RMS norm, a gated unit."""

    def __init__(self, width: int = HIDDEN, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale_a, self.scale_f = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.qkv = nn.Parameter(torch.empty(3 * width, width).normal_())
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.gate = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    @staticmethod
    def norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = self.norm(x) * self.scale_a
        q, k, v = F.linear(h, self.qkv).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads)
        scores = scores + torch.full((t, t), -math.inf).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d)
        x = x + self.out(mixed)
        h = self.norm(x) * (1 + self.scale_f)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Language(nn.Module):
    def __init__(self, depth: int = 8, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, HIDDEN)
        self.places = nn.Parameter(torch.empty(1, 16, HIDDEN))
        nn.init.normal_(self.places)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.final = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, 200, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))


def ids() -> Tensor:
    return torch.randint(200, (8, 16), generator=torch.Generator().manual_seed(0))


def within(values: list[float], factor: float) -> bool:
    return max(values) <= factor * values[0] and min(values) >= values[0] / factor


@pytest.mark.parametrize("tied", [False, True])
def test_blocks_keep_signal_and_gradient_and_the_loss_begins_at_chance(tied: bool) -> None:
    model = Language(tied=tied)
    plan = isometry.init_(model, ids(), seed=0)
    profile = isometry.measure(model, ids())
    rows = [profile[f"blocks.{k}"] for k in range(8)]
    assert within([row.forward.rms for row in rows], 2.0)
    assert within([row.backward.rms for row in rows], 2.0)
    logits = model(ids())
    loss = (logits.logsumexp(-1) - logits.mean(-1)).mean()
    assert loss.item() == pytest.approx(math.log(200), rel=0.05)
    assert not [row for row in plan if "unsolved" in row.marks]


def test_roles_need_no_names_and_scales_are_neutral() -> None:
    plan = isometry.plan(Language(), ids())
    assert plan["blocks.0.qkv"].role.startswith("query, key, value")
    assert plan["blocks.3.out.weight"].role == "attention output, ends branch 7 of 16"
    assert plan["blocks.3.down.weight"].role.endswith("ends branch 8 of 16")
    assert plan["blocks.0.scale_a"].law == isometry.sampling.Constant(1.0)
    assert plan["blocks.0.scale_f"].law == isometry.sampling.Constant(0.0)  # 1 + 0
    assert plan["embed.weight"].std == pytest.approx(1.09**-0.5)  # 1² + 0.3²: rows and positions
    assert plan["places"].std == pytest.approx(0.3 * 1.09**-0.5)


def test_attention_scores_vary_by_one() -> None:
    model = Language(depth=2)
    isometry.init_(model, ids(), seed=0)
    block = model.blocks[1]
    x = torch.randn(32, 16, HIDDEN, generator=torch.Generator().manual_seed(1))
    q, k, _ = F.linear(Block.norm(x), block.qkv).view(32, 16, 3, 4, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(HIDDEN // 4)
    seen = scores.std(-1).square().mean().sqrt().item()
    # d = 128 entries a row: the spread of one draw of W_q·W_k over 4 heads of 32 is about 3 %
    assert seen == pytest.approx(1.0, abs=0.12)


def test_one_gain_for_every_activation_comes_out_of_the_signal() -> None:
    def custom(x: Tensor) -> Tensor:
        return torch.sin(x) + 0.3 * x.abs()

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(300, 400), nn.LayerNorm(400)
            self.second, self.last = nn.Linear(400, 500), nn.Linear(500, 300)
            self.after = nn.LayerNorm(300)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.last(custom(self.second(custom(self.norm(self.first(x)))))))

    plan = isometry.plan(Wide(), "64x300")
    gain = isometry.gain(custom)
    assert plan["first.weight"].std == pytest.approx(300**-0.5, rel=1e-3)
    assert plan["second.weight"].std == pytest.approx(gain * 400**-0.5, rel=1e-3)
    assert plan["last.weight"].std == pytest.approx(gain * 500**-0.5, rel=1e-3)


def test_the_end_of_a_branch_may_be_the_scale_of_a_norm() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.conv(x).relu())

    plan = isometry.plan(nn.Sequential(*[Residual() for _ in range(9)]), "16x16x8x8")
    for k in range(9):
        stream = math.sqrt(1 + k / 9)
        law = plan[f"{k}.norm.weight"].law
        # The borders of padded convolutions are alike in all branches, and add up a little.
        assert law.value == pytest.approx(stream / math.sqrt(9 + k), rel=2e-2)


def test_planning_leaves_the_model_and_the_random_state_alone() -> None:
    model, before = Language(depth=1), torch.random.get_rng_state()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    isometry.plan(model, ids())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_meta_model_gets_the_plan_of_a_real_one() -> None:
    with torch.device("meta"):
        hollow = Language(depth=2)
    planned, real = isometry.plan(hollow, ids()), isometry.plan(Language(depth=2), ids())
    assert [row.name for row in planned] == [row.name for row in real]
    for one, other in zip(planned, real, strict=True):
        assert one.std == pytest.approx(other.std, rel=1e-6)


def exponential(x: Tensor) -> Tensor:
    """An operation without a rule."""
    return torch.linalg.matrix_exp(x.view(-1, 16, 16) / 30).flatten(1)


def test_what_cannot_be_predicted_is_measured() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)
            self.norm = nn.LayerNorm(64)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(
                self.second(torch.linalg.matrix_exp(self.first(x).view(-1, 16, 16) / 30).flatten(1))
            )

    model = Odd()
    plan = isometry.init_(model, "64x64", seed=0)
    assert plan["second.weight"].marks == ("measured",)
    (batch,) = isometry.inputs.batches("64x64")
    out = model.second(exponential(model.first(*batch.args)))
    assert out.square().mean().sqrt().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_no_residual_and_do_not_explode(kind: type[nn.RNNBase]) -> None:
    model = kind(24, 32)
    plan = isometry.init_(model, "6x4x24", seed=0)
    assert plan["weight_hh_l0"].std <= 1.01 * 32**-0.5
    assert 0.1 < model(torch.randn(40, 4, 24))[0].std().item() < 1.0


class Equilibrium(nn.Module):
    """A state that one weight is applied to over and over, with the input added each time."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Linear(32, 96), nn.Linear(96, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        state = torch.zeros_like(entered)
        for _ in range(12):
            state = torch.tanh(self.again(state) + entered)
        return self.head(state)


def test_a_weight_that_begins_a_stream_at_every_step_settles() -> None:
    inputs = (torch.randn(64, 32),)
    model = Equilibrium()
    isometry.init_(model, inputs)
    assert model.enter(*inputs).square().mean().sqrt().item() == pytest.approx(1.0, rel=0.1)


class Wavering(nn.Module):
    """A model that goes one way in its first run and another one afterwards."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        Wavering.runs += 1
        x = torch.relu(self.body(x))
        if Wavering.runs == 1:
            x = torch.relu(self.extra(x)).abs()
        return self.head(x)


def test_code_that_takes_another_way_in_every_run_still_gets_a_plan() -> None:
    plan = isometry.plan(Wavering(), "4x8")
    assert {"body.weight", "head.weight"} <= {row.name for row in plan if row.law is not None}
    assert "another" in plan["head.weight"].reason


def test_experts_end_the_branch_they_are_in() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(32, 3)
            self.up = nn.Parameter(torch.empty(3, 32, 64).normal_())
            self.down = nn.Parameter(torch.empty(3, 64, 32).normal_())

        def forward(self, x: Tensor) -> Tensor:
            h = F.layer_norm(x, (32,))
            shares = self.router(h).softmax(-1)
            each = torch.einsum("bkh,khd->bkd", torch.einsum("bd,kdh->bkh", h, self.up).relu(), self.down)
            return x + (shares[..., None] * each).sum(1)

    plan = isometry.plan(nn.Sequential(*[Mixture() for _ in range(4)]), "16x32")
    assert "ends branch 2 of 4" in plan["1.down"].role
    assert plan["1.router.weight"].role.startswith("router")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Mish])
def test_a_deep_plain_chain_keeps_signal_and_gradient(activation: type[nn.Module]) -> None:
    layers: list[nn.Module] = []
    for _ in range(60):
        layers += [nn.Linear(64, 64), activation()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    isometry.init_(model, "128x64", seed=0)
    rows = [row for row in isometry.measure(model, "128x64") if row.kind == "Linear"][:-1]
    assert within([row.forward.rms for row in rows], 2.0)
    assert within([row.backward.rms for row in rows], 2.0)


def test_a_head_that_reads_what_left_the_graph_still_gets_a_row() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(20, 30), nn.Linear(30, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(torch.from_numpy(np.sinh(self.before(x).detach().numpy())))

    plan = isometry.plan(Detour(), "8x20")
    assert math.isfinite(plan["after.weight"].std)


# --- a head that is also the table of tokens ----------------------------------------------------------------


class Sums(nn.Module):
    """Three tables, the one of tokens scaled and tied with the head; a last norm with or without a scale."""

    def __init__(self, *, scale: bool) -> None:
        super().__init__()
        self.places, self.kinds = nn.Embedding(16, HIDDEN), nn.Embedding(2, HIDDEN)
        self.embed, self.block = nn.Embedding(200, HIDDEN), Block()
        self.norm = nn.LayerNorm(HIDDEN, elementwise_affine=scale)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.places(torch.arange(x.shape[1])) + self.kinds(x % 2) + 3.0 * self.embed(x)
        return F.linear(0.5 * self.norm(self.block(rows)), self.embed.weight)


# The logit that a token has for itself, size·√d, is e to it among 200 equal ones: 3 % of 200·ln 200.
LOGITS = math.log(0.03 * 200 * math.log(200)) / math.sqrt(HIDDEN)


def test_the_scale_of_the_last_norm_makes_the_logits_of_a_tied_head() -> None:
    tied, untied = (isometry.plan(Language(tied=t), ids()) for t in (True, False))
    for row in tied:
        if row.name != "final.weight":
            assert row.std == pytest.approx(untied[row.name].std, rel=1e-2)
    table = untied["embed.weight"].std
    assert tied["final.weight"].law.value == pytest.approx(LOGITS / table / math.sqrt(HIDDEN), rel=1e-2)
    assert "logits" in tied["final.weight"].reason


def test_factors_in_the_code_beside_a_tied_table_are_made_up_for() -> None:
    model = Sums(scale=True)
    plan = isometry.init_(model, ids(), seed=0)
    size = (2.0 + 0.3**2) ** -0.5  # tokens, kinds, and places of 0.3
    assert plan["embed.weight"].std == pytest.approx(size / 3.0, rel=1e-2)
    assert plan["kinds.weight"].std == pytest.approx(size, rel=1e-2)
    assert plan["places.weight"].std == pytest.approx(0.3 * size, rel=1e-2)
    # One draw: 200 rows of 128 entries, alike in nothing: 3 % and less.
    assert model(ids()).square().mean().sqrt().item() == pytest.approx(LOGITS, rel=0.15)


def test_without_a_scale_a_tied_table_is_small_and_so_is_what_is_added_to_it() -> None:
    plan = isometry.plan(Sums(scale=False), ids())
    table = plan["embed.weight"].std
    assert 0.5 * table * math.sqrt(HIDDEN) == pytest.approx(LOGITS, rel=0.05)
    assert plan["kinds.weight"].std == pytest.approx(3.0 * table, rel=1e-2)
    assert plan["places.weight"].std == pytest.approx(0.9 * table, rel=1e-2)


def test_a_scale_that_more_than_the_head_reads_is_left_neutral() -> None:
    class Both(Language):
        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            h = self.final(self.embed(ids) + self.places)
            return self.head(h), torch.tanh(h)

    assert isometry.plan(Both(depth=0, tied=True), ids())["final.weight"].law.value == 1.0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("factor", [1 / 16, 8.0])
def test_logits_that_the_code_multiplies_begin_at_chance_behind_that(tied: bool, factor: float) -> None:
    class Scaled(Language):
        def forward(self, ids: Tensor) -> Tensor:
            return factor * super().forward(ids) / 1.0

    sizes = []
    for model in (Scaled(depth=1, tied=tied), Language(depth=1, tied=tied)):
        isometry.init_(model, ids(), seed=0)
        sizes.append(model(ids()).square().mean().sqrt().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_a_gelu_written_out_is_no_sum_of_two_paths() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(self.norm(x))
            h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            return x + self.down(h)

    plan = isometry.plan(nn.Sequential(*[Written() for _ in range(3)]), "64x64")
    assert plan["0.up.weight"].std == pytest.approx(64**-0.5, rel=1e-3)
