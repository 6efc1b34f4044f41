# SPDX-License-Identifier: Apache-2.0
"""Cost of blocks that multiply and accumulate, per product a cycle: LUTs, area, clock, energy."""

import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl import interface
from ...rtl.config import Rate
from ...rtl.errors import AtriplexError, unknown
from .. import blocks
from ..blocks import Block
from ..verilog import Design, emit

Progress = Callable[[str], None]
Row = dict[str, Any]
RUNS = 128
TARGET_MHZ = 100.0


@dataclass(frozen=True)
class Entry:
    """A block with the parameters of one of its rates."""

    block: Block
    rate: Rate

    @property
    def family(self) -> str:
        return self.rate.family or self.block.family

    @property
    def design(self) -> Design:
        return emit(self.block, self.block.config.of(self.rate.values))


def entries(family: str, only: Sequence[str] = ()) -> list[Entry]:
    """All rates of a family's comparison, or those of the blocks named."""
    everything = [
        Entry(block, rate) for block in blocks.found().values() for rate in block.config.rates
    ]
    families = sorted({entry.family for entry in everything})
    if family not in families:
        raise AtriplexError(unknown("family with blocks to compare", family, families))
    found = [entry for entry in everything if entry.family == family]
    names = [entry.block.name for entry in found]
    for name in only:
        if name not in names:
            raise AtriplexError(unknown("block to compare", name, names))
    return [entry for entry in found if not only or entry.block.name in only]


def rows(
    chosen: Sequence[Entry],
    board: Any,
    library: Any,
    *,
    dsp: bool = False,
    progress: Progress = lambda what: None,
) -> Iterator[Row]:
    """A row for each entry; a design that several rates share is built once."""
    from .accuracy import FLOATS, bits_per_weight, perplexity, weights_of_a_token

    progress("the model without rounding")
    base = perplexity(FLOATS, FLOATS)
    weights = weights_of_a_token()
    built: dict[str, Row] = {}
    errors: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for entry in chosen:
            rate, name = entry.rate, entry.block.name
            key = json.dumps([name, dict(rate.values), dict(rate.fields)], sort_keys=True)
            if key not in built:
                built[key] = _built(entry, board, library, Path(scratch), dsp, progress)
            formats = rate.weights, rate.activations
            if formats not in errors:
                progress(f"the model in {rate.weights} by {rate.activations}")
                errors[formats] = perplexity(*formats)
            cost = built[key]
            yield {
                "block": name,
                "label": rate.label,
                "weights": rate.weights,
                "activations": rate.activations,
                "rows": rate.rows,
                "products a cycle": rate.products,
                "LUT4": round(cost["lut"] / rate.products, 1),
                "FF": round(cost["ff"] / rate.products, 1),
                "RAM": round(cost["ram"] / rate.products, 2),
                "DSP": round(cost["dsp"] / rate.products, 2),
                "MHz": cost["mhz"],
                "um2": round(cost["area"] / rate.products),
                "NAND2": round(cost["nand2"] / rate.products, 1) if cost["nand2"] else None,
                "cells MHz": cost["cells mhz"],
                "pJ": round(cost["pj"] / rate.products, 2),
                "cycles a token": round(weights / rate.products),
                "bits a weight": bits_per_weight(rate.weights),
                "perplexity": round(errors[formats], 3),
                "change": f"{100 * (errors[formats] / base - 1):+.2f} %",
                "parameters": dict(rate.values),
            }


def _built(
    entry: Entry, board: Any, library: Any, scratch: Path, dsp: bool, progress: Progress
) -> Row:
    """Costs of a design, kept by all that they depend on."""
    from ...asic import flow as cells
    from ...asic import power
    from ...fpga import flow as fpga
    from ...fpga.families import family
    from ...rtl import cache
    from .. import tools

    design, name = entry.design, entry.block.name
    used = [tools.find(tool) for tool in ("yosys", family(board.family).place)]
    files = (__file__, *(str(module.__file__) for module in (cells, fpga, power)))
    sources = [Path(file).read_bytes() for file in files]
    key = [
        design.text,
        json.dumps(dict(entry.rate.fields)),
        repr(board),
        str(dsp),
        *(f"{tool.name} {tool.version}" for tool in used),
    ]
    key += [library.name, *(f"{file} {file.stat().st_mtime_ns}" for file in library.files)]

    def fill(work: Path) -> None:
        found = _measured(entry, design, board, library, scratch, dsp, progress)
        (work / "costs.json").write_text(json.dumps(found))

    made = cache.folder("compare", [name, *key, *sources], fill)
    return json.loads((made / "costs.json").read_text())


