# SPDX-License-Identifier: Apache-2.0
"""Projections of block-scaled elements: exact dot products, shifted by the block's power of two."""

import dataclasses
import operator
from typing import TYPE_CHECKING

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..._add_select import accumulated, add_carry
from ..._once import place
from ..._pipeline import delayed
from ..._runs import run_pipeline
from ..._tree import reduce_tree
from ...formats._blocks import block_format_named
from ...mac._element_dot import ElementDot, ElementDotConfig
from ._socket import CODE, Tiled, bytes_layout, record

if TYPE_CHECKING:
    from ..engine import EngineConfig

POWER = 4
"""Bits of a block's power of two."""
BLOCK = 32


def word_layout(engine: "EngineConfig") -> data.StructLayout:
    """A tile's elements, and the power of each block in it."""
    width = block_format_named(engine.format).element.width
    return data.StructLayout({
        "elements": data.ArrayLayout(unsigned(width), engine.lanes),
        "powers": data.ArrayLayout(unsigned(POWER), -(-engine.lanes // BLOCK)),
    })


class Core(Tiled):
    """A word is a tile of elements, with a power of two for each block of 32, or for its part of
    one.  Activations are int8 as they come: a block of the vector has the scale of the vector.
    """

    FORMATS = (  # sums of E5M2 would need more than 32 bits
        *("mxfp4", "mxint8", "mxint4", "mxint5", "mxint6", "mxint7"),
        *("mxfp6", "mxfp6_e3m2", "mxfp8"),
    )

    @classmethod
    def product(cls, engine: "EngineConfig") -> "ScaledConfig":
        return ScaledConfig(
            parts=-(-engine.lanes // BLOCK),
            dot=ElementDotConfig(
                lanes=min(engine.lanes, BLOCK),
                a_format=f"int{CODE}",
                b_format=block_format_named(engine.format).element.name,
                stage=engine.stage,
            ),
        )

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return bytes_layout(word_layout(engine))

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = ScaledDot(self.config)
        x = self._walk(m, core.i.ready)
        self._joined(m, core, x)
        word = record(word_layout(self.engine), x.word)
        m.d.comb += [
            core.i.p.a.eq(x.acts),
            core.i.p.b.eq(word.elements),
            core.i.p.powers.eq(word.powers),
        ]
        return m


@dataclasses.dataclass(frozen=True)
class ScaledConfig:
    """``parts`` dot products side by side, each with a power of two."""

    parts: int
    dot: ElementDotConfig

    @property
    def sum_width(self) -> int:
        return 32

    @property
    def latency(self) -> int:
        """Registers from a transfer to its place in the sum."""
        return self.dot.latency + 1 + (self.parts > 1) + 1


class ScaledDot(wiring.Component):
    """Runs of transfers, each the sum of ``parts`` exact dot products times powers of two.

    int32; what a run adds up to must fit, while what is added may wrap.

    Members
    -------
    i : ``a``, ``b``: codes, lane 0 lowest; ``powers``; ``first``, ``last``.
    o : ``sum``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: ScaledConfig):
        self.config = config
        lanes = config.parts * config.dot.lanes
        super().__init__({
            "i": In(
                stream.Signature(
                    data.StructLayout({
                        "a": unsigned(lanes * config.dot.a.width),
                        "b": unsigned(lanes * config.dot.b.width),
                        "powers": data.ArrayLayout(unsigned(POWER), config.parts),
                        "first": unsigned(1),
                        "last": unsigned(1),
                    })
                )
            ),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        at = config.dot.latency
        powers = payload.powers.as_value()
        powers = [powers, *delayed(m, run.enable, powers, "powers", at)][at]
        terms = []
        for part in range(config.parts):
            dot = place(
                m,
                platform,
                f"dot_{part}",
                ElementDot(config.dot),
                a=payload.a.word_select(part, config.dot.lanes * config.dot.a.width),
                b=payload.b.word_select(part, config.dot.lanes * config.dot.b.width),
                enable=run.enable,
            )
            whole = Signal(signed(config.sum_width), name=f"whole_{part}")
            term = Signal(signed(config.sum_width), name=f"x_term_{part}", reset_less=True)
            m.d.comb += whole.eq(add_carry(dot.sum, 0, dot.pending))
            power = powers.word_select(part, POWER)
            with m.If(run.enable):
                m.d.sync += term.eq(whole << power)
            terms.append(term)
        at += 1
        total = reduce_tree(operator.add, terms)[: config.sum_width].as_signed()
        if config.parts > 1:
            x_total = Signal(signed(config.sum_width), reset_less=True)
            with m.If(run.enable):
                m.d.sync += x_total.eq(total)
            total, at = x_total, at + 1
        acc = accumulated(
            m,
            platform,
            config.sum_width,
            total,
            0,
            run.opens[at - 1],
            run.enable & run.moves[at - 1],
        )
        m.d.comb += self.o.p.sum.eq(acc)
        return m
