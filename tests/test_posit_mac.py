# SPDX-License-Identifier: Apache-2.0
"""Dot products of posits: exact sums in rational numbers, all pairs, bounds, faults inside."""

import importlib
import inspect
import types
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl.formats._formats import PositFormat, format_named
from atriplex.rtl.mac import _posit
from atriplex.rtl.mac.posit_mac import PositMacConfig
from atriplex.sim.formats.codec import decode, encode
from atriplex.sim.mac import posit_mac
from atriplex.sim.run import simulate


def pairs(config: PositMacConfig) -> dict[str, Any]:
    """All pairs of codes, each a run of its own."""
    codes = np.arange(1 << config.bits)
    a, b = (x.reshape(-1, 1) for x in np.meshgrid(codes, codes))
    return posit_mac.dots(config, a, b)


@pytest.mark.parametrize("preset", list(PositMacConfig.presets))
def test_model_is_the_exact_sum_rounded_once(preset: str) -> None:
    config, rng = PositMacConfig.preset(preset), np.random.default_rng(3)
    format_ = format_named(config.format)
    codes = rng.integers(0, 1 << config.bits, (2, 300, 6))
    codes[codes == 1 << config.bits - 1] = 1
    codes[0, :60, 1] = codes[0, :60, 0]
    codes[1, :60, 1] = -codes[1, :60, 0] & (1 << config.bits) - 1  # these two cancel
    out = posit_mac.golden(config, posit_mac.dots(config, codes[0], codes[1]))["o"]
    step = Fraction(1, 1 << 2 * config.span.high)
    for n, (a, b) in enumerate(zip(*decode(format_, codes), strict=True)):
        products = (Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True))
        total = sum(products, Fraction(0))
        if config.raw:
            quire = sum(int(word) << 32 * at for at, word in enumerate(out["quire"][n]))
            assert quire == int(total / step) & (1 << 32 * config.words) - 1
        near = int(encode(format_, float(total)))  # within a step; which one is judged exactly
        assert int(out["y"][n]) == rounded(total, near, config)


def rounded(total: Fraction, near: int, config: PositMacConfig) -> int:
    """The code nearest to ``total`` of those around ``near``, by the tie points of posits."""
    bits, finer = config.bits, PositFormat("finer", config.bits + 1, config.es)
    whole = near - (near >> bits - 1 << bits)
    least, most = -(1 << bits - 1) + 1, (1 << bits - 1) - 1
    for code in range(max(whole - 1, least), min(whole + 1, most) + 1):
        if (code == 0) != (total == 0):
            continue
        ties = (2 * code - 1, 2 * code + 1)
        low, high = (Fraction(float(decode(finer, tie & (2 << bits) - 1))) for tie in ties)
        below = code in (least, 1) or low < total or (low == total and code % 2 == 0)
        above = code in (most, -1) or total < high or (total == high and code % 2 == 0)
        if below and above and (total > 0) == (code > 0):
            return code & (1 << bits) - 1
    raise AssertionError(f"no code near {total}")


@pytest.mark.parametrize(("bits", "es"), [(4, 0), (4, 1), (5, 0), (5, 2)])
def test_all_products_of_small_posits(bits: int, es: int) -> None:
    config = PositMacConfig(bits=bits, es=es, stage=1, rows=0)
    design = emit(blocks.find("posit_mac"), config)
    outcome = simulate(design, inputs=pairs(config), modes=["free"], simulator="icarus")
    assert list(outcome.complaints()) == []


@pytest.mark.long
@pytest.mark.parametrize("preset", ["default", "posit8_2"])
def test_all_products_of_posits_of_8_bits(preset: str) -> None:
    config = PositMacConfig.preset(preset)
    outcome = simulate(emit(blocks.find("posit_mac"), config), inputs=pairs(config), modes=["free"])
    assert list(outcome.complaints()) == []
    assert outcome.transfers == 1 << 16


