# SPDX-License-Identifier: Apache-2.0
"""Trits and integers for tables of weights: a word is one input's, for ``lanes`` rows."""

from __future__ import annotations

import numpy as np

from ....rtl.engine.matvec.sail import NBW, tables_of
from ...types import Transfers
from ..model import Integer, Matrix, ModelError, Ternary
from ._socket import Socket, Walk, random_integers, random_trits

BITS = 8
"""Look-ups of a table: the bits of an activation."""


COMES = 9
"""Cycles from a token to the first word of its first operation."""


class Tables(Walk):
    """Tables that are built in one memory and looked up in the other, as soon as words come."""

    def __init__(self, lanes: int, comes: int):
        """``comes``: the cycle in which the first word of a token is there."""
        self.lanes, self.build, self.free = lanes, comes, 0
        self.done, self.number = [0, 0], 0

    def ends(self, begins: int, rows: int, tiles: int) -> list[int]:
        found: list[int] = []
        free = max(self.free, begins + 1)
        for at in range(0, rows, self.lanes):
            for _ in range(tiles * tables_of(self.lanes)):
                bank = self.number % 2
                start = max(self.build, self.done[bank])
                self.build = start + (1 << NBW) - 1
                free = max(free, start + (1 << NBW)) + BITS
                self.done[bank], self.number = free, self.number + 1
            leaves = max(free - 1, found[-1] + 1 if found else 0)
            found += range(leaves, leaves + min(self.lanes, rows - at))
        self.free = free
        return found


class Packing(Socket):
    """Blocks of ``lanes`` rows, each input after input; tiles are filled up with zeros to whole
    tables, and the last block to ``lanes`` rows."""

    @property
    def bits(self) -> int:
        """Of a weight."""
        return self.config.product.wb

    def taken(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Ternary):
            if self.config.format == "ternary":
                return matrix
            return Integer(matrix.codes.astype(np.int8), matrix.unit, self.bits)
        if not isinstance(matrix, Integer) or self.config.format == "ternary":
            raise ModelError(
                f"the core sail takes trits, or integers with weights=int2 to int8, "
                f"not {matrix.format}"
            )
        if matrix.bits > self.bits:
            raise ModelError(f"the core sail has {self.bits} bits a weight, not {matrix.bits}")
        return Integer(matrix.codes, matrix.unit, self.bits)

    def walk(self) -> Walk:
        return Tables(self.lanes, COMES)

    def count(self, matrix: Matrix) -> int:
        rows, columns = matrix.codes.shape
        tiles = -(-rows // self.lanes) * -(-columns // self.lanes)
        return tiles * tables_of(self.lanes) * NBW

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        more = tables_of(self.lanes) * NBW - self.lanes
        tiles = np.pad(self.tiles(matrix.codes), ((0, 0), (0, 0), (0, more)))
        padded = np.pad(tiles.reshape(len(tiles), -1), ((0, -len(tiles) % self.lanes), (0, 0)))
        blocks = padded.reshape(-1, self.lanes, padded.shape[1]).swapaxes(1, 2)
        return {"weights": blocks.reshape(-1, self.lanes).astype(np.int64) & (1 << self.bits) - 1}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        if self.config.format == "ternary":
            return random_trits(rng, rows, columns)
        return random_integers(rng, rows, columns, self.bits)
