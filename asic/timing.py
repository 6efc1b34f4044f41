# SPDX-License-Identifier: Apache-2.0
"""Timing of a mapped netlist: OpenSTA where it is installed, else a longest path of our own.

Both take every path from inputs and registers to registers and outputs, with all paths given one
whole clock period, an ideal clock, no wires, the library's driving cell at the inputs and its load
at the outputs.
"""

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..gen import tools
from ..rtl.errors import Missing, ToolFailed
from .liberty import Group, Liberty, LibertyError, numbers
from .library import Library
from .memories import PIN_PF, Macro

COMMON = "no wire load, an ideal clock, one corner, no setup or delay inside memory macros"
LIMITS = {
    "opensta": f"OpenSTA on the netlist before placement: {COMMON}.",
    "atriplex": (
        f"Atriplex's own longest path over the Liberty tables, since OpenSTA is absent: {COMMON}; "
        "slews of merging paths are taken at their worst, latches end a path, asynchronous resets "
        "are not checked."
    ),
}
START_PERIOD_NS = 10.0


@dataclass(frozen=True)
class Timing:
    """The worst path: ``delay_ns`` includes setup; ``path`` lists (point, cell, time in ns).

    Times are counted from the clock edge.  ``start`` and ``end`` are signal names.
    """

    engine: str
    limits: str
    delay_ns: float
    start: str
    end: str
    path: tuple[tuple[str, str, float], ...]

    @property
    def fmax_mhz(self) -> float:
        """Highest clock by this analysis."""
        return 1e3 / self.delay_ns if self.delay_ns > 0 else math.inf


@dataclass(frozen=True)
class Netlist:
    """A mapped design: the module of a yosys JSON netlist, and names of its nets."""

    top: str
    module: dict[str, Any]

    @property
    def cells(self) -> dict[str, Any]:
        return self.module["cells"]

    @property
    def names(self) -> dict[int, str]:
        """A name for every bit; the shortest public one, if it has one."""
        best: dict[int, tuple[bool, int, str]] = {}
        for name, net in self.module["netnames"].items():
            for place, bit in enumerate(net["bits"]):
                if not isinstance(bit, int):
                    continue
                label = f"{name}[{place + net.get('offset', 0)}]" if len(net["bits"]) > 1 else name
                rank = (bool(net.get("hide_name")), len(label), label)
                if bit not in best or rank < best[bit]:
                    best[bit] = rank
        return {bit: rank[2] for bit, rank in best.items()}


def measure(
    netlist: Netlist,
    library: Library,
    macros: list[Macro],
    *,
    verilog: Path,
    texts: list[str],
    log: Path,
) -> Timing:
    """The worst path, by OpenSTA if it is installed.

    OpenSTA reads ``verilog`` and, beside it, the plain Liberty files ``texts``.
    """
    try:
        sta = tools.find("sta")
    except Missing:
        return longest_path(netlist, library, macros)
    head = library.liberty.heads[0]  # OpenSTA counts in the units of the file it reads first
    unit = _nanoseconds(head)
    script = _sta_script(netlist, library, verilog.name, texts, unit, _femtofarads(head))
    (verilog.parent / "sta.tcl").write_text(script)
    said = tools.run(sta, ["-exit", "sta.tcl"], cwd=verilog.parent, log=log)
    return _parse_checks(said, log, unit, netlist)


# OpenSTA


def _sta_script(
    netlist: Netlist, library: Library, verilog: str, texts: list[str], unit: float, farad: float
) -> str:
    ports = netlist.module["ports"]
    clock = " [get_ports clk]" if "clk" in ports else ""
    driver = library.driving_cell
    lines = [
        *(f"read_liberty {name}" for name in texts),
        f"read_verilog {verilog}",
        f"link_design {netlist.top}",
        f"create_clock -name clk -period {START_PERIOD_NS / unit}{clock}",
    ]
    for name, port in ports.items():
        every = f"[get_ports {{{name}{'[*]' * (len(port['bits']) > 1)}}}]"
        if port["direction"] == "output":
            lines.append(f"set_output_delay 0 -clock clk {every}")
            lines.append(f"set_load {library.load / farad} {every}")
        elif name != "clk":
            lines.append(f"set_input_delay 0 -clock clk {every}")
            if driver:
                lines.append(f"set_driving_cell -lib_cell {driver.name} {every}")
    lines += ["report_checks -path_delay max -format full -digits 6", "exit"]
    return "\n".join(lines) + "\n"


