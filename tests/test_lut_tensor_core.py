# SPDX-License-Identifier: Apache-2.0
"""The table-lookup tensor core: its arithmetic, its claims, and the core broken inside."""

import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import verilog as amaranth_verilog
from atriplex.gen import blocks
from atriplex.gen.studies.lookup_choices import CHOICES, lookup_choices
from atriplex.gen.verilog import Design, convert, emit
from atriplex.rtl.lut import _lookup
from atriplex.rtl.lut import lut_tensor_core as rtl
from atriplex.rtl.lut._table_mux import TableMux, TableMuxConfig
from atriplex.rtl.lut.lut_tensor_core import LutTensorCoreConfig
from atriplex.sim.lut import lut_tensor_core as model
from atriplex.sim.run import simulate
from atriplex.sim.types import Streams

SMALL = {"m": 1, "n": 3, "max_k": 64}
ARRAYS = {
    "paper": {},
    "published RTL": {"sign_bit": "lsb"},
    "inline": {"remap": "inline"},
    "inline, lsb": {"remap": "inline", "sign_bit": "lsb"},
    "whole tables": {"half_table": False, "table_width": 11},
    "pairs": {"k": 2, "groups": 4},
    "threes": {"k": 3, "groups": 2, "m": 2},
    "sixes": {"k": 6, "table_width": 11},
    "made inside": {"precompute": True},
    "made inside, lsb": {"precompute": True, "sign_bit": "lsb", "k": 3},
}


def core(**values: Any) -> LutTensorCoreConfig:
    return LutTensorCoreConfig.of({**SMALL, **values})


def outputs(config: LutTensorCoreConfig, inputs: Streams) -> Any:
    """What the RTL gives, which the bench has found equal to the golden model."""
    design = emit(blocks.find("lut_tensor_core"), config)
    outcome = simulate(design, inputs=inputs, modes=["free"], simulator="icarus")
    assert list(outcome.complaints()) == []
    return model.golden(config, inputs)["o"], outcome.cycles


# Arithmetic


@pytest.mark.parametrize("bits", range(1, 9))
def test_reinterpreted_weights_are_the_same_weights(bits: int) -> None:
    codes, zeros = np.meshgrid(np.arange(1 << bits), np.arange(-3, (1 << bits) + 3))
    odd, odd_zero = model.reinterpreted(codes, bits, zeros)
    assert (2 * (codes - zeros) == odd - odd_zero).all()
    planes = codes[..., None] >> np.arange(bits) & 1
    assert (odd == ((2 * planes - 1) << np.arange(bits)).sum(axis=-1)).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ARRAYS)
def test_model_is_the_matrix_product(name: str, bits: int) -> None:
    config = core(**ARRAYS[name], max_bits=bits)
    rng = np.random.default_rng(1)
    size = 3 * config.depth
    acts = rng.integers(-128, 128, (config.m, size))
    codes = rng.integers(0, 1 << bits, (config.n, size))
    out = model.golden(config, model.product(config, acts, codes, bits))["o"]
    odd, odd_zero = model.reinterpreted(codes, bits, 5)
    assert out["sums"].tolist() == [(acts @ odd.T).tolist()]
    if config.zero_point:
        whole = out["sums"] - odd_zero * out["activations"][..., None]
        assert whole.tolist() == [(2 * acts @ (codes - 5).T).tolist()]


@pytest.mark.parametrize("sign_bit", ["msb", "lsb"])
@pytest.mark.parametrize("k", range(2, 7))
def test_halves_of_tables_hold_all_of_int8(k: int, sign_bit: str) -> None:
    """Ten bits for tables of four: the leading activation of what is stored is always added."""
    config = core(k=k, sign_bit=sign_bit)
    corners = np.array(list(itertools.product((-128, 127), repeat=k)))
    entries = model.tables(config, corners)
    assert -(1 << config.exact_width - 1) <= entries.min()
    assert entries.max() < 1 << config.exact_width - 1
    assert LutTensorCoreConfig().exact_width == LutTensorCoreConfig().table_width == 10


