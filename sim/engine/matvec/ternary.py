# SPDX-License-Identifier: Apache-2.0
"""Trits: a word is a tile of a row."""

from __future__ import annotations

import numpy as np

from ...types import Transfers
from ..model import Matrix, ModelError, Ternary
from ._socket import Socket, random_trits


class Packing(Socket):
    """Two bits a trit as two's complement numbers, or with ``trit5`` five trits a byte."""

    def taken(self, matrix: Matrix) -> Matrix:
        if not isinstance(matrix, Ternary):
            raise ModelError(
                f"the core ternary takes trits, not {matrix.format}; matvec=booth takes integers"
            )
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        trits = self.tiles(matrix.codes).reshape(-1, self.lanes)
        if self.config.packing == "trit2":
            return {"weights": trits.astype(np.int64) & 3}
        digits = np.zeros((len(trits), -(-self.lanes // 5) * 5), np.int64)
        digits[:, : self.lanes] = trits % 3  # 0, 1, 2 for 0, +1, -1
        return {"bytes": digits.reshape(len(trits), -1, 5) @ 3 ** np.arange(5)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        return random_trits(rng, rows, columns)
