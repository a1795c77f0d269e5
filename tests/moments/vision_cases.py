"""Simulation cases of the rules of vision models."""

from __future__ import annotations

import torch
from simulation import Case, Input
from torch.nn import functional as F

_IMAGE = Input((4, 6, 7, 9), mean=0.3, shared=0.4)

CONV = (
    Case(
        "conv2d",
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        (_IMAGE, Input((8, 6, 3, 3), std=0.2), Input((8,))),
    ),
    Case(
        "conv2d strided",
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        (_IMAGE, Input((8, 6, 3, 2), std=0.2, mean=0.1)),
    ),
    Case("conv2d grouped", lambda x, w: F.conv2d(x, w, groups=3), (_IMAGE, Input((12, 2, 3, 2), std=0.2))),
    Case(
        "depthwise",
        lambda x, w: F.conv2d(x, w, stride=2, padding=2, groups=6),
        (_IMAGE, Input((6, 1, 5, 3), std=0.2)),
    ),
    Case("patches", lambda x, w: F.conv2d(x, w, stride=(7, 3)), (_IMAGE, Input((5, 6, 7, 3), std=0.2))),
    Case(
        "conv1d without batch",
        lambda x, w, b: F.conv1d(x, w, b, padding=2),
        (Input((6, 20)), Input((8, 6, 5), std=0.2), Input((8,))),
    ),
    Case("conv3d", lambda x, w: F.conv3d(x, w, padding=1), (Input((2, 3, 4, 3, 5)), Input((4, 3, 3, 2, 3), std=0.2))),
    Case(
        "conv2d transposed",
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
        (_IMAGE, Input((6, 5, 3, 3), std=0.2), Input((5,))),
    ),
    Case(
        "conv1d transposed in groups",
        lambda x, w: F.conv_transpose1d(x, w, stride=3, groups=2),
        (Input((4, 6, 11), shared=0.4), Input((6, 5, 4), std=0.2)),
    ),
    Case(
        "conv of padded parts",
        lambda x, y, w: F.conv2d(torch.cat([x, 2 * y], 2), w, stride=2, padding=1),
        (_IMAGE, Input((4, 6, 3, 9)), Input((8, 6, 3, 3), std=0.2)),
    ),
)

VISION = (*CONV,)
