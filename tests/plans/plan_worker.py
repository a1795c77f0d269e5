"""Run by torchrun in each process: sharded and wrapped models hold what one process writes."""

import sys
import warnings

import torch
import torch.distributed as dist
from plan_cases import Model, plan_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from isometry.init.mirrored import Mirrored, Rotation

LAWS = {
    "up.weight": Mirrored(0.5, "first", source=Rotation(1, 6, 4), target=Rotation(2, 4, 4)),
    "down.weight": Mirrored(0.5, "last", source=Rotation(2, 4, 4), target=Rotation(3, 6, 4)),
}


class Build(Model):
    """The model without norms, which tensor parallelism cannot run through."""

    def __init__(self):
        super().__init__()
        self.norm = self.plain = nn.Identity()
        # a tied table would have to be sharded in both places alike
        self.head = nn.Linear(6, 9, bias=False)


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(model, plan, expected, way, **options):
    plan.apply_(model, seed=3, **options)
    found = dict(zip(expected, model.parameters(), strict=True))
    for name, value in expected.items():
        assert torch.equal(full(found[name]), value), (way, name)
    assert not plan.diff(model), way
    lrs = {group["lr"]: len(group["params"]) for group in plan.parameter_groups(model, 0.1)}
    assert lrs == {0.1: 4, 0.05: 1}, way


def main():
    warnings.simplefilter("error")
    # gloo's own remarks, none of ours
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = plan_of(Build(), laws=LAWS, rates={"up.weight": 0.5})
    expected = dict(plan.apply_(Build(), seed=3).named_parameters())
    assert not expected["embed.weight"][2].any()

    def shard(model):
        fully_shard(model.up, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def split(model):
        return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})

    for way, wrap in {"fully_shard": shard, "tensor parallel": split}.items():
        for meta in (False, True):
            with torch.device("meta" if meta else "cpu"):
                model = wrap(Build())
            check(model, plan, expected, (way, meta), **({"build": Build} if meta else {}))
            assert model(torch.arange(4)).isfinite().all(), (way, meta)
    check(nn.parallel.DistributedDataParallel(Build()), plan, expected, "DDP")
    dist.barrier()
    dist.destroy_process_group()
    print("all equal", file=sys.stderr)


if __name__ == "__main__":
    main()
