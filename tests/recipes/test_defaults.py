"""The recipe "torch" against what torch's constructors draw."""

import pytest
import torch
from scipy import stats
from torch import nn

from isometry.planning import plan
from isometry.sampling import Constant, Normal, Uniform

TOKENS = torch.randint(7, (2, 5))
CASES = {
    "linear": (lambda: nn.Linear(60, 50), torch.randn(2, 60)),
    "conv": (lambda: nn.Conv2d(6, 40, (3, 5), groups=2, stride=2), torch.randn(2, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose1d(20, 36, 4, groups=2), torch.randn(2, 20, 9)),
    "bilinear": (lambda: Pair(nn.Bilinear(11, 13, 15)), torch.randn(2, 24)),
    "lstm": (lambda: nn.LSTM(20, 24, proj_size=10, num_layers=2), torch.randn(3, 2, 20)),
    "gru cell": (lambda: nn.GRUCell(20, 24), torch.randn(2, 20)),
    "embedding": (lambda: nn.Embedding(70, 30, padding_idx=0), torch.randint(1, 7, (2, 5))),
    "bag": (lambda: nn.EmbeddingBag(70, 30), TOKENS),
    "attention": (lambda: Self(nn.MultiheadAttention(24, 2, add_bias_kv=True)), torch.randn(5, 2, 24)),
    "other keys": (lambda: Self(nn.MultiheadAttention(24, 2, kdim=24, vdim=30)), torch.randn(5, 2, 30)),
    "transformer": (lambda: Both(nn.Transformer(16, 2, 1, 1, 40)), torch.randn(5, 2, 16)),
    "norms": (lambda: nn.Sequential(nn.BatchNorm1d(12), nn.LayerNorm(12), nn.GroupNorm(3, 12),
                                     nn.RMSNorm(12)),
              torch.randn(4, 12)),
    "prelu": (lambda: nn.Sequential(nn.Linear(30, 30), nn.PReLU(30, init=0.1)), torch.randn(4, 30)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(60, 50)), torch.randn(2, 60)),
}  # fmt: skip


class Pair(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x[:, :11], x[:, 11:])


class Self(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        q = x[..., :24]
        return self.inner(q, q, x, need_weights=False)[0]


class Both(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x)


def _value(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf).detach()


@pytest.mark.filterwarnings("ignore:.*batch_first.*", "ignore:dropout option")
@pytest.mark.parametrize("case", CASES)
def test_the_laws_are_those_of_the_constructors(case):
    build, x = CASES[case]
    found = plan(build(), x, recipe="torch")
    assert not any(c.marks for c in found if "unused" not in c.marks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = [build() for _ in range(12)]
    for choice in found:
        name = choice.name
        values = torch.stack([_value(m, name) for m in built])
        if case == "embedding":
            values = values[:, 1:]  # the row of padding
        flat = values.flatten().double().numpy()
        law = choice.law
        if isinstance(law, Constant):
            assert (flat == torch.tensor(law.value).item()).all(), name
        elif isinstance(law, Uniform):
            width = law.high - law.low
            assert flat.min() >= law.low - 1e-7, name
            assert flat.max() <= law.high + 1e-7, name
            assert stats.kstest(flat, stats.uniform(law.low, width).cdf).pvalue > 1e-4, name
        else:
            assert isinstance(law, Normal), name
            assert stats.kstest(flat, stats.norm(law.mean, law.std).cdf).pvalue > 1e-4, name


def test_a_module_with_its_own_way_and_a_bare_parameter_are_kept():
    class Own(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.weight)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.w = Own(4, 5, bias=False), nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return self.own(x) @ self.w

    found = plan(Bare(), torch.randn(2, 4), recipe="torch")
    assert {(c.name, c.law, c.marks) for c in found} == {
        ("own.weight", None, ("kept",)),
        ("w", None, ("kept",)),
    }
