from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from isometry.errors import InvalidTypeError, ModelError
from isometry.hooks import (
    Recorder,
    checked_model,
    is_compiled,
    main_tensor,
    named_modules,
    on_gradient,
    recomputing,
    tensors_in,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rms(tensor):
    return float(tensor.detach().double().square().mean().sqrt())


def hook_count(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


def record(model, *inputs, backward=True):
    """Signals by (name, call), with the gradient of a fixed cotangent."""
    with Recorder(model, backward=backward) as recorder:
        output = model(*inputs)
        if backward:
            output.backward(torch.randn(output.shape, generator=generator(1)))
    return {(row.name, row.call): row for row in recorder.signals()}


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


def test_main_tensor_of_every_container():
    x, scalar, ids = torch.ones(2, 3), torch.tensor(1.0), torch.arange(4)
    assert main_tensor(x) is x
    assert main_tensor((None, [ids, x])) is x
    assert main_tensor(Output(scalar, x)) is x
    assert main_tensor(OrderedDict(loss=scalar, logits=x)) is x
    assert main_tensor((scalar, ids)) is scalar
    assert main_tensor([ids]) is ids
    assert main_tensor({"a": None, "b": 3}) is None
    assert [t is x for t in tensors_in({"a": (x, 1), "b": Output(scalar, x)})] == [True, False, True]


def test_signals_equal_what_retain_grad_says():
    model = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3))
    x = torch.randn(5, 7, generator=generator())
    found = record(model, x)
    values = [x]
    for module in model:
        values.append(module(values[-1]))
        values[-1].retain_grad()
    values[-1].backward(torch.randn(5, 3, generator=generator(1)))
    for name, value in zip("012", values[1:], strict=True):
        row = found[name, 0]
        assert row.shape == value.shape
        assert row.forward.rms == pytest.approx(rms(value), rel=1e-12)
        assert row.backward.rms == pytest.approx(rms(value.grad), rel=1e-12)
    assert found["", 0].forward == found["2", 0].forward


class InPlace(nn.Module):
    """An in-place activation and an in-place residual add, where full backward hooks raise."""

    def __init__(self, inplace):
        super().__init__()
        self.a, self.b, self.act, self.inplace = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace), inplace

    def forward(self, x):
        x = self.a(x)
        y = self.b(self.act(x + 0))
        if self.inplace:
            y += x
            return y
        return y + x


def test_in_place_operations_change_nothing_of_what_is_seen():
    torch.manual_seed(0)
    inplace, plain = InPlace(True), InPlace(False)
    plain.load_state_dict(inplace.state_dict())
    x = torch.randn(9, 6, generator=generator())
    assert record(inplace, x) == record(plain, x)


def test_an_in_place_activation_directly_behind_a_layer():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True))
    found = record(model, torch.randn(64, 4, generator=generator()))
    assert found["0", 0].forward.min < 0  # as the layer gave it, before relu overwrote it
    assert found["0", 0].backward.zeros == found["1", 0].forward.zeros  # relu cut exactly these


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.same = self.fc
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.same(self.fc(x).tanh())


def test_a_module_called_twice_has_two_rows_in_order():
    model = Twice()
    x = torch.randn(8, 4, generator=generator())
    found = record(model, x)
    assert list(found) == [("", 0), ("fc", 0), ("fc", 1)]
    assert found["fc", 0].forward.rms == pytest.approx(rms(model.fc(x)), rel=1e-12)
    assert found["fc", 1].forward.rms == pytest.approx(rms(model(x)), rel=1e-12)
    assert found["fc", 0].backward.rms != found["fc", 1].backward.rms


def test_several_passes_pool_and_count_calls_anew():
    model = nn.Sequential(nn.Linear(4, 3))
    parts = torch.randn(3, 10, 4, generator=generator())
    with Recorder(model, backward=False) as recorder:
        for part in parts:
            model(part)
    [root, row] = recorder.signals()
    whole = model(parts.reshape(30, 4)).detach().double()
    assert (root.call, row.call) == (0, 0)
    assert row.forward.rms == pytest.approx(rms(whole), rel=1e-6)
    assert row.forward.std == pytest.approx(float(whole.std(correction=0)), rel=1e-6)


class Checkpointed(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.first = nn.Linear(6, 6)
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2))

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):  # the recomputations come in the opposite order
            segment = partial(checkpoint, self.shared, use_reentrant=self.mode)
            x = self.shared(x) if self.mode is None else segment(x)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_rows_as_without(reentrant):
    torch.manual_seed(0)
    plain, checkpointed = Checkpointed(None), Checkpointed(reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(9, 6, generator=generator())
    torch.manual_seed(5)
    expected = record(plain, x)
    torch.manual_seed(5)
    found = record(checkpointed, x)
    assert found == expected


def test_recomputing_means_inside_a_backward_pass():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(recomputing()))
    y.sum().backward()
    assert (recomputing(), seen) == (False, [True])


