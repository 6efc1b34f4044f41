# SPDX-License-Identifier: Apache-2.0
"""Ternary packings: layouts, their inverses, and what is refused."""

import itertools

import numpy as np
import pytest
from atriplex.rtl.codec.trit_unpack import PACKINGS, TritUnpackConfig
from atriplex.rtl.config import ConfigError
from atriplex.sim.codec.trit_unpack import (
    BLOCK_BYTES,
    NotATrit,
    golden,
    pack,
    packed_size,
    unpack,
)

TQ1_HOLES = (1, 20, 40, 60, 79, 99, 119, 138, 158, 178, 197, 217, 237)
UNIT = {name: packing.block_trits for name, packing in PACKINGS.items()}


@pytest.mark.parametrize("packing", PACKINGS)
def test_unpack_inverts_pack_on_every_byte_of_every_place(packing: str) -> None:
    unit = UNIT[packing]
    every = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8)
    # Digit d of every byte runs through all combinations, the bytes of a block shifted by one.
    blocks = np.stack([np.resize(np.roll(every, shift, 0).T, unit) for shift in range(243)])
    random = np.random.default_rng(1).integers(-1, 2, (500, unit))
    trits = np.concatenate([blocks, random]).reshape(-1)
    packed = pack(trits, packing)
    assert (
        len(packed) == packed_size(packing, trits.size) == len(trits) // unit * BLOCK_BYTES[packing]
    )
    assert np.array_equal(unpack(packed, packing, trits.size), trits)


@pytest.mark.parametrize(("packing", "valid"), [("twos2", 81), ("base3", 243)])
def test_every_byte_value_is_a_code_or_refused(packing: str, valid: int) -> None:
    accepted = 0
    for value in range(256):
        try:
            trits = unpack(bytes([value]), packing, UNIT[packing])
        except NotATrit:
            continue
        accepted += 1
        assert pack(trits, packing) == bytes([value])
    assert accepted == valid


def test_tq1_refuses_the_thirteen_bytes_that_never_occur() -> None:
    zeros = np.frombuffer(pack(np.zeros(256, int), "tq1_0"), np.uint8)
    for value in range(256):
        block = zeros.copy()
        block[7] = value
        if value in TQ1_HOLES:
            with pytest.raises(NotATrit):
                unpack(block, "tq1_0", 256)
        else:
            assert pack(unpack(block, "tq1_0", 256), "tq1_0")[:52] == block[:52].tobytes()


@pytest.mark.parametrize(
    ("packing", "byte", "trits"),
    [
        ("twos2", 0b11_01_00_01, [1, 0, 1, -1]),
        ("base3", 1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 2, [1, -1, 0, 1, -1]),
    ],
)
def test_bytes_of_the_layout_tables(packing: str, byte: int, trits: list[int]) -> None:
    assert unpack(bytes([byte]), packing, len(trits)).tolist() == trits


def test_places_of_the_layout_tables() -> None:
    def trit_at(packing: str, index: int) -> bytes:
        trits = np.zeros(UNIT[packing], int)
        trits[index] = 1
        return pack(trits, packing)

    plain = {packing: trit_at(packing, 0)[1] for packing in ("i2_s", "tq1_0", "tq2_0")}
    assert plain == {"i2_s": 0b01010101, "tq1_0": 128, "tq2_0": 0b01010101}
    assert trit_at("i2_s", 3 + 96)[3] == 0b01_01_01_10
    assert trit_at("tq2_0", 128 + 3 + 96)[32 + 3] == 0b10_01_01_01
    # Digits 1 1 2 1 1: (81 + 27 + 2 * 9 + 3 + 1) * 256 / 243, rounded up.
    assert trit_at("tq1_0", 3 + 64)[3] == -(-130 * 256 // 243)
    assert trit_at("tq1_0", 160 + 3 + 32)[32 + 3] == -(-130 * 256 // 243)
    # Digits 1 1 2 1 and 0 for the fifth.
    assert trit_at("tq1_0", 240 + 3 + 8)[48 + 3] == -(-129 * 256 // 243)


def test_not_a_trit_names_the_first_one_and_its_byte() -> None:
    data = bytearray(pack(np.zeros(512, int), "tq2_0"))
    data[66 + 40] = 0b01_11_01_01  # byte 8 of the second window: its third code
    data[66 + 41] = 0xFF
    with pytest.raises(NotATrit, match=r"tq2_0: trit 393 \(byte 0xff at offset 107\) is no trit"):
        unpack(bytes(data), "tq2_0", 512)
    data[66 + 41] = 0x55
    with pytest.raises(NotATrit) as caught:
        unpack(bytes(data), "tq2_0", 512)
    assert (caught.value.index, caught.value.offset) == (256 + 128 + 64 + 8, 66 + 40)
    assert unpack(bytes(data), "tq2_0", 400).tolist() == [0] * 400


def test_lengths_and_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="twos2: 9 trits need 3 bytes, not 2"):
        unpack(b"\0\0", "twos2", 9)
    with pytest.raises(ValueError, match="i2_s: 128 trits need 32 bytes, not 33"):
        unpack(bytes(33), "i2_s", 128)
    with pytest.raises(ValueError, match="trit 2 is 2, not -1, 0 or 1"):
        pack(np.array([0, 1, 2]), "base3")
    assert pack(np.array([], int), "base3") == b""
    assert unpack(b"", "base3", 0).size == 0


@pytest.mark.parametrize("packing", ["tq1_0", "tq2_0"])
def test_tq_blocks_are_those_of_gguf(packing: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package (pip install gguf)")
    from gguf import GGMLQuantizationType, quants

    kind = getattr(GGMLQuantizationType, packing.upper())
    trits = np.random.default_rng(3).integers(-1, 2, 256 * 40)
    trits[:256] = 0
    theirs = quants.quantize(trits.astype(np.float32) * 0.625, kind)
    assert pack(trits, packing, 0.625) == theirs.tobytes()
    assert np.array_equal(quants.dequantize(theirs, kind), trits * np.float32(0.625))
    assert np.array_equal(unpack(theirs.tobytes(), packing, trits.size), trits)


@pytest.mark.parametrize("packing", PACKINGS)
def test_block_model_and_array_functions_agree(packing: str) -> None:
    config = TritUnpackConfig.preset("default" if packing == "twos2" else packing)
    trits = np.random.default_rng(2).integers(-1, 2, UNIT[packing] * config.bytes_in * 6)
    data = np.frombuffer(pack(trits, packing), np.uint8).reshape(-1, config.bytes_in)
    marks = np.zeros(len(data), int)
    out = golden(config, {"i": {"bytes": data, "first": marks, "last": marks}})["o"]
    assert not out["invalid"].any()
    assert np.array_equal(np.array([0, 1, 9, -1])[out["trits"]].reshape(-1), trits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lanes": 12}, "lanes must be 4 \\* bytes_in = 16 for twos2, not 12"),
        ({"packing": "base3"}, "lanes must be 5 \\* bytes_in = 20 for base3, not 16"),
        (
            {"packing": "tq1_0", "bytes_in": 4},
            "bytes_in must divide the 54 bytes of a tq1_0 block, not be 4",
        ),
        (
            {"packing": "tq1_0", "bytes_in": 6, "lanes": 32},
            "lanes must be a power of two up to 16 for tq1_0, not 32",
        ),
        ({"packing": "tq1"}, "packing must be one of twos2, i2_s, base3, tq1_0, tq2_0, not 'tq1'"),
    ],
)
def test_parameters_that_do_not_go_together_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TritUnpackConfig(**values)
