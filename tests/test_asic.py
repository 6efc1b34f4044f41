# SPDX-License-Identifier: Apache-2.0
"""Cell libraries and the ASIC flow, on a library made up here and on real ones where they are."""

import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from atriplex.asic import flow, liberty, timing
from atriplex.asic import library as lib
from atriplex.gen import blocks, tools
from atriplex.gen.verilog import Design, emit
from atriplex.rtl.errors import AtriplexError, Missing, ToolFailed
from atriplex.sim.run import simulate

SHARED = Path(__file__).resolve().parents[2] / "shared" / "lib"
REAL = {
    "sky130_fd_sc_hd": ["sky130_fd_sc_hd_tt.lib.gz"],
    "ihp_sg13g2": ["sg13g2_stdcell_typ_1p20V_25C.lib.gz"],
    "asap7": [
        "asap7_AO_RVT_TT_nldm_211120.lib.gz",
        "asap7_INVBUF_RVT_TT_nldm_220122.lib.gz",
        "asap7_OA_RVT_TT_nldm_211120.lib.gz",
        "asap7_SEQ_RVT_TT_nldm_220123.lib.gz",
        "asap7_SIMPLE_RVT_TT_nldm_211120.lib.gz",
    ],
}

COUNTER = """
module counter(input clk, input rst, input i_valid, output reg [4:0] o_payload, output full);
  assign full = &o_payload;
  always @(posedge clk) begin
    if (i_valid) o_payload <= o_payload + 1;
    if (rst) o_payload <= 0;
  end
endmodule
"""

MEMORIES = """
module memories(input clk, input rst, input we, input re, input [1:0] be,
                input [1:0] wa, input [1:0] ra, input [3:0] wd,
                output reg [3:0] held, output reg [3:0] through, output [3:0] at_once,
                output reg [2:0] constant);
  reg [3:0] plain [0:3], fresh [0:3], bytes [0:3];
  reg [2:0] rom [0:3];
  initial begin rom[0] = 5; rom[1] = 2; rom[2] = 7; rom[3] = 4; end
  assign at_once = bytes[ra];
  always @(posedge clk) begin
    if (we) plain[wa] <= wd;
    if (re) held <= plain[ra];
    if (rst) held <= 9;
    if (we) fresh[wa] <= ~wd;
    through <= we && wa == ra ? ~wd : fresh[ra];
    if (be[0]) bytes[wa][1:0] <= wd[1:0];
    if (be[1]) bytes[wa][3:2] <= wd[3:2];
    constant <= rom[ra];
  end
endmodule
"""


def design(text: str, top: str) -> Design:
    """Hand-written Verilog as a design; the flow asks for no more than its name and text."""
    return Design(block=top, module="none", config={"size": 1}, top=top, text=text, ports=())


def _arc(sense: str, base: float) -> str:
    """A timing group whose delay grows with load (pF) and slew (ns)."""
    rows = (
        ", ".join(f"{base + 2 * load + 0.3 * slew:.4f}" for slew in (0.02, 0.1, 0.3, 0.5))
        for load in (0.005, 0.02, 0.05, 0.1)
    )
    table = "(grid) { values (" + ", ".join(f'"{row}"' for row in rows) + "); }"
    tables = " ".join(
        f"{kind} {table}"
        for kind in ("cell_rise", "rise_transition", "cell_fall", "fall_transition")
    )
    return f"timing () {{ {sense} {tables} }}"


def _gate(name: str, area: float, inputs: str, function: str, sense: str, base: float) -> str:
    pins = "".join(f"pin ({i}) {{ direction : input; capacitance : 0.01; }} " for i in inputs)
    related = " ".join(
        _arc(f'related_pin : "{i}"; timing_sense : {sense};', base + 0.01 * place)
        for place, i in enumerate(inputs)
    )
    return (
        f"cell ({name}) {{ area : {area}; {pins}"
        f'pin (Y) {{ direction : output; function : "{function}"; {related} }} }}\n'
    )


