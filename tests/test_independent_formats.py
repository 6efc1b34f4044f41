# SPDX-License-Identifier: Apache-2.0
"""The formats' arithmetic against public libraries and against a second way to compute it.

``softposit`` and ``gfloat`` are the optional extra ``formats``; without them their tests skip.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from atriplex.rtl.formats._formats import FloatFormat, format_named
from atriplex.sim.formats.codec import decode, encode

REASON = "not installed (pip install 'atriplex[formats]')"
GFLOAT = {
    "fp4_e2m1": "ocp_e2m1",
    "fp6_e2m3": "ocp_e2m3",
    "fp6_e3m2": "ocp_e3m2",
    "fp8_e4m3": "ocp_e4m3",
    "fp8_e5m2": "ocp_e5m2",
    "e8m0": "ocp_e8m0",
    "bf16": "bfloat16",
    "fp16": "binary16",
}


def posit_of(softposit: Any, bits: int) -> Any:
    """From a code to the library's posit."""
    return {8: softposit.posit8, 16: softposit.posit16}[bits]


def code_of(posit: Any, bits: int) -> int:
    return int(posit.v.v) & (1 << bits) - 1


@pytest.mark.parametrize(("name", "bits"), [("posit8_0", 8), ("posit16_1", 16)])
def test_posits_are_those_of_softposit(name: str, bits: int) -> None:
    softposit = pytest.importorskip("softposit", reason=f"softposit is {REASON}")
    format_, kind = format_named(name), posit_of(softposit, bits)
    codes = np.arange(1 << bits)
    values = decode(format_, codes)
    theirs = [float(kind(bits=code)) for code in codes.tolist() if code != 1 << bits - 1]
    np.testing.assert_array_equal(np.delete(values, 1 << bits - 1), theirs)
    # Between any two, at the middle and beside it, and beyond both ends.
    numbers = np.sort(np.delete(values, 1 << bits - 1))
    middle = (numbers[1:] + numbers[:-1]) / 2
    some = np.concatenate((
        *(middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)),
        np.multiply.outer(
            [1e-30, 0.4, 0.6, 1.7, 1e9], numbers[:: max(1, len(numbers) // 256)]
        ).ravel(),
    ))
    theirs = [code_of(kind(value), bits) for value in some.tolist()]
    np.testing.assert_array_equal(encode(format_, some), theirs)


def test_products_and_sums_of_all_pairs_are_those_of_softposit() -> None:
    softposit = pytest.importorskip("softposit", reason=f"softposit is {REASON}")
    format_ = format_named("posit8_0")
    posits = [softposit.posit8(bits=code) for code in range(256)]
    values = decode(format_, np.arange(256))
    products = encode(format_, np.multiply.outer(values, values))
    sums = encode(format_, np.add.outer(values, values))
    for a, x in enumerate(posits):
        assert [code_of(x * y, 8) for y in posits] == products[a].tolist()
        assert [code_of(x + y, 8) for y in posits] == sums[a].tolist()


@pytest.mark.long
def test_products_of_posits_of_16_bits_are_those_of_softposit() -> None:
    softposit = pytest.importorskip("softposit", reason=f"softposit is {REASON}")
    format_, rng = format_named("posit16_1"), np.random.default_rng(1)
    codes = rng.integers(0, 1 << 16, (2, 200_000))
    products = encode(format_, np.multiply(*decode(format_, codes)))
    posits = [softposit.posit16(bits=code) for code in range(1 << 16)]
    theirs = [code_of(posits[a] * posits[b], 16) for a, b in codes.T.tolist()]
    np.testing.assert_array_equal(products, theirs)


@pytest.mark.parametrize("name", GFLOAT)
def test_floats_are_those_of_gfloat(name: str) -> None:
    gfloat = pytest.importorskip("gfloat", reason=f"gfloat is {REASON}")
    formats = pytest.importorskip("gfloat.formats")
    info, format_ = getattr(formats, f"format_info_{GFLOAT[name]}"), format_named(name)
    codes = np.arange(1 << format_.width)
    values = decode(format_, codes)
    theirs = gfloat.decode_ndarray(info, codes)
    np.testing.assert_array_equal(values, theirs)
    numbers = np.unique(values[np.isfinite(values)])
    middle = (numbers[1:] + numbers[:-1]) / 2
    some = np.concatenate((
        *(numbers, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)),
        numbers[-1:] * np.array([1.01, 1.5, 2.0, 100.0]),
    ))
    some = some[some >= numbers[0]] if name == "e8m0" else np.concatenate((some, -some))
    for saturate in (True, False):
        if not saturate and isinstance(format_, FloatFormat) and format_.nan is None:
            continue
        mode = gfloat.RoundMode.TiesToEven
        near = gfloat.round_ndarray(info, some, mode, sat=saturate)
        got = decode(format_, encode(format_, some, saturate=saturate))
        np.testing.assert_array_equal(got, near)