def _parse_checks(said: str, log: Path, unit: float, netlist: Netlist) -> Timing:
    if wrong := re.search(r"^Error: (.*)$", said, re.MULTILINE):
        raise ToolFailed(f"OpenSTA: {wrong.group(1)}", log)
    ends = re.search(r"^Startpoint: (\S+).*?^Endpoint: (\S+)", said, re.MULTILINE | re.DOTALL)
    slack = re.search(r"^\s*(-?[\d.]+)\s+slack \(", said, re.MULTILINE)
    if "No paths found." in said:
        return Timing("opensta", LIMITS["opensta"], 0.0, "", "", ())
    if not ends or not slack:
        raise ToolFailed("OpenSTA's report was not understood", log)
    points = re.findall(r"^\s*-?[\d.]+\s+(-?[\d.]+) [\^v] (\S+) \((\S+)\)$", said, re.MULTILINE)
    path = tuple((point, cell, float(time) * unit) for time, point, cell in points)
    delay = START_PERIOD_NS - float(slack.group(1)) * unit
    names = netlist.names
    start, end = (_signal(point, netlist, names) for point in ends.groups())
    return Timing("opensta", LIMITS["opensta"], delay, start, end, _name_points(path, netlist))


def _name_points(
    path: tuple[tuple[str, str, float], ...], netlist: Netlist
) -> tuple[tuple[str, str, float], ...]:
    """Points such as ``_123_/Y`` by the net they drive, where that has a name."""
    names = netlist.names

    def label(point: str) -> str:
        cell, _, pin = point.rpartition("/")
        bits = netlist.cells.get(cell.replace("\\", ""), {}).get("connections", {}).get(pin)
        return names.get(bits[0], point) if bits and len(bits) == 1 else point

    return tuple((label(point), cell, time) for point, cell, time in path)


def _signal(point: str, netlist: Netlist, names: dict[int, str]) -> str:
    """The name of a register's output net, or of a port or macro as it is."""
    cell = netlist.cells.get(point.replace("\\", ""))
    if cell is None:
        return point
    for pin, bits in cell["connections"].items():
        if cell.get("port_directions", {}).get(pin) == "output" and len(bits) == 1:
            return names.get(bits[0], point)
    return f"{point} ({cell['type']})"


def _nanoseconds(head: Group) -> float:
    match = re.fullmatch(r"\s*([\d.]*)\s*(ps|ns|us)\s*", head.values.get("time_unit", "1ns"))
    if not match:
        return 1.0
    return float(match.group(1) or 1) * {"ps": 1e-3, "ns": 1.0, "us": 1e3}[match.group(2)]


def _femtofarads(head: Group) -> float:
    number, unit = (*head.lists.get("capacitive_load_unit", ()), "1", "pf")[:2]
    return float(number) * {"ff": 1.0, "pf": 1e3}.get(unit.lower(), 1e3)


# Longest path over Liberty tables

RISE, FALL = 0, 1
Pair = list[float]  # one value for the rising and one for the falling edge


@dataclass(frozen=True)
class Table:
    """A look-up table with one or two indices, or a single value.

    Its arguments are (input slew, load) of a delay, (clock slew, data slew) of a setup time;
    ``swapped`` tells that the file's first index is the second of these.
    """

    swapped: bool
    first: tuple[float, ...]
    second: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]

    def at(self, x: float, y: float) -> float:
        """Value by linear interpolation, and extrapolation beyond the table."""
        if self.swapped:
            x, y = y, x
        i, u = _place(self.first, x)
        j, v = _place(self.second, y)
        rows = self.rows
        low = rows[i][j] if v == 0 else rows[i][j] * (1 - v) + rows[i][j + 1] * v
        if u == 0:
            return low
        after = rows[i + 1]
        high = after[j] if v == 0 else after[j] * (1 - v) + after[j + 1] * v
        return low * (1 - u) + high * u


def _place(axis: tuple[float, ...], value: float) -> tuple[int, float]:
    if len(axis) < 2:
        return 0, 0.0
    i = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


