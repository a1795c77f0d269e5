"""What each parameter of torch's modules is for."""

import pytest
from torch import nn

from isometry.roles import role_of

EXPECTED: list[tuple[nn.Module, dict[str, str]]] = [
    (nn.Linear(2, 3), {"weight": "weight", "bias": "bias"}),
    (nn.Bilinear(2, 3, 4), {"weight": "weight", "bias": "bias"}),
    (nn.Conv2d(2, 3, 1), {"weight": "weight", "bias": "bias"}),
    (nn.ConvTranspose1d(2, 3, 1), {"weight": "weight", "bias": "bias"}),
    (nn.Embedding(2, 3), {"weight": "embedding"}),
    (nn.EmbeddingBag(2, 3), {"weight": "embedding"}),
    (nn.LayerNorm(3), {"weight": "scale", "bias": "bias"}),
    (nn.RMSNorm(3), {"weight": "scale"}),
    (nn.GroupNorm(1, 3), {"weight": "scale", "bias": "bias"}),
    (nn.BatchNorm1d(3), {"weight": "scale", "bias": "bias"}),
    (nn.InstanceNorm2d(3, affine=True), {"weight": "scale", "bias": "bias"}),
    (nn.PReLU(), {"weight": "slope"}),
    (
        nn.LSTM(2, 3, proj_size=1),
        {
            "weight_ih_l0": "weight",
            "weight_hh_l0": "weight",
            "weight_hr_l0": "weight",
            "bias_ih_l0": "bias",
            "bias_hh_l0": "bias",
        },
    ),
    (
        nn.GRUCell(2, 3),
        {"weight_ih": "weight", "weight_hh": "weight", "bias_ih": "bias", "bias_hh": "bias"},
    ),
    (
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {"in_proj_weight": "weight", "in_proj_bias": "bias", "bias_k": "bias", "bias_v": "bias"},
    ),
    (
        nn.MultiheadAttention(4, 2, kdim=3, bias=False),
        {"q_proj_weight": "weight", "k_proj_weight": "weight", "v_proj_weight": "weight"},
    ),
]


@pytest.mark.parametrize(("module", "roles"), EXPECTED, ids=lambda value: type(value).__name__)
def test_every_parameter_of_a_known_module_has_its_role(module: nn.Module, roles: dict[str, str]) -> None:
    own = [name for name, _ in module.named_parameters(recurse=False)]
    assert {name: role_of(module, name) for name in own} == roles


def test_unknown_parameters_have_no_role() -> None:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(nn.Linear(2, 3).weight.detach()))
    assert role_of(module, "weight") is None
    linear = nn.Linear(2, 3)
    linear.register_parameter("scale", nn.Parameter(linear.bias.detach().clone()))
    assert role_of(linear, "scale") is None
