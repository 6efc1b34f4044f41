# SPDX-License-Identifier: Apache-2.0
"""Size and clock of a design on a board and in cells, kept by content."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rtl import cache
from . import tools
from .verilog import Design

TARGET_MHZ = 100.0
BIT_UM2 = 5.0
"""Area assumed of a bit of SRAM with its share of the array's edges, in a process of 0.18 um."""


@dataclass(frozen=True)
class Placed:
    """Of the block alone, LUT4 with a CCU2C counted as two; ``mhz`` after routing, 0 for none."""

    lut: int
    ff: int
    ram: int
    dsp: int
    mhz: float


@dataclass(frozen=True)
class Mapped:
    """``area`` in um2, without memories, which are macros of ``memory_bits`` together.

    ``nand2`` is None where the library has no such cell; ``netlist`` is the file.
    """

    area: float
    nand2: float | None
    mhz: float
    memory_bits: int
    netlist: Path


def placed(design: Design, board: Any, *, dsp: bool = False, out_of_context: bool = True) -> Placed:
    """Synthesised, placed and routed, without multipliers unless ``dsp``."""
    from ..fpga import flow

    with tempfile.TemporaryDirectory() as scratch:
        found = flow.build(  # which keeps what it makes
            design,
            board,
            Path(scratch) / "out",
            target_mhz=TARGET_MHZ,
            out_of_context=out_of_context,
            dsp=dsp,
        )
    return Placed(found.lut, found.ff, found.ram, found.dsp, found.fmax_mhz or 0)


def mapped(design: Design, library: Any, *, memory_bits: int | None = None) -> Mapped:
    """Mapped to the library's cells, without wires.

    Memories up to ``memory_bits``, unasked the flow's own number, are flip-flops.
    """
    from ..asic import flow

    flops = flow.MEMORY_BITS if memory_bits is None else memory_bits
    key = [
        design.text,
        f"{tools.find('yosys').version} {flops} {Mapped.__match_args__}",
        library.name,
        *(f"{file} {file.stat().st_mtime_ns}" for file in library.files),
        Path(flow.__file__).read_bytes(),
    ]

    def fill(work: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            found = flow.build(design, library, out, memory_bits=flops)
            (work / "netlist.v").write_bytes((out / found.netlist).read_bytes())
            if (out / "memories.v").exists():  # what the energy of the netlist needs beside it
                (work / "memories.v").write_bytes((out / "memories.v").read_bytes())
        values = [found.area_um2, found.nand2_equivalents, found.fmax_mhz or 0, found.memory_bits]
        (work / "mapped.json").write_text(json.dumps(values))

    made = cache.folder("mapped", key, fill)
    area, nand2, mhz, macros = json.loads((made / "mapped.json").read_text())
    return Mapped(area, nand2, mhz, macros, made / "netlist.v")
