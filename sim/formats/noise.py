# SPDX-License-Identifier: Apache-2.0
"""Noise of block formats on Gaussian values, in closed form, and where integers begin to lose.

QSNR is the power of the values over that of their errors, in dB.  The *crest* of a block is its
largest magnitude over its root mean square.  The *overhead* is how much larger a block's scale is
than the smallest that would do: 1 to 2 for powers of two, 1.5 on average; 1.05 for E4M3.

Source: theorems 1 and 2 of arXiv 2510.25602; the term for a block's largest element, which a scale
that is no power of two meets, is that of its NV formats.
"""

import math

from ...rtl.formats._blocks import BlockFormat
from ...rtl.formats._formats import FloatFormat, IntegerFormat, ScaleFormat
from .blocks import top_of
from .codec import decode

POWER_OVERHEAD = 1.5
FLOAT_OVERHEAD = 1.05


def expected_qsnr(format_: BlockFormat, crest: float) -> float:
    """QSNR of blocks of Gaussian values with that crest.

    Steps are uniform: one for integers; for floats, one below the smallest normal number, and above
    it one that is in proportion to the value.
    """
    meets = not isinstance(format_.scale, ScaleFormat)
    overhead = FLOAT_OVERHEAD if meets else POWER_OVERHEAD
    reach = overhead * crest  # of the largest element, over the root mean square
    if isinstance(format_.element, IntegerFormat):
        step = reach / (1 << format_.element.bits - 1)
        noise = step**2 / 12
        return -10 * math.log10(noise * (1 - 1 / format_.block if meets else 1))
    assert isinstance(format_.element, FloatFormat)
    element, unit = format_.element, reach / top_of(format_)
    smallest = float(decode(element, 1 << element.mantissa)) * unit
    step = float(decode(element, 1)) * unit
    below = math.erf(smallest / math.sqrt(2))
    power = 1 - below + math.sqrt(2 / math.pi) * smallest * math.exp(-(smallest**2) / 2)
    if meets:  # the largest element has no error
        power -= crest**2 / format_.block
    return -10 * math.log10(power / (24 * 4**element.mantissa) + step**2 / 12 * below)


def crossover(integers: BlockFormat, floats: BlockFormat) -> float:
    """The crest up to which integers have less noise."""
    powers = isinstance(floats.scale, ScaleFormat)
    low, high = 1.2, 30.0 if powers else math.sqrt(floats.block)
    for _ in range(60):
        middle = (low + high) / 2
        if expected_qsnr(integers, middle) > expected_qsnr(floats, middle):
            low = middle
        else:
            high = middle
    return low
