# SPDX-License-Identifier: Apache-2.0
"""Between numpy arrays of a payload field and the integers that stand on its port."""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 22  # bits unpacked at a time


def pack(values: NDArray[np.integer], width: int) -> list[int]:
    """One integer per transfer: elements of ``width`` bits in C order, the first one lowest.

    Raises :class:`OverflowError` for a value that ``width`` bits hold neither signed nor unsigned.
    """
    flat = np.ascontiguousarray(values.reshape(len(values), -1).astype("<i8"))
    if width < 64 and flat.size and (flat.min() < -(1 << width - 1) or flat.max() >= 1 << width):
        raise OverflowError(f"a value in {flat.min()}..{flat.max()} does not fit {width} bits")
    words: list[int] = []
    step = max(1, _CHUNK // (64 * max(1, flat.shape[1])))
    for at in range(0, len(flat), step):
        part = flat[at : at + step]
        octets = part.view(np.uint8).reshape(*part.shape, 8)
        bits = np.unpackbits(octets, axis=-1, bitorder="little")
        rows = np.packbits(bits[..., :width].reshape(len(part), -1), axis=-1, bitorder="little")
        words += [int.from_bytes(row, "little") for row in rows]
    return words


def unpack(
    words: Sequence[int], width: int, signed: bool, dims: tuple[int, ...]
) -> NDArray[np.int64]:
    """The inverse of :func:`pack`, of shape ``(len(words), *dims)``."""
    count = prod(dims)
    size = (count * width + 7) // 8
    raw = b"".join(word.to_bytes(size, "little") for word in words)
    bits = np.unpackbits(
        np.frombuffer(raw, np.uint8).reshape(len(words), size), axis=-1, bitorder="little"
    )[:, : count * width].reshape(len(words), count, width)
    wide = np.zeros((len(words), count, 64), np.uint8)
    wide[..., :width] = bits
    if signed:
        wide[..., width:] = bits[..., -1:]
    packed = np.packbits(wide, axis=-1, bitorder="little").reshape(len(words), count * 8)
    return packed.view("<i8").reshape(len(words), *dims)
