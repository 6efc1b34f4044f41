# SPDX-License-Identifier: Apache-2.0
"""From a design to a netlist of standard cells, with its area, timing and gate-level check."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..gen import tools
from ..rtl import cache
from ..rtl.errors import AtriplexError, Missing, ToolFailed
from . import cells, memories, timing
from .liberty import BUFFER, INVERTER, text_of
from .library import Library

if TYPE_CHECKING:
    from ..gen.verilog import Design

MEMORY_BITS = 2048  # up to here a memory becomes flip-flops
MEMORY_NOTE = "memories.v has their behaviour; at power-up all but ROMs hold random values."
FAN_OUT = 8  # most readers of a net before it is buffered

# Not ``&fraig -x``, which is in yosys's own script: it ran for hours on a tree of adders.
_SIMPLIFY = ("strash", "ifraig", "scorr", "dc2", "strash")
_DRIVE = ("topo", f"buffer -c -N {FAN_OUT}", "topo", "upsize", "dnsize")
MAPPINGS = {
    "area": (*_SIMPLIFY, "&get -n", "&dch -f", "&nf", "&put", *_DRIVE),
    "speed": (*_SIMPLIFY, "dch -f", "map -B 0.9", *_DRIVE),
}

Progress = Callable[[str], None]
GateSim = Callable[[list[Path]], bool]


@dataclass(frozen=True)
class MemoryUse:
    """Memory macros of one shape; ``bits`` is what one of them stores."""

    macro: str
    count: int
    bits: int


@dataclass(frozen=True)
class Report:
    """What :func:`build` found.  ``json()`` is what the command prints and ``report.json`` holds.

    ``area_um2`` is that of the cells, without wires, fill and memory macros.  ``fmax_mhz`` is None
    for a design without any timed path; ``met`` is None without a target.  ``gate_sim_passed`` is
    None if the netlist was not simulated.
    """

    block: str
    config: dict[str, Any]
    library: str
    library_files: tuple[str, ...]
    cells: int
    area_um2: float
    nand2_equivalents: float | None
    flip_flops: int
    flip_flop_area_share: float
    fmax_mhz: float | None
    target_mhz: float | None
    met: bool | None
    mapping: str
    timing_engine: str
    timing_limits: str
    critical_path: dict[str, Any]
    memories: tuple[MemoryUse, ...]
    netlist: str
    gate_sim_passed: bool | None
    cells_by_type: dict[str, int]
    tools: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def memory_bits(self) -> int:
        """Bits in memory macros, which have no part in the area."""
        return sum(memory.count * memory.bits for memory in self.memories)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "memory_bits": self.memory_bits}

    def complaints(self) -> list[str]:
        """A sentence for everything that is not as asked; empty if all is well."""
        wrong = []
        if self.met is False:
            wrong.append(
                f"{self.block} reaches {self.fmax_mhz:.1f} MHz in {self.library}, "
                f"not {self.target_mhz:g}; the path from {self.critical_path['start']} to "
                f"{self.critical_path['end']} is the longest: pipeline it, or lower the target"
            )
        if self.gate_sim_passed is False:
            wrong.append(f"the netlist of {self.block} in {self.library} failed its simulation")
        return wrong


def build(
    design: "Design",
    library: Library,
    out: Path,
    *,
    target_mhz: float | None = None,
    gate_sim: GateSim | None = None,
    memory_bits: int = MEMORY_BITS,
    progress: Progress = lambda stage: None,
) -> Report:
    """Map ``design`` to ``library`` and write netlist, models and reports into ``out``.

    ``gate_sim`` gets the Verilog files of the netlist with its models (see :func:`gate_sources`)
    and says whether it behaves.  Memories of more than ``memory_bits`` become macros.

    ``out`` appears whole or not at all.  A missed target or a failed simulation is no error: see
    :meth:`Report.complaints`.
    """
    if target_mhz is not None and target_mhz <= 0:
        raise AtriplexError(f"the target must be above 0 MHz, not {target_mhz:g}")
    yosys = tools.find("yosys")
    with cache.write_whole(out) as folder:
        work = folder / "work"
        work.mkdir()
        flow = _Flow(design, library, yosys, work, progress)
        flow.check_library()
        flow.synthesise(memory_bits)
        found = flow.map("area")
        if target_mhz and found.fmax_mhz < target_mhz:
            quick = flow.map("speed")
            found = quick if quick.fmax_mhz > found.fmax_mhz else flow.map("area")
        netlist, sources = flow.publish(folder)
        passed = None
        if gate_sim:
            with flow.stage("gate-level simulation"):
                passed = bool(gate_sim(sources))
        report = flow.report(found, netlist.name, target_mhz, passed)
        (folder / "report.json").write_text(json.dumps(report.json(), indent=2) + "\n")
        (folder / "report.md").write_text(page(report, found))
        for large in work.glob("*.json"):
            large.unlink()
        for name in flow.library_texts:
            (work / name).unlink()
    return report


def gate_sources(out: Path) -> list[Path]:
    """The Verilog that simulates the netlist in ``out``: itself, models of cells and memories."""
    report = json.loads((out / "report.json").read_text())
    names = [report["netlist"], "cells.v", "memories.v"]
    return [out / name for name in names if (out / name).exists()]


class _Flow:
    """The stages of one build; files lie in ``work`` and are named relative to it."""

    def __init__(
        self, design: "Design", library: Library, yosys: tools.Tool, work: Path, progress: Progress
    ):
        self.design = design
        self.library = library
        self.yosys = yosys
        self.work = work
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.macros: list[memories.Macro] = []
        self.counts: dict[str, int] = {}
        self.library_texts: list[str] = []
        self.netlist: timing.Netlist | None = None
        self.mapping = ""

    def stage(self, name: str) -> "_Stage":
        """Announces a stage and takes its time."""
        return _Stage(self, name)

    def check_library(self) -> None:
        """Refuse a library that no design can be mapped to, before any work."""
        with self.stage("library"):
            liberty = self.library.liberty
            usable = [
                cell
                for cell in liberty.cells.values()
                if cell.table and not cell.dont_use and len(cell.inputs) > 0
            ]
            name = self.library.name
            if not liberty.gates(INVERTER):
                raise AtriplexError(
                    f"library {name} has no inverter, so nothing can be mapped to it"
                )
            if not any(len(cell.inputs) == 2 for cell in usable):
                raise AtriplexError(f"library {name} has no gate with two inputs")
            (self.work / "cells.lib").write_text(liberty.light())
            self.library_texts = ["cells.lib"]
            for index, path in enumerate(self.library.files):
                plain = re.sub(r"\bdefault_wire_load\w*\s*:[^;\n]*;?", "", text_of(path))
                (self.work / f"library_{index}.lib").write_text(plain)
                self.library_texts.append(f"library_{index}.lib")

    def synthesise(self, memory_bits: int) -> None:
        """Down to generic gates, with large memories taken out as macros."""
        top = self.design.top
        with self.stage("synthesis"):
            (self.work / "design.v").write_text(self.design.text)
            self._yosys(
                "synth",
                "read_verilog design.v",
                f"hierarchy -check -top {top}",
                "proc",
                # A chip has no values at power-up, so nothing may be derived from them.  Without
                # them fsm would make states one-hot: more flip-flops than the design describes.
                "setattr -unset init w:*",
                f"synth -flatten -noabc -nofsm -top {top} -run begin:fine",
                "write_json coarse.json",
            )
            netlist = json.loads((self.work / "coarse.json").read_text())
            self.counts, self.macros = memories.replace(netlist, top, memory_bits)
            (self.work / "coarse.json").write_text(json.dumps(netlist))
            stubs = []
            if self.macros:
                text = "\n".join(macro.text for macro in self.macros)
                (self.work / "memories.v").write_text(text)
                stub = memories.liberty(self.macros)
                (self.work / "memories.lib").write_text(stub)
                stubs = ["read_verilog -lib memories.v"]
            self._yosys(
                "gates",
                "read_json coarse.json",
                *stubs,
                f"synth -flatten -noabc -nofsm -top {top} -run fine:check",
                "opt_clean",
                "write_rtlil gates.il",
                "tee -q -o gates.json stat -json",
            )
            kinds = json.loads((self.work / "gates.json").read_text())["modules"]["\\" + top]
            states = [name for name in kinds["num_cells_by_type"] if re.search("DFF|LATCH", name)]
            if states and not self.library.liberty.flip_flops:
                raise AtriplexError(
                    f"library {self.library.name} has no flip-flop, which {self.design.block} needs"
                )

    def map(self, mapping: str) -> timing.Timing:
        """To cells of the library, for little ``area`` or for ``speed``; the longest path then."""
        self.mapping = mapping
        library, driver = self.library, self.library.driving_cell
        assert driver is not None  # check_library found an inverter
        with self.stage(f"mapping for {mapping}"):
            full = " ".join(f"-liberty {name}" for name in self.library_texts[1:])
            avoid = " ".join(f"-dont_use {name}" for name in library.avoided)
            (self.work / "abc.constr").write_text(
                f"set_driving_cell {driver.name}\nset_load {library.load:g}\n"
            )
            (self.work / "abc.script").write_text("\n".join(MAPPINGS[mapping]) + "\n")
            self._yosys(
                "map",
                "read_rtlil gates.il",
                f"dfflibmap {avoid} -liberty cells.lib",
                "opt",
                f"abc {full} {avoid} -constr abc.constr -script abc.script",
                "setundef -zero",
                *self._ties(),
                "opt_clean -purge",  # first, or every alias gets a buffer
                *self._buffers(),
                "rename -enumerate -pattern g% c:*",  # one name in every file written
                "write_json mapped.json",
                "write_verilog -noattr -noexpr -nohex -nodec -simple-lhs netlist.v",
            )
            text = (self.work / "netlist.v").read_text()
            text = re.sub(r"\A/\*.*?\*/\s*", "", text, flags=re.DOTALL)
            text = re.sub(r"^(\s*(?:input|output|wire)) signed ", r"\1 ", text, flags=re.MULTILINE)
            (self.work / "netlist.v").write_text(text)
            module = json.loads((self.work / "mapped.json").read_text())["modules"]
            self.netlist = timing.Netlist(self.design.top, module[self.design.top])
            self._check_mapped()
            for cell in self.netlist.cells.values():  # yosys knows them for its own cells only
                if cell["type"] in library.liberty.cells:
                    pins = library.liberty.cells[cell["type"]].pins
                    cell["port_directions"] = {pin.name: pin.direction for pin in pins}
        return self._time()

    def _ties(self) -> list[str]:
        zero, one = self.library.liberty.tie(0), self.library.liberty.tie(1)
        if zero is None or one is None:
            return []
        return [f"hilomap -singleton -locell {zero[0]} {zero[1]} -hicell {one[0]} {one[1]}"]

    def _buffers(self) -> list[str]:
        """Ports joined directly to ports need a buffer, lest the netlist has an assignment."""
        for cell in self.library.liberty.gates(BUFFER):
            return [f"insbuf -buf {cell.name} {cell.inputs[0]} {cell.outputs[0].name}"]
        return []

    def _check_mapped(self) -> None:
        known = self.library.liberty.cells.keys() | {macro.name for macro in self.macros}
        assert self.netlist is not None
        for cell in self.netlist.cells.values():
            if cell["type"] not in known:
                raise ToolFailed(
                    f"library {self.library.name} has no cell for {cell['type']}",
                    self._log("map"),
                )

    def _time(self) -> timing.Timing:
        assert self.netlist is not None
        with self.stage("timing"):
            texts = self.library_texts[1:] + ["memories.lib"] * bool(self.macros)
            return timing.measure(
                self.netlist,
                self.library,
                self.macros,
                verilog=self.work / "netlist.v",
                texts=texts,
                log=self._log("timing"),
            )

    def publish(self, folder: Path) -> tuple[Path, list[Path]]:
        """Put netlist and models where the user finds them; all that a simulation needs."""
        assert self.netlist is not None
        with self.stage("cell models"):
            netlist = folder / f"{self.design.top}_{self.library.name}.v"
            (self.work / "netlist.v").rename(netlist)
            macros = {macro.name for macro in self.macros}
            used = {cell["type"] for cell in self.netlist.cells.values()} - macros
            sources = [netlist]
            if used:
                models = cells.models(self.library.liberty.light(used))
                (folder / "cells.v").write_text(models.read_text())
                sources.append(folder / "cells.v")
            if self.macros:
                (self.work / "memories.v").rename(folder / "memories.v")
                sources.append(folder / "memories.v")
            return netlist, sources

    def report(
        self, found: timing.Timing, netlist: str, target: float | None, passed: bool | None
    ) -> Report:
        """Everything known, in one object."""
        assert self.netlist is not None
        known = self.library.liberty.cells
        counts: dict[str, int] = {}
        for cell in self.netlist.cells.values():
            counts[cell["type"]] = counts.get(cell["type"], 0) + 1
        area = {name: known[name].area * n for name, n in counts.items() if name in known}
        states = [name for name in area if known[name].state]
        total = sum(area.values())
        nand2 = self.library.nand2_area
        fmax = found.fmax_mhz if found.delay_ns > 0 else None
        return Report(
            block=self.design.block,
            config=dict(self.design.config),
            library=self.library.name,
            library_files=tuple(path.name for path in self.library.files),
            cells=sum(counts[name] for name in area),
            area_um2=round(total, 4),
            nand2_equivalents=round(total / nand2, 1) if nand2 else None,
            flip_flops=sum(counts[name] for name in states),
            flip_flop_area_share=round(sum(area[name] for name in states) / total, 4)
            if total
            else 0.0,
            fmax_mhz=round(fmax, 2) if fmax else None,
            target_mhz=target,
            met=None if target is None or fmax is None else fmax >= target,
            mapping=self.mapping,
            timing_engine=found.engine,
            timing_limits=found.limits,
            critical_path={
                "start": found.start,
                "end": found.end,
                "delay_ns": round(found.delay_ns, 4),
                "cells": len(found.path),
            },
            memories=tuple(
                MemoryUse(macro.name, self.counts[macro.name], macro.bits) for macro in self.macros
            ),
            netlist=netlist,
            gate_sim_passed=passed,
            cells_by_type=dict(sorted(counts.items())),
            tools=_versions(self.yosys, found.engine),
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
        )

    def _yosys(self, name: str, *commands: str) -> None:
        (self.work / f"{name}.ys").write_text("\n".join(commands) + "\n")
        log = self._log(name)
        try:
            tools.run(self.yosys, ["-l", f"{name}.yosys.log", f"{name}.ys"], cwd=self.work, log=log)
        except ToolFailed as failure:  # after abc, yosys from the wheel speaks only to its own log
            own = self.work / f"{name}.yosys.log"
            said = own.read_text(errors="replace") if own.exists() else ""
            first = re.search(r"^ERROR: (.*)$", said, re.MULTILINE)
            if first and "ABC output" not in first.group(1):
                log.write_text(said)
                raise ToolFailed(f"yosys failed: {first.group(1)}", log) from None
            if name == "map":
                raise ToolFailed(
                    f"abc, inside yosys, broke down on library {self.library.name}; "
                    "are its functions and tables sound?",
                    log,
                ) from None
            raise failure

    def _log(self, name: str) -> Path:
        """A log that outlives a failure, which removes ``work``."""
        config = json.dumps(self.design.config, sort_keys=True, default=str)
        return cache.log("asic", [self.design.block, config, self.library.name], name)


class _Stage:
    """Times a stage of a flow."""

    def __init__(self, flow: _Flow, name: str):
        self.flow, self.name, self.start = flow, name, 0.0

    def __enter__(self) -> None:
        self.flow.progress(self.name)
        self.start = time.monotonic()

    def __exit__(self, *reason: object) -> None:
        taken = time.monotonic() - self.start
        self.flow.seconds[self.name] = self.flow.seconds.get(self.name, 0.0) + taken


def _versions(yosys: tools.Tool, engine: str) -> dict[str, str]:
    found = {"yosys": f"{yosys.version} ({yosys.origin})"}
    if engine == "opensta":
        try:
            sta = tools.find("sta")
            found["opensta"] = f"{sta.version} ({sta.origin})"
        except Missing:
            pass
    return found


def page(report: Report, found: timing.Timing) -> str:
    """The report as a page to read."""
    rows: list[tuple[str, str]] = [
        ("library", f"{report.library} ({', '.join(report.library_files)})"),
        ("mapped for", report.mapping),
        ("cells", f"{report.cells}, of them {report.flip_flops} with a state"),
        ("cell area", f"{report.area_um2:.2f} um2"),
    ]
    if report.nand2_equivalents is not None:
        rows.append(("NAND2 equivalents", f"{report.nand2_equivalents:.1f}"))
    rows.append(("area of flip-flops", f"{100 * report.flip_flop_area_share:.1f} %"))
    if report.fmax_mhz is not None:
        rows.append(("highest clock", f"{report.fmax_mhz:.1f} MHz"))
    if report.target_mhz is not None:
        verdict = "met" if report.met else "not met"
        rows.append(("target", f"{report.target_mhz:g} MHz, {verdict}"))
    simulated = {True: "passed", False: "failed", None: "not run"}[report.gate_sim_passed]
    rows.append(("gate-level simulation", simulated))
    rows += [(tool, version) for tool, version in report.tools.items()]
    parts = [
        f"# {report.block} in {report.library}",
        _table(("what", "value"), rows),
        "## Timing",
        report.timing_limits,
        f"Longest path: from `{found.start}` to `{found.end}`, {found.delay_ns:.3f} ns with setup."
        if found.path
        else "There is no path to time.",
        _table(
            ("signal", "driven by", "ns"),
            [(f"`{point}`", cell, f"{at:.3f}") for point, cell, at in found.path],
        ),
    ]
    if report.memories:
        parts += [
            "## Memories",
            f"Macros with {report.memory_bits} bits in all, not part of the area. {MEMORY_NOTE}",
            _table(
                ("macro", "count", "bits each"),
                [(m.macro, str(m.count), str(m.bits)) for m in report.memories],
            ),
        ]
    parts += [
        "## Cells",
        _table(("cell", "count"), [(name, str(n)) for name, n in report.cells_by_type.items()]),
        "## Parameters",
        _table(("parameter", "value"), [(k, str(v)) for k, v in report.config.items()]),
        "## Time taken",
        _table(("stage", "seconds"), [(name, f"{s:.1f}") for name, s in report.seconds.items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
