"""Run by torchrun in each process: a rank must hold, bit for bit, its shard of what one process draws."""

import itertools
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from isometry.errors import InvalidValueError
from isometry.sampling import (
    Constant,
    Normal,
    TruncatedNormal,
    Uniform,
    Whole,
    drawing,
    fill_,
    fill_keyed_,
    haar,
    materialize_,
    write_,
)


@dataclass(frozen=True)
class Orthogonal(Whole):
    gain: float = 1.0

    def draw(self, shape, generator):
        batch = shape[0] if len(shape) == 3 else 1
        return haar(batch, shape[-2], shape[-1], generator).mul_(self.gain).reshape(shape)


class Block(nn.Module):
    def __init__(self, width=6, hidden=12):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.register_buffer("scale", torch.full((width,), 0.5), persistent=False)

    def forward(self, x):
        return x + self.scale * self.down(self.up(x).relu())


def build():
    model = nn.Sequential()
    model.add_module("embed", nn.Linear(7, 6, bias=False))
    model.add_module("first", Block())
    model.add_module("second", Block())
    return model


LAWS = {"weight": Normal(0.3), "bias": Uniform(-0.1, 0.2)}


def laws(model):
    found = {name: LAWS[name.rsplit(".", 1)[1]] for name, _ in model.named_parameters()}
    return found | {"second.down.weight": Orthogonal(1.5)}


def reference(seed):
    model = build()
    write_(model, laws(model), seed=seed, keep=())
    return dict(model.named_parameters())


def check_dtensor(mesh, shape, placements, law, dtype=torch.float32):
    full = fill_keyed_(torch.empty(shape, dtype=dtype), law, seed=5, name="x")
    expected = distribute_tensor(full, mesh, placements)
    drawn = distribute_tensor(torch.zeros(shape, dtype=dtype), mesh, placements)
    with CommDebugMode() as collectives:
        fill_keyed_(drawn, law, seed=5, name="x")
    assert collectives.get_total_counts() == 0
    context = (mesh.shape, shape, placements, law, dtype)
    assert torch.equal(drawn.to_local(), expected.to_local()), context


def check_placements(world):
    line = init_device_mesh("cpu", (world,))
    for shape in ((7, 5), (600, 700), (3, 4, 5)):
        for placement in [Replicate(), *(Shard(d) for d in range(len(shape)))]:
            check_dtensor(line, shape, [placement], Normal(1.0))
    for law, dtype in itertools.product(
        (TruncatedNormal(0.7, 0.1, 2.5), Uniform(-1.0, 3.0), Constant(2.0), Orthogonal()),
        (torch.float32, torch.bfloat16),
    ):
        check_dtensor(line, (30, 17), [Shard(0)], law, dtype)
        check_dtensor(line, (30, 17), [Shard(1)], law, dtype)
    check_dtensor(line, (9, 4), [Shard(0)], Normal(1.0), torch.complex64)
    check_dtensor(line, (2 * world, 3), [_StridedShard(0, split_factor=2)], Normal(1.0))
    plane = init_device_mesh("cpu", (world // 2, 2))
    kinds = (Replicate(), Shard(0), Shard(1))
    for pair in itertools.product(kinds, kinds):
        check_dtensor(plane, (13, 10), pair, Normal(1.0))
        check_dtensor(plane, (12, 8), pair, Orthogonal())
    check_dtensor(plane, (16, 5), [_StridedShard(0, split_factor=2), Shard(0)], Normal(1.0))
    check_dtensor(plane, (16, 5), [_StridedShard(0, split_factor=2), Shard(0)], Orthogonal())
    space = init_device_mesh("cpu", (1, world // 2, 2))
    for triple in itertools.product((Replicate(), Shard(2)), (Shard(0), Shard(1)), (Replicate(), Shard(0))):
        check_dtensor(space, (9, 6, 5), triple, Normal(1.0))


def check_share_of_work(world):
    """A shard of a large matrix draws its own part alone, whichever dimension is cut."""
    words = []
    tile_bits = drawing.tile_bits
    drawing.tile_bits = lambda key, tile, count: (words.append(count), tile_bits(key, tile, count))[1]
    mesh = init_device_mesh("cpu", (world,))
    for dim in (0, 1):
        words.clear()
        x = DTensor.from_local(
            torch.empty([2048 // world, 2048] if dim == 0 else [2048, 2048 // world]), mesh, [Shard(dim)]
        )
        fill_keyed_(x, Normal(1.0), seed=0, name="x")
        assert sum(words) == x.numel() // world, (dim, sum(words))
    drawing.tile_bits = tile_bits


def check_errors(world):
    mesh = init_device_mesh("cpu", (world,))
    partial = DTensor.from_local(torch.zeros(4, 3), mesh, [Partial()])
    with pytest.raises(InvalidValueError, match="redistribute"):
        fill_keyed_(partial, Normal(1.0), seed=0, name="x")
    # from a generator in the same state on every rank
    full = fill_(torch.empty(8, 3), Normal(1.0), generator=torch.Generator().manual_seed(3))
    drawn = distribute_tensor(torch.zeros(8, 3), mesh, [Shard(0)])
    fill_(drawn, Normal(1.0), generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn.to_local(), distribute_tensor(full, mesh, [Shard(0)]).to_local())


def tensor_parallel(model, mesh):
    for block in (model.first, model.second):
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def shard_fully(model, mesh):
    for block in (model.first, model.second):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def check_models(world):
    expected = reference(seed=1)
    line = init_device_mesh("cpu", (world,))
    plane = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))

    def both(model):
        tensor_parallel(model, plane["tp"])
        shard_fully(model, plane["dp"])

    ways = {
        "fully_shard": lambda model: shard_fully(model, line),
        "tensor parallel": lambda model: tensor_parallel(model, line),
        "both": both,
    }
    for way, apply in ways.items():
        for meta in (False, True):
            with torch.device("meta" if meta else "cpu"):
                model = build()
            apply(model)
            if meta:
                materialize_(model, laws(model), seed=1, build=build)
            else:
                write_(model, laws(model), seed=1, keep=())
            for name, parameter in model.named_parameters():
                full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                assert torch.equal(full, expected[name]), (way, meta, name)
            assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
            # it trains: the memory is the one that the wrappers use
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.ones(4, 7)).square().mean().backward()
            optimizer.step()
            first = dict(model.named_parameters())["embed.weight"]
            full = first.full_tensor() if isinstance(first, DTensor) else first
            assert not torch.equal(full, expected["embed.weight"]), (way, meta)


def check_wrappers():
    expected = reference(seed=2)
    model = build()
    model.first = checkpoint_wrapper(model.first)
    model = nn.parallel.DistributedDataParallel(torch.compile(model))
    write_(model, laws(build()), seed=2, keep=())
    for (name, value), parameter in zip(expected.items(), model.parameters(), strict=True):
        assert torch.equal(parameter, value), name


def main():
    warnings.simplefilter("error")
    # gloo's own remarks, none of ours
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    check_placements(world)
    check_share_of_work(world)
    check_errors(world)
    check_models(world)
    check_wrappers()
    dist.barrier()
    dist.destroy_process_group()
    print("all equal", file=sys.stderr)


if __name__ == "__main__":
    main()
