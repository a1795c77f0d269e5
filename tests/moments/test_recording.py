"""What a builder's initialisers would draw, against what they draw."""

import math
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import isometry
import isometry.moments.rules
from isometry.errors import ModelError
from isometry.moments import record as rec
from isometry.moments.concrete import Concrete
from isometry.moments.interpreter import Interpreter
from isometry.moments.recording import of_values, recorded
from isometry.moments.rules.base import Unknown
from isometry.moments.rules.pointwise import as_moments

ORTHOGONAL = nn.init.orthogonal_  # captured before anything is recorded, as libraries do


def owner(init, shape=(60, 45), start=torch.empty):
    def build():
        module = nn.Module()
        module.weight = nn.Parameter(start(shape))
        with torch.no_grad():
            init(module.weight)
        return module

    return build


def timm_like(w):
    low, high = math.erf(-1 / math.sqrt(2)), math.erf(2 / math.sqrt(2))
    w.uniform_(low, high).erfinv_().mul_(0.5 * math.sqrt(2)).add_(0.1).clamp_(-0.4, 1.1)


def dt_bias(w):
    dt = torch.exp(torch.rand(w.shape) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
    w.copy_(dt + torch.log(-torch.expm1(-dt)))


def by_parts(w):
    for part, std in zip(w.chunk(3), (0.1, 0.2, 0.3), strict=True):
        part.normal_(0.0, std)


INITIALISERS = {
    "normal": lambda w: nn.init.normal_(w, 0.3, 0.2),
    "uniform": lambda w: nn.init.uniform_(w, -0.1, 0.4),
    "constant": lambda w: nn.init.constant_(w, 0.7),
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "eye": nn.init.eye_,
    "kaiming uniform": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    "xavier normal": nn.init.xavier_normal_,
    "truncated": lambda w: nn.init.trunc_normal_(w, 0.1, 0.5, -0.4, 1.1),
    "hardly truncated": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "orthogonal": lambda w: ORTHOGONAL(w, 1.5),
    "sparse": lambda w: nn.init.sparse_(w, 0.4, 0.2),
    "uniform to normal": timm_like,
    "inverse softplus": dt_bias,
    "parts": by_parts,
    "scaled": lambda w: w.normal_().mul_(0.2).add_(1.0),
    "exponential": lambda w: w.exponential_(3.0),
    "row cleared": lambda w: (w.normal_(), w[3].zero_()),
}


@pytest.mark.parametrize("start", [torch.empty, torch.zeros], ids=["meta", "real"])
@pytest.mark.parametrize("name", INITIALISERS)
def test_records_what_would_be_drawn(name, start):
    if start is torch.zeros and name in ("orthogonal", "eye", "parts", "row cleared"):
        pytest.skip("written through views: the real values are used")
    build = owner(INITIALISERS[name], start=start)
    recording = recorded(build, Interpreter())
    (weight,) = recording.model.parameters()
    value = recording.value(weight)
    m = of_values(weight) if value is None else as_moments(value)
    torch.manual_seed(0)
    draws = torch.stack([build().weight.detach().double() for _ in range(60)])
    for told, sample in (
        (rec.average(m.mean, m.axes), draws),
        (rec.average(m.square, m.axes), draws.square()),
    ):
        means = sample.mean((1, 2))
        error = float(means.std()) / math.sqrt(len(means)) + 1e-7
        one = float(means.std()) if value is None else 0.0  # a real tensor is one draw itself
        assert told == pytest.approx(float(means.mean()), abs=5 * error + 5 * one)


def test_dirac_keeps_its_values():
    recording = recorded(owner(nn.init.dirac_, (6, 4, 3, 3)), Interpreter())
    value = recording.value(recording.model.weight)
    assert torch.equal(value.tensor, nn.init.dirac_(torch.empty(6, 4, 3, 3)))


def test_what_is_never_initialised_is_said():
    recording = recorded(owner(lambda w: None), Interpreter())
    assert isinstance(recording.value(recording.model.weight), Unknown)


def whole(w):
    w.data.copy_(torch.randn_like(w) * 0.5)


def scaled_afterwards(w):
    w.data[:] = torch.randn(w.shape)
    w.data.mul_(0.25).add_(w * 2 - w)


def added(w):
    w.add_(torch.rand_like(w)).copy_(0.5 * w)


@pytest.mark.parametrize(("init", "square"), [(whole, 0.25), (scaled_afterwards, 0.25), (added, 7 / 12)])
def test_draws_that_are_copied_into_a_small_known_tensor(init, square):
    recording = recorded(owner(init, start=torch.ones), Interpreter())
    m = as_moments(recording.value(recording.model.weight))
    assert rec.average(m.square, m.axes) == pytest.approx(square, rel=1e-6)


def test_draws_that_are_copied_into_a_part_of_a_known_tensor():
    def first_row(w):
        w.data[0] = torch.randn(45) * 3

    told = isometry.predict(lambda: Added(owner(first_row, start=torch.zeros)().weight), "4x60x45")
    assert any(note.startswith("builder: run on real tensors") for note in told.notes)
    assert told[""].forward.rms ** 2 == pytest.approx(1 + 9 / 60, rel=0.1)


class Added(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x + self.weight


def test_draws_nothing():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    recorded(lambda: nn.Sequential(nn.Linear(5, 7), nn.LSTM(7, 3), nn.Dropout()), Interpreter())
    assert torch.equal(before, torch.get_rng_state())


def test_small_known_tensors_stay_real():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.outer(torch.arange(8.0), 0.1 ** torch.arange(4)))
            self.rates = [x.item() for x in torch.linspace(0, 0.1, 3)]

    model = recorded(Positions, Interpreter()).model
    assert torch.equal(model.table, Positions().table)
    assert model.rates == pytest.approx([0.0, 0.05, 0.1])


def test_values_that_are_no_draw_keep_their_pattern():
    rows = torch.arange(1.0, 17.0).log().repeat(32, 1)
    structured, random = of_values(nn.Parameter(rows)), of_values(nn.Parameter(torch.randn(32, 16)))
    assert rec.average_differ(structured.table, structured.axes, (0,)) == pytest.approx(
        float(rows.square().mean())
    )
    assert rec.average_differ(random.table, random.axes, (0,)) == pytest.approx(0.0, abs=0.05)


def test_transformers_own_initialisers_are_recorded(monkeypatch):
    if find_spec("transformers") is None or find_spec("torchvision") is None:
        pytest.skip("the dependency group corpus is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import_module("torchvision_import").import_torchvision()  # transformers imports it where it is there
    transformers = import_module("transformers")
    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=64, n_layer=4, n_head=4, vocab_size=90, n_positions=32
    )
    build = lambda: transformers.AutoModelForCausalLM.from_config(config)  # noqa: E731
    recording = recorded(build, Interpreter())
    real = dict(build().named_parameters())
    for name, p in recording.model.named_parameters():
        m = as_moments(recording.value(p) or of_values(p))
        spread = float(real[name].detach().square().std()) / math.sqrt(p.numel()) if p.numel() > 1 else 0.0
        assert rec.average(m.square, m.axes) == pytest.approx(
            float(real[name].detach().square().mean()), abs=6 * spread + 1e-9
        )


def test_an_identity_is_known_and_keeps_what_it_is_given() -> None:
    def build() -> nn.Module:
        first, second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        with torch.no_grad():
            second.weight.copy_(0.9 * torch.eye(64))
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    model, inputs = build(), torch.randn(16, 64)
    for source in (build, model):
        told = isometry.predict(source, inputs)
        # A normal matrix would halve what the first relu left.
        assert told["3"].forward.rms == pytest.approx(0.9 * told["1"].forward.rms, rel=0.2)
        assert isinstance(of_values(model[2].weight), Concrete)


def test_a_builder_that_needs_values_runs_on_real_tensors() -> None:
    def build() -> nn.Module:
        layers = [m for _ in range(3) for m in (parametrizations.orthogonal(nn.Linear(32, 32)), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(32, 4))

    state = torch.get_rng_state()
    told = isometry.predict(build, "16x32")
    assert torch.equal(state, torch.get_rng_state())
    assert any(note.startswith("builder: run on real tensors") for note in told.notes)
    assert told["0"].forward.rms == pytest.approx(1.0, rel=0.05)
    assert told["6"].forward.rms is not None


def test_no_builder_is_run_on_real_tensors_that_asks_for_too_many() -> None:
    made = []

    def build() -> nn.Module:
        made.append(nn.Linear(1 << 17, 1 << 17))
        return nn.Linear(3, int(made[-1].bias.sum()))

    with pytest.raises(ModelError, match="too large to be built"):
        isometry.predict(build, "2x3")
    assert len(made) == 1


class Filled(nn.Module):
    """Buffers that the constructor fills: with values, and with draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16, bias=False)
        self.register_buffer("bands", torch.empty(16), persistent=False)
        self.register_buffer("draws", torch.empty(512, 16), persistent=False)
        self.bands.copy_(torch.linspace(1.0, 4.0, 16))
        self.draws.normal_(std=3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.bands) @ self.draws.T


def test_buffers_that_the_constructor_fills_are_known() -> None:
    told = isometry.predict(Filled, "64x16")
    assert not any(note.startswith(("carrier", "unknown")) for note in told.notes)
    bands = torch.linspace(1.0, 4.0, 16, dtype=torch.float64).square().mean()
    assert told["linear"].forward.rms ** 2 == pytest.approx(float(bands) / 3, rel=1e-3)
    assert told[""].forward.rms ** 2 == pytest.approx(9 * 16 * float(bands) / 3, rel=1e-3)
