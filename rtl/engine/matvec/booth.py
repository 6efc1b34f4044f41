# SPDX-License-Identifier: Apache-2.0
"""Projections of trits, of 4-bit and of 8-bit integers on the digits of a ``boothflex``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data

from ...mac.boothflex import Boothflex, BoothflexConfig
from .._program import Mode
from ._socket import CODE, Tiled
from .ternary import digits_layout

if TYPE_CHECKING:
    from ..engine import EngineConfig


class Core(Tiled):
    """A tile of ``lanes`` codes takes one cycle with trits and four with integers, of which each PE
    takes one of its four codes in a cycle.  A word of weights is a byte for each PE: four trits,
    two 4-bit weights, the lower first, or one of 8 bits; so a word of 4-bit weights is used twice.
    """

    FORMATS = ("int8", "int4", "ternary")

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        if engine.lanes < 8:
            yield f"lanes must be at least 8 with booth, not {engine.lanes}"
        yield from super().faults(engine)

    @classmethod
    def product(cls, engine: "EngineConfig") -> BoothflexConfig:
        return BoothflexConfig(
            pes=engine.lanes // 4,
            a_width=CODE,
            int2=False,
            max_k=engine.longest,
            stage=engine.stage,
        )

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return cls.product(engine).acc_width

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return digits_layout(engine.lanes)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.core = core = Boothflex(config)
        x = self._walk(
            m,
            core.i.ready,
            steps=lambda mode: Mux(mode == Mode.TERNARY, 0, 3),
            uses=lambda mode: mode == Mode.INT4,
        )
        self._joined(m, core, x)
        m.d.comb += core.i.p.mode.eq(x.mode == Mode.TERNARY)
        word = x.word.as_value()
        for pe in range(config.pes):
            codes = [x.acts.word_select(4 * pe + at, CODE) for at in range(4)]
            byte = word.word_select(pe, 8)
            half = Signal(4, name=f"half_{pe}")
            m.d.comb += [
                half.eq(Mux(x.step[0], byte[4:], byte[:4])),
                core.i.p.b[pe].eq(Mux(x.mode == Mode.INT4, half.as_signed(), byte.as_signed())),
                core.i.p.a[pe][0].eq(Array(codes)[x.step[:2]].as_signed()),
                *(core.i.p.a[pe][at].eq(codes[at].as_signed()) for at in range(1, 4)),
            ]
        return m
