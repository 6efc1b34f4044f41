# SPDX-License-Identifier: Apache-2.0
"""Exact fixed-point arithmetic on int64 arrays.

A *scale* is a pair ``(mantissa, shift)`` and stands for ``mantissa * 2**-shift``. The mantissa is
0 or has exactly :data:`MANTISSA_BITS` bits. All functions broadcast, take anything that converts
to int64, and are exact within the bounds they state; beyond these int64 would wrap, silently.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

MANTISSA_BITS = 16
MAX_SHIFT = 62


def bit_length(value: ArrayLike) -> Ints:
    """Bits of a non-negative value below 2**62; 0 has none."""
    value = np.asarray(value, dtype=np.int64)
    bits = np.frexp(value.astype(np.float64))[1].astype(np.int64)
    # Above 2**53 the conversion may round up to the next power of two.
    return np.where(bits > 53, bits - ((value >> np.maximum(bits - 1, 0)) == 0), bits)


def round_half_even_div(numerator: ArrayLike, denominator: ArrayLike) -> Ints:
    """``numerator / denominator`` to the nearest integer, ties to the even one.

    ``0 < denominator < 2**61``, ``|numerator| < 2**62``.
    """
    numerator = np.asarray(numerator, dtype=np.int64)
    denominator = np.asarray(denominator, dtype=np.int64)
    quotient = numerator // denominator
    twice = 2 * (numerator - quotient * denominator)
    return quotient + ((twice > denominator) | ((twice == denominator) & (quotient & 1 == 1)))


def isqrt(value: ArrayLike) -> Ints:
    """Floor of the square root of a value in ``0 <= value < 2**62``."""
    value = np.asarray(value, dtype=np.int64)
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root -= root * root > value
    return root + ((root + 1) * (root + 1) <= value)


def round_shift(value: ArrayLike, shift: ArrayLike) -> Ints:
    """``value * 2**-shift`` to the nearest integer, ties upwards (one adder, no sticky bit).

    ``shift >= 0``, ``|value| < 2**62``; from a shift of :data:`MAX_SHIFT` on the result is 0
    wherever ``|value| < 2**61``.
    """
    value = np.asarray(value, dtype=np.int64)
    shift = np.minimum(shift, MAX_SHIFT)
    return (value + ((np.int64(1) << shift) >> 1)) >> shift


def saturate(value: ArrayLike, bits: int) -> Ints:
    """Clamp to signed ``bits``, symmetrically: ``-2**(bits-1)`` does not occur."""
    limit = (1 << bits - 1) - 1
    return np.clip(np.asarray(value, dtype=np.int64), -limit, limit)


def normalise(value: ArrayLike, bits: int = MANTISSA_BITS) -> tuple[Ints, Ints]:
    """The scale nearest to a non-negative integer below 2**62.

    Values of more than ``bits`` bits are rounded, ties to even; a mantissa that rounds up to
    ``2**bits`` is halved. 0 gives ``(0, 0)``. The shift is negative for large values.
    """
    value = np.asarray(value, dtype=np.int64)
    shift = bits - bit_length(value)
    left = value << np.maximum(shift, 0)
    right = np.maximum(-shift, 0)
    half = (np.int64(1) << right) >> 1
    odd = (left >> right) & 1
    mantissa = np.where(right > 0, (left + half - 1 + odd) >> right, left)
    over = mantissa >> bits
    return mantissa >> over, np.where(value == 0, 0, shift - over)


def product(
    one: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike]
) -> tuple[Ints, Ints]:
    """Product of two scales, normalised as by :func:`normalise`."""
    mantissa, shift = normalise(np.multiply(one[0], other[0], dtype=np.int64))
    return mantissa, np.where(mantissa == 0, 0, shift + one[1] + other[1])


def quotient(
    one: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike]
) -> tuple[Ints, Ints]:
    """Quotient of two scales; the second is not 0.

    The mantissa is ``one << 16`` over the other's mantissa, rounded to nearest, ties to even (one
    division of 32 bits by 16), then normalised as by :func:`normalise`.
    """
    top, bottom = np.asarray(one[0], dtype=np.int64), np.asarray(other[0], dtype=np.int64)
    ratio = round_half_even_div(top << MANTISSA_BITS, bottom)
    mantissa, shift = normalise(ratio)
    shift = shift + MANTISSA_BITS + np.asarray(one[1]) - np.asarray(other[1])
    return mantissa, np.where(mantissa == 0, 0, shift)


def root(value: ArrayLike) -> tuple[Ints, Ints]:
    """The scale ``(root, shift)`` that is the square root of a value in ``1 <= value < 2**62``.

    The value is shifted by an even amount into ``2**30 .. 2**32 - 1``, bits beyond dropped, and
    the root is the floor: 16 bits, error below 2**-15 of the value.
    """
    value = np.asarray(value, dtype=np.int64)
    even = (32 - bit_length(value)) & ~1
    even = even - 2 * (even + bit_length(value) > 32)
    shifted = np.where(even >= 0, value << np.maximum(even, 0), value >> np.maximum(-even, 0))
    return isqrt(shifted), even >> 1


def scale_of(value: float) -> tuple[int, int]:
    """The scale nearest to a positive real, ties to even; compile time only."""
    if not np.isfinite(value) or value < 0:
        raise ValueError(f"a scale must be a finite number of at least 0, not {value}")
    fraction, exponent = np.frexp(np.float64(value))
    mantissa = round(float(fraction) * (1 << MANTISSA_BITS))
    if mantissa == 0:
        return 0, 0
    shift = MANTISSA_BITS - int(exponent)
    return (mantissa >> 1, shift - 1) if mantissa >> MANTISSA_BITS else (mantissa, shift)


def requantise(value: ArrayLike, mantissa: ArrayLike, shift: ArrayLike) -> Ints:
    """``value * mantissa * 2**-shift`` to the nearest integer, ties upwards.

    ``shift >= 0``, ``|value * mantissa| < 2**61``.
    """
    return round_shift(np.multiply(value, mantissa, dtype=np.int64), shift)


def absmax_codes(values: ArrayLike, peak: ArrayLike, top: int = 127) -> Ints:
    """Codes ``top * values / peak`` along the last axis, to nearest, ties to even.

    ``peak`` is the largest magnitude of each row (without the last axis); a row whose peak is 0
    gives codes 0. ``top * peak < 2**61``.
    """
    values = np.asarray(values, dtype=np.int64)
    peak = np.asarray(peak, dtype=np.int64)[..., None]
    return round_half_even_div(top * values, np.maximum(peak, 1))
