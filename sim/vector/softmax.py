# SPDX-License-Identifier: Apache-2.0
"""Golden model of the online softmax."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._fixed import Ints, normalise, round_shift

CHANCE_BITS = 15
"""A chance of 1 is ``2**15``."""


def exp2_table(fraction: int, bits: int, top: int) -> Ints:
    """``2**bits * 2**(-i / 2**fraction)`` to nearest, at most ``top``, for ``i < 2**fraction``."""
    steps = np.arange(1 << fraction) / (1 << fraction)
    return np.minimum(np.rint(np.exp2(bits - steps)).astype(np.int64), top)


def log2(value: Ints, fraction: int) -> Ints:
    """``log2`` of a non-negative integer below 2**61, ``fraction`` bits of fraction; 0 gives 0.

    Of the value's bits below the top one, ``fraction`` (after rounding as by ``normalise``) look
    up a table that is rounded to nearest.
    """
    mantissa, shift = normalise(value, fraction + 1)
    steps = np.arange(1 << fraction) / (1 << fraction)
    table = np.rint(np.log2(1 + steps) * (1 << fraction)).astype(np.int64)
    low = np.where(mantissa == 0, 0, mantissa - (1 << fraction))
    return np.where(mantissa == 0, 0, ((fraction - shift) << fraction) + table[low])


@dataclass(frozen=True)
class Mixed:
    """``sums * 2**octave`` over ``total * 2**total_octave``, each with its own constant factor."""

    sums: Ints
    octave: Ints
    total: Ints
    total_octave: Ints


@dataclass(frozen=True, eq=False)
class Softmax:
    """Tables of the online softmax; scores are base 2 logarithms."""

    fraction: int
    chances: Ints
    weights: Ints

    @classmethod
    def of(cls, fraction: int, weight_bits: int) -> "Softmax":
        return cls(
            fraction,
            exp2_table(fraction, CHANCE_BITS, 1 << CHANCE_BITS),
            exp2_table(fraction, weight_bits, (1 << weight_bits) - 1),
        )

    def mix(self, scores: Ints, levels: Ints, values: Ints, seen: NDArray[np.bool_]) -> Mixed:
        """Values weighted by ``2**level``, and the total of ``2**score``, token by token.

        ``scores`` and ``levels`` (kv head, head, row, token), ``values`` (kv head, token, n);
        ``seen`` (row, token) says which tokens a row attends to.
        """
        *shape, tokens = scores.shape
        total, sums = np.zeros(shape, np.int64), np.zeros((*shape, values.shape[-1]), np.int64)
        lowest = np.full(shape, -(1 << 40), np.int64)
        octaves = [lowest, lowest.copy()]
        for token in range(tokens):
            rows = np.flatnonzero(seen[:, token])
            moved, terms = [], []
            for at, (given, table) in enumerate(((scores, self.chances), (levels, self.weights))):
                value = given[:, :, rows, token]
                own = -(-value >> self.fraction)
                before = octaves[at][:, :, rows]
                octave = np.maximum(before, own)
                octaves[at][:, :, rows] = octave
                moved.append(np.minimum(octave - before, 62))
                index = -value & (1 << self.fraction) - 1
                terms.append(round_shift(table[index], octave - own))
            total[:, :, rows] = (total[:, :, rows] >> moved[0]) + terms[0]
            product = terms[1][..., None] * values[:, None, None, token]
            sums[:, :, rows] = (sums[:, :, rows] >> moved[1][..., None]) + product
        return Mixed(sums, octaves[1], total, octaves[0])
