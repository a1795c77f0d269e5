"""Streams of random bits: a key per (seed, name), a key per tile, and the bits that a key stands for.

A key is a BLAKE2b digest, so that streams of neighbouring seeds, names and tiles have nothing in common. It
becomes 192 bits of the state of NumPy's SFC64, a small chaotic generator whose raw stream is fixed for good.
`torch.Generator` is no substitute: on the CPU `manual_seed` uses the low 32 bits of its argument, so that
among 100,000 chunks two are likely to hold the same numbers.
"""

from __future__ import annotations

import hashlib
import operator
import sys
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from isometry.errors import InvalidTypeError
from isometry.sampling.operations import Ints

#: Part of every key: raised whenever the same seed and name would give other values.
VERSION = "isometry sampling 2"

# Keys and words are read as little-endian on every machine, so that the two halves of a word keep their
# order.
_LITTLE = sys.byteorder == "little"
_WORD = np.dtype("<u8")
_ELEVEN, _THREE, _TWENTY_FOUR, _FORTY = (np.array(shift, np.uint64) for shift in (11, 3, 24, 40))
_COUNTER = (1).to_bytes(8, "little")
_local = threading.local()


def stream_key(seed: int, name: str) -> bytes:
    """The 32-byte key of a parameter's stream: a function of the seed and the canonical name.

    Args:
        seed: Any integer, negative and large ones too.
        name: Canonical name of the parameter.

    Returns:
        BLAKE2b digest of version, seed and name.

    Raises:
        InvalidTypeError: If `seed` is no integer.

    Example:
        >>> stream_key(0, "layers.0.weight") == stream_key(0, "layers.1.weight")
        False
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise InvalidTypeError(f"seed must be an integer, got {seed!r} ({type(seed).__name__})") from None
    # A NUL ends the seed's digits, so no (seed, name) pair spells like another.
    return hashlib.blake2b(f"{VERSION}\0{number}\0{name}".encode(), digest_size=32).digest()


def generator_key(generator: torch.Generator | None) -> bytes:
    """A key drawn from a torch generator (torch's global one when None), which moves on by 8 numbers.

    Raises:
        InvalidTypeError: If `generator` is none.
    """
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise InvalidTypeError(
            "generator must be a torch.Generator such as torch.Generator().manual_seed(0), or None, "
            f"got {generator!r} ({type(generator).__name__})"
        )
    device = "cpu" if generator is None else generator.device
    words = torch.randint(0, 2**31, (8,), generator=generator, device=device)
    return hashlib.blake2b(bytes(str(words.tolist()), "ascii"), digest_size=32).digest()


def subkey(key: bytes, label: str) -> bytes:
    """A key for one part of a parameter, such as the imaginary parts of a complex tensor."""
    return hashlib.blake2b(label.encode(), key=key, digest_size=32).digest()


def tile_bits(key: bytes, tile: int, words: int) -> Ints:
    """The first `words` (even) int32 words of a tile's stream; each call gives a new array."""
    source = _local.__dict__.get("source")
    if source is None:
        source = _local.source = np.random.SFC64(0)
    source.state = {
        "bit_generator": "SFC64",
        "state": {"state": np.frombuffer(_start(key, tile) + _COUNTER, _WORD)},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _halves(source.random_raw(words // 2))


def many_bits(origins: Sequence[tuple[bytes, int]], words: int, out: Ints | None = None) -> Ints:
    """`tile_bits` of many (key, tile), a row each: the streams advance side by side where that is faster."""
    found = np.empty((len(origins), words), np.int32) if out is None else out
    # A step of all streams is some ten calls of NumPy; to start one stream alone costs as much as three.
    if len(origins) < words:
        for row, (key, tile) in zip(found, origins, strict=True):
            row[:] = tile_bits(key, tile, words)
        return found
    states = np.frombuffer(b"".join(_start(key, tile) for key, tile in origins), _WORD)
    a, b, c = np.ascontiguousarray(states.reshape(-1, 3).T.astype(np.uint64))
    raw = np.empty((words // 2, len(origins)), np.uint64)
    spare = np.empty_like(a)
    for step, word in enumerate(raw, 1):
        # SFC64 (Doty-Humphrey): out = a + b + n; a = b ^ (b >> 11); b = c + (c << 3); c = rotl(c, 24) + out.
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
    found[:] = _halves(np.ascontiguousarray(raw.T))
    return found


def _start(key: bytes, tile: int) -> bytes:
    """The three words of state from which a tile's stream starts, with its counter at 1."""
    return hashlib.blake2b(tile.to_bytes(8, "little"), key=key, digest_size=24).digest()


def _halves(raw: npt.NDArray[np.uint64]) -> Ints:
    """Ints of 64 bits as pairs of 32, the low half first on every machine."""
    bits: Ints = raw.view(np.int32) if _LITTLE else raw.astype(_WORD).view("<i4").astype(np.int32)
    return bits


def torch_generator(key: bytes) -> torch.Generator:
    """A CPU generator of torch whose whole state of 624 words, not 32 bits of it, comes from the key."""
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:4], "little"))
    state = generator.get_state().numpy().copy()
    fields = state[: state.size // 8 * 8].view(np.uint64)
    # Layout (at::CPUGeneratorImplStateLegacy): seed, two int32, next, 624 words of 32 bits each in 64.
    words = np.frombuffer(hashlib.shake_256(key).digest(624 * 4), dtype="<u4")
    fields[3 : 3 + 624] = words
    generator.set_state(torch.from_numpy(state))
    return generator
