# SPDX-License-Identifier: Apache-2.0
"""Tables of the sums of a few weights, for many columns at once."""

from typing import TYPE_CHECKING

from amaranth.hdl import Array, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig
from .._once import place

if TYPE_CHECKING:
    from .sail_sram import SailSramConfig


class WeightTable(wiring.Component):
    """All sums of ``nbw`` weights of each column, built from the weights and read by pattern.

    Row ``p`` holds the sum of the weights ``n`` whose bit of ``p`` is set.  A weight is stored as
    it comes, as row ``2**n``, and added to each row below: ``2**nbw - nbw - 1`` adds, one a
    cycle, and ``nbw`` cycles in which weights come.  Row 0 is never written; what is read of it is
    unspecified.  A table serves until ``release``.  With ``double`` the next one is built meanwhile
    in a memory of its own.

    A read takes ``access`` cycles of the memory; 1 is a memory that takes an address while it gives
    the value of the one before.

    Members
    -------
    weights_i : the weights of one input, in ascending order.
    read_i, o : a pattern, and the values of its row.
    release : the table will not be read any more.
    """

    weights_i: stream.Interface
    read_i: stream.Interface
    o: stream.Interface
    release: Signal

    def __init__(self, config: "SailSramConfig"):
        self.config = config
        super().__init__({
            "weights_i": In(stream.Signature(weights_layout(config))),
            "read_i": In(stream.Signature(data.StructLayout({"pattern": unsigned(config.nbw)}))),
            "o": Out(stream.Signature(values_layout(config))),
            "release": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width, banks = config.entry_width, 1 + config.double
        held, full = (
            Array(Signal(name=f"{name}_{bank}") for bank in range(banks))
            for name in ("held", "full")
        )
        building, reading = Signal(name="building"), Signal(name="reading")

        # What was read stays at the memory's port until it is taken.
        pending, whose = Signal(), Signal(reset_less=True)
        blocked = Signal()
        m.d.comb += blocked.eq(pending & ~(self.o.valid & self.o.ready))

        # First step of building: weight n comes, or the row that it is added to is read.
        highest, below = Signal(range(config.nbw)), Signal(config.nbw)
        comes, moves, ends = Signal(), Signal(), Signal()
        bit = Signal(config.nbw)
        m.d.comb += [
            bit.eq(1 << highest),
            comes.eq(below == 0),
            self.weights_i.ready.eq(comes & ~held[building] & ~(blocked & (whose == building))),
            moves.eq(
                Mux(comes, self.weights_i.valid, 1)
                & ~held[building]
                & ~(blocked & (whose == building))
            ),
            ends.eq(below == bit - 1),
        ]
        weight = Signal(data.ArrayLayout(signed(width), config.cols), reset_less=True)
        with m.If(moves):
            m.d.sync += below.eq(Mux(ends, 0, below + 1))
            with m.If(ends):
                m.d.sync += highest.eq(Mux(highest == config.nbw - 1, 0, highest + 1))
                with m.If(highest == config.nbw - 1):
                    m.d.sync += held[building].eq(1)
                    if config.double:
                        m.d.sync += building.eq(~building)
            with m.If(comes):
                m.d.sync += [
                    weight[column].eq(self.weights_i.p.w[column]) for column in range(config.cols)
                ]

        # Second step: the sum is written.
        x_moves, x_comes, x_ends = (Signal(name=f"x_{name}") for name in ("moves", "comes", "ends"))
        x_row = Signal(config.nbw, reset_less=True)
        x_bank = Signal(reset_less=True)
        m.d.sync += [
            x_moves.eq(moves),
            x_comes.eq(comes),
            x_ends.eq(moves & ends & (highest == config.nbw - 1)),
            x_row.eq(bit | below),
            x_bank.eq(building),
        ]
        with m.If(x_ends):
            m.d.sync += full[x_bank].eq(1)

        read = Signal()
        data_out = []
        added = Signal(data.ArrayLayout(signed(width), config.cols))
        for bank in range(banks):
            memory = Memory(shape=unsigned(width * config.cols), depth=1 << config.nbw, init=[])
            m.submodules[f"rows_{bank}"] = memory
            write, port = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.addr.eq(x_row),
                write.data.eq(added.as_value()),
                write.en.eq(x_moves & (x_bank == bank)),
                port.addr.eq(Mux(full[bank], self.read_i.p.pattern, below)),
                port.en.eq(Mux(full[bank], read & (reading == bank), moves & (building == bank))),
            ]
            data_out.append(data.View(added.shape(), port.data))
        for column in range(config.cols):
            row = Mux(x_bank, data_out[-1][column], data_out[0][column])
            adder = place(
                m,
                platform,
                f"add_{column}",
                AddSelect(AddSelectConfig(width=width)),
                a=weight[column],
                b=row if config.double else data_out[0][column],
                enable=~x_comes,
                invert=0,
                carry=0,
            )
            m.d.comb += added[column].eq(adder.y)
            shown = Mux(whose, data_out[-1][column], data_out[0][column])
            m.d.comb += self.o.p.values[column].eq(shown if config.double else data_out[0][column])

        left = Signal(range(config.access))
        m.d.comb += [
            self.o.valid.eq(pending & (left <= 1)),
            self.read_i.ready.eq(full[reading] & (left == 0) & ~blocked),
            read.eq(self.read_i.valid & self.read_i.ready),
        ]
        with m.If(~blocked):
            m.d.sync += [pending.eq(read), whose.eq(reading)]
        with m.If(read):
            m.d.sync += left.eq(config.access - 1)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.release):
            m.d.sync += [held[reading].eq(0), full[reading].eq(0)]
            if config.double:
                m.d.sync += reading.eq(~reading)

        return m


def weights_layout(config: "SailSramConfig") -> data.StructLayout:
    """The weights of one input: one for each column."""
    shape = signed(config.wb) if config.w_signed else unsigned(config.wb)
    return data.StructLayout({"w": data.ArrayLayout(shape, config.cols)})


def values_layout(config: "SailSramConfig") -> data.StructLayout:
    """A row of a table."""
    return data.StructLayout({"values": data.ArrayLayout(signed(config.entry_width), config.cols)})
