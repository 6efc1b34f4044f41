# SPDX-License-Identifier: Apache-2.0
"""A word of a table by its address, inverted or not."""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from ..config import Config, param

WIDE = 4
"""Bits of an address up to which it is one multiplexer."""


@dataclass(frozen=True, kw_only=True)
class TableMuxConfig(Config):
    address: int = param(3, "bits of the address", ge=1, le=8)
    width: int = param(8, "bits of a word", ge=1)


class TableMux(wiring.Component):
    """``y = words[address] ^ invert``, word 0 lowest; combinational.

    The inversion is at the leaves of the multiplexers, where a LUT4 of two words and an address bit
    has an input to spare.  FPGA flows recognise modules of this name and map them to the wide
    multiplexers of a slice (see docs/fpga.md).
    """

    words: Signal
    address: Signal
    invert: Signal
    y: Signal

    def __init__(self, config: TableMuxConfig):
        self.config = config
        super().__init__({
            "words": In(config.width << config.address),
            "address": In(config.address),
            "invert": In(1),
            "y": Out(config.width),
        })

    def elaborate(self, platform):
        m = Module()
        width = self.config.width
        if self.config.address > WIDE:
            half = TableMuxConfig(address=self.config.address - 1, width=width)
            low, high = (
                place(
                    m,
                    platform,
                    name,
                    TableMux(half),
                    words=self.words.word_select(n, len(self.words) // 2),
                    address=self.address[:-1],
                    invert=self.invert,
                )
                for n, name in enumerate(("low", "high"))
            )
            m.d.comb += self.y.eq(Mux(self.address[-1], high.y, low.y))
            return m
        words = [self.words.word_select(n, width) for n in range(1 << self.config.address)]
        for level, bit in enumerate(self.address):
            words = [Mux(bit, odd, even) for even, odd in zip(words[::2], words[1::2], strict=True)]
            if level == 0:
                words = [word ^ self.invert.replicate(width) for word in words]
        m.d.comb += self.y.eq(words[0])
        return m
