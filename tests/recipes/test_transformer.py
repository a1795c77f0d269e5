"""The transformers' recipes, each against its publication's own numbers."""

import math

import pytest
import torch
from networks import PAIR, TOKENS, Language, Translator
from torch import nn

from isometry.planning import plan
from isometry.sampling import Normal


def _std(row):
    return row.law.std


def test_gpt2_is_the_released_code_and_the_papers_scaling():
    made = plan(Language(layers=3), TOKENS, recipe="gpt2")
    assert made["w.weight"].law == Normal(0.02)
    assert made["x.weight"].law == Normal(0.01)
    for k in range(3):
        assert made[f"y.{k}.p"].law == made[f"y.{k}.r"].law == Normal(0.02)
        assert _std(made[f"y.{k}.q"]) == _std(made[f"y.{k}.s"]) == pytest.approx(0.02 / math.sqrt(2 * 3))
    other = plan(Language(layers=3), TOKENS, recipe="gpt2", std=0.01, position_std=0.02)
    assert (other["w.weight"].law, other["x.weight"].law) == (Normal(0.01), Normal(0.02))


def test_small_init_makes_all_weights_as_glorot_makes_the_feed_forward_ones():
    made = plan(Language(d=16), TOKENS, recipe="small-init")
    glorot = plan(Language(d=16), TOKENS, recipe="xavier")
    wanted = _std(glorot["y.0.r"])  # 2/(d + 4d)
    assert wanted == pytest.approx(math.sqrt(2 / (5 * 16)))
    for row in made:
        if row.name.endswith((".p", ".q", ".r", ".s", "w.weight", "x.weight")):
            assert _std(row) == pytest.approx(wanted)


def test_wang_init_ends_branches_with_two_over_layers_and_root_width():
    made = plan(Language(d=16, layers=4), TOKENS, recipe="wang-init")
    assert _std(made["y.2.q"]) == _std(made["y.2.s"]) == pytest.approx(2 / 4 / math.sqrt(16))
    assert _std(made["y.2.p"]) == pytest.approx(math.sqrt(2 / (5 * 16)))
    other = plan(Language(d=16), TOKENS, recipe="wang-init", layers=10, width=64)
    assert _std(other["y.0.q"]) == pytest.approx(2 / 10 / 8)


@pytest.mark.parametrize("interleaved", [False, True])
def test_deepnorm_alone_is_table_1(interleaved):
    d, layers = 64, 5
    model = Language(d=d, heads=4, layers=layers, interleaved=interleaved)
    made = plan(model, TOKENS, recipe="deepnorm")
    beta = (8 * layers) ** -0.25
    row = made["y.0.p"]
    drawn = row.law.draw(row.shape, torch.Generator().manual_seed(0))
    if interleaved:  # (head, kind, feature)
        q, k, v = drawn.view(d, 4, 3, d // 4).permute(2, 0, 1, 3)
    else:
        q, k, v = drawn.split(d, 1)
    # d² normal numbers: relative error of their deviation 1/√(2d²) = 1.1 %
    for part, gain in ((q, 1.0), (k, 1.0), (v, beta)):
        assert float(part.std()) == pytest.approx(gain * d**-0.5, rel=0.05)
    assert _std(made["y.0.q"]) == pytest.approx(beta * d**-0.5)
    assert _std(made["y.0.r"]) == _std(made["y.0.s"]) == pytest.approx(beta * math.sqrt(2 / (5 * d)))
    assert any(f"α = {(2 * layers) ** 0.25:.4g}" in note and "shows α = 1" in note for note in made.notes)


def test_deepnorm_of_encoder_and_decoder_is_table_1():
    n, m, d = 2, 3, 8
    made = plan(Translator(d, n, m), PAIR, recipe="deepnorm")
    encoder, decoder = 0.87 * (n**4 * m) ** (-1 / 16), (12 * m) ** -0.25
    for path, beta in (("both.encoder.layers.1", encoder), ("both.decoder.layers.2", decoder)):
        assert _std(made[f"{path}.linear1.weight"]) == pytest.approx(beta * math.sqrt(2 / (d + 16)))
        assert _std(made[f"{path}.self_attn.out_proj.weight"]) == pytest.approx(beta * d**-0.5)
    cross = made["both.decoder.layers.0.multihead_attn.in_proj_weight"]
    assert [p.law.std for p in cross.law.pieces] == pytest.approx([d**-0.5, d**-0.5, decoder * d**-0.5])
    assert any(f"{0.81 * (n**4 * m) ** (1 / 16):.4g}" in note for note in made.notes)
    assert any(f"{(3 * m) ** 0.25:.4g}" in note for note in made.notes)


def test_deepnorm_sees_the_alpha_that_a_model_has():
    class Scaled(nn.Module):
        def __init__(self, alpha, swapped):
            super().__init__()
            self.w = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))
            self.alpha, self.swapped = alpha, swapped

        def forward(self, x):
            for a, b in zip(self.w[::2], self.w[1::2], strict=True):
                branch = b(torch.relu(a(x)))
                x = torch.add(branch, x, alpha=self.alpha) if self.swapped else self.alpha * x + branch
                x = nn.functional.layer_norm(x, (6,))
            return x

    right = (2 * 4) ** 0.25
    for swapped in (False, True):
        assert not plan(Scaled(right, swapped), torch.randn(3, 6), recipe="deepnorm").notes
        wrong = plan(Scaled(1.3, swapped), torch.randn(3, 6), recipe="deepnorm").notes
        assert any("shows α = 1.3" in note for note in wrong)


def test_t_fixup_is_section_4_of_the_paper():
    n, d = 3, 8
    made = plan(Translator(d, n, n), PAIR, recipe="t-fixup", distribution="normal")
    encoder, decoder = 0.67 * n**-0.25, (9 * n) ** -0.25
    assert _std(made["table.weight"]) == pytest.approx(d**-0.5 * decoder)
    for path, factor in (("both.encoder.layers.0", encoder), ("both.decoder.layers.0", decoder)):
        assert _std(made[f"{path}.linear2.weight"]) == pytest.approx(factor * math.sqrt(2 / (d + 16)))
        pieces = made[f"{path}.self_attn.in_proj_weight"].law.pieces
        assert [p.law.std for p in pieces] == pytest.approx([d**-0.5, d**-0.5, factor * d**-0.5])
    assert _std(made["head.weight"]) == pytest.approx(math.sqrt(2 / (d + 7)))
    assert any("without norms" in note for note in made.notes)


def test_glorot_gives_fused_queries_keys_and_values_the_fans_of_one():
    assert _std(plan(Language(d=16), TOKENS, recipe="xavier")["y.0.p"]) == pytest.approx(0.25)


@pytest.mark.parametrize("recipe", ["gpt2", "small-init", "wang-init", "deepnorm", "t-fixup", "mimetic"])
def test_a_plan_of_any_model_can_be_saved_applied_and_run(recipe, tmp_path):
    models = (
        (Language(interleaved=True), (TOKENS,)),
        (Translator(), PAIR),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(3, 6),)),
    )
    for model, inputs in models:
        made = plan(model, inputs, recipe=recipe)
        made.save(tmp_path / "plan.json")
        again = type(made).load(tmp_path / "plan.json")
        assert again.laws == made.laws
        again.apply_(model, seed=1)
        assert torch.isfinite(model(*inputs)).all()
