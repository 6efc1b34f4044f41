# SPDX-License-Identifier: Apache-2.0
"""Hardware decoders and encoders against the formats' arithmetic: all codes, all ways to round."""

import itertools
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.rtl.formats._decode import Decode, DecodeConfig, Span, span_of
from atriplex.rtl.formats._encode import Encode, EncodeConfig
from atriplex.rtl.formats._formats import FloatFormat, format_named
from atriplex.sim.formats.codec import decode, encode

SMALL = (
    *("int2", "int5", "int8", "ternary", "bipolar1", "bipolar2", "bipolar5", "bipolar8", "e8m0"),
    *("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2"),
    *("posit3_0", "posit3_2", "posit4_1", "posit5_3", "posit8_0", "posit8_1", "posit8_2"),
)
WIDE = ("int16", "bf16", "fp16", "posit16_1", "posit16_3")


def run(part: Any, latency: int, inputs: list[dict[str, int]], outputs: tuple[str, ...]) -> Any:
    """Every output for every row of inputs, given one each cycle."""
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    found: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for row in inputs + inputs[-1:] * latency:
            for name, value in row.items():
                ctx.set(getattr(part, name), value)
            await ctx.delay(1e-8)
            found.append([ctx.get(getattr(part, name)) for name in outputs])
            if latency:
                await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return dict(zip(outputs, np.array(found[latency:]).T, strict=True))


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("name", [*SMALL, *WIDE])
def test_codes_mean_what_their_format_says(name: str, stage: int) -> None:
    format_, config = format_named(name), DecodeConfig(format=name, stage=stage)
    codes = np.arange(1 << format_.width)
    if name in WIDE:  # those at both ends, subnormal ones, and some between
        picked = np.random.default_rng(1).integers(0, 1 << 16, 1500)
        codes = np.unique(np.concatenate((codes[:700], codes[-50:], codes[32700:32900], picked)))
    codes = codes[codes != 2] if name == "ternary" else codes
    flags = ("zero", "nan", "inf")
    rows = [{"code": code} for code in codes.tolist()]
    got = run(Decode(config), stage, rows, (*flags, "sign", "exponent", "significand"))
    values, span = decode(format_, codes), config.span
    np.testing.assert_array_equal(got["zero"], values == 0)
    np.testing.assert_array_equal(got["nan"], np.isnan(values))
    np.testing.assert_array_equal(got["inf"], np.isinf(values))
    real = ~np.isnan(values)
    np.testing.assert_array_equal(got["sign"][real], np.signbit(values)[real])
    numbers = np.isfinite(values) & (values != 0)
    whole, exponent = got["significand"][numbers], got["exponent"][numbers]
    assert np.all(whole >> span.bits - 1 == 1)
    assert span.low <= exponent.min() and exponent.max() <= span.high
    np.testing.assert_array_equal(
        np.ldexp(whole.astype(float), exponent - span.bits + 1), np.abs(values[numbers])
    )


def test_no_number_needs_less_than_its_span() -> None:
    for name in SMALL + WIDE:
        format_ = format_named(name)
        codes = np.arange(1 << format_.width)
        values = np.abs(decode(format_, codes[codes != 2] if name == "ternary" else codes))
        values = values[np.isfinite(values) & (values != 0)]
        fraction, exponent = np.frexp(values)
        bits = next(b for b in range(1, 20) if np.all(np.ldexp(fraction, b) % 1 == 0))
        assert span_of(format_) == Span(bits, int(exponent.min()) - 1, int(exponent.max()) - 1)


def numbers_for(name: str, bits: int, reach: int) -> tuple[EncodeConfig, list[dict[str, int]]]:
    """All significands, with and without more below, at exponents beyond the format's by reach."""
    span = span_of(format_named(name))
    config = EncodeConfig(format=name, bits=bits, low=span.low - reach, high=span.high + reach)
    exponents = range(config.low, config.high + 1)
    if len(exponents) > 60:
        ends = (*exponents[:14], *exponents[-14:])
        exponents = (*ends, *range(-20, 21, 4)) if span.high > 40 else (*ends, *range(-8, 8))
    significands = range(1 << bits - 1, 1 << bits)
    rows = [
        {"sign": sign, "exponent": exponent, "significand": significand, "sticky": sticky}
        for exponent in exponents
        for significand in significands
        for sticky, sign in itertools.product((0, 1) if bits > span.bits else (0,), (0, 1))
    ]
    return config, [{"zero": 0, "nan": 0, "inf": 0, **row} for row in rows]


def nearest(config: EncodeConfig, rows: list[dict[str, int]]) -> np.ndarray:
    """Codes of the numbers; what is below the last place is a quarter of it."""
    whole = np.array([4 * row["significand"] + row["sticky"] for row in rows], float)
    exponent = np.array([row["exponent"] for row in rows]) - config.bits - 1
    sign = np.where([row["sign"] for row in rows], -1.0, 1.0)
    values = np.ldexp(whole, exponent) * (1.0 if config.format == "e8m0" else sign)
    return encode(config.of_format, values, saturate=config.saturate)


