# SPDX-License-Identifier: Apache-2.0
"""Projections of dual bits on a ``fdb_dot``."""

from typing import TYPE_CHECKING

from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data

from ...mac.fdb_dot import FdbDot, FdbDotConfig
from ._socket import CODE, Tiled, bytes_layout, record

if TYPE_CHECKING:
    from ..engine import EngineConfig

FACTOR = 8


def word_layout(lanes: int) -> data.StructLayout:
    """A tile's bits and the factors of the group that it belongs to."""
    bits = data.ArrayLayout(unsigned(1), lanes)
    factors = {"alpha1": signed(FACTOR), "alpha2": signed(FACTOR)}
    return data.StructLayout({"b1": bits, "b2": bits, **factors})


class Core(Tiled):
    """A word is both planes of a tile, and two factors of 8 bits.  To the core every tile is a
    group: groups of several tiles have the same factors in each.
    """

    FORMATS = ("fdb",)

    @classmethod
    def product(cls, engine: "EngineConfig") -> FdbDotConfig:
        return FdbDotConfig(
            lanes=engine.lanes,
            act_width=CODE,
            scale_width=FACTOR,
            max_group=engine.lanes,
            max_k=engine.longest,
            stage=engine.stage,
        )

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return bytes_layout(word_layout(engine.lanes))

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = FdbDot(self.config)
        x = self._walk(m, core.i.ready)
        self._joined(m, core, x)
        word = record(word_layout(self.engine.lanes), x.word)
        m.d.comb += [
            core.i.p.acts.eq(x.acts),
            *(core.i.p[name].eq(word[name]) for name in ("b1", "b2", "alpha1", "alpha2")),
            core.i.p.ends.eq(1),
        ]
        return m
