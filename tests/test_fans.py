"""Fans against simulation through the real, non-square modules."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import InvalidValueError
from isometry.fans import Fans, fans

REPEATS = 60
SIGMAS = 5  # a false alarm once in a million runs, were the seeds not fixed


def within_sampling_error(values: list[float], expected: float = 1.0) -> bool:
    sample = torch.tensor(values, dtype=torch.float64)
    error = float(sample.std()) / math.sqrt(len(sample))
    assert error < 0.1 * expected, "the simulation is too small to tell anything"
    return abs(float(sample.mean()) - expected) < SIGMAS * error


@dataclass(frozen=True)
class Case:
    """A module, how it is run, and the region of positions that no border touches."""

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
    name: str = "weight"
    out: tuple[slice, ...] = ()
    inp: tuple[slice, ...] = ()
    expected: tuple[float, float] | None = None
    axes: tuple[tuple[str, int], ...] = ()


def fans_of(case: Case, module: nn.Module) -> Fans:
    return fans(module, case.name, **dict(case.axes))


def unit_gain_(module: nn.Module, name: str, fan: float) -> None:
    for parameter in module.parameters():
        parameter.data.zero_()
    getattr(module, name).data.normal_(0, 1 / math.sqrt(fan))


def crop(tensor: Tensor, region: tuple[slice, ...]) -> Tensor:
    return tensor[(..., *region)]


def simulate(case: Case) -> tuple[list[float], list[float]]:
    module = case.build().double()
    known = fans_of(case, module)
    forward, backward = [], []
    for _ in range(REPEATS):
        x = torch.randn(case.inputs, dtype=torch.float64, requires_grad=True)
        unit_gain_(module, case.name, known.forward)
        forward.append(float(crop(case.call(module, x), case.out).detach().square().mean()))
        unit_gain_(module, case.name, known.backward)
        y = case.call(module, x)
        (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
        backward.append(float(crop(gradient, case.inp).square().mean()))
    return forward, backward


class Experts(nn.Module):
    """Expert e maps I inputs to O outputs with w[e] of shape (I, O)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 24, 10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bei,eio->beo", x, self.w)


