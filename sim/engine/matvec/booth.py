# SPDX-License-Identifier: Apache-2.0
"""Trits and integers of 4 and 8 bits, a byte for each PE."""

from __future__ import annotations

import numpy as np

from ....rtl.engine._program import Mode
from ...types import Transfers
from ..model import Integer, Matrix, ModelError, Ternary
from ._socket import Socket, random_integers, random_trits, widened


class Packing(Socket):
    """A tile is a word of trits; or, byte ``p`` of a word belonging to the weights ``4 p`` to
    ``4 p + 3``, four words of 8-bit integers, in which their turn comes one after the other, or two
    of 4-bit integers, two in a byte and the earlier one lower.
    """

    def taken(self, matrix: Matrix) -> Matrix:
        if not isinstance(matrix, Ternary | Integer):
            raise ModelError(f"the core booth takes trits and integers, not {matrix.format}")
        return matrix

    def together(self, one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
        return widened(one, other)

    def mode(self, matrix: Matrix) -> int:
        if isinstance(matrix, Ternary):
            return Mode.TERNARY
        return Mode.INT4 if matrix.bits <= 4 else Mode.INT8

    def words_per_tile(self, mode: int) -> int:
        return (1, 2, 4)[mode]

    def cycles_per_word(self, mode: int) -> int:
        return 2 if mode == Mode.INT4 else 1

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        tiles = self.tiles(matrix.codes).reshape(-1, self.lanes)
        if mode == Mode.TERNARY:
            return {"weights": tiles.astype(np.int64) & 3}
        turns = tiles.reshape(-1, self.lanes // 4, 4).swapaxes(1, 2)  # (tile, turn, byte)
        if mode == Mode.INT4:
            turns = turns[:, 0::2] & 15 | turns[:, 1::2] << 4
        digits = turns[..., None].astype(np.int64) >> np.arange(0, 8, 2) & 3
        return {"weights": digits.reshape(-1, self.lanes)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        bits = int(rng.choice([2, 4, 8]))
        return (
            random_trits(rng, rows, columns)
            if bits == 2
            else random_integers(rng, rows, columns, bits)
        )
