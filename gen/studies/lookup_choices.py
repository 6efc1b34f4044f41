# SPDX-License-Identifier: Apache-2.0
"""What the table-lookup tensor core is made of: its choices one by one."""

from collections.abc import Iterator
from typing import Any

from .. import blocks, measure
from ..verilog import Design, emit

Row = dict[str, Any]
TILE = {"m": 1, "n": 16, "stages": 1}
"""One row, 16 columns; the accumulator is the only register behind the tables, as published."""


def core(**values: Any) -> Design:
    block = blocks.find("lut_tensor_core")
    return emit(block, block.config.of({**TILE, **values}))


def _products(design: Design, bits: int) -> float:
    """Of a cycle: a plane of ``bits`` takes one."""
    config = design.config
    return config["m"] * config["n"] * config["k"] * config["groups"] / bits


CHOICES: dict[str, Row] = {
    "as in the paper": {},
    "addresses complemented inside": {"remap": "inline"},
    "whole tables": {"half_table": False, "table_width": 11},
    "tables made inside": {"precompute": True},
    "tables quantised to 8 bits": {"table_width": 8},
    "without the sum of activations": {"zero_point": False},
    "a register behind the lookup": {"stages": 2},
    "k = 2": {"k": 2, "n": 32, "table_width": 9},
    "k = 3": {"k": 3, "n": 21},
    "k = 5": {"k": 5, "n": 13, "table_width": 11},
    "k = 6": {"k": 6, "n": 11, "table_width": 11},
    "2 rows, 8 columns": {"m": 2, "n": 8},
    "4 rows, 4 columns": {"m": 4, "n": 4},
    "k = 4, 2 groups": {"groups": 2},
    "k = 4, 4 groups": {"groups": 4},
    "k = 3, 4 groups": {"k": 3, "groups": 4},
    "k = 2, 4 groups": {"k": 2, "groups": 4, "table_width": 9},
    "k = 2, 8 groups": {"k": 2, "groups": 8, "table_width": 9},
    "k = 2, 8 groups, tables made inside": {
        **{"k": 2, "groups": 8, "table_width": 9, "precompute": True}
    },
}
"""What differs from the tile of 16 columns and 4 activations, weights of 2 bits, int8."""


def lookup_choices(choices: dict[str, Row] = CHOICES) -> Iterator[Row]:
    """What the choices are worth: a row, 16 columns, 4 activations of int8, weights of 2 bits.

    LUT4, FF and NAND2 are for a product a cycle and count the tables; ECP5 without multipliers,
    alone and routed, and osu018 without wires.  Other `k` have the columns for as many products.
    """
    from ...asic.library import library
    from ...fpga.boards import board

    for name, values in choices.items():
        design = core(max_bits=2, **values)
        products = _products(design, 2)
        placed = measure.placed(design, board("ulx3s-85f"))
        mapped = measure.mapped(design, library("osu018"))
        yield {
            "block": "lut_tensor_core",
            "design": name,
            "products a cycle": products,
            "LUT4": f"{placed.lut / products:.1f}",
            "FF": f"{placed.ff / products:.1f}",
            "MHz": placed.mhz,
            "NAND2": f"{(mapped.nand2 or 0) / products:.1f}",
            "osu018 MHz": mapped.mhz,
        }
