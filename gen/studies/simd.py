# SPDX-License-Identifier: Apache-2.0
"""What one datapath for four formats saves: a multiply-accumulate unit for each, beside it."""

from collections.abc import Iterator
from typing import Any

from ...rtl.mac._modes import LANES
from .. import blocks, measure
from ..verilog import emit

SETTINGS = ({}, {"rows": 0}, {"out": "codes"})
"""As it is; without registers in the multiplier; with read-out.  All units have the same."""


def simd(settings: tuple[dict[str, Any], ...] = SETTINGS) -> Iterator[dict[str, Any]]:
    """One `xr_npe` of four formats and the four of one format that it replaces; ECP5 without DSP.

    All take a word of 16 bits a cycle, so have 4, 4, 2 and 1 lanes, and sum as many products
    without overflow; each accumulator is as wide as its own format needs.
    """
    from ...asic.library import library
    from ...fpga.boards import board

    block, ulx3s, cells = blocks.find("xr_npe"), board("ulx3s-85f"), library("osu018")

    def measured(what: str, values: dict[str, Any], **more: Any) -> dict[str, Any]:
        design = emit(block, block.config(**values, **more))
        placed, mapped = measure.placed(design, ulx3s), measure.mapped(design, cells)
        return {
            "block": "xr_npe",
            "setting": ", ".join(f"{name} = {value}" for name, value in values.items()) or "-",
            "design": what,
            "LUT4": placed.lut,
            "FF": placed.ff,
            "MHz": placed.mhz,
            "osu018 um2": round(mapped.area),
            "osu018 MHz": mapped.mhz,
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
