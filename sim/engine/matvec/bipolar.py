# SPDX-License-Identifier: Apache-2.0
"""Bipolar integers plane by plane, the highest first; trits in two planes that count the same."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.bipolar import TERNARY
from ...types import Transfers
from ..model import Coded, Matrix, ModelError, Ternary
from ._socket import Socket, random_trits


class Packing(Socket):
    """A row's words are those of its first plane, tile by tile, then those of the next."""

    def taken(self, matrix: Matrix) -> Matrix:
        bipolar = isinstance(matrix, Coded) and matrix.element.startswith("bipolar")
        if not bipolar and not isinstance(matrix, Ternary):
            raise ModelError(f"the core bipolar takes trits and bipolar4, not {matrix.format}")
        return matrix

    def mode(self, matrix: Matrix) -> int:
        return TERNARY if isinstance(matrix, Ternary) else matrix.bits - 1

    def words_per_tile(self, mode: int) -> int:
        return 2 if mode == TERNARY else mode + 1

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        if isinstance(matrix, Ternary):  # 1 is both bits, -1 none, 0 one of them
            planes = np.stack((matrix.trits >= 0, matrix.trits > 0), axis=1)
        else:
            assert isinstance(matrix, Coded)
            planes = matrix.elements[:, None] >> np.arange(mode, -1, -1)[:, None] & 1
        tiles = self.tiles(planes.reshape(-1, planes.shape[2]))
        return {"bits": tiles.reshape(-1, self.lanes).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        if self.config.format == "ternary":
            return random_trits(rng, rows, columns)
        bits = int(self.config.format[-1])
        elements = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint16)
        scale = float(rng.uniform(1, 4) / np.sqrt(columns) / (1 << bits))
        exponents = np.zeros((rows, 1), np.uint8)
        return Coded(self.config.format, self.config.format, elements, exponents, scale)
