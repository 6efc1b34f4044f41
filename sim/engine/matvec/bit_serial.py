# SPDX-License-Identifier: Apache-2.0
"""Integers bit plane by bit plane, the highest first."""

from __future__ import annotations

import numpy as np

from ...types import Transfers
from ..model import Integer, Matrix, ModelError, Ternary
from ._socket import Socket, random_integers, random_trits, widened


class Packing(Socket):
    """A row's words are those of its first plane, tile by tile, then those of the next."""

    def taken(self, matrix: Matrix) -> Matrix:
        if not isinstance(matrix, Ternary | Integer):
            raise ModelError(f"the core bit_serial takes trits and integers, not {matrix.format}")
        return matrix

    def together(self, one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
        return widened(one, other)

    def mode(self, matrix: Matrix) -> int:
        return matrix.bits - 1

    def words_per_tile(self, mode: int) -> int:
        return mode + 1

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        planes = np.arange(mode, -1, -1)[:, None, None]
        bits = self.tiles(matrix.codes)[:, None] >> planes & 1
        return {"bits": bits.reshape(-1, self.lanes).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        bits = int(rng.choice([2, 3, 4, 8]))
        if bits == 2:
            return random_trits(rng, rows, columns)
        return random_integers(rng, rows, columns, bits)
