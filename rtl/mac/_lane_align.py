# SPDX-License-Identifier: Apache-2.0
"""Products at their place in the accumulator, without a shifter as wide as that.

A product of 26 bits is rotated within a window of 32, and the accumulator reads the window again
and again: its bit ``p`` reads bit ``p % 32``.  Blocks of 4 bits say which of them count; those 8
in a row that the product touches do, and no bit of the window is seen twice.  Smaller lanes have
windows of 16 and 8 bits inside the same 32.
"""

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from ._modes import LANES, Modes, any_bit

WINDOW = 32
BLOCK = 4
SPAN = {"fp4": 8, "posit4_1": 8, "posit8_0": 16, "posit16_1": 32}
"""Bits of the window of one lane."""
BLOCKS = {"fp4": 2, "posit4_1": 5, "posit8_0": 7, "posit16_1": 29}
"""Blocks of a lane that a product can touch: up to 144, 2**16, 2**24 and 2**112."""
PRODUCT = {"fp4": 4, "posit4_1": 1, "posit8_0": 12, "posit16_1": 26}
"""Bits of a product before it is aligned."""


def places(format_: str) -> set[int]:
    """Bits of the window in which products of a format begin."""
    return {
        SPAN[format_] * lane + bit
        for lane in range(LANES[format_])
        for bit in range(PRODUCT[format_])
    }


