# SPDX-License-Identifier: Apache-2.0
"""Dual bits: a word is a tile with the factors of its group."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.fdb import FACTOR, word_layout
from ...types import Transfers
from ..model import Dual, Matrix, ModelError, Ternary
from ._socket import Socket, bytes_of


class Packing(Socket):
    """Trits have the factors 1 and -1: one plane is where they are 1, the other where -1."""

    def taken(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Ternary):
            planes = np.stack((matrix.trits == 1, matrix.trits == -1)).astype(np.uint8)
            groups = -(-matrix.trits.shape[1] // self.lanes)
            ones = np.ones((len(matrix.trits), groups), np.int16)
            return Dual(planes, np.stack((ones, -ones)), matrix.scale, self.lanes)
        if not isinstance(matrix, Dual):
            raise ModelError(f"the core fdb takes trits and dual bits, not {matrix.format}")
        if matrix.group % self.lanes and matrix.planes.shape[2] > matrix.group:
            raise ModelError(
                f"groups of {matrix.group} inputs are no whole tiles of {self.lanes} lanes"
            )
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        assert isinstance(matrix, Dual)
        one, two = (self.tiles(plane) for plane in matrix.planes)
        each = max(matrix.group // self.lanes, 1)
        alphas = np.repeat(matrix.alphas, each, axis=2)[:, :, : one.shape[1]]
        fields = {"b1": one, "b2": two, "alpha1": alphas[0], "alpha2": alphas[1]}
        flat = {
            name: values.reshape(one.shape[0] * one.shape[1], -1) for name, values in fields.items()
        }
        return {"bytes": bytes_of(word_layout(self.lanes), flat).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        planes = rng.integers(0, 2, (2, rows, columns)).astype(np.uint8)
        top = 1 << FACTOR - 1
        groups = -(-columns // self.lanes)
        alphas = rng.integers(-top, top, (2, rows, groups)).astype(np.int16)
        scale = float(rng.uniform(1, 3) / np.sqrt(columns) / top)
        return Dual(planes, alphas, scale, self.lanes)
