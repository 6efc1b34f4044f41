# SPDX-License-Identifier: Apache-2.0
"""float32 sums of exact terms, each addition rounded once to nearest even.

numpy adds in float64, which is rounded already; here the error of that addition is found exactly
(Knuth's two-sum) and put back as the last bit ("round to odd"), so that the second rounding, to
float32, is that of the exact sum.  float64 has more than two bits more than float32 and a far
larger range, which is what that takes.
"""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]


def _two_sum(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """``fl(a + b)`` and its error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def add(acc: Singles, high: Doubles, low: Doubles) -> Singles:
    """``acc + high + low`` rounded once; ``low`` is 0 or below half a unit of ``high``."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        first, error = _two_sum(acc.astype(np.float64), high)
        rest, tiny = _two_sum(error, low)
        total, left = _two_sum(first, rest)
        total, left = _two_sum(total, left + tiny)
        finite = np.isfinite(total)
        odd = total.view(np.int64) & 1 == 1
        towards = np.where(left > 0, np.inf, -np.inf)
        nudged = np.where((left != 0) & ~odd, np.nextafter(total, towards), total)
        result = np.where(finite, nudged, acc.astype(np.float64) + high).astype(np.float32)
    return np.where(np.isnan(result), np.float32(np.nan), result)


def halves(whole: NDArray, exponent: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Integers of any size times powers of two, as sums of two float64: the high and low 53 bits.

    ``whole`` may be of dtype ``object``; it has at most 106 bits.
    """
    cut = 1 << 53
    low = whole % cut
    high = whole - low
    return (
        np.ldexp(high.astype(np.float64), exponent),
        np.ldexp(low.astype(np.float64), exponent),
    )


def codes(values: Singles) -> NDArray[np.int64]:
    """The bits of float32 values; every NaN is 0x7fc00000."""
    bits = values.view(np.uint32).astype(np.int64)
    return np.where(np.isnan(values), 0x7FC00000, bits)
