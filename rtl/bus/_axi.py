# SPDX-License-Identifier: Apache-2.0
"""AXI4-Lite and AXI4-Stream: channels, and a slave of a few registers.

Source: AMBA AXI and ACE (IHI 0022), AXI4-Stream (IHI 0051).
"""

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

OKAY, SLVERR = 0, 2


class Channel(data.StructLayout):
    """The payload of an AXI channel, as one of a stream whose ports have AXI's names.

    The stream ``s_axil_aw`` has the ports ``s_axil_awvalid``, ``s_axil_awready``,
    ``s_axil_awaddr``; ``s_axis_t`` has ``s_axis_tvalid``, ``s_axis_tdata`` ...
    """


def lite(prefix: str, address_width: int) -> dict[str, Any]:
    """The five channels of an AXI4-Lite slave with 32 bits of data; ``prot`` is left out."""
    address = Channel({"addr": unsigned(address_width)})
    return {
        f"{prefix}_aw": In(stream.Signature(address)),
        f"{prefix}_w": In(stream.Signature(Channel({"data": unsigned(32), "strb": unsigned(4)}))),
        f"{prefix}_b": Out(stream.Signature(Channel({"resp": unsigned(2)}))),
        f"{prefix}_ar": In(stream.Signature(address)),
        f"{prefix}_r": Out(stream.Signature(Channel({"data": unsigned(32), "resp": unsigned(2)}))),
    }


def whole(address: Any) -> Any:
    """Of the word that an address lies in: its bytes are what strobes tell apart."""
    return Cat(Const(0, 2), address[2:])


class Registers:
    """A slave's side of AXI4-Lite: takes address and data of a write together, and answers.

    ``write`` is high in the cycle in which a write is done, at ``address``.  Call :meth:`connect`
    once it is known which writes are ``good``, for which one has to ``wait``, and what is ``read``
    where.  An address without a register, or a write that is not good, is answered with SLVERR and
    is to do nothing.
    """

    def __init__(self, m: Module, component: Any, prefix: str):
        self.m = m
        self.aw, self.w, self.b, self.ar, self.r = (
            getattr(component, f"{prefix}_{name}") for name in ("aw", "w", "b", "ar", "r")
        )
        self.write = Signal(name=f"{prefix}_write")
        self.address = whole(self.aw.p.addr)
        self.data, self.strobe = self.w.p.data, self.w.p.strb

    def connect(self, good: Any, wait: Any, read: Mapping[int, Any]) -> None:
        """``read``: by address, what is there."""
        m = self.m
        free = ~self.b.valid | self.b.ready
        m.d.comb += [
            self.write.eq(self.aw.valid & self.w.valid & free & ~wait),
            self.aw.ready.eq(self.write),
            self.w.ready.eq(self.write),
        ]
        with m.If(free):
            m.d.sync += self.b.valid.eq(self.write)
            m.d.sync += self.b.p.resp.eq(Mux(good, OKAY, SLVERR))
        place = ~self.r.valid | self.r.ready
        m.d.comb += self.ar.ready.eq(place)
        with m.If(place):
            m.d.sync += self.r.valid.eq(self.ar.valid)
            with m.Switch(whole(self.ar.p.addr)):
                for address, value in read.items():
                    with m.Case(address):
                        m.d.sync += [self.r.p.data.eq(value), self.r.p.resp.eq(OKAY)]
                with m.Default():
                    m.d.sync += [self.r.p.data.eq(0), self.r.p.resp.eq(SLVERR)]
