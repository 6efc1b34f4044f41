# SPDX-License-Identifier: Apache-2.0
"""A pipeline whose stages all stop together: its control, and registers that move with it."""

from itertools import pairwise
from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Pipeline(wiring.Component):
    """Carries ``valid`` through ``stages`` registers; ``enable`` moves every stage by one.

    The pipeline moves unless its last stage holds a transfer that is not taken: one transfer per
    cycle, ``stages`` cycles of latency, bubbles keep their place.  The datapath's registers take
    ``enable`` and need no reset.
    """

    i_valid: Signal
    i_ready: Signal
    o_valid: Signal
    o_ready: Signal
    enable: Signal

    def __init__(self, stages: int):
        self.stages = stages
        super().__init__({
            "i_valid": In(1),
            "i_ready": Out(1),
            "o_valid": Out(1),
            "o_ready": In(1),
            "enable": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.enable.eq(~self.o_valid | self.o_ready),
            self.i_ready.eq(self.enable),
        ]
        valid = self.i_valid
        for stage in range(1, self.stages + 1):
            held = self.o_valid if stage == self.stages else Signal(name=f"valid_{stage}")
            with m.If(self.enable):
                m.d.sync += held.eq(valid)
            valid = held
        return m


def held(m: Module, enable, value, name: str, zero: Any = 0):
    """``value`` in a register that is cleared instead if ``zero``, which costs no LUT."""
    x = Signal.like(value, name=f"x_{name}", reset_less=True)
    with m.If(enable):
        m.d.sync += x.eq(value)
        with m.If(zero):
            m.d.sync += x.eq(0)
    return x


def delayed(m: Module, enable, value, name: str, count: int):
    """``value`` after each of ``count`` registers: index ``n`` is ``n + 1`` behind it."""
    steps = [Signal.like(value, name=f"x_{name}_{n}", reset_less=True) for n in range(count)]
    with m.If(enable):
        m.d.sync += [late.eq(early) for early, late in pairwise([value, *steps])]
    return steps
