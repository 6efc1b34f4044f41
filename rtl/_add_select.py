# SPDX-License-Identifier: Apache-2.0
"""An adder whose second operand is added, subtracted or skipped inside the carry chain."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ._once import place
from .config import Config, param


@dataclass(frozen=True, kw_only=True)
class AddSelectConfig(Config):
    width: int = param(8, "bits of each signed operand", ge=1, le=1024)


class AddSelect(wiring.Component):
    """``y = a + (enable ? b ^ invert : 0) + carry``, combinational and exact.

    ``invert`` and ``carry`` together subtract: ``a + ~b + 1``.  All bits of one position are a
    function of four inputs and a carry, so the whole cell is one carry chain where the technology
    allows it: FPGA flows recognise modules of this name and map them (see docs/fpga.md).

    Members
    -------
    a, b : :py:`In(signed(width))`
    invert, enable, carry : :py:`In(1)`
    y : :py:`Out(signed(width + 1))`
    """

    a: Signal
    b: Signal
    invert: Signal
    enable: Signal
    carry: Signal
    y: Signal

    def __init__(self, config: AddSelectConfig):
        self.config = config
        super().__init__({
            "a": In(signed(config.width)),
            "b": In(signed(config.width)),
            "invert": In(1),
            "enable": In(1),
            "carry": In(1),
            "y": Out(signed(config.width + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        term = Signal(signed(self.config.width))
        m.d.comb += term.eq(select(self.b, self.enable, self.invert))
        m.d.comb += self.y.eq(add_carry(self.a, term, self.carry))
        return m


def select(value, enable, invert):
    """``value``, its complement, or zero: ``enable ? value ^ invert : 0``, bit by bit."""
    width = len(value)
    bits = (value.as_unsigned() ^ invert.replicate(width)) & enable.replicate(width)
    return bits.as_signed()


def add_carry(a, b, carry):
    """``a + b + carry`` as one carry chain: the carry enters through a position below bit 0.

    Written as a sum of three, yosys would make a carry-save adder and a second chain of it.
    """
    low = Cat(Const(1, 1), a).as_signed() + Cat(carry, b).as_signed()
    return low[1:].as_signed()


def accumulated(m, platform, width, total, pending, opens, moves, name=""):
    """A register of sums: with ``moves`` it takes ``total + pending``, added to itself unless
    ``opens``.  ``name`` tells several in one module apart."""
    acc = Signal(signed(width), name=f"acc{name}", reset_less=True)
    add = place(
        m,
        platform,
        f"accumulate{name}",
        AddSelect(AddSelectConfig(width=width)),
        a=total,
        b=acc,
        enable=~opens,
        invert=0,
        carry=pending,
    )
    with m.If(moves):
        m.d.sync += acc.eq(add.y)
    return acc
