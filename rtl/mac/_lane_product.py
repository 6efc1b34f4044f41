# SPDX-License-Identifier: Apache-2.0
"""One array of partial products for significands of 13, twice 6 or four times 2 bits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module

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


class Column(NamedTuple):
    """A bit of ``a`` as some rows see it: ``at``, and formats in which it must count or be 0.

    In the modes of other formats it is 0 anyway, or these rows add nothing.
    """

    at: int
    counts: tuple[str, ...]
    cleared: tuple[str, ...]


class Region:
    """Bits between which products are ever made: rows ``low`` to ``high - 1``.

    ``product`` has the final bits, ``above`` the sum of the rows so far without them.
    """

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high
        self.product: list[Any] = []
        self.above: Any = Const(0, 0)


class LaneArray:
    """28 bits: products of all segments of ``a`` and ``b``, each at twice its place.

    A row is a bit of ``b``: it adds the bits of ``a`` that are of its own segment, inside a carry
    chain.  The other bits of ``a`` are zeros there, which is all that makes lanes of one array.
    Bits of ``b`` outside of the segments must be 0.

    Give it the ``columns`` (see :meth:`masked`), then let it :meth:`add` every row in turn; between
    two rows everything may go through registers (:meth:`state`, :meth:`resume`).
    """

    def __init__(self, formats: Sequence[str]):
        self.formats = tuple(formats)
        self.regions: list[Region] = []
        for low, high in sorted(s for f in formats for s in SEGMENTS[f]):
            if self.regions and low < self.regions[-1].high:
                self.regions[-1].high = max(self.regions[-1].high, high)
            else:
                self.regions.append(Region(low, high))
        self.rows: dict[int, list[Column]] = {
            row: [c for at in range(each.low, each.high) if (c := self._column(row, at))]
            for each in self.regions
            for row in range(each.low, each.high)
        }
        self.columns: dict[Column, Any] = {}

    def _column(self, row: int, at: int) -> Column | None:
        own = [f for f in self.formats if _segment(f, row)]
        counts = [f for f in own if _segment(f, row) == _segment(f, at)]
        cleared = [f for f in own if f not in counts and _segment(f, at)]
        return Column(at, tuple(counts), tuple(cleared)) if counts else None

    def needed(self, row: int = 0) -> list[Column]:
        """The columns of ``row`` and of those after it."""
        return sorted({c for at, columns in self.rows.items() if at >= row for c in columns})

    def masks(self, modes: Modes) -> dict[Column, Any]:
        """By column: whether it counts in this mode."""
        return {
            c: modes.fewest(c.counts, [f for f in self.formats if f not in c.cleared])
            for c in self.needed()
            if c.cleared
        }

    def add(self, m: Module, platform: Any, row: int, bit: Any) -> None:
        """Adds the columns of one row if ``bit``."""
        if row not in self.rows:
            return
        region = next(each for each in self.regions if each.low <= row < each.high)
        if columns := self.rows[row]:
            start = columns[0].at - region.low
            term = Cat(self.columns[c] for c in columns)
            kept, rest = region.above[:start], region.above[start:]
            if len(rest):
                width = max(len(rest), len(term)) + 1
                rest = place(
                    m,
                    platform,
                    f"row_{row}",
                    AddMask(AddMaskConfig(width=width)),
                    a=Cat(rest, Const(0, width - len(rest))),
                    b=Cat(term, Const(0, width - len(term))),
                    enable=bit.replicate(width),
                    invert=Const(0, width),
                    carry=Const(0, 1),
                ).y
            else:
                kept = Cat(kept, Const(0, start - len(kept)))
                rest = term & bit.replicate(len(term))
            region.above = Cat(kept, rest)
        region.product.append(region.above[0] if len(region.above) else Const(0, 1))
        region.above = region.above[1:]

    def state(self, row: int) -> dict[str, Any]:
        """What the rows from ``row`` on need, and the product as far as it is made."""
        parts: dict[str, Any] = {"columns": Cat(self.columns[c] for c in self.needed(row))}
        for n, region in enumerate(self.regions):
            parts[f"product_{n}"] = Cat(region.product)
            parts[f"above_{n}"] = region.above
        return parts

    def resume(self, row: int, parts: Mapping[str, Any]) -> None:
        """Goes on with :meth:`state` from a register later."""
        self.columns = dict(zip(self.needed(row), parts["columns"], strict=True))
        for n, region in enumerate(self.regions):
            region.product, region.above = list(parts[f"product_{n}"]), parts[f"above_{n}"]

    @property
    def product(self) -> Any:
        bits: list[Any] = [Const(0, 1)] * 28
        for region in self.regions:
            for n, bit in enumerate([*region.product, *region.above]):
                bits[2 * region.low + n] = bit
        return Cat(bits)


def _segment(format_: str, at: int) -> tuple[int, int] | None:
    return next(((low, high) for low, high in SEGMENTS[format_] if low <= at < high), None)
