# SPDX-License-Identifier: Apache-2.0
"""Control of a pipeline whose stages all stop together."""

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
