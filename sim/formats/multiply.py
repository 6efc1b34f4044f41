# SPDX-License-Identifier: Apache-2.0
"""Products of floating-point codes, each rounded once to its format."""

import numpy as np
from numpy.typing import ArrayLike

from ...rtl.formats._formats import FloatFormat
from .codec import Codes, decode, encode


def multiply(format_: FloatFormat, a: ArrayLike, b: ArrayLike) -> Codes:
    """Codes of ``a * b``, ties to the even one; a NaN is that of the format, not negative.

    float64 holds every product of two numbers of 16 bits.
    """
    with np.errstate(invalid="ignore"):
        product = decode(format_, a) * decode(format_, b)
    return encode(format_, np.where(np.isnan(product), np.nan, product), saturate=False)
