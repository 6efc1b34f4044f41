# SPDX-License-Identifier: Apache-2.0
"""A serial line: 8 data bits, no parity, one stop bit, lowest bit first."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

HIGH: dict = {"init": 1}
"""An idle line."""

BYTE = data.StructLayout({"byte": unsigned(8)})


class UartReceiver(wiring.Component):
    """Bytes from ``line``, ``divisor`` cycles a bit, sampled in the middle.

    A byte whose stop bit is low is dropped; one that comes while the last is not taken replaces it.
    """

    line: Signal
    o: stream.Interface

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"line": In(1, **HIGH), "o": Out(stream.Signature(BYTE))})

    def elaborate(self, platform):
        m = Module()
        early, quiet = Signal(init=1), Signal(init=1)  # into our clock, then in use
        m.d.sync += [early.eq(self.line), quiet.eq(early)]
        timer, left, bits = Signal(range(2 * self.divisor)), Signal(range(10)), Signal(9)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If((left == 0) & ~quiet):
            m.d.sync += [left.eq(9), timer.eq(self.divisor + self.divisor // 2 - 1)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(left != 0):
            m.d.sync += [
                bits.eq(Cat(bits[1:], quiet)),
                left.eq(left - 1),
                timer.eq(self.divisor - 1),
            ]
            with m.If((left == 1) & quiet):
                m.d.sync += [self.o.p.byte.eq(bits[1:]), self.o.valid.eq(1)]
        return m


class UartSender(wiring.Component):
    """Bytes onto ``line``, ``divisor`` cycles a bit; idle is high."""

    line: Signal
    i: stream.Interface

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"line": Out(1, **HIGH), "i": In(stream.Signature(BYTE))})

    def elaborate(self, platform):
        m = Module()
        timer, left, bits = Signal(range(self.divisor)), Signal(range(11)), Signal(10, init=0x3FF)
        m.d.comb += [self.line.eq(bits[0]), self.i.ready.eq(left == 0)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                bits.eq(Cat(Const(0, 1), self.i.p.byte, Const(1, 1))),
                left.eq(10),
                timer.eq(self.divisor - 1),
            ]
        with m.Elif(left != 0):
            m.d.sync += timer.eq(Mux(timer == 0, self.divisor - 1, timer - 1))
            with m.If(timer == 0):
                m.d.sync += [bits.eq(Cat(bits[1:], Const(1, 1))), left.eq(left - 1)]
        return m