@dataclass(frozen=True)
class Arc:
    """Delay and slew from one input edge to one output edge; for setup, only ``delay``."""

    source: str
    edge_in: int
    edge_out: int
    delay: Table
    slew: Table | None


@dataclass(frozen=True)
class Model:
    """Arcs of a cell in ns and pF, by output pin; ``setup`` by data pin."""

    gates: dict[str, list[Arc]]
    clocked: dict[str, list[Arc]]
    setup: dict[str, list[Arc]]
    capacitance: dict[str, float]


class _Models:
    """Timing models of cells, read when first asked for."""

    def __init__(self, liberty: Liberty):
        self.liberty = liberty
        self.known: dict[str, Model] = {}

    def __getitem__(self, name: str) -> Model:
        if name not in self.known:
            self.known[name] = _model(self.liberty, name)
        return self.known[name]


def _model(liberty: Liberty, name: str) -> Model:
    head = liberty.head(name)
    units = _nanoseconds(head), _femtofarads(head) * 1e-3
    templates = {group.args[0]: group for group in head.all("lu_table_template") if group.args}
    model = Model({}, {}, {}, {})
    try:
        for pin in liberty.group(name).all("pin"):
            for place in pin.args:
                model.capacitance[place] = float(pin.values.get("capacitance", 0)) * units[1]
                for timing in pin.all("timing"):
                    _arcs(model, place, timing, templates, units)
    except (ValueError, KeyError) as fault:
        raise LibertyError(f"the timing of cell {name} cannot be read: {fault}") from None
    return model


def _arcs(
    model: Model,
    pin: str,
    timing: Group,
    templates: dict[str, Group],
    units: tuple[float, float],
) -> None:
    kind = timing.values.get("timing_type", "combinational")
    sources = timing.values.get("related_pin", "").split()
    tables = {
        group.kind: _table(group, templates, units)
        for group in timing.groups
        if group.lists.get("values")
    }
    if kind.startswith("setup_"):
        edge = RISE if kind == "setup_rising" else FALL
        for out, name in ((RISE, "rise_constraint"), (FALL, "fall_constraint")):
            if name in tables:
                arcs = [Arc(source, edge, out, tables[name], None) for source in sources]
                model.setup.setdefault(pin, []).extend(arcs)
        return
    if kind.endswith("_edge"):
        where, edges = model.clocked, {"rising_edge": (RISE,), "falling_edge": (FALL,)}[kind]
    elif kind.startswith("combinational"):
        where, edges = model.gates, (RISE, FALL)
    else:
        return
    sense = timing.values.get("timing_sense", "non_unate")
    for out, delay, slew in (
        (RISE, "cell_rise", "rise_transition"),
        (FALL, "cell_fall", "fall_transition"),
    ):
        if delay not in tables:
            continue
        for edge in edges:
            if where is model.gates and (
                (sense == "positive_unate" and edge != out)
                or (sense == "negative_unate" and edge == out)
            ):
                continue
            arcs = [Arc(source, edge, out, tables[delay], tables.get(slew)) for source in sources]
            where.setdefault(pin, []).extend(arcs)


def _table(group: Group, templates: dict[str, Group], units: tuple[float, float]) -> Table:
    template = templates.get(group.args[0] if group.args else "", Group("", ()))

    def scaled(items: Iterable[str], scale: float) -> tuple[float, ...]:
        return tuple(number * scale for number in numbers(items))

    variables = [template.values.get(f"variable_{i}", "") for i in (1, 2)]
    swapped = "capacitance" in variables[0] or "constrained" in variables[0]
    scales = [units["capacitance" in variable] for variable in variables]
    axes = [
        scaled(group.lists.get(name) or template.lists.get(name, ()), scale)
        for name, scale in zip(("index_1", "index_2"), scales, strict=True)
    ]
    values = scaled(group.lists["values"], units[0])
    first, second = axes if len(values) > 1 else ((), ())
    if len(values) != max(len(first), 1) * max(len(second), 1):
        raise ValueError(f"{len(values)} values for {len(first)} by {len(second)} indices")
    columns = max(len(second), 1)
    rows = tuple(values[at : at + columns] for at in range(0, len(values), columns))
    return Table(swapped, first, second, rows)