@pytest.mark.parametrize("sign_bit", ["msb", "lsb"])
def test_a_half_table_is_lossless_for_every_pattern(sign_bit: str) -> None:
    """All 16 patterns at once, a column each, on half and on whole tables, in RTL."""
    rng = np.random.default_rng(2)
    acts = rng.integers(-127, 128, (1, 4 * 40))
    acts[0, :16] = [-127] * 4 + [127] * 4 + [0] * 4 + [-128, 127, -128, 127]
    codes = np.tile(np.arange(16)[:, None] >> np.arange(4) & 1, 40)
    values = {"n": 16, "max_k": 160, "max_bits": 1, "table_width": 11}
    half, whole = core(**values, sign_bit=sign_bit), core(**values, half_table=False)
    found = [outputs(each, model.product(each, acts, codes, 1))[0] for each in (half, whole)]
    assert found[0]["sums"].tolist() == found[1]["sums"].tolist()
    assert found[0]["sums"].tolist() == [(acts @ (2 * codes - 1).T).tolist()]


def test_ternary_weights_are_halves_of_two_equal_planes() -> None:
    config, rng = core(n=9, max_bits=2), np.random.default_rng(3)
    acts, trits = rng.integers(-128, 128, (1, 32)), rng.integers(-1, 2, (9, 32))
    codes = np.choose(trits + 1, (0, 1, 3))  # both signs minus, one of each, both plus
    out, _ = outputs(config, model.product(config, acts, codes, 2, equal=True))
    assert out["sums"].tolist() == [(2 * acts @ trits.T).tolist()]


def test_stimulus_reaches_the_largest_sums_there_are() -> None:
    config = LutTensorCoreConfig.preset("tiny")
    inputs = model.stimulus(config, np.random.default_rng(1), 10_000)
    sums = model.golden(config, inputs)["o"]["sums"]
    most = config.terms * ((1 << config.max_bits) - 1) << config.table_width - 1
    assert sums.max() == most < 1 << config.acc_width - 1
    assert sums.min() == -most


def test_quantised_tables_stay_symmetric_and_err_by_half_a_step() -> None:
    """By the rule: a scale for a row, ties to even, and as far down as up."""
    assert model.quantised(np.array([[[-254.0, 254, 1, 3, 5, -127]]]))[0].tolist() == [
        [[-127, 127, 0, 2, 2, -64]]
    ]
    config, rng = core(half_table=False, table_width=8, max_bits=2), np.random.default_rng(4)
    acts, codes = rng.integers(-128, 128, (1, 64)), rng.integers(0, 4, (3, 64))
    exact = model.tables(config, acts.reshape(1, 16, 1, 4))
    entries, scale = model.quantised(exact)
    assert (entries == -entries[..., ::-1]).all()
    assert np.abs(entries * scale - exact).max() <= scale[0] / 2
    inputs = model.product(config, acts, codes, 2, entries=entries)
    sums = model.golden(config, inputs)["o"]["sums"] * scale
    wanted = acts @ model.reinterpreted(codes, 2)[0].T
    assert np.abs(sums - wanted).max() <= 16 * 3 * scale[0] / 2
    assert np.abs(sums - wanted).max() > 0


@pytest.mark.parametrize("spread", [30, None])
def test_quantised_tables_cost_less_than_a_hundredth_of_a_sum(spread: float | None) -> None:
    """Root mean square, of 4096 products of weights of 2 bits; activations normal or uniform."""
    config, rng = core(n=64, max_k=4096, table_width=8, max_bits=2), np.random.default_rng(5)
    acts = rng.integers(-127, 128, (1, 4096))
    if spread:
        acts = np.clip(np.rint(rng.normal(0, spread, acts.shape)), -127, 127).astype(np.int64)
    codes = rng.integers(0, 4, (64, 4096))
    entries, scale = model.quantised(model.tables(config, acts.reshape(1, 1024, 1, 4)))
    inputs = model.product(config, acts, codes, 2, entries=entries)
    wanted = acts @ model.reinterpreted(codes, 2)[0].T
    wrong = model.golden(config, inputs)["o"]["sums"][0] * scale - wanted
    assert 0.005 < np.sqrt((wrong**2).mean() / (wanted.astype(float) ** 2).mean()) < 0.01


