"""What the recipe "auto" does to real architectures: blocks, logits and attention after initialising.

For every architecture of the corpus: the RMS of each block's output and gradient over the first block's (a
block is a child of a container that holds several of its class), the cross-entropy at random targets over
ln C, and the standard deviation of attention scores along the softmax, measured on the model as it is drawn.

    python benchmarks/auto.py [names …] [--own] [--out auto.json]

`--own` measures the architectures' own initialisation instead. Needs the dependency group `corpus`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import isometry
from corpus import Entry, available

FACTOR, EXCESS = 2.0, 0.05


class Scores(TorchDispatchMode):
    """Gather the standard deviation of what every softmax reads, masked entries left out."""

    def __init__(self) -> None:
        super().__init__()
        self.spread: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "softmax" in func._schema.name and "backward" not in func._schema.name and args[0].dim() > 3:
            scores = args[0].detach().double()
            seen = scores > scores.amax(-1, keepdim=True) - 50
            count = seen.sum(-1).clamp(min=1)
            clean = torch.where(seen, scores, 0.0)
            mean = clean.sum(-1) / count
            variance = (torch.where(seen, scores - mean[..., None], 0.0) ** 2).sum(-1) / count
            weight = (count - 1.0).clamp(min=0.0)
            if float(weight.sum()) > 0:
                self.spread.append(float((variance * count).sum() / weight.sum()) ** 0.5)
        return func(*args, **(kwargs or {}))


def blocks(model: nn.Module) -> list[str]:
    """Return the names of repeated parts: what a list or sequence holds several of, with parts of its own."""
    names: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds = Counter(type(child) for child in module.children())
        for name, child in module.named_children():
            plain = isinstance(child, nn.Sequential | nn.MultiheadAttention)
            if kinds[type(child)] > 1 and not plain and any(True for _ in child.children()):
                names.append(f"{path}.{name}" if path else name)
    return names


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor of an output."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values = (
        output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    )
    return next((t for v in values if (t := first_tensor(v)) is not None), None)


def check(entry: Entry, *, own: bool) -> dict[str, Any]:
    """Initialise one architecture and measure it."""
    torch.manual_seed(0)
    model, inputs = entry.build(), entry.inputs()
    start = time.perf_counter()
    if not own:
        isometry.init_(model, inputs, seed=0)
    seconds = time.perf_counter() - start
    profile = isometry.measure(model, inputs)
    rows = {s.name: s for s in profile.signals if s.call == 0}
    seen = [rows[n] for n in blocks(model) if n in rows and rows[n].forward is not None]
    result: dict[str, Any] = {"seconds": round(seconds, 2), "blocks": len(seen)}
    for side in ("forward", "backward"):
        sizes = [s.rms for row in seen if (s := getattr(row, side)) is not None and s.rms is not None]
        if len(sizes) > 1 and sizes[0] > 0:
            result[side] = [min(sizes) / sizes[0], max(sizes) / sizes[0]]
    args = inputs if isinstance(inputs, tuple) else ()
    named = inputs if isinstance(inputs, dict) else {}
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        Scores() as scores,
    ):
        output = first_tensor(model(*args, **named))
    if scores.spread:
        result["scores"] = [min(scores.spread), max(scores.spread)]
    if output is not None and output.dim() >= 2 and _ends_in_head(model, output):
        classes = output.movedim(1, -1) if output.dim() == 4 else output
        flat = classes.reshape(-1, classes.shape[-1]).double()
        loss = (flat.logsumexp(-1) - flat.mean(-1)).mean()  # the expectation over targets of equal chances
        result["excess"] = float(loss) / math.log(flat.shape[1]) - 1.0
    return result


def _ends_in_head(model: nn.Module, output: Tensor) -> bool:
    """Return whether the last weight's outputs are the model's: logits, not states."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return any(
        (m.out_features if isinstance(m, nn.Linear) else m.out_channels)
        in (output.shape[-1], output.shape[1])
        and output.shape[-1] in (1000, 10)
        for m in last[-2:]
    )


def within(result: dict[str, Any]) -> bool:
    """Return whether all that was measured meets the aims."""
    for side in ("forward", "backward"):
        if side in result and not (result[side][0] >= 1 / FACTOR and result[side][1] <= FACTOR):
            return False
    return abs(result.get("excess", 0.0)) <= EXCESS and "error" not in result


def main() -> None:
    """Run over the corpus and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for entry in available():
        if options.names and entry.name not in options.names:
            continue
        try:
            result = check(entry, own=options.own)
        except Exception as error:  # told in the table
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        results[entry.name] = result
        cells = [f"{k} {v[0]:.2g}–{v[1]:.2g}" for k, v in result.items() if isinstance(v, list)]
        cells += [f"loss {100 * result['excess']:+.1f} %"] if "excess" in result else []
        cells += [result["error"]] if "error" in result else []
        mark = "ok " if within(result) else "OFF"
        print(
            f"{mark} {entry.name:28} {result.get('seconds', 0):6.1f} s {result.get('blocks', 0):3} blocks  "
            + "  ".join(cells),
            flush=True,
        )
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
