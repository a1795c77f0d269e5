"""From random bits to values, by operations that every processor rounds alike.

Only +, -, *, /, sqrt and integer operations occur, one NumPy call each, so nothing is contracted into a fused
multiply-add and no libm or vector library has a say: the same bits give the same floats on every machine that
follows IEEE 754. `torch.log`, `torch.erfinv` and `Tensor.normal_` differ in the last places between vector
widths, libraries and vendors, which shards drawn on unlike hosts would show.

`bits` is an int32 vector of n uniform words, `out` a contiguous float32 vector of n values. The polynomials
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
Coefficients = tuple[np.float32, ...]

_local = threading.local()


def _float32(*values: float) -> Coefficients:
    return tuple(np.float32(value) for value in values)


_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_ROOT_HALF = np.int32(0x3F3504F3)  # the bits of sqrt(1/2): mantissas are reduced to [sqrt(1/2), sqrt(2))
_MANTISSA_BITS = np.int32(23)
_HALF, _ONE, _TWO, _THREE = _float32(0.5, 1.0, 2.0, 3.0)
_STEP, _HALF_STEP = _float32(2.0**-31, 2.0**-32)

# -2 ln m = s P(s²) with s = (m - 1)/(m + 1), error 1.2e-7; constants last.
_LOG = _float32(-2 * 0.41296377, -2 * 0.66652224, -2 * 2.00000024)
_LOG_STEP = np.float32(-2 * math.log(2))
# sqrt(2) sin(πt/2) = t P(t²), error 5.9e-7, and sqrt(2) cos(πt/2) = P(t²), error 4.7e-8, for t in [-1, 1].
_SIN = tuple(np.float32(math.sqrt(2) * c) for c in (-0.00433309, 0.07943434, -0.64589285, 1.57079101))
_COS = tuple(
    np.float32(math.sqrt(2) * c)
    for c in (8.58191178e-04, -2.08106288e-02, 2.53650746e-01, -1.23369821, 9.99999953e-01)
)
# z/x = P(1 - x²)/Q(1 - x²) for x = erf(z/sqrt(2)), |z| <= 2.3, error 1.1e-7.
_CENTRE_P = _float32(2922.77873, 8205.91331, 3507.84685, 287.546939, 3.30365607)
_CENTRE_Q = _float32(205.538282, 3812.56398, 5969.04009, 1808.3624, 113.830213, 1.0)
# z = P(r - 3) with r = sqrt(-ln(1 - x²)), 2.25 <= z <= 6.6, error 7.5e-8.
_TAIL = _float32(
    -1.4158677e-05, 7.14273676e-05, -8.17368537e-05, -2.9539976e-04, 1.63557662e-03,
    -4.88183391e-03, 9.67325227e-03, 1.41798003, 4.00618723,
)  # fmt: skip
_TAIL_START = np.float32(0.0433)  # 1 - erf(z/sqrt(2))² at z = 2.28


def uniform(bits: Ints, out: Floats, *, low: float, high: float) -> None:
    """Values mid + half·bits/2³¹ in [low, high]: symmetric, and finest where float32 is."""
    _convert(bits, out)
    np.multiply(out, np.float32((high - low) * 2.0**-32), out)
    mid = (high + low) / 2
    if mid != 0.0:
        np.add(out, np.float32(mid), out)


def normal(bits: Ints, out: Floats, *, std: float) -> None:
    """Normal values of mean 0 by the transform of Box and Muller, two from each pair of words.

    The radius has 31 random bits, so that |z| reaches 6.6 (the chance of more is 5e-11); the angle has 32.
    An even n is needed.
    """
    half = bits.size // 2
    cos, sin = out[:half], out[half:]
    _convert(bits, out)
    np.multiply(out, _STEP, out)
    radius, square, spare = _scratch(3, half)
    np.absolute(cos, radius)
    np.add(radius, _HALF_STEP, radius)
    np.sqrt(_minus_two_log(radius, cos, square.view(np.int32), spare), radius)
    if std != 1.0:
        np.multiply(radius, np.float32(std), radius)
    # (cos 2φ, sin 2φ) = (1 - 2 sin²φ, 2 sin φ cos φ) with φ = πt/2 covers the circle and needs no quadrants.
    np.multiply(sin, sin, square)  # `sin` still holds t
    _polynomial(square, _SIN, cos)
    np.multiply(cos, sin, cos)
    _polynomial(square, _COS, sin)
    np.multiply(sin, cos, sin)
    np.multiply(cos, cos, cos)
    np.subtract(_ONE, cos, cos)
    np.multiply(cos, radius, cos)
    np.multiply(sin, radius, sin)


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
    r = _minus_two_log(near, np.empty_like(near), np.empty(near.shape, np.int32), np.empty_like(near))
    np.multiply(r, _HALF, r)
    np.sqrt(r, r)
    np.subtract(r, _THREE, r)
    out[tail] = _polynomial(r, _TAIL, np.empty_like(r))


def _minus_two_log(x: Floats, top: Floats, exponent: Ints, p: Floats) -> Floats:
    """Return -2 ln x, in the memory of `top`, for x in (0, 1]; all four are used up."""
    m = x.view(np.int32)
    np.subtract(m, _ROOT_HALF, exponent)
    np.right_shift(exponent, _MANTISSA_BITS, exponent)
    _convert(exponent, top)
    np.left_shift(exponent, _MANTISSA_BITS, exponent)
    np.subtract(m, exponent, m)
    s = exponent.view(np.float32)
    np.subtract(x, _ONE, s)
    np.add(x, _ONE, x)
    np.divide(s, x, s)
    np.multiply(top, _LOG_STEP, top)
    square = np.multiply(s, s, x)
    _polynomial(square, _LOG, p)
    np.multiply(p, s, p)
    return np.add(top, p, top)


def _scratch(count: int, size: int) -> list[Floats]:
    """This thread's own scratch, kept from call to call: fresh pages would cost more than the arithmetic.

    torch aligns memory to 64 bytes, NumPy to 16, at which vector operations take a quarter longer.
    """
    kept: Floats | None = _local.__dict__.get("scratch")
    step = -(-size // 16) * 16
    if kept is None or kept.size < count * step:
        memory = torch.empty(max(count * step, 2**12), dtype=torch.float32, device="cpu")
        kept = _local.scratch = memory.numpy()
    return [kept[i * step : i * step + size] for i in range(count)]


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
