# SPDX-License-Identifier: Apache-2.0
"""Number formats: all codes, and independent implementations of them."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from atriplex.rtl.formats._formats import (
    BipolarFormat,
    FloatFormat,
    FormatError,
    IntegerFormat,
    PositFormat,
    format_named,
)
from atriplex.sim.formats.codec import decode, encode

LIBRARY = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
FLOATS = [name for name in LIBRARY if name != "e8m0"]
POSITS = ("posit4_1", "posit8_0", "posit16_1", "posit8_2", "posit5_3")
OTHERS = ("int2", "int8", "int16", "ternary", "bipolar1", "bipolar3", "bipolar8")


def codes_of(name: str) -> np.ndarray:
    codes = np.arange(1 << format_named(name).width)
    return codes[codes != 2] if name == "ternary" else codes


def library_codes(name: str, values: np.ndarray) -> np.ndarray:
    kind = np.uint16 if format_named(name).width == 16 else np.uint8
    with np.errstate(over="ignore"):
        return values.astype(LIBRARY[name]).view(kind).astype(np.int64)


def samples(name: str, rng: np.random.Generator) -> np.ndarray:
    """All values, what lies half way between two of them and just beside that, random ones."""
    values = decode(format_named(name), codes_of(name))
    values = np.unique(values[np.isfinite(values)])
    halves = (values[1:] + values[:-1]) / 2
    near = [np.nextafter(halves, side) for side in (-np.inf, np.inf)]
    wide = np.ldexp(rng.normal(size=4000), rng.integers(-40, 40, 4000))
    beyond = np.array([2 * values[-1], 3 * values[-1], -2 * values[-1], values[-1] * 1.01])
    return np.concatenate((values, halves, *near, wide, beyond, [0.0, -0.0]))


@pytest.mark.parametrize("name", LIBRARY)
def test_every_code_has_the_librarys_value(name: str):
    codes = codes_of(name)
    kind = np.uint16 if format_named(name).width == 16 else np.uint8
    with np.errstate(invalid="ignore"):
        wanted = codes.astype(kind).view(LIBRARY[name]).astype(np.float64)
    got = decode(format_named(name), codes)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(wanted[wanted == 0]))


@pytest.mark.parametrize("name", FLOATS)
def test_values_are_rounded_as_the_library_rounds_them(name: str):
    format_ = format_named(name)
    assert isinstance(format_, FloatFormat)
    values = samples(name, np.random.default_rng(1))
    # The library goes by way of float32; what that cannot hold would be rounded twice.
    with np.errstate(over="ignore"):
        values = values[values.astype(np.float32) == values]
    got = encode(format_, values, saturate=format_.nan is None)
    np.testing.assert_array_equal(got, library_codes(name, values.astype(np.float32)))


@pytest.mark.parametrize("name", [*LIBRARY, *POSITS, *OTHERS])
def test_what_is_decoded_is_encoded_again(name: str):
    format_, codes = format_named(name), codes_of(name)
    if isinstance(format_, IntegerFormat):
        codes = codes[codes != 1 << format_.bits - 1]  # never encoded
    values = decode(format_, codes)
    numbers = ~np.isnan(values)
    again = encode(format_, values[numbers], saturate=False)
    np.testing.assert_array_equal(again, codes[numbers])


@pytest.mark.parametrize("name", [*FLOATS, *POSITS, *OTHERS])
def test_no_value_is_nearer_than_the_one_it_becomes(name: str):
    format_, rng = format_named(name), np.random.default_rng(2)
    values = samples(name, rng)
    grid = decode(format_, codes_of(name))
    grid = np.unique(grid[np.isfinite(grid)])
    if isinstance(format_, IntegerFormat):
        grid = grid[1:]
    found = decode(format_, encode(format_, values))
    low = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 1)
    high = np.clip(np.searchsorted(grid, values, side="left"), 0, len(grid) - 1)
    assert np.all((found == grid[low]) | (found == grid[high])), "one of the two neighbours"
    if not isinstance(format_, PositFormat):  # whose ties are elsewhere
        best = np.minimum(np.abs(values - grid[low]), np.abs(values - grid[high]))
        np.testing.assert_array_equal(np.abs(found - values), best)


def posit_value(code: int, bits: int, es: int) -> Fraction | None:
    """A posit from the text of its definition, character by character; None is NaR."""
    if code == 0:
        return Fraction(0)
    if code == 1 << bits - 1:
        return None
    sign = code >> bits - 1
    text = format((-code if sign else code) & (1 << bits) - 1, f"0{bits}b")[1:]
    run = len(text) - len(text.lstrip(text[0]))
    k = run - 1 if text[0] == "1" else -run
    text = text[run + 1 :]
    exponent = int((text[:es] + "0" * es)[:es] or "0", 2)
    fraction = text[es:]
    value = Fraction(2) ** (k * 2**es + exponent)
    value *= 1 + Fraction(int(fraction or "0", 2), 2 ** len(fraction))
    return -value if sign else value


@pytest.mark.parametrize("name", POSITS)
def test_posits_are_what_their_definition_says(name: str):
    format_ = format_named(name)
    assert isinstance(format_, PositFormat)
    values = decode(format_, codes_of(name))
    for code, value in enumerate(values):
        wanted = posit_value(code, format_.bits, format_.es)
        assert (np.isnan(value) and wanted is None) or Fraction(float(value)) == wanted


@pytest.mark.parametrize("name", POSITS)
def test_ties_of_posits_are_patterns_of_one_bit_more(name: str):
    format_ = format_named(name)
    assert isinstance(format_, PositFormat)
    bits, es = format_.bits, format_.es
    codes = np.arange(1, (1 << bits - 1) - 1)
    ties = np.array([float(posit_value(2 * int(code) + 1, bits + 1, es) or 0) for code in codes])
    np.testing.assert_array_equal(encode(format_, ties), codes + codes % 2)
    np.testing.assert_array_equal(encode(format_, np.nextafter(ties, 0)), codes)
    np.testing.assert_array_equal(encode(format_, np.nextafter(ties, np.inf)), codes + 1)
    np.testing.assert_array_equal(encode(format_, -ties), (1 << bits) - codes - codes % 2)
    least, most = 1, (1 << bits - 1) - 1
    np.testing.assert_array_equal(encode(format_, [1e-300, 1e300]), [least, most])
    np.testing.assert_array_equal(encode(format_, [np.nan, np.inf]), [1 << bits - 1] * 2)


def test_the_smallest_posit_is_the_table_of_its_sheet():
    values = decode(format_named("posit4_1"), range(16))
    wanted = [0, 1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16]
    np.testing.assert_array_equal(values[:8], wanted)
    np.testing.assert_array_equal(values[9:], [-each for each in wanted[:0:-1]])
    ties = {1 / 8: 1 / 4, 3 / 8: 1 / 4, 3 / 4: 1, 3 / 2: 1, 3: 4, 8: 4}
    got = decode(format_named("posit4_1"), encode(format_named("posit4_1"), list(ties)))
    np.testing.assert_array_equal(got, list(ties.values()))


def test_bipolar_numbers_are_sums_of_signed_powers():
    for bits in range(1, 9):
        format_ = format_named(f"bipolar{bits}")
        assert isinstance(format_, BipolarFormat)
        codes = np.arange(1 << bits)
        signs = 2 * (codes[:, None] >> np.arange(bits) & 1) - 1
        np.testing.assert_array_equal(decode(format_, codes), signs @ (1 << np.arange(bits)))


def test_a_scale_is_the_nearest_power_of_two():
    scale = format_named("e8m0")
    np.testing.assert_array_equal(
        decode(scale, [0, 127, 254, 255]), [2.0**-127, 1, 2.0**127, np.nan]
    )
    # Half way is 1.5: to the even code.
    values = [1.0, 1.49, 1.5, 1.51, 3.0, 1e-300, 1e300, np.inf, np.nan]
    np.testing.assert_array_equal(
        encode(scale, values), [127, 127, 128, 128, 128, 0, 254, 254, 255]
    )
    np.testing.assert_array_equal(encode(scale, [1e300, np.inf], saturate=False), [255, 255])


@pytest.mark.parametrize(
    ("name", "values", "saturated", "else_"),
    [
        ("fp8_e4m3", [1e9, -np.inf, np.nan], [0x7E, 0xFE, 0x7F], [0x7F, 0xFF, 0x7F]),
        ("fp8_e5m2", [1e9, -np.inf, np.nan], [0x7B, 0xFB, 0x7E], [0x7C, 0xFC, 0x7E]),
        ("fp4_e2m1", [1e9, -np.inf, -0.0], [7, 15, 8], [7, 15, 8]),
        ("int4", [1e9, -1e9, -0.5], [7, 9, 0], [7, 9, 0]),
    ],
)
def test_what_is_too_large_is_as_asked(name, values, saturated, else_):
    np.testing.assert_array_equal(encode(format_named(name), values), saturated)
    np.testing.assert_array_equal(encode(format_named(name), values, saturate=False), else_)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: format_named("fp8"), "no format 'fp8'"),
        (lambda: format_named("int1"), "no format 'int1'; is it int2?"),
        (lambda: format_named("posit17_1"), "no format 'posit17_1'; is it posit16_1?"),
        (lambda: decode(format_named("ternary"), [0, 2]), "ternary has no code 2, .* index 1$"),
        (lambda: decode(format_named("int4"), [16]), "int4 has no code 16, which is at index 0$"),
        (
            lambda: encode(format_named("fp4_e2m1"), [0, np.nan]),
            "fp4_e2m1 has no code for nan, .* 1$",
        ),
        (lambda: encode(format_named("int8"), [np.inf]), "int8 has no code for inf"),
        (lambda: encode(format_named("e8m0"), [1, 0]), "e8m0 has no code for 0.0, .* index 1$"),
    ],
)
def test_what_is_no_format_and_what_has_no_code_is_said(make, sentence):
    with pytest.raises(FormatError, match=sentence):
        make()
