"""Real processes: two of them on gloo, with sharded, tensor-parallel and replicated models."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_process_holds_its_part_of_what_one_process_writes():
    worker = Path(__file__).with_name("plan_worker.py")
    # The loopback address alone; the rendezvous chooses a free port itself.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    result = subprocess.run(
        [*launch, *rendezvous, str(worker)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-6000:]
    assert result.stderr.count("all equal") == 2
