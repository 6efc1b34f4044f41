# SPDX-License-Identifier: Apache-2.0
"""Base-2 logarithm of an integer by a table."""

import math

from amaranth.hdl import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

FRACTION = 8


def log_width(width: int) -> int:
    """Bits of the logarithm of an unsigned value of ``width`` bits."""
    return (width << FRACTION).bit_length()


class Log2(wiring.Component):
    """``log2(value)`` with 8 bits of fraction; that of 0 is 0.

    The value is rounded to 9 bits, ties upwards; the 8 below the top one look up a table that is
    rounded to nearest.  A transfer every cycle, 3 cycles of latency; all stages stop together.

    Members
    -------
    i : ``value``, unsigned.
    o : ``log``, unsigned, ``o_width`` bits.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, width: int):
        self.width = width
        self.o_width = log_width(width)
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"value": unsigned(width)}))),
            "o": Out(stream.Signature(data.StructLayout({"log": unsigned(self.o_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        steps = 1 << FRACTION
        table = [round(steps * math.log2(1 + at / steps)) for at in range(steps)] + [steps]
        m.submodules.table = memory = Memory(
            shape=unsigned(FRACTION + 1), depth=steps, init=table[:steps]
        )
        read = memory.read_port()
        enable = Signal()
        m.d.comb += [enable.eq(~self.o.valid | self.o.ready), self.i.ready.eq(enable)]

        # Shift the top bit to the left end; what is left of it says how many bits there are.
        width = max(self.width, FRACTION + 2)
        aligned = self.i.p.value << (width - self.width)
        bits = Const(self.width, range(self.width + 1))
        for power in reversed(range((width - 1).bit_length())):
            amount = 1 << power
            if amount < width:
                moves = aligned[-amount:] == 0
                aligned = Mux(moves, aligned << amount, aligned)[:width]
                bits = Mux(moves, bits - amount, bits)
        x_aligned, x_bits = Signal(width, reset_less=True), Signal(range(self.width + 1))
        x_zero, x_valid = Signal(reset_less=True), Signal()
        y_octave, y_valid, y_zero = Signal(range(self.width + 2)), Signal(), Signal()
        rounded = Signal(FRACTION + 2)
        m.d.comb += [
            rounded.eq(x_aligned[-FRACTION - 1 :] + x_aligned[-FRACTION - 2]),
            read.addr.eq(rounded[:FRACTION]),
            read.en.eq(enable),
        ]
        log = Signal(self.o_width, reset_less=True)
        with m.If(enable):
            m.d.sync += [
                x_aligned.eq(aligned),
                x_bits.eq(bits),
                x_zero.eq(self.i.p.value == 0),
                x_valid.eq(self.i.valid),
                y_octave.eq(x_bits - 1 + rounded[-1]),
                y_zero.eq(x_zero),
                y_valid.eq(x_valid),
                log.eq(Mux(y_zero, 0, (y_octave << FRACTION) + read.data)),
                self.o.valid.eq(y_valid),
            ]
        m.d.comb += self.o.p.log.eq(log)
        return m
