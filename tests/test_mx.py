# SPDX-License-Identifier: Apache-2.0
"""Dot products of small floats and integers: every pair, rounding, widths, faults, costs."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Const, Module
from amaranth.sim import Simulator
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl.formats._formats import format_named
from atriplex.rtl.mac import _element_dot, _float_accumulate, fp_mac, mx_dot
from atriplex.rtl.mac._element_dot import ELEMENTS, ElementDot, ElementDotConfig
from atriplex.rtl.mac._float_accumulate import FloatAccumulate, FloatAccumulateConfig
from atriplex.rtl.mac.fp_mac import FpMacConfig
from atriplex.rtl.mac.mx_dot import MxDotConfig
from atriplex.sim import _float32
from atriplex.sim.mac import fp_mac as fp_mac_model
from atriplex.sim.mac import mx_dot as mx_dot_model
from atriplex.sim.run import simulate

TYPES = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}


def value_of(name: str, code: int) -> Any:
    """The value of a code, a Fraction or a float that is no number, without this project."""
    if name not in TYPES:
        bits = 2 if name == "ternary" else int(name[3:])
        return Fraction(code - (code >> bits - 1 << bits))
    store = np.uint16 if name in ("fp16", "bf16") else np.uint8
    value = float(np.array([code], store).view(TYPES[name])[0])
    return Fraction(value) if math.isfinite(value) else value


def single_of(value: Fraction) -> Fraction | float:
    """The nearest float32, ties to even."""
    if value == 0:
        return value
    size, exponent = abs(value), -149
    while size / Fraction(2) ** exponent >= 1 << 24:
        exponent += 1
    rounded = round(size / Fraction(2) ** exponent) * Fraction(2) ** exponent
    sign = -1 if value < 0 else 1
    return sign * (math.inf if rounded >= Fraction(2) ** 128 else rounded)


def add(acc: Any, term: Any) -> Any:
    """``acc + term`` in float32, either of them a Fraction or no number."""
    if isinstance(acc, Fraction) and isinstance(term, Fraction):
        return single_of(acc + term)
    return float(acc if not isinstance(acc, Fraction) else 0) + float(
        term if not isinstance(term, Fraction) else 0
    )


def code_of(value: Any) -> int:
    """The float32 code of a value it has; NaN as the blocks write it, and no -0."""
    if not isinstance(value, Fraction) and math.isnan(value):
        return 0x7FC00000
    return int(np.array([float(value)], np.float32).view(np.uint32)[0])


def run(part: Any, bench: Any) -> None:
    """``bench(ctx)`` on the bare ``part``, with a clock."""
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


PAIRS = [
    *((name, name) for name in (*ELEMENTS, "fp16")),
    *(("int8", "fp4_e2m1"), ("fp4_e2m1", "int8"), ("fp8_e4m3", "int4"), ("fp8_e5m2", "fp6_e2m3")),
]


@pytest.mark.parametrize(("lanes", "stage", "fine"), [(1, 1, 4), (4, 0, 2), (8, 2, 4)])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_sums_of_products_are_exact(a: str, b: str, lanes: int, stage: int, fine: int) -> None:
    rng, count = np.random.default_rng(1), 12
    for structure in ("aligned", "integer"):
        if structure == "integer" and {a, b} & {"fp8_e5m2", "fp16"}:
            continue
        config = ElementDotConfig(
            lanes=lanes, a_format=a, b_format=b, stage=stage, fine=fine, structure=structure
        )
        part = ElementDot(config)
        codes = []
        for name, element in ((a, config.a), (b, config.b)):
            chosen = rng.integers(0, 1 << element.width, (count, lanes))
            chosen[0] = 1 << element.width - 1  # -0 or the lowest integer
            finite = [[isinstance(value_of(name, int(c)), Fraction) for c in row] for row in chosen]
            codes.append(np.where(finite if name != "ternary" else chosen != 2, chosen, 0))
        unit = Fraction(2) ** config.unit
        sums = [
            sum(value_of(a, int(x)) * value_of(b, int(y)) for x, y in zip(*rows, strict=True))
            / unit
            for rows in zip(*codes, strict=True)
        ]
        got: list[int] = []

        async def bench(
            ctx: Any, part: Any = part, codes: Any = codes, config: Any = config, got: Any = got
        ) -> None:
            ctx.set(part.enable, 1)
            for n in range(count + config.latency):
                row = min(n, count - 1)
                for port, element, values in zip(
                    (part.a, part.b), (config.a, config.b), codes, strict=True
                ):
                    word = sum(int(c) << element.width * at for at, c in enumerate(values[row]))
                    ctx.set(port, word)
                await ctx.delay(1e-8)
                if n >= config.latency:
                    assert not ctx.get(part.nan)
                    got.append(ctx.get(part.sum) + ctx.get(part.pending))
                await ctx.tick()

        run(part, bench)
        assert got == sums


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("width", "low"), [(9, -160), (42, -266)])
def test_float_sums_are_rounded_once_for_each_term(width: int, low: int, steps: int) -> None:
    config = FloatAccumulateConfig(width=width, low=low, high=120, steps=steps)
    part, rng = FloatAccumulate(config), np.random.default_rng(3)
    terms, opens, expected = [], [], []
    acc: Any = Fraction(0)
    middle = 0
    for n in range(500):
        opens.append(n % 23 == 0)
        if opens[-1]:
            acc = Fraction(0)
            middle = int(rng.choice([-40, -149, -149 - width, 115 - width]))
        top = int(rng.integers(-(1 << width - 1), 1 << width - 1))
        whole = top >> int(rng.integers(0, width))
        exponent = min(max(middle + int(rng.integers(-27, 28)), low), 120)
        if n % 5 == 4:  # cancels the one before it
            whole, exponent = -terms[-1][0], terms[-1][1]
        terms.append((max(whole, 1 - (1 << width - 1)), exponent))
        acc = add(acc, terms[-1][0] * Fraction(2) ** exponent)
        expected.append(code_of(acc) if acc or terms[-1][0] == 0 else None)
    got = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for n in range((len(terms) * steps) + config.latency):
            at, phase = divmod(n, steps)
            ctx.set(part.moves, phase == 0 and at < len(terms))
            if at < len(terms):
                ctx.set(part.term, terms[at][0])
                ctx.set(part.exponent, terms[at][1])
                ctx.set(part.opens, opens[at])
            await ctx.tick()
            due, rest = divmod(n + 1 - config.latency, steps)
            if rest == 0 and 0 <= due < len(terms):
                got.append(ctx.get(part.sum))

    run(part, bench)
    assert len(got) == len(expected)
    wrong = [
        n
        for n, (x, y) in enumerate(zip(got, expected, strict=True))
        if x != y and not (y is None and x & 0x7FFFFFFF == 0)  # underflow keeps its sign
    ]
    assert wrong == []


def test_two_sums_round_as_rational_numbers_do() -> None:
    rng = np.random.default_rng(5)
    whole = [int(rng.integers(-(1 << 62), 1 << 62)) << int(rng.integers(0, 7)) for _ in range(3000)]
    whole = [x >> int(rng.integers(0, 68)) for x in whole]
    exponent = rng.choice([-60, -149, -190, 70], 3000) + rng.integers(-20, 20, 3000)
    acc = np.ldexp(rng.integers(-(1 << 24), 1 << 24, 3000).astype(np.float32), exponent)
    acc = np.where(np.isfinite(acc), acc, 0).astype(np.float32)
    exponent = exponent.astype(np.int64) - rng.integers(0, 60, 3000)
    high, low = _float32.halves(np.array(whole, object), exponent)
    got = _float32.codes(_float32.add(acc, high, low))
    for n in range(3000):
        term = whole[n] * Fraction(2) ** int(exponent[n])
        value = add(Fraction(float(acc[n])), term)
        if value:
            assert got[n] == code_of(value)
        else:
            assert got[n] & 0x7FFFFFFF == 0


@pytest.mark.parametrize("preset", list(MxDotConfig.presets))
def test_model_is_the_definition_in_rational_numbers(preset: str) -> None:
    config = MxDotConfig.preset(preset)
    transfers = 60 * config.groups
    i = mx_dot_model.stimulus(config, np.random.default_rng(7), transfers)["i"]
    found = mx_dot_model.golden(config, {"i": i})["o"]
    implied = Fraction(1)
    if config.scale == "e8m0":
        for name in (config.format, config.b):
            implied *= Fraction(2) ** (2 - int(name[3:])) if name.startswith("int") else 1
    count, at, acc = 0, 0, None
    value: Any = Fraction(0)
    for n in range(transfers):
        if i["first"][n]:
            at, acc = 0, None
        if at == 0:
            value = Fraction(0)
        for x, y in zip(i["a"][n], i["b"][n], strict=True):
            x, y = value_of(config.format, int(x)), value_of(config.b, int(y))
            numbers = isinstance(x, Fraction) and isinstance(y, Fraction)
            term = x * y if numbers else float(x) * float(y)
            both = isinstance(value, Fraction) and isinstance(term, Fraction)
            value = value + term if both else add(value, term)
        at = (at + 1) % config.groups
        if at:
            continue
        for name in ("a_scale", "b_scale"):
            code = int(i[name][n])
            if config.scale == "e8m0":
                scale = Fraction(2) ** (code - 127) if code < 255 else math.nan
            else:
                scale = value_of("fp8_e4m3", code)
            numbers = isinstance(value, Fraction) and isinstance(scale, Fraction)
            if numbers:
                value = value * scale
            elif not isinstance(scale, Fraction):
                value = math.nan
        if isinstance(value, Fraction):
            value *= implied
        if config.accumulate == "block":
            whole = int(found["sum"][count])
            if "low" in found:
                whole = (whole << 48) + int(found["low"][count])
            if isinstance(value, Fraction):
                assert whole * Fraction(2) ** int(found["exponent"][count]) == value
                assert not found["nan"][count]
            else:
                assert found["nan"][count] == math.isnan(value)
                assert whole == 0
                if config.special:
                    assert found["plus"][count] == (value == math.inf)
                    assert found["minus"][count] == (value == -math.inf)
            assert found["last"][count] == i["last"][n]
            count += 1
            continue
        acc = add(Fraction(0) if acc is None else acc, value)
        if i["last"][n]:
            got = int(found["sum"][count])
            assert got == code_of(acc) or (acc == 0 and got & 0x7FFFFFFF == 0)
            acc, count = None, count + 1
    assert count == len(found["sum"])


@pytest.mark.parametrize(
    ("format_", "block", "scale", "bits"),
    [
        ("int8", 32, "e8m0", 21),
        ("int4", 16, "fp8_e4m3", 12),
        ("fp4_e2m1", 32, "e8m0", 14),
        ("fp4_e2m1", 16, "fp8_e4m3", 13),
        ("fp6_e2m3", 32, "e8m0", 18),
        ("fp6_e3m2", 32, "e8m0", 24),
        ("fp8_e4m3", 32, "e8m0", 42),
        ("fp8_e5m2", 32, "e8m0", 70),
    ],
)
def test_sums_have_the_bits_that_the_largest_need(
    format_: str, block: int, scale: str, bits: int
) -> None:
    """The widths of the specification's table; NVINT4 has one more, as -8 is a number here."""
    config = MxDotConfig(format=format_, block=block, scale=scale)
    most = max(
        abs(value)
        for code in range(1 << format_named(format_).width)
        if isinstance(value := value_of(format_, code), Fraction)
    )
    largest = block * most**2 / Fraction(2) ** config.dot.unit
    assert config.sum_width == bits
    assert 1 << bits - 2 <= largest < 1 << bits - 1


