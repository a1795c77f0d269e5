import random

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import IsometryWarning
from isometry.restore import preserved, random_state


class Restless(nn.Module):
    """Changes everything it has."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("ema", torch.zeros(2))
        self.plain = torch.zeros(2)
        self.count = 0
        self.shared = self.ema

    def forward(self, x):
        self.count += 1
        self.cache = x
        self.ema += 1
        self.plain += 1
        self.new = self.ema.clone()
        self.eval()
        self.fc.weight.requires_grad_(False)
        self.fc.weight.grad = torch.ones(2, 3)
        random.random(), np.random.rand(), torch.rand(1)
        return self.norm(self.fc(x))


def snapshot(model):
    return (
        {name: (id(t), t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()},
        {
            name: (p.requires_grad, None if p.grad is None else id(p.grad))
            for name, p in model.named_parameters()
        },
        [module.training for module in model.modules()],
        [sorted(module.__dict__) for module in model.modules()],
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    )


def assert_same(before, after):
    for name, (identity, values, version) in before[0].items():
        assert after[0][name][0] == identity
        assert torch.equal(after[0][name][1], values)
        assert after[0][name][2] == version
    assert before[1:] == after[1:]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_is_as_before(error):
    model = Restless()
    model.fc.bias.grad = torch.ones(2)
    plain = model.plain
    before = snapshot(model)
    try:
        with preserved(model):
            model(torch.randn(4, 3))
            assert model.shared is model.ema  # what was shared stays shared
            assert model.ema.tolist() == [1, 1]
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error is not None
    assert_same(before, snapshot(model))
    assert model.plain is plain
    assert plain.tolist() == [0, 0]
    assert model.count == 0


def test_a_graph_from_before_can_still_run_backward():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    loss = model(torch.randn(4, 3)).sum()  # saves the running statistics
    model.train()
    with preserved(model):
        model(torch.randn(4, 3))
    loss.backward()


def test_a_parameter_that_the_forward_overwrites_is_reported():
    class Decaying(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight *= 0.9
            return super().forward(x)

    model = Decaying(3, 2)
    with pytest.warns(IsometryWarning, match="overwrote its parameter 'weight'"), preserved(model):
        model(torch.randn(4, 3))


def test_added_submodules_and_buffers_go():
    model = nn.Sequential(nn.Linear(2, 2))
    with preserved(model):
        model.add_module("extra", nn.ReLU())
        model.register_buffer("b", torch.ones(1))
    assert list(model._modules) == ["0"]
    assert list(model._buffers) == []


def test_random_state_of_all_three():
    restore = random_state()
    first = random.random(), np.random.rand(), torch.rand(1).item()
    restore()
    assert first == (random.random(), np.random.rand(), torch.rand(1).item())


def test_a_leaf_outside_the_parameters_collects_no_gradient():
    model = nn.Linear(2, 2)
    model.prompt = torch.zeros(2, requires_grad=True)
    prompt = model.prompt
    with preserved(model):
        model(model.prompt).sum().backward()
    assert model.prompt is prompt
    assert prompt.grad is None


class Hooking(nn.Module):
    """Hooks its layer on its first pass, and keeps in an attribute that it has done so."""

    def __init__(self):
        super().__init__()
        self.layer, self.hooked = nn.Linear(3, 2), False

    def forward(self, x):
        seen = []
        if not self.hooked:
            self.layer.register_forward_hook(lambda *_: seen.append(1))
            self.layer.register_forward_hook(lambda *_: None, always_call=True)
            self.hooked = True
        return self.layer(x)


def test_a_model_that_hooks_itself_does_so_anew():
    model = Hooking()
    kept = model.layer.register_forward_hook(lambda *_: None)
    with preserved(model):
        model(torch.ones(1, 3))
        assert len(model.layer._forward_hooks) == 3
    assert not model.hooked
    assert list(model.layer._forward_hooks) == [kept.id]
    assert not model.layer._forward_hooks_always_called
