"""From random bits to values, by operations that every processor rounds alike.

Only +, -, *, /, sqrt and integer operations occur, one NumPy call each, so nothing is contracted into a fused
multiply-add and no libm or vector library has a say: the same bits give the same floats on every machine that
follows IEEE 754. `torch.log`, `torch.erfinv` and `Tensor.normal_` differ in the last places between vector
widths, libraries and vendors, which shards drawn on unlike hosts would show.

`bits` is an int32 vector of n uniform words, which are used up, `out` a contiguous float32 vector of n
values. The polynomials
are minimax fits (Lawson's iteration) to the functions named beside them; their relative error is stated
there. Output arrays are passed by position and reused, which NumPy does fastest.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Coefficients = tuple[Floats, ...]

_local = threading.local()


def _float32(*values: float) -> Coefficients:
    # Arrays without dimensions, as NumPy takes a fifth of a microsecond longer over each of its scalars.
    return tuple(np.array(value, np.float32) for value in values)


def _int32(value: int) -> Ints:
    return np.array(value, np.int32)


_MAGNITUDE, _SIGN = _int32(0x7FFFFFFF), _int32(-0x80000000)
_ROOT_HALF = _int32(0x3F3504F3)  # the bits of sqrt(1/2): mantissas are reduced to [sqrt(1/2), sqrt(2))
_PLUS_ONE, _MINUS_2_31 = 0, (31 << 23) - 2**31
_ROOTS_HALF = {one: _int32(0x3F3504F3 + one) for one in (_PLUS_ONE, _MINUS_2_31)}
_NEGATIVE_ODD = _int32(1 - 2**31)
_MANTISSA_BITS, _MANTISSA = _int32(23), _int32(0x007FFFFF)
_HALF, _ONE, _TWO, _THREE = _float32(0.5, 1.0, 2.0, 3.0)
(_STEP,) = _float32(2.0**-31)

# -2 ln m = s P(s²) with s = (m - 1)/(m + 1), error 1.2e-7; constants last.
_LOG = _float32(-2 * 0.41296377, -2 * 0.66652224, -2 * 2.00000024)
(_LOG_STEP,) = _float32(-2 * math.log(2))
# sqrt(2) sin(πt/4) = t P(t²) for t in [-1, 1], error 3.2e-9.
_SIN = _float32(-5.08416171e-05, 3.52139322e-03, -0.114191286, 1.11072073)
# z/x = P(1 - x²)/Q(1 - x²) for x = erf(z/sqrt(2)), |z| <= 2.3, error 1.1e-7.
_CENTRE_P = _float32(2922.77873, 8205.91331, 3507.84685, 287.546939, 3.30365607)
_CENTRE_Q = _float32(205.538282, 3812.56398, 5969.04009, 1808.3624, 113.830213, 1.0)
# z = P(r - 3) with r = sqrt(-ln(1 - x²)), 2.25 <= z <= 6.6, error 7.5e-8.
_TAIL = _float32(
    -1.4158677e-05, 7.14273676e-05, -8.17368537e-05, -2.9539976e-04, 1.63557662e-03,
    -4.88183391e-03, 9.67325227e-03, 1.41798003, 4.00618723,
)  # fmt: skip
(_TAIL_START,) = _float32(0.0433)  # 1 - erf(z/sqrt(2))² at z = 2.28


def uniform(bits: Ints, out: Floats, *, low: float, high: float) -> None:
    """Values mid + half·bits/2³¹ in [low, high]: symmetric, and finest where float32 is."""
    _convert(bits, out)
    np.multiply(out, np.float32((high - low) * 2.0**-32), out)
    mid = (high + low) / 2
    if mid != 0.0:
        np.add(out, np.float32(mid), out)


def normal(bits: Ints, out: Floats, *, std: float) -> None:
    """Normal values of mean 0 by the transform of Box and Muller, two from each pair of words.

    The first word gives a sign and a radius of 30 random bits, so that |z| reaches 6.55 (the chance of more
    is 6e-11); the second gives an angle in the right half of the plane. An even n is needed.
    """
    half = bits.size // 2
    first, second = bits[:half], bits[half:]
    cos, sin = out[:half], out[half:]
    radius, square = _scratch(2, half)
    _convert(np.bitwise_or(first, _NEGATIVE_ODD, cos.view(np.int32)), radius)
    np.sqrt(_minus_two_log(radius, square, cos, sin, one=_MINUS_2_31), radius)
    if std != 1.0:
        np.multiply(radius, np.float32(std), radius)
    # (cos 2φ, sin 2φ) = (1 - 2 sin²φ, 2 sin φ cos φ) with φ = πt/4, where cos φ is a well-conditioned root.
    _convert(second, sin)
    np.multiply(sin, _STEP, sin)
    np.multiply(sin, sin, square)
    np.multiply(_polynomial(square, _SIN, cos), sin, sin)
    np.multiply(sin, sin, square)
    np.subtract(_TWO, square, cos)
    np.sqrt(cos, cos)
    np.multiply(sin, cos, sin)
    np.multiply(sin, radius, sin)
    np.subtract(_ONE, square, cos)
    np.multiply(cos, radius, cos)
    signed = cos.view(np.int32)
    np.bitwise_xor(signed, np.bitwise_and(first, _SIGN, first), signed)


def truncated(bits: Ints, out: Floats, *, scale: float, edge: float, beyond: float) -> None:
    """Normal values of mean 0 cut at ±c, by the inverse of the distribution function.

    With x uniform on (-edge, edge), edge = erf(c/sqrt(2)), the value is scale·sqrt(2)·erfinv(x). Where
    there are tails the distance 1 - |x| is drawn, not |x|, so that they keep 31 random bits. `beyond` = 1 -
    edge.
    """
    x, square = _scratch(2, out.size)
    whole = np.bitwise_and(bits, _MAGNITUDE, square.view(np.int32))
    _convert(whole, x)
    np.multiply(x, np.float32(edge * 2.0**-31), x)
    if edge < 0.5:
        np.multiply(x, x, square)
        np.subtract(_ONE, square, square)
    else:
        np.add(x, np.float32(beyond + edge * 2.0**-32), x)
        np.subtract(_TWO, x, square)
        np.multiply(square, x, square)
        np.subtract(_ONE, x, x)
    _polynomial(square, _CENTRE_P, out)
    np.multiply(out, x, out)
    np.divide(out, _polynomial(square, _CENTRE_Q, x), out)
    if beyond * (2.0 - beyond) < float(_TAIL_START):
        _replace_tail_(square, out)
    np.multiply(out, np.float32(scale), out)
    values = out.view(np.int32)
    np.bitwise_xor(values, np.bitwise_and(bits, _SIGN, whole), values)


def _replace_tail_(square: Floats, out: Floats) -> None:
    tail = np.flatnonzero(square < _TAIL_START)
    near = square[tail]
    r = _minus_two_log(near, *(np.empty_like(near) for _ in range(3)))
    np.multiply(r, _HALF, r)
    np.sqrt(r, r)
    np.subtract(r, _THREE, r)
    out[tail] = _polynomial(r, _TAIL, np.empty_like(r))


def _minus_two_log(x: Floats, m: Floats, s: Floats, top: Floats, *, one: int = _PLUS_ONE) -> Floats:
    """Return -2 ln(x/y), in the memory of `x`, for x/y in (0, 1]; all four arrays are used up.

    y is 1 or -2³¹, given as the difference of its bits from those of 1.
    """
    bits, exponent = m.view(np.int32), s.view(np.int32)
    np.subtract(x.view(np.int32), _ROOTS_HALF[one], bits)
    np.right_shift(bits, _MANTISSA_BITS, exponent)
    _convert(exponent, top)
    np.bitwise_and(bits, _MANTISSA, bits)
    np.add(bits, _ROOT_HALF, bits)
    np.subtract(m, _ONE, s)
    np.add(m, _ONE, m)
    np.divide(s, m, s)
    np.multiply(top, _LOG_STEP, top)
    np.multiply(s, s, m)
    _polynomial(m, _LOG, x)
    np.multiply(x, s, x)
    return np.add(top, x, x)


def _scratch(count: int, size: int) -> list[Floats]:
    """This thread's own scratch, kept from call to call: fresh pages would cost more than the arithmetic.

    torch aligns memory to 64 bytes, NumPy to 16, at which vector operations take a quarter longer.
    """
    kept: tuple[int, int, list[Floats]] | None = _local.__dict__.get("scratch")
    if kept is not None and kept[0] == count and kept[1] == size:
        return kept[2]
    step = -(-size // 16) * 16
    memory: Floats | None = _local.__dict__.get("memory")
    if memory is None or memory.size < count * step:
        memory = torch.empty(max(count * step, 2**12), dtype=torch.float32, device="cpu").numpy()
        _local.memory = memory
    parts = [memory[i * step : i * step + size] for i in range(count)]
    _local.scratch = count, size, parts
    return parts


def _convert(integers: Ints, out: Floats) -> None:
    np.copyto(out, integers, "same_kind")


def _polynomial(x: Floats, coefficients: Coefficients, out: Floats) -> Floats:
    """Horner's scheme, highest coefficient first."""
    np.multiply(x, coefficients[0], out)
    np.add(out, coefficients[1], out)
    for coefficient in coefficients[2:]:
        np.multiply(out, x, out)
        np.add(out, coefficient, out)
    return out
