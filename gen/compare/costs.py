# SPDX-License-Identifier: Apache-2.0
"""Cost of blocks that multiply and accumulate, per product a cycle: LUTs, area, clock, energy."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl import cache, interface
from ...rtl.config import Rate
from ...rtl.errors import AtriplexError, unknown
from .. import blocks, measure
from ..blocks import Block
from ..verilog import Design, emit

Progress = Callable[[str], None]
Row = dict[str, Any]
RUNS = 128


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
    errors: dict[tuple[str, str], float] = {}
    for entry in chosen:
        rate, name = entry.rate, entry.block.name
        design = entry.design
        progress(f"{name} for {board.name}")
        placed = measure.placed(design, board, dsp=dsp)
        progress(f"{name} in {library.name}")
        mapped = measure.mapped(design, library)
        progress(f"switching of {name}")
        picojoules = energy(entry, design, library, mapped.netlist)
        formats = rate.weights, rate.activations
        if formats not in errors:
            progress(f"the model in {rate.weights} by {rate.activations}")
            errors[formats] = perplexity(*formats)
        yield {
            "block": name,
            "label": rate.label,
            "weights": rate.weights,
            "activations": rate.activations,
            "rows": rate.rows,
            "products a cycle": rate.products,
            "LUT4": round(placed.lut / rate.products, 1),
            "FF": round(placed.ff / rate.products, 1),
            "RAM": round(placed.ram / rate.products, 2),
            "DSP": round(placed.dsp / rate.products, 2),
            "MHz": placed.mhz,
            "um2": round(mapped.area / rate.products),
            "NAND2": round(mapped.nand2 / rate.products, 1) if mapped.nand2 else None,
            "cells MHz": mapped.mhz,
            "memory bits": round(mapped.memory_bits / rate.products),
            "pJ": round(picojoules / rate.products, 2),
            "cycles a token": round(weights / rate.products),
            "bits a weight": round(rate.bits or bits_per_weight(rate.weights), 3),
            "perplexity": round(errors[formats], 3),
            "change": f"{100 * (errors[formats] / base - 1):+.2f} %",
            "parameters": dict(rate.values),
        }


def energy(entry: Entry, design: Design, library: Any, netlist: Path) -> float:
    """Picojoules a cycle while transfers of the block's stimulus go in without a pause."""
    from ...asic import power

    fields = json.dumps(dict(entry.rate.fields), sort_keys=True)
    golden = importlib.import_module(entry.block.module.replace(".rtl.", ".sim."))
    sources = [Path(str(file)).read_bytes() for file in (__file__, power.__file__, golden.__file__)]
    key = [netlist.read_bytes(), library.name, fields, *sources]

    def fill(work: Path) -> None:
        log = cache.log("energy", [design.block, json.dumps(design.config)], "energy")
        drive = _drive(entry, design)
        found = power.estimate(netlist, design.top, library, drive, runs=RUNS, log=log).total
        (work / "energy.json").write_text(json.dumps(found))

    return json.loads((cache.folder("energy", key, fill) / "energy.json").read_text())


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


def section(family: str) -> Iterator[Row]:
    """The table of a comparison on ULX3S and with osu018, with the columns that say something."""
    from ...asic.library import library
    from ...fpga.boards import board
    from .report import columns

    found = list(rows(entries(family), board("ulx3s-85f"), library("osu018")))
    shown = columns(found)
    yield from ({name: row[name] for name in shown} for row in found)
