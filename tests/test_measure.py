import copy
import itertools
import math
import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryError, ModelError
from isometry.inputs import Batch
from isometry.measure import measure


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 3))


def data(n=50):
    return torch.randn(n, 7, generator=generator())


def state(model):
    return (
        {
            name: (id(t), t.detach().clone(), t._version)
            for name, t in model.state_dict(keep_vars=True).items()
        },
        [
            (id(p.grad), None if p.grad is None else p.grad.clone(), p.requires_grad)
            for p in model.parameters()
        ],
        [(module.training, dict(module.__dict__).keys()) for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        torch.backends.mha.get_fastpath_enabled(),
    )


def assert_untouched(before, model):
    after = state(model)
    for name, (identity, values, version) in before[0].items():
        assert (after[0][name][0], after[0][name][2]) == (identity, version)
        assert torch.equal(after[0][name][1], values)
    for (identity, gradient, flag), (identity_after, gradient_after, flag_after) in zip(
        before[1], after[1], strict=True
    ):
        assert (identity, flag) == (identity_after, flag_after)
        assert gradient is None or torch.equal(gradient, gradient_after)
    assert before[2:] == after[2:]


def test_a_relu_network_against_closed_forms():
    # z ~ N(0, 1): E[relu²] = 1/2, E[relu] = 1/√(2π), half of it zero; E[relu⁴] = 3/2.
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.zeros_(model[0].bias)
    n = 40_000
    row = measure(model, torch.randn(n, 1, generator=generator()), backward=False)["1"].forward
    five = 5 / math.sqrt(n)
    assert row.mean == pytest.approx(2 / math.sqrt(2 * math.pi), abs=five * 2)
    assert row.rms**2 == pytest.approx(2.0, abs=five * 4 * math.sqrt(1.5 - 0.25))
    assert row.zeros == pytest.approx(0.5, abs=five / 2)


def test_every_number_of_a_row():
    model, x = mlp(), data()
    profile = measure(model, x)
    y = model[1](model[0](x)).detach().double().numpy()
    stats = profile["1"].forward
    assert profile["1"].kind == "ReLU"
    assert profile["1"].shape == (50, 13)
    assert stats.mean == pytest.approx(y.mean(), rel=1e-12)
    assert stats.std == pytest.approx(y.std(), rel=1e-12)
    assert stats.rms == pytest.approx(np.sqrt((y**2).mean()), rel=1e-12)
    assert (stats.min, stats.max) == (y.min(), y.max())
    assert stats.zeros == (y == 0).mean()
    assert stats.kurtosis == pytest.approx((((y - y.mean()) / y.std()) ** 4).mean(), rel=1e-12)
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    assert stats.cosine == pytest.approx(((unit @ unit.T).sum() - 50) / (50 * 49), rel=1e-12)
    assert stats.saturated is None
    assert stats.nonfinite == 0
    assert profile.source == "measured"


def test_the_default_gradient_is_unit_normal_and_always_the_same():
    model = mlp()
    profile = measure(model, data(2000))
    n = 2000 * 3
    assert profile["2"].backward.mean == pytest.approx(0, abs=5 / math.sqrt(n))
    assert profile["2"].backward.rms == pytest.approx(1, abs=5 * math.sqrt(2) / 2 / math.sqrt(n))
    torch.manual_seed(77)
    assert measure(model, data(2000)) == profile


def test_backward_keeps_its_size_where_theory_says_so():
    # Backward He scaling, std √(2/fan_out), keeps E[g²] through linear and relu: 2/fan_out · fan_out · ½ = 1.
    torch.manual_seed(0)
    widths = [60, 200, 150, 250, 100]
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers)
    for module in model[::2]:
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.out_features))
    rows = measure(model, torch.randn(300, 60, generator=generator()))
    # Weights are one draw: the squared norm scatters by √(5·Σ 1/width) (Hanin & Nica 2018).
    scatter = math.sqrt(5 * sum(1 / width for width in widths[1:]))
    assert rows["1"].backward.rms ** 2 == pytest.approx(1, abs=3 * scatter)
    assert rows["7"].backward.rms == pytest.approx(1, abs=5 / math.sqrt(2 * 300 * 100))


def test_parameters_have_values_and_gradients():
    model, x = mlp(), data()
    profile = measure(model, x, loss=lambda output: output.square().sum())
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        row = profile[name]
        assert row.forward.std == pytest.approx(
            float(parameter.detach().double().std(correction=0)), rel=1e-12
        )
        assert row.backward.rms == pytest.approx(
            float(parameter.grad.double().square().mean().sqrt()), rel=1e-6
        )
    assert [row.name for row in profile.parameters] == [name for name, _ in model.named_parameters()]


