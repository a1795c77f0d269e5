"""Real processes: torchrun on gloo, 2 and 4 of them, each with every kind of sharding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isometry.sampling.shards import is_dtensor, shard_of
from isometry.sampling.tiles import Run


@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_holds_its_shard_of_what_one_process_draws(processes):
    worker = Path(__file__).with_name("distributed_worker.py")
    # The loopback address alone; the rendezvous chooses a free port itself.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    result = subprocess.run(
        [*launch, *rendezvous, str(worker)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-6000:]
    assert result.stderr.count("all equal") == processes


def test_a_plain_tensor_is_its_own_shard():
    x = torch.nn.Parameter(torch.zeros(3, 5))
    local, shape, runs = shard_of(x)
    assert (shape, runs) == ((3, 5), ((Run(0, 0, 3),), (Run(0, 0, 5),)))
    assert local.data_ptr() == x.data_ptr()
    assert not local.requires_grad
    assert not is_dtensor(x)
