# SPDX-License-Identifier: Apache-2.0
"""Exact fixed-point arithmetic on int64 arrays.

A *scale* is a pair ``(mantissa, shift)`` and stands for ``mantissa * 2**-shift``. The mantissa is
0 or has exactly :data:`MANTISSA_BITS` bits. All functions broadcast, take int64 arrays and
whole numbers, and are exact within the bounds they state; beyond these int64 would wrap, silently.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
IntLike = Ints | np.int64 | int

MANTISSA_BITS = 16
MAX_SHIFT = 62


def bit_length(value: IntLike) -> Ints:
    """Bits of a non-negative value below 2**62; 0 has none."""
    value = np.asarray(value, dtype=np.int64)
    # Clearing the bit below the top one keeps the conversion from rounding up to a power of two.
    return np.frexp((value & ~(value >> 1)).astype(np.float64))[1].astype(np.int64)


def round_half_even_div(numerator: IntLike, denominator: IntLike) -> Ints:
    """``numerator / denominator`` to the nearest integer, ties to the even one.

    ``0 < denominator < 2**61``, ``|numerator| < 2**62``.
    """
    numerator = np.asarray(numerator, dtype=np.int64)
    denominator = np.asarray(denominator, dtype=np.int64)
    quotient = numerator // denominator
    twice = 2 * (numerator - quotient * denominator)
    return quotient + ((twice > denominator) | ((twice == denominator) & (quotient & 1 == 1)))


def isqrt(value: IntLike) -> Ints:
    """Floor of the square root of a value in ``0 <= value < 2**62``."""
    value = np.asarray(value, dtype=np.int64)
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root -= root * root > value
    return root + ((root + 1) * (root + 1) <= value)


def round_shift(value: IntLike, shift: IntLike) -> Ints:
    """``value * 2**-shift`` to the nearest integer, ties upwards (one adder, no sticky bit).

    ``|value| < 2**61``. A shift above :data:`MAX_SHIFT` counts as that and gives 0; one below 0
    counts as 0, which no scale of :mod:`.engine.integer` but those of value 0 has.
    """
    shift = np.minimum(np.maximum(shift, 0), MAX_SHIFT)
    return np.right_shift(value + ((np.int64(1) << shift) >> 1), shift)


def saturate(value: IntLike, bits: int) -> Ints:
    """Clamp to signed ``bits``, symmetrically: ``-2**(bits-1)`` does not occur."""
    limit = (1 << bits - 1) - 1
    return np.minimum(np.maximum(value, -limit), limit)


def normalise(value: IntLike, bits: int = MANTISSA_BITS) -> tuple[Ints, Ints]:
    """The scale nearest to a non-negative integer below 2**61, ties upwards.

    A mantissa that rounds up to ``2**bits`` is halved. 0 gives mantissa 0 and shift ``bits``. The
    shift is negative for large values.
    """
    value = np.asarray(value, dtype=np.int64)
    shift = bits - bit_length(value)
    mantissa = round_shift(value << np.maximum(shift, 0), -shift)
    over = mantissa >> bits
    return mantissa >> over, shift - over


def product(one: tuple[IntLike, IntLike], other: tuple[IntLike, IntLike]) -> tuple[Ints, Ints]:
    """Product of two scales, normalised as by :func:`normalise`."""
    mantissa, shift = normalise(np.multiply(one[0], other[0], dtype=np.int64))
    return mantissa, shift + one[1] + other[1]


def quotient(one: tuple[IntLike, IntLike], other: tuple[IntLike, IntLike]) -> tuple[Ints, Ints]:
    """Quotient of two scales; the second is not 0.

    The mantissa is ``one << 16`` over the other's mantissa, rounded to nearest, ties to even (one
    division of 32 bits by 16), then normalised as by :func:`normalise`.
    """
    ratio = round_half_even_div(np.left_shift(one[0], MANTISSA_BITS), other[0])
    mantissa, shift = normalise(ratio)
    return mantissa, shift + MANTISSA_BITS + one[1] - other[1]


def root(value: IntLike) -> tuple[Ints, Ints]:
    """The scale ``(root, shift)`` that is the square root of a value in ``1 <= value < 2**61``.

    The value is shifted by an even amount into ``2**30 .. 2**32 - 1``, bits beyond dropped, and
    the root is the floor, of 16 bits.
    """
    value = np.asarray(value, dtype=np.int64)
    even = (32 - bit_length(value)) & ~1
    shifted = (value << np.maximum(even, 0)) >> np.maximum(-even, 0)
    # Exact: below 2**52 the float root of one less than a square stays below its root.
    return np.sqrt(shifted.astype(np.float64)).astype(np.int64), even >> 1


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


def requantise(value: IntLike, mantissa: IntLike, shift: IntLike) -> Ints:
    """``value * mantissa * 2**-shift`` to the nearest integer, ties upwards.

    ``shift >= 0``, ``|value * mantissa| < 2**61``.
    """
    return round_shift(np.multiply(value, mantissa, dtype=np.int64), shift)


def absmax_codes(values: IntLike, peak: IntLike, top: int = 127) -> Ints:
    """Codes ``top * values / peak`` along the last axis, to nearest, ties to even.

    ``peak`` is the largest magnitude of each row (without the last axis); a row whose peak is 0
    gives codes 0. ``top * peak < 2**61``.
    """
    values = np.asarray(values, dtype=np.int64)
    peak = np.asarray(peak, dtype=np.int64)[..., None]
    return round_half_even_div(top * values, np.maximum(peak, 1))
