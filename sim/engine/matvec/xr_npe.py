# SPDX-License-Identifier: Apache-2.0
"""FP4 and posits, 16 bits for each core: four, two or one of a tile's weights in a step."""

from __future__ import annotations

import dataclasses

import numpy as np

from ....rtl.engine.matvec.xr_npe import MODES, PRODUCTS
from ....rtl.formats._formats import format_named
from ...formats.codec import decode, encode
from ...types import Transfers
from ..model import Coded, Integer, Matrix, ModelError, Ternary
from ._socket import Socket, random_integers, random_trits

EXACT = "posit16_1"


class Packing(Socket):
    """Trits and integers are posits of 16 bits, and so are their activations: both are exact."""

    def taken(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Ternary | Integer):
            return matrix
        if isinstance(matrix, Coded) and matrix.format in MODES and matrix.format != EXACT:
            return dataclasses.replace(matrix, activations=matrix.format)
        raise ModelError(
            "the core xr_npe takes trits, integers, fp4_e2m1, posit4_1 and posit8_0, "
            f"not {matrix.format}"
        )

    def together(self, one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
        if isinstance(one, Coded) or isinstance(other, Coded):
            return one, other
        wide = [Integer(each.codes.astype(np.int8), each.unit) for each in (one, other)]
        return wide[0], wide[1]

    def mode(self, matrix: Matrix) -> int:
        return list(MODES).index(matrix.format if isinstance(matrix, Coded) else EXACT)

    def words_per_tile(self, mode: int) -> int:
        return (1, 1, 2, 4)[mode]

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        format_ = format_named(list(MODES)[mode])
        if isinstance(matrix, Coded):
            codes = matrix.elements.astype(np.int64)
        else:
            codes = encode(format_, matrix.codes)
        lanes = 16 // format_.width
        cores = self.tiles(codes).reshape(-1, self.lanes // PRODUCTS, PRODUCTS // lanes, lanes)
        joined = (cores << format_.width * np.arange(lanes)).sum(axis=-1)  # (tile, core, step)
        return {"words": joined.swapaxes(1, 2).reshape(-1, self.lanes // PRODUCTS)}

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        name = self.config.format
        if name == "ternary":
            return random_trits(rng, rows, columns)
        if name.startswith("int"):
            return random_integers(rng, rows, columns, int(name[3:]))
        format_ = format_named(name)
        every = np.arange(1 << format_.width)
        real = decode(format_, every)
        codes = rng.choice(every[np.isfinite(real)], (rows, columns)).astype(np.uint16)
        scale = float(rng.uniform(1, 4) / np.sqrt(columns) / np.nanmax(real))
        exponents = np.zeros((rows, 1), np.uint8)
        return Coded(name, name, codes, exponents, scale, activations=name)
