"""Import torchvision's wheel beside a CPU-only torch."""

from __future__ import annotations

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
    for name, schema in _OPERATORS.items():
        if not torch._C._dispatch_has_kernel(name):
            try:
                torch.library.define(name, schema)
            except RuntimeError:  # defined by an earlier call
                break
    import torchvision

    return torchvision