def test_batches_of_a_loader_pool_with_their_targets():
    model, x, y = mlp(), data(40), torch.arange(40) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    seen = []

    def loss(output, target):
        seen.append(target)
        return F.cross_entropy(output, target, reduction="sum")

    pooled = measure(model, loader, loss=loss)
    whole = measure(model, Batch((x,), target=y), loss=loss)
    assert torch.equal(torch.cat(seen[:2]), y)
    assert pooled["0"].forward.std == pytest.approx(whole["0"].forward.std, rel=1e-6)
    assert pooled["0"].backward.rms == pytest.approx(whole["0"].backward.rms, rel=1e-5)
    limited = measure(model, loader, limit=1)
    assert limited["0"].forward.rms == pytest.approx(measure(model, x[:20])["0"].forward.rms, rel=1e-12)


def test_saturated_share_of_a_tanh():
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh())
    nn.init.normal_(model[0].weight, std=10.0, generator=generator())
    x = torch.randn(300, 5, generator=generator(1))
    expected = float((1 - model(x).detach().double() ** 2 < 0.01).double().mean())
    assert measure(model, x)["1"].forward.saturated == expected
    assert expected > 0.5


class Everything(nn.Module):
    """Attention, recurrence, batch norm, dropout, tied and repeated modules, a dataclass-like output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)
        self.lstm = nn.LSTM(12, 12, batch_first=True)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, mask=None):
        hidden = self.encoder(self.embedding(ids))
        hidden, _ = self.lstm(hidden)
        hidden = self.norm(hidden[:, -1])
        return OrderedDict(loss=hidden.sum(), logits=self.head(hidden), ids=ids)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(training):
    torch.manual_seed(0)
    model = Everything().train(training)
    next(model.parameters()).grad = torch.ones(20, 12)
    before = state(model)
    profile = measure(model, {"ids": torch.arange(40).reshape(8, 5) % 20, "mask": None})
    assert_untouched(before, model)
    assert profile["lstm"].shape == (8, 5, 12)
    assert profile[""].shape == (8, 20)
    assert profile["encoder.layers.1.linear2"].backward.rms > 0
    # Tied weights are one parameter.
    assert [row.name for row in profile.parameters].count("embedding.weight") == 1
    assert "head.weight" not in [row.name for row in profile.parameters]


def test_modules_that_are_passed_by_are_named():
    torch.manual_seed(0)
    notes = " ".join(measure(Everything().eval(), "4x5:int64<20").notes)
    assert "weights are used by another module directly: encoder.layers.0.self_attn.out_proj" in notes
    assert "Never ran: layer.self_attn" in notes


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.fc, self.norm, self.error = nn.Linear(7, 3), nn.BatchNorm1d(3), error

    def forward(self, x):
        self.norm(self.fc(x))
        torch.rand(3)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), ValueError("bad")])
def test_the_model_is_untouched_after_an_error_in_forward(error):
    model = Fails(error)
    before = state(model)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ModelError
    with pytest.raises(expected):
        measure(model, data())
    assert_untouched(before, model)


def test_the_model_is_untouched_after_errors_in_loss_and_backward():
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("in backward")

    model = nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3))
    before = state(model)
    with pytest.raises(ModelError, match="backward pass failed: in backward"):
        measure(model, data(), loss=lambda output: Explodes.apply(output).sum())
    assert_untouched(before, model)
    with pytest.raises(ModelError, match=r"loss\(output\) failed: ZeroDivisionError"):
        measure(model, data(), loss=lambda output: 1 / 0)
    assert_untouched(before, model)


def test_the_inputs_are_not_written_into():
    x = data()
    kept = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(7, 2))
    measure(model, x)
    assert torch.equal(x, kept)


def test_a_loader_goes_on_as_without_us():
    def loader():
        own = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(data(40)), batch_size=10, shuffle=True, generator=own)

    used, fresh = loader(), loader()
    measure(mlp(), used)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(used, fresh, strict=True))


def test_the_failing_module_is_named_and_the_cause_chained():
    model = nn.Sequential(nn.Linear(7, 4), nn.Sequential(nn.Linear(5, 2)))
    with pytest.raises(ModelError, match=r"failed in module '1\.0' \(Linear\): RuntimeError: mat1") as caught:
        measure(model, data())
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_the_surrounding_gradient_mode_does_not_matter(grad):
    model = mlp()
    with grad():
        inside = measure(model, data())
    assert inside == measure(model, data())
    assert inside["0"].backward.rms > 0


def test_only_forward():
    profile = measure(mlp(), data(), backward=False)
    assert all(row.backward is None for row in (*profile, *profile.parameters))


def test_frozen_layers_have_no_gradient():
    model = mlp()
    model[0].requires_grad_(False)
    profile = measure(model, data())
    assert profile["0"].backward is None
    assert profile["0.weight"].backward is None
    assert profile["2.weight"].backward.rms > 0
    assert not model[0].weight.requires_grad


# The compiler's own remark about the hidden layer.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_models_are_measured_through_their_eager_code():
    model = mlp()
    expected = measure(model, data())
    compiled = torch.compile(model, backend="eager")
    compiled(data())
    assert measure(compiled, data()) == expected
    part = copy.deepcopy(model)
    part[0].compile(backend="eager")
    part[2] = torch.compile(part[2], backend="eager")
    part(data())
    assert measure(part, data()) == expected
    assert measure(nn.DataParallel(model), data()) == expected


def test_checkpointing():
    class Checkpointed(nn.Module):
        def __init__(self, mode):
            super().__init__()
            self.body, self.mode = mlp(), mode

        def forward(self, x):
            return self.body(x) if self.mode is None else checkpoint(self.body, x, use_reentrant=self.mode)

    leaf = data().requires_grad_()  # without it reentrant checkpointing cuts the gradient off
    expected = measure(Checkpointed(None), leaf)
    assert measure(Checkpointed(False), leaf) == expected
    assert measure(Checkpointed(True), leaf) == expected
    assert leaf.grad is None


def test_an_optimizer_that_steps_inside_the_backward_pass_does_not():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steps = []

    def step(parameter):
        steps.append(parameter)
        optimizer.step()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = state(model)
    measure(model, data())
    assert_untouched(before, model)
    assert not steps
    model(data()).sum().backward()
    assert len(steps) == 4


def test_a_scalar_output_is_taken_for_the_loss():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x).square().mean()

    model = WithLoss()
    row = measure(model, data())["body.2"]
    expected = 2 * model.body(data()).detach().double() / 150
    assert row.backward.rms == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-6)


@dataclass
class TwoHeads:
    mean: torch.Tensor
    spread: torch.Tensor
    loss: torch.Tensor


def test_every_output_gets_a_gradient_but_not_the_loss_beside_them():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 2), nn.Linear(7, 4)

        def forward(self, x):
            a = self.a(x)
            return TwoHeads(a, self.b(x), a.sum() * 1e6)

    profile = measure(Heads(), data(1000))
    assert profile["a"].backward.rms == pytest.approx(1, abs=5 / math.sqrt(2 * 2000))
    assert profile["b"].backward.rms == pytest.approx(1, abs=5 / math.sqrt(2 * 4000))


def test_overflow_in_the_model_is_shown_not_raised():
    model = nn.Sequential(*[nn.Linear(50, 50) for _ in range(30)])
    for module in model:
        nn.init.normal_(module.weight, std=10.0, generator=generator())
    profile = measure(model, torch.randn(4, 50, generator=generator()))
    sizes = [row.forward.rms for row in profile.leaves()]
    assert math.isfinite(sizes[5])
    assert not math.isfinite(sizes[-1])
    assert profile["29"].forward.nonfinite > 0
    assert "nan" in str(profile)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_dtypes(dtype):
    model = nn.Linear(7, 3, dtype=dtype)
    x = data(2000).to(dtype)
    row = measure(model, x)[""]
    # A complex gradient has total variance 1, half of it in each part.
    size = 1 / math.sqrt(2) if dtype is torch.complex64 else 1
    assert row.backward.rms == pytest.approx(size, rel=0.05)


def test_no_batch_and_bad_arguments():
    with pytest.raises(InvalidValueError, match="gave no batch"):
        measure(mlp(), [])
    with pytest.raises(InvalidValueError, match="limit"):
        measure(mlp(), data(), limit=0)
    with pytest.raises(InvalidValueError, match=r"inputs\[0\] holds 1 nan"):
        measure(mlp(), torch.full((1, 7), math.nan)[:, :1].expand(1, 1))
    with pytest.raises(InvalidTypeError, match=r"torch\.nn\.Module"):
        measure(mlp, data())
    with pytest.raises(ModelError, match="no parameters"):
        measure(nn.Tanh(), data())


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (3, InvalidTypeError, "must be a callable"),
        (lambda output: 3.0, InvalidTypeError, "must return a tensor, got float"),
        (lambda output: output, InvalidValueError, r"shape \(50, 3\)"),
        (lambda output: output.detach().sum(), InvalidValueError, "needs no gradient"),
        (lambda output, target: output.sum(), ModelError, r"loss\(output\) failed: TypeError"),
    ],
)
def test_a_loss_that_is_none(loss, error, message):
    with pytest.raises(error, match=message) as caught:
        measure(mlp(), data(), loss=loss)
    assert isinstance(caught.value, IsometryError)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_spec_without_a_dtype_takes_that_of_the_model(dtype):
    profile = measure(nn.Linear(4, 3, dtype=dtype), "8x4")
    assert profile[0].shape == (8, 3)
