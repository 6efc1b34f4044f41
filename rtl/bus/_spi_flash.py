# SPDX-License-Identifier: Apache-2.0
"""What is written in a serial NOR flash, as a stream."""

from amaranth.hdl import Cat, Const, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ._uart import HIGH

WORD = data.StructLayout({"word": unsigned(16), "last": unsigned(1)})
MAGIC = 0x5841
"""The word that a flash image begins with, ``AX`` as bytes."""
WAKE, READ = 0xAB, 0x03
PAUSE = 1 << 8
"""Cycles for the flash to wake up, 3 us at most: enough up to 85 MHz."""


class FlashReader(wiring.Component):
    """Reads an image of 16-bit words, low byte first, from ``address`` of a flash on.

    The image is :data:`MAGIC`, the number of words, and the words.  While there is no magic word
    the flash is asked again.  Mode 0, command 03h, most significant bit first: one bit in two
    cycles, none while ``o`` is not taken.  A flash that sleeps is woken up.

    Members
    -------
    clock, select, send : to the flash; ``select`` is low while it is spoken to.
    heard : from the flash.
    o : ``word``, ``last``.
    """

    clock: Signal
    select: Signal
    send: Signal
    heard: Signal
    o: stream.Interface

    def __init__(self, address: int):
        self.address = address
        super().__init__({
            "clock": Out(1),
            "select": Out(1, **HIGH),
            "send": Out(1),
            "heard": In(1),
            "o": Out(stream.Signature(WORD)),
        })

    def elaborate(self, platform):
        m = Module()
        wakes = Cat(Const(0, 24), Const(WAKE, 8))
        asks = Cat(Const(self.address, 24), Const(READ, 8))
        out, bits = Signal(32), Signal(6)  # what is still to be sent
        word, count = Signal(16), Signal(4)
        left, pause = Signal(16), Signal(range(PAUSE))
        falls, goes = Signal(), Signal()
        after = Cat(self.heard, word[:-1])  # bits as they come
        swapped = Cat(after[8:], after[:8])
        m.d.comb += [
            self.send.eq(out[-1]),
            goes.eq(~self.o.valid | self.o.ready),
            falls.eq(self.clock),
        ]

        def begin(what) -> list:
            return [self.select.eq(0), out.eq(what), self.clock.eq(0), count.eq(0)]

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("START"):
                m.d.sync += [*begin(wakes), bits.eq(8)]
                m.next = "WAKE"
            with m.State("WAKE"):
                m.d.sync += self.clock.eq(~self.clock)
                with m.If(falls):
                    m.d.sync += [out.eq(out << 1), bits.eq(bits - 1)]
                    with m.If(bits == 1):
                        m.d.sync += [self.select.eq(1), pause.eq(PAUSE - 1)]
                        m.next = "PAUSE"
            with m.State("PAUSE"):
                m.d.sync += pause.eq(pause - 1)
                with m.If(pause == 0):
                    m.d.sync += [*begin(asks), bits.eq(32)]
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.sync += self.clock.eq(~self.clock)
                with m.If(falls):
                    m.d.sync += [out.eq(out << 1), bits.eq(bits - 1)]
                    with m.If(bits == 1):
                        m.next = "MAGIC"
            for state, follows in (("MAGIC", "COUNT"), ("COUNT", "WORDS"), ("WORDS", "WORDS")):
                with m.State(state), m.If(goes):
                    m.d.sync += self.clock.eq(~self.clock)
                    with m.If(~self.clock):
                        m.d.sync += [word.eq(after), count.eq(count + 1)]
                        with m.If(count == 15):
                            m.next = follows
                            if state == "MAGIC":
                                with m.If(swapped != MAGIC):
                                    m.d.sync += [self.select.eq(1), self.clock.eq(0)]
                                    m.next = "START"
                            elif state == "COUNT":
                                m.d.sync += left.eq(swapped)
                            else:
                                m.d.sync += [
                                    left.eq(left - 1),
                                    self.o.valid.eq(1),
                                    self.o.p.word.eq(swapped),
                                    self.o.p.last.eq(left == 1),
                                ]
                                with m.If(left == 1):
                                    m.next = "END"
            with m.State("END"):
                m.d.sync += [self.select.eq(1), self.clock.eq(0)]
        return m
