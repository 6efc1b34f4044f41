# SPDX-License-Identifier: Apache-2.0
"""The family of table-lookup units side by side, with the adders and multipliers they replace."""

from collections.abc import Iterator

from ..compare.costs import Row, section


def lookups() -> Iterator[Row]:
    """Tables against adders and multipliers, for a product a cycle: `atriplex compare lut`.

    As for multipliers; rows share the tables, or the activations where there are none. Cycles a
    token are those of the shipped model's weights at the rate of the row. Memory bits are those of
    vectors and tables: of 1280 inputs for `ternary_gemv` with 8 lanes and tables in registers, of
    288 and 384 for tables in block RAM.
    """
    yield from section("lut")
