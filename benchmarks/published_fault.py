"""A fault in a published architecture, found and mended: transformers' EfficientNet as it is constructed.

Its batch-norm weights are drawn from N(0, 0.02²), so every norm multiplies its signal by 0.02: behind 55
blocks nothing is left. Prints what `isometry audit` says of it, and the training loss on one batch from the
architecture's own start and after `isometry.init_`. Needs the dependency group `corpus`.

    python benchmarks/published_fault.py [--steps 12]
"""

from __future__ import annotations

import argparse
import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from torchvision_import import import_torchvision


def build() -> nn.Module:
    """Return the architecture with ten classes, as its constructor initialises it."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    return EfficientNetForImageClassification(EfficientNetConfig(image_size=64, num_labels=10))


def losses(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> list[float]:
    """Train on one batch with Adam and return the loss at every step."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixel_values=images).logits, labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def dead(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """Count the parameters whose measured gradient is exactly zero."""
    rows = [p.backward for p in isometry.measure(model, inputs).parameters if p.backward is not None]
    return f"{sum(row.rms == 0 for row in rows)} of {len(rows)}"


def main() -> None:
    """Print the fault, its cause, and the losses before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import_torchvision()
    model = build()
    inputs, labels = {"pixel_values": torch.randn(16, 3, 64, 64)}, torch.arange(16) % 10
    for fault in isometry.diagnose(model, inputs):
        print(fault)
    mended = copy.deepcopy(model)
    isometry.init_(mended, inputs, seed=0)
    for name, one in (("as constructed", model), ("after init_", mended)):
        print(f"{name}: gradient exactly zero for {dead(one, inputs)} parameters")
        told = losses(one, inputs["pixel_values"], labels, steps)
        print(f"{name}: loss on one batch " + " ".join(f"{loss:.3f}" for loss in told), flush=True)


if __name__ == "__main__":
    main()
