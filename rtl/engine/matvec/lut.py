# SPDX-License-Identifier: Apache-2.0
"""Ternary projections by tables of the codes' sums, on a ``lut_gemv``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from amaranth.hdl import Module, unsigned
from amaranth.lib import data

from ..._streams import WIDEN_LATENCY
from ...lut.lut_gemv import LutGemv, LutGemvConfig
from ._socket import CODE, Socket, widening

if TYPE_CHECKING:
    from ..engine import EngineConfig


class Core(Socket):
    """A word of weights a cycle: an index and a sign for each ``GROUP`` trits of a tile.

    Half tables of four codes are built in block RAM when a vector has come; a tile that does not
    fill its groups is filled up with codes of zero.
    """

    FORMATS = ("ternary",)
    GROUP: ClassVar[int] = 4
    """Weights of a code."""

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        if engine.lanes <= cls.GROUP:
            yield f"lanes must be more than {cls.GROUP} with {engine.matvec}, not {engine.lanes}"
        yield from super().faults(engine)

    @classmethod
    def product(cls, engine: "EngineConfig") -> LutGemvConfig:
        groups = -(-engine.lanes // cls.GROUP)
        return LutGemvConfig(
            group=cls.GROUP,
            groups=groups,
            max_k=engine.longest // engine.lanes * cls.GROUP * groups,
            act_width=CODE,
            stage=engine.stage,
            chain=2,
        )

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return cls.product(engine).acc_width

    @classmethod
    def preparation(cls, engine: "EngineConfig", width: int) -> int:
        """The parts of the tiles that come faster than they are stored, and building tables."""
        config, tiles = cls.product(engine), -(-width // engine.lanes)
        few, many = widening(engine, config.parts)
        waits = -WIDEN_LATENCY if many == few else 0
        if many == engine.lanes:  # a tile is cut
            rows = -(-engine.lanes // few)
            waits += config.parts - 1 + (tiles - 1) * max(config.parts - rows, 0)
        return waits + tiles * config.build + config.build_latency

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        config = cls.product(engine)
        return data.StructLayout({
            "codes": data.ArrayLayout(unsigned(config.code_width), config.groups)
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.gemv = gemv = LutGemv(self.config)
        words = self._front(m, gemv.acts_i, self.config.parts)
        self._streamed(m, gemv, words, self.weights_i, gemv.weights_i.p.codes[0])
        return m
