# SPDX-License-Identifier: Apache-2.0
"""Block-scaled elements: a word is a tile with the powers of its blocks."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.mx import BLOCK, POWER, word_layout
from ....rtl.formats._blocks import block_format_named
from ...formats.codec import decode, encode
from ...types import Transfers
from ..model import Coded, Matrix, ModelError, Ternary
from ._socket import Socket, bytes_of


class Packing(Socket):
    """Trits are elements of value 1, 0 and -1 with a power of 1."""

    def taken(self, matrix: Matrix) -> Matrix:
        name = self.config.format
        element = block_format_named(name).element
        if isinstance(matrix, Ternary):
            blocks = -(-matrix.trits.shape[1] // BLOCK)
            return Coded(
                name,
                element.name,
                encode(element, matrix.trits).astype(np.uint16),
                np.zeros((len(matrix.trits), blocks), np.uint8),
                matrix.scale,
                BLOCK,
            )
        if not isinstance(matrix, Coded) or matrix.format != name:
            raise ModelError(f"the core mx takes trits and {name}, not {matrix.format}")
        if matrix.exponents.max(initial=0) >> POWER:
            raise ModelError(f"powers of two of blocks have {POWER} bits")
        return matrix

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        assert isinstance(matrix, Coded)
        tiles = self.tiles(matrix.elements)
        rows, count = tiles.shape[:2]
        each = -(-self.lanes // BLOCK)  # powers of a tile
        blocks = np.arange(count * each).reshape(count, each) * min(self.lanes, BLOCK) // BLOCK
        powers = np.pad(matrix.exponents, ((0, 0), (0, each)))[:, blocks]
        fields = {"elements": tiles.reshape(rows * count, -1)}
        fields["powers"] = powers.reshape(rows * count, -1)
        return {"bytes": bytes_of(word_layout(self.config), fields).astype(np.int64)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        name = self.config.format
        element = block_format_named(name).element
        every = np.arange(1 << element.width)
        real = decode(element, every)
        codes = rng.choice(every[np.isfinite(real)], (rows, columns))
        blocks = -(-columns // BLOCK)
        powers = rng.integers(0, 1 << POWER, (rows, blocks)) if element.width <= 4 else 0
        exponents = np.broadcast_to(powers, (rows, blocks)).astype(np.uint8)
        size = np.abs(real[np.isfinite(real)]).max() * 2.0 ** int(exponents.max())
        scale = float(rng.uniform(1, 4) / np.sqrt(columns) / size)
        return Coded(name, element.name, codes.astype(np.uint16), exponents, scale, BLOCK)
