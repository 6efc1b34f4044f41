# SPDX-License-Identifier: Apache-2.0
"""One array of partial products for significands of 13, twice 6 or four times 2 bits."""

from collections.abc import Iterator
from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal

from .._add_mask import AddMask, AddMaskConfig
from .._once import place
from ._modes import Modes

SEGMENTS = {
    "fp4": ((0, 2), (4, 6), (8, 10), (12, 14)),
    "posit4_1": (),
    "posit8_0": ((0, 6), (8, 14)),
    "posit16_1": ((0, 13),),
}
"""Bits of the significands by format; every bound but the last is one of two-bit tiles, and so
the products of the lanes are at twice the place."""
TILE = 2


def regions(modes: Modes) -> list[tuple[int, int]]:
    """Bits between which products are ever made: segments of all formats, joined where they
    overlap."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(s for f in modes.formats for s in SEGMENTS[f]):
        if found and low < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def lane_products(m: Module, platform: Any, a: Any, b: Any, modes: Modes) -> Any:
    """28 bits: products of all segments of ``a`` and ``b``, each at twice its place.

    A row is a bit of ``b``: it adds the bits of ``a`` that are of its own segment, inside a carry
    chain.  The other bits of ``a`` are zeros there, which is all that makes lanes of one array.
    Bits of ``b`` outside of the segments must be 0.
    """
    masked: dict[tuple[int, Any], Any] = {}

    def column(row: int, at: int) -> Any:
        """Bit ``at`` of ``a`` for a row, 0 in modes in which it is of another lane; None if all."""
        own = [f for f in modes.formats if _segment(f, row)]
        needed = [f for f in own if _segment(f, row) == _segment(f, at)]
        harmed = [f for f in own if f not in needed and _segment(f, at)]
        if not needed:
            return None
        if not harmed:
            return a[at]
        key = (at, (tuple(needed), tuple(harmed)))
        if key not in masked:
            mask = modes.fewest(needed, [f for f in modes.formats if f not in harmed])
            name = f"a_{at}_of_{'_'.join(needed)}"
            masked[key] = Signal(name=name)
            m.d.comb += masked[key].eq(a[at] & mask)
        return masked[key]

    product: list[Any] = [Const(0, 1)] * 28
    for low, high in regions(modes):
        bits = _region(m, platform, b, low, high, column)
        for at, bit in enumerate(bits):
            product[2 * low + at] = bit
    return Cat(product)


def _segment(format_: str, at: int) -> tuple[int, int] | None:
    return next(((low, high) for low, high in SEGMENTS[format_] if low <= at < high), None)


def _region(m: Module, platform: Any, b: Any, low: int, high: int, column: Any) -> Iterator[Any]:
    """The product's bits from ``2 * low`` on; ``above`` is the sum of the rows without the final
    ones."""
    above: Any = Const(0, 0)
    for row in range(low, high):
        columns = {at: bit for at in range(low, high) if (bit := column(row, at)) is not None}
        if columns:
            start, stop = min(columns), max(columns) + 1
            term = Cat(columns.get(at, Const(0, 1)) for at in range(start, stop))
            kept, rest = above[: start - low], above[start - low :]
            if not len(rest):
                padding = Const(0, start - low - len(kept))
                above = Cat(kept, padding, term & b[row].replicate(len(term)))
            else:
                width = max(len(rest), len(term)) + 1
                add = place(
                    m,
                    platform,
                    f"row_{row}",
                    AddMask(AddMaskConfig(width=width)),
                    a=Cat(rest, Const(0, width - len(rest))),
                    b=Cat(term, Const(0, width - len(term))),
                    enable=b[row].replicate(width),
                    invert=Const(0, width),
                    carry=Const(0, 1),
                )
                above = Cat(kept, add.y)
        yield above[0] if len(above) else Const(0, 1)
        above = above[1:]
    yield from above
