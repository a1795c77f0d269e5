"""Streams of random bits: a key per (seed, name), a key per tile, and the bits that a key stands for.

A key is a BLAKE2b digest, so that streams of neighbouring seeds, names and tiles have nothing in common. It
becomes 192 bits of the state of an SFC64 generator. `torch.Generator` is no substitute: on the CPU
`manual_seed` uses the low 32 bits of its argument, so that among 100,000 chunks two are likely to hold the
same numbers.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np
import torch

from isometry.errors import InvalidTypeError
from isometry.sampling import kernels
from isometry.sampling.operations import Ints

#: Part of every key: raised whenever the same seed and name would give other values.
VERSION = "isometry sampling 2"


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
    """The first `words` (even) int32 words of a tile's stream."""
    found = np.empty(words, np.int32)
    kernels.streams(_start(key, tile), found)
    return found


def many_bits(origins: Sequence[tuple[bytes, int]], words: int, out: Ints | None = None) -> Ints:
    """`tile_bits` of many (key, tile), a row each, written into `out` (contiguous) if there is one."""
    found = np.empty((len(origins), words), np.int32) if out is None else out
    kernels.streams(b"".join(_start(key, tile) for key, tile in origins), found)
    return found


def _start(key: bytes, tile: int) -> bytes:
    """The three words of state from which a tile's stream starts, with its counter at 1."""
    return hashlib.blake2b(tile.to_bytes(8, "little"), key=key, digest_size=24).digest()


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
