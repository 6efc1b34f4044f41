# SPDX-License-Identifier: Apache-2.0
"""Storage formats of weights: from bytes to numbers, vectorised.

Every function takes the bytes of one tensor, whose length the caller has checked, and raises
:class:`BadCode` for what the format does not allow. ``docs/checkpoints.md`` states the layouts.

Source: BitNet b1.58 2B4T, arXiv 2504.12285, and bitnet.cpp, arXiv 2502.11880, for the packed
checkpoint and I2_S; ggml for Q8_0, TQ1_0 and TQ2_0; llama2.c for the rest.
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Trits = NDArray[np.int8]

Q8_BLOCK, Q8_BYTES = 32, 34
TQ_BLOCK, TQ1_BYTES, TQ2_BYTES = 256, 54, 66
I2S_BLOCKS = {"128": 128, "64": 64, "rows": 4}
"""Orders of I2_S and the number of weights (``rows``: of rows) that make one block."""
I2S_TRAILER = 32
"""Bytes after the codes of an I2_S tensor: a float32 scale and filling."""

INVALID = 2
"""Stands for a code that the format does not use, in the tables below."""


class BadCode(ValueError):
    """A byte or number that the format does not allow, ``offset`` bytes into the tensor."""

    def __init__(self, offset: int, rule: str):
        super().__init__(rule)
        self.offset, self.rule = offset, rule


def _two_bit_table(values: tuple[int, int, int, int], high_first: bool) -> Trits:
    """The four values in each byte, in the order in which they are read."""
    codes = np.arange(256)[:, None] >> 2 * np.arange(4) & 3
    if high_first:
        codes = codes[:, ::-1]
    return np.array(values, np.int8)[codes]


_LOW = _two_bit_table((-1, 0, 1, INVALID), high_first=False)
_HIGH = _two_bit_table((-1, 0, 1, INVALID), high_first=True)
_AK42 = {
    "low": _two_bit_table((0, 1, INVALID, -1), high_first=False),
    "high": _two_bit_table((0, 1, INVALID, -1), high_first=True),
}


def _tq1_table() -> Trits:
    """Five trits of each byte; rows of bytes that encode nothing are INVALID."""
    table = np.full((256, 5), INVALID, np.int8)
    digits = np.arange(243)[:, None] // 3 ** np.arange(4, -1, -1) % 3
    table[(256 * np.arange(243) + 242) // 243] = digits - 1
    return table


_TQ1 = _tq1_table()


def _lookup(table: Trits, codes: Bytes, name: str, base: int = 0) -> Trits:
    """Rows of ``table``; the first byte that holds a code it does not allow is an error.

    ``base`` maps the index of that byte to its offset in the tensor, where they differ.
    """
    bad = (table == INVALID).any(axis=1)
    wrong = bad[codes]
    if wrong.any():
        index = int(wrong.reshape(-1).argmax())
        raise BadCode(base + index, f"byte {codes.reshape(-1)[index]:#04x} is no {name}")
    return table.take(codes, axis=0)


def _finite(values: Floats, width: int) -> Floats:
    good = np.isfinite(values)
    if not good.all():
        index = int(good.reshape(-1).argmin())
        raise BadCode(
            width * index, f"values must be finite, and element {index} is {values.flat[index]}"
        )
    return values


def f32(raw: Bytes) -> Floats:
    """IEEE single precision, little-endian."""
    return _finite(raw.copy().view("<f4").astype(np.float32, copy=False), 4)


def f16(raw: Bytes) -> Floats:
    """IEEE half precision, little-endian; exact in float32."""
    return _finite(raw.copy().view("<f2").astype(np.float32), 2)


def bf16(raw: Bytes) -> Floats:
    """The upper halves of float32, little-endian; exact in float32."""
    wide = raw.copy().view("<u2").astype(np.uint32) << np.uint32(16)
    return _finite(wide.view(np.float32), 2)


def _block_scales(scales: NDArray[np.uint8], stride: int, at: int) -> Floats:
    """Half precision scales of blocks; finite, which for ``d`` of ternary blocks means >= 0."""
    values = np.ascontiguousarray(scales).view("<f2").astype(np.float32).reshape(-1)
    good = np.isfinite(values)
    if not good.all():
        block = int(good.argmin())
        raise BadCode(
            block * stride + at, f"the scale of block {block} must be finite, not {values[block]}"
        )
    return values


def q8_0(raw: Bytes) -> Floats:
    """Blocks of 32: a half precision scale, then int8; value = scale * code in float32."""
    blocks = raw.reshape(-1, Q8_BYTES)
    scales = _block_scales(blocks[:, :2], Q8_BYTES, 0)
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return (codes.astype(np.float32) * scales[:, None]).reshape(-1)


def _ternary_scales(blocks: Bytes, stride: int) -> Floats:
    scales = _block_scales(blocks[:, stride - 2 :], stride, stride - 2)
    if (scales < 0).any():
        block = int((scales < 0).argmax())
        raise BadCode(
            block * stride + stride - 2,
            f"the scale of block {block} must not be below 0, not {scales[block]}",
        )
    return scales


def tq1_0(raw: Bytes) -> tuple[Trits, Floats]:
    """Trits (blocks, 256) and the scale of each block: 48 + 4 bytes of base 3, then the scale.

    In bytes 0 to 31, byte j holds weights j + 32 n; in the next 16, byte j holds 160 + j + 16 n;
    in the last four, 240 + j + 4 n, whose fifth trit must be the digit 0. The first trit is the
    most significant. Bytes that encode no five trits (1, 20, 40, ...) are errors.
    """
    blocks = raw.reshape(-1, TQ1_BYTES)
    scales = _ternary_scales(blocks, TQ1_BYTES)
    bad = (_TQ1[:, 0] == INVALID)[blocks[:, :52]]
    bad[:, 48:] |= (_TQ1[:, 4] != -1)[blocks[:, 48:52]]
    if bad.any():
        block, byte = divmod(int(bad.reshape(-1).argmax()), 52)
        raise BadCode(
            block * TQ1_BYTES + byte, f"byte {blocks[block, byte]:#04x} is no code of TQ1_0"
        )
    digits = _TQ1.take(blocks[:, :52], axis=0)
    parts = (digits[:, :32], digits[:, 32:48], digits[:, 48:, :4])
    flat = [part.swapaxes(1, 2).reshape(len(blocks), -1) for part in parts]
    return np.concatenate(flat, axis=1), scales


def tq2_0(raw: Bytes) -> tuple[Trits, Floats]:
    """Trits (blocks, 256) and the scale of each block: 64 bytes of 2-bit codes, then the scale.

    Byte 32 h + m holds weights 128 h + 32 n + m in bits 2n+1:2n; codes 0, 1, 2 are -1, 0, 1.
    """
    blocks = raw.reshape(-1, TQ2_BYTES)
    scales = _ternary_scales(blocks, TQ2_BYTES)
    try:
        trits = _lookup(_LOW, np.ascontiguousarray(blocks[:, :64]), "four codes of 0, 1 and 2")
    except BadCode as error:
        block, byte = divmod(error.offset, 64)
        raise BadCode(block * TQ2_BYTES + byte, error.rule) from None
    return trits.reshape(-1, 2, 32, 4).swapaxes(2, 3).reshape(-1, TQ_BLOCK), scales


def i2_s(raw: Bytes, order: str, columns: int) -> Trits:
    """Flat trits of the codes of an I2_S tensor, without its trailer.

    Orders ``128`` (the official converter) and ``64`` (its ARM quantiser): a block of that many
    weights is a quarter as many bytes; byte j holds weights j, j + q, j + 2 q, j + 3 q, q being the
    bytes of a block, the first in bits 7:6. ``rows`` (a build option of the x86 kernels): byte
    (r, c) holds column c of rows 4 r to 4 r + 3, the first in bits 7:6. Codes 0, 1, 2 are -1, 0, 1.
    """
    trits = _lookup(_HIGH, raw, "four codes of 0, 1 and 2")
    across = columns if order == "rows" else I2S_BLOCKS[order] // 4
    return trits.reshape(-1, across, 4).swapaxes(1, 2).reshape(-1)


def packed_rows(raw: Bytes, rows: int) -> Trits:
    """Flat trits of a packed BitNet checkpoint: uint8 (rows / 4, columns).

    Byte (i, j) holds column j of rows i, i + rows / 4, i + 2 rows / 4, i + 3 rows / 4 in bits 1:0,
    3:2, 5:4, 7:6; codes 0, 1, 2 are -1, 0, 1.
    """
    trits = _lookup(_LOW, raw, "four codes of 0, 1 and 2")
    return trits.reshape(rows // 4, -1, 4).transpose(2, 0, 1).reshape(-1)


def ak42(raw: Bytes, count: int, bit_order: str) -> Trits:
    """``count`` trits, four a byte, row by row; codes 0, 1, 3 are 0, 1, -1.

    ``bit_order`` says where the first of four is: ``high`` (bits 7:6) or ``low`` (bits 1:0). What
    is left of the last byte must be 0.
    """
    trits = _lookup(_AK42[bit_order], raw, "four codes of 0, 1 and 3").reshape(-1)
    if trits[count:].any():
        raise BadCode(len(raw) - 1, "what is left of the last byte must be 0")
    return trits[:count]
