# SPDX-License-Identifier: Apache-2.0
"""Scales of attention that follow from the formats alone, as (mantissa, shift)."""

import math

MANTISSA = 16
"""Bits of a mantissa."""

Scale = tuple[int, int]


def nearest(value: float) -> Scale:
    """The ``mantissa * 2**-shift`` nearest to a positive real, ties to even."""
    fraction, exponent = math.frexp(value)
    mantissa, shift = round(fraction * (1 << MANTISSA)), MANTISSA - exponent
    return (mantissa >> 1, shift - 1) if mantissa >> MANTISSA else (mantissa, shift)


def score_scale(head_dim: int, top: int, fraction: int, activation_fraction: int) -> Scale:
    """From ``dot * query peak * key peak`` to a score: a binary logarithm with ``fraction`` bits.

    Codes are up to ``top``, peaks have ``activation_fraction`` bits of fraction.
    """
    unit = math.log2(math.e) * 2.0 ** (fraction - 2 * activation_fraction)
    return nearest(unit / (top**2 * math.sqrt(head_dim)))


def mix_scale(top: int, weight_bits: int, chance_bits: int) -> Scale:
    """From values' codes times weights, over a total of chances, to values over their peak.

    A weight of 1 has ``weight_bits``, a chance of 1 ``chance_bits`` bits of fraction.
    """
    return nearest(2.0 ** (chance_bits - weight_bits) / top)
