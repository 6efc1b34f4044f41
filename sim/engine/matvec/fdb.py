# SPDX-License-Identifier: Apache-2.0
"""Dual bits: a word is a tile with the factors of its group."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.fdb import FACTOR, word_layout
from ...types import Transfers
from ..model import Matrix, ModelError, Planes, Ternary
from ._socket import Socket, bytes_of, random_planes


class Packing(Socket):
    """Trits have the factors 1 and -1: one plane is where they are 1, the other where -1."""

    def taken(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Ternary):
            planes = np.stack((matrix.trits == 1, matrix.trits == -1), axis=1).astype(np.uint8)
            groups = -(-matrix.trits.shape[1] // self.lanes)
            ones = np.ones((len(matrix.trits), groups), np.int16)
            return Planes(planes, np.stack((ones, -ones), axis=1), matrix.scale, self.lanes)
        if not isinstance(matrix, Planes) or matrix.format != "fdb":
            raise ModelError(f"the core fdb takes trits and dual bits, not {matrix.format}")
        self.check_groups(matrix)
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        assert isinstance(matrix, Planes)
        one, two = (self.tiles(matrix.planes[:, plane]) for plane in range(2))
        alphas = self.of_tiles(matrix, matrix.factors)
        fields = {"b1": one, "b2": two, "alpha1": alphas[:, 0], "alpha2": alphas[:, 1]}
        flat = {
            name: values.reshape(one.shape[0] * one.shape[1], -1) for name, values in fields.items()
        }
        return {"bytes": bytes_of(word_layout(self.lanes), flat).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        return random_planes(rng, (rows, 2, columns), self.lanes, FACTOR, offsets=False)