def longest_path(netlist: Netlist, library: Library, macros: list[Macro]) -> Timing:
    """The worst path by our own analysis; see ``LIMITS`` for what it leaves out."""
    return _Longest(netlist, library, macros).timing()


class _Longest:
    """Arrival times and slews, net by net from the sources on."""

    def __init__(self, netlist: Netlist, library: Library, macros: list[Macro]):
        self.netlist = netlist
        self.models = _Models(library.liberty)
        self.library = library
        self.macros = {macro.name: macro for macro in macros}
        self.names = netlist.names
        self.load: dict[int, float] = defaultdict(float)
        self.arrival: dict[int, Pair] = {}
        self.slew: dict[int, Pair] = {}
        self.before: dict[tuple[int, int], tuple[int, int, str] | None] = {}
        self.worst = (-math.inf, 0, 0, "")

    def timing(self) -> Timing:
        self._loads()
        self._sources()
        self._propagate()
        self._ends()
        delay, bit, edge, end = self.worst
        if bit == 0:
            return Timing("atriplex", LIMITS["atriplex"], 0.0, "", "", ())
        path, at = [], (bit, edge)
        while True:
            step = self.before[at]
            kind = step[2] if step else "input"
            point = self.names.get(at[0], str(at[0]))
            path.append((point, kind, self.arrival[at[0]][at[1]]))
            if step is None or step[0] == 0:
                break
            at = step[:2]
        path.reverse()
        return Timing("atriplex", LIMITS["atriplex"], delay, path[0][0], end, tuple(path))

    def _loads(self) -> None:
        for cell in self.netlist.cells.values():
            if cell["type"] in self.macros:
                for port in self.macros[cell["type"]].ports:
                    for bit in cell["connections"][port.name] * (port.direction == "input"):
                        self.load[bit] += PIN_PF
                continue
            for pin, farad in self.models[cell["type"]].capacitance.items():
                for bit in cell["connections"].get(pin, ()):
                    self.load[bit] += farad
        for port in self.netlist.module["ports"].values():
            if port["direction"] == "output":
                for bit in port["bits"]:
                    self.load[bit] += self.library.load * 1e-3

    def _reach(
        self, bit: int, edge: int, time: float, slew: float, before: tuple[int, int, str] | None
    ) -> None:
        arrival = self.arrival.setdefault(bit, [-math.inf, -math.inf])
        slews = self.slew.setdefault(bit, [0.0, 0.0])
        slews[edge] = max(slews[edge], slew)
        if time > arrival[edge]:
            arrival[edge] = time
            self.before[bit, edge] = before

    def _sources(self) -> None:
        driver = self.library.driving_cell
        arcs = []
        if driver:
            arcs = [arc for some in self.models[driver.name].gates.values() for arc in some]
        for name, port in self.netlist.module["ports"].items():
            if port["direction"] != "input" or name == "clk":
                continue
            for bit in port["bits"]:
                for edge in (RISE, FALL):
                    self._reach(bit, edge, 0.0, 0.0, None)
                for arc in arcs:  # what the load adds to the driver's delay
                    load = self.load[bit]
                    delay = arc.delay.at(0.0, load) - arc.delay.at(0.0, 0.0)
                    slew = arc.slew.at(0.0, load) if arc.slew else 0.0
                    self._reach(bit, arc.edge_out, delay, slew, None)
        for cell in self.netlist.cells.values():
            kind = cell["type"]
            if kind in self.macros:
                for port in self.macros[kind].ports:
                    if port.direction == "output" and port.sync:
                        for bit in cell["connections"][port.name]:
                            self._reach(bit, RISE, 0.0, 0.0, (0, 0, kind))
                            self._reach(bit, FALL, 0.0, 0.0, (0, 0, kind))
                continue
            for pin, clocked in self.models[kind].clocked.items():
                for bit in cell["connections"].get(pin, ()):
                    load = self.load[bit]
                    for arc in clocked:
                        slew = arc.slew.at(0.0, load) if arc.slew else 0.0
                        self._reach(bit, arc.edge_out, arc.delay.at(0.0, load), slew, (0, 0, kind))

    def _steps(self) -> list[tuple[list[int], list[int], Callable[[], None]]]:
        """Inputs, outputs and work of every combinational cell."""
        steps = []
        for cell in self.netlist.cells.values():
            nets = cell["connections"]
            if cell["type"] in self.macros:
                for port in self.macros[cell["type"]].ports:
                    if port.direction == "output" and not port.sync:
                        sources = [b for b in nets[port.name.replace("data", "addr")] if _net(b)]
                        steps.append((sources, nets[port.name], _through(self, cell, port.name)))
                continue
            gates = self.models[cell["type"]].gates
            if not gates or self.library.liberty.cells[cell["type"]].state:
                continue
            pins = {arc.source for arcs in gates.values() for arc in arcs}
            sources = [nets[pin][0] for pin in pins if pin in nets and _net(nets[pin][0])]
            targets = [nets[pin][0] for pin in gates if nets.get(pin)]
            steps.append((sources, targets, _gate(self, cell, gates)))
        return steps

    def _propagate(self) -> None:
        steps = self._steps()
        driver = {bit: i for i, (_, targets, _) in enumerate(steps) for bit in targets}
        readers: dict[int, list[int]] = defaultdict(list)
        waits = []
        for i, (sources, _, _) in enumerate(steps):
            needed = {driver[bit] for bit in sources if bit in driver}
            waits.append(len(needed))
            for j in needed:
                readers[j].append(i)
        ready = [i for i, count in enumerate(waits) if count == 0]
        done = 0
        while ready:
            i = ready.pop()
            steps[i][2]()
            done += 1
            for j in readers[i]:
                waits[j] -= 1
                if waits[j] == 0:
                    ready.append(j)
        if done < len(steps):
            raise ToolFailed("the netlist has a combinational loop, which cannot be timed")

    def _end(self, bit: Any, edge: int, extra: float, name: str) -> None:
        if bit in self.arrival:
            time = self.arrival[bit][edge] + extra
            if time > self.worst[0]:
                self.worst = (time, bit, edge, name)

    def _ends(self) -> None:
        for name, port in self.netlist.module["ports"].items():
            if port["direction"] == "output":
                for bit in port["bits"]:
                    for edge in (RISE, FALL):
                        self._end(bit, edge, 0.0, name)
        for instance, cell in self.netlist.cells.items():
            nets, kind = cell["connections"], cell["type"]
            if kind in self.macros:
                for port in self.macros[kind].ports:
                    if port.direction == "input" and port.sync and port.name != "clk":
                        for bit in nets[port.name]:
                            for edge in (RISE, FALL):
                                self._end(bit, edge, 0.0, f"{instance} ({kind})")
                continue
            for pin, arcs in self.models[kind].setup.items():
                for bit in nets.get(pin, ()):
                    if bit not in self.arrival:
                        continue
                    end = _signal(instance, self.netlist, self.names)
                    for arc in arcs:
                        setup = arc.delay.at(0.0, self.slew[bit][arc.edge_out])
                        self._end(bit, arc.edge_out, setup, end)


