"""The windows of pools: which output's window contains which input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isometry.moments.axes import Array
from isometry.moments.taps import Window


def rank_of(op: str) -> int:
    """Return over how many spatial dims a pool's operation goes, by its name."""
    return next(n for n in (1, 2, 3) if f"{n}d" in op)


def each(x: Any, rank: int, default: Sequence[int] = ()) -> list[int]:
    """Return a setting of every dim, from one for all of them, one each, or none (the default)."""
    listed = [x] if isinstance(x, int) else list(x) or list(default)
    return listed * rank if len(listed) == 1 else listed


def windows(
    outputs: Sequence[int], inputs: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> list[Array]:
    """Return for each spatial dim the matrix that says which output's window contains which input."""
    rank = len(outputs)
    k = each(kernel, rank)
    settings = zip(
        outputs, k, inputs, each(stride, rank, k), each(padding, rank), each(dilation, rank), strict=True
    )
    made = []
    for setting in settings:
        window = Window(*setting)
        o, _, i = window.taps()
        matrix = np.zeros((window.outputs, window.inputs))
        matrix[o, i] = 1.0
        made.append(matrix)
    return made


def adaptive_windows(outputs: Sequence[int], inputs: Sequence[int]) -> list[Array]:
    """Return `windows` of an adaptive pool: output o covers ⌊oI/O⌋ to ⌈(o+1)I/O⌉."""
    made = []
    for n, size in zip(outputs, inputs, strict=True):
        matrix = np.zeros((n, size))
        for o in range(n):
            matrix[o, o * size // n : -(-(o + 1) * size // n)] = 1.0
        made.append(matrix)
    return made
