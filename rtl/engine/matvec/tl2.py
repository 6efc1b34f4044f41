# SPDX-License-Identifier: Apache-2.0
"""Ternary projections in the code of TL2, 5 bits for 3 weights, on a ``lut_gemv``."""

from . import lut


class Core(lut.Core):
    """As ``lut``, with groups of three: half tables of 14 sums, an index of 4 bits and a sign."""

    GROUP = 3
