"""Compiled code, NumPy and the choice between them."""

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isometry.sampling import Normal, TruncatedNormal, Uniform, fill_keyed_, kernels, transforms, words
from isometry.sampling.streams import stream_key, tile_bits

CORNERS = np.array([0, 1, -1, 2, 2**31 - 1, -(2**31), -(2**31) + 1, 2**30, -(2**30), 2**24 + 1], np.int32)
EDGES = [0.01, 0.3, 0.499, 0.5, 0.954, 0.9876, 0.9999, 1 - 1e-12, 1.0]
CASES = [
    *[("normal", (std,)) for std in (0.0, 1e-30, 0.02, 1.0, 1e30)],
    *[("uniform", ends) for ends in ((0.0, 0.0), (-0.1, 0.1), (-0.2, 0.7), (-1e-38, 3e38))],
    *[("truncated", (0.02, edge, max(1 - edge, 0.0))) for edge in EDGES],
]


@pytest.fixture
def native():
    return pytest.importorskip("isometry.sampling._native", reason="no C compiler when it was installed")


def hard_words(rows, count):
    bits = np.stack([tile_bits(stream_key(0, f"row {row}"), 0, count) for row in range(rows)])
    bits[:, : CORNERS.size] = CORNERS
    bits[:, count // 2 : count // 2 + CORNERS.size] = CORNERS[::-1]
    return bits


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(1, 2**18), (3, 2**10 + 2), (40, 64)])
def test_compiled_values_are_numpys_to_the_bit(native, name, options, shape):
    bits = hard_words(*shape)
    found, expected = np.empty((2, *shape), np.float32)
    getattr(native, name)(bits, found, *options)
    with np.errstate(all="ignore"):
        getattr(transforms, name)(bits.copy(), expected, *options)
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(("rows", "count"), [(1, 2), (1, 2**16), (5, 64), (300, 64)])
def test_compiled_words_are_numpys(native, rows, count):
    states = bytes(np.random.default_rng(0).integers(0, 256, 24 * rows, np.uint8))
    found, expected = np.empty((2, rows, count), np.int32)
    native.streams(states, found)
    words.streams(states, expected)
    assert np.array_equal(found, expected)
    source = np.random.SFC64(0)
    start = np.frombuffer(states[:24] + (1).to_bytes(8, "little"), np.uint64)
    source.state = source.state | {"state": {"state": start}}
    assert np.array_equal(found[0].view(np.uint64), source.random_raw(count // 2))


@pytest.mark.parametrize(
    "law", [Normal(0.3, 0.1), Uniform(-0.2, 0.7), TruncatedNormal(0.5, 0.1, 3.5)], ids=repr
)
@pytest.mark.parametrize("shape", [(7,), (300, 900), (4, 3, 3, 3)])
def test_what_is_written_does_not_tell_who_drew_it(law, shape, monkeypatch):
    expected = fill_keyed_(torch.empty(shape), law, seed=1, name="w")
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert torch.equal(fill_keyed_(torch.empty(shape), law, seed=1, name="w"), expected)


@pytest.mark.parametrize("fault", ["absent", "older", "other words", "fused"])
def test_compiled_code_that_is_absent_or_differs_is_left_alone(fault, monkeypatch):
    def bring(name):
        if fault == "absent":
            raise ImportError(name)
        if fault == "older":
            return SimpleNamespace(streams=words.streams)
        return other

    def normal(bits, out, std):
        transforms.normal(bits, out, std)
        out[0, -1] = np.nextafter(out[0, -1], np.float32(math.inf))  # by one bit

    other = SimpleNamespace(
        streams=words.streams,
        normal=normal if fault == "fused" else transforms.normal,
        uniform=transforms.uniform,
        truncated=transforms.truncated,
    )
    if fault == "other words":
        other.streams = lambda states, out: words.streams(states[::-1], out)
    monkeypatch.setattr(importlib, "import_module", bring)
    assert kernels.compiled.__wrapped__() is None
    if fault == "fused":
        other.normal = transforms.normal  # nothing but the fault was in the way
        assert kernels.compiled.__wrapped__() is other


def test_compiled_code_checks_its_arrays(native):
    good = np.zeros(8, np.int32)
    for bits, out in [
        (good, np.zeros(6, np.float32)),
        (good, np.zeros(8, np.float64)),
        (good.reshape(2, 4), np.zeros(8, np.float32)),
        (good.reshape(2, 2, 2), np.zeros((2, 2, 2), np.float32)),
    ]:
        with pytest.raises(ValueError, match="one shape"):
            native.normal(bits, out, 1.0)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        native.normal(np.zeros(16, np.int32)[::2], np.zeros(8, np.float32), 1.0)
    with pytest.raises(ValueError, match="24 bytes"):
        native.streams(b"1" * 23, good)