class Odd(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.w, self.output = nn.Parameter(torch.ones(2)), output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "shape", "known"),
    [
        (None, (), False),
        ("text", (), False),
        (torch.arange(6).reshape(2, 3), (2, 3), False),
        (torch.ones(2, 3, dtype=torch.bool), (2, 3), False),
        (torch.empty(0, 5), (0, 5), True),
        (torch.tensor(2.0), (), True),
        (torch.ones(3, 2, dtype=torch.complex64), (3, 2), True),
        (torch.eye(3).to_sparse(), (3, 3), True),
    ],
)
def test_odd_outputs(output, shape, known):
    row = record(Odd(output), torch.ones(1), backward=False)["", 0]
    assert row.shape == shape
    assert (row.forward is not None) == known
    assert row.backward is None


def test_a_parameter_as_output_keeps_no_hook():
    class Returns(Odd):
        def forward(self, x):
            return self.w

    model = Returns(None)
    record(model, torch.ones(1))
    assert not model.w._backward_hooks


def test_sequence_first_modules_have_their_samples_in_the_second_dimension():
    lstm = nn.LSTM(3, 5)
    x = torch.randn(7, 4, 3, generator=generator())
    swapped = nn.LSTM(3, 5, batch_first=True)
    swapped.load_state_dict(lstm.state_dict())
    row, other = record_no_grad(lstm, x), record_no_grad(swapped, x.transpose(0, 1))
    assert row.forward.cosine == pytest.approx(other.forward.cosine, rel=1e-9)


def record_no_grad(model, x):
    with Recorder(model, backward=False) as recorder:
        model(x)
    return recorder.signals()[0]


def test_hooks_are_gone_also_after_errors_and_on_living_tensors():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    recorder = Recorder(model)
    with recorder:
        assert hook_count(model) == 6
        output = model(torch.ones(2, 4))
    with pytest.raises(RuntimeError), recorder:
        model(torch.ones(2, 5))
    assert hook_count(model) == 0
    before = recorder.signals()
    output.sum().backward()  # the graph outlives the recorder
    assert recorder.signals() == before


def test_the_failing_module_is_known_and_the_next_pass_starts_anew():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(5, 2)))
    with Recorder(model) as recorder:
        with pytest.raises(RuntimeError):
            model(torch.ones(2, 4))
        assert recorder.running == "1.0"
        model[1][0] = nn.Linear(3, 2)
        model(torch.ones(2, 4))
        assert recorder.running is None


def test_a_caught_error_inside_a_model_leaves_the_rest_in_order():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = nn.Linear(5, 3), nn.Linear(4, 3)

        def forward(self, x):
            try:
                return self.bad(x)
            except RuntimeError:
                return self.good(x)

    found = record(Tries(), torch.ones(2, 4))
    assert found["", 0].forward is not None
    assert found["good", 0].forward is not None
    assert found["bad", 0].forward is None


def test_only_training_looks_away_without_gradients():
    model = nn.Linear(4, 3)
    with Recorder(model, only_training=True) as recorder:
        with torch.no_grad():
            model(torch.ones(2, 4))
        assert recorder.signals() == ()
        model(torch.ones(2, 4))
    assert len(recorder.signals()) == 1


def test_gradients_are_divided_by_the_scale():
    model, x = nn.Linear(4, 3), torch.ones(2, 4)
    with Recorder(model, gradient_scale=lambda: 64.0) as recorder:
        (model(x).sum() * 64).backward()
    assert recorder.signals()[0].backward.rms == 1.0


def test_names_leave_the_wrappers_out():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    inner[0] = torch.compile(inner[0], backend="eager")
    assert list(named_modules(inner)) == ["", "0", "1"]
    assert type(named_modules(inner)["0"]) is nn.Linear
    assert is_compiled(inner)
    compiled_in_place = nn.Linear(2, 2)
    compiled_in_place.compile(backend="eager")
    assert is_compiled(compiled_in_place)


def test_what_cannot_be_followed_is_refused():
    assert checked_model(nn.DataParallel(model := nn.Linear(2, 2))) is model
    with pytest.raises(InvalidTypeError, match=r"must be a torch\.nn\.Module, got function"):
        checked_model(F.relu)
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        checked_model(nn.ReLU())
    with pytest.raises(ModelError, match=r"'0\.weight' is on the meta device"):
        checked_model(nn.Sequential(nn.Linear(2, 2, device="meta")))
    with pytest.raises(ModelError, match="has no shape yet"):
        checked_model(nn.LazyLinear(2))


def test_the_gradient_at_a_view_of_what_was_since_written_to():
    base = torch.zeros(4, 3, requires_grad=True) * 1.0
    view, seen = base[1:], []
    base.add_(1.0)
    handle = on_gradient(view, seen.append)
    (2.0 * view).sum().backward(retain_graph=True)
    handle.remove()
    (2.0 * view).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.full((3, 3), 2.0))
