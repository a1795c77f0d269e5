import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.sampling import tiles as module
from isometry.sampling.tiles import Run, tile_shape, tiles, whole

SIZES = st.integers(1, 40)


@given(st.lists(st.integers(1, 10**7), max_size=5).map(tuple))
def test_a_tile_fits_in_the_tensor_and_in_a_tile(shape):
    sides = tile_shape(shape)
    assert all(1 <= side <= size for side, size in zip(sides, shape, strict=True))
    assert math.prod(sides) <= max(module.TILE_ELEMENTS, math.prod(s for s in shape if s <= 16))
    # and it is not needlessly small: one side more would not fit, or the tensor ends
    if math.prod(shape) > 2 * module.TILE_ELEMENTS:
        assert math.prod(sides) > module.TILE_ELEMENTS // 4


@st.composite
def regions(draw):
    """A shape of up to three dimensions and increasing runs of indices in each."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
    runs = []
    for size in shape:
        cuts = sorted(draw(st.sets(st.integers(0, size), max_size=6)))
        pairs = list(zip(cuts[::2], cuts[1::2], strict=False)) or [(0, size)]
        local, dim = 0, []
        for a, b in pairs:
            dim.append(Run(a, local, b - a))
            local += b - a
        runs.append(tuple(dim))
    return shape, tuple(runs)


@settings(deadline=None, max_examples=40)
@given(regions())
def test_every_element_of_a_region_comes_once_from_its_own_place(region):
    shape, runs = region
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_ELEMENTS", 50)
        tile_shape.cache_clear()
        logical = np.arange(math.prod(shape)).reshape(shape)
        indices = [np.concatenate([np.arange(r.start, r.start + r.length) for r in dim]) for dim in runs]
        local = np.full([len(index) for index in indices], -1)
        sides = tile_shape(shape)
        grid = [-(-size // side) for size, side in zip(shape, sides, strict=True)]
        for tile in tiles(shape, runs):
            corner = [i * side for i, side in zip(np.unravel_index(tile.number, grid), sides, strict=True)]
            box = tuple(slice(a, a + extent) for a, extent in zip(corner, tile.extent, strict=True))
            values = logical[box]
            assert values.shape == tile.extent
            for piece in tile.pieces:
                assert (local[piece.target] == -1).all()
                local[piece.target] = values[piece.source]
    tile_shape.cache_clear()
    assert np.array_equal(local, logical[np.ix_(*indices)])


def test_scalars_and_empty_tensors():
    assert [tile.extent for tile in tiles((), whole(()))] == [()]
    assert list(tiles((3, 0), whole((3, 0)))) == []
    assert list(tiles((3, 4), ((), (Run(0, 0, 4),)))) == []


def test_stacked_matrices_share_no_tile():
    assert tile_shape((64, 4096, 2048))[0] == 1
    assert tile_shape((512, 256, 3, 3))[2:] == (3, 3)
