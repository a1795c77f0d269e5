"""Mimetic attention: the products of the weights drawn are what the paper asks for."""

import pytest
import torch
from networks import TOKENS, Language
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.planning import init_, plan


def _encoder(d, heads, layers=1):
    layer = nn.TransformerEncoderLayer(d, heads, 2 * d, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _products(query, key, value, out, heads):
    d = query.shape[1]
    k = d // heads
    scores = [query[h * k : (h + 1) * k].T @ key[h * k : (h + 1) * k] for h in range(heads)]
    return scores, value.T @ out.T


def test_products_of_torch_attention_are_multiples_of_the_identity_without_noise():
    d, heads = 12, 1
    model = _encoder(d, heads)
    init_(model, torch.randn(2, 5, d), recipe="mimetic", query_key=(0.0, 0.7), value_out=(0.0, 0.4))
    attention = model.layers[0].self_attn
    with torch.no_grad():
        scores, taken = _products(*attention.in_proj_weight.split(d), attention.out_proj.weight, heads)
    assert torch.allclose(scores[0], 0.7 * torch.eye(d), atol=1e-5)
    assert torch.allclose(taken, -0.4 * torch.eye(d), atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_noise_has_the_size_asked_for_and_heads_have_their_own(interleaved):
    d, heads = 64, 4
    model = Language(d=d, heads=heads, layers=1, interleaved=interleaved)
    init_(model, TOKENS, recipe="mimetic", seed=3)
    block = model.y[0]
    with torch.no_grad():
        fused = block.p.T  # (3d, d)
        if interleaved:
            fused = fused.view(heads, 3, d // heads, d).transpose(0, 1).reshape(3 * d, d)
        scores, taken = _products(*fused.split(d), block.q.T, heads)
    noise = taken + 0.4 * torch.eye(d)
    # α²/d per entry, from d² = 4096 entries: relative error 1/√(2·4096) = 1.1 %
    assert float(noise.std()) == pytest.approx(0.4 * d**-0.5, rel=0.06)
    for head in scores:
        assert float(torch.linalg.matrix_rank(head)) == d // heads
        # the leading quarter of the singular values of 0.7·(Z + 1) holds more than a quarter of its trace
        assert float(head.trace()) > 0.7 * d / heads
    assert not torch.allclose(scores[0], scores[1], atol=0.1)


def test_separate_weights_share_their_draw():
    class Apart(nn.Module):
        def __init__(self, d=10):
            super().__init__()
            self.a, self.b, self.c, self.e = (nn.Linear(d, d, bias=False) for _ in range(4))

        def forward(self, x):
            q, k, v = self.a(x), self.b(x), self.c(x)
            return x + self.e((q @ k.mT / 10**0.5).softmax(-1) @ v)

    model = Apart()
    init_(model, torch.randn(2, 5, 10), recipe="mimetic", query_key=(0.3, 0.7), seed=2)
    with torch.no_grad():
        product = model.a.weight.T @ model.b.weight
        assert float((product - 0.7 * torch.eye(10)).std()) == pytest.approx(0.3 * 10**-0.5, rel=0.3)
        assert float((model.c.weight.T @ model.e.weight.T).trace()) < -2


def test_other_weights_are_glorots_and_bad_options_are_refused():
    made = plan(_encoder(8, 2), torch.randn(2, 5, 8), recipe="mimetic")
    assert made["layers.0.linear1.weight"].law.std == pytest.approx((2 / (8 + 16)) ** 0.5)
    with pytest.raises(InvalidValueError, match="pair"):
        plan(_encoder(8, 2), torch.randn(2, 5, 8), recipe="mimetic", query_key=0.7)
    with pytest.raises(InvalidTypeError, match="value_out"):
        plan(_encoder(8, 2), torch.randn(2, 5, 8), recipe="mimetic", value_out=("a", 1))


def test_keys_of_fewer_heads_keep_glorots_with_a_note():
    class Shared(nn.Module):
        def __init__(self, d=8):
            super().__init__()
            self.q, self.k, self.v, self.o = (
                nn.Linear(d, d),
                nn.Linear(d, 4),
                nn.Linear(d, 4),
                nn.Linear(d, d),
            )

        def forward(self, x):
            n, t, d = x.shape
            q = self.q(x).view(n, t, 2, 4).transpose(1, 2)
            k, v = self.k(x).unsqueeze(1).expand(n, 2, t, 4), self.v(x).unsqueeze(1).expand(n, 2, t, 4)
            return x + self.o(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))

    made = plan(Shared(), torch.randn(2, 5, 8), recipe="mimetic")
    assert made["q.weight"].reason == made["k.weight"].reason == made["v.weight"].reason == "Glorot"
    assert any("differ in heads" in note for note in made.notes)
    assert any("v.weight: values are not as wide" in note for note in made.notes)
