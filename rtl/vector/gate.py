# SPDX-License-Identifier: Apache-2.0
"""Gate of a feed-forward layer: squared ReLU or SiLU of one element times another."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from ..config import Config, param

SIGMOID = 16
"""Bits of fraction of a sigmoid."""

PER_UNIT = 4
"""The sigmoid's nodes are ``2**-PER_UNIT`` apart."""

REACH = 4
"""From ``2**REACH`` on the sigmoid counts as 0 or 1."""

NODE = data.StructLayout({"value": unsigned(SIGMOID), "less": unsigned(SIGMOID - 5)})
"""The falling half of the sigmoid at a node, and how much less it is at the next one."""


@dataclass(frozen=True, kw_only=True)
class GateConfig(Config):
    width: int = param(18, "bits of a signed element", ge=3, le=18)
    shift: int = param(26, "bits dropped from the product", ge=0, le=52)
    activation: str = param("relu2", "what is applied to the gate", choices=("relu2", "silu"))
    fraction: int = param(10, "bits of fraction of a gate, heeded by silu", ge=4, le=12)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"width": 5, "shift": 6},
        "silu": {"activation": "silu", "shift": 16},
        "silu_tiny": {"activation": "silu", "width": 9, "fraction": 5, "shift": 6},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "BitNet b1.58 2B4T, arXiv 2504.12285",
        "GLU Variants Improve Transformer, arXiv 2002.05202",
    )

    def faults(self) -> Iterator[str]:
        if self.shift >= self.product_width:
            yield (
                f"shift must be below the {self.product_width} bits of the product, "
                f"not {self.shift}"
            )
        if self.activation == "silu" and self.width <= self.step:
            yield f"width must exceed fraction - {PER_UNIT} = {self.step}, not {self.width}"

    @property
    def product_width(self) -> int:
        """Bits of the product before it is shifted."""
        return 3 * self.width - 2 if self.activation == "relu2" else 2 * self.width

    @property
    def step(self) -> int:
        """Bits of a gate between two nodes of the sigmoid."""
        return self.fraction - PER_UNIT

    @property
    def multipliers(self) -> int:
        """Multipliers of at most 18 x 18 bits."""
        return 2 if self.activation == "relu2" else 3

    @property
    def latency(self) -> int:
        """Edges from taking a pair's second element to the transfer of the result."""
        return 6 if self.activation == "relu2" else 9


