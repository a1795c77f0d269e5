"""What a prediction costs: a Llama of 405 billion parameters, and the growth with depth, width and sequence.

    python benchmarks/prediction_cost.py            # the growth, then the full size
    python benchmarks/prediction_cost.py --small    # the growth alone
    python benchmarks/prediction_cost.py --plan     # the plan of recipe "auto" for the full size

Every row is measured in a process of its own, from constructor to printed profile, forward and backward,
beside the bare forward and backward of the same model on meta tensors. Times are of the processor, on one
thread (and of the clock), peak memory is that of the process. Needs transformers.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

FULL = {"layers": 126, "width": 16384, "heads": 128, "length": 8192}
BASE = {"layers": 8, "width": 4096, "heads": 32, "length": 1024}
GROWTH = (
    BASE,
    {**BASE, "layers": 16},
    {**BASE, "layers": 32},
    {**BASE, "width": 8192, "heads": 64},
    {**BASE, "width": 16384, "heads": 128},
    {**BASE, "length": 4096},
    {**BASE, "length": 16384},
)


def one(layers: int, width: int, heads: int, length: int) -> dict[str, float]:
    """Measure one size in this process."""
    sys.path.insert(0, str(Path(__file__).parent))
    import torch

    from torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    import isometry

    config = transformers.LlamaConfig(**_shape(layers, width, heads))
    torch.set_num_threads(1)
    isometry.predict(torch.nn.Linear(3, 4), "2x3")  # imports and quadrature are paid once per process
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        ids = torch.zeros(1, length, dtype=torch.long)
        mask = torch.empty(1, 1, length, length)  # given, as bare meta cannot answer the mask's questions
    start = time.process_time()
    model(ids, attention_mask=mask).logits.sum().backward()
    bare = time.process_time() - start
    del model
    start, clock = time.process_time(), time.perf_counter()
    profile = isometry.predict(
        lambda: transformers.LlamaForCausalLM(config), f"1x{length}:int64<{config.vocab_size}"
    )
    str(profile)
    total, wall = time.process_time() - start, time.perf_counter() - clock
    unknown = sum("unknown:" in note for note in profile.notes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"bare": bare, "predict": total, "wall": wall, "GiB": peak, "unknown": unknown}


def _shape(layers: int, width: int, heads: int) -> dict[str, object]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": width * 13 // 4,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "use_cache": False,
    }


def plan(layers: int, width: int, heads: int, length: int) -> None:
    """Plan one size on meta tensors; print the plan, the seconds and the memory."""
    sys.path.insert(0, str(Path(__file__).parent))
    import torch

    from torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    import isometry

    torch.set_num_threads(1)
    start = time.perf_counter()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_shape(layers, width, heads)))
    print(isometry.plan(model, f"1x{length}:int64<128256"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:.1f} s on the clock, one thread; {peak:.2f} GiB at most")


def main() -> None:
    """Print one line per size."""
    if "--plan" in sys.argv:
        plan(**FULL)
        return
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print(json.dumps(one(**json.loads(sys.argv[1]))))
        return
    print("layers  width  length   bare meta (CPU)  predict (CPU)  (wall)   ratio   peak GiB   unknown")
    for size in (*GROWTH, *(() if "--small" in sys.argv else (FULL,))):
        run = subprocess.run(
            [sys.executable, __file__, json.dumps(size)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        row = json.loads(run.stdout.splitlines()[-1])
        sizes = f"{size['layers']:6d} {size['width']:6d} {size['length']:7d}"
        times = f"{row['bare']:15.2f} s {row['predict']:12.1f} s {row['wall']:7.1f} s"
        rest = f"{row['predict'] / row['bare']:7.1f} {row['GiB']:10.2f} {row['unknown']:9.0f}"
        print(sizes, times, rest, flush=True)


if __name__ == "__main__":
    main()
