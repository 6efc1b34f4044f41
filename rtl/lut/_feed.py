# SPDX-License-Identifier: Apache-2.0
"""The data feeding module: activations become patterns of one bit each, the lowest bits first."""

from typing import TYPE_CHECKING

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ._plane_sum import plane_layout

if TYPE_CHECKING:
    from .sail_sram import SailSramConfig


def acts_layout(config: "SailSramConfig", *, marks: bool = True) -> data.StructLayout:
    """Activations of one item of the batch for one table, with the marks of the item's sum."""
    shape = signed(config.ab) if config.a_signed else unsigned(config.ab)
    return data.StructLayout({
        "a": data.ArrayLayout(shape, config.nbw),
        **({"first": unsigned(1), "last": unsigned(1)} if marks else {}),
    })


def look_layout(config: "SailSramConfig") -> data.StructLayout:
    """A look-up: the pattern, what its value is; ``opens`` and ``closes``: of its table."""
    return data.StructLayout({
        "pattern": unsigned(config.nbw),
        "bit": unsigned(ceil_log2(config.ab)),
        "plane": plane_layout(config),
        "opens": unsigned(1),
        "closes": unsigned(1),
    })


class DataFeed(wiring.Component):
    """Look-ups of the activations that come: one for each of their bits, the lowest first.

    Combinational but for its counters.  A table has ``items + 1`` transfers of activations.
    """

    acts_i: stream.Interface
    items: Signal
    o: stream.Interface

    def __init__(self, config: "SailSramConfig"):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "items": In(range(config.batch)),
            "o": Out(stream.Signature(look_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, acts, look = self.config, self.acts_i.p, self.o.p
        bit, item = Signal(range(config.ab)), Signal(range(config.batch))
        ends, final = Signal(), Signal()
        m.d.comb += [
            ends.eq(bit == config.ab - 1),
            final.eq(item == self.items),
            self.o.valid.eq(self.acts_i.valid),
            self.acts_i.ready.eq(self.o.ready & ends),
            look.pattern.eq(Cat(Array(acts.a[n].as_unsigned())[bit] for n in range(config.nbw))),
            look.bit.eq(bit),
            look.plane.some.eq(look.pattern.any()),
            look.plane.sign.eq(ends if config.a_signed else 0),
            look.plane.ends.eq(ends),
            look.plane.first.eq(acts.first),
            look.plane.last.eq(acts.last),
            look.plane.item.eq(item),
            look.opens.eq((bit == 0) & (item == 0)),
            look.closes.eq(ends & final),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += bit.eq(Mux(ends, 0, bit + 1))
            with m.If(ends):
                m.d.sync += item.eq(Mux(final, 0, item + 1))
        return m
