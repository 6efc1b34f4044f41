# SPDX-License-Identifier: Apache-2.0
"""What compute in a memory of weights takes beside the memory."""

from collections.abc import Iterator

from ...rtl.lut.sail import SailConfig
from ...rtl.lut.sail_sram import SailSramConfig
from .. import blocks, measure
from ..verilog import emit
from .reuse import Row, percent


def overhead() -> Iterator[Row]:
    """Logic beside the memory array that it serves: osu018 cells, and bits of tables and sums.

    64 columns, weights of 4 and activations of 8 bits, a batch of 8, sums of 24 bits; the paper
    says about 2 %, and not of what. A bit of memory is taken as 5 um2; the pattern reuse table's
    bits count as logic. `2 % of`: the memory beside which that would be 2 %.
    """
    from ...asic.library import library

    serial = SailSramConfig(cols=64, style="serial")
    word = SailConfig(cols=64, slices=1, double=False)
    reused = SailConfig(cols=64, slices=1, double=False, nbw=6, entries=32)
    designs = (
        ("sail_sram, serial", "sail_sram", serial, serial.table_bits + serial.sum_bits, 0),
        ("sail, nbw 4", "sail", word, word.array_bits, 0),
        ("sail, nbw 6, 32 entries", "sail", reused, reused.array_bits, reused.reuse_bits),
    )
    for name, block, config, bits, kept in designs:
        design = emit(blocks.find(block), config)
        mapped = measure.mapped(design, library("osu018"), memory_bits=128)
        area = mapped.area + kept * measure.BIT_UM2
        yield {
            "design": name,
            "array bits": bits,
            "reuse bits": kept,
            "cells um2": round(mapped.area),
            "um2 a column": round(mapped.area / 64),
            "overhead": percent(area / (bits * measure.BIT_UM2)),
            "2 % of": f"{area / 0.02 / measure.BIT_UM2 / 8192:.0f} KiB",
        }
