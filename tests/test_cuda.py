"""What must hold on a GPU as it does on the CPU; skipped where there is none."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations

import isometry
from isometry.sampling import (
    Constant,
    Normal,
    TruncatedNormal,
    Uniform,
    fill_,
    fill_keyed_,
    incomplete,
    write_,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LAWS = [
    Normal(0.3, 0.1),
    Uniform(-0.2, 0.7),
    TruncatedNormal(0.5),
    TruncatedNormal(0.5, 1.0, 3.5),
    Constant(1.5),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.down(self.drop(F.gelu(self.up(x))))


def network(width=32, depth=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), *(Block(width) for _ in range(depth)), nn.Linear(width, 10))


def batch(device="cpu"):
    return torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(1), device="cpu").to(device)


def values(model):
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def randomness():
    return torch.get_rng_state(), torch.cuda.get_rng_state()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (700, 900), (2, 3, 517, 129)], ids=str)
def test_a_gpu_holds_the_values_of_the_cpu_bit_for_bit(law, dtype, shape):
    before = randomness()
    here = fill_keyed_(torch.empty(shape, dtype=dtype), law, seed=3, name="w")
    there = fill_keyed_(torch.empty(shape, dtype=dtype, device="cuda"), law, seed=3, name="w")
    assert there.is_cuda
    assert torch.equal(here, there.cpu())
    assert all(map(torch.equal, before, randomness()))


def test_strided_targets_on_a_gpu():
    whole = torch.zeros(64, 96, device="cuda")
    fill_keyed_(whole.t()[::2], Normal(1.0), seed=0, name="w")
    assert torch.equal(whole.t()[::2].cpu(), fill_keyed_(torch.empty(48, 64), Normal(1.0), seed=0, name="w"))
    assert not whole.t()[1::2].any()


def test_a_generator_of_the_gpu_gives_the_key():
    generator = torch.Generator("cuda").manual_seed(5)
    first = fill_(torch.empty(40, 30, device="cuda"), Normal(1.0), generator=generator)
    second = fill_(torch.empty(40, 30, device="cuda"), Normal(1.0), generator=generator)
    generator.manual_seed(5)
    assert torch.equal(first, fill_(torch.empty(40, 30, device="cuda"), Normal(1.0), generator=generator))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("recipe", ["auto", "torch", "kaiming", "orthogonal", "deepnorm", "mimetic", "lsuv"])
def test_a_model_on_a_gpu_gets_the_weights_it_would_get_on_the_cpu(recipe):
    here, there = network().eval(), network().eval().cuda()
    before = randomness()
    isometry.init_(here, batch(), recipe=recipe)
    isometry.init_(there, batch("cuda"), recipe=recipe)
    assert all(map(torch.equal, before, randomness()))
    assert all(parameter.is_cuda for parameter in there.parameters())
    for name, value in values(there).items():
        # "lsuv" divides by what each machine measured; the other stds are predicted from the same moments.
        torch.testing.assert_close(value, values(here)[name], rtol=1e-3 if recipe == "lsuv" else 1e-6, atol=0)


def test_a_calibrated_plan_on_a_gpu():
    model = network().eval().cuda()
    isometry.init_(model, batch("cuda"), calibrate=True)
    found = isometry.measure(model, batch("cuda"))
    blocks = [signal.forward.rms for signal in found.signals if signal.kind == "Block"]
    assert max(blocks) < 2 * min(blocks)


def test_meta_to_gpu():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    laws = {
        name: Normal(0.2) if tensor.dim() > 1 else Constant(1.0) for name, tensor in model.named_parameters()
    }
    isometry.materialize_(model, laws, device="cuda")
    assert all(tensor.is_cuda for tensor in model.state_dict().values())
    again = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    write_(again, laws)
    assert same(values(model), values(again))


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm],
)
def test_parametrised_weights_on_a_gpu(wrap):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(wrap(nn.Linear(12, 12)))

    here, there = build(), build().cuda()
    before = randomness()
    for model in (here, there):
        write_(model, {"0.weight": Normal(0.3)})
    assert all(map(torch.equal, before, randomness()))
    torch.testing.assert_close(there[0].weight.cpu(), here[0].weight, rtol=1e-4, atol=1e-5)


def test_no_memory_on_the_gpu_leaves_a_model_that_can_be_written_again():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).cuda()
    real = torch.Tensor.copy_
    calls = []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(self, *args, **kwargs)

    laws = {"0.weight": Normal(0.1), "1.weight": Uniform(-1, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            write_(model, laws)
    assert incomplete(model)
    write_(model, laws)
    assert not incomplete(model)
    expected = fill_keyed_(torch.empty(64, 64), Uniform(-1, 1), seed=0, name="1.weight")
    assert torch.equal(model[1].weight.cpu(), expected)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="needs NCCL")
def test_a_sharded_model_on_a_gpu(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with torch.device("meta"):
            model = network()
        for block in model[1:-1]:
            fully_shard(block)
        fully_shard(model)
        plan = isometry.plan(network(), batch())
        plan.apply_(model, device="cuda", build=network)
        expected = plan.apply_(network())
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            assert torch.equal(parameter.full_tensor().cpu(), expected.get_parameter(name)), name
        assert torch.isfinite(model(batch("cuda"))).all()
    finally:
        dist.destroy_process_group()


# --- signal -------------------------------------------------------------------------------------------------


def test_measuring_leaves_a_model_on_a_gpu_as_it_was_and_agrees_with_the_cpu():
    model = network()
    here = isometry.measure(copy.deepcopy(model), batch())
    model = model.cuda()
    state, before = values(model), randomness()
    there = isometry.measure(model, batch("cuda"))
    assert same(state, values(model))
    assert all(map(torch.equal, before, randomness()))
    assert [s.name for s in here.signals] == [s.name for s in there.signals]
    for mine, other in zip(here.signals, there.signals, strict=True):
        # dropout draws another mask on a GPU
        assert other.forward.rms == pytest.approx(mine.forward.rms, rel=0.05), mine.name
        assert other.backward.rms == pytest.approx(mine.backward.rms, rel=0.1), mine.name


def test_inputs_described_by_a_spec_are_made_where_the_model_is():
    found = isometry.measure(network().cuda(), "16x6x8")
    assert found[-1].shape == (16, 6, 10)


def test_prediction_of_a_model_on_a_gpu_is_that_of_the_cpu():
    model = network().eval()
    here = isometry.predict(model, batch())
    there = isometry.predict(model.cuda(), batch("cuda"))
    for mine, other in zip(here.signals, there.signals, strict=True):
        assert other.forward.rms == pytest.approx(mine.forward.rms, rel=1e-5), mine.name
        assert other.backward.rms == pytest.approx(mine.backward.rms, rel=1e-5), mine.name


def test_auditing_a_model_on_a_gpu():
    found = isometry.audit(network().eval().cuda(), batch("cuda"))
    assert len(found.rows) > 10
    assert len(found.outside) < len(found.rows) / 4


def test_training_on_a_gpu_is_equal_to_the_bit_with_and_without_the_watch():
    def train(watched):
        torch.manual_seed(7)
        model = network().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []

        def step():
            loss = model(batch("cuda")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            return loss

        if watched:
            with isometry.watch(model, optimizer=optimizer, every=2) as watch:
                for _ in range(6):
                    watch.step(step())
        else:
            for _ in range(6):
                step()
        return torch.stack(losses).cpu(), values(model), torch.cuda.get_rng_state()

    plain, watched = train(False), train(True)
    assert torch.equal(plain[0], watched[0])
    assert same(plain[1], watched[1])
    assert torch.equal(plain[2], watched[2])


def test_mixed_precision_on_a_gpu_is_measured_and_watched():
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda")
    with isometry.watch(model, optimizer=optimizer, every=1, scaler=scaler) as watch:
        for _ in range(3):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(batch("cuda")).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss)
    assert not [finding for finding in watch.findings if "finite" in str(finding)]


def test_comparing_on_a_gpu():
    def build():
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).cuda()

    before = randomness()
    found = isometry.compare(build, "digits", inits=("torch", "kaiming", "auto"), steps=40, lr=0.1)
    assert all(map(torch.equal, before, randomness()))
    assert not found.skipped
    assert found["auto"].run.accuracy > 0.7


def test_nothing_stays_on_the_gpu():
    model = network().cuda()
    isometry.init_(model, batch("cuda"))
    gc.collect()
    before = torch.cuda.memory_allocated()
    isometry.measure(model, batch("cuda"))
    isometry.predict(model, batch("cuda"))
    isometry.init_(model, batch("cuda"))
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_a_default_device_of_cuda_changes_nothing():
    expected = isometry.plan(network().eval(), batch())
    with torch.device("cuda"):
        model = network().eval()
        found = isometry.plan(model, batch("cuda"))
        isometry.measure(model, batch("cuda"))
        assert isometry.gain("gelu") == isometry.gain("gelu")
    for mine, other in zip(expected.rows, found.rows, strict=True):
        assert (mine.name, mine.role) == (other.name, other.role)
