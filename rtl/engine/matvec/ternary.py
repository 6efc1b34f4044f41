# SPDX-License-Identifier: Apache-2.0
"""Ternary projections on a ``ternary_gemv``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import data

from ..._pipeline import Pipeline
from ..._streams import Queue
from ...codec._digits import base3_ninths, ninths_trits
from ...mac.ternary_gemv import TernaryGemv, TernaryGemvConfig
from ._socket import CODE, Socket

if TYPE_CHECKING:
    from ..engine import EngineConfig


class Core(Socket):
    """A word of weights a cycle meets a tile of codes; words may be packed five trits a byte."""

    FORMATS = ("ternary",)

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        return iter(())

    @classmethod
    def product(cls, engine: "EngineConfig") -> TernaryGemvConfig:
        return TernaryGemvConfig(
            k_lanes=engine.lanes,
            max_k=engine.longest,
            act_width=CODE,
            memory_stage=False,
            stage=engine.stage,
        )

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return cls.product(engine).acc_width

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        if engine.packing == "trit5":  # the code of `base3`
            return data.StructLayout({"bytes": data.ArrayLayout(8, -(-engine.lanes // 5))})
        return digits_layout(engine.lanes)

    def elaborate(self, platform):
        m = Module()
        m.submodules.gemv = gemv = TernaryGemv(self.config)
        words = self._front(m, gemv.acts_i)
        weights = self._unpacked(m)
        self._streamed(m, gemv, words, weights, gemv.weights_i.p.weights)
        return m

    def _unpacked(self, m: Module) -> Any:
        """The stream of words with two's complement codes."""
        if self.engine.packing == "trit2":
            return self.weights_i
        m.submodules.unpacked = unpacked = Queue(digits_layout(self.engine.lanes), 2)
        m.submodules.ninths = pipeline = Pipeline(1)
        fives = []
        for at in range(len(self.weights_i.p.bytes.as_value()) // 8):
            over, rest = Signal(5, name=f"over_{at}"), Signal(4, name=f"rest_{at}")
            with m.If(pipeline.enable):
                m.d.sync += Cat(over, rest).eq(Cat(base3_ninths(self.weights_i.p.bytes[at])))
            fives.append(ninths_trits(m, over, rest, f"trits_{at}"))
        m.d.comb += [
            pipeline.i_valid.eq(self.weights_i.valid),
            self.weights_i.ready.eq(pipeline.i_ready),
            unpacked.i.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(unpacked.i.ready),
            unpacked.i.p.weights.eq(Cat(fives)),
        ]
        return unpacked.o


def digits_layout(lanes: int) -> data.StructLayout:
    """A word of 2-bit digits, two's complement."""
    return data.StructLayout({"weights": data.ArrayLayout(unsigned(2), lanes)})