def pairs(config: FpMacConfig, count: int | None = None) -> dict[str, Any]:
    """All pairs of codes, each a sum of its own; or ``count`` of them."""
    width = format_named(config.format).width
    both = np.arange(1 << 2 * width)
    if count:
        both = np.random.default_rng(1).permutation(both)[:count]
    ones = np.ones(len(both), np.int64)
    return {
        "i": {"a": both >> width, "b": both & (1 << width) - 1, "first": 0 * ones, "last": ones}
    }


@pytest.mark.parametrize(
    ("format_", "count"),
    [
        ("fp4_e2m1", None),
        ("int4", None),
        ("int2", None),
        ("int3", None),
        *(pytest.param(f"int{bits}", None, marks=pytest.mark.long) for bits in (5, 6, 7)),
        *(pytest.param(name, None, marks=pytest.mark.long) for name in ("fp6_e2m3", "fp6_e3m2")),
        *(pytest.param(name, None, marks=pytest.mark.long) for name in ("fp8_e4m3", "fp8_e5m2")),
        pytest.param("int8", None, marks=pytest.mark.long),
        ("fp8_e4m3", 2000),
        ("fp8_e5m2", 2000),
    ],
)
def test_every_pair_of_codes_is_multiplied_right(format_: str, count: int | None) -> None:
    config = FpMacConfig(format=format_, max_k=1)
    inputs = pairs(config, count)
    found = fp_mac_model.golden(config, inputs)["o"]
    for n in range(0, len(inputs["i"]["a"]), 97):
        x, y = (value_of(format_, int(inputs["i"][name][n])) for name in ("a", "b"))
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            whole = int(found["sum"][n])
            if "low" in found:
                whole = (whole << 48) + int(found["low"][n])
            assert whole * Fraction(2) ** config.unit == x * y
    outcome = simulate(emit(blocks.find("fp_mac"), config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []


@pytest.mark.parametrize(
    "format_",
    [
        "fp4_e2m1",
        "int4",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("fp6_e2m3", "fp6_e3m2", "int8", "fp8_e4m3", "fp8_e5m2")
        ),
    ],
)
def test_every_pair_of_codes_goes_through_every_lane(format_: str) -> None:
    """Lanes have different pairs, so that no error of one hides behind another's."""
    config = MxDotConfig(format=format_, block=2, lanes=2, chain=2, accumulate="block")
    width = config.dot.a.width
    both = np.arange(1 << 2 * width)
    two = np.stack([both, np.random.default_rng(2).permutation(both)], axis=1)
    ones = np.ones(len(both), np.int64)
    i = {"a": two >> width, "b": two & (1 << width) - 1, "first": 0 * ones, "last": ones}
    inputs = {"i": {**i, "a_scale": 127 * ones, "b_scale": 127 * ones}}
    outcome = simulate(emit(blocks.find("mx_dot"), config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []


def _narrow(module: Any) -> Callable[..., Any]:
    whole = module.accumulated
    return lambda m, platform, width, *rest: whole(m, platform, width - 1, *rest)


def _parts(**changed: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    whole = _element_dot.parts_of

    def broken(name: str, code: Any) -> Any:
        parts = whole(name, code)
        return parts._replace(**{field: how(parts, code) for field, how in changed.items()})

    return broken


def _jam(*args: Any) -> Any:
    value, amount = args[2], args[3]
    return (value >> amount)[: len(value)]


FP32 = {"format": "fp4_e2m1", "block": 4, "lanes": 2, "chain": 2}
BLOCK = {"format": "fp8_e5m2", "block": 4, "lanes": 2, "chain": 2, "accumulate": "block"}
FAULTS: dict[str, tuple[str, dict[str, Any], Any, str, Callable[[], Any]]] = {
    "a block's sum one bit narrower": (
        *("mx_dot", {**FP32, "accumulate": "block"}, mx_dot, "accumulated"),
        lambda: _narrow(mx_dot),
    ),
    "an accumulator one bit narrower": (
        *("fp_mac", {"format": "int4", "max_k": 16}, fp_mac, "accumulated"),
        lambda: _narrow(fp_mac),
    ),
    "subnormals of the wrong exponent": (
        *("mx_dot", BLOCK, _element_dot, "parts_of"),
        lambda: _parts(exponent=lambda parts, code: code[2:7]),
    ),
    "subnormals taken for normal numbers": (
        *("mx_dot", BLOCK, _element_dot, "parts_of"),
        lambda: _parts(significand=lambda parts, code: parts.significand | 4),
    ),
    "infinity times zero is infinite": (
        *("fp_mac", {"format": "fp8_e5m2", "max_k": 8}, _element_dot, "parts_of"),
        lambda: _parts(zero=lambda parts, code: Const(0, 1)),
    ),
    "NaN of an element forgotten": (
        *("mx_dot", BLOCK, mx_dot, "held_flags"),
        lambda: (
            lambda m, flags, starts, moves, total: _element_dot.held_flags(
                m, flags, Const(1, 1), moves, total
            )
        ),
    ),
    "bits shifted out forgotten": (
        *("mx_dot", FP32, _float_accumulate, "jammed"),
        lambda: _jam,
    ),
    "one place fewer than three": (
        *("mx_dot", FP32, FloatAccumulateConfig, "precision"),
        lambda: property(lambda config: max(config.width, 24) + 1),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_inside_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_name, values, module, attribute, replacement = FAULTS[name]
    block = blocks.find(block_name)
    config = block.config.of(values)
    sound = emit(block, config, fresh=True)
    monkeypatch.setattr(module, attribute, replacement())
    broken = emit(block, config, fresh=True)
    monkeypatch.undo()
    assert broken.text != sound.text
    outcome = simulate(broken, transfers=1500, modes=["free"], simulator="icarus")
    assert outcome.mismatches


def test_configs_that_cannot_be_say_why() -> None:
    with pytest.raises(ValueError, match=r"lanes must be at most block \(4\), not 8"):
        MxDotConfig(block=4, lanes=8)
    with pytest.raises(ValueError, match="steps must be 1, 2 or 4, not 3"):
        MxDotConfig(steps=3)
    with pytest.raises(ValueError, match="more than 127; take accumulate fp32"):
        FpMacConfig(format="bf16")
    with pytest.raises(ValueError, match="exact sums of bf16 products are too wide"):
        ElementDotConfig(a_format="bf16", b_format="bf16")


def test_transfers_of_a_whole_block_take_as_long_as_the_addition() -> None:
    assert MxDotConfig(lanes=32).beats == 4
    assert MxDotConfig(lanes=32, steps=1).beats == 1
    assert MxDotConfig(lanes=8).beats == 1


def costs(tmp_path: Path) -> dict[str, tuple[float, float]]:
    """LUT4 and um2 of osu018 for 16 pairs a cycle, by name of the format."""
    from atriplex.asic.flow import build as to_cells
    from atriplex.asic.library import library
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build as to_board

    found = {}
    for name, (format_, block, scale) in {
        "mxfp8": ("fp8_e4m3", 32, "e8m0"),
        "mxint8": ("int8", 32, "e8m0"),
        "nvfp4": ("fp4_e2m1", 16, "fp8_e4m3"),
        "nvint4": ("int4", 16, "fp8_e4m3"),
    }.items():
        config = MxDotConfig(format=format_, block=block, scale=scale, lanes=16, accumulate="block")
        design = emit(blocks.find("mx_dot"), config)
        out = tmp_path / "out"
        report = to_board(design, board("ulx3s-85f"), out, out_of_context=True, dsp=False)
        assert report.dsp == 0
        area = to_cells(design, library("osu018"), out).area_um2
        found[name] = (report.lut, area)
    return found


@pytest.mark.long
@pytest.mark.parametrize("preset", ["fp16", "bf16_each_cycle"])
def test_a_hundred_thousand_pairs_of_16_bits_are_multiplied_right(preset: str) -> None:
    block = blocks.find("fp_mac")
    outcome = simulate(emit(block, block.config.preset(preset)), transfers=100_000, modes=["free"])
    assert list(outcome.complaints()) == []
    assert outcome.modes[0]["transfers"] >= 100_000


@pytest.mark.long
def test_what_formats_cost_at_the_same_throughput(tmp_path: Path) -> None:
    """The paper's 0.79 for MXINT8 and 0.38 for NVINT4, by area and relative to MXFP8."""
    found = costs(tmp_path)
    for kind in (0, 1):
        of = {name: both[kind] / found["mxfp8"][kind] for name, both in found.items()}
        assert 0.5 < of["mxint8"] < 0.85
        assert of["nvint4"] < 0.45
        assert of["nvint4"] < of["nvfp4"] < of["mxint8"]