# Half precision


def halves(values: Any) -> Any:
    return np.asarray(values, np.float16).view(np.uint16).astype(np.int64)


def test_planes_double_zeros_subnormals_and_the_largest_halves() -> None:
    """The corners that break an exponent to which the number of the plane is added."""
    config = core(activations="fp16", max_bits=4, operand=True)
    entries = np.zeros((6, 1, 1, 8), np.int64)
    entries[:, 0, 0, 0] = [*halves([0.0, 2.0**-24, 2.0**-15, 30000.0, -4e4]), 0x7E01]
    inputs = model.product(config, np.zeros((1, 24)), np.zeros((3, 24), np.int64), 4)
    inputs["table_i"]["tables"] = entries[:, :, 0]
    i = inputs["i"]
    i["weights"][:] = 0
    i["weights"][:, 2] = 8  # the negatives
    i["first"], i["last"] = i["first"] * 0, i["tile_last"]
    i["c"][:] = halves(1.0)
    i["c"][:8] = halves(0.0)
    out, _ = outputs(config, inputs)
    wanted = [0.0, 15 * 2.0**-24, 1 + 15 * 2.0**-15, np.inf, -np.inf]
    assert out["sums"][:5, 0, 0].tolist() == halves(wanted).tolist()
    assert out["sums"][3, 0, 2] == 0xFC00
    assert out["sums"][5, 0].tolist() == [0x7E00] * 3


def test_sums_of_halves_are_rounded_in_their_order() -> None:
    """C, plane 0, plane 1: 2048 + 1 is a tie and stays 2048; the sum of all would be 2052."""
    config = core(activations="fp16", max_bits=2, operand=True)
    inputs = model.product(config, np.zeros((1, 4)), np.zeros((3, 4), np.int64), 2)
    inputs["table_i"]["tables"] = np.broadcast_to(halves(1.0), (1, 1, 8))
    inputs["i"]["weights"][:] = 0
    inputs["i"]["c"][0] = halves(2048.0)
    out, _ = outputs(config, inputs)
    assert out["sums"][0, 0].tolist() == halves([2050.0] * 3).tolist()
    assert halves(2048.0 + 1 + 2) == halves(2052.0)


# Cycles, storage and cells


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_tile_takes_a_cycle_for_each_bit(bits: int) -> None:
    config, rng = core(n=2, table_beats=2), np.random.default_rng(5)
    acts, codes = rng.integers(-128, 128, (1, 64)), rng.integers(0, 1 << bits, (2, 64))
    _, taken = outputs(config, model.product(config, acts, codes, bits))
    first = config.table_beats  # until the first tables are there
    assert taken == first + 16 * max(bits, config.table_beats) + config.latency - max(0, 2 - bits)


def flip_flops(config: LutTensorCoreConfig) -> int:
    """Bits of registers that tables are kept in."""
    text = emit(blocks.find("lut_tensor_core"), config).text
    found = re.findall(r"^  reg \[(\d+):0\] table_\d+_\d+(?:\$\d+)?[ ;]", text, re.MULTILINE)
    return sum(int(high) + 1 for high in found)


@pytest.mark.parametrize("values", [{"max_bits": 1}, {"activations": "fp16"}, {"k": 3}])
def test_symmetry_halves_the_storage_of_tables(values: dict[str, Any]) -> None:
    config, whole = core(**values), core(**values, half_table=False)
    assert flip_flops(whole) == 2 * flip_flops(config) > 0
    assert flip_flops(config) == config.m * config.entries * config.plane_width


