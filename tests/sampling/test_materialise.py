import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.sampling import Constant, Normal, Whole, fill_keyed_, incomplete, materialize_, write_


class Attention(nn.Module):
    """Rotary tables that no checkpoint holds, a plain attribute, and tied weights."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("inverse", 100.0 ** -(torch.arange(0, width, 2) / width), persistent=False)
        self.register_buffer("noise", torch.randn(4))
        self.register_buffer("nothing", None)
        self.positions = torch.arange(5)

    def forward(self, x):
        return self.head(self.norm(self.proj(self.embed(x)) + self.inverse.sum() + self.noise.sum()))


def on_meta():
    with torch.device("meta"):
        return Attention()


def laws(model):
    return {name: Constant(1.0) if "norm" in name else Normal(0.5) for name, _ in model.named_parameters()}


def test_a_meta_model_becomes_the_model_that_write_gives():
    torch.manual_seed(5)
    real, meta = Attention(), on_meta()
    write_(real, laws(real), seed=3, keep=())
    before = torch.random.get_rng_state()
    materialize_(meta, laws(meta), seed=3, build=Attention)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in real.named_parameters():
        assert torch.equal(meta.get_parameter(name), parameter), name
    assert torch.equal(meta.inverse, real.inverse)
    assert torch.equal(meta.positions, real.positions)
    assert meta.norm.running_var.tolist() == [1.0] * 6
    assert meta.head.weight is meta.embed.weight
    assert meta.nothing is None
    meta(torch.arange(4)).sum().backward()
    again = on_meta()
    materialize_(again, laws(again), seed=3, build=Attention)
    assert torch.equal(again.noise, meta.noise)
    materialize_(other := on_meta(), laws(again), seed=4, build=Attention)
    assert not torch.equal(other.noise, meta.noise)


def test_parameters_stay_the_same_objects():
    meta = on_meta()
    meta.proj.weight.tag = "mine"
    meta.proj.bias.requires_grad_(False)
    seen = []
    handle = meta.proj.weight.register_hook(lambda g: seen.append(g.shape))
    meta.proj.weight.register_post_accumulate_grad_hook(lambda p: seen.append("after"))
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.1)
    held = list(meta.parameters())
    materialize_(meta, laws(meta), build=Attention)
    assert all(a is b for a, b in zip(held, meta.parameters(), strict=True))
    assert meta.proj.weight.tag == "mine"
    assert not meta.proj.bias.requires_grad
    meta(torch.arange(4)).square().sum().backward()
    assert seen == [(6, 6), "after"]
    handle.remove()
    meta(torch.arange(4)).square().sum().backward()
    assert seen[2:] == ["after"]
    before = meta.proj.weight.clone()
    optimizer.step()
    assert not torch.equal(meta.proj.weight, before)


def test_weak_references_forbid_that_and_ties_hold_all_the_same():
    meta = on_meta()
    reference = weakref.ref(meta.embed.weight)
    seen = []
    meta.embed.weight.register_hook(lambda g: seen.append(g.shape))
    materialize_(meta, laws(meta), build=Attention)
    assert reference() is not meta.embed.weight
    assert meta.head.weight is meta.embed.weight
    assert torch.equal(
        meta.embed.weight, fill_keyed_(torch.empty(9, 6), Normal(0.5), seed=0, name="embed.weight")
    )
    meta(torch.arange(4)).square().sum().backward()
    assert seen == [(9, 6)]


def test_an_interrupt_after_the_memory_came_marks_the_model():
    class Fails(Whole):
        def draw(self, shape, generator):
            raise KeyboardInterrupt

    meta = on_meta()
    with pytest.raises(KeyboardInterrupt):
        materialize_(meta, laws(meta) | {"proj.weight": Fails()}, build=Attention)
    assert incomplete(meta)
    with pytest.raises(ModelError, match="this Attention is incomplete"):
        meta(torch.arange(4))
    materialize_(meta, laws(meta), build=Attention)
    assert not incomplete(meta)
    expected = on_meta()
    materialize_(expected, laws(meta), build=Attention)
    assert torch.equal(meta(torch.arange(4)), expected(torch.arange(4)))


def test_parametrised_weights_come_from_meta_too():
    def build():
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

    with torch.device("meta"):
        layer = build()
    materialize_(layer, {"weight": Normal(0.5), "bias": Constant(0.0)})
    drawn = fill_keyed_(torch.empty(4, 3), Normal(0.5), seed=0, name="weight")
    torch.testing.assert_close(layer.weight.detach(), drawn)


def test_values_of_buffers_may_be_given():
    meta = on_meta()
    given = {"inverse": torch.ones(3), "noise": torch.zeros(4), "positions": torch.arange(5)}
    materialize_(meta, laws(meta), buffers=given)
    assert meta.inverse.tolist() == [1.0] * 3
    assert meta.positions.tolist() == [0, 1, 2, 3, 4]
    assert meta.norm.num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({}, {}, ModelError, "nobody knows the values of 'inverse', 'noise', 'positions'"),
        ({}, {"buffers": {"inverze": torch.ones(3)}}, NotFoundError, "did you mean 'inverse'?"),
        (
            {},
            {"buffers": {"inverse": torch.ones(4)}, "build": Attention},
            InvalidValueError,
            "has shape (3,)",
        ),
        (
            {},
            {"buffers": {"inverse": [1.0]}, "build": Attention},
            InvalidTypeError,
            "must be a tensor, got list",
        ),
        ({}, {"build": lambda: 3}, InvalidTypeError, "build must return a torch.nn.Module, got int"),
        ({}, {"build": on_meta}, ModelError, "nobody knows the values"),
        (
            {"proj.weight": None},
            {"build": Attention},
            InvalidValueError,
            "no distribution is given for 'proj.weight'",
        ),
        (
            {"proj.weight": None},
            {"build": Attention, "keep": ["proj.weight"]},
            ModelError,
            "on the meta device and without values",
        ),
        ({}, {"build": Attention, "device": "meta"}, InvalidValueError, "must not be 'meta'"),
        ({}, {"build": Attention, "device": "gpu"}, InvalidValueError, "device='gpu' cannot be used"),
        ({"proj.w": Normal(1.0)}, {"build": Attention}, NotFoundError, "did you mean 'proj.weight'?"),
    ],
)
def test_a_model_that_would_lack_values_stays_on_meta(change, options, error, words):
    meta = on_meta()
    requested = {name: law for name, law in (laws(meta) | change).items() if law is not None}
    with pytest.raises(error) as caught:
        materialize_(meta, requested, **options)
    assert words in str(caught.value)
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers(), meta.positions))


def test_what_has_memory_is_written_where_it_is():
    m = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, device="meta"))
    pointer = m[0].weight.data_ptr()
    frozen = m[0].bias.clone()
    wanted = {"0.weight": Normal(1.0), "1.weight": Normal(1.0), "1.bias": Constant(0.0)}
    materialize_(m, wanted, keep=["0.bias"])
    assert m[0].weight.data_ptr() == pointer
    assert torch.equal(m[0].bias, frozen)


MEMORY = """
import torch
from torch import nn
from isometry.sampling import Normal, materialize_

def status(key):
    # VmHWM is this program's own peak; ru_maxrss would count the parent's too
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
def make(count, device):
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False, device=device) for _ in range(count)))
def fill(model):
    materialize_(model, {name: Normal(1.0) for name, _ in model.named_parameters()})
fill(make(1, "meta"))
before = status("VmRSS")
model = make(16, "meta")
fill(model)
print(status("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_the_peak_of_memory_is_the_parameters_and_a_tile():
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    grown, parameters = map(int, result.stdout.split())
    assert parameters == 2**28
    # Beyond the parameters 16 MiB cover a tile, its scratch and what Python allocates. A copy of a matrix,
    # 16 MiB more, would show.
    assert 0.9 * parameters < grown < parameters + 2**24
