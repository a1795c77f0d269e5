"""From random bits to values, by operations that every processor rounds alike.

Only +, -, *, /, sqrt and integer operations occur, one call each, so nothing is contracted into a fused
multiply-add and no libm or vector library has a say: the same bits give the same floats on every machine that
follows IEEE 754. `torch.log`, `torch.erfinv` and `Tensor.normal_` differ in the last places between vector
widths, libraries and vendors, which shards drawn on unlike hosts would show.

`bits` is an int32 array of rows of n uniform words, which are used up, `out` a float32 array of the same
shape; each row is a stream of its own. Both may be tensors, on any device: `operations` has the calls. The
polynomials are minimax fits (Lawson's iteration) to the functions named beside them; their relative error is
stated there. Most of the time goes into passing memory, so a pass less or one in place counts more than an
operation: a quadratic is written as a square, (x + A)² + B, and the factors of leading terms and of scales
are moved to where a constant is multiplied anyway. Output arrays are reused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from isometry.sampling.operations import Floats, Ints, Operations, operations

Constant = npt.NDArray[Any]
Coefficients = tuple[Constant, ...]


def _float32(*values: float) -> Coefficients:
    # Arrays without dimensions, as NumPy takes a fifth of a microsecond longer over each of its scalars.
    return tuple(np.array(value, np.float32) for value in values)


def _int32(value: int) -> Constant:
    return np.array(value, np.int32)


_MAGNITUDE, _SIGN = _int32(0x7FFFFFFF), _int32(-0x80000000)
_NEGATIVE_ODD = _int32(1 - 2**31)
_ONE, _TWO, _THREE = _float32(1.0, 2.0, 3.0)

# A logarithm in units of _UNIT, in which the exponent of a float32 need not be shifted down.
_EXPONENT = _int32(-(2**23))
_UNIT = 2 * math.log(2) * 2.0**-23
# s((s² + A)² + B) = -2 ln(m) / _UNIT with s = k(1 - m)/(1 + m), m in [sqrt(1/2), sqrt(2)), error 1.2e-7.
_LOG_K = 21.865291409044612
_LOG_A, _LOG_B, _LOG_MINUS_K = _float32(385.8187036572521, 958122.5061065344, -_LOG_K)
# The bits of y·sqrt(1/2), y, and 2ky, for each y.
_POSITIVE = _int32(0x3F3504F3), _float32(1.0, 2 * _LOG_K)
_NEGATIVE_WORD = _int32(0x3F3504F3 + (31 << 23) - 2**31), _float32(-(2.0**31), -2 * _LOG_K * 2.0**31)
# sqrt(2) sin(πx/4) = t(t² + A)((t² + B)² + C) with t = kx for x in [-1, 1], error 3.2e-9.
_SIN_A, _SIN_B, _SIN_C, _SIN_STEP = _float32(
    -0.9158351511578676, -1.5964147587233588, 2.430949226065124, -0.2435582052936112 * 2.0**-31
)
# z/x = P(1 - x²)/Q(1 - x²) for x = erf(z/sqrt(2)), |z| <= 2.3, error 1.1e-7.
_CENTRE_P = _float32(2922.77873, 8205.91331, 3507.84685, 287.546939, 3.30365607)
_CENTRE_Q = _float32(205.538282, 3812.56398, 5969.04009, 1808.3624, 113.830213, 1.0)
# z = P(r - 3) with r = sqrt(-ln(1 - x²)), 2.25 <= z <= 6.6, error 7.5e-8.
_TAIL = _float32(
    -1.4158677e-05, 7.14273676e-05, -8.17368537e-05, -2.9539976e-04, 1.63557662e-03,
    -4.88183391e-03, 9.67325227e-03, 1.41798003, 4.00618723,
)  # fmt: skip
(_TAIL_START,) = _float32(0.0433)  # 1 - erf(z/sqrt(2))² at z = 2.28


def uniform(bits: Ints, out: Floats, low: float, high: float) -> None:
    """Values mid + half·bits/2³¹ in [low, high]: symmetric, and finest where float32 is."""
    do = operations(bits)
    do.to_float(out, bits)
    do.multiply(out, np.float32((high - low) * 2.0**-32), out)
    mid = (high + low) / 2
    if mid != 0.0:
        do.add(out, np.float32(mid), out)


def normal(bits: Ints, out: Floats, std: float) -> None:
    """Normal values of mean 0 by the transform of Box and Muller, two from each pair of words.

    The first word gives a sign and a radius of 30 random bits, so that |z| reaches 6.55 (the chance of more
    is 6e-11); the second gives an angle in the right half of the plane. An even n is needed.
    """
    do = operations(bits)
    half = bits.shape[-1] // 2
    first, second = bits[..., :half], bits[..., half:]
    cos, sin = out[..., :half], out[..., half:]
    spare = second.view(do.float32)
    radius = do.scratch(first.shape, bits)
    # (cos 2φ, sin 2φ) = (1 - 2 sin²φ, 2 sin φ cos φ) with φ = πx/4, where cos φ is a well-conditioned root.
    do.to_float(sin, second)
    do.multiply(sin, _SIN_STEP, sin)
    do.multiply(sin, sin, spare)
    do.add(spare, _SIN_A, cos)
    do.add(spare, _SIN_B, spare)
    do.multiply(spare, spare, spare)
    do.add(spare, _SIN_C, spare)
    do.multiply(spare, cos, spare)
    do.multiply(sin, spare, sin)
    # The radius.
    do.bitwise_or(first, _NEGATIVE_ODD, second)
    do.to_float(radius, second)
    _log(do, radius, spare, cos, _NEGATIVE_WORD)
    do.sqrt(radius, radius)
    do.multiply(radius, np.float32(math.sqrt(_UNIT) * std), radius)
    do.bitwise_and(first, _SIGN, first)
    signed = radius.view(do.int32)
    do.bitwise_xor(signed, first, signed)
    # Both together.
    do.multiply(sin, sin, spare)
    do.subtract(_TWO, spare, cos)
    do.sqrt(cos, cos)
    do.multiply(sin, cos, sin)
    do.multiply(sin, radius, sin)
    do.subtract(_ONE, spare, spare)
    do.multiply(spare, radius, cos)


def truncated(bits: Ints, out: Floats, scale: float, edge: float, beyond: float) -> None:
    """Normal values of mean 0 cut at ±c, by the inverse of the distribution function.

    With x uniform on (-edge, edge), edge = erf(c/sqrt(2)), the value is scale·sqrt(2)·erfinv(x). Where
    there are tails the distance 1 - |x| is drawn, not |x|, so that they keep 31 random bits. `beyond` = 1 -
    edge.
    """
    do = operations(bits)
    x, square = do.scratch((2, *out.shape), bits)
    whole = square.view(do.int32)
    do.bitwise_and(bits, _MAGNITUDE, whole)
    do.to_float(x, whole)
    do.multiply(x, np.float32(edge * 2.0**-31), x)
    if edge < 0.5:
        do.multiply(x, x, square)
        do.subtract(_ONE, square, square)
    else:
        do.add(x, np.float32(beyond + edge * 2.0**-32), x)
        do.subtract(_TWO, x, square)
        do.multiply(square, x, square)
        do.subtract(_ONE, x, x)
    _polynomial(do, square, _CENTRE_P, out)
    do.multiply(out, x, out)
    do.divide(out, _polynomial(do, square, _CENTRE_Q, x), out)
    if beyond * (2.0 - beyond) < float(_TAIL_START):
        _replace_tail_(do, square, out)
    do.multiply(out, np.float32(scale), out)
    values = out.view(do.int32)
    do.bitwise_xor(values, do.bitwise_and(bits, _SIGN, whole), values)


def _replace_tail_(do: Operations, square: Floats, out: Floats) -> None:
    tail = do.below(square, _TAIL_START)
    r = square.reshape(-1)[tail]
    spare, exponent = do.empty(2, r)
    _log(do, r, spare, exponent, _POSITIVE)
    do.multiply(r, np.float32(_UNIT / 2), r)
    do.sqrt(r, r)
    do.subtract(r, _THREE, r)
    out.reshape(-1)[tail] = _polynomial(do, r, _TAIL, spare)


def _log(
    do: Operations, x: Floats, square: Floats, exponent: Floats, kind: tuple[Constant, Coefficients]
) -> None:
    """Put -2 ln(x/y)/_UNIT in the place of x, for x/y in (0, 1]; the other two arrays are scratch.

    It is right to 5e-7, absolutely below 1 and relatively above, never negative, and 0 at x = y.
    """
    root_half, (y, two_k_y) = kind
    bits, scaled = x.view(do.int32), square.view(do.int32)
    do.subtract(bits, root_half, scaled)
    do.bitwise_and(scaled, _EXPONENT, scaled)
    do.subtract(bits, scaled, bits)  # x is y·m now
    do.to_float(exponent, scaled)
    do.add(x, y, x)
    do.divide(two_k_y, x, x)
    do.add(x, _LOG_MINUS_K, x)
    do.multiply(x, x, square)
    do.add(square, _LOG_A, square)
    do.multiply(square, square, square)
    do.add(square, _LOG_B, square)
    do.multiply(x, square, x)
    do.subtract(x, exponent, x)


def _polynomial(do: Operations, x: Floats, coefficients: Coefficients, out: Floats) -> Floats:
    """Horner's scheme, highest coefficient first."""
    do.multiply(x, coefficients[0], out)
    do.add(out, coefficients[1], out)
    for coefficient in coefficients[2:]:
        do.multiply(out, x, out)
        do.add(out, coefficient, out)
    return out
