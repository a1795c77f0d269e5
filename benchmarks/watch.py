"""What measuring and watching cost, beside the bare training step.

Run: python benchmarks/watch.py [--repeats 5]

Every variant runs the same steps of the same model, in turns (bare, watched, bare, …) so that a slow moment
of the machine meets all of them; shown are medians and their ratio to the bare step.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

import isometry
from isometry.tables import Table, compact


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """Ten layers of width 512, batches of 128."""
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(128, 512)


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """Six convolutions with batch norm on 32×32 images, batches of 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(
        32, 3, 32, 32
    )


class Transformer(nn.Module):
    """Four layers of width 128 over 64 positions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify the mean of all positions."""
        head: torch.Tensor = self.head(self.encoder(x).mean(1))
        return head


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Four layers of width 128, batches of 16 × 64 positions."""
    return Transformer(), torch.randn(16, 64, 128)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "MLP 10×512": mlp,
    "CNN 6×32": convolutional,
    "Transformer 4×128": transformer,
}


def seconds_per_step(
    build: Callable[[], tuple[nn.Module, torch.Tensor]], every: int | None, steps: int
) -> float:
    """Train for some steps, watched or not, and return the mean time of one."""
    torch.manual_seed(0)
    model, x = build()
    target = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watched = nullcontext() if every is None else isometry.watch(model, optimizer=optimizer, every=every)
    with watched as seen:
        start = time.process_time()
        for _ in range(steps):
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if seen is not None:
                seen.step(loss)
        return (time.process_time() - start) / steps


def seconds_to_measure(build: Callable[[], tuple[nn.Module, torch.Tensor]]) -> float:
    """Return the time of one measurement, forward and backward."""
    torch.manual_seed(0)
    model, x = build()
    start = time.process_time()
    isometry.measure(model, x)
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns per variant (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", isometry.errors.IsometryWarning)
    rows = []
    for name, build in MODELS.items():
        variants: dict[str, Callable[[], float]] = {
            "bare": lambda build=build: seconds_per_step(build, None, 20),
            "every=100": lambda build=build: seconds_per_step(build, 100, 100),
            "every=10": lambda build=build: seconds_per_step(build, 10, 20),
            "every=1": lambda build=build: seconds_per_step(build, 1, 20),
            "measure": lambda build=build: seconds_to_measure(build),
        }
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(options.repeats):
            for variant, run in variants.items():
                times[variant].append(run())
        medians = {variant: statistics.median(values) for variant, values in times.items()}
        ratios = [f"{medians[variant] / medians['bare']:.2f}" for variant in list(variants)[1:]]
        rows.append([name, f"{compact(1000 * medians['bare'])} ms", *ratios])
    columns = ["Model", "bare step", "every=100", "every=10", "every=1", "measure()"]
    print(Table(columns, rows, title="Processor time of a step, as a multiple of the bare one"))


if __name__ == "__main__":
    main()