def rotated(m: Module, products: Any, sums: Mapping[int, Any], modes: Modes) -> tuple[Any, Any]:
    """The window, and for each format the bits of it that can be set.

    ``sums`` are those of the scales, by adder.  Bits that no product of a mode can reach are not
    brought over from a neighbour in that mode.
    """
    window = products
    live = {f: places(f) for f in modes.formats}
    for stage in range(5):
        by = 1 << stage
        uses = [f for f in modes.formats if _moves(f, stage, modes)]
        if not uses:
            continue
        shifted = {
            f: {_source(f, at, by): at for at in range(WINDOW) if _source(f, at, by) in live[f]}
            for f in uses
        }
        after = {f: live[f] | set(shifted[f].values()) if f in uses else live[f] for f in live}
        bits: list[Any] = []
        turns = _turns(m, stage, sums, modes)
        for at in range(WINDOW):
            if not any(at in after[f] for f in after):
                bits.append(Const(0, 1))
                continue
            sources: dict[str, int | None] = {}
            for f in uses:
                source = _source(f, at, by)
                sources[f] = source if source in live[f] else None
            here = at in {bit for f in live for bit in live[f]}
            over = modes.chosen(window, sources, lambda f, i, live=live: i in live[f])
            bits.append(Mux(turns[at // 8], over, window[at] if here else 0))
        turned = Signal(WINDOW, name=f"turned_{by}")
        m.d.comb += turned.eq(Cat(bits))
        window, live = turned, after
    return window, live


def _moves(format_: str, stage: int, modes: Modes) -> bool:
    """Whether products of a format are rotated at a stage; alone, posit(4,1) needs 4 bits only."""
    if modes.formats == ("posit4_1",):
        return stage < 2
    return 1 << stage < SPAN[format_]


def _source(format_: str, at: int, by: int) -> int:
    span = SPAN[format_]
    return at // span * span + (at - by) % span


def _turns(m: Module, stage: int, sums: Mapping[int, Any], modes: Modes) -> list[Any]:
    """By byte of the window: whether it moves at a stage, as the sum of its lane's scales says."""
    by_byte = []
    for byte in range(4):
        chosen = [
            (sums[adder_of(f, lane_of(f, byte))][stage], [f])
            for f in modes.formats
            if _moves(f, stage, modes)
        ]
        by_adder: dict[int, tuple[Any, list[str]]] = {}
        for bit, formats in chosen:
            key = id(sums[adder_of(formats[0], lane_of(formats[0], byte))])
            by_adder.setdefault(key, (bit, []))[1].extend(formats)
        quiet = [f for f in modes.formats if not _moves(f, stage, modes)]
        masked = len(by_adder) > 1 or bool(quiet)
        terms = [
            bit & modes.any_of(*formats) if masked else bit for bit, formats in by_adder.values()
        ]
        turn = Signal(name=f"turn_{1 << stage}_{byte}")
        m.d.comb += turn.eq(any_bit(terms))
        by_byte.append(turn)
    return by_byte


def lane_of(format_: str, quarter: int) -> int:
    """The lane that a quarter of the window, or of the accumulator, belongs to."""
    return quarter * LANES[format_] // 4


def adder_of(format_: str, lane: int) -> int:
    """The adder of scales that a lane uses: those of whole and upper lanes are the last."""
    return {4: lane, 2: 3 * lane, 1: 3}[LANES[format_]]


def read_bits(window: Any, live: Any, quarter: int, modes: Modes) -> list[Any]:
    """What each bit of the accumulator reads of the window; ``quarter`` is a fourth of its bits."""
    bits = []
    period = dict(SPAN)
    if modes.formats == ("posit4_1",):
        period["posit4_1"] = BLOCK
    for at in range(4 * quarter):
        wanted: dict[str, int | None] = {}
        for f in modes.formats:
            size = 4 * quarter // LANES[f]
            lane, offset = divmod(at, size)
            if offset < BLOCK * BLOCKS[f]:
                wanted[f] = SPAN[f] * lane + offset % period[f]
        bits.append(modes.chosen(window, wanted, lambda f, i: i in live[f]))
    return bits


def enables(m: Module, sums: Mapping[int, Any], quarter: int, modes: Modes) -> list[Any]:
    """A bit for each block of the accumulator: whether it takes part in this product."""
    whole = _windows_of_8(m, sums, modes) if "posit16_1" in modes.formats else []
    found = []
    for block in range(quarter):
        terms: list[Any] = [whole[block]] if block < len(whole) else []
        for f in modes.formats:
            per_lane = quarter // LANES[f]
            lane, offset = divmod(block, per_lane)
            if f == "posit16_1" or offset >= BLOCKS[f]:
                continue
            at = sums[adder_of(f, lane)][2:5]
            on = modes.is_(f)
            if f == "fp4" and "posit4_1" in modes.formats:
                continue  # its products begin in the first byte, as some of posit(4,1)
            if f == "posit4_1" and modes.formats == (f,):
                on = on & (at == offset)
            elif f == "posit4_1":  # one bit of a byte is set, so both its blocks may count
                on = modes.any_of("fp4", f) & (at[1:] == offset // 2)
            elif f == "posit8_0":
                first = [n % 8 for n in range(offset - 3, offset + 1) if -3 <= n <= 3]
                on = on & any_bit(at == n for n in first)
            terms.append(on)
        found.append(any_bit(terms))
    return found


def _windows_of_8(m: Module, sums: Mapping[int, Any], modes: Modes) -> list[Any]:
    """Of mode posit(16,1): block ``b`` counts if the product begins in blocks ``b - 7`` to ``b``.

    It begins at bit ``scale + 32``, and so in block ``scale // 4 + 8``.
    """
    fours, low = Signal(8, name="begins_in_four"), Signal(3, name="begins_at_most")
    scale, on = sums[3], modes.is_("posit16_1")
    m.d.comb += [
        fours.eq(Cat(on & (scale[4:7] == (n - 2) % 8) for n in range(8))),
        low.eq(Cat(scale[2:4] <= n for n in range(3))),
    ]

    def begins(four: int) -> Any:
        return fours[four % 8] if -2 <= four <= 5 else Const(0, 1)

    bits = []
    for block in range(BLOCKS["posit16_1"]):
        four, within = divmod(block, 4)
        upto = low[within] if within < 3 else Const(1, 1)
        bits.append(begins(four) & upto | begins(four - 1) | begins(four - 2) & ~upto)
    return bits
