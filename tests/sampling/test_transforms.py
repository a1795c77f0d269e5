import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import special

from isometry.sampling import transforms
from isometry.sampling.operations import operations
from isometry.sampling.streams import stream_key, tile_bits

# Words at which a conversion, a logarithm or a sign could go wrong.
CORNERS = np.array([0, 1, -1, 2, 2**31 - 1, -(2**31), -(2**31) + 1, 2**30, -(2**30), 2**24 + 1], np.int32)


def words(count, name="x"):
    bits = tile_bits(stream_key(0, name), 0, count)
    bits[: CORNERS.size] = CORNERS
    bits[count // 2 : count // 2 + CORNERS.size] = CORNERS[::-1]
    return bits


def run(transform, bits, **options):
    out = np.empty(bits.size, np.float32)
    transform(bits.copy(), out, **options)  # which uses up its bits
    assert np.isfinite(out).all()
    return out.astype(np.float64)


def test_normal_is_the_transform_of_box_and_muller():
    bits = words(2**20)
    out = run(transforms.normal, bits, std=1.0)
    first, second = np.split(bits.astype(np.float64) * 2.0**-31, 2)
    distance = (2**31 - (bits[: bits.size // 2] & 0x7FFFFFFF | 1).astype(np.int64)) * 2.0**-31
    radius = np.sqrt(-2 * np.log(distance))
    angle = np.pi / 2 * second
    radius *= np.where(first < 0, -1, 1)
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    radius = np.abs(radius)
    # The squared radius is right to 5e-7, which matters where it is small.
    allowed = 3e-6 * np.maximum(radius, 1) + np.sqrt(radius**2 + 5.5e-7) - radius
    assert (np.abs(out - expected) <= np.tile(allowed, 2)).all()
    assert 6.5 < np.abs(out).max() < 6.6


@pytest.mark.parametrize("cut", [0.01, 0.5, 2.0, 2.28, 3.0, 6.0, 9.0])
def test_truncated_is_the_inverse_distribution_function(cut):
    bits = words(2**19)
    edge, beyond = math.erf(cut / math.sqrt(2)), math.erfc(cut / math.sqrt(2))
    out = run(transforms.truncated, bits, scale=1.0, edge=edge, beyond=beyond)
    share = np.abs(bits.astype(np.int64) & 0x7FFFFFFF) * 2.0**-31
    if edge < 0.5:
        size = special.ndtri((1 + edge * share) / 2)
    else:
        size = -special.ndtri((beyond + edge * (share + 2.0**-32)) / 2)
    expected = np.where(bits < 0, -size, size)
    assert np.abs(out - expected).max() < 1.5e-6
    assert np.abs(out).max() <= cut * (1 + 1e-6)


def test_uniform_covers_the_closed_interval_evenly():
    bits = words(2**16)
    out = run(transforms.uniform, bits, low=-0.25, high=0.5)
    assert out.min() == -0.25
    assert out.max() == 0.5
    expected = 0.125 + 0.375 * bits.astype(np.float64) * 2.0**-31
    assert np.abs(out - expected).max() <= 2.0**-24


@pytest.mark.parametrize("kind", [transforms._POSITIVE, transforms._NEGATIVE_WORD])
def test_logarithm_is_right_from_the_smallest_word_to_one(kind):
    x = np.logspace(-9.63, 0, 200_000, dtype=np.float32)
    x = np.append(np.minimum(x, np.float32(1)), [np.float32(2.0**-32), np.float32(1)]).astype(np.float32)
    out = x * kind[1][0]
    transforms._log(operations(out), out, np.empty_like(x), np.empty_like(x), kind)
    out = out.astype(np.float64) * transforms._UNIT
    expected = -2 * np.log(x.astype(np.float64))
    assert np.abs(out - expected).max() / expected.max() < 1e-7
    assert (np.abs(out - expected) <= 5.5e-7 * np.maximum(expected, 1)).all()
    assert (out >= 0).all()
    assert out[-1] == 0


DIGEST = """
import hashlib, numpy as np
from isometry.sampling import transforms
from isometry.sampling.operations import operations
from isometry.sampling.streams import stream_key, tile_bits
digest = hashlib.blake2b(digest_size=8)
out = np.empty(2**14, np.float32)
for kind, options in (
    (transforms.normal, dict(std=0.02)),
    (transforms.uniform, dict(low=-0.1, high=0.3)),
    (transforms.truncated, dict(scale=0.02, edge=0.954, beyond=0.046)),
    (transforms.truncated, dict(scale=0.02, edge=0.9999, beyond=0.0001)),
):
    kind(tile_bits(stream_key(0, "layer.weight"), 0, out.size), out, **options)
    digest.update(out.astype("<f4").tobytes())
print(digest.hexdigest())
"""
# What this stream gives on every machine. Whatever changes it raises streams.VERSION too.
EXPECTED = "25944a9fe862770e"


def test_values_are_the_pinned_ones(capsys):
    exec(DIGEST, {})
    assert capsys.readouterr().out.strip() == EXPECTED


@pytest.mark.parametrize("disabled", ["AVX512_SPR AVX512_ICL X86_V4", "AVX512_SPR AVX512_ICL X86_V4 X86_V3"])
def test_values_are_the_same_whatever_the_vector_unit(disabled):
    features = np._core._multiarray_umath.__cpu_features__
    present = " ".join(name for name in disabled.split() if features.get(name))
    if not present:
        pytest.skip("NumPy finds no such vector unit here")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": present}
    command = [sys.executable, "-c", DIGEST]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == EXPECTED


def test_scratch_of_another_size_leaves_no_trace():
    bits = words(2**10)
    alone = run(transforms.normal, bits, std=1.0)
    run(transforms.truncated, words(2**14, "y"), scale=1.0, edge=0.9, beyond=0.1)
    assert hashlib.sha256(alone).digest() == hashlib.sha256(run(transforms.normal, bits, std=1.0)).digest()
