"""Prediction of whole models: beside measurement, and as a guest in the user's program."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.hooks import has_values, tensors_in
from isometry.measure import measure
from isometry.predict import predict


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width=96, depth=3):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 40)

    def forward(self, ids, mask=None):
        if mask is not None and not bool(mask.all()):  # Python that depends on values
            ids = ids.masked_fill(~mask, 0)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def ids():
    return torch.randint(0, 50, (8, 12), generator=torch.Generator().manual_seed(1))


def unit_gradient(output):
    return sum((t * torch.randn_like(t)).sum() for t in tensors_in(output) if has_values(t))


def mlp(width=128):
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 24)
    )


@pytest.mark.parametrize(("build", "inputs"), [(Net, ids), (mlp, lambda: torch.randn(64, 32))])
def test_agrees_with_the_mean_over_draws(build, inputs):
    draws = 40
    predicted = predict(build, inputs())
    squares = {}
    torch.manual_seed(0)
    for _ in range(draws):
        found = measure(build(), inputs(), loss=unit_gradient)
        for row in found:
            for side in ("forward", "backward"):
                squares.setdefault((row.name, side), []).append(getattr(row, side).rms ** 2)
    for (name, side), values in squares.items():
        told = getattr(predicted[name], side)
        sample = torch.tensor(values, dtype=torch.float64)
        error = 0.5 * float(sample.std() / sample.mean()) / math.sqrt(draws)
        assert told.rms == pytest.approx(float(sample.mean().sqrt()), rel=4 * error + 0.015), (name, side)


def test_has_the_rows_of_measure():
    model = Net()
    predicted, measured = predict(model, ids()), measure(model, ids())
    assert predicted.source == "predicted"
    describe = lambda rows: [(r.name, r.call, r.kind, r.shape) for r in rows]  # noqa: E731
    assert describe(predicted) == describe(measured)
    assert describe(predicted.parameters) == describe(measured.parameters)
    assert predicted["head"].forward.cosine == pytest.approx(measured["head"].forward.cosine, abs=0.05)


def test_a_builder_and_its_model_agree():
    torch.manual_seed(0)
    built, real = predict(lambda: mlp(512), "16x32"), predict(mlp(512), "16x32")
    for a, b in zip(built, real, strict=True):
        assert a.forward.rms == pytest.approx(b.forward.rms, rel=0.02)
        assert a.backward.rms == pytest.approx(b.backward.rms, rel=0.03)


def test_needs_no_memory():
    profile = predict(
        lambda: nn.Sequential(nn.Linear(1 << 20, 1 << 20), nn.ReLU(), nn.Linear(1 << 20, 7)), "3x1048576"
    )
    assert profile["0"].forward.rms == pytest.approx(math.sqrt(1 / 3), rel=1e-3)
    assert profile["2.weight"].shape == (7, 1 << 20)


def test_leaves_the_user_alone():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.ReLU(inplace=True))
    x = torch.randn(32, 8, requires_grad=True)
    model(x).sum().backward()
    before = [
        t.clone() for t in (*model.state_dict().values(), *(p.grad for p in model.parameters()), x, x.grad)
    ]
    versions, state = [p._version for p in model.parameters()], torch.get_rng_state()
    predict(model, x)
    predict(lambda: nn.Linear(8, 3), x)
    after = (*model.state_dict().values(), *(p.grad for p in model.parameters()), x, x.grad)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert versions == [p._version for p in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_known_values_steer_the_model():
    mask = torch.ones(8, 12, dtype=torch.bool)
    mask[:, 6:] = False
    whole, half = predict(Net, {"ids": ids()}), predict(Net, {"ids": ids(), "mask": mask})
    assert half["embed"].forward.cosine > whole["embed"].forward.cosine + 0.2  # half the positions are equal


def test_specs_stand_for_any_draw():
    profile = predict(mlp, "16x32")
    assert profile["0"].forward.rms == pytest.approx(math.sqrt(32 / 96 + 1 / 96), rel=1e-6)
    meta = predict(mlp, torch.empty(16, 32, device="meta"))
    assert meta["0"].forward.rms == pytest.approx(profile["0"].forward.rms, rel=1e-9)


def test_a_loader_brings_the_target_of_a_loss():
    data = TensorDataset(torch.randn(24, 32), torch.arange(24))
    profile = predict(lambda: mlp(256), DataLoader(data, batch_size=24), loss=nn.functional.cross_entropy)
    # softmax is near 1/24: the gradient is (p − onehot)/24 at 24 classes
    assert profile["4"].backward.rms == pytest.approx(math.sqrt((1 - 1 / 24) / 24) / 24, rel=0.05)


def test_without_backward_nothing_is_said_of_gradients():
    profile = predict(mlp, "16x32", backward=False)
    assert all(row.backward is None for row in (*profile, *profile.parameters))


class Counting(nn.Module):
    """Reads how many features are positive: only real tensors know."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 20)

    def forward(self, x):
        h = torch.relu(self.a(x))
        rows = (h[:, 0] > 0).nonzero().flatten().tolist()
        return self.b(h) if rows else self.b(-h)