@pytest.mark.parametrize("bits", [1, 4, 7])
@pytest.mark.parametrize("name", SMALL)
def test_numbers_become_the_nearest_codes(name: str, bits: int) -> None:
    config, rows = numbers_for(name, bits, 3)
    got = run(Encode(config), 0, rows, ("code",))["code"]
    np.testing.assert_array_equal(got, nearest(config, rows))


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("name", WIDE)
def test_numbers_become_the_nearest_wide_codes(name: str, stage: int) -> None:
    """Fractions of all lengths with a bit half way behind them, that, and one to either side."""
    span, rng = span_of(format_named(name)), np.random.default_rng(1)
    config = EncodeConfig(format=name, bits=20, low=span.low - 3, high=span.high + 3, stage=stage)
    length, count = config.bits - 1, 2500
    at = rng.integers(0, length, count)  # the bit half way
    above = rng.integers(0, 1 << 20, count) >> at + 1 << at + 1
    whole = (above | 1 << at | 1 << length) + rng.integers(-1, 2, count)
    exponent = rng.integers(config.low, config.high + 1, count)
    near = rng.random(count) < 0.3
    exponent[near] = rng.integers(-3, 3, int(near.sum())).clip(config.low, config.high)
    columns = {
        "sign": rng.integers(0, 2, count),
        "exponent": exponent,
        "significand": whole.clip(1 << length, (2 << length) - 1),
        "sticky": rng.integers(0, 2, count),
    }
    blank = dict.fromkeys(("zero", "nan", "inf"), 0)
    rows = [
        blank | dict(zip(columns, row, strict=True))
        for row in np.array(list(columns.values())).T.tolist()
    ]
    got = run(Encode(config), stage, rows, ("code",))["code"]
    np.testing.assert_array_equal(got, nearest(config, rows))


@pytest.mark.parametrize("name", SMALL)
def test_the_ranges_of_a_format_alone_do_for_its_own_numbers(name: str) -> None:
    """What cannot happen costs nothing: no logic for it, and the same codes."""
    format_ = format_named(name)
    config, _ = numbers_for(name, span_of(format_).bits, 0)
    codes = np.arange(1 << format_.width)
    values = decode(format_, codes[codes != 2] if name == "ternary" else codes)
    values = values[np.isfinite(values) & (values != 0)]
    fraction, exponent = np.frexp(np.abs(values))
    whole = np.ldexp(fraction, config.bits).astype(int)
    keys = ("sign", "exponent", "significand")
    columns = (np.signbit(values).astype(int), exponent - 1, whole)
    rows = [
        {"zero": 0, "nan": 0, "inf": 0, "sticky": 0, **dict(zip(keys, row, strict=True))}
        for row in np.array(columns).T.tolist()
    ]
    got = run(Encode(config), 0, rows, ("code",))["code"]
    np.testing.assert_array_equal(got, encode(format_, values))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("name", [*SMALL, *WIDE])
def test_zero_nan_infinity_and_what_is_too_large(name: str, saturate: bool) -> None:
    format_ = format_named(name)
    span = span_of(format_)
    high = min(span.high + 9, 900)
    config = EncodeConfig(format=name, bits=3, low=span.low, high=high, saturate=saturate)
    blank = {"zero": 0, "nan": 0, "inf": 0, "exponent": high, "significand": 7, "sticky": 1}
    rows = [
        {**blank, "sign": sign, **({flag: 1} if flag else {})}
        for flag in ("zero", "nan", "inf", "")
        for sign in (0, 1)
    ]
    got = run(Encode(config), 0, rows, ("code",))["code"].tolist()
    top = 1 << format_.width - 1
    large = encode(format_, [1e300, 1e300 if name == "e8m0" else -1e300], saturate=saturate)
    zeros = [0, 0] if name == "e8m0" else encode(format_, [0.0, -0.0]).tolist()
    nans, infs = [zeros[0]] * 2, large.tolist()
    if isinstance(format_, FloatFormat):
        assert zeros == [0, top]
        nans = [format_.nan or 0] * 2
    elif name.startswith("posit"):
        nans = infs = [top, top]
    elif name == "e8m0":
        nans = [255, 255]
    assert got == [*zeros, *nans, *infs, *large.tolist()]


def test_a_format_that_is_none_is_named() -> None:
    for kind in (DecodeConfig, EncodeConfig):
        with pytest.raises(ValueError, match="no format 'fp17'; is it fp16"):
            kind(format="fp17")
    with pytest.raises(ValueError, match=r"low must be at most high \(3\), not 4"):
        EncodeConfig(low=4, high=3)
