# SPDX-License-Identifier: Apache-2.0
"""Trits in groups: a word is a tile of a row, a code for each group."""

from __future__ import annotations

import numpy as np

from ...lut.lut_gemv import encoded
from ...types import Transfers
from ..model import Matrix, ModelError, Ternary
from ._socket import Socket, random_trits


class Packing(Socket):
    """Index and sign of each group of a tile, whose last groups are filled up with zeros."""

    def taken(self, matrix: Matrix) -> Matrix:
        if not isinstance(matrix, Ternary):
            raise ModelError(
                f"the core {self.config.matvec} takes trits, not {matrix.format}; matvec=booth "
                "takes integers"
            )
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        core = self.config.product
        trits = self.tiles(matrix.codes).reshape(-1, self.lanes)
        return {"codes": encoded(core, np.pad(trits, ((0, 0), (0, core.k_lanes - self.lanes))))}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        return random_trits(rng, rows, columns)
