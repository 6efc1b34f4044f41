# SPDX-License-Identifier: Apache-2.0
"""Bit planes with factors and offsets: a word is a tile with those of its group."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.hlq import FACTOR, planes_of, word_layout
from ...types import Transfers
from ..model import Matrix, ModelError, Planes, Ternary
from ._socket import Socket, bytes_of, random_planes


class Packing(Socket):
    """Trits have the factors 1 and -1: one plane is where they are 1, the other where -1."""

    @property
    def planes(self) -> int:
        return planes_of(self.config.format)

    def taken(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Ternary):
            rows, columns = matrix.trits.shape
            planes = np.zeros((rows, self.planes, columns), np.uint8)
            planes[:, 0], planes[:, 1] = matrix.trits == 1, matrix.trits == -1
            zeros = np.zeros((rows, -(-columns // self.lanes)), np.int16)
            factors = np.stack((zeros + 1, zeros - 1, *[zeros] * (self.planes - 2)), axis=1)
            return Planes(planes, factors, matrix.scale, self.lanes, zeros)
        if not isinstance(matrix, Planes) or matrix.format != self.config.format:
            raise ModelError(
                f"the core hlq takes trits and {self.config.format}, not {matrix.format}"
            )
        self.check_groups(matrix)
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        """Bits of -1 and 1 have half the factors; all is doubled, and halved by the core."""
        assert isinstance(matrix, Planes) and matrix.offsets is not None
        planes = [self.tiles(matrix.planes[:, plane]) for plane in range(self.planes)]
        bits = np.stack(planes, axis=2)
        factors = self.of_tiles(matrix, matrix.factors.astype(np.int64)).swapaxes(1, 2)
        offsets = self.of_tiles(matrix, matrix.offsets.astype(np.int64))
        fields = {"bits": bits, "factors": factors, "offset": 2 * offsets + factors.sum(axis=2)}
        count = bits.shape[0] * bits.shape[1]
        flat = {name: values.reshape(count, -1) for name, values in fields.items()}
        layout = word_layout(self.lanes, self.planes)
        return {"bytes": bytes_of(layout, flat).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        shape = (rows, self.planes, columns)
        return random_planes(rng, shape, self.lanes, FACTOR, offsets=True)