FLIP_FLOP = (
    "cell (REG) { area : 20; "
    'ff (IQ, IQN) { clocked_on : "CK"; next_state : "D"; } '
    "pin (CK) { direction : input; clock : true; capacitance : 0.01; } "
    "pin (D) { direction : input; capacitance : 0.01; "
    'timing () { related_pin : "CK"; timing_type : setup_rising; '
    'rise_constraint (scalar) { values ("0.2"); } fall_constraint (scalar) { values ("0.1"); } } } '
    'pin (Q) { direction : output; function : "IQ"; '
    + _arc('related_pin : "CK"; timing_type : rising_edge; timing_sense : non_unate;', 0.3)
    + " } }\n"
)
HEAD = """library (handmade) {
  delay_model : table_lookup;  /* a made-up process */
  time_unit : "1ns"; voltage_unit : "1V"; current_unit : "1mA";
  pulling_resistance_unit : "1kohm"; leakage_power_unit : "1nW";
  capacitive_load_unit (1, pf);
  input_threshold_pct_rise : 50; input_threshold_pct_fall : 50;
  output_threshold_pct_rise : 50; output_threshold_pct_fall : 50;
  slew_lower_threshold_pct_rise : 20; slew_lower_threshold_pct_fall : 20;
  slew_upper_threshold_pct_rise : 80; slew_upper_threshold_pct_fall : 80;
  nom_process : 1; nom_voltage : 1; nom_temperature : 25;
  lu_table_template (grid) {
    variable_1 : total_output_net_capacitance; variable_2 : input_net_transition;
    index_1 ("0.005, 0.02, 0.05, 0.1"); index_2 ("0.02, 0.1, 0.3, 0.5");
  }
"""
GATES = (
    _gate("INVX1", 4, "A", "!A", "negative_unate", 0.05)
    + _gate("INVX2", 6, "A", "A'", "negative_unate", 0.04)
    + _gate("BUFX2", 7, "A", "A", "positive_unate", 0.09)
    + _gate("NAND2", 5, "AB", "!(A * B)", "negative_unate", 0.07)
    + _gate("NOR2", 5.5, "AB", "(A + B)'", "negative_unate", 0.08)
    + _gate("XOR2", 11, "AB", "A ^ B", "non_unate", 0.12)
)
HANDMADE = HEAD + GATES + FLIP_FLOP + "}\n"


@pytest.fixture(scope="session")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> lib.Library:
    path = tmp_path_factory.mktemp("library") / "handmade.lib"
    path.write_text(HANDMADE)
    return lib.library(str(path))


@pytest.fixture(scope="module")
def counter(handmade: lib.Library, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("counter") / "out"
    stages: list[str] = []
    report = flow.build(design(COUNTER, "counter"), handmade, out, progress=stages.append)
    return report, out, stages


def real(name: str) -> str:
    """Library files beside the checkout as one word for ``library``, or a skip."""
    files = [SHARED / file for file in REAL[name]]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no Liberty files of {name} in shared/lib beside the checkout")
    return ",".join(map(str, files))


def test_reader_finds_what_cells_are(handmade: lib.Library) -> None:
    cells = handmade.liberty.cells
    assert list(cells) == ["INVX1", "INVX2", "BUFX2", "NAND2", "NOR2", "XOR2", "REG"]
    assert cells["NAND2"].table == liberty.NAND2
    assert cells["INVX2"].table == liberty.INVERTER
    assert cells["NOR2"].table == (1, 0, 0, 0)
    assert cells["REG"].state == "ff"
    assert cells["REG"].inputs == ("CK", "D")
    assert cells["XOR2"].pins[0].capacitance == pytest.approx(10)
    assert handmade.nand2_area == 5
    assert handmade.driving_cell == cells["INVX2"]
    assert handmade.load == pytest.approx(40)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("!(A B)", (1, 1, 1, 0)),
        ("A' + B", (1, 1, 0, 1)),
        ("(A ^ B) & !A", (0, 1, 0, 0)),
        ("A | B & A", (0, 0, 1, 1)),  # `and` binds tighter than `or`
        ("!A ^ B", (1, 0, 0, 1)),
        ("1", (1, 1, 1, 1)),
    ],
)
def test_functions_are_read_as_liberty_means_them(text: str, table: tuple[int, ...]) -> None:
    assert liberty.truth_table(text, ("A", "B")) == table


@pytest.mark.parametrize("text", ["A &", "(A", "A @ B", "C", "A )"])
def test_a_broken_function_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        liberty.truth_table(text, ("A", "B"))


