# SPDX-License-Identifier: Apache-2.0
"""Scales of attention that follow from the formats alone; hardware has them as constants."""

import math

from .._fixed import scale_of
from ..vector.softmax import CHANCE_BITS

Scale = tuple[int, int]


def score_scale(head_dim: int, top: int, fraction: int, activation_fraction: int) -> Scale:
    """From ``dot * query peak * key peak`` to a score: a binary logarithm with ``fraction`` bits.

    Codes are up to ``top``, peaks have ``activation_fraction`` bits of fraction.
    """
    unit = math.log2(math.e) * 2.0 ** (fraction - 2 * activation_fraction)
    return scale_of(unit / (top**2 * math.sqrt(head_dim)))


def mix_scale(top: int, weight_bits: int) -> Scale:
    """From values' codes times weights, over a total of chances, to values over their peak."""
    return scale_of(2.0 ** (CHANCE_BITS - weight_bits) / top)
