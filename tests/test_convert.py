# SPDX-License-Identifier: Apache-2.0
"""Conversions: against a public library, their rules for what a format lacks, and faults inside."""

import importlib
import inspect
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.lint import lint
from atriplex.gen.verilog import emit
from atriplex.rtl.formats import _decode, _encode
from atriplex.rtl.formats._formats import format_named
from atriplex.rtl.formats.convert import ConvertConfig
from atriplex.sim.formats import convert as model
from atriplex.sim.run import simulate

LIBRARY: dict[str, tuple[Any, Any]] = {
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, np.uint8),
    "fp6_e2m3": (ml_dtypes.float6_e2m3fn, np.uint8),
    "fp6_e3m2": (ml_dtypes.float6_e3m2fn, np.uint8),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, np.uint8),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, np.uint8),
    "bf16": (ml_dtypes.bfloat16, np.uint16),
    "fp16": (np.float16, np.uint16),
}


@pytest.mark.parametrize("target", LIBRARY)
@pytest.mark.parametrize("source", LIBRARY)
def test_all_codes_become_what_the_library_makes_of_them(source: str, target: str) -> None:
    if source == target:
        return
    (kind, raw), (to, to_raw) = LIBRARY[source], LIBRARY[target]
    codes = np.arange(1 << format_named(source).width)
    with np.errstate(over="ignore", invalid="ignore"):
        values = codes.astype(raw).view(kind).astype(np.float32)
        wanted = values.astype(to).view(to_raw).astype(np.int64)
    numbers = ~np.isnan(values)
    saturate = format_named(target).nan is None  # type: ignore[attr-defined]
    got = model.convert(format_named(source), format_named(target), codes, saturate=saturate)
    np.testing.assert_array_equal(got[numbers], wanted[numbers])


def test_what_a_target_lacks_is_as_said() -> None:
    def to(target: str, *codes: int, source: str = "fp16", saturate: bool = True) -> list[int]:
        given = format_named(source), format_named(target)
        return model.convert(*given, list(codes), saturate=saturate).tolist()

    inf, nan, minus_nan, zero = 0x7C00, 0x7E01, 0xFE01, 0x8000
    assert to("int8", inf, inf | zero, nan, minus_nan, zero) == [127, 129, 0, 0, 0]
    assert to("ternary", inf, inf | zero, nan, zero) == [1, 3, 0, 0]
    assert to("bipolar2", inf, inf | zero, nan, zero, 0) == [3, 0, 2, 2, 2]
    assert to("fp4_e2m1", inf, inf | zero, nan, minus_nan, zero) == [7, 15, 0, 0, 8]
    assert to("fp4_e2m1", inf, inf | zero, saturate=False) == [7, 15]
    assert to("fp8_e4m3", inf, inf | zero, nan, minus_nan, zero) == [0x7E, 0xFE, 0x7F, 0x7F, 0x80]
    assert to("fp8_e4m3", inf, inf | zero, saturate=False) == [0x7F, 0xFF]
    assert to("fp8_e5m2", inf, inf | zero, minus_nan) == [0x7B, 0xFB, 0x7E]
    assert to("fp8_e5m2", inf, inf | zero, saturate=False) == [0x7C, 0xFC]
    assert to("posit8_0", inf, inf | zero, nan, zero, 1) == [0x80, 0x80, 0x80, 0, 1]
    assert to("fp16", 0x80, 0x7F, 0x81, source="posit8_0") == [0x7E00, 0x5400, 0xD400]
    assert to("posit8_0", 255, 0, source="e8m0") == [0x80, 1]
    assert to("int4", 0x80, 0x7F, source="int8") == [9, 7]


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("fp16", "fp16", "source and target are both fp16, and nothing is to be converted"),
        ("fp16", "e8m0", "fp16 to e8m0 is no conversion: .* targets are integers, ternary"),
        ("fp17", "int8", "no format 'fp17'; is it fp16"),
        ("int8", "posit17_0", "no format 'posit17_0'"),
    ],
)
def test_pairs_that_are_none_are_named(source: str, target: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ConvertConfig(source=source, target=target)


@pytest.mark.parametrize("preset", list(ConvertConfig.presets))
def test_ten_thousand_transfers_are_all_codes(preset: str) -> None:
    config = ConvertConfig.preset(preset)
    given = model.stimulus(config, np.random.default_rng(1), 10_000)["i"]["code"]
    codes = model.valid(format_named(config.source))
    np.testing.assert_array_equal(np.unique(given), codes)


@pytest.mark.long
@pytest.mark.parametrize("preset", list(ConvertConfig.presets))
def test_text_of_every_pair_is_clean(preset: str) -> None:
    assert lint(emit(blocks.find("convert"), ConvertConfig.preset(preset))) == []


def broken(module: types.ModuleType, sound: str, fault: str) -> types.SimpleNamespace:
    """The module with a fault in its source."""
    source = inspect.getsource(module)
    assert source.count(sound) == 1, sound
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(source.replace(sound, fault), module.__name__, "exec"), names)
    return types.SimpleNamespace(**names)


ROUND = "value[0] & (value[1] | lost | always)"
INSIDE: dict[str, tuple[types.ModuleType, str, str, str, str]] = {
    "ties_upwards": (_encode, ROUND, "value[0]", "fp8_e4m3", "fp4_e2m1"),
    "bits_below_lost": (_encode, ROUND, "value[0] & (value[1] | always)", "fp8_e5m2", "posit8_0"),
    "cut": (_encode, ROUND, "0", "posit8_0", "fp6_e3m2"),
    "tiny_becomes_0": (_encode, "always=tiny", "always=0", "fp8_e5m2", "posit8_0"),
    "posits_without_end": (_encode, "run > most", "0", "fp8_e5m2", "posit6_0"),
    "run_of_one_kind": (_encode, "most), ~small,", "most), 0,", "int8", "posit8_0"),
    "infinity_no_nar": (_encode, "self.nan | self.inf)", "self.nan)", "fp8_e5m2", "posit8_1"),
    "not_saturated": (_encode, "over | (kept.all() & up)", "over", "fp8_e4m3", "int4"),
    "special_made": (_encode, "over | special |", "over |", "int10", "fp8_e4m3"),
    "carry_lost": (_encode, "special | rounded[-1]", "special", "fp8_e4m3", "fp4_e2m1"),
    "field_of_subnormals": (_encode, "field.eq(0)", "field.eq(1)", "fp8_e5m2", "fp8_e4m3"),
    "regime_cut": (_decode, "most=bits - 2, fill", "most=1, fill", "posit8_1", "fp8_e5m2"),
    "zeros_behind_ones": (_decode, "fill=first", "fill=0", "posit8_1", "fp8_e5m2"),
    "subnormal_as_0": (_decode, "~self.code[:bits].any()", "~exponent.any()", "fp8_e4m3", "fp16"),
    "bias": (_decode, "- format_.bias)", "- format_.bias + 1)", "fp8_e4m3", "int8"),
}
"""Faults: where in the source, what is there, what instead, and formats that it matters for."""


@pytest.mark.parametrize("name", INSIDE)
def test_faults_inside_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, sound, fault, source, target = INSIDE[name]
    part = {_encode: "Encode", _decode: "Decode"}[module]
    rtl = importlib.import_module("atriplex.rtl.formats.convert")
    monkeypatch.setattr(rtl, part, getattr(broken(module, sound, fault), part))
    config = ConvertConfig(source=source, target=target, lanes=1)
    design = emit(blocks.find("convert"), config)
    outcome = simulate(design, transfers=300, modes=["free"], simulator="icarus")
    assert outcome.mismatches > 0
