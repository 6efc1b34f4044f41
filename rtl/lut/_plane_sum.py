# SPDX-License-Identifier: Apache-2.0
"""Sums of what tables say for the bits of activations, the lowest bit first."""

from typing import TYPE_CHECKING

from amaranth.hdl import Array, Cat, Module, ResetSignal, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, accumulated
from .._once import place
from .._pipeline import Pipeline, delayed

if TYPE_CHECKING:
    from .sail_sram import SailSramConfig


def plane_layout(config: "SailSramConfig") -> data.StructLayout:
    """What a looked-up value is.

    ``some``: it is not that of pattern 0; ``sign``: it is subtracted; ``ends``: of the highest bit;
    ``first``, ``last``: of the sum of ``item``.
    """
    return data.StructLayout({
        **{name: unsigned(1) for name in ("some", "sign", "ends", "first", "last")},
        "item": unsigned(ceil_log2(config.batch)),
    })


class PlaneSum(wiring.Component):
    """Adds values of the bits of activations, shifted by their place, to one of ``batch`` sums.

    Each value is added above what the lower bits gave, whose lowest bit is final then: the adder is
    a bit wider than a value.  With the highest bit the product is complete and goes to the sum.
    One value a cycle; ``config.sum_latency`` registers; all stop while an offered sum is not taken.

    Members
    -------
    i : ``values`` of the columns, and what they are (:func:`plane_layout`).
    o : ``sums`` of the columns.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: "SailSramConfig"):
        self.config = config
        super().__init__({
            "i": In(
                stream.Signature(
                    data.StructLayout({
                        "values": data.ArrayLayout(signed(config.entry_width), config.cols),
                        "plane": plane_layout(config),
                    })
                )
            ),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width = config.entry_width
        m.submodules.pipeline = pipeline = Pipeline(config.sum_latency)
        enable, plane = pipeline.enable, self.i.p.plane
        inside = Array(Signal(name=f"inside_{item}") for item in range(config.batch))
        opens, moves, ends = Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(pipeline.i_ready),
            moves.eq(enable & self.i.valid),
            ends.eq(self.i.valid & plane.ends),
            opens.eq(plane.first | ~inside[plane.item]),
            pipeline.i_valid.eq(ends & plane.last),
            self.o.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(self.o.ready),
        ]
        with m.If(moves & plane.ends):
            m.d.sync += inside[plane.item].eq(~plane.last)

        # The reset of a flip-flop is the one that costs no LUT: it begins products as well.
        clears = Signal()
        m.d.comb += clears.eq((moves & plane.ends) | ResetSignal())
        products = []
        for column in range(config.cols):
            above = Signal(signed(width + 1), name=f"above_{column}", reset_less=True)
            add = place(
                m,
                platform,
                f"add_{column}",
                AddSelect(AddSelectConfig(width=width)),
                a=above >> 1,
                b=self.i.p.values[column],
                enable=plane.some,
                invert=plane.sign,
                carry=plane.sign & plane.some,
            )
            low = Signal(config.ab - 1, name=f"low_{column}", reset_less=True)
            with m.If(moves):
                m.d.sync += [above.eq(add.y), low.eq(Cat(low, add.y[0])[1:])]
            with m.If(clears):
                m.d.sync += above.eq(0)
            products.append(Cat(low, add.y).as_signed())

        item, writes = plane.item, ends
        if config.stage:
            products = [
                delayed(m, enable, product, f"product_{column}", 1)[0]
                for column, product in enumerate(products)
            ]
            opens, item, writes = (
                delayed(m, enable, value, name, 1)[0]
                for name, value in (("opens", opens), ("item", item), ("ends", ends))
            )
        self._accumulated(m, platform, products, opens, item, enable & writes)
        return m

    def _accumulated(self, m: Module, platform, products, opens, item, writes) -> None:
        """The sums: in a register, which is offered, or in a memory beside it."""
        config = self.config
        width = config.acc_width
        if config.batch == 1:
            for column, product in enumerate(products):
                acc = accumulated(m, platform, width, product, 0, opens, writes, f"_{column}")
                m.d.comb += self.o.p.sums[column].eq(acc)
            return
        m.submodules.sums = memory = Memory(
            shape=data.ArrayLayout(signed(width), config.cols), depth=config.batch, init=[]
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [read.addr.eq(item), write.addr.eq(item), write.en.eq(writes)]
        shown = Signal(read.data.shape(), name="shown", reset_less=True)
        m.d.comb += self.o.p.sums.eq(shown)
        with m.If(writes):
            m.d.sync += shown.eq(write.data)
        for column, product in enumerate(products):
            add = place(
                m,
                platform,
                f"accumulate_{column}",
                AddSelect(AddSelectConfig(width=width)),
                a=product,
                b=read.data[column],
                enable=~opens,
                invert=0,
                carry=0,
            )
            m.d.comb += write.data[column].eq(add.y)


def sums_layout(config: "SailSramConfig") -> data.StructLayout:
    """The sums of one item of the batch: one for each column."""
    return data.StructLayout({"sums": data.ArrayLayout(signed(config.acc_width), config.cols)})