class Conv1D(nn.Module):
    """The layout of the transformers library's Conv1D."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def one_hot(module: nn.Module, x: Tensor) -> Tensor:
    """Read rows, and let x be the one-hot input that picks them, so that there is a gradient to see."""
    rows = torch.arange(x.shape[0]) % module.num_embeddings
    return module(rows) + (x - x.detach()) @ module.weight


def attention_projection(which: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """Fused queries, keys or values as nn.MultiheadAttention computes them."""

    def call(module: nn.Module, x: Tensor) -> Tensor:
        block = module.in_proj_weight.chunk(3)[which]
        return nn.functional.linear(x, block)

    return call


def attention_value(module: nn.Module, x: Tensor) -> Tensor:
    """The whole module on one key: the attention weight is 1, so the output is the value projection."""
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(module.embed_dim))
    query = torch.zeros(x.shape[0], 1, module.embed_dim, dtype=x.dtype)
    key = torch.zeros(x.shape[0], 1, module.kdim, dtype=x.dtype)
    return module(query, key, x[:, None], need_weights=False)[0][:, 0]


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(40, 12), (64, 40), expected=(40, 12)),
    "conv1d": Case(
        lambda: nn.Conv1d(8, 6, 5, bias=False), (8, 8, 40), inp=(slice(4, -4),), expected=(40, 30)
    ),
    "conv2d groups stride": Case(
        lambda: nn.Conv2d(12, 20, 3, stride=2, groups=4),
        (4, 12, 21, 21),
        inp=(slice(2, -3), slice(2, -3)),
        expected=(27, 11.25),
    ),
    "conv2d dilated padded circular": Case(
        lambda: nn.Conv2d(6, 10, (3, 5), dilation=(2, 1), padding=(2, 2), padding_mode="circular"),
        (4, 6, 12, 12),
        expected=(90, 150),
    ),
    "conv2d depthwise": Case(
        lambda: nn.Conv2d(16, 32, 3, groups=16, padding=1, padding_mode="circular"),
        (8, 16, 10, 10),
        expected=(9, 18),
    ),
    "conv3d stride": Case(
        lambda: nn.Conv3d(4, 10, 3, stride=(1, 2, 3)),
        (2, 4, 10, 13, 15),
        inp=(slice(2, -2), slice(2, -3), slice(3, -3)),
        expected=(108, 45),
    ),
    "conv transposed 1d k3 s2": Case(
        lambda: nn.ConvTranspose1d(12, 7, 3, stride=2), (16, 12, 30), out=(slice(2, 50),), expected=(18, 21)
    ),
    "conv transposed 2d k3 s1 groups": Case(
        lambda: nn.ConvTranspose2d(12, 20, 3, groups=4),
        (4, 12, 12, 12),
        out=(slice(2, -2), slice(2, -2)),
        expected=(27, 45),
    ),
    "conv transposed 2d k5 s3 groups": Case(
        lambda: nn.ConvTranspose2d(12, 8, 5, stride=3, groups=2),
        (4, 12, 9, 9),
        out=(slice(5, 23), slice(5, 23)),
        expected=(6 * 25 / 9, 100),
    ),
    "conv transposed 2d k4 s2": Case(
        lambda: nn.ConvTranspose2d(12, 5, 4, stride=2),
        (4, 12, 9, 9),
        out=(slice(4, 14), slice(4, 14)),
        expected=(48, 80),
    ),
    "conv transposed 3d s2": Case(
        lambda: nn.ConvTranspose3d(10, 3, 3, stride=2),
        (2, 10, 6, 6, 6),
        out=(slice(2, 10),) * 3,
        expected=(33.75, 81),
    ),
    "embedding": Case(lambda: nn.Embedding(30, 12), (300, 30), call=one_hot, expected=(1, 12)),
    "rnn input": Case(
        lambda: nn.RNN(24, 10, nonlinearity="relu", batch_first=True),
        (64, 1, 24),
        call=lambda module, x: module(x)[0] - module(-x)[0],
        name="weight_ih_l0",
        expected=(24, 10),
    ),
    "attention fused q": Case(
        lambda: nn.MultiheadAttention(24, 4),
        (64, 24),
        attention_projection(0),
        "in_proj_weight",
        expected=(24, 24),
    ),
    "attention fused k": Case(
        lambda: nn.MultiheadAttention(24, 4), (64, 24), attention_projection(1), "in_proj_weight"
    ),
    "attention value, whole module": Case(
        lambda: nn.MultiheadAttention(24, 4, batch_first=True), (64, 24), attention_value, "in_proj_weight"
    ),
    "attention split v": Case(
        lambda: nn.MultiheadAttention(24, 4, kdim=10, vdim=36, batch_first=True),
        (64, 36),
        attention_value,
        "v_proj_weight",
        expected=(36, 24),
    ),
    "experts by axes": Case(
        Experts,
        (32, 4, 24),
        name="w",
        axes=(("in_axis", 1), ("out_axis", 2), ("batch_axis", 0)),
        expected=(24, 10),
    ),
    "conv1d of transformers": Case(lambda: Conv1D(10, 32), (64, 32), expected=(32, 10)),
    "weight norm": Case(
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), (64, 2), expected=(2, 3)
    ),
}


@pytest.mark.parametrize("key", [key for key in CASES if key != "weight norm"])
def test_unit_gain_keeps_the_second_moment(key: str) -> None:
    torch.manual_seed(0)
    forward, backward = simulate(CASES[key])
    assert within_sampling_error(forward)
    assert within_sampling_error(backward)


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case.expected])
def test_closed_form(key: str) -> None:
    case = CASES[key]
    known = fans_of(case, case.build())
    assert (known.forward, known.backward) == pytest.approx(case.expected)


def test_bilinear_by_simulation() -> None:
    """The backward fan is the mean over the gradients of both inputs, which differ for a non-square map."""
    torch.manual_seed(0)
    module = nn.Bilinear(12, 30, 7, bias=False).double()
    known = fans(module)
    assert known.forward == 360
    forward, backward = [], []
    for _ in range(REPEATS):
        left = torch.randn(64, 12, dtype=torch.float64, requires_grad=True)
        right = torch.randn(64, 30, dtype=torch.float64, requires_grad=True)
        unit_gain_(module, "weight", known.forward)
        forward.append(float(module(left, right).detach().square().mean()))
        unit_gain_(module, "weight", known.backward)
        y = module(left, right)
        gradients = torch.autograd.grad(y, (left, right), torch.randn_like(y))
        backward.append(float(torch.cat(gradients, dim=1).square().mean()))
    assert within_sampling_error(forward)
    assert within_sampling_error(backward)


@pytest.mark.parametrize(("mode", "size"), [("sum", 5), ("mean", 5), ("max", 1)])
def test_embedding_bag_by_simulation(mode: str, size: int) -> None:
    torch.manual_seed(0)
    module = nn.EmbeddingBag(400, 12, mode=mode).double()
    known = fans(module, bag_size=size)
    rows = torch.arange(400).reshape(-1, size)
    forward = []
    for _ in range(REPEATS):
        unit_gain_(module, "weight", known.forward)
        forward.append(float(module(rows).detach().square().mean()))
    assert within_sampling_error(forward)


def test_embedding_bag_maximum_is_not_linear() -> None:
    with pytest.raises(InvalidValueError, match="not linear"):
        fans(nn.EmbeddingBag(10, 4, mode="max"), bag_size=3)
    with pytest.raises(InvalidValueError, match="bag_size"):
        fans(nn.EmbeddingBag(10, 4, mode="sum"), bag_size=float("nan"))


EPSILON = 1e-4  # small inputs: tanh(x) = x and sigmoid(x) = 1/2 + x/4 up to EPSILON² ~ 1e-8


def lstm_gate(module: nn.LSTMCell, gate: int, x: Tensor, h: Tensor) -> Tensor:
    """The pre-activation of one LSTM gate, read out of the real module through its linear regime."""
    size = module.hidden_size
    with torch.no_grad():
        module.bias_ih.zero_()
        if gate == 0:
            module.bias_ih[2 * size : 3 * size] = 40.0  # g = tanh(40) = 1
    cell = torch.ones_like(h) if gate in (1, 3) else torch.zeros_like(h)
    hidden, state = module(EPSILON * x, (EPSILON * h, cell))
    if gate == 3:
        return 4 * (hidden / torch.tanh(state) - 0.5) / EPSILON
    offset, slope = {0: (0.5, 0.25), 1: (0.5, 0.25), 2: (0.0, 0.5)}[gate]
    return (state - offset) / slope / EPSILON


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
@pytest.mark.parametrize("gate", range(4))
def test_lstm_per_gate_by_simulation(name: str, gate: int) -> None:
    torch.manual_seed(gate)
    module = nn.LSTMCell(30, 12).double()
    known = fans(module, name)
    assert (known.forward, known.backward) == ((30, 12) if name == "weight_ih" else (12, 12))
    forward, backward = [], []
    for _ in range(REPEATS):
        x = torch.randn(32, 30, dtype=torch.float64, requires_grad=True)
        h = torch.randn(32, 12, dtype=torch.float64, requires_grad=True)
        for fan, values in ((known.forward, forward), (known.backward, backward)):
            unit_gain_(module, name, fan)
            with torch.no_grad():
                for other in set(range(4)) - {gate}:
                    getattr(module, name)[12 * other : 12 * (other + 1)] = 0
            y = lstm_gate(module, gate, x, h)
            if values is forward:
                values.append(float(y.detach().square().mean()))
            else:
                source = x if name == "weight_ih" else h
                (gradient,) = torch.autograd.grad(y, source, torch.randn_like(y))
                values.append(float(gradient.square().mean()))
    assert within_sampling_error(forward)
    assert within_sampling_error(backward)


def test_gru_candidate_by_simulation() -> None:
    torch.manual_seed(0)
    module = nn.GRUCell(30, 12).double()
    known = fans(module, "weight_ih")
    assert (known.forward, known.backward) == (30, 12)
    forward = []
    for _ in range(REPEATS):
        unit_gain_(module, "weight_ih", known.forward)
        x = torch.randn(32, 30, dtype=torch.float64)
        # h' = (1 - z)·n + z·h with z = 1/2, n = tanh(W x), h = 0
        forward.append(float((2 * module(EPSILON * x) / EPSILON).detach().square().mean()))
    assert within_sampling_error(forward)


@pytest.mark.parametrize(
    ("module", "name", "expected", "kernels"),
    [
        (nn.LSTM(30, 12, proj_size=5), "weight_ih_l0", (30, 12), (4, 12, 30)),
        (nn.LSTM(30, 12, proj_size=5), "weight_hh_l0", (5, 12), (4, 12, 5)),
        (nn.LSTM(30, 12, proj_size=5), "weight_hr_l0", (12, 5), (1, 5, 12)),
        (nn.GRU(30, 12, bidirectional=True, num_layers=2), "weight_ih_l1_reverse", (24, 12), (3, 12, 24)),
        (nn.RNN(30, 12), "weight_hh_l0", (12, 12), (1, 12, 12)),
        (nn.RNNCell(30, 12), "weight_ih", (30, 12), (1, 12, 30)),
        (nn.MultiheadAttention(24, 4, kdim=10, vdim=36), "k_proj_weight", (10, 24), (1, 24, 10)),
        (nn.MultiheadAttention(24, 4), "out_proj.weight", (24, 24), (1, 24, 24)),
        (nn.LayerNorm((3, 4)), "weight", (1, 1), (12, 1, 1)),
        (nn.BatchNorm2d(3), "weight", (1, 1), (3, 1, 1)),
        (nn.Conv2d(12, 20, 3, stride=2, groups=4), "weight", (27, 11.25), (4, 5, 3, 3, 3)),
        (nn.ConvTranspose2d(12, 20, 3, groups=4), "weight", (27, 45), (4, 5, 3, 3, 3)),
    ],
)
def test_closed_form_and_kernels(
    module: nn.Module, name: str, expected: tuple[float, float], kernels: tuple[int, ...]
) -> None:
    known = fans(module, name)
    assert (known.forward, known.backward) == pytest.approx(expected)
    assert known.layout.kernels_shape == kernels


def test_kernels_are_the_blocks_the_module_uses() -> None:
    """Block b, output o, input i of the layout is the weight the module really multiplies with."""
    groups, inputs, outputs = 3, 6, 12
    module = nn.ConvTranspose1d(inputs, outputs, 2, groups=groups, bias=False)
    kernels = fans(module).layout.kernels(module.weight.detach())
    impulse = torch.zeros(1, inputs, 1)
    impulse[0, 3, 0] = 1  # input 1 of group 1
    response = module(impulse)[0].detach()
    assert torch.equal(response[4:8], kernels[1, :, 1])
    assert not response[:4].any()


def test_restore_inverts_kernels() -> None:
    module = nn.ConvTranspose2d(6, 12, (2, 3), groups=3)
    layout = fans(module).layout
    weight = module.weight.detach()
    assert torch.equal(layout.restore(layout.kernels(weight), weight.shape), weight)


def test_hooks_of_old_weight_norm_keep_the_fans() -> None:
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.Conv1d(4, 6, 3))
    assert fans(module, "weight_v").forward == fans(module, "weight").forward == 12


def test_pruned_weight_keeps_the_fans() -> None:
    import torch.nn.utils.prune as prune

    module = prune.random_unstructured(nn.Linear(8, 3), "weight", 0.5)
    assert fans(module, "weight_orig").forward == 8


def test_the_examples_of_the_documentation_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "fans.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