def test_runs_on_real_tensors_where_meta_does_not_carry():
    profile = predict(Counting, "16x32")
    assert profile.notes[0].startswith("carrier: real tensors")
    assert profile["b"].forward.rms == pytest.approx(predict(Counting(), "16x32")["b"].forward.rms, rel=0.1)


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.linalg.svdvals(self.a(x).view(-1, 6, 6)))


def test_an_operation_without_a_rule_is_named_and_left_empty():
    profile = predict(Strange, "12x6")
    assert profile["a"].forward.rms is not None
    assert profile["b"].forward is None
    assert any(note.startswith("unknown: ") and "svd" in note for note in profile.notes)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 64), nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def noted(model, inputs, *words):
    lines = [n for n in predict(model, inputs, backward=False).notes if n.startswith("assumption")]
    return any(all(word in line for word in words) for line in lines)


def test_what_overflows_is_unknown_by_name_and_warns_of_nothing():
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(8, 64), Cubes(), Cubes(), Cubes(), Cubes(), Cubes(), Cubes(), nn.Linear(64, 4)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told = predict(build, "4x8")
    assert caught == []
    assert told["0"].forward.rms is not None
    assert any(note.startswith("unknown") for note in told.notes)


class Cubes(nn.Module):
    def forward(self, x):
        return (10 * x) ** 3 - (9 * x) ** 3


class Literals(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = self.a(x)
        x = torch.maximum(x, torch.tensor(0.0, device=x.device)) * x.new_tensor([2.0])
        return self.b(x) + torch.as_tensor([1.0, 2.0, 3.0], device=x.device)


def test_numbers_in_the_code_are_known():
    profile = predict(Literals, "12x16")
    assert not any(note.startswith("unknown") for note in profile.notes)
    assert profile["b"].forward.rms is not None
    assert profile["a"].backward.rms == pytest.approx(2 * (3 / 64 / 3 / 2) ** 0.5, rel=1e-3)


class Turning(nn.Module):
    """A product with complex weights."""

    def __init__(self, ins, outs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs, dtype=torch.complex64))

    def forward(self, x):
        return x @ self.weight


def test_complex_numbers_are_told_by_their_parts_as_measured():
    x = torch.randn(64, 40, dtype=torch.complex64)

    def build():
        return nn.Sequential(Turning(40, 30), Turning(30, 20))

    model = build()
    measured = measure(model, x)
    for told in (predict(build, x), predict(model, x)):  # what a constructor draws, and values
        for row in ("0", "1"):
            assert told[row].forward.rms == pytest.approx(measured[row].forward.rms, rel=0.1)
            assert told[row].backward.rms == pytest.approx(measured[row].backward.rms, rel=0.1)
        for ours, theirs in zip(told.parameters, measured.parameters, strict=True):
            assert ours.forward.rms == pytest.approx(theirs.forward.rms, rel=0.15)
            assert ours.backward.rms == pytest.approx(theirs.backward.rms, rel=0.15)


