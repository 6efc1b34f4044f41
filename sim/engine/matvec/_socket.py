# SPDX-License-Identifier: Apache-2.0
"""How weights become words for a core of the matvec socket, and what cycles they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...types import Transfers
from ..model import Integer, Matrix, Model, ModelError, Planes, Tensor, Ternary

if TYPE_CHECKING:
    from ....rtl.engine.engine import EngineConfig


class Walk:
    """How a core goes through a token's operations, if its sums do not come row by row.

    ``free``: the cycle after what was done last.
    """

    free: int = 0

    def ends(self, begins: int, rows: int, tiles: int) -> list[int]:
        """Of an operation's sums the cycles of their last words, or later where sums wait.

        ``begins``: the first cycle in which the operation's vector is there and the core free.
        """
        raise NotImplementedError


class Socket:
    """``mode`` is what a linear operation tells the core of its weights."""

    def __init__(self, config: EngineConfig):
        self.config = config

    @property
    def lanes(self) -> int:
        return self.config.lanes

    def taken(self, matrix: Matrix) -> Matrix:
        """The matrix as one that the core takes: the same values, in its format.

        Raises :class:`ModelError` with a sentence that begins with what the core takes.
        """
        raise NotImplementedError

    def together(self, one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
        """Two matrices whose rows take turns, in one mode."""
        return one, other

    def mode(self, matrix: Matrix) -> int:
        """Of an operation with this matrix."""
        return 0

    def words_per_tile(self, mode: int) -> int:
        """Words that ``lanes`` weights of a row take."""
        return 1

    def cycles_per_word(self, mode: int) -> int:
        """Cycles in which a word is used."""
        return 1

    def walk(self) -> Walk | None:
        """How sums come, where it is not a row after the other; see :class:`Walk`."""
        return None

    def count(self, matrix: Matrix) -> int:
        """Words of a matrix."""
        rows, columns = matrix.codes.shape
        return rows * -(-columns // self.lanes) * self.words_per_tile(self.mode(matrix))

    def words(self, matrix: Matrix, mode: int) -> Transfers:
        """The words of all rows, by the fields of the engine's stream of weights."""
        raise NotImplementedError

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        """A matrix that uses what the format has, for tests."""
        raise NotImplementedError

    def tiles(self, values: np.ndarray) -> np.ndarray:
        """(rows, columns) in tiles of ``lanes``, filled up with zeros: (rows, tiles, lanes)."""
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % self.lanes)))
        return padded.reshape(len(values), -1, self.lanes)

    def check_groups(self, matrix: Planes) -> None:
        """Raises :class:`ModelError` where a tile would have the factors of two groups."""
        if matrix.group % self.lanes and matrix.planes.shape[2] > matrix.group:
            raise ModelError(
                f"groups of {matrix.group} inputs are no whole tiles of {self.lanes} lanes"
            )

    def of_tiles(self, matrix: Planes, each: np.ndarray) -> np.ndarray:
        """What groups have (..., groups), for each of their tiles."""
        tiles = -(-matrix.planes.shape[2] // self.lanes)
        return np.repeat(each, max(matrix.group // self.lanes, 1), axis=-1)[..., :tiles]

    def model(self, model: Model) -> Model:
        """The model with every projection as the core takes it; :class:`ModelError`."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in model.tensors().items():
            plain = isinstance(tensor, np.ndarray) or name == "token_embd.weight"
            try:
                tensors[name] = tensor if plain else self.taken(tensor)  # pyright: ignore
            except ModelError as error:
                raise ModelError(f"tensor {name}: {error}") from None
        made = Model.from_tensors(model.config, tensors)
        if model.config.tied:
            made = dataclasses.replace(made, output=self.taken(made.output))
        return made


def random_trits(rng: np.random.Generator, rows: int, columns: int) -> Ternary:
    """Trits, each as often."""
    trits = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    return Ternary(trits, float(rng.uniform(0.5, 2) / np.sqrt(columns)))


def random_integers(rng: np.random.Generator, rows: int, columns: int, bits: int) -> Integer:
    """Codes of all the values that there are."""
    top = 1 << bits - 1
    codes = rng.integers(-top, top, (rows, columns)).astype(np.int8)
    return Integer(codes, float(rng.uniform(1, 4) / np.sqrt(columns) / top), bits)


def random_planes(
    rng: np.random.Generator, shape: tuple[int, int, int], group: int, bits: int, *, offsets: bool
) -> Planes:
    """Planes (rows, planes, columns) with factors, and offsets, of all the values of ``bits``."""
    rows, _, columns = shape
    top, groups = 1 << bits - 1, -(-columns // group)
    planes = rng.integers(0, 2, shape).astype(np.uint8)
    factors = rng.integers(-top, top, (*shape[:2], groups)).astype(np.int16)
    zeros = rng.integers(-top, top, (rows, groups)).astype(np.int16) if offsets else None
    scale = float(rng.uniform(1, 3) / np.sqrt(columns) / top)
    return Planes(planes, factors, scale, group, zeros)


def widened(one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
    """Trits or integers of the same number of bits, that of the wider ones."""
    bits = max(one.bits, other.bits)
    if bits == 2:
        return one, other
    wide = [Integer(each.codes.astype(np.int8), each.unit, bits) for each in (one, other)]
    return wide[0], wide[1]


def bytes_of(layout: Any, values: Mapping[str, NDArray[np.integer]]) -> NDArray[np.uint8]:
    """Words (words, bytes), lowest first, of a layout's fields (words, ...)."""
    bits = []
    for name, field in layout:
        each = values[name].reshape(len(values[name]), -1, 1).astype(np.int64)
        width = field.width // each.shape[1]
        bits.append((each >> np.arange(width) & 1).astype(np.uint8).reshape(len(each), -1))
    return np.packbits(np.concatenate(bits, axis=1), axis=1, bitorder="little")
