# SPDX-License-Identifier: Apache-2.0
"""Memories of a netlist as macros: a name, ports, a behavioural model, and a stub for timing.

Cell libraries bring no memories; a memory compiler or a foundry does.  So every memory above a
number of bits stays a cell named by its shape, such as ``mem_64x512_1r1w`` (64 words of 512 bits,
one read and one write port), that stands in the netlist as a black box.  In simulation it starts
with random contents, unless it is a ROM.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..rtl.errors import AtriplexError

CELL = "$mem_v2"
PIN_PF = 0.005  # capacitance taken for every input of a macro, in picofarads


@dataclass(frozen=True)
class Port:
    """A port of a macro; ``sync`` tells those that belong to the clock from combinational ones."""

    name: str
    width: int
    direction: str
    sync: bool = True


@dataclass(frozen=True)
class Macro:
    """One shape of memory; ``text`` is its behavioural Verilog."""

    name: str
    depth: int
    width: int
    ports: tuple[Port, ...]
    text: str

    @property
    def bits(self) -> int:
        """Bits stored."""
        return self.depth * self.width


def replace(netlist: dict[str, Any], top: str, above: int) -> tuple[dict[str, int], list[Macro]]:
    """Turn the memories of a yosys JSON netlist that hold more than ``above`` bits into macros.

    Changes ``netlist``; returns the macro's name for each instance by count, and the macros.
    """
    macros: dict[str, Macro] = {}
    counts: dict[str, int] = {}
    for name, cell in netlist["modules"][top]["cells"].items():
        if cell["type"] != CELL:
            continue
        memory = _Memory(name, cell)
        if memory.depth * memory.width <= above:
            continue
        macro, connections = memory.macro()
        if macros.get(macro.name, macro) != macro:  # same shape, other habits: tell them apart
            plain = macro.name
            other = f"{plain}_{hashlib.sha256(macro.text.encode()).hexdigest()[:6]}"
            text = macro.text.replace(plain, other)
            macro = Macro(other, macro.depth, macro.width, macro.ports, text)
        macros[macro.name] = macro
        counts[macro.name] = counts.get(macro.name, 0) + 1
        cell["type"] = macro.name
        cell["parameters"] = {}
        cell["connections"] = connections
        cell["port_directions"] = {port.name: port.direction for port in macro.ports}
    return counts, list(macros.values())


def liberty(macros: list[Macro]) -> str:
    """A Liberty stub by which paths end and begin at a macro's ports without any delay inside."""
    widths = sorted({port.width for macro in macros for port in macro.ports})
    types = "".join(
        f"  type (w{w}) {{ base_type : array; data_type : bit; bit_width : {w}; "
        f"bit_from : {w - 1}; bit_to : 0; }}\n"
        for w in widths
    )
    cells = "".join(
        f"  cell ({macro.name}) {{\n    area : 0;\n    is_macro_cell : true;\n"
        + "".join(_stub(port) for port in macro.ports)
        + "  }\n"
        for macro in macros
    )
    thresholds = "".join(
        f"  {name}_threshold_pct_{edge} : {value};\n"
        for edge in ("rise", "fall")
        for name, value in (("input", 50), ("output", 50), ("slew_lower", 20), ("slew_upper", 80))
    )
    return (
        "library (memories) {\n  delay_model : table_lookup;\n"
        '  time_unit : "1ns";\n  voltage_unit : "1V";\n  current_unit : "1mA";\n'
        '  pulling_resistance_unit : "1kohm";\n  capacitive_load_unit (1, pf);\n'
        f"{thresholds}"
        f"{types}{cells}}}\n"
    )


def _stub(port: Port) -> str:
    zero = 'scalar) { values ("0.0"); }'
    if port.name == "clk":
        return f"    pin (clk) {{ direction : input; clock : true; capacitance : {PIN_PF}; }}\n"
    if port.direction == "input":
        arc = (
            'timing () { related_pin : "clk"; timing_type : setup_rising; '
            f"rise_constraint ({zero} fall_constraint ({zero} }}"
        )
        inner = f"direction : input; capacitance : {PIN_PF};" + (f" {arc}" if port.sync else "")
    else:
        tables = "".join(
            f"{kind} ({zero} "
            for kind in ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
        )
        start = 'related_pin : "clk"; timing_type : rising_edge;'
        if not port.sync:
            address = port.name.replace("_data", "_addr")
            start = f'related_bus_pins : "{address}"; timing_sense : non_unate;'
        inner = f"direction : output; timing () {{ {start} {tables}}}"
    if port.width == 1:
        return f"    pin ({port.name}) {{ {inner} }}\n"
    return f"    bus ({port.name}) {{ bus_type : w{port.width}; {inner} }}\n"