class Decaying(nn.Module):
    """Rates that are constructed as a pattern, and mixing weights as a ramp, alike in every layer."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.arange(1.0, 9.0).log().repeat(16, 1))
        self.mix = nn.Parameter(torch.linspace(0.0, 1.0, 16).view(1, 16))
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return torch.tanh(self.linear(x * self.mix)) @ self.rates @ self.rates.T


def test_patterns_are_no_copies():
    for source in (lambda: nn.Sequential(Decaying(), Decaying()), nn.Sequential(Decaying(), Decaying())):
        assert not any("identical" in note for note in predict(source, "8x16").notes)
    model = nn.Sequential(Decaying(), Decaying())
    model[1].linear.load_state_dict(model[0].linear.state_dict())
    assert any(
        "identical values in 0.linear.weight, 1.linear.weight" in n for n in predict(model, "8x16").notes
    )


def test_a_module_with_two_names_is_tied_to_nothing():
    layer, other = nn.Linear(16, 16), nn.Linear(16, 16)
    model = nn.Sequential(nn.Sequential(layer, nn.ReLU()), nn.Linear(16, 3))
    model[0].alias = layer
    model[0].forward = lambda x: torch.relu(layer(x))
    assert not any("tied" in note for note in predict(model, "8x16").notes)
    other.weight = layer.weight
    model.insert(1, other)
    assert any("tied parameters (0.0.weight = 1.weight)" in note for note in predict(model, "8x16").notes)


def test_functions_of_complex_numbers_are_told_as_unknown():
    profile = predict(lambda: Angles(), "12x16")
    assert any("exp" in note and "complex" in note for note in profile.notes)
    assert profile["b"].forward is None


class Angles(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.b(torch.exp(1j * self.a(x)).real)


def test_violated_assumptions_are_told():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    build = lambda: nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)  # noqa: E731
    assert noted(build(), "2x5x64", "identical values", "layers.0.", "layers.1.")
    fresh = lambda: nn.TransformerEncoder(  # noqa: E731
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 3, enable_nested_tensor=False
    )
    assert noted(fresh, "2x5x64", "identical values", "layers.0.", "layers.1.")
    assert noted(Tied, ids(), "tied", "embed.weight = head.weight")
    shared = nn.Linear(32, 32)
    assert noted(nn.Sequential(shared, nn.ReLU(), shared), "4x32", "more than once", "0")
    assert noted(nn.Linear(3, 50), "4x3", "fewer than 16 terms", "weight")
    assert not noted(mlp, "4x32", "assumption")


@pytest.mark.parametrize(
    ("model", "inputs", "error", "words"),
    [
        (3, "4x32", InvalidTypeError, "function without arguments"),
        (lambda: 3, "4x32", InvalidTypeError, "must return"),
        (lambda: 1 / 0, "4x32", ModelError, "builder failed"),
        (nn.LazyLinear(3), "4x32", ModelError, "no shape yet"),
        (nn.Linear, "4x32", ModelError, "the class Linear: build one first"),
        (nn.Linear(32, 3), torch.empty(0, 32), InvalidValueError, "inputs are empty"),
        (nn.Embedding(5, 3), (torch.tensor([2, 7]),), ModelError, "the table has 5 rows"),
        (nn.Linear(32, 3, device="meta"), "4x32", ModelError, "meta device"),
        (mlp, "4x33", ModelError, "module '0' (Linear)"),
        (mlp, torch.full((4, 32), float("nan")), InvalidValueError, "nan"),
        (mlp, [], InvalidValueError, "no batch"),
        (Net, torch.empty(2, 3, dtype=torch.int64, device="meta"), InvalidTypeError, "integers"),
    ],
)
def test_errors_say_what_to_do(model, inputs, error, words):
    with pytest.raises(error) as caught:
        predict(model, inputs)
    assert words in str(caught.value)


def test_a_loss_that_fails_says_so():
    with pytest.raises(ModelError, match=r"^loss\(output\) failed: TypeError: .*batches \(x, y\)"):
        predict(mlp, "4x32", loss=nn.functional.cross_entropy)


def test_a_loss_must_return_one_number():
    with pytest.raises(InvalidValueError, match="one number"):
        predict(mlp, "4x32", loss=lambda output: output)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_the_zeros_of_a_dropout_are_told(p):
    found = predict(lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(p)), "32x64")
    # A node of the quadrature that the mask's edge cuts is worth up to 2 % of the draws.
    assert found["2"].forward.zeros == pytest.approx(1 - 0.5 * (1 - p), abs=0.02)


@pytest.mark.parametrize(("std", "depth"), [(1e-3, 300), (1.0, 80)])
def test_signals_may_fade_to_nothing_or_explode(std: float, depth: int) -> None:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(64, 64), nn.ReLU()]
            nn.init.normal_(layers[-2].weight, std=std)
            nn.init.zeros_(layers[-2].bias)
        return nn.Sequential(*layers)

    profile = predict(build, "8x64")
    per_layer = 64**0.5 * std / 2**0.5
    assert profile["99"].forward.rms == pytest.approx(per_layer**50, rel=1e-6)


class Reordered(nn.Module):
    """Features picked by a list and by an array, and some of them overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).clone()
        y[:, [1, 3]] = 5.0
        return y[:, [3, 1, 2]] + y[:, np.array([1, 0, 4])]


def test_lists_and_arrays_as_indices_are_known() -> None:
    told = predict(Reordered, "64x16")
    assert not any(note.startswith(("carrier", "unknown")) for note in told.notes)
    third = 1 / 3
    assert told[""].forward.rms ** 2 == pytest.approx((100 + 25 + third + 2 * third) / 3, rel=1e-3)
