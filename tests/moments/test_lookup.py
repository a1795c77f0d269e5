"""Counting how pairs of entries looked up by index meet pairs of their source, against a count one by one."""

from itertools import product

import numpy as np
import pytest

from isometry.moments import lookup

TAKEN, GIVEN = ((3, 5), (4,)), ((6, 4), (3,))


@pytest.mark.parametrize("dense", [1, 1 << 20])
def test_pairs_are_counted_as_one_by_one(dense, monkeypatch):
    monkeypatch.setattr(lookup, "DENSE", dense)
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, n, 30) for n in (8, 4)]
    axes = (*GIVEN, *TAKEN)
    places = [*np.indices((10, 3)).reshape(2, -1), *ids]
    blocks = [lookup.blocks_of(axis, place) for axis, place in zip(axes, places, strict=True)]
    expected = np.zeros([len(a) * (len(a) + 1) for a in axes])
    for i, j in product(range(30), repeat=2):
        expected[
            tuple(
                b[i] if p[i] == p[j] else len(a) * (1 + b[i]) + b[j]
                for a, b, p in zip(axes, blocks, places, strict=True)
            )
        ] += 1
    pairs, entries = lookup.counts(TAKEN, GIVEN, ids)
    assert np.array_equal(pairs, expected.reshape(pairs.shape))
    assert entries.sum() == 30
    assert entries.shape == (2, 2)