def batches(count: int, corners: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of codes of 16 bits: every corner with every corner, then random ones."""
    rng = np.random.default_rng(11)
    yield np.stack([x.reshape(-1) for x in np.meshgrid(corners, corners)])
    for _ in range(count // 1_000_000):
        yield rng.integers(0, 1 << 16, (2, 1_000_000))


def corners_of(name: str) -> np.ndarray:
    """Ends of both signs, codes next to powers of two, and the special ones."""
    near = np.array([-2, -1, 0, 1, 2])
    around = np.concatenate([(1 << bit) + near for bit in range(1, 16)])
    some = np.concatenate((around, around + (1 << 15), [0, 0xFFFF, 0x7FFF, 0x8001]))
    return np.unique(some & 0xFFFF)


@pytest.mark.long
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_ten_million_products_of_floats(name: str) -> None:
    """A product of two has 22 bits at most and is exact in float64, as it is in float32."""
    kind, format_ = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[name], format_named(name)
    for codes in batches(10_000_000, corners_of(name)):
        with np.errstate(all="ignore"):
            products = np.multiply(*decode(format_, codes))
            theirs = np.multiply(*codes.astype(np.uint16).view(kind)).view(np.uint16)
        got = encode(format_, products, saturate=False)
        numbers = ~np.isnan(products)
        np.testing.assert_array_equal(got[numbers], theirs[numbers].astype(np.int64))


@pytest.mark.long
def test_ten_million_products_of_posits() -> None:
    format_ = format_named("posit16_1")
    for codes in batches(10_000_000, corners_of("posit16_1")):
        products = np.multiply(*decode(format_, codes))
        np.testing.assert_array_equal(encode(format_, products), multiplied(*codes))


def test_a_second_way_to_multiply_posits() -> None:
    format_ = format_named("posit16_1")
    codes = next(batches(0, corners_of("posit16_1")))
    products = np.multiply(*decode(format_, codes))
    np.testing.assert_array_equal(encode(format_, products), multiplied(*codes))


def multiplied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products of posit16_1 in integers: fields of both, one string, which is cut and rounded."""
    fields = [fields_of(x) for x in (a, b)]
    scale = fields[0][0] + fields[1][0]
    whole = fields[0][1] * fields[1][1]  # 1.f times 1.f, 24 bits behind the point
    carry = whole >> 25
    whole, scale = whole << 1 - carry, scale + carry  # 25 bits behind the leading one
    regime, power = scale >> 1, scale & 1
    head = np.where(regime >= 0, (np.int64(2) << np.maximum(regime, 0) + 1) - 2, 1)
    length = np.where(regime >= 0, regime + 2, 1 - regime)
    text = head << 26 | power << 25 | whole & (1 << 25) - 1
    drop = length + 26 - 15
    kept, rest = text >> drop, text & (np.int64(1) << drop) - 1
    half = np.int64(1) << drop - 1
    kept += (rest > half) | ((rest == half) & (kept & 1 == 1))
    kept = np.clip(kept, 1, 0x7FFF)
    code = np.where((a ^ b) >> 15 & 1, -kept, kept) & 0xFFFF
    code = np.where((a == 0) | (b == 0), 0, code)
    return np.where((a == 0x8000) | (b == 0x8000), 0x8000, code)


def fields_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and significand, with 12 bits behind the point, of posit16_1."""
    size = np.where(codes >> 15, -codes, codes) & 0x7FFF
    first = size >> 14
    run, going = np.zeros_like(size), np.ones(size.shape, bool)
    for at in range(14, -1, -1):
        going &= size >> at & 1 == first
        run += going
    rest = size << run + 1 & 0x7FFF  # behind the regime's end, at the top of 15 bits
    regime = np.where(first, run - 1, -run)
    return 2 * regime + (rest >> 14), 1 << 12 | rest >> 2 & 0xFFF