def test_only_the_inline_core_complements_addresses() -> None:
    offline, inline = (
        emit(blocks.find("lut_tensor_core"), core(n=16, remap=remap)).text
        for remap in ("offline", "inline")
    )
    assert len(re.findall(r"assign address_\d+_\d+ = .* \^ ", inline)) == 16
    assert "address_0" not in offline


@pytest.mark.parametrize(("address", "width"), [(2, 3), (3, 1), (3, 11), (4, 2)])
def test_mapped_multiplexers_are_what_they_say(address: int, width: int, tmp_path: Path) -> None:
    """Proved, and four LUT4 a bit of eight words."""
    from atriplex.fpga import ecp5
    from atriplex.gen import tools

    part = TableMux(TableMuxConfig(address=address, width=width))
    text = amaranth_verilog.convert(part, name="table_mux", emit_src=False)
    assert ecp5.table_muxes(text) == {"table_mux": (address, width)}
    assert ecp5.table_muxes(text.replace("invert", "negate")) == {}
    mapped = ecp5.technology_map({}, {"mapped": (address, width)})
    assert mapped.count("module mapped") == 1
    (tmp_path / "cells.v").write_text(text + mapped)
    (tmp_path / "wrong.v").write_text(mapped.replace("mapped", "wrong").replace("35CA", "35AC"))
    prove = "miter -equiv -flatten -make_outputs table_mux {0} m_{0}\nsat {1} 0 m_{0}\n"
    (tmp_path / "prove.ys").write_text(
        "read_verilog cells.v wrong.v +/ecp5/common_sim.vh\n"
        "setattr -mod -unset top table_mux\nhierarchy -check\nproc\nflatten\n"
        + prove.format("mapped", "-verify -prove trigger")
        + prove.format("wrong", "-falsify -prove trigger")
    )
    tools.run(tools.find("yosys"), ["-q", "-s", "prove.ys"], cwd=tmp_path, log=tmp_path / "log")


@pytest.mark.long
def test_costs_of_the_choices() -> None:
    """For a product a cycle, weights of 2 bits: what the paper's choices are worth, and groups.

    The published array of this tile takes 80 LUT4 and 253 NAND2 without its tables.
    """
    names = (
        *("as in the paper", "addresses complemented inside", "whole tables"),
        *("k = 2", "k = 6", "k = 2, 8 groups, tables made inside"),
    )
    rows = {row["design"]: row for row in lookup_choices({name: CHOICES[name] for name in names})}
    paper, ours = rows["as in the paper"], rows["k = 2, 8 groups, tables made inside"]

    def more(name: str, unit: str) -> float:
        return float(rows[name][unit]) / float(paper[unit])

    assert float(paper["LUT4"]) < 80 / 2
    assert float(ours["LUT4"]) < 29 and float(ours["NAND2"]) < 190
    assert more("addresses complemented inside", "LUT4") > 1.03
    assert 0.98 < more("addresses complemented inside", "NAND2") < 1.02  # no more than mapping is
    assert more("whole tables", "LUT4") > 1.6 and more("whole tables", "NAND2") > 1.35
    assert more("k = 2", "NAND2") > 1.25 and more("k = 6", "NAND2") > 1.5


def test_what_cannot_be_is_refused() -> None:
    for values, message in (
        ({"activations": "fp16", "groups": 2}, "groups must be 1 with activations fp16.*int8 may"),
        ({"half_table": False, "remap": "inline"}, "half_table must be true for remap inline"),
        ({"table_beats": 3}, "table_beats must divide the 8 entries of a row, not be 3"),
        ({"max_k": 2}, r"max_k must be at least the depth of a tile \(4\), not 2"),
        ({"precompute": True, "table_width": 8}, "table_width must be 10 with precompute"),
        ({"precompute": True, "table_beats": 2}, "table_beats must be 1 with precompute, not 2"),
        ({"precompute": True, "activations": "fp16"}, "must be false with activations fp16"),
        ({"k": 7}, r"k must be in 2\.\.6, not 7"),
        ({"activations": "int4"}, "activations must be one of int8, fp16, not 'int4'"),
    ):
        with pytest.raises(ValueError, match=message):
            core(**values)


