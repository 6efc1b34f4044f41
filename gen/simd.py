# SPDX-License-Identifier: Apache-2.0
"""What one datapath for four formats saves: a multiply-accumulate unit for each, beside it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..rtl.mac._modes import LANES
from . import blocks
from .verilog import emit

SETTINGS = ({}, {"rows": 0}, {"out": "codes"})
"""As it is; without registers in the multiplier; with read-out.  All units have the same."""


def simd(settings: tuple[dict[str, Any], ...] = SETTINGS) -> Iterator[dict[str, Any]]:
    """One `xr_npe` of four formats and the four of one format that it replaces; ECP5 without DSP.

    All take a word of 16 bits a cycle, so have 4, 4, 2 and 1 lanes, and sum as many products
    without overflow; each accumulator is as wide as its own format needs.
    """
    from ..asic.flow import build as to_cells
    from ..asic.library import library
    from ..fpga.boards import board
    from ..fpga.flow import build as to_board

    block, ulx3s = blocks.find("xr_npe"), board("ulx3s-85f")

    def measured(what: str, values: dict[str, Any], **more: Any) -> dict[str, Any]:
        design = emit(block, block.config(**values, **more))
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            placed = to_board(design, ulx3s, out, target_mhz=100, dsp=False, out_of_context=True)
            mapped = to_cells(design, library("osu018"), out)
        return {
            "block": "xr_npe",
            "setting": ", ".join(f"{name} = {value}" for name, value in values.items()) or "-",
            "design": what,
            "LUT4": placed.lut,
            "FF": placed.ff,
            "MHz": placed.fmax_mhz or 0,
            "osu018 um2": round(mapped.area_um2),
            "osu018 MHz": mapped.fmax_mhz or 0,
        }

    for values in settings:
        one = measured("xr_npe, four formats", values)
        singles = [measured(f"{name} only", values, formats=name) for name in LANES]
        together = {**one, "design": "the four of one format"}
        for unit in ("LUT4", "FF", "osu018 um2"):
            together[unit] = sum(each[unit] for each in singles)
        for unit in ("MHz", "osu018 MHz"):
            together[unit] = min(each[unit] for each in singles)
        for row in (one, *singles, together):
            yield {
                **row,
                "LUT4 to the four": f"{row['LUT4'] / together['LUT4']:.3f}",
                "area to the four": f"{row['osu018 um2'] / together['osu018 um2']:.3f}",
            }