def _measured(
    entry: Entry,
    design: Design,
    board: Any,
    library: Any,
    scratch: Path,
    dsp: bool,
    progress: Progress,
) -> Row:
    from ...asic import flow as cells
    from ...fpga import flow as fpga

    name = entry.block.name
    progress(f"{name} for {board.name}")
    placed = fpga.build(
        design, board, scratch / "fpga", target_mhz=TARGET_MHZ, out_of_context=True, dsp=dsp
    )
    progress(f"{name} in {library.name}")
    mapped = cells.build(design, library, scratch / "asic")
    progress(f"switching of {name}")
    return {
        "lut": placed.lut,
        "ff": placed.ff,
        "ram": placed.ram,
        "dsp": placed.dsp,
        "mhz": placed.fmax_mhz,
        "area": mapped.area_um2,
        "nand2": mapped.nand2_equivalents,
        "cells mhz": mapped.fmax_mhz,
        "pj": energy(entry, design, library, scratch / "asic" / mapped.netlist),
    }


def energy(entry: Entry, design: Design, library: Any, netlist: Path) -> float:
    """Picojoules a cycle while transfers of the block's stimulus go in without a pause."""
    from ...asic import power
    from ...rtl import cache

    log = cache.log("energy", [design.block, json.dumps(design.config)], "energy")
    drive = _drive(entry, design)
    return power.estimate(netlist, design.top, library, drive, runs=RUNS, log=log).total


def _drive(entry: Entry, design: Design) -> Callable[[int], Mapping[str, NDArray[np.uint8]]]:
    """Bits of every input port: each run takes the stimulus from a place of its own on."""
    block = entry.block
    golden = importlib.import_module(block.module.replace(".rtl.", ".sim."))
    component, config_class = interface.load(block.module)
    config = config_class.of(design.config)
    rng = np.random.default_rng(1)
    given = golden.stimulus(config, rng, 4000)
    fields: dict[str, NDArray[np.uint8]] = {}
    levels: list[str] = ["rst"]
    for stream in interface.streams_of(component, config):
        levels.append(stream.port("valid" if stream.direction == "in" else "ready"))
        if stream.direction == "out":
            continue
        for field in stream.fields:
            whole = given[stream.name][field.name]
            if field.name in entry.rate.fields:
                whole = np.full_like(whole, entry.rate.fields[field.name])
            flat = whole.reshape(len(whole), -1, 1).astype(np.int64)
            bits = (flat >> np.arange(field.width) & 1).astype(np.uint8)
            fields[stream.port(field.name)] = bits.reshape(len(whole), -1)
    starts = rng.integers(0, 1 << 30, RUNS)

    def drive(cycle: int) -> dict[str, NDArray[np.uint8]]:
        ports = {port: bits[(starts + cycle) % len(bits)] for port, bits in fields.items()}
        for port in levels:
            level = cycle < 2 if port == "rst" else 1
            ports[port] = np.full((RUNS, 1), level, np.uint8)
        return {port.name: ports[port.name] for port in design.ports if port.name in ports}

    return drive


def multipliers() -> Iterator[Row]:
    """All that multiplies and accumulates, for a product a cycle: `atriplex compare mac`.

    ULX3S without multipliers, the block alone, routed; osu018 without wires; pJ from how often nets
    switch; perplexity of the shipped float model on its own texts, weights and activations in these
    formats.
    """
    yield from _section("mac")


def lookups() -> Iterator[Row]:
    """Tables against adders and multipliers, for a product a cycle: `atriplex compare lut`.

    As for multipliers; rows share the tables, or the activations where there are none. Cycles a
    token are those of the shipped model's weights at the rate of the row.
    """
    yield from _section("lut")


def _section(family: str) -> Iterator[Row]:
    """The table of a comparison."""
    from ...asic.library import library
    from ...fpga.boards import board
    from .report import columns

    found = list(rows(entries(family), board("ulx3s-85f"), library("osu018")))
    shown = columns(found)
    yield from ({name: row[name] for name in shown} for row in found)