class _Memory:
    """A ``$mem_v2`` cell of yosys, as its manual describes it."""

    def __init__(self, name: str, cell: dict[str, Any]):
        self.name = name
        self.parameters = cell["parameters"]
        self.nets = cell["connections"]
        self.depth = self._integer("SIZE")
        self.width = self._integer("WIDTH")
        self.reads = range(self._integer("RD_PORTS"))
        self.writes = range(self._integer("WR_PORTS"))
        self.address = self._integer("ABITS")

    def _integer(self, name: str) -> int:
        return int(self.parameters[name], 2)

    def _flag(self, name: str, place: int) -> bool:
        """Bit ``place`` of a parameter, bit 0 being the last character."""
        text = self.parameters[name]
        return place < len(text) and text[-1 - place] == "1"

    def _slice(self, pin: str, port: int, width: int) -> list[Any]:
        return self.nets[pin][port * width : (port + 1) * width]

    def _check(self) -> None:
        clocks = {self.nets["WR_CLK"][port] for port in self.writes}
        clocks |= {
            self.nets["RD_CLK"][port] for port in self.reads if self._flag("RD_CLK_ENABLE", port)
        }
        falling = [port for port in self.writes if not self._flag("WR_CLK_POLARITY", port)]
        falling += [
            port
            for port in self.reads
            if self._flag("RD_CLK_ENABLE", port) and not self._flag("RD_CLK_POLARITY", port)
        ]
        unclocked = [port for port in self.writes if not self._flag("WR_CLK_ENABLE", port)]
        resets = [port for port in self.reads if self.nets["RD_ARST"][port] != "0"]
        for wrong, what in (
            (len(clocks) > 1, "uses several clocks"),
            (falling, "works on a falling clock edge"),
            (unclocked, "is written without a clock"),
            (resets, "has an asynchronous reset"),
            ("1" in self.parameters["RD_WIDE_CONTINUATION"], "has ports wider than a word"),
            ("1" in self.parameters["WR_WIDE_CONTINUATION"], "has ports wider than a word"),
            (self._integer("OFFSET"), "does not begin at address 0"),
        ):
            if wrong:
                raise AtriplexError(
                    f"memory {self.name} ({self.depth} x {self.width}) {what}, which no macro "
                    "stands for; raise the number of bits up to which memories become flip-flops"
                )

    def _grain(self) -> int:
        """Bits that one write enable governs: the widest that suits every write port."""
        for grain in (g for g in range(self.width, 0, -1) if self.width % g == 0):
            enables = [self._slice("WR_EN", port, self.width) for port in self.writes]
            if all(
                len(set(enable[at : at + grain])) == 1
                for enable in enables
                for at in range(0, self.width, grain)
            ):
                return grain
        return 1

    def macro(self) -> tuple[Macro, dict[str, list[Any]]]:
        """The macro of this shape, and what its ports connect to here."""
        self._check()
        grain = self._grain()
        ports: list[Port] = []
        nets: dict[str, list[Any]] = {}

        def port(name: str, bits: list[Any], direction: str = "input", sync: bool = True) -> None:
            ports.append(Port(name, len(bits), direction, sync))
            nets[name] = bits

        clock = next((self.nets["WR_CLK"][w] for w in self.writes), None) or next(
            (self.nets["RD_CLK"][r] for r in self.reads if self._flag("RD_CLK_ENABLE", r)), None
        )
        if clock is not None:
            port("clk", [clock])
        body, marks = [], ""
        for w in self.writes:
            port(f"w{w}_addr", self._slice("WR_ADDR", w, self.address))
            port(f"w{w}_data", self._slice("WR_DATA", w, self.width))
            port(f"w{w}_en", self._slice("WR_EN", w, self.width)[::grain])
        for r in self.reads:
            sync = self._flag("RD_CLK_ENABLE", r)
            port(f"r{r}_addr", self._slice("RD_ADDR", r, self.address), sync=sync)
            if sync and self.nets["RD_EN"][r] != "1":
                port(f"r{r}_en", [self.nets["RD_EN"][r]])
            if sync and self.nets["RD_SRST"][r] != "0":
                port(f"r{r}_rst", [self.nets["RD_SRST"][r]])
                marks += "_rst" * ("_rst" not in marks)
            port(f"r{r}_data", self._slice("RD_DATA", r, self.width), "output", sync)
            marks += "_comb" * (not sync and "_comb" not in marks)
            body += self._read(r, sync, {p.name for p in ports}, grain)
        name = f"mem_{self.depth}x{self.width}_{len(self.reads)}r{len(self.writes)}w"
        if not self.writes:
            contents = hashlib.sha256(self.parameters["INIT"].encode()).hexdigest()[:6]
            name = f"rom_{self.depth}x{self.width}_{len(self.reads)}r_{contents}"
        name += f"_be{grain}" * (grain != self.width and bool(self.writes)) + marks
        head = ", ".join(
            ("output reg " if p.direction == "output" else "input ")
            + f"[{p.width - 1}:0] " * (p.width > 1)
            + p.name
            for p in ports
        )
        lines = [
            f"module {name}({head});",
            f"  reg [{self.width - 1}:0] words [0:{self.depth - 1}];",
            *self._contents(),
            *body,
            *self._write(grain),
            "endmodule",
        ]
        return Macro(name, self.depth, self.width, tuple(ports), "\n".join(lines) + "\n"), nets

    def _contents(self) -> Iterator[str]:
        if self.writes:
            words = -(-self.width // 32)
            yield "`ifndef SYNTHESIS"  # some contents at power-up, as on a chip
            yield "  integer row;"
            yield f"  initial for (row = 0; row < {self.depth}; row = row + 1)"
            yield f"    words[row] = {{{', '.join(['$random'] * words)}}};"
            yield "`endif"
            return
        bits = self.parameters["INIT"].rjust(self.depth * self.width, "x")
        yield "  initial begin"
        for row in range(self.depth):
            end = len(bits) - row * self.width
            yield f"    words[{row}] = {self.width}'b{bits[end - self.width : end]};"
        yield "  end"

    def _write(self, grain: int) -> Iterator[str]:
        if not self.writes:
            return
        yield "  always @(posedge clk) begin"
        for w in self.writes:
            for enable, span in self._spans(w, grain):
                yield f"    if ({enable}) words[w{w}_addr]{span} <= w{w}_data{span};"
        yield "  end"

    def _spans(self, w: int, grain: int) -> Iterator[tuple[str, str]]:
        """Each bit of a write enable, and the part of the word that it governs."""
        if grain == self.width:
            yield f"w{w}_en", ""
            return
        for place in range(self.width // grain):
            yield f"w{w}_en[{place}]", f"[{place * grain + grain - 1}:{place * grain}]"

    def _read(self, r: int, sync: bool, ports: set[str], grain: int) -> Iterator[str]:
        if not sync:
            yield f"  always @* r{r}_data = words[r{r}_addr];"
            return
        begin = f"if (r{r}_en) " if f"r{r}_en" in ports else ""
        yield "  always @(posedge clk) begin"
        yield f"    {begin}r{r}_data <= words[r{r}_addr];"
        for w in self.writes:
            if self._flag("RD_TRANSPARENCY_MASK", r * len(self.writes) + w):
                for enable, span in self._spans(w, grain):
                    yield (
                        f"    {begin}if ({enable} && w{w}_addr == r{r}_addr) "
                        f"r{r}_data{span} <= w{w}_data{span};"
                    )
        if f"r{r}_rst" in ports:
            value = self.parameters["RD_SRST_VALUE"].rjust(self.width * len(self.reads), "x")
            end = len(value) - r * self.width
            guard = begin if self._flag("RD_CE_OVER_SRST", r) else ""
            yield (
                f"    {guard}if (r{r}_rst) r{r}_data <= "
                f"{self.width}'b{value[end - self.width : end]};"
            )
        yield "  end"