def test_reader_takes_compressed_and_several_files(tmp_path: Path) -> None:
    gates, registers = tmp_path / "gates.lib", tmp_path / "registers.lib.gz"
    gates.write_text(HEAD + GATES + "}\n")
    registers.write_bytes(gzip.compress((HEAD + FLIP_FLOP + "}\n").encode()))
    both = lib.library(f"{gates},{registers}")
    assert both.files == (gates, registers)
    assert both.liberty.cells.keys() == {*liberty.read([gates]).cells, "REG"}
    assert lib.library([str(gates), str(registers)]).liberty.flip_flops[0].name == "REG"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"cells of all kinds", "it does not begin with library"),
        (HANDMADE[: len(HANDMADE) * 2 // 3].encode(), "groups are never closed"),
        ((HEAD + "}\n").encode(), "has no cells"),
        (gzip.compress(HANDMADE.encode())[:200], "damaged gzip file"),
        (HANDMADE.replace("area : 5;", "area : few;").encode(), "cell NAND2: area: could not"),
        ((HEAD + "cell (A) { pin (Y) { direction : output; } } }").encode(), "cell A has no area"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.lib"
    path.write_bytes(content)
    with pytest.raises(liberty.LibertyError, match=words) as caught:
        lib.library(str(path))
    assert str(path) in str(caught.value)
    assert caught.value.exit_status == 2


def test_unknown_and_absent_libraries_are_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PDK_ROOT", raising=False)
    monkeypatch.delenv("FLOW_HOME", raising=False)
    with pytest.raises(AtriplexError, match="no library 'sky130_fd_sc_hs'; is it sky130_fd_sc_hd"):
        lib.library("sky130_fd_sc_hs")
    with pytest.raises(Missing, match="gf180mcu are not on this machine; install the open PDK"):
        lib.library("gf180mcu")
    with pytest.raises(AtriplexError, match="no Liberty file "):
        lib.library(str(tmp_path / "none.lib"))
    assert set(lib.libraries()) == {
        "asap7", "gf180mcu", "ihp_sg13g2", "nangate45", "osu018", "sky130_fd_sc_hd",
    }  # fmt: skip
    assert all(library.get and library.title for library in lib.libraries().values())


def test_libraries_are_found_by_environment_alias_and_user_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pdk = tmp_path / "pdk"
    file = pdk / "ihp-sg13g2/libs.ref/sg13g2_stdcell/lib/sg13g2_stdcell_typ_1p20V_25C.lib"
    file.parent.mkdir(parents=True)
    file.write_text(HANDMADE)
    monkeypatch.setenv("PDK_ROOT", str(pdk))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert lib.library("ihp-sg13g2").files == (file,)
    assert lib.library("ihp-sg13g2").name == "ihp_sg13g2"

    config = tmp_path / "config" / "atriplex" / "config.yaml"
    config.parent.mkdir(parents=True)
    own = tmp_path / "own.lib"
    own.write_text(HANDMADE)
    config.write_text(f"libraries:\n  nangate45: {own}\n  house: [{own}]\n")
    assert lib.library("nangate45").files == (own,)
    assert lib.library("house").nand2_area == 5
    assert lib.libraries()["house"].present()

    config.write_text(f"libraries: {{house: {tmp_path}/gone.lib}}\n")
    assert not lib.libraries()["house"].present()
    with pytest.raises(Missing, match=r"gone\.lib for library house, which is not there"):
        lib.library("house")
    config.write_text("libraries: {house: 3}\n")
    with pytest.raises(AtriplexError, match="libraries must map names to paths"):
        lib.libraries()


def test_a_netlist_comes_with_area_timing_and_pages(counter) -> None:
    report, out, stages = counter
    cells = report.cells_by_type
    areas = {"INVX1": 4, "INVX2": 6, "BUFX2": 7, "NAND2": 5, "NOR2": 5.5, "XOR2": 11, "REG": 20}
    assert report.area_um2 == pytest.approx(sum(areas[name] * n for name, n in cells.items()))
    assert report.nand2_equivalents == pytest.approx(report.area_um2 / 5, abs=0.1)
    assert report.cells == sum(cells.values())
    assert report.flip_flops == cells["REG"] == 5
    assert report.flip_flop_area_share == pytest.approx(100 / report.area_um2, abs=1e-4)
    assert report.library == "handmade" and report.gate_sim_passed is None
    assert (
        report.critical_path["end"].startswith("o_payload") or report.critical_path["end"] == "full"
    )
    assert report.timing_limits and report.tools["yosys"]
    assert stages == ["library", "synthesis", "mapping for area", "timing", "cell models"]
    assert stages == list(report.seconds)
    stored = json.loads((out / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.json()))
    assert "Longest path: from" in (out / "report.md").read_text()
    assert [path.name for path in flow.gate_sources(out)] == [report.netlist, "cells.v"]
    everything = "".join(p.read_text() for p in out.iterdir() if p.is_file())
    assert str(out.parent) not in everything


def prove_equal(
    design: Design, sources: list[Path], folder: Path, steps: int, start: str = "-set-init-zero"
) -> None:
    """Exhaustive over all inputs for so many cycles from ``start``, by yosys's solver."""
    folder.mkdir()
    (folder / "gold.v").write_text(design.text)
    for source in sources:
        shutil.copy(source, folder)
    gate = " ".join(source.name for source in sources)
    top = design.top
    script = f"""
        read_verilog gold.v
        hierarchy -top {top}
        proc; flatten; memory; setattr -unset init w:*; opt_clean; rename {top} gold
        design -stash gold
        read_verilog {gate}
        hierarchy -top {top}
        proc; flatten; memory; opt_clean; rename {top} gate
        design -stash gate
        design -copy-from gold gold
        design -copy-from gate gate
        miter -equiv -flatten -make_outputs gold gate both
        hierarchy -top both
        sat -verify -seq {steps} {start} -prove trigger 0 both
    """
    (folder / "prove.ys").write_text(script)
    tools.run(tools.find("yosys"), ["-q", "prove.ys"], cwd=folder, log=folder / "log")


def test_the_netlist_computes_what_the_design_does(counter, tmp_path: Path) -> None:
    _, out, _ = counter
    prove_equal(design(COUNTER, "counter"), flow.gate_sources(out), tmp_path / "same", 6)
    other = design(COUNTER.replace("+ 1", "+ 3"), "counter")
    with pytest.raises(ToolFailed):
        prove_equal(other, flow.gate_sources(out), tmp_path / "other", 6)


def test_reset_is_enough_whatever_the_registers_hold_at_power_up(
    handmade: lib.Library, tmp_path: Path
) -> None:
    moves = "".join(f"{state}: state <= i ? {state + 1} : {state ^ 1};" for state in range(5))
    text = "module walk(input clk, input rst, input i, output [1:0] o); reg [2:0] state = 0;\n"
    text += f"always @(posedge clk) begin case (state) {moves} default: state <= 0; endcase\n"
    text += "if (rst) state <= 0; end assign o = {state == 2, state == 4}; endmodule"
    flow.build(design(text, "walk"), handmade, tmp_path / "out")
    sources = flow.gate_sources(tmp_path / "out")
    reset = "-set-at 1 in_rst 1 -prove-skip 1"
    prove_equal(design(text, "walk"), sources, tmp_path / "proof", 6, reset)


def test_memories_become_macros_that_behave(handmade: lib.Library, tmp_path: Path) -> None:
    whole = design(MEMORIES, "memories")
    out = tmp_path / "out"
    report = flow.build(whole, handmade, out, memory_bits=0)
    kinds = {memory.macro: (memory.count, memory.bits) for memory in report.memories}
    rom = next(name for name in kinds if name.startswith("rom_4x3_1r_"))
    assert kinds[rom] == (1, 12)
    assert kinds["mem_4x4_1r1w_be2_comb"] == (1, 16)
    assert kinds["mem_4x4_1r1w_rst"] == (1, 16)
    assert report.memory_bits == 12 + 3 * 16
    assert report.area_um2 < 600  # the bits are not in it
    assert (out / "memories.v") in flow.gate_sources(out)
    prove_equal(whole, flow.gate_sources(out), tmp_path / "proof", 5)


def test_small_memories_become_flip_flops(handmade: lib.Library, tmp_path: Path) -> None:
    whole = design(MEMORIES, "memories")
    report = flow.build(whole, handmade, tmp_path / "out", memory_bits=16)
    assert report.memories == ()
    assert report.flip_flops >= 3 * 16
    prove_equal(whole, flow.gate_sources(tmp_path / "out"), tmp_path / "proof", 3)


def test_a_missed_target_and_a_failed_simulation_are_said(
    handmade: lib.Library, tmp_path: Path
) -> None:
    seen: list[Path] = []

    def wrong(sources: list[Path]) -> bool:
        seen.extend(sources)
        return not all(path.is_file() for path in sources)

    report = flow.build(
        design(COUNTER, "counter"), handmade, tmp_path / "out", target_mhz=5000, gate_sim=wrong
    )
    assert len(seen) == 2
    assert report.mapping == "speed" and report.met is False and report.gate_sim_passed is False
    slow, failed = report.complaints()
    assert "not 5000; the path from" in slow and "failed its simulation" in failed
    easy = flow.build(design(COUNTER, "counter"), handmade, tmp_path / "easy", target_mhz=1)
    assert easy.met is True and easy.mapping == "area" and easy.complaints() == []
    with pytest.raises(AtriplexError, match="must be above 0 MHz, not -3"):
        flow.build(design(COUNTER, "counter"), handmade, tmp_path / "no", target_mhz=-3)


def test_nets_with_many_readers_are_buffered(handmade: lib.Library, tmp_path: Path) -> None:
    text = "module wide(input clk, input en, input [99:0] d, output reg [99:0] q);\n"
    text += "always @(posedge clk) if (en) q <= d; endmodule"
    report = flow.build(design(text, "wide"), handmade, tmp_path / "out")
    netlist = (tmp_path / "out" / report.netlist).read_text()
    readers = Counter(net for pin, net in re.findall(r"\.(\w+)\((.*)\)", netlist) if pin in "ABD")
    assert report.flip_flops == 100
    assert 1 < max(readers.values()) <= flow.FAN_OUT


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (GATES, "library partial has no flip-flop, which counter needs"),
        (FLIP_FLOP, "library partial has no inverter"),
        (GATES.split("cell (NAND2)")[0] + FLIP_FLOP, "library partial has no gate with two inputs"),
    ],
)
def test_a_library_that_lacks_cells_is_refused(tmp_path: Path, cells: str, words: str) -> None:
    path = tmp_path / "partial.lib"
    path.write_text(HEAD + cells + "}\n")
    with pytest.raises(AtriplexError, match=words):
        flow.build(design(COUNTER, "counter"), lib.library(str(path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("!(A * B)", "!(A * ", "broke down on library bad"),
        ("lu_table_template", "other_template", "broke down on library bad"),
        ('("0.2")', '("soon")', "the timing of cell REG cannot be read: could not"),
        ('values ("0.2")', 'values ("0.2, 0.3")', "cell REG cannot be read: 2 values for 0 by 0"),
    ],
)
def test_a_library_with_bad_tables_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str, bad: str, words: str
) -> None:
    hide_opensta(monkeypatch)
    path = tmp_path / "bad.lib"
    path.write_text(HANDMADE.replace(good, bad))
    with pytest.raises(AtriplexError, match=words):
        flow.build(design(COUNTER, "counter"), lib.library(str(path)), tmp_path / "out")


def test_a_failed_tool_leaves_its_log_and_no_folder(handmade: lib.Library, tmp_path: Path) -> None:
    broken = design("module counter(input clk); syntax error endmodule", "counter")
    with pytest.raises(ToolFailed, match="yosys failed") as caught:
        flow.build(broken, handmade, tmp_path / "out")
    assert caught.value.log is not None and caught.value.log.is_file()
    assert list(tmp_path.iterdir()) == []


def test_own_timing_counts_every_part_of_a_path(
    handmade: lib.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_opensta(monkeypatch)
    text = "module pair(input clk, input d, output reg q); reg a;\n"
    text += "always @(posedge clk) begin a <= d; q <= ~a; end endmodule"
    report = flow.build(design(text, "pair"), handmade, tmp_path / "out")
    assert report.timing_engine == "atriplex"
    assert "OpenSTA is absent" in report.timing_limits
    # a is clocked, rises (slew as delay) into the load of one input, passes an inverter into the
    # load of one input and needs the longer of the two setup times.
    clock_to_a = 0.3 + 2 * 0.01
    inverter = {"INVX1": 0.05, "INVX2": 0.04}
    (used,) = inverter.keys() & report.cells_by_type.keys()
    path = clock_to_a + inverter[used] + 2 * 0.01 + 0.3 * clock_to_a + 0.2
    assert report.critical_path["delay_ns"] == pytest.approx(path, abs=2e-4)
    assert (report.critical_path["start"], report.critical_path["end"]) == ("a", "q")


def hide_opensta(monkeypatch: pytest.MonkeyPatch) -> None:
    find = tools.find

    def without(name: str) -> tools.Tool:
        if name == "sta":
            raise Missing("sta is not installed")
        return find(name)

    monkeypatch.setattr(tools, "find", without)


def need_opensta() -> None:
    try:
        tools.find("sta")
    except Missing:
        pytest.skip("OpenSTA is not installed")


def compare_engines(
    library: lib.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Design
) -> None:
    need_opensta()
    opensta = flow.build(whole, library, tmp_path / "opensta", memory_bits=0)
    hide_opensta(monkeypatch)
    own = flow.build(whole, library, tmp_path / "own", memory_bits=0)
    assert (opensta.timing_engine, own.timing_engine) == ("opensta", "atriplex")
    assert own.critical_path["delay_ns"] == pytest.approx(
        opensta.critical_path["delay_ns"], rel=0.02
    )


@pytest.mark.parametrize("text", [COUNTER, MEMORIES], ids=["counter", "memories"])
def test_own_timing_agrees_with_opensta(
    handmade: lib.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    top = "counter" if text is COUNTER else "memories"
    compare_engines(handmade, tmp_path, monkeypatch, design(text, top))


@pytest.mark.parametrize("own", [True, False], ids=["own", "opensta"])
def test_a_design_without_paths_has_no_clock_limit(
    handmade: lib.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    hide_opensta(monkeypatch) if own else need_opensta()
    text = "module fixed(input clk, output [1:0] o); assign o = 2; endmodule"
    report = flow.build(design(text, "fixed"), handmade, tmp_path / "out", target_mhz=100)
    assert report.fmax_mhz is None and report.met is None
    assert report.cells_by_type == {"BUFX2": 2}  # an output is never tied to a constant directly
    assert "no path to time" in (tmp_path / "out" / "report.md").read_text()


def test_a_loop_cannot_be_timed(
    handmade: lib.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_opensta(monkeypatch)
    cell = {"type": "INVX1", "connections": {"A": [2], "Y": [2]}}
    module = {"ports": {}, "cells": {"loop": cell}, "netnames": {}}
    with pytest.raises(ToolFailed, match="combinational loop"):
        timing.longest_path(timing.Netlist("x", module), handmade, [])


def gate_run(
    name: str, preset: str, library: lib.Library, out: Path, transfers: int
) -> flow.Report:
    block = blocks.find(name)
    whole = emit(block, block.config.preset(preset))
    kind = "icarus" if shutil.which("iverilog") else "verilator"

    def passes(sources: list[Path]) -> bool:
        outcome = simulate(whole, transfers=transfers, simulator=kind, sources=sources)
        return outcome.passed

    return flow.build(whole, library, out, gate_sim=passes)


def test_a_block_works_as_gates_under_the_generic_bench(
    handmade: lib.Library, tmp_path: Path
) -> None:
    report = gate_run("ternary_dot", "tiny", handmade, tmp_path / "out", 100)
    assert report.gate_sim_passed is True
    assert report.complaints() == []


@pytest.mark.parametrize("name", REAL)
def test_real_libraries_are_recognised_and_read_fast(name: str) -> None:
    found = lib.library(real(name))
    assert found.name == name
    assert found.liberty.flip_flops
    assert found.nand2_area == found.liberty.cells[found.nand2 or ""].area
    assert found.liberty.tie(0) and found.liberty.tie(1)
    assert len(found.liberty.cells) > 80


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_blocks_work_as_gates_of_real_libraries(name: str, tmp_path: Path) -> None:
    report = gate_run("ternary_dot", "tiny", lib.library(real(name)), tmp_path / "out", 1000)
    assert report.gate_sim_passed is True


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_own_timing_agrees_with_opensta_on_real_libraries(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = lib.library(real(name))
    compare_engines(library, tmp_path, monkeypatch, design(COUNTER, "counter"))


@pytest.mark.long
def test_osu018_of_debian_works(tmp_path: Path) -> None:
    if not lib.libraries()["osu018"].present():
        pytest.skip("the Debian package qflow-tech-osu018 is not installed")
    report = gate_run("ternary_dot", "tiny", lib.library("osu018"), tmp_path / "out", 1000)
    assert report.gate_sim_passed is True
    assert lib.library("osu018").nand2_area == 24
