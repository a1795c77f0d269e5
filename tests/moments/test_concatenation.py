"""Tensors side by side keep fine blocks only where their table stays small."""

import numpy as np
import pytest

from isometry.moments import algebra as alg
from isometry.moments import concatenation as cat
from isometry.moments import record as rec
from isometry.moments.record import Moments

PLACES = (1, 1, 4, 1, 1)


def part(square: float) -> Moments:
    """4 samples of 6 channels on 8×8 places, with larger squares in the middle."""
    blocks = square * np.multiply.outer([1.0, 2.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 2.0, 1.0])
    axes = ((4,), (6,), PLACES, PLACES)
    table = np.zeros((2, 2, 30, 30))
    rec.diagonal(table, axes)[...] = blocks
    return alg.gaussian(tuple((a,) for a in axes), table, np.zeros((1, 1, 1, 1)))


def test_few_parts_keep_their_blocks() -> None:
    both = cat.concatenate([part(1.0), part(2.0)], 1)
    assert both.axes == ((4,), (6, 6), PLACES, PLACES)
    assert np.allclose(both.square[0, 1], 2 * both.square[0, 0])


def test_many_parts_keep_the_outermost_blocks() -> None:
    parts = [part(float(k)) for k in range(1, 13)]
    both = cat.concatenate(parts, 1)
    assert both.axes == ((4,), (6,) * 12, (1, 6, 1), (1, 6, 1))
    assert both.square[0, 2, 0, 0] == pytest.approx(3.0)
    for k, one in enumerate(parts):
        assert rec.average(both.square[:, [k]], ((4,), (6,), *both.axes[2:])) == pytest.approx(
            rec.average(one.square, one.axes)
        )
