# SPDX-License-Identifier: Apache-2.0
"""An adder whose second operand is masked and inverted bit by bit inside the carry chain."""

from dataclasses import dataclass

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ._add_select import add_carry
from .config import Config, param


@dataclass(frozen=True, kw_only=True)
class AddMaskConfig(Config):
    width: int = param(8, "bits of each operand", ge=1, le=512)


class AddMask(wiring.Component):
    """``y = a + ((b & enable) ^ invert) + carry``, combinational, modulo ``2**width``.

    ``enable`` and ``invert`` have a bit for each bit of ``b``.  As with ``AddSelect`` all bits of
    one position are a function of four inputs and a carry: FPGA flows recognise modules of this
    name and map them to one carry chain (see docs/fpga.md).

    Members
    -------
    a, b, enable, invert : :py:`In(width)`
    carry : :py:`In(1)`
    y : :py:`Out(width)`
    """

    a: Signal
    b: Signal
    enable: Signal
    invert: Signal
    carry: Signal
    y: Signal

    def __init__(self, config: AddMaskConfig):
        self.config = config
        wide = {name: In(config.width) for name in ("a", "b", "enable", "invert")}
        super().__init__({**wide, "carry": In(1), "y": Out(config.width)})

    def elaborate(self, platform):
        m = Module()
        term = Signal(self.config.width)
        m.d.comb += term.eq((self.b & self.enable) ^ self.invert)
        m.d.comb += self.y.eq(add_carry(self.a, term, self.carry))
        return m
