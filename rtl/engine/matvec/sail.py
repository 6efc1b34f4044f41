# SPDX-License-Identifier: Apache-2.0
"""Projections by look-up in tables of weights, ``lanes`` outputs at a time, as ``sail`` does."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring

from ..._streams import Queue
from ...lut._feed import DataFeed
from ...lut._slices import Slices
from ...lut.sail_sram import SailSramConfig
from ._socket import CODE, Socket

if TYPE_CHECKING:
    from ..engine import EngineConfig

NBW = 3
"""Inputs whose weights make a table: best for one vector, as a table is built in 7 cycles then,
and looked up in 8."""


def tables_of(lanes: int) -> int:
    """Tables of a tile, the last one filled up with zeros."""
    return -(-lanes // NBW)


class Core(Socket):
    """A word is the weights of one input, for ``lanes`` outputs; three make a table.

    Outputs go block by block: all inputs of ``lanes`` rows, then the next.  So their sums are there
    all at once, and leave one a cycle while the next block's tables are looked up.  Tables are
    built in one memory while those in the other are looked up, and before their vector is there.
    """

    FORMATS = ("ternary", *(f"int{bits}" for bits in range(8, 1, -1)))
    FRONT = 1
    """Of the sums, which leave one by one."""

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        yield from super().faults(engine)
        if engine.rows > 1:
            yield f"rows must be 1 with sail, whose sums come a block at a time, not {engine.rows}"

    @classmethod
    def product(cls, engine: "EngineConfig") -> SailSramConfig:
        return SailSramConfig(
            wb=2 if engine.format == "ternary" else int(engine.format.removeprefix("int")),
            ab=CODE,
            nbw=NBW,
            cols=engine.lanes,
            batch=1,
            max_k=engine.longest,
            double=True,
        )

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return cls.product(engine).acc_width

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        weight = unsigned(cls.product(engine).wb)
        return data.StructLayout({"weights": data.ArrayLayout(weight, engine.lanes)})

    def elaborate(self, platform):
        m = Module()
        lanes = self.engine.lanes
        vectors = self._vectors(m)
        op = self._front(m, vectors.acts_i, rows=True)
        m.submodules.feed = feed = DataFeed(self.config)
        m.submodules.slices = slices = Slices(self.config)
        wiring.connect(m, feed.o, slices.look_i)
        m.d.comb += [
            slices.weights_i.valid.eq(self.weights_i.valid),
            slices.weights_i.p.w.as_value().eq(self.weights_i.p.weights.as_value()),
            self.weights_i.ready.eq(slices.weights_i.ready),
            self.moves.eq(self.weights_i.valid & self.weights_i.ready),
        ]

        # A table's activations: they come out of memory beside what is registered here.
        tables = tables_of(lanes)
        codes = Cat(vectors.acts, Const(0, (tables * NBW - lanes) * CODE))
        group, tile = Signal(range(tables)), Signal.like(vectors.tile)
        left, fresh, rows = Signal.like(op.p.rows), Signal(init=1), Signal.like(op.p.rows)
        moves, enable, ends, final = Signal(), Signal(), Signal(), Signal()
        counts = stream.Signature(data.StructLayout({"rows": unsigned(lanes.bit_length())}))
        m.submodules.counts = waiting = Queue(counts.members["payload"].shape, 4)
        m.d.comb += [
            rows.eq(Mux(fresh, op.p.rows, left)),
            ends.eq(vectors.last_tile & (group == tables - 1)),
            final.eq(rows <= lanes),
            moves.eq(enable & op.valid & vectors.valid & (waiting.i.ready | ~ends)),
            op.ready.eq(moves & ends & final),
            vectors.enable.eq(enable),
            vectors.tile.eq(tile),
            vectors.release.eq(moves & ends & final & op.p.ends),
            waiting.i.valid.eq(moves & ends),
            waiting.i.p.rows.eq(Mux(final, rows, lanes)),
        ]
        x_valid = Signal()
        x_group = Signal.like(group, reset_less=True)
        x_first, x_last = (Signal(name=name, reset_less=True) for name in ("x_first", "x_last"))
        m.d.comb += enable.eq(~x_valid | feed.acts_i.ready)
        with m.If(moves):
            m.d.sync += group.eq(Mux(group == tables - 1, 0, group + 1))
            with m.If(group == tables - 1):
                m.d.sync += tile.eq(Mux(vectors.last_tile, 0, tile + 1))
            with m.If(ends):
                m.d.sync += [fresh.eq(final), left.eq(rows - lanes)]
        with m.If(enable):
            m.d.sync += [
                x_valid.eq(moves),
                x_group.eq(group),
                x_first.eq((tile == 0) & (group == 0)),
                x_last.eq(ends),
            ]
        m.d.comb += [
            feed.acts_i.valid.eq(x_valid),
            feed.acts_i.p.a.as_value().eq(codes.word_select(x_group, NBW * CODE)),
            feed.acts_i.p.first.eq(x_first),
            feed.acts_i.p.last.eq(x_last),
            feed.items.eq(0),
        ]
        self._shown(m, slices.o, waiting.o)
        return m

    def _shown(self, m: Module, sums, counts) -> None:
        """A block's sums one after the other, as many as there are rows."""
        lanes, width = self.engine.lanes, self.engine.acc_width
        held = Array(
            Signal(signed(width), name=f"sum_{lane}", reset_less=True) for lane in range(lanes)
        )
        left = Signal(range(lanes + 1))
        m.d.comb += [
            self.o.valid.eq(left != 0),
            self.o.p.sum.eq(held[0]),
            sums.ready.eq(counts.valid & ((left == 0) | (left == 1) & self.o.ready)),
            counts.ready.eq(sums.valid & sums.ready),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += left.eq(left - 1)
            m.d.sync += [held[lane].eq(held[lane + 1]) for lane in range(lanes - 1)]
        with m.If(counts.ready):
            m.d.sync += left.eq(counts.p.rows)
            m.d.sync += [held[lane].eq(sums.p.sums[lane]) for lane in range(lanes)]
