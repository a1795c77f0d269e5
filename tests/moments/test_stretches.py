"""Steps in a row that become blocks, and the pairs of steps that tell of pairs of blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from isometry.moments import algebra as alg
from isometry.moments.concatenation import concatenate
from isometry.moments.stretches import MANY, of_steps, pairs


def test_few_steps_are_blocks_of_their_own() -> None:
    parts = [alg.normal((3, 1, 5)) for _ in range(MANY)]
    assert of_steps(parts) == [(k, k + 1) for k in range(MANY)]


def test_many_steps_become_blocks_which_are_short_where_much_changes() -> None:
    parts = [alg.normal((3, 1, 5), std=1.0 - 0.9 * 0.7**k) for k in range(300)]
    stretches = of_steps(parts)
    assert len(stretches) <= MANY
    assert [start for start, _ in stretches[1:]] == [stop for _, stop in stretches[:-1]]
    assert stretches[0][0] == 0
    assert stretches[-1][1] == 300
    lengths = [stop - start for start, stop in stretches]
    assert max(lengths[:5]) == 1 < min(lengths[-5:-1])


@pytest.mark.parametrize(
    ("a", "b"), [((0, 1), (4, 5)), ((0, 9), (0, 9)), ((0, 6), (6, 20)), ((0, 6), (90, 97))]
)
def test_pairs_tell_the_mean_over_all_pairs_of_what_decays(a: tuple[int, int], b: tuple[int, int]) -> None:
    every = [abs(i - j) for i, j in itertools.product(range(*a), range(*b)) if i != j]
    told = pairs(a, b)
    assert sum(weight for *_, weight in told) == pytest.approx(1.0)
    assert all(a[0] <= i < a[1] and b[0] <= j < b[1] for i, j, _ in told)
    linear = sum(weight * (j - i) for i, j, weight in told)
    assert linear == pytest.approx(float(np.mean(every)), rel=0.05)
    decaying = sum(weight * 0.9 ** (j - i) for i, j, weight in told)
    assert decaying == pytest.approx(float(np.mean([0.9**lag for lag in every])), rel=0.05)


def test_two_stretches_in_the_other_order_have_the_same_pairs() -> None:
    assert [(j, i, w) for i, j, w in pairs((0, 4), (9, 12))] == pairs((9, 12), (0, 4))


def test_many_steps_side_by_side_have_the_size_of_all() -> None:
    sizes = [1.0 + 0.01 * k for k in range(4 * MANY)]
    made = concatenate([alg.normal((3, 1, 5), std=size) for size in sizes], 1)
    assert made.shape == (3, 4 * MANY, 5)
    assert len(made.axes[1]) <= MANY
    counts = np.asarray(made.axes[1], dtype=float)
    square = made.square.reshape(-1)
    assert square @ counts / counts.sum() == pytest.approx(float(np.mean(np.square(sizes))))
