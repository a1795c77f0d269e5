"""Every kind of network whose roles are read: nothing here has a name that says what it is."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import B, D, Of, T, ends, kinds, parts, roles, tokens, vectors, weight
from torch import Tensor, nn

from isometry.flow.roles import Role
from isometry.flow.tracing import study


def ended(role: Role) -> tuple[int, int] | None:
    return None if role.ends is None else (role.ends.order, role.ends.number)


def pictures(channels: int = D) -> Tensor:
    return torch.randn(2, channels, 8, 8)


# --- feed-forward -------------------------------------------------------------------------------------------


def test_a_network_of_bare_tensors_has_weights_biases_and_a_head():
    def forward(m, x):
        x = torch.tanh(x @ m.a + m.b)
        return F.linear(x, m.c)

    read = roles(Of(forward, a=weight(D, 12), b=weight(12), c=weight(4, 12)), vectors())
    assert kinds(read) == {"a": "weight", "b": "bias", "c": "weight"}
    assert read["a"].feeds[0] == "tanh"
    assert (read["a"].fans.forward, read["a"].fans.backward) == (D, 12)
    assert (read["c"].fans.forward, read["c"].fans.backward) == (12, 4)
    assert parts(read, "a") == {"input"}
    assert parts(read, "c") == {"head"}


@pytest.mark.parametrize(
    "bend",
    [
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x * (x > 0),
        lambda x: x * (x > 0).float(),
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: x * x * torch.sign(x),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: torch.maximum(x, torch.tensor(-0.5)),
        lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    ],
)
def test_activations_written_by_hand_are_no_linear_maps(bend):
    from isometry.flow.cones import replayed

    model = Of(lambda m, x: m.b(bend(m.a(x))), a=nn.Linear(D, D), b=nn.Linear(D, 2))
    read = roles(model, vectors())
    use = read["a.weight"].uses[0]
    assert use.cone is not None
    assert use.cone.nonlinear
    (end,) = {exit_.last for exit_ in use.cone.exits}
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(replayed(read.flow, use.node, read.flow.nodes[end])(x), bend(x))


def test_a_gate_of_the_whole_squeezed_picture_is_told_from_what_it_gates():
    def forward(m, x):
        h = m.norm(m.up(x)).relu()
        h = h * torch.sigmoid(m.grow(m.squeeze(h.mean((2, 3), keepdim=True)).relu()))
        return x + m.down(h)

    model = Of(
        forward,
        up=nn.Conv2d(D, 16, 1),
        norm=nn.BatchNorm2d(16),
        squeeze=nn.Conv2d(16, 4, 1),
        grow=nn.Conv2d(4, 16, 1),
        down=nn.Conv2d(16, D, 1),
    )
    read = roles(model, pictures())
    assert parts(read, "grow.weight") == {"gate"}
    assert ends(read) == {"down.weight": (1, 1)}


def test_squeezing_at_the_end_of_a_branch_leaves_the_end_where_it_was():
    def forward(m, x):
        h = m.up(x)
        return x + h * torch.sigmoid(m.grow(torch.relu(m.squeeze(h.mean((2, 3), keepdim=True)))))

    model = Of(forward, up=nn.Conv2d(D, D, 3, padding=1), squeeze=nn.Conv2d(D, 4, 1), grow=nn.Conv2d(4, D, 1))
    read = roles(model, pictures())
    assert ends(read) == {"up.weight": (1, 1)}
    assert parts(read, "up.weight") == {"gated", "input"}
    assert parts(read, "grow.weight") == {"gate"}


@pytest.mark.parametrize("fused", [False, True])
def test_gated_units(fused):
    if fused:

        def forward(m, x):
            a, b = m.up(x).chunk(2, -1)
            return m.down(F.silu(a) * b)

        read = roles(Of(forward, up=nn.Linear(D, 32), down=nn.Linear(16, D)), vectors())
        assert parts(read, "up.weight") == {"gate", "gated", "input"}
    else:
        read = roles(
            Of(
                lambda m, x: m.down(F.gelu(m.a(x)) * m.b(x)),
                a=nn.Linear(D, 16),
                b=nn.Linear(D, 16),
                down=nn.Linear(16, D),
            ),
            vectors(),
        )
        assert parts(read, "a.weight") == {"gate", "input"}
        assert parts(read, "b.weight") == {"gated", "input"}
    assert parts(read, "down.weight") == {"head"}


def test_a_classifier_that_returns_chances_has_a_head_and_no_router():
    read = roles(Of(lambda m, x: m.a(x).softmax(-1), a=nn.Linear(D, 4)), vectors())
    assert "head" in parts(read, "a.weight")
    read = roles(
        Of(lambda m, x, y: F.cross_entropy(m.a(x), y), a=nn.Linear(D, 4)),
        vectors(),
        torch.zeros(B, dtype=torch.int64),
    )
    assert "head" in parts(read, "a.weight")


def test_features_that_are_returned_on_the_way_are_no_head():
    def forward(m, x):
        hidden = torch.relu(m.a(x))
        return {"hidden": hidden, "logits": m.b(hidden)}

    read = roles(Of(forward, a=nn.Linear(D, D), b=nn.Linear(D, 3)), vectors())
    assert "head" not in parts(read, "a.weight")
    assert "head" in parts(read, "b.weight")


def test_what_no_signal_meets_is_unused():
    model = Of(lambda m, x: m.a(x), a=nn.Linear(D, 3), b=nn.Linear(D, 3))
    assert kinds(roles(model, vectors()))["b.weight"] == "unused"


def test_a_bilinear_map_and_a_bag_of_rows():
    read = roles(Of(lambda m, x, y: m.a(x, y), a=nn.Bilinear(D, 6, 4)), vectors(), torch.randn(B, 6))
    assert kinds(read)["a.weight"] == "weight"
    read = roles(
        Of(lambda m, ids: m.b(m.a(ids)), a=nn.EmbeddingBag(20, D), b=nn.Linear(D, 3)),
        torch.randint(20, (B, T)),
    )
    assert kinds(read) == {"a.weight": "embedding", "b.weight": "weight", "b.bias": "bias"}


def test_rows_taken_by_indexing_are_an_embedding_and_a_table_by_constants_is_none():
    def forward(m, ids):
        return m.head(torch.relu(m.table[ids] + m.place[torch.arange(ids.shape[1])]))

    read = roles(
        Of(forward, table=weight(20, D), place=weight(9, D), head=nn.Linear(D, 3)), torch.randint(20, (B, T))
    )
    assert kinds(read)["table"] == "embedding"
    assert kinds(read)["place"] == "position"


def test_rows_that_numbers_multiply_are_a_table_and_no_scale():
    def forward(m, x):
        tokens = x[..., None] * m.rows + m.place
        return m.head(torch.relu(tokens * m.scale).mean(1)) + (x[..., None] * m.ones).sum(1)

    read = roles(
        Of(
            forward,
            rows=weight(T, D),
            place=weight(T, D),
            scale=weight(D),
            ones=nn.Parameter(torch.ones(3)),
            head=nn.Linear(D, 3),
        ),
        torch.randn(B, T),
    )
    assert kinds(read) == {
        "rows": "embedding",
        "place": "position",
        "scale": "scale",
        "ones": "scale",
        "head.weight": "weight",
        "head.bias": "bias",
    }


def test_a_contraction_written_out_has_no_scale():
    def forward(m, x):
        by_rows = (x[:, :, None, :] * m.matrix).sum(-1)  # as x @ matrix.T
        shares = (torch.tanh(by_rows) * m.vector).sum(-1, keepdim=True).softmax(1)
        return (m.scale * by_rows).sum(1) * shares.sum(1)

    read = roles(
        Of(forward, matrix=weight(D, D), vector=weight(D), scale=nn.Parameter(torch.ones(D))), tokens()
    )
    assert kinds(read) == {"matrix": "other", "vector": "other", "scale": "scale"}


# --- parametrised weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda m: nn.utils.parametrizations.orthogonal(m, orthogonal_map="cayley"),
    ],
)
def test_a_parametrised_weight_is_one_weight(wrap):
    model = nn.Sequential(wrap(nn.Linear(D, D)), nn.ReLU(), wrap(nn.Linear(D, 4)))
    read = roles(model, vectors())
    assert kinds(read) == {"0.weight": "weight", "0.bias": "bias", "2.weight": "weight", "2.bias": "bias"}
    assert read["0.weight"].feeds[0] == "relu"
    assert parts(read, "2.weight") == {"head"}


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_a_weight_computed_in_a_hook_is_a_weight(wrap):
    read = roles(nn.Sequential(nn.Tanh(), wrap(nn.Linear(D, 4))), vectors())
    whole = {"1.weight_v", "1.weight_orig"} & set(read.by_name)
    assert kinds(read)[whole.pop()] == "weight" if whole else kinds(read)["1.weight"] == "weight"


def test_a_low_rank_update_of_a_weight_is_no_weight_of_its_own():
    def forward(m, x):
        return m.o(torch.relu(F.linear(x, m.w + m.b @ m.a)))

    read = roles(Of(forward, w=weight(D, D), a=weight(2, D), b=weight(D, 2), o=nn.Linear(D, 3)), vectors())
    assert kinds(read) == {"w": "weight", "a": "other", "b": "other", "o.weight": "weight", "o.bias": "bias"}


def test_a_low_rank_path_beside_a_weight_is_parallel_and_no_branch():
    model = Of(
        lambda m, x: m.o(torch.relu(m.w(x) + m.b(m.a(x)))),
        w=nn.Linear(D, D),
        a=nn.Linear(D, 2),
        b=nn.Linear(2, D),
        o=nn.Linear(D, 3),
    )
    assert not roles(model, vectors()).streams.residuals


# --- other shapes of models ---------------------------------------------------------------------------------


def test_the_fourier_transform_mixes_without_weights():
    def forward(m, x):
        for up, down, a, b in m.blocks:
            x = a(x + torch.fft.fft2(x).real)
            x = b(x + down(torch.relu(up(x))))
        return m.o(x)

    blocks = nn.ModuleList(
        nn.ModuleList([nn.Linear(D, 16), nn.Linear(16, D), nn.LayerNorm(D), nn.LayerNorm(D)])
        for _ in range(2)
    )
    read = roles(Of(forward, blocks=blocks, o=nn.Linear(D, 2)), tokens())
    assert ends(read)["blocks.1.1.weight"] is not None
    assert kinds(read)["blocks.0.2.weight"] == "scale"


def test_frequencies_are_followed_and_their_factor_is_no_scale():
    def forward(m, x):
        for layer in m.layers:
            x = torch.sin(30.0 * layer(x))
        return m.o(x)

    read = roles(
        Of(forward, layers=nn.ModuleList(nn.Linear(D, D) for _ in range(3)), o=nn.Linear(D, 1)), vectors()
    )
    assert read["layers.1.weight"].feeds[0] == "sin"
    assert parts(read, "layers.0.weight") == {"input"}


def test_a_selective_scan():
    def forward(m, x):
        h, z = m.into(x).chunk(2, -1)
        h = F.silu(m.conv(h.transpose(1, 2))[..., :T].transpose(1, 2))
        dt, b, c = m.select(h).split([2, 4, 4], -1)
        dt = F.softplus(m.dt(dt))
        a = -torch.exp(m.a_log)
        state, out = torch.zeros(B, 16, 4), []
        for t in range(T):
            state = (
                torch.exp(dt[:, t, :, None] * a) * state
                + dt[:, t, :, None] * b[:, t, None] * h[:, t, :, None]
            )
            out.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(out, 1) + h * m.d
        return m.head(x + m.out(y * F.silu(z)))

    model = Of(
        forward,
        into=nn.Linear(D, 32),
        conv=nn.Conv1d(16, 16, 4, groups=16, padding=3),
        select=nn.Linear(16, 10),
        dt=nn.Linear(2, 16),
        a_log=weight(16, 4),
        d=weight(16),
        out=nn.Linear(16, D),
        head=nn.Linear(D, 3),
    )
    read = roles(model, tokens())
    assert kinds(read) == {
        "a_log": "other",
        "d": "scale",
        **{f"{n}.weight": "weight" for n in ("into", "conv", "select", "dt", "out", "head")},
        **{f"{n}.bias": "bias" for n in ("into", "conv", "select", "dt", "out", "head")},
    }
    assert read["conv.weight"].fans.forward == 4
    assert ends(read) == {"out.weight": (1, 1)}
    assert read["dt.weight"].feeds[0] == "softplus"
    assert parts(read, "head.weight") == {"head"}


def test_the_real_carrier_gives_the_same_roles():
    def forward(m, x):
        total = m.c(x).sum()
        if m.ask and float(total) > 1e9:
            raise AssertionError
        return m.b(x + m.a(torch.relu(x)))

    def described(ask):
        found = study(
            Of(forward, ask=ask, a=nn.Linear(D, D), b=nn.Linear(D, 3), c=nn.Linear(D, 2)), vectors()
        )
        return found.stage.kind, [
            (r.name, r.kind, r.parts, r.feeds, ended(r)) for r in found.roles.by_name.values()
        ]

    (kind, on_real), (other, on_meta) = described(True), described(False)
    assert (kind, other) == ("real", "meta")
    assert on_real == on_meta


def test_several_inputs_and_a_record_as_output():
    from dataclasses import dataclass

    @dataclass
    class Out:
        logits: Tensor

    model = Of(
        lambda m, x, y: Out(m.o(torch.relu(m.a(x) + m.b(y)))),
        a=nn.Linear(D, D),
        b=nn.Linear(4, D),
        o=nn.Linear(D, 3),
    )
    read = roles(model, vectors(), torch.randn(B, 4))
    assert parts(read, "a.weight") == parts(read, "b.weight") == {"input"}
    assert not read.streams.residuals
    assert parts(read, "o.weight") == {"head"}


def test_parts_written_into_an_empty_tensor_are_followed():
    def forward(m, x):
        y = torch.empty(x.shape[0], T + 1, D)
        y[:, 0] = m.cls
        y[:, 1:] = m.a(x)
        return m.o(torch.relu(m.b(y)))

    read = roles(
        Of(forward, cls=weight(D), a=nn.Linear(D, D), b=nn.Linear(D, D), o=nn.Linear(D, 3)), tokens()
    )
    assert kinds(read)["cls"] == "token"
    assert kinds(read)["b.weight"] == "weight"
    assert "head" not in parts(read, "a.weight")


def test_a_mask_computed_from_the_ids_is_no_signal():
    def forward(m, ids):
        mask = (ids != 0).float()
        x = m.e(ids) * mask[..., None]
        return m.o((x + m.a(torch.relu(x))).mean(1))

    read = roles(
        Of(forward, e=nn.Embedding(9, D), a=nn.Linear(D, D), o=nn.Linear(D, 3)), torch.randint(9, (B, T))
    )
    assert ends(read) == {"a.weight": (1, 1)}


def test_one_row_hot_vectors_are_a_signal_of_the_weight_they_choose_from():
    read = roles(
        Of(
            lambda m, ids: m.o(torch.relu(F.one_hot(ids, 9).float() @ m.w)), w=weight(9, D), o=nn.Linear(D, 2)
        ),
        torch.randint(9, (B,)),
    )
    assert kinds(read)["w"] == "weight"
    assert parts(read, "o.weight") == {"head"}
