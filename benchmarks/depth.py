"""How deep a plain network still learns from each start, on handwritten digits.

    python benchmarks/depth.py                   # all depths, about five minutes
    python benchmarks/depth.py --depths 30 300   # some of them

Prints the tables and sentences of docs/depth.md. Every start keeps its best of four learning rates.
"""

import argparse
import time

import torch

import isometry
from isometry.demo import plain

# depth → (steps, steps between two evaluations): fewer steps where each costs more.
BUDGETS = {30: (150, 10), 100: (150, 10), 300: (60, 2), 1000: (24, 2)}
INITS = ("torch", "kaiming", "orthogonal", "mirrored")
RATES = (0.001, 0.003, 0.01, 0.03)


def main() -> None:
    """Compare the starts at every depth and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--activation", default="gelu", choices=("relu", "gelu"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small: more threads gain nothing
    print(f"torch {torch.__version__}, one thread\n")
    for depth in options.depths:
        steps, every = BUDGETS[depth]
        began = time.perf_counter()
        found = isometry.compare(
            lambda depth=depth: plain(depth=depth, activation=options.activation),
            "digits",
            inits=INITS,
            lr=RATES,
            steps=steps,
            evaluate_every=every,
            batch_size=128,
            title=f"{depth} plain {options.activation} layers, {steps} SGD steps",
        )
        print(f"{found}\n({time.perf_counter() - began:.0f} s)\n")


if __name__ == "__main__":
    main()