def _net(bit: Any) -> bool:
    return isinstance(bit, int)


def _gate(longest: _Longest, cell: dict[str, Any], gates: dict[str, list[Arc]]) -> Callable:
    def work() -> None:
        nets, kind = cell["connections"], cell["type"]
        for pin, arcs in gates.items():
            for target in nets.get(pin, ()):
                load = longest.load[target]
                for arc in arcs:
                    source = nets[arc.source][0]
                    arrival = longest.arrival.get(source)
                    if arrival is None or arrival[arc.edge_in] == -math.inf:
                        continue
                    slew = longest.slew[source][arc.edge_in]
                    longest._reach(
                        target,
                        arc.edge_out,
                        arrival[arc.edge_in] + arc.delay.at(slew, load),
                        arc.slew.at(slew, load) if arc.slew else 0.0,
                        (source, arc.edge_in, kind),
                    )

    return work


def _through(longest: _Longest, cell: dict[str, Any], data: str) -> Callable:
    def work() -> None:
        nets = cell["connections"]
        sources = [bit for bit in nets[data.replace("data", "addr")] if bit in longest.arrival]
        for bit in nets[data]:
            for source in sources:
                for edge in (RISE, FALL):
                    time = longest.arrival[source][edge]
                    longest._reach(bit, RISE, time, 0.0, (source, edge, cell["type"]))
                    longest._reach(bit, FALL, time, 0.0, (source, edge, cell["type"]))

    return work
