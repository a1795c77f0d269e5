"""Which devices may turn random words into values themselves.

A graphics processor does the arithmetic of a transform many times as fast as the CPU, which then draws the
words alone. It may do so only if it gives the CPU's values to the bit. So each device is tried once, on words
that reach every branch of every law; one that differs anywhere, or fails, is sent values from the CPU.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isometry.sampling.distributions import Elementwise, Normal, TruncatedNormal, Uniform
from isometry.sampling.streams import stream_key, tile_bits

# Laws of one's own are written for NumPy's arrays.
_LAWS = (Normal, Uniform, TruncatedNormal)
# With and without a mean, without tails, with them, and so narrow that |x| is drawn in place of 1 - |x|.
_TRIED = (
    Normal(0.3, 0.1),
    Uniform(-0.2, 0.7),
    TruncatedNormal(0.5),
    TruncatedNormal(0.5, 1.0, 3.5),
    TruncatedNormal(1.0, cut=0.1),
)
_WORDS = 2**16


def transforms(target: Tensor, law: Elementwise) -> bool:
    """Whether the device of a tensor turns words into values of this law, and gives the CPU's."""
    return target.is_cuda and type(law) in _LAWS and agrees(target.device)


@functools.cache
def agrees(device: torch.device) -> bool:
    """Whether a device gives the CPU's values to the bit, tried once."""
    try:
        return all(_same(law, device) for law in _TRIED)
    except RuntimeError:  # an operation that it does not have, or no memory
        return False


def wait(device: torch.device) -> None:
    """Wait until a device has done what this thread asked of it."""
    torch.cuda.current_stream(device).synchronize()


def _same(law: Elementwise, device: torch.device) -> bool:
    words = tile_bits(stream_key(0, "a device on trial"), 0, _WORDS)
    there: Any = torch.from_numpy(words.copy()).to(device, copy=True)
    here = np.empty(_WORDS, np.float32)
    law.transform(words, here)
    values: Any = torch.empty(_WORDS, dtype=torch.float32, device=device)
    law.transform(there, values)
    return np.array_equal(here.view(np.int32), values.cpu().numpy().view(np.int32))
