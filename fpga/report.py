# SPDX-License-Identifier: Apache-2.0
"""What a build found: figures, the slowest path, and a page to read."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESOURCES = {"lut": "LUT4", "ff": "flip-flops", "ram": "block RAMs", "dsp": "DSP blocks"}


@dataclass(frozen=True)
class Segment:
    """One step of a path: ``kind`` is clk-to-q, logic, routing or setup; ``net`` is for routing."""

    kind: str
    delay_ns: float
    cell: str
    net: str


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path from register to register, and its delay in cells and in wires."""

    start: str
    end: str
    delay_ns: float
    logic_ns: float
    routing_ns: float
    segments: tuple[Segment, ...]

    @property
    def sentence(self) -> str:
        return (
            f"The slowest path goes from {self.start} to {self.end}: {self.delay_ns:.2f} ns, of "
            f"which {self.logic_ns:.2f} ns in cells and {self.routing_ns:.2f} ns in wires."
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a build found.

    ``lut``, ``ff``, ``ram`` and ``dsp`` are the block alone after synthesis: LUT4 with a CCU2C
    counted as two (ECP5), cells with a LUT or a carry (iCE40), LUT1 to LUT4 and ALU (Gowin).
    ``shell`` is what the shell adds; ``placed`` is all of it as nextpnr packed it, beside what the
    part has.  ``fmax_mhz`` is None where no path runs from register to register.  ``mapped`` names
    the modules that were mapped to carry chains as a whole.
    """

    block: str
    config: dict[str, Any]
    board: str
    device: str
    lut: int
    ff: int
    ram: int
    dsp: int
    percent: dict[str, float]
    shell: dict[str, int]
    placed: dict[str, dict[str, float]]
    fmax_mhz: float | None
    target_mhz: float
    met: bool
    bitstream: str | None
    out_of_context: bool
    carry_cells: bool
    mapped: tuple[str, ...]
    seed: int
    critical_path: CriticalPath | None
    tools: dict[str, str]
    seconds: dict[str, float]

    def values(self) -> dict[str, Any]:
        """The report for JSON."""
        values = dataclasses.asdict(self)
        if self.critical_path:
            values["critical_path"]["sentence"] = self.critical_path.sentence
        return values

    def complaint(self) -> str | None:
        """One sentence that says what was asked for and is not so; None if the target is met."""
        if self.met:
            return None
        path = self.critical_path
        if self.fmax_mhz is None or path is None:
            return (
                f"{self.block} has no path from register to register, so out of context there is "
                "no frequency; build it with its shell"
            )
        remedy = "another seed, " if path.routing_ns > path.logic_ns else ""
        return (
            f"{self.block} reaches {self.fmax_mhz:.1f} MHz on {self.board}, not the "
            f"{self.target_mhz:g} asked for: {path.start} to {path.end} takes "
            f"{path.delay_ns:.2f} ns; try {remedy}more pipeline stages or a lower target"
        )

    def page(self) -> str:
        """The report as Markdown."""
        path, verdict = self.critical_path, "met" if self.met else "MISSED"
        speed = f"{self.fmax_mhz:.1f} MHz" if self.fmax_mhz else "no path from register to register"
        lines = [
            f"# {self.block} on {self.board} ({self.device})",
            "",
            f"Frequency: {speed}; target {self.target_mhz:g} MHz, {verdict}.",
            f"Bitstream: {self.bitstream or 'none, the block was built out of context'}.",
            "",
            "| | block | of the part | shell |",
            "|---|--:|--:|--:|",
            *(
                f"| {title} | {getattr(self, name)} | {self.percent[name]:.1f} % "
                f"| {self.shell[name]} |"
                for name, title in RESOURCES.items()
            ),
            "",
            "After packing, all together:",
            "",
            "| cell | used | of | |",
            "|---|--:|--:|--:|",
            *(
                f"| {name} | {row['used']} | {row['available']} | {row['percent']:.1f} % |"
                for name, row in self.placed.items()
            ),
            "",
        ]
        if path:
            lines += [
                path.sentence,
                "",
                "| ns | step | cell | net |",
                "|--:|---|---|---|",
                *(
                    f"| {step.delay_ns:.2f} | {step.kind} | `{step.cell}` "
                    f"| {f'`{step.net}`' if step.net else ''} |"
                    for step in path.segments
                ),
                "",
            ]
        facts = {
            "Parameters": ", ".join(f"{name} = {value}" for name, value in self.config.items()),
            "Carry cells": "used" if self.carry_cells else "not used",
            "Mapped as one carry chain": ", ".join(self.mapped) or "nothing",
            "Seed": self.seed,
            "Tools": ", ".join(f"{name} {version}" for name, version in self.tools.items()),
            "Seconds": ", ".join(f"{name} {spent:g}" for name, spent in self.seconds.items()),
        }
        lines += [f"- {name}: {value}" for name, value in facts.items()]
        return "\n".join(lines) + "\n"


def read(folder: Path) -> Report:
    """The report in a folder that a build wrote; the bitstream with its path."""
    values = json.loads((folder / "report.json").read_text())
    if path := values["critical_path"]:
        path.pop("sentence")
        path["segments"] = tuple(Segment(**segment) for segment in path["segments"])
        values["critical_path"] = CriticalPath(**path)
    if values["bitstream"]:
        values["bitstream"] = str(folder / values["bitstream"])
    return Report(**{**values, "mapped": tuple(values["mapped"])})


def timing(placed: Mapping[str, Any], signals: Mapping[str, str]) -> CriticalPath | None:
    """The slowest register-to-register path in a report of nextpnr; None if it has none.

    ``signals`` names the register that a cell holds.
    """
    inner = [
        path
        for path in placed["critical_paths"]
        if path["from"] != "<async>" and path["to"] != "<async>" and path["path"]
    ]
    if not inner:
        return None
    steps = max((path["path"] for path in inner), key=lambda path: sum(s["delay"] for s in path))
    segments = tuple(
        Segment(step["type"], round(step["delay"], 3), step["to"]["cell"], step.get("net", ""))
        for step in steps
    )
    routing = sum(segment.delay_ns for segment in segments if segment.kind == "routing")
    total = sum(segment.delay_ns for segment in segments)
    first, last = steps[0]["from"]["cell"], steps[-1]["to"]["cell"]
    net = next((segment.net for segment in segments if segment.net), first)
    return CriticalPath(
        start=signals.get(first) or net.removeprefix("block."),
        end=signals.get(last, last),
        delay_ns=round(total, 3),
        logic_ns=round(total - routing, 3),
        routing_ns=round(routing, 3),
        segments=segments,
    )