@pytest.mark.long
def test_a_hundred_thousand_products_of_posits_of_16_bits() -> None:
    config, rng = PositMacConfig.preset("posit16_1"), np.random.default_rng(7)
    a, b = rng.integers(0, 1 << 16, (2, 100_000, 1))
    inputs = posit_mac.dots(config, a, b)
    outcome = simulate(emit(blocks.find("posit_mac"), config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []
    products = np.multiply(*decode(format_named("posit16_1"), np.array([a, b])))
    got = posit_mac.golden(config, inputs)["o"]["y"]
    np.testing.assert_array_equal(got, encode(format_named("posit16_1"), products)[:, 0])


def test_all_products_of_posit8_0_are_what_the_codec_rounds() -> None:
    """Products of two are exact in float64, so that the codec's rounding is one of its own."""
    for preset in ("default", "posit8_2"):
        config = PositMacConfig.preset(preset)
        format_, inputs = format_named(config.format), pairs(config)
        values = [decode(format_, inputs["i"][name]) for name in ("a", "b")]
        wanted = encode(format_, values[0] * values[1])
        np.testing.assert_array_equal(posit_mac.golden(config, inputs)["o"]["y"], wanted)


@pytest.mark.parametrize("preset", ["tiny", "raw"])
def test_stimulus_reaches_the_bound_and_one_more_product_wraps(preset: str) -> None:
    config = PositMacConfig.preset(preset)
    inputs = posit_mac.stimulus(config, np.random.default_rng(1), 10_000)
    words = posit_mac.golden(config, inputs)["o"]["quire"]
    bound = config.max_k << 4 * config.span.high
    assert words[0].tolist() == [bound]
    assert words[1].tolist() == [-bound & 0xFFFFFFFF]
    assert bound < 1 << config.quire_width - 1 <= bound + (1 << 4 * config.span.high)
    most = np.full((1, config.max_k + 1), (1 << config.bits - 1) - 1)
    wrapped = posit_mac.golden(config, posit_mac.dots(config, most, most))["o"]
    assert wrapped["y"].tolist() == [(1 << config.bits - 1) + 1]  # the largest negative one


def test_sums_do_not_depend_on_the_order() -> None:
    config, rng = PositMacConfig.preset("posit16_1"), np.random.default_rng(4)
    codes = rng.integers(0, 1 << 16, (2, 50, 100))
    codes[codes == 1 << 15] = 0
    order = rng.permutation(100)
    one, other = (
        posit_mac.golden(config, posit_mac.dots(config, *given))["o"]
        for given in (codes, codes[:, :, order])
    )
    for field in one:
        np.testing.assert_array_equal(one[field], other[field])


def test_configs_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match=r"es must be at most bits - 3 \(1\), not 2"):
        PositMacConfig(bits=4, es=2)


INSIDE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "regime_not_taken_off": ("_posit", "code[:-2] ^ run, sign", "code[:-2], sign", {}),
    "largest_as_zero": ("_posit", "run[0] & code[0] & ~sign", "0", {}),
    "nar_unseen": ("_posit", "sign & run[0] & ~code[0]", "0", {}),
    "ties_upwards": ("_posit", "guard & (code[0] | lost)", "guard", {}),
    "below_lost": ("_posit", "guard & (code[0] | lost)", "guard & code[0]", {}),
    "becomes_0": ("_posit", "~code[0] & (guard | lost)", "guard & (code[0] | lost)", {}),
    "beyond_not_cleared": ("_posit", "clear=beyond", "clear=0", {}),
    "sign_row_added": ("_posit", "invert=int(top)", "invert=0", {}),
    "quire_narrow": ("posit_mac", "config.quire_width, total", "config.quire_width - 1, total", {}),
    "shift_not_carried": ("posit_mac", "Cat(even, ranks[1])", "Cat(0, ranks[1])", {}),
    "nar_stays": ("posit_mac", "(nar & ~run.opens[at])", "nar", {}),
    "nar_forgotten": ("posit_mac", "bad | (nar & ~run.opens[at])", "bad", {}),
    "no_one_added": (
        "posit_mac",
        'return term, self._late(m, 3, "negative", negative)',
        "return term, 0",
        {"es": 1},
    ),
    "zero_as_one": ("posit_mac", "clear=a.zero | b.zero", "clear=0", {"es": 1}),
    "not_the_largest": ("posit_mac", "Mux(beyond, high, high - count)", "high - count", {"es": 1}),
}
"""Faults: the module, what is there, what is there instead, and the config it matters for."""


@pytest.mark.parametrize("name", INSIDE)
def test_faults_inside_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, sound, fault, changes = INSIDE[name]
    rtl = importlib.import_module("atriplex.rtl.mac.posit_mac")
    module = _posit if where == "_posit" else rtl
    source = inspect.getsource(module)
    assert source.count(sound) == 1, sound
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    # The configs stay those of the module, which the emitter knows.
    exec(compile(source.replace(sound, fault), module.__name__, "exec"), names)
    broken = types.SimpleNamespace(**names)
    if module is _posit:
        for part in ("linear", "linear_code", "product"):
            monkeypatch.setattr(rtl, part, getattr(broken, part))
    else:
        monkeypatch.setattr(rtl.PositMac, "elaborate", broken.PositMac.elaborate)
        for part in ("_linear_term", "_term", "_code"):
            monkeypatch.setattr(rtl.PositMac, part, getattr(broken.PositMac, part))
    config = PositMacConfig(bits=8, carry=3, raw=True, stage=1, rows=0, **changes)
    design = emit(blocks.find("posit_mac"), config)
    outcome = simulate(design, transfers=600, modes=["free"], simulator="icarus")
    assert outcome.mismatches > 0
