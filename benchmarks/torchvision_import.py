"""Import torchvision's wheel beside a CPU-only torch."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# The wheel is built for CUDA; beside a CPU-only torch its compiled part does not load, and its import asks
# for two operators of that part. Declared, they are enough to build and run models.
_OPERATORS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> ModuleType:
    """Return torchvision, whichever torch it was built for."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name, schema in _OPERATORS.items():
            torch.library.define(name, schema)
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        return importlib.import_module("torchvision")
