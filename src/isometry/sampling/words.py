"""Random words from the states of SFC64 generators, by NumPy.

SFC64 (Doty-Humphrey) is a small chaotic generator whose raw stream NumPy has fixed for good.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import numpy.typing as npt

from isometry.sampling.operations import Ints

# States and words are read as little-endian on every machine, so that the two halves of a word keep their
# order.
_LITTLE = sys.byteorder == "little"
_WORD = np.dtype("<u8")
_STATE = 24  # bytes: three words
_COUNTER = (1).to_bytes(8, "little")
_ELEVEN, _THREE, _TWENTY_FOUR, _FORTY = (np.array(shift, np.uint64) for shift in (11, 3, 24, 40))
_local = threading.local()


def streams(states: bytes, out: Ints) -> None:
    """Fill `out`, a row of an even number of words for each stream, from the states at which they start.

    Args:
        states: 24 bytes for each stream, whose counter is at 1.
        out: Contiguous int32 array, (words,) for one stream or (streams, words).
    """
    starts = [states[at : at + _STATE] for at in range(0, len(states), _STATE)]
    rows = out.reshape(len(starts), -1)
    # A step of all streams is some ten calls of NumPy; to start one stream alone costs as much as three.
    if len(starts) < rows.shape[1]:
        for row, start in zip(rows, starts, strict=True):
            row[:] = _one(start, rows.shape[1])
    else:
        rows[:] = _side_by_side(states, rows.shape[1])


def _one(start: bytes, words: int) -> Ints:
    source = _local.__dict__.get("source")
    if source is None:
        source = _local.source = np.random.SFC64(0)
    source.state = {
        "bit_generator": "SFC64",
        "state": {"state": np.frombuffer(start + _COUNTER, _WORD)},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _halves(source.random_raw(words // 2))


def _side_by_side(states: bytes, words: int) -> Ints:
    a, b, c = np.ascontiguousarray(np.frombuffer(states, _WORD).reshape(-1, 3).T.astype(np.uint64))
    raw = np.empty((words // 2, a.size), np.uint64)
    spare = np.empty_like(a)
    for step, word in enumerate(raw, 1):
        # out = a + b + n; a = b ^ (b >> 11); b = c + (c << 3); c = rotl(c, 24) + out.
        np.add(a, b, a)
        np.add(a, np.uint64(step), word)
        np.right_shift(b, _ELEVEN, a)
        np.bitwise_xor(a, b, a)
        np.left_shift(c, _THREE, b)
        np.add(b, c, b)
        np.left_shift(c, _TWENTY_FOUR, spare)
        np.right_shift(c, _FORTY, c)
        np.bitwise_or(c, spare, c)
        np.add(c, word, c)
    return _halves(np.ascontiguousarray(raw.T))


def _halves(raw: npt.NDArray[np.uint64]) -> Ints:
    """Ints of 64 bits as pairs of 32, the low half first on every machine."""
    bits: Ints = raw.view(np.int32) if _LITTLE else raw.astype(_WORD).view("<i4").astype(np.int32)
    return bits
