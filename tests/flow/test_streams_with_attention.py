"""Residual streams and attention of transformers written in every manner."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import B, D, H, Of, T, blocks, ends, ids, parts, pictures, roles, tokens, weight
from torch import nn


def rms(x, w, one=0.0):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (one + w)


def turned(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def rotary(x):
    angles = torch.arange(x.shape[-2])[:, None] * torch.ones(x.shape[-1])
    return x * angles.cos() + turned(x) * angles.sin()


def split(x, heads=H):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def by_hand(q, k, v, bias=None, cap=None):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1) @ v


def exponentials(q, k, v):
    powers = torch.exp(q @ k.transpose(-1, -2) - 1.0)
    return (powers / powers.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, by_hand, exponentials])
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_norms_rotations_and_gated_units_written_by_hand(attend, one):
    def forward(m, x):
        x = m.embed(x)
        for b in m.blocks:
            h = rms(x, b.n1, one)
            k = split(b.k(h), 1).expand(-1, H, -1, -1)
            v = split(b.v(h), 1)[:, :, None].expand(-1, -1, H, -1, -1).reshape(B, H, T, -1)
            x = x + b.o(joined(attend(rotary(split(b.q(h))), rotary(k), v)))
            gate, up = b.fused(rms(x, b.n2, one)).chunk(2, -1)
            x = x + b.down(F.silu(gate) * up)
        return m.head(rms(x, m.n, one))

    def block():
        return Of(
            None, n1=weight(D), q=nn.Linear(D, D, bias=False), k=nn.Linear(D, 4, bias=False),
            v=nn.Linear(D, 4, bias=False), o=nn.Linear(D, D, bias=False), n2=weight(D),
            fused=nn.Linear(D, 32, bias=False), down=nn.Linear(16, D, bias=False),
        )  # fmt: skip

    model = Of(
        forward,
        embed=nn.Embedding(20, D),
        blocks=blocks(block),
        n=weight(D),
        head=nn.Linear(D, 20, bias=False),
    )
    read = roles(model, ids())
    for name, part in {"q": "query", "k": "key", "v": "value", "o": "attention output"}.items():
        assert parts(read, f"blocks.1.{name}.weight") == {part}
    assert parts(read, "blocks.0.fused.weight") == {"gate", "gated"}
    assert ends(read) == {
        "blocks.0.o.weight": (1, 4), "blocks.0.down.weight": (2, 4),
        "blocks.1.o.weight": (3, 4), "blocks.1.down.weight": (4, 4),
    }  # fmt: skip
    assert read["blocks.1.down.weight"].ends.since == 4
    for name in ("blocks.0.n1", "blocks.1.n2", "n"):
        assert (read[name].kind, read[name].feeds, read[name].neutral) == ("scale", ("norm",), 1.0 - one)
    assert [a.width for a in read.attentions] == [4, 4]
    assert parts(read, "head.weight") == {"head"}


def test_a_model_with_fused_queries_and_a_tied_head():
    def forward(m, x):
        x = m.table(x) + m.place(torch.arange(T))
        for n1, qkv, o, n2, up, down in m.blocks:
            q, k, v = torch.addmm(qkv.b, n1(x).view(-1, D), qkv.w).view(B, T, -1).split(D, -1)
            x = x + o(joined(by_hand(split(q), split(k), split(v))))
            x = x + down(F.gelu(up(n2(x))))
        return m.norm(x) @ m.table.weight.t()

    def block():
        fused = Of(None, w=weight(D, 3 * D), b=weight(3 * D))
        norms = nn.LayerNorm(D), nn.LayerNorm(D)
        return nn.ModuleList([norms[0], fused, nn.Linear(D, D), norms[1], nn.Linear(D, 32), nn.Linear(32, D)])

    read = roles(
        Of(
            forward,
            table=nn.Embedding(20, D),
            place=nn.Embedding(9, D),
            blocks=blocks(block, 3),
            norm=nn.LayerNorm(D),
        ),
        ids(),
    )
    assert read["table.weight"].kind == "weight"
    assert "head" in parts(read, "table.weight")
    assert {u.kind for u in read["table.weight"].uses} == {"embedding", "weight"}
    assert parts(read, "blocks.0.1.w") == {"query", "key", "value"}
    assert read["blocks.0.1.w"].fans.forward == D
    assert read["blocks.0.1.b"].kind == "bias"
    assert ends(read)["blocks.2.5.weight"] == (6, 6)
    assert read["place.weight"].kind == "embedding"


@pytest.mark.parametrize("first", [False, True])
def test_torch_encoders(first):
    layer = nn.TransformerEncoderLayer(D, H, 32, batch_first=True, norm_first=first)
    read = roles(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), tokens())
    assert parts(read, "layers.0.self_attn.in_proj_weight") >= {"query", "key", "value"}
    assert parts(read, "layers.1.self_attn.out_proj.weight") == {"attention output"}
    assert ends(read)["layers.2.linear2.weight"] == (6, 6)
    assert read["layers.2.linear2.weight"].ends.since == (6 if first else 1)
    assert len(ends(read)) == 6


def test_an_encoder_and_a_decoder_are_two_streams():
    model = nn.Transformer(D, H, 2, 3, 16, batch_first=True)
    read = roles(model, tokens(), torch.randn(B, 4, D))
    assert read.streams.number == [4, 9]
    assert len(read.attentions) == 8
    assert parts(read, "decoder.layers.2.multihead_attn.in_proj_weight") >= {"query", "key", "value"}
    assert ends(read)["decoder.layers.2.linear2.weight"] == (9, 9)
    assert ends(read)["encoder.layers.1.linear2.weight"] == (4, 4)


@pytest.mark.parametrize("order", ["together", "one by one", "with a factor"])
def test_attention_and_perceptron_side_by_side(order):
    def forward(m, x):
        for n, q, k, v, o, up, down in m.blocks:
            h = n(x)
            a = o(joined(by_hand(split(q(h)), split(k(h)), split(v(h)))))
            f = down(F.gelu(up(h)))
            if order == "together":
                x = a + f + x
            elif order == "one by one":
                x = x + a
                x = x + f
            else:
                x = x + 0.5 * (a + f)
        return m.head(x)

    def block():
        made = [nn.Linear(D, D) for _ in range(4)]
        return nn.ModuleList([nn.LayerNorm(D), *made, nn.Linear(D, 32), nn.Linear(32, D)])

    read = roles(Of(forward, blocks=blocks(block), head=nn.Linear(D, 2)), tokens())
    found = ends(read)
    assert sorted(found) == [f"blocks.{i}.{j}.weight" for i in (0, 1) for j in (4, 6)]
    total = 4 if order == "one by one" else 2
    assert {number for _, number in found.values()} == {total}
    assert found["blocks.1.6.weight"] == (total, total)


def test_branches_of_unlike_depth_side_by_side_are_both_branches():
    def forward(m, x):
        h = m.n(x)
        q = m.q2(rms(m.q1(h), m.qn))
        a = m.o(joined(by_hand(split(q), split(m.k(h)), split(m.v(h)))))
        return m.head(x + a + m.down(F.gelu(m.up(h))))

    model = Of(
        forward, n=nn.LayerNorm(D), q1=nn.Linear(D, 4), qn=weight(4), q2=nn.Linear(4, D), k=nn.Linear(D, D),
        v=nn.Linear(D, D), o=nn.Linear(D, D), up=nn.Linear(D, 32), down=nn.Linear(32, D),
        head=nn.Linear(D, 2),
    )  # fmt: skip
    read = roles(model, tokens())
    assert ends(read) == {"o.weight": (1, 2), "down.weight": (2, 2)}
    assert parts(read, "q2.weight") == {"query"}


def test_biases_of_scores_shared_by_layers_are_tables():
    def forward(m, x):
        x = m.embed(x)
        bias = None
        for n, q, k, v, o in m.blocks:
            h = rms(x, n.w)
            q, k, v = split(q(h)), split(k(h)), split(v(h))
            scores = q @ k.transpose(-1, -2)
            if bias is None:
                at = (torch.arange(T)[:, None] - torch.arange(T)[None, :]).abs()
                bias = m.relative(at).permute(2, 0, 1).unsqueeze(0)
            x = x + o(joined((scores + bias).softmax(-1) @ v))
        return m.head(x)

    def block():
        return nn.ModuleList([Of(None, w=weight(D)), *(nn.Linear(D, D, bias=False) for _ in range(4))])

    read = roles(
        Of(
            forward,
            embed=nn.Embedding(20, D),
            blocks=blocks(block),
            relative=nn.Embedding(9, H),
            head=nn.Linear(D, 2),
        ),
        ids(),
    )
    assert len(read.attentions) == 2
    assert parts(read, "blocks.1.1.weight") == {"query"}
    assert parts(read, "blocks.0.2.weight") == {"key"}
    assert read["relative.weight"].kind == "embedding"
    assert ends(read) == {"blocks.0.4.weight": (1, 2), "blocks.1.4.weight": (2, 2)}


def test_normalised_queries_and_capped_scores():
    def forward(m, x):
        q, k = rms(split(m.q(x)), m.qn), rms(split(m.k(x)), m.kn)
        return m.head(x + m.o(joined(by_hand(q, k, split(m.v(x)), cap=30.0))))

    model = Of(
        forward, q=nn.Linear(D, D), k=nn.Linear(D, D), v=nn.Linear(D, D), o=nn.Linear(D, D),
        qn=weight(4), kn=weight(4), head=nn.Linear(D, 2),
    )  # fmt: skip
    read = roles(model, tokens())
    assert parts(read, "q.weight") == {"query", "input"}
    assert parts(read, "k.weight") == {"key", "input"}
    assert read["qn"].feeds == ("norm",)


def test_mixed_heads_do_not_hide_an_attention():
    def forward(m, x):
        scores = split(m.q(x)) @ split(m.k(x)).transpose(-1, -2)
        chances = m.before(scores.permute(0, 2, 3, 1)).softmax(2)
        chances = m.after(chances).permute(0, 3, 1, 2)
        return m.head(x + m.o(joined(chances @ split(m.v(x)))))

    model = Of(
        forward, q=nn.Linear(D, D), k=nn.Linear(D, D), v=nn.Linear(D, D), o=nn.Linear(D, D),
        before=nn.Linear(H, H), after=nn.Linear(H, H), head=nn.Linear(D, 2),
    )  # fmt: skip
    read = roles(model, tokens())
    assert parts(read, "v.weight") == {"value", "input"}
    assert parts(read, "q.weight") == {"query", "input"}
    assert parts(read, "o.weight") == {"attention output"}


def test_learned_queries_are_tokens_and_their_norm_has_a_scale():
    def forward(m, x):
        latents = m.norm(m.latents).expand(B, -1, -1)
        latents = latents + m.attend(latents, x, x, need_weights=False)[0]
        return m.head(latents.mean(1))

    model = Of(
        forward,
        latents=weight(4, D),
        norm=nn.LayerNorm(D),
        attend=nn.MultiheadAttention(D, H, batch_first=True),
        head=nn.Linear(D, 2),
    )
    read = roles(model, tokens())
    assert read["latents"].kind == "token"
    assert (read["norm.weight"].kind, read["norm.bias"].kind) == ("scale", "bias")
    assert parts(read, "attend.in_proj_weight") >= {"query", "key", "value"}
    assert ends(read) == {"attend.out_proj.weight": (1, 1)}


def test_a_token_in_front_and_a_table_of_places():
    def forward(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1) + m.place
        x = x + m.b(F.gelu(m.a(m.n(x))))
        return m.head(x[:, 0])

    model = Of(
        forward, patch=nn.Conv2d(D, D, 4, stride=4), cls=weight(1, 1, D), place=weight(1, 5, D),
        n=nn.LayerNorm(D), a=nn.Linear(D, 16), b=nn.Linear(16, D), head=nn.Linear(D, 3),
    )  # fmt: skip
    read = roles(model, pictures())
    assert (read["cls"].kind, read["place"].kind) == ("token", "position")
    assert ends(read) == {"b.weight": (1, 1)}


def test_a_weight_used_in_every_layer_ends_every_branch():
    def forward(m, x):
        for _ in range(4):
            x = x + m.b(F.gelu(m.a(m.n(x))))
        return m.head(x)

    read = roles(
        Of(forward, n=nn.LayerNorm(D), a=nn.Linear(D, 16), b=nn.Linear(16, D), head=nn.Linear(D, 2)), tokens()
    )
    assert read.streams.number == [4]
    assert ends(read) == {"b.weight": (1, 4)}
    assert len(read["b.weight"].uses) == 4


def test_tokens_are_mixed_by_transposed_layers():
    def forward(m, x):
        for n1, a, b, n2, c, d in m.blocks:
            x = x + b(F.gelu(a(n1(x).transpose(1, 2)))).transpose(1, 2)
            x = x + d(F.gelu(c(n2(x))))
        return m.head(x.mean(1))

    def block():
        return nn.ModuleList(
            [
                nn.LayerNorm(D),
                nn.Linear(T, 16),
                nn.Linear(16, T),
                nn.LayerNorm(D),
                nn.Linear(D, 16),
                nn.Linear(16, D),
            ]
        )

    read = roles(Of(forward, blocks=blocks(block), head=nn.Linear(D, 2)), tokens())
    assert ends(read)["blocks.1.2.weight"] == (3, 4)
    assert read["blocks.0.1.weight"].fans.forward == T


def test_conditions_that_shift_and_scale_are_no_streams():
    def forward(m, x, c):
        for n, up, down, condition in m.blocks:
            shift, scale, gate = condition(F.silu(c))[:, None].chunk(3, -1)
            x = x + gate * down(F.gelu(up(n(x) * (1 + scale) + shift)))
        return m.head(x)

    def block():
        return nn.ModuleList(
            [
                nn.LayerNorm(D, elementwise_affine=False),
                nn.Linear(D, 16),
                nn.Linear(16, D),
                nn.Linear(4, 3 * D),
            ]
        )

    read = roles(Of(forward, blocks=blocks(block), head=nn.Linear(D, 2)), tokens(), torch.randn(B, 4))
    assert read.streams.number == [2]
    assert ends(read) == {"blocks.0.2.weight": (1, 2), "blocks.1.2.weight": (2, 2)}


def test_a_norm_behind_each_branch_ends_it():
    def forward(m, x):
        for up, down, w in m.blocks:
            x = x + rms(down(F.gelu(up(x))), w.w)
        return m.head(x)

    def block():
        return nn.ModuleList([nn.Linear(D, 16), nn.Linear(16, D), Of(None, w=weight(D))])

    read = roles(Of(forward, blocks=blocks(block), head=nn.Linear(D, 2)), tokens())
    assert ends(read) == {"blocks.0.2.w": (1, 2), "blocks.1.2.w": (2, 2)}


def test_a_norm_by_hand_that_takes_the_mean_off_twice_and_an_affine_map_in_one_operation():
    def forward(m, x):
        mean = x.mean(-1, keepdim=True)
        h = m.w * ((x - mean) * torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5))
        h = torch.addcmul(m.beta, m.alpha, h)
        return m.head(x + m.b(F.gelu(m.a(h))))

    model = Of(
        forward, w=weight(D), beta=weight(D), alpha=weight(D), a=nn.Linear(D, 16), b=nn.Linear(16, D),
        head=nn.Linear(D, 2),
    )  # fmt: skip
    read = roles(model, tokens())
    assert (read["w"].kind, read["w"].feeds) == ("scale", ("norm",))
    assert (read["alpha"].kind, read["beta"].kind) == ("scale", "bias")
    assert ends(read) == {"b.weight": (1, 1)}
