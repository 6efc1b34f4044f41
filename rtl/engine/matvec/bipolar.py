# SPDX-License-Identifier: Apache-2.0
"""Projections of bipolar integers and trits on the counters of a ``bipolar_gemm``."""

from typing import TYPE_CHECKING

from amaranth.hdl import Cat, Const, Module, signed, unsigned
from amaranth.lib import data

from ...mac.bipolar_gemm import BipolarGemm, BipolarGemmConfig
from ._socket import CODE, Tiled, tree_latency

if TYPE_CHECKING:
    from ..engine import EngineConfig

TERNARY = 8
"""Mode of trits: two planes that count the same.  Below it, the number of planes less one."""


class Core(Tiled):
    """A word is one plane of a tile's weights and meets all planes of the activations at once.

    Twice a code is a sum of bits worth -1 or 1, eight that count 1 to 128, the top one inverted,
    and a ninth, always 0, that counts 1.  So sums need no correction, and a code of 0 adds nothing
    whatever its weight: rows are filled up with any.
    """

    FORMATS = ("bipolar4", *(f"bipolar{bits}" for bits in (8, 7, 6, 5, 3, 2, 1)), "ternary")

    @classmethod
    def product(cls, engine: "EngineConfig") -> BipolarGemmConfig:
        return BipolarGemmConfig(
            lanes=engine.lanes,
            rows=1,
            columns=CODE + 1,
            w_bits=8,
            x_bits=1,
            max_k=engine.longest,
            stage=engine.stage,
        )

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return CODE + 8 + engine.longest.bit_length()

    @classmethod
    def latency(cls, engine: "EngineConfig") -> int:
        return super().latency(engine) + tree_latency(CODE + 1)

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return data.StructLayout({"bits": data.ArrayLayout(unsigned(1), engine.lanes)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = BipolarGemm(self.config)
        x = self._walk(
            m,
            core.i.ready,
            turns=lambda mode: Cat(mode[:3] | mode[3], Const(0, 1)),
        )
        lanes = self.engine.lanes
        codes = [x.acts.word_select(lane, CODE) for lane in range(lanes)]
        m.d.comb += [
            core.i.valid.eq(x.valid),
            core.i.p.first.eq(x.first),
            core.i.p.last.eq(x.last),
            core.i.p.w[0].eq(x.word.bits),
            core.i.p.count.eq(lanes),
            core.i.p.double.eq(x.opens & (x.turn != 0) & (x.mode != TERNARY)),
            core.i.p.halve.eq(x.mode == TERNARY),
            *(
                core.i.p.x[plane][lane].eq(code[plane] ^ (plane == CODE - 1))
                for lane, code in enumerate(codes)
                for plane in range(CODE)
            ),
        ]
        sums = core.o.p.sums[0]
        weighted = [(sums[plane] << plane).as_signed() for plane in range(CODE)]
        total = self._added(m, core.o, [*weighted, sums[CODE]], signed(self.engine.acc_width + 1))
        m.d.comb += self.o.p.sum.eq(total >> 1)
        return m
