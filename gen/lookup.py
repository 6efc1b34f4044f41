# SPDX-License-Identifier: Apache-2.0
"""What the table-lookup tensor core is made of, and its area against the bits of its weights."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import blocks
from .verilog import Design, emit

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


def lookup(choices: dict[str, Row] = CHOICES) -> Iterator[Row]:
    """What the choices are worth: a row, 16 columns, 4 activations of int8, weights of 2 bits.

    LUT4, FF and NAND2 are for a product a cycle and count the tables; ECP5 without multipliers,
    alone and routed, and osu018 without wires.  Other `k` have the columns for as many products.
    """
    from ..fpga.boards import board
    from ..fpga.flow import build as to_board

    for name, values in choices.items():
        design = core(max_bits=2, **values)
        products = _products(design, 2)
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            placed = to_board(
                design, board("ulx3s-85f"), out, target_mhz=100, dsp=False, out_of_context=True
            )
        cells = _cells(design)
        yield {
            "block": "lut_tensor_core",
            "design": name,
            "products a cycle": products,
            "LUT4": f"{placed.lut / products:.1f}",
            "FF": f"{placed.ff / products:.1f}",
            "MHz": placed.fmax_mhz,
            "NAND2": f"{cells['nand2'] / products:.1f}",
            "osu018 MHz": cells["mhz"],
        }


INTEGERS = (1, 2, 3, 4, 6, 8)
"""Bits of weights that are compared with int8 activations."""


def weight_bits(integers: tuple[int, ...] = INTEGERS) -> Iterator[Row]:
    """NAND2 for a product a cycle, by the bits of weights, with lookup and without; osu018.

    Bit-serial weights take a cycle for each bit, which is counted.  Lookup has tables of 4 in a
    tile of 1 x 16 x 4, and of 2 in one of 1 x 8 x 16.  Multipliers are as narrow as the weights,
    with 1 bit additions; those of fp16 are of fp16, a quarter of the columns.  All have registers
    for operands, behind lookup or product, and for sums.  What tables cost is from tiles of half
    the columns.
    """
    wide = {"k": 2, "groups": 8, "table_width": 9}
    for bits in integers:
        yield _against("int8", bits, {}, {"k": 4, "n": 16})
    for bits in integers[:4]:
        yield _against("int8", bits, wide, {"k": 16, "n": 8})
    for bits in range(1, 9):
        yield _against("fp16", bits, {}, {"k": 4, "n": 16})


def _against(activations: str, bits: int, tables: Row, tile: Row) -> Row:
    """A row of the study; what half precision costs does not depend on how many planes follow."""
    floats = activations == "fp16"
    columns, products = tile["n"], tile["n"] * tile["k"]
    planes = min(bits, 2) if floats else bits
    common = {"activations": activations, "zero_point": False, "stages": 3, "max_bits": planes}
    whole, half = (
        _nand2("lut_tensor_core", m=1, **common, **tables, n=n) for n in (columns, columns // 2)
    )
    tile = {**tile, "activations": activations, "n": columns // 4 if floats else columns}
    adder = {"style": "add", "bits": planes}
    other = adder if bits == 1 else {"style": "native", "bits": bits}
    if floats:
        other = {"style": "mac"}
    multipliers, additions = (
        _nand2("mac_tile", **tile, **style) / (tile["n"] * tile["k"]) for style in (other, adder)
    )
    additions *= bits
    lookup_cost, without = whole * bits / products, 2 * (whole - half) * bits / products
    return {
        "block": "lut_tensor_core",
        "activations": activations,
        "tile": f"1 x {columns} x {tile['k']}",
        "weight bits": bits,
        "lookup": f"{lookup_cost:.0f}",
        "of these tables": f"{lookup_cost - without:.0f}",
        "multipliers": f"{multipliers:.0f}",
        "additions, bit-serial": f"{additions:.0f}",
        "lookup to multipliers": f"{lookup_cost / multipliers:.2f}",
        "without tables": f"{without / multipliers:.2f}",
    }


def _nand2(name: str, **values: Any) -> float:
    block = blocks.find(name)
    return _cells(emit(block, block.config.of(values)))["nand2"]


def _cells(design: Design) -> Row:
    """NAND2 and MHz in osu018, kept by all that they depend on."""
    from ..asic import flow
    from ..asic.library import library
    from ..rtl import cache
    from . import tools

    osu018, yosys = library("osu018"), tools.find("yosys")

    def fill(work: Path) -> None:
        report = flow.build(design, osu018, work / "out")
        found = {"nand2": report.nand2_equivalents, "mhz": report.fmax_mhz}
        (work / "cells.json").write_text(json.dumps(found))

    files = (f"{file} {file.stat().st_mtime_ns}" for file in osu018.files)
    source = Path(str(flow.__file__)).read_bytes()
    key = [design.text, f"{yosys.name} {yosys.version}", *files, source]
    return json.loads((cache.folder("cells", key, fill) / "cells.json").read_text())