class Gate(wiring.Component):
    """Takes gate and up in turn and gives ``activation(gate) * up``, rounded and saturated.

    ``relu2``: ``x = saturate(floor(max(gate, 0)**2 * up * 2**-shift + 1/2))``, exact before the one
    rounding, to nearest, ties upwards; saturated to ``+-(2**(width - 1) - 1)``.

    ``silu``: ``x = saturate(floor(s * up * 2**-shift + 1/2))`` with
    ``s = floor(gate * sigmoid * 2**-16 + 1/2)``, both of ``gate``'s fraction, and an integer
    ``sigmoid`` of 16 bits of fraction: ``c`` where the gate is negative, ``2**16 - c`` elsewhere;
    ``c`` is the line between ``round(2**16 / (1 + exp(k / 16)))`` at the nodes ``k / 16``, at
    ``|gate|``, what is taken from the left node being rounded to nearest, ties upwards; from 16 on
    it is 0.  The sigmoid is wrong by less than ``5 * 2**-16``, its steps included.

    A vector starts with ``first`` and after ``last``; ``first`` marks a gate, and a gate that lacks
    its up is dropped there.  ``last`` is heeded with up.  One element per cycle comes in, so one
    pair every two.  Latency is ``config.latency`` edges from up, 6 or 9 (``silu``).  Everything
    stops while offered elements are not taken.  Reset drops whatever is in flight.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``x``: signed; gate, up, gate, up ...  ``first``: with a gate.  ``last``: with an up.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``x``: signed.  ``first``, ``last``.

    Source: squared ReLU of BitNet b1.58 2B4T; SwiGLU of GLU Variants Improve Transformer.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: GateConfig):
        self.config = config
        layout = data.StructLayout({
            "x": signed(config.width),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(layout)),
            "o": Out(stream.Signature(layout)),
        })

    def elaborate(self, platform):
        m = Module()
        config, given = self.config, self.i.p
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        relu2 = config.activation == "relu2"

        held, ended = Signal(), Signal(init=1)
        gate = Signal(unsigned(config.width - 1) if relu2 else signed(config.width))
        gate_first = Signal(reset_less=True)
        pair, take = Signal(), Signal()
        marks = data.StructLayout({"first": unsigned(1), "last": unsigned(1)})
        steps = [Signal(marks, name=f"x_marks_{n}", reset_less=True) for n in range(config.latency)]
        m.d.comb += [
            self.i.ready.eq(pipeline.enable),
            take.eq(self.i.valid & pipeline.enable),
            pair.eq(held & ~given.first),
            pipeline.i_valid.eq(take & pair),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
            self.o.p.first.eq(steps[-1].first),
            self.o.p.last.eq(steps[-1].last),
        ]
        with m.If(take):
            m.d.sync += held.eq(~pair)
            with m.If(pair):
                m.d.sync += ended.eq(given.last)
            with m.Else():
                m.d.sync += [
                    gate.eq(Mux(given.x < 0, 0, given.x) if relu2 else given.x),
                    gate_first.eq(given.first | ended),
                ]
        with m.If(pipeline.enable):
            m.d.sync += [
                steps[0].first.eq(gate_first),
                steps[0].last.eq(given.last),
                *(late.eq(early) for early, late in pairwise(steps)),
            ]

        total = self._relu2(m, pipeline, gate) if relu2 else self._silu(m, pipeline, gate)
        x = Signal(signed(config.width), reset_less=True)
        # Bit 0 is what the result is rounded by.
        wide = Cat(Const(0, 1), total)[config.shift :].as_signed()
        rounded = Signal(signed(max(len(wide), config.width + 1)))
        limit = (1 << config.width - 1) - 1
        beyond = Cat(bit != rounded[-1] for bit in rounded[config.width - 1 : -1]).any()
        lowest = rounded[: config.width] == limit + 1
        m.d.comb += [rounded.eq((wide >> 1) + wide[0]), self.o.p.x.eq(x)]
        with m.If(pipeline.enable):
            m.d.sync += x.eq(Mux(beyond | lowest, Mux(rounded[-1], -limit, limit), rounded))
        return m

    def _relu2(self, m, pipeline, gate):
        """Two multipliers: a square, and twice in turn a half of it times up, low half first."""
        width = self.config.width
        half = width - 1
        up, factor = (Signal(signed(width), name=name, reset_less=True) for name in ("up", "by"))
        square = Signal(2 * half, reset_less=True)
        part = Signal(half, reset_less=True)
        product = Signal(signed(width + half), reset_less=True)
        low = Signal(signed(width + half), reset_less=True)
        total = Signal(signed(width + 2 * half), reset_less=True)
        opens = Signal()
        with m.If(pipeline.enable):
            m.d.sync += [
                up.eq(self.i.p.x),
                square.eq(gate * gate),
                opens.eq(pipeline.i_valid),
                part.eq(square[half:]),
                product.eq(part * factor),
                low.eq(product),
                total.eq(Cat(low[:half], product + (low >> half))),
            ]
            with m.If(opens):
                m.d.sync += [part.eq(square[:half]), factor.eq(up)]
        return total

    def _silu(self, m, pipeline, gate):
        """Three multipliers in a row: between two nodes, gate times sigmoid, that times up."""
        width, step = self.config.width, self.config.step
        address = min(PER_UNIT + REACH, width - step)
        m.submodules.nodes = nodes = Memory(
            shape=NODE, depth=1 << address, init=[_node(k) for k in range(1 << address)]
        )
        read = nodes.read_port()
        size = Signal(width, reset_less=True)
        x_node = Signal(NODE, reset_less=True)
        x_value = Signal(SIGMOID, reset_less=True)
        taken = Signal(len(x_node.less) + max(step, 1), reset_less=True)
        sigmoid = Signal(SIGMOID + 1, reset_less=True)
        scaled = Signal(signed(width + SIGMOID + 1), reset_less=True)
        silu = Signal(signed(width), reset_less=True)
        total = Signal(signed(2 * width), reset_less=True)

        def delayed(value, shape, edges, name):
            for edge in range(edges):
                later = Signal(shape, name=f"{name}_{edge}", reset_less=True)
                with m.If(pipeline.enable):
                    m.d.sync += later.eq(value)
                value = later
            return value

        beyond = delayed(size[step + address :].any(), 1, 3, "x_beyond")
        between = delayed(size[:step], max(step, 1), 2, "x_between")
        gate_size = delayed(gate, signed(width), 5, "x_gate")
        negative = delayed(gate < 0, 1, 4, "x_negative")
        up = delayed(self.i.p.x, signed(width), 7, "x_up")
        less = Signal(len(x_node.less) + 1)
        c = Signal(SIGMOID)
        m.d.comb += [
            read.en.eq(pipeline.enable),
            read.addr.eq(size[step:]),
            less.eq((Cat(Const(0, 1), taken)[step:] + 1) >> 1),
            c.eq(Mux(beyond, 0, x_value - less)),
        ]
        with m.If(pipeline.enable):
            m.d.sync += [
                size.eq(Mux(gate < 0, -gate, gate)),
                x_node.eq(read.data),
                x_value.eq(x_node.value),
                taken.eq(x_node.less * between),
                sigmoid.eq(Mux(negative, c, (1 << SIGMOID) - c)),
                scaled.eq(gate_size * sigmoid),
                silu.eq((scaled + (1 << SIGMOID - 1)) >> SIGMOID),
                total.eq(silu * up),
            ]
        return total


def _node(k: int) -> data.Const:
    value, after = (round((1 << SIGMOID) / (1 + math.exp(n / (1 << PER_UNIT)))) for n in (k, k + 1))
    return NODE.const({"value": value, "less": value - after})
