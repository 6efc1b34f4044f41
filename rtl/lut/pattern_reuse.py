# SPDX-License-Identifier: Apache-2.0
"""Values that a table gave for the last patterns, so that it is not read for them again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, param


@dataclass(frozen=True, kw_only=True)
class PatternReuseConfig(Config):
    pattern: int = param(6, "bits of a pattern", ge=1, le=8)
    width: int = param(7, "bits of a value, signed", ge=1, le=32)
    cols: int = param(16, "values of a row of the table", ge=1, le=4096)
    entries: int = param(32, "patterns that are kept", ge=1, le=256)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"pattern": 3, "width": 5, "cols": 2, "entries": 3},
        "one": {"pattern": 2, "cols": 1, "entries": 1},
    }
    papers: ClassVar[tuple[str, ...]] = ("SAIL, arXiv 2509.25853",)

    def faults(self) -> Iterator[str]:
        if self.entries > 1 << self.pattern:
            yield (
                f"entries must be at most {1 << self.pattern}, the patterns of {self.pattern} "
                f"bits, not {self.entries}"
            )

    @property
    def storage(self) -> int:
        """Bits kept: of each entry the row and its pattern, of each pattern where it would be."""
        where = (1 << self.pattern) * (ceil_log2(self.entries) or 1)
        return self.entries * (self.cols * self.width + self.pattern) + where


class PatternReuse(wiring.Component):
    """Values that a table gave for the last patterns, so that it is not read for them again.

    Beside the pattern of every value its whole pattern is kept, not a hash: no other pattern can
    get its value.  A pattern that is there is answered at once, any other is asked for at
    ``miss_o`` and answered, and kept, when its value comes to ``fill_i``.  The entry that gives way
    is the next in turn, whichever was used last.  ``flush`` comes with the first pattern of a new
    table: all entries are forgotten before it is looked up.

    What is kept is the value, a whole row of the table (``config.storage``): with as many entries
    as patterns, more than the table itself.

    Throughput: one pattern a cycle that is there; any other takes until its value comes, at least
    two cycles.  Latency: one cycle from the pattern, or from the value, to ``o``.  Answers keep the
    order of patterns.  Nothing goes on while an answer waits, but a value may be asked for.  Reset
    forgets all entries.  Errors: none; a value that was not asked for waits.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``pattern``; ``flush``: of a new table.
    miss_o : :py:`Out(stream.Signature(StructLayout))`
        ``pattern`` that is not there.
    fill_i : :py:`In(stream.Signature(StructLayout))`
        ``values`` of that pattern.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``values`` of the pattern; ``hit``: it was there.

    Source: the pattern reuse table of SAIL, with 32 entries.  There the key is a hash and the rest
    is not said; exact patterns, turns and what is kept are ours (docs/blocks/pattern_reuse.md).
    """

    i: stream.Interface
    miss_o: stream.Interface
    fill_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: PatternReuseConfig):
        self.config = config
        pattern = {"pattern": unsigned(config.pattern)}
        value = {"values": data.ArrayLayout(signed(config.width), config.cols)}
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({**pattern, "flush": unsigned(1)}))),
            "miss_o": Out(stream.Signature(data.StructLayout(pattern))),
            "fill_i": In(stream.Signature(data.StructLayout(value))),
            "o": Out(stream.Signature(data.StructLayout({**value, "hit": unsigned(1)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        index, places = range(config.entries), unsigned(ceil_log2(config.entries) or 1)
        m.submodules.where = where = Memory(shape=places, depth=1 << config.pattern, init=[])
        m.submodules.whose = whose = Memory(
            shape=unsigned(config.pattern), depth=config.entries, init=[]
        )
        m.submodules.values = values = Memory(
            shape=self.o.p.values.shape(), depth=config.entries, init=[]
        )
        at, tag, row = (each.read_port(domain="comb") for each in (where, whose, values))
        writes = [each.write_port() for each in (where, whose, values)]

        # An entry may have gone to another pattern since: its own says whose it is.  Those from
        # ``count`` on are of no one, so that nothing need be cleared for a new table.
        count, turn, place = Signal(range(config.entries + 1)), Signal(index), Signal(index)
        hit = Signal()
        m.d.comb += [
            at.addr.eq(self.i.p.pattern),
            tag.addr.eq(at.data),
            row.addr.eq(at.data),
            hit.eq((tag.data == self.i.p.pattern) & (at.data < count) & ~self.i.p.flush),
            place.eq(Mux(self.i.p.flush, 0, turn)),
        ]

        asked, room, fills = Signal(), Signal(), Signal()
        m.d.comb += [
            room.eq(~self.o.valid | self.o.ready),
            self.miss_o.valid.eq(self.i.valid & ~hit & ~asked),
            self.miss_o.p.pattern.eq(self.i.p.pattern),
            self.fill_i.ready.eq(asked & room),
            fills.eq(self.fill_i.valid & self.fill_i.ready),
            self.i.ready.eq((hit & room) | fills),
            *(write.en.eq(fills) for write in writes),
            *(
                port.eq(value)
                for write, addr, data_ in zip(
                    writes,
                    (self.i.p.pattern, place, place),
                    (place, self.i.p.pattern, self.fill_i.p.values),
                    strict=True,
                )
                for port, value in ((write.addr, addr), (write.data, data_))
            ),
        ]
        with m.If(self.miss_o.valid & self.miss_o.ready):
            m.d.sync += asked.eq(1)
        with m.If(fills):
            m.d.sync += [
                asked.eq(0),
                turn.eq(Mux(place == config.entries - 1, 0, place + 1)),
            ]
            with m.If(self.i.p.flush):
                m.d.sync += count.eq(1)
            with m.Elif(count != config.entries):
                m.d.sync += count.eq(count + 1)
        with m.If(room):
            m.d.sync += [
                self.o.valid.eq(self.i.valid & self.i.ready),
                self.o.p.values.eq(Mux(asked, self.fill_i.p.values, row.data)),
                self.o.p.hit.eq(~asked),
            ]
        return m
