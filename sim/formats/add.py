# SPDX-License-Identifier: Apache-2.0
"""Sums of floating-point codes, each rounded once to its format."""

import numpy as np
from numpy.typing import ArrayLike

from ...rtl.formats._formats import FloatFormat
from .codec import Codes, decode, encode


def add(format_: FloatFormat, a: ArrayLike, b: ArrayLike) -> Codes:
    """Codes of ``a + b``, ties to the even one; a NaN is that of the format, not negative.

    float64 has more than twice the bits of these formats and two more, so that its own rounding
    leaves the second one right.
    """
    with np.errstate(invalid="ignore"):
        total = decode(format_, a) + decode(format_, b)
    return encode(format_, np.where(np.isnan(total), np.nan, total), saturate=False)
