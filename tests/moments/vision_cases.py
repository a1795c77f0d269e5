"""Simulation cases of the rules of vision models."""

from __future__ import annotations

import torch
from simulation import Case, Input
from torch.nn import functional as F

_X = Input((6, 40), shared=0.4)
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
    Case(
        "conv3d",
        lambda x, w: F.conv3d(x, w, padding=1),
        (Input((2, 3, 4, 3, 5)), Input((4, 3, 3, 2, 3), std=0.2)),
    ),
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

_MAP = Input((4, 6, 8, 11))

POOL = (
    Case("avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), (_IMAGE,)),
    Case(
        "avg_pool of relu",
        lambda x: F.relu(F.avg_pool2d(F.relu(x), 2) - 0.4),
        (_MAP,),
        draws=1000,
        tolerance=0.01,
        unread=frozenset({"gradient 0 square"}),  # a mean over windows forgets what it is the mean of
    ),
    Case(
        "avg_pool3d",
        lambda x: F.avg_pool3d(x, (2, 3, 2), (1, 2, 2), ceil_mode=True, count_include_pad=False),
        (Input((2, 3, 4, 7, 5)),),
    ),
    Case("adaptive_avg_pool", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (_IMAGE,)),
    Case("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, (3, 2, 1)), (Input((2, 3, 4, 7, 5)),)),
    Case("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), (_MAP,), draws=1500, tolerance=0.01),
    Case("max_pool of relu", lambda x: F.max_pool2d(F.relu(x), (2, 3)), (_MAP,), draws=1500, tolerance=0.01),
    Case(
        "max_pool of alike samples",
        lambda x: F.max_pool2d(F.silu(x), 2),
        (Input((4, 6, 8, 10), shared=0.5),),
        draws=1500,
        tolerance=0.015,
    ),
    Case(
        "max_pool of alike places",
        lambda x, y: F.max_pool2d(x + y, 2),
        (_MAP, Input((4, 6, 1, 1), std=0.7)),
        draws=2000,
        tolerance=0.02,
    ),
    Case("max_pool3d", lambda x: F.max_pool3d(x, 2), (Input((2, 3, 4, 6, 4)),), draws=1500, tolerance=0.01),
    Case(
        "adaptive_max_pool", lambda x: F.adaptive_max_pool2d(x, (4, 3)), (_MAP,), draws=1500, tolerance=0.015
    ),
)

_WIDE = Input((6, 8, 7, 9), mean=0.5)
_SCALE, _SHIFT = Input((8,), mean=1.0, std=0.1), Input((8,), std=0.1)


def _running(scale: float) -> torch.Tensor:
    return torch.full((8,), scale, dtype=torch.float64)


NORMS = (
    Case(
        "batch_norm",
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (_WIDE, _SCALE, _SHIFT),
        tolerance=0.02,
    ),
    Case(
        "batch_norm that updates its statistics",
        lambda x, w, b: torch.ops.aten._batch_norm_with_update(
            x, w, b, x.new_zeros(8), x.new_ones(8), 0.1, 1e-5
        )[0],
        (_WIDE, _SCALE, _SHIFT),
        tolerance=0.02,
    ),
    Case(
        "batch_norm and relu",
        lambda x, w, b: F.relu(F.batch_norm(x, None, None, w, b, training=True)),
        (_WIDE, _SCALE, _SHIFT),
        tolerance=0.02,
    ),
    Case(
        "batch_norm of a conv",
        lambda x, v, w, b: F.relu(
            F.batch_norm(F.conv2d(F.relu(x), v, padding=1), None, None, w, b, training=True)
        ),
        (_WIDE, Input((8, 8, 3, 3)), _SCALE, _SHIFT),
        tolerance=0.04,
    ),
    Case(
        "batch_norm before groups",
        lambda x, v: F.conv2d(F.relu(F.batch_norm(x, None, None, training=True)), v, groups=4, padding=1),
        (_WIDE, Input((8, 2, 3, 3))),
        tolerance=0.04,
    ),
    Case(
        "batch_norm in evaluation",
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, training=False),
        (_WIDE, _SCALE, _SHIFT),
        (_running(0.5), _running(2.0)),
    ),
    Case(
        "group_norm",
        lambda x, w, b: F.relu(F.group_norm(x, 2, w, b)),
        (Input((6, 8, 7, 9), mean=0.5, shared=0.3), _SCALE, _SHIFT),
        tolerance=0.02,
    ),
    Case(  # groups of two channels whose places are alike: few degrees of freedom
        "group_norm of alike places",
        lambda x, y: F.group_norm(x + y, 4),
        (Input((6, 8, 5, 5)), Input((6, 8, 1, 1), std=2.0)),
        draws=2000,
        tolerance=0.02,
        unread=frozenset(["gradient 1 square"]),  # 1/σ and what is projected out go together
    ),
    Case(
        "instance_norm",
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        (_WIDE, _SCALE, _SHIFT),
        tolerance=0.03,
    ),
)

SPATIAL = (
    Case("constant pad", lambda x: F.pad(x, (1, 2, -1, 3), value=0.5), (_IMAGE,)),
    Case("reflection pad", lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"), (_IMAGE,)),
    Case("reflection pad 1d", lambda x: F.pad(x, (2, 1), mode="reflect"), (Input((4, 6, 9), shared=0.4),)),
    Case("replication pad", lambda x: F.pad(x, (2, 1, 3, 0), mode="replicate"), (_IMAGE,)),
    Case("replication pad 3d", lambda x: F.pad(x, (1,) * 6, mode="replicate"), (Input((2, 3, 4, 3, 5)),)),
    Case("nearest", lambda x: F.interpolate(x, scale_factor=2), (_IMAGE,)),
    Case(
        "nearest of relu",
        lambda x: F.relu(F.interpolate(F.relu(x), (9, 12)) - 0.3),
        (_MAP,),
        draws=1000,
        unread=frozenset({"gradient 0 square"}),  # copies forget what they are copies of
    ),
    Case("nearest 1d", lambda x: F.interpolate(x, 13), (Input((4, 6, 9), shared=0.4),)),
    Case("linear", lambda x: F.interpolate(x, 13, mode="linear"), (Input((4, 6, 9), shared=0.4),)),
    Case(
        "bilinear beside a constant",
        lambda x: x + F.interpolate(torch.ones_like(x), scale_factor=2.0, mode="bilinear").mean(),
        (_IMAGE,),
    ),
    Case("bilinear", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (_IMAGE,)),
    Case(
        "bilinear aligned",
        lambda x: F.interpolate(x, (5, 21), mode="bilinear", align_corners=True),
        (_IMAGE,),
    ),
    Case("bicubic", lambda x: F.interpolate(x, (10, 12), mode="bicubic"), (_IMAGE,)),
    Case("bicubic smoothed", lambda x: F.interpolate(x, (3, 4), mode="bicubic", antialias=True), (_IMAGE,)),
    Case("trilinear", lambda x: F.interpolate(x, (5, 4, 7), mode="trilinear"), (Input((2, 3, 4, 3, 5)),)),
    Case("pixel shuffle", lambda x: F.pixel_shuffle(x, 2), (Input((4, 12, 3, 5), shared=0.4),)),
    Case("pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2), (Input((4, 3, 6, 10), shared=0.4),)),
    Case("channel shuffle", lambda x: F.channel_shuffle(x, 3), (_IMAGE,)),
    Case(
        "largest of relus side by side",
        lambda x, y: F.max_pool2d(torch.cat([F.relu(x), 2 * F.relu(y)], 1), 2),
        (Input((3, 5, 8, 8)), Input((3, 7, 8, 8))),
        tolerance=0.02,
    ),
    Case(
        "circular padding",
        lambda x, w: F.conv2d(F.pad(x, (2, 1, 0, 2), mode="circular"), w),
        (_IMAGE, Input((5, _IMAGE.shape[1], 3, 3), std=0.2)),
    ),
    Case(
        "max_unpool",
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        (Input((3, 4, 8, 8)),),
    ),
    Case("roll", lambda x: x + torch.roll(x, (2, -3), (1, 3)), (_IMAGE,)),
    Case(
        "roll and back", lambda x: F.relu(torch.roll(F.relu(x).roll(2, 2), -2, 2) - x), (_IMAGE,), draws=1000
    ),
    Case("roll of blocks", lambda x, y: torch.cat([x, 3 * y], 0).roll(5, 0), (_X, Input((6, 40)))),
    Case("flip", lambda x, y: torch.cat([x, 3 * y], 1).flip(0, 1)[:, :12], (_X, Input((6, 7)))),
    Case("im2col", lambda x: F.unfold(x, (3, 2), padding=1, stride=(2, 1)), (_IMAGE,)),
    Case(
        "col2im",
        lambda x: F.fold(x, (7, 9), (3, 2), padding=1, stride=(2, 1)),
        (Input((4, 36, 40), shared=0.4),),
    ),
    Case("unfold", lambda x: x.unfold(2, 3, 2), (_IMAGE,)),
)

_PLACES = torch.rand(4, 6, 5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1.8 - 0.9

PARAMETRIC = (
    Case("dropout of a half", lambda x: F.dropout(x, 0.5), (_X,), draws=1000),
    Case("prelu", lambda x, w: F.prelu(x, w), (_MAP, Input((6,), mean=0.25, std=0.3)), draws=1000),
    Case("prelu of one slope", lambda x, w: F.prelu(x, w), (_X, Input((1,), mean=0.25)), draws=2000),
    Case(
        "weight_norm",
        lambda v, g: torch._weight_norm(v, g, 0),
        (Input((8, 6, 5), std=0.3), Input((8, 1, 1), mean=1.0, std=0.2)),
        tolerance=0.04,
    ),
    Case(
        "grid_sampler",
        lambda x, grid: F.grid_sample(x, grid, align_corners=True),
        (Input((4, 6, 9, 11)),),
        (_PLACES,),
        tolerance=0.08,
    ),
)

VISION = (*CONV, *POOL, *NORMS, *SPATIAL, *PARAMETRIC)
