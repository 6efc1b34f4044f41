# SPDX-License-Identifier: Apache-2.0
"""What the command line makes of the results of longer work."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..rtl import cache
from ..rtl.errors import AtriplexError, unknown
from ..sim.run import Outcome
from .verilog import Design

Progress = Callable[[str], None]


def window(text: str) -> tuple[int, int] | None:
    """``100:200`` as first and last cycle; nothing as none."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise AtriplexError(f"--window takes first:last cycle, as 100:200, not {text!r}")
    return int(match[1]), int(match[2])


def simulation(
    outcome: Outcome,
    preset: str,
    transfers: int,
    modes: Sequence[str],
    asked: Sequence[str],
    waves: Sequence[Path] | None,
) -> dict[str, Any]:
    """The result of ``sim``; ``repeat`` is the command for it, ``look`` the one for its waves."""
    how = {"simulator": outcome.simulator, "seed": outcome.seed, "transfers": transfers}
    words = ["atriplex", "sim", outcome.block, *asked]
    words += [word for name, value in how.items() for word in (f"--{name}", str(value))]
    wrong = next((mode for mode in outcome.modes if mode["first"]), None)
    look = None
    if wrong and (cycle := wrong["first"]["cycle"]):
        span = f"{max(cycle - 30, 1)}:{cycle + 5}"
        look = shlex.join([*words, "--modes", wrong["mode"], "--waves", "--window", span])
    return {
        "block": outcome.block,
        "preset": preset,
        "config": outcome.config,
        "simulator": outcome.simulator,
        "seed": outcome.seed,
        "transfers": outcome.transfers,
        "cycles": outcome.cycles,
        "expected_cycles": outcome.expected_cycles,
        "mismatches": outcome.mismatches,
        "passed": outcome.passed,
        "modes": outcome.modes,
        "complaints": list(outcome.complaints()),
        "repeat": shlex.join([*words, "--modes", ",".join(modes)]),
        "look": look,
        "folder": str(outcome.folder),
        "waves": [str(file) for file in waves or ()],
    }


def modes(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of ``sim``."""
    columns = ["mode", "transfers", "outputs", "wrong", "cycles", "cycle model"]
    keys = ["mode", "transfers", "outputs", "mismatches", "cycles", "expected_cycles"]
    return columns, [[mode[key] for key in keys] for mode in outcome.modes]


def draw(
    outcome: Outcome,
    design: Design,
    folder: Path,
    scope: str,
    cycles: tuple[int, int] | None,
) -> tuple[Path, Path]:
    """The run's waves, decoded, into ``folder``; the raw ones go."""
    from ..sim import waves

    raw = outcome.folder / "dump.vcd"
    try:
        with cache.write_whole(folder) as new:
            files = waves.write(raw, new, design.top, design.streams, scope=scope, window=cycles)
    finally:
        raw.unlink(missing_ok=True)
    return folder / files[0].name, folder / files[1].name


def netlist(design: Design, what: str, progress: Progress) -> list[Path]:
    """Verilog files of the design as a netlist: of an FPGA family, or of a cell library."""
    from ..asic import flow as asic
    from ..asic.library import libraries, library
    from ..fpga import families
    from ..fpga import flow as fpga

    known = [*families.FAMILIES, *libraries()]
    if what not in known and not re.search(r"[/,]|\.lib\b", what):
        raise AtriplexError(unknown("netlist", what, known))
    folder = cache.root() / "netlists" / cache.digest([what, design.text])
    if what not in families.FAMILIES:
        asic.build(design, library(what), folder, progress=progress)
        return asic.gate_sources(folder)
    progress("synthesis")
    return [fpga.netlist(design, what, folder), *fpga.cell_models(what)]


def placed(report: Any) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of ``fpga``."""
    names = {"lut": "LUT4", "ff": "flip-flops", "ram": "block RAMs", "dsp": "DSP blocks"}
    rows = [
        [title, getattr(report, name), f"{report.percent[name]:.1f} % of {report.device}"]
        for name, title in names.items()
    ]
    rows.append(["MHz", report.fmax_mhz, f"target {report.target_mhz:g}"])
    if path := report.critical_path:
        rows.append(["slowest path", f"{path.delay_ns:.2f} ns", f"{path.start} to {path.end}"])
    rows.append(["bitstream", report.bitstream or "none", ""])
    return ["", f"{report.block} on {report.board}", ""], rows


def mapped(report: Any) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of ``asic``."""
    simulated = {True: "passed", False: "FAILED", None: "not run"}[report.gate_sim_passed]
    target = f"target {report.target_mhz:g}, " if report.target_mhz else ""
    rows = [
        ["cells", report.cells, f"{report.flip_flops} flip-flops"],
        ["square micrometres", f"{report.area_um2:.1f}", "cells alone"],
        ["NAND2 equivalents", report.nand2_equivalents, ""],
        ["MHz", report.fmax_mhz, f"{target}{report.timing_engine}"],
        ["gate-level simulation", simulated, ""],
        ["netlist", report.netlist, ""],
    ]
    return ["", f"{report.block} in {report.library}", ""], rows


def steps(progress: Progress, every: bool) -> Callable[[dict[str, Any]], None]:
    """A training's callback that shows each step, or those alone at which the loss was taken."""

    def show(record: dict[str, Any]) -> None:
        at = f"training: {record['model']} step {record['step']} of {record['steps']}"
        if "loss" in record:
            progress(f"{at}, loss {record['loss']:.3f}, held out {record['held_out']:.3f}")
        elif every:
            progress(at)

    return show