# Broken on purpose

FAULTS: dict[str, tuple[str, Any, str, str]] = {
    "accumulator one bit narrower": (
        *("tiny", _lookup, "config.acc_width, total"),
        "config.acc_width - 1, total",
    ),
    "table one bit narrower": (
        *("tiny", rtl, "self.table_width + self.max_bits - 1"),
        "self.table_width + self.max_bits - 2",
    ),
    "no doubling": ("tiny", rtl, "else entry << 1", "else entry"),
    "equal ignored": ("tiny", rtl, "taken & ~plane.equal", "taken"),
    "doubled with the load": (
        "tiny",
        rtl,
        "m.d.sync += entry.eq(value)",
        "m.d.sync += entry.eq(value << 1)",
    ),
    "carry of a negation lost": ("tiny", _lookup, "high[0], low[1])", "high[0], 0)"),
    "negation not inverted": (
        *("tiny", _lookup, "invert=0 if config.floats else sign"),
        "invert=0 if config.floats or group else sign",
    ),
    "tables change too early": ("tiny", rtl, "free.eq(~full | ends)", "free.eq(1)"),
    "a beat in another's place": (
        "tiny",
        rtl,
        "[part.tables[row][n] for part in parts",
        "[part.tables[row][n] for part in parts[::-1]",
    ),
    "restarts a plane late": ("tiny", rtl, "run.opens[0]", "run.opens[1]"),
    "ones of every plane": ("tiny", rtl, "Mux(fresh, term, 0)", "term"),
    "address not complemented": (
        "made",
        rtl,
        "address ^ sign.replicate",
        "address ^ 0 & sign.replicate",
    ),
    "operand of every plane": (
        "made",
        _lookup,
        "Mux(self.opens, self.start, acc)",
        "self.start",
    ),
    "order of activations": (
        "made",
        rtl,
        "acts = list(self.table_i.p.acts[row][group])",
        "acts = list(self.table_i.p.acts[row][group])[::-1]",
    ),
    "zero is doubled, as published": (
        *("float", rtl, "twice(HALF, entry)"),
        "Mux(entry[10:15].all(), entry, entry + (1 << 10))",
    ),
    "beyond the largest": (
        *("float", rtl, "twice(HALF, entry)"),
        "Mux(entry[10:15] == 30, entry + (1 << 10), twice(HALF, entry))",
    ),
    "infinity is doubled": (
        *("float", rtl, "twice(HALF, entry)"),
        "Mux(entry[10:15] == 31, entry + (1 << 10), twice(HALF, entry))",
    ),
}
"""By name: a preset, a module, what is there, and what is there instead."""


def broken(fault: str) -> Design:
    """The design with a change in the source of one of its modules."""
    preset, module, sound, instead = FAULTS[fault]
    config = LutTensorCoreConfig.preset(preset)
    source = inspect.getsource(module)
    assert source.count(sound) == 1
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": rtl.__package__}
    exec(compile(source.replace(sound, instead), "broken", "exec"), names)
    if module is rtl:
        core = names["LutTensorCore"](names["LutTensorCoreConfig"].of(config.values()))
    else:
        core = rtl.LutTensorCore(config)
    with pytest.MonkeyPatch.context() as patch:
        if module is _lookup:
            patch.setattr(rtl, "Lookup", names["Lookup"])
        text, ports = convert(core, "lut_tensor_core")
    return Design("lut_tensor_core", rtl.__name__, config.values(), "lut_tensor_core", text, ports)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_inside_is_seen(fault: str) -> None:
    outcome = simulate(broken(fault), transfers=400, modes=["free"], simulator="icarus")
    assert list(outcome.complaints())
