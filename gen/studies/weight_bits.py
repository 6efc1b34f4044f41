# SPDX-License-Identifier: Apache-2.0
"""Area of the table-lookup tensor core against the bits of its weights, beside multipliers."""

from collections.abc import Iterator
from typing import Any

from .. import blocks, measure
from ..verilog import emit

Row = dict[str, Any]
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
    from ...asic.library import library

    block = blocks.find(name)
    mapped = measure.mapped(emit(block, block.config.of(values)), library("osu018"))
    return mapped.nand2 or 0.0
