"""What a prediction of a loop over time costs: recurrent layers by their number of steps.

    python benchmarks/steps_cost.py                    # all kinds, up to 256 steps
    python benchmarks/steps_cost.py lstm 64 512        # one kind, these numbers of steps

Each row is one layer of width 64 that reads four sequences of 32 numbers and gives its states to a linear
layer, measured in a process of its own: seconds of the processor, on one thread, of the bare forward and
backward on meta tensors and of the prediction, and how many pairs of steps' variables were asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

import isometry
from isometry.moments import kin

BATCH, INPUTS, WIDTH = 4, 32, 64
KINDS: dict[str, type[nn.Module]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM, "gru_cell": nn.GRUCell}
STEPS = (32, 64, 128, 256)


class Layer(nn.Module):
    """A recurrent layer, torch's own or a cell in a loop, and a linear one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.recurrent, self.head = KINDS[kind](INPUTS, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the linear layer makes of all states; x has the steps first."""
        if isinstance(self.recurrent, nn.GRUCell):
            state, states = x.new_zeros(x.shape[1], WIDTH), []
            for step in x:
                state = self.recurrent(step, state)
                states.append(state)
            made = torch.stack(states)
        else:
            made = self.recurrent(x)[0]
        told: Tensor = self.head(made)
        return told


def one(kind: str, steps: int) -> dict[str, float]:
    """Measure one layer in this process."""
    torch.set_num_threads(1)
    isometry.predict(nn.Linear(3, 4), "2x3")  # imports and quadrature are paid once per process
    asked, between = [0], kin._between

    def counted(*request: object) -> object:
        asked[0] += 1
        return between(*request)  # type: ignore[arg-type]

    kin._between = counted  # type: ignore[assignment]
    with torch.device("meta"):
        model, x = Layer(kind), torch.empty(steps, BATCH, INPUTS)
    start = time.process_time()
    model(x).sum().backward()
    bare = time.process_time() - start
    start = time.process_time()
    isometry.predict(lambda: Layer(kind), f"{steps}x{BATCH}x{INPUTS}")
    return {"bare": bare, "predict": time.process_time() - start, "asked": asked[0]}


def main() -> None:
    """Print one row per kind and number of steps."""
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
        return
    kinds = sys.argv[1:2] or list(KINDS)
    print("| layer | steps | bare | predict | per step | pairs asked per step |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in kinds:
        for steps in map(int, sys.argv[2:] or STEPS):
            run = subprocess.run(
                [sys.executable, __file__, "--one", kind, str(steps)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            row = json.loads(run.stdout.splitlines()[-1])
            times = f"{row['bare']:.2f} s | {row['predict']:.1f} s | {1000 * row['predict'] / steps:.0f} ms"
            print(f"| {kind} | {steps} | {times} | {row['asked'] / steps:.0f} |", flush=True)


if __name__ == "__main__":
    main()
