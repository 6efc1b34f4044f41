# SPDX-License-Identifier: Apache-2.0
"""A host on a serial line that sends tokens and is sent answers.

The host sends two bytes a token: its low byte, then its high bits with bit 7 for ``restart`` and
bit 6 for ``sample``; a token with ``sample`` is answered by two bytes, low and high, the others by
two bytes of ones when they are taken.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal

HIGH_BITS = 6
"""Bits of a token in its second byte."""


def receive(m: Module, tokens: Any, receiver: Any) -> None:
    """Bytes of ``receiver`` as ``tokens``."""
    low, second = Signal(8, reset_less=True), Signal()
    byte = receiver.o.p.byte
    m.d.comb += [
        tokens.valid.eq(receiver.o.valid & second),
        tokens.p.token.eq(Cat(low, byte[:HIGH_BITS])),
        tokens.p.restart.eq(byte[7]),
        tokens.p.sample.eq(byte[6]),
        receiver.o.ready.eq(~second | tokens.ready),
    ]
    with m.If(receiver.o.valid & receiver.o.ready):
        m.d.sync += [second.eq(~second), low.eq(byte)]


def answer(m: Module, tokens: Any, answers: Any, sender: Any) -> None:
    """Answers, and that ``tokens`` are taken which have none, as bytes for ``sender``."""
    high, taken = Signal(), Signal()  # the byte's turn; a token without an answer was taken
    both = Signal(16, name="answer")
    m.d.comb += [
        both.eq(Mux(taken, 0xFFFF, answers.p.token)),
        sender.i.valid.eq(answers.valid | taken),
        sender.i.p.byte.eq(both.word_select(high, 8)),
        answers.ready.eq(sender.i.ready & high & ~taken),
    ]
    with m.If(sender.i.valid & sender.i.ready):
        m.d.sync += high.eq(~high)
        with m.If(high):
            m.d.sync += taken.eq(0)
    with m.If(tokens.valid & tokens.ready & ~tokens.p.sample):
        m.d.sync += taken.eq(1)
