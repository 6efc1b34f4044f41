# SPDX-License-Identifier: Apache-2.0
"""Golden model of the trit unpacker, and packing and unpacking of whole arrays.

Everything is read off tables that are made by *encoding* all digit combinations, so a decoder that
is built otherwise is checked against the definition of the format.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from .._ternary import CODES
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.codec.trit_unpack import TritUnpackConfig

BAD = 2
"""What the tables hold where a byte has no trit."""

BLOCK_BYTES = {"twos2": 1, "i2_s": 32, "base3": 1, "tq1_0": 54, "tq2_0": 66}

_WINDOWS = {  # per packing: first byte, bytes and digits of each window, see Packing
    "twos2": ((0, 1, 4),),
    "i2_s": ((0, 32, 4),),
    "base3": ((0, 1, 5),),
    "tq1_0": ((0, 32, 5), (32, 16, 5), (48, 4, 4)),
    "tq2_0": ((0, 32, 4), (32, 32, 4)),
}
_TWO_BIT = {  # per packing: the trit of each two-bit code, and the shift of each digit
    "twos2": ((0, 1, BAD, -1), (0, 2, 4, 6)),
    "i2_s": ((-1, 0, 1, BAD), (6, 4, 2, 0)),
    "tq2_0": ((-1, 0, 1, BAD), (0, 2, 4, 6)),
}


class NotATrit(AtriplexError, ValueError):
    """A code stands for no trit; ``index`` counts trits, ``offset`` bytes."""

    def __init__(self, packing: str, index: int, offset: int, byte: int):
        super().__init__(
            f"{packing}: trit {index} (byte 0x{byte:02x} at offset {offset}) is no trit"
        )
        self.index = index
        self.offset = offset


def pack(trits: NDArray[np.integer], packing: str, scale: float = 1.0) -> bytes:
    """``trits`` (-1, 0, +1, flattened) in blocks of ``packing``, filled up with zero trits.

    The block scale of tq1_0 and tq2_0 is ``scale`` in fp16, 0 for a block of zeros.
    """
    flat = np.asarray(trits).reshape(-1)
    wrong = np.flatnonzero((flat < -1) | (flat > 1))
    if wrong.size:
        raise ValueError(f"trit {wrong[0]} is {flat[wrong[0]]}, not -1, 0 or 1")
    place, digit = _places(packing)
    blocks = -(-flat.size // place.size)
    codes = np.zeros((blocks, place.size), dtype=np.int64)
    codes.reshape(-1)[: flat.size] = flat
    digits = np.zeros((blocks, BLOCK_BYTES[packing], 5), dtype=np.int64)
    if packing == "tq1_0":
        digits[:, 48:52, 4] = -1  # the digit that four bytes do not use is written as 0
    digits[:, place, digit] = codes
    weights, values = _encoder(packing)
    sums = (digits[:, :, : weights.size] + 1) @ weights
    packed = values[sums]
    if packing.startswith("tq"):
        scales = np.where(codes.any(axis=1), scale, 0.0).astype("<f2")
        packed[:, -2:] = scales.view(np.uint8).reshape(-1, 2)
    return packed.tobytes()


def unpack(data: bytes | NDArray[np.uint8], packing: str, count: int) -> NDArray[np.int8]:
    """The first ``count`` trits of ``data``, which must be just the blocks that hold them.

    Raises :class:`NotATrit` at the first code that is none, ``ValueError`` on a wrong length.
    """
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    place, digit = _places(packing)
    needed = packed_size(packing, count)
    if raw.size != needed:
        raise ValueError(f"{packing}: {count} trits need {needed} bytes, not {raw.size}")
    blocks = raw.reshape(-1, BLOCK_BYTES[packing])
    trits = _decoder(packing)[blocks[:, place], digit].reshape(-1)[:count]
    wrong = np.flatnonzero(trits == BAD)
    if wrong.size:
        index = int(wrong[0])
        block, within = divmod(index, place.size)
        offset = block * BLOCK_BYTES[packing] + int(place[within])
        raise NotATrit(packing, index, offset, int(raw[offset]))
    return trits


def packed_size(packing: str, count: int) -> int:
    """Bytes of the blocks that hold ``count`` trits."""
    return -(-count // _places(packing)[0].size) * BLOCK_BYTES[packing]


def stimulus(config: TritUnpackConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Valid trits, every byte value and noise; runs that end, and blocks cut short by a new run."""
    fill = BLOCK_BYTES[config.packing] // config.bytes_in or 1
    blocks = -(-transfers // fill) * 8 // 7 + 2  # an eighth of them may be cut short
    whole = blocks * fill * config.bytes_in
    values = rng.integers(0, 256, whole, dtype=np.uint8)
    every = min(whole, 256)
    values[:every] = np.arange(every)
    third = whole // 3 // BLOCK_BYTES[config.packing]
    if third:
        count = third * _places(config.packing)[0].size
        good = pack(rng.integers(-1, 2, count), config.packing, float(rng.random()))
        values[-len(good) :] = np.frombuffer(good, np.uint8)

    values = values.reshape(blocks * fill, config.bytes_in)
    starts = np.arange(0, blocks * fill, fill)
    first, last = np.zeros(len(values), bool), np.zeros(len(values), bool)
    first[0] = True
    ends = starts[rng.random(blocks) < 0.2] + fill - 1
    last[ends] = True
    first[ends[ends < len(values) - 1] + 1] = True
    last[rng.random(len(values)) < 0.02] = True  # heeded only where a block ends
    keep = np.ones(len(values), bool)
    if fill > 1:  # restart in the middle of a block
        for start in rng.choice(starts[1:], blocks // 8, replace=False):
            first[start] = True
            keep[start - int(rng.integers(1, fill)) : start] = False
    return {"i": {"bytes": values[keep], "first": first[keep], "last": last[keep]}}


def golden(config: TritUnpackConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    fill = BLOCK_BYTES[config.packing] // config.bytes_in or 1
    ends = _block_ends(given, fill)
    rows = ends[:, None] + np.arange(1 - fill, 1)
    blocks = given["bytes"][rows].reshape(-1, BLOCK_BYTES[config.packing])
    place, digit = _places(config.packing)
    trits = _decoder(config.packing)[blocks[:, place], digit].reshape(-1, config.lanes)
    invalid = trits == BAD

    out_per_block = len(trits) // len(ends) if len(ends) else 1
    first, last = np.zeros(len(trits), np.int64), np.zeros(len(trits), np.int64)
    first[::out_per_block] = given["first"][rows[:, 0]]
    last[out_per_block - 1 :: out_per_block] = given["last"][ends]
    out: Transfers = {
        "trits": CODES[np.where(invalid, 0, trits)],
        "invalid": invalid.astype(np.int64),
        "first": first,
        "last": last,
    }
    if config.packing.startswith("tq"):
        scale = blocks[:, -2].astype(np.int64) | blocks[:, -1].astype(np.int64) << 8
        out["scale"] = np.repeat(scale, out_per_block)
    return {"o": out}


def cycles(config: TritUnpackConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    given = inputs["i"]
    if BLOCK_BYTES[config.packing] == 1:
        return len(given["first"]) + (2 if config.packing == "base3" else 1)
    fill = BLOCK_BYTES[config.packing] // config.bytes_in
    drain = _places(config.packing)[0].size // config.lanes
    taken = np.diff(_block_ends(given, fill), prepend=-1)  # transfers per block, dropped included
    return int(taken[0] + np.maximum(taken[1:], drain).sum()) + drain + 2


def _block_ends(given: Transfers, fill: int) -> NDArray[np.int64]:
    """Index of the transfer that completes each block; an unfinished block has none."""
    index = np.arange(len(given["first"]))
    origin = np.maximum.accumulate(np.where(given["first"], index, 0))
    return index[(index - origin) % fill == fill - 1]


@functools.cache
def _places(packing: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each trit of a block in natural order: its byte and which digit of that byte it is."""
    place, digit = [], []
    for start, size, digits in _WINDOWS[packing]:
        for turn, byte in itertools.product(range(digits), range(size)):
            place.append(start + byte)
            digit.append(turn)
    return np.array(place, np.intp), np.array(digit, np.intp)


@functools.cache
def _encoder(packing: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Weight of each digit's (trit + 1) in an index, and the byte of each index."""
    weights = 3 ** np.arange(4 if packing in _TWO_BIT else 5)
    index = np.arange(3 ** len(weights))
    trits = index[:, None] // weights % 3 - 1
    if packing in _TWO_BIT:
        values, shifts = _TWO_BIT[packing]
        codes = np.array([values.index(trit) for trit in (-1, 0, 1)])[trits + 1]
        return weights, (codes << np.array(shifts)).sum(axis=1).astype(np.uint8)
    if packing == "base3":
        return weights, (trits % 3 @ 3 ** np.arange(5)).astype(np.uint8)
    number = (trits + 1) @ 3 ** np.arange(4, -1, -1)
    return weights, (-(-256 * number // 243)).astype(np.uint8)


@functools.cache
def _decoder(packing: str) -> NDArray[np.int8]:
    """Trit of each byte value (rows) and digit (columns), ``BAD`` where there is none."""
    if packing in _TWO_BIT:
        values, shifts = _TWO_BIT[packing]
        codes = np.arange(256)[:, None] >> np.array(shifts) & 3
        return np.array(values, np.int8)[codes]
    weights, values = _encoder(packing)
    table = np.full((256, len(weights)), BAD, np.int8)
    table[values] = np.arange(len(values))[:, None] // weights % 3 - 1
    return table
