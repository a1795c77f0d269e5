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


def test_each_part_is_cut_as_finely_as_the_last() -> None:
    plain = alg.normal((4, 6, 8, 8))
    coarse = cat.concatenate([alg.normal((4, 6, 1, 8)), alg.normal((4, 6, 7, 8))], 2)
    both = cat.concatenate([plain, coarse, plain, part(1.0)], 1)
    assert both.axes[0] == (4,)
    assert both.axes[1] == (6,) * 4
    assert both.square.shape == (1, 4, 5, 5)
    assert both.square[0, 0] == pytest.approx(1.0)
    assert both.square[0, 3] == pytest.approx(part(1.0).square[0, 0])
