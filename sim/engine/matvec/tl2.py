# SPDX-License-Identifier: Apache-2.0
"""Trits in the code of TL2: 4 bits of an index and a sign for each three of a tile."""

from . import lut


class Packing(lut.Packing):
    """As ``lut``: which three a code is of, the order of a tile's codes decides, not its own."""
