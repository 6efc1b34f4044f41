# SPDX-License-Identifier: Apache-2.0
"""A memory of bit rows with an adder of one bit below each column, as in compute-capable SRAM."""

from typing import TYPE_CHECKING

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ._feed import look_layout
from ._plane_sum import sums_layout
from ._weight_table import weights_layout

if TYPE_CHECKING:
    from .sail_sram import SailSramConfig


class Do(Enum, shape=unsigned(2)):
    """Write a weight, add it to a row of the table, add a row to a sum, show a sum."""

    LOAD = 0
    BUILD = 1
    LOOK_UP = 2
    SHOW = 3


class BitRows(wiring.Component):
    """Table and sums in one memory whose words are one bit of every column, the lowest bits first.

    In a cycle two rows are read and one is written.  An adder below each column adds what was read
    and a carry, and its bit is written in the cycle after: the addition of ``n`` bit rows takes
    ``n + 1`` cycles, for all columns at once.  Everything is such an addition, or less:

    ======== ======================================== ==============================
    load     weight ``n`` becomes entry ``2**n``      ``entry_width`` cycles
    build    entry = an earlier one + a weight        ``entry_width + 1``
    look up  sum += entry ``<< j``, or ``-=``         ``acc_width - j + 1``
    show     a sum goes out                           ``acc_width + 1``
    ======== ======================================== ==============================

    Members
    -------
    weights_i, o : as the block's.
    look_i : look-ups, each taken when it is over.
    """

    weights_i: stream.Interface
    look_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: "SailSramConfig"):
        self.config = config
        super().__init__({
            "weights_i": In(stream.Signature(weights_layout(config))),
            "look_i": In(stream.Signature(look_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        columns, entry, acc = config.cols, config.entry_width, config.acc_width
        highest, below, bit = (
            Signal(range(config.nbw)),
            Signal(config.nbw),
            Signal(range(acc + 1)),
        )
        do, length = Signal(Do), Signal(range(acc + 1))
        goes, ends = Signal(), Signal()
        look = self.look_i.p
        shows, showing = Signal(), Signal()
        m.d.comb += [
            shows.eq(look.plane.ends & look.plane.last),
            goes.eq(1),
            length.eq(entry),
        ]
        full = Signal()
        weight = Signal(config.nbw)
        m.d.comb += weight.eq(1 << highest)

        with m.If(~full):
            m.d.comb += do.eq(Mux(below == 0, Do.LOAD, Do.BUILD))
            with m.If(below == 0):
                m.d.comb += [goes.eq(self.weights_i.valid), ends.eq(bit == entry - 1)]
                m.d.comb += self.weights_i.ready.eq(ends)
            with m.Else():
                m.d.comb += ends.eq(bit == entry)
            with m.If(goes & ends):
                m.d.sync += below.eq(Mux(below == weight - 1, 0, below + 1))
                with m.If(below == weight - 1):
                    m.d.sync += highest.eq(Mux(highest == config.nbw - 1, 0, highest + 1))
                    m.d.sync += full.eq(highest == config.nbw - 1)
        with m.Elif(~showing):
            m.d.comb += [
                do.eq(Do.LOOK_UP),
                length.eq(acc - look.bit),
                goes.eq(self.look_i.valid),
                ends.eq(bit == length),
                self.look_i.ready.eq(ends & ~shows),
            ]
            with m.If(goes & ends & shows):
                m.d.sync += showing.eq(1)
        with m.Else():
            m.d.comb += [
                do.eq(Do.SHOW),
                length.eq(acc),
                goes.eq(~self.o.valid),
                ends.eq(bit == acc),
                self.look_i.ready.eq(goes & ends),
            ]
            with m.If(goes & ends):
                m.d.sync += showing.eq(0)
        with m.If(goes):
            m.d.sync += bit.eq(Mux(ends, 0, bit + 1))
        with m.If(self.look_i.ready & look.closes):
            m.d.sync += full.eq(0)

        inside = Array(Signal(name=f"inside_{item}") for item in range(config.batch))
        with m.If(self.look_i.ready & look.plane.ends):
            m.d.sync += inside[look.plane.item].eq(~look.plane.last)

        # Rows: entries of the table below, sums above.
        bits, items = ceil_log2(max(entry, 2)), ceil_log2(config.batch)
        sum_bits = ceil_log2(acc)
        size = max(config.nbw + bits, items + sum_bits)

        def of_table(row, at):
            """Bit ``at`` of an entry; those above its width are its sign."""
            at = Mux(at > entry - 1, entry - 1, at)
            return Cat(at[:bits], row, Const(0, size - config.nbw - bits), 0)

        def of_sum(at):
            return Cat(at[:sum_bits], look.plane.item[:items], Const(0, size - items - sum_bits), 1)

        depth = 2 << size
        m.submodules.rows = rows = Memory(shape=unsigned(columns), depth=depth, init=[])
        write, (a, b) = rows.write_port(), (rows.read_port(), rows.read_port())
        at = Signal(range(acc + 1))
        m.d.comb += at.eq(bit + Mux(do == Do.LOOK_UP, look.bit, 0))
        # The bit that was read in the cycle before is written.
        before = Signal.like(at)
        m.d.comb += before.eq(at - 1)
        builds = do == Do.BUILD
        m.d.comb += [
            a.addr.eq(Mux(builds, of_table(below, bit), of_sum(at))),
            b.addr.eq(of_table(Mux(builds, weight, look.pattern), bit)),
        ]

        carry, total = Signal(columns, reset_less=True), Signal(columns)
        a_some, b_some = Signal(), Signal()
        opens = look.plane.first | ~inside[look.plane.item]
        m.d.comb += [
            a_some.eq(builds | ~(opens & (look.bit == 0))),
            b_some.eq(builds | look.pattern.any()),
        ]
        subtracts = (do == Do.LOOK_UP) & look.plane.sign & b_some
        one = a.data & a_some.replicate(columns)
        other = (b.data & b_some.replicate(columns)) ^ subtracts.replicate(columns)
        m.d.comb += total.eq(one ^ other ^ carry)
        m.d.sync += carry.eq((one & other) | (carry & (one | other)))
        with m.If(bit == 0):
            m.d.sync += carry.eq(subtracts.replicate(columns))

        given = self.weights_i.p.w
        loaded = Array(
            Cat(given[c][min(n, config.wb - 1)] for c in range(columns))
            if config.w_signed or n < config.wb
            else Const(0, columns)
            for n in range(entry)
        )
        loads = do == Do.LOAD
        m.d.comb += [
            write.addr.eq(
                Mux(
                    loads,
                    of_table(weight, bit),
                    Mux(builds, of_table(weight | below, before), of_sum(before)),
                )
            ),
            write.data.eq(Mux(loads, loaded[bit], total)),
            write.en.eq(goes & (loads | (do != Do.SHOW) & (bit != 0))),
        ]

        # A sum's bits pass by, the lowest first.
        moving = Signal()
        m.d.comb += moving.eq((do == Do.SHOW) & goes & (bit != 0))
        for column in range(columns):
            shown = Signal(acc, name=f"shown_{column}", reset_less=True)
            m.d.comb += self.o.p.sums[column].eq(shown)
            with m.If(moving):
                m.d.sync += shown.eq(Cat(shown, a.data[column])[1:])
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If((do == Do.SHOW) & goes & ends):
            m.d.sync += self.o.valid.eq(1)

        return m
