import hashlib

import numpy as np
import pytest
import torch

from isometry.errors import InvalidTypeError
from isometry.sampling.streams import generator_key, many_bits, stream_key, subkey, tile_bits, torch_generator


def test_keys_depend_on_seed_and_name_and_nothing_else():
    keys = [stream_key(seed, name) for seed in (-1, 0, 1, 10, 2**70) for name in ("", "0", "a", "a.b", "äß")]
    assert len(set(keys)) == 25
    assert stream_key(np.int64(3), "a") == stream_key(3, "a")
    assert subkey(keys[0], "real") != subkey(keys[0], "imaginary")


def test_a_seed_that_is_no_integer_is_refused():
    with pytest.raises(InvalidTypeError, match=r"seed must be an integer, got 0\.5"):
        stream_key(0.5, "a")


def test_streams_do_not_overlap():
    """No 64-bit word occurs twice in 900 streams of 512 words: by chance, 1.1e11 pairs / 2⁶⁴ = 6e-9."""
    found = [
        tile_bits(stream_key(seed, name), tile, 1024).view(np.int64)
        for seed in range(3)
        for name in (f"layers.{i}.weight" for i in range(10))
        for tile in [*range(15), *(2**32 + i for i in range(15))]
    ]
    joined = np.concatenate(found)
    assert np.unique(joined).size == joined.size == 900 * 512


def test_a_longer_stream_begins_with_the_shorter():
    key = stream_key(0, "a")
    assert np.array_equal(tile_bits(key, 3, 64), tile_bits(key, 3, 1000)[:64])


@pytest.mark.parametrize("count", [1, 30, 300])
def test_streams_side_by_side_are_the_streams_alone(count):
    origins = [(stream_key(seed, "a"), seed % 7) for seed in range(count)]
    for words in (2, 64, 100):
        together = many_bits(origins, words)
        assert together.shape == (count, words)
        for row, (key, tile) in zip(together, origins, strict=True):
            assert np.array_equal(row, tile_bits(key, tile, words))


def test_a_torch_generator_takes_more_than_32_bits_of_its_key():
    same_start = [hashlib.sha256(b"1").digest()[:4] + bytes([i]) * 28 for i in (1, 2)]
    first, second = (torch_generator(key) for key in same_start)
    a, b = (torch.empty(200_000).normal_(generator=g) for g in (first, second))
    # correlation of independent samples: standard deviation 1/√n
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / 200_000**0.5
    assert abs(a.mean()) < 5 / 200_000**0.5
    assert abs(a.std() - 1) < 5 / 400_000**0.5
    assert torch.equal(torch.empty(200_000).normal_(generator=torch_generator(same_start[0])), a)


def test_a_key_from_a_generator_moves_it_by_eight_numbers():
    generator, twin = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    first = generator_key(generator)
    assert generator_key(generator) != first
    assert generator_key(twin) == first
    torch.manual_seed(1)
    assert generator_key(None) == first
    torch.manual_seed(1)
    torch.randint(0, 2**31, (8,))
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    generator_key(None)
    assert torch.equal(torch.random.get_rng_state(), after)
