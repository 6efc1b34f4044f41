# SPDX-License-Identifier: Apache-2.0
"""Projections of integers of any width, one bit plane after the other, on a ``bit_serial_dot``."""

from typing import TYPE_CHECKING

from amaranth.hdl import Module, unsigned
from amaranth.lib import data

from ...mac.bit_serial_dot import BitSerialDot, BitSerialDotConfig
from ._socket import CODE, Tiled

if TYPE_CHECKING:
    from ..engine import EngineConfig


class Core(Tiled):
    """A word is one bit of a tile's weights; a row takes a turn through its tiles for each bit, the
    highest first.  An operation's mode is the number of bits, less one.
    """

    FORMATS = ("int8", *(f"int{bits}" for bits in range(2, 8)), "ternary")

    @classmethod
    def product(cls, engine: "EngineConfig") -> BitSerialDotConfig:
        return BitSerialDotConfig(
            lanes=engine.lanes, act_width=CODE, max_k=engine.longest, stage=engine.stage
        )

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return data.StructLayout({"bits": data.ArrayLayout(unsigned(1), engine.lanes)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = BitSerialDot(self.config)
        x = self._walk(m, core.i.ready, turns=lambda mode: mode)
        self._joined(m, core, x)
        m.d.comb += [
            core.i.p.acts.eq(x.acts),
            core.i.p.bits.eq(x.word.bits),
            core.i.p.plane.eq(x.opens),
            core.i.p.sign.eq(x.turn == 0),
        ]
        return m
