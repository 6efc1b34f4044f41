# SPDX-License-Identifier: Apache-2.0
"""Energy from switching: nets that are known to switch, and what that costs."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from atriplex.asic import power
from atriplex.asic.flow import build
from atriplex.asic.library import libraries
from atriplex.gen.verilog import Design, Port
from atriplex.rtl.errors import AtriplexError

CELLS = libraries()["osu018"]
pytestmark = pytest.mark.skipif(
    not CELLS.present(),
    reason="needs the cells of osu018 (apt-get install qflow-tech-osu018)",
)


def mapped(text: str, ports: tuple[Port, ...], folder: Path) -> Path:
    design = Design("d", "atriplex.rtl.d", {}, "d", text, ports)
    return folder / build(design, CELLS, folder).netlist


def energy(netlist: Path, drive: power.Drive, cycles: int = 40) -> power.Energy:
    log = netlist.parent / "energy.log"
    return power.estimate(netlist, "d", CELLS, drive, runs=64, cycles=cycles, log=log)


def bits(value: int, width: int) -> np.ndarray:
    return np.tile(value >> np.arange(width) & 1, (64, 1)).astype(np.uint8)


REGISTER = (
    "module d(input clk, input a, output reg q);\n  always @(posedge clk) q <= a;\nendmodule\n"
)
PORTS = (Port("clk", 1, "input"), Port("a", 1, "input"), Port("q", 1, "output"))


def test_a_register_that_rests_costs_its_clock_alone(tmp_path: Path) -> None:
    netlist = mapped(REGISTER, PORTS, tmp_path)
    rests = energy(netlist, lambda cycle: {"a": bits(0, 1)})
    turns = energy(netlist, lambda cycle: {"a": bits(cycle & 1, 1)})
    assert rests.switching == rests.internal == rests.toggles == 0
    assert rests.clock == turns.clock > 0
    volts, pins = 1.8, [p.capacitance for p in CELLS.liberty.cells["DFFPOSX1"].pins]
    assert max(pins) < 100  # fF
    # The net of `a` turns over in every cycle, and costs half of C V^2 each time.
    (data,) = (p.capacitance for p in CELLS.liberty.cells["DFFPOSX1"].pins if p.name == "D")
    assert turns.switching >= data * 1e-3 * volts**2 / 2
    assert turns.toggles == 1


def test_half_the_toggles_cost_half(tmp_path: Path) -> None:
    netlist = mapped(REGISTER, PORTS, tmp_path)
    often = energy(netlist, lambda cycle: {"a": bits(cycle & 1, 1)}, 44)
    seldom = energy(netlist, lambda cycle: {"a": bits(cycle >> 1 & 1, 1)}, 44)
    assert seldom.switching == pytest.approx(often.switching / 2, rel=0.05)


def test_a_counter_toggles_as_counters_do(tmp_path: Path) -> None:
    """Bit n of a counter turns over every 2**n cycles: that adds up to 2 a cycle."""
    text = (
        "module d(input clk, input rst, output reg [7:0] q);\n"
        "  always @(posedge clk) q <= rst ? 8'd0 : q + 8'd1;\nendmodule\n"
    )
    ports = (Port("clk", 1, "input"), Port("rst", 1, "input"), Port("q", 8, "output"))
    netlist = mapped(text, ports, tmp_path)
    log = tmp_path / "log"
    found = power.simulated(
        netlist, "d", CELLS, lambda cycle: {"rst": bits(cycle < 2, 1)}, 64, 12 + 256, log
    )
    rates = found.rates("q")
    assert rates == pytest.approx([2.0**-n for n in range(8)], rel=0.02)


@pytest.mark.parametrize("clocked", [True, False])
def test_a_memory_gives_what_was_written(clocked: bool, tmp_path: Path) -> None:
    """It is written 0, 3, 6 ... in turn, and read 8 words behind."""
    read = "always @(posedge clk) q <= m[a];" if clocked else "always @* q = m[a];"
    text = (
        "module d(input clk, input [7:0] a, input [31:0] x, output reg [31:0] q);\n"
        "  reg [31:0] m [0:255];\n  wire [7:0] w = a + 8'd8;\n"
        f"  always @(posedge clk) m[w] <= x;\n  {read}\nendmodule\n"
    )
    ports = (
        *(Port("clk", 1, "input"), Port("a", 8, "input"), Port("x", 32, "input")),
        Port("q", 32, "output"),
    )
    netlist = mapped(text, ports, tmp_path)
    assert "mem_256x32" in netlist.read_text()
    drive = lambda cycle: {"a": bits(cycle, 8), "x": bits(3 * cycle, 32)}  # noqa: E731
    count, late = 12 + 256, 8 + clocked
    found = power.simulated(netlist, "d", CELLS, drive, 64, count, tmp_path / "log")
    told = [3 * (cycle - late) for cycle in range(11, count)]
    expected = [
        sum((a ^ b) >> bit & 1 for a, b in itertools.pairwise(told)) / 256 for bit in range(9)
    ]
    assert found.rates("q")[:9] == pytest.approx(expected, abs=0.02)
    assert found.rates("q")[31] == 0


def test_what_cannot_be_simulated_is_named(tmp_path: Path) -> None:
    netlist = tmp_path / "n.v"
    netlist.write_text("module d(input a, output y);\n  STRANGE s (.A(a), .Y(y));\nendmodule\n")
    with pytest.raises(AtriplexError, match="the energy of STRANGE is not known"):
        energy(netlist, lambda cycle: {"a": bits(0, 1)})
