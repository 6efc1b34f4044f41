# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: pairs of elements turned by an angle from a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from .._streams import bits_for
from .._tree import reduce_tree
from ..config import Config, param


@dataclass(frozen=True, kw_only=True)
class RopeConfig(Config):
    head_dim: int = param(32, "elements of a head, even", ge=2, le=1024)
    context: int = param(256, "positions in the table", ge=1, le=1 << 17)
    x_width: int = param(18, "bits of a signed element", ge=2, le=18)
    fraction: int = param(15, "bits of fraction of sines and cosines", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"head_dim": 6, "context": 3, "x_width": 6, "fraction": 4},
        "heads_48": {"head_dim": 48, "context": 64},
        "heads_128": {"head_dim": 128, "context": 64},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "RoFormer, arXiv 2104.09864",
        "BitNet b1.58, arXiv 2402.17764",
    )

    def faults(self) -> Iterator[str]:
        if self.head_dim % 2:
            yield f"head_dim must be even, not {self.head_dim}"
        if self.depth > 1 << 20:
            yield f"the table of context * head_dim / 2 = {self.depth} entries exceeds {1 << 20}"

    @property
    def half(self) -> int:
        """Pairs of a head."""
        return self.head_dim // 2

    @property
    def depth(self) -> int:
        """Entries of the table."""
        return self.context * self.half

    @property
    def latency(self) -> int:
        """Edges from taking a pair's second element to the transfer of its first result."""
        return 5


def table_layout(config: RopeConfig) -> data.StructLayout:
    """A write into the table."""
    return data.StructLayout({
        "address": unsigned(bits_for(config.depth)),
        "cos": signed(config.fraction + 1),
        "sin": signed(config.fraction + 1),
    })


class Rope(wiring.Component):
    """Turns each pair ``(low, high)`` of a head by the angle of its position and pair.

    ``low' = low * cos - high * sin`` and ``high' = low * sin + high * cos``, each exact, then
    ``saturate(floor(value * 2**-fraction + 1/2))``: one rounding, to nearest, ties upwards;
    saturated to ``+-(2**(x_width - 1) - 1)``.  With ``bypass`` the pair is turned by 0, with a
    cosine of exactly 1: elements pass unchanged, but that the lowest one saturates.

    An operation is one head of ``head_dim`` elements, pair by pair, and takes its angles from the
    table at ``position * head_dim / 2 + pair``.  The table is written once after reset: entries
    come in any order, some twice if need be, and the one at the last address,
    ``context * head_dim / 2 - 1``, completes it; ``table_i`` takes nothing from then on, and no
    element is taken before.

    Precision: with entries that are the multiples of ``2**-fraction`` nearest to cosine and sine,
    clipped to ``1 - 2**-fraction``, a result differs from the exact rotation of its pair by at most
    ``1/2 + 3/2 * 2**-fraction * max(|low|, |high|)``, saturation aside.

    One element per cycle, heads without a gap.  Latency is 5 edges from a pair's second element to
    its first result; the second one follows.  Everything but the table stops while offered elements
    are not taken.  Reset drops whatever is in flight, and the table.

    Errors: a position of ``context`` or more, an address beyond the table, or entries that were
    never written give elements that are not specified.

    Members
    -------
    op_i : :py:`In(stream.Signature(StructLayout))`
        ``position``: unsigned.  ``bypass``.
    table_i : :py:`In(stream.Signature(StructLayout))`
        ``address``: unsigned.  ``cos``, ``sin``: signed, ``fraction`` bits below the point.
    i : :py:`In(stream.Signature(StructLayout))`
        ``x``: signed.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``x``: signed, in the order they came.  ``first``, ``last``: of the head.

    Source: RoFormer; pairs half a head apart, as in Llama and BitNet b1.58, are put side by side by
    the order of the rows of the projections.
    """

    op_i: stream.Interface
    table_i: stream.Interface
    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: RopeConfig):
        self.config = config
        operation = data.StructLayout({
            "position": unsigned(bits_for(config.context)),
            "bypass": unsigned(1),
        })
        element = data.StructLayout({
            "x": signed(config.x_width),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "table_i": In(stream.Signature(table_layout(config))),
            "i": In(stream.Signature(data.StructLayout({"x": signed(config.x_width)}))),
            "o": Out(stream.Signature(element)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.pipeline = pipeline = Pipeline(config.latency)

        active, odd, complete = Signal(), Signal(), Signal()
        bypass = Signal(reset_less=True)
        address = Signal.like(self.table_i.p.address, reset_less=True)
        pair = Signal(range(config.half), reset_less=True)
        take, turns, ends = Signal(), Signal(), Signal()
        second = Signal()
        m.d.comb += [
            self.i.ready.eq(pipeline.enable & active & complete),
            take.eq(self.i.valid & self.i.ready),
            turns.eq(take & odd),
            ends.eq(pair == config.half - 1),
            self.op_i.ready.eq(~active | (turns & ends)),
            # The second result of a pair goes where nothing else can: behind the first.
            pipeline.i_valid.eq(turns | second),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]
        with m.If(take):
            m.d.sync += odd.eq(~odd)
        with m.If(turns):
            m.d.sync += [pair.eq(pair + 1), address.eq(address + 1)]
        with m.If(self.op_i.ready):
            start = self._start(self.op_i.p.position)
            m.d.sync += [
                active.eq(self.op_i.valid),
                bypass.eq(self.op_i.p.bypass),
                address.eq(start),
                pair.eq(0),
            ]
        entry = self._table(m, address, pipeline.enable & take & ~odd, complete)

        marks = data.StructLayout({"first": unsigned(1), "last": unsigned(1)})
        steps = [Signal(marks, name=f"x_marks_{n}", reset_less=True) for n in range(config.latency)]
        x_bypass, x_last = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(pipeline.enable):
            m.d.sync += [
                second.eq(turns),
                x_bypass.eq(bypass),
                x_last.eq(ends),
                steps[0].first.eq(turns & (pair == 0)),
                steps[0].last.eq(second & x_last),
                *(late.eq(early) for early, late in pairwise(steps)),
            ]
        m.d.comb += [self.o.p.first.eq(steps[-1].first), self.o.p.last.eq(steps[-1].last)]
        self._rotate(m, pipeline.enable, take & ~odd, second, entry, x_bypass)
        return m

    def _start(self, position):
        """The address of a position's first entry."""
        bits = [bit for bit in range(self.config.half.bit_length()) if self.config.half >> bit & 1]
        return reduce_tree(lambda a, b: a + b, [position << bit for bit in bits])

    def _table(self, m, address, read_enable, complete):
        """What the table holds at ``address``, an edge later and from then on."""
        config, given = self.config, self.table_i
        shape = data.StructLayout({
            "cos": signed(config.fraction + 1),
            "sin": signed(config.fraction + 1),
        })
        m.submodules.table = table = Memory(shape=shape, depth=config.depth, init=[])
        write, read = table.write_port(), table.read_port()
        m.d.comb += [
            given.ready.eq(~complete),
            write.en.eq(given.valid & ~complete),
            write.addr.eq(given.p.address),
            write.data.cos.eq(given.p.cos),
            write.data.sin.eq(given.p.sin),
            read.en.eq(read_enable),
            read.addr.eq(address),
        ]
        with m.If(write.en & (given.p.address == config.depth - 1)):
            m.d.sync += complete.eq(1)
        return read.data

    def _rotate(self, m, enable, keeps, second, entry, bypass):
        """Two multipliers whose factors are exchanged for the second result of a pair."""
        config = self.config
        low, low_in, high_in, high = (
            Signal(signed(config.x_width), name=name, reset_less=True)
            for name in ("low", "low_in", "high_in", "high")
        )
        # One more bit than the table has: the cosine of a bypass is 1.
        one, other = (
            Signal(signed(config.fraction + 2), name=name, reset_less=True)
            for name in ("one", "other")
        )
        products = [
            Signal(signed(config.x_width + config.fraction + 2), name=name, reset_less=True)
            for name in ("low_product", "high_product")
        ]
        subtracts = [Signal(name=f"subtracts_{n}", reset_less=True) for n in range(2)]
        total = Signal(signed(config.x_width + config.fraction + 2), reset_less=True)
        with m.If(keeps):
            m.d.sync += low_in.eq(self.i.p.x)
        with m.If(enable):
            m.d.sync += [
                high_in.eq(self.i.p.x),
                one.eq(other),
                other.eq(one),
                products[0].eq(low * one),
                products[1].eq(high * other),
                subtracts[0].eq(second),
                subtracts[1].eq(subtracts[0]),
                total.eq(products[0] + Mux(subtracts[1], -products[1], products[1])),
            ]
            with m.If(second):
                m.d.sync += [
                    low.eq(low_in),
                    high.eq(high_in),
                    one.eq(Mux(bypass, 1 << config.fraction, entry.cos)),
                    other.eq(Mux(bypass, 0, entry.sin)),
                ]
        x = Signal(signed(config.x_width), reset_less=True)
        rounded = Signal(signed(config.x_width + 3))
        limit = (1 << config.x_width - 1) - 1
        beyond = Cat(bit != rounded[-1] for bit in rounded[config.x_width - 1 : -1]).any()
        lowest = rounded[: config.x_width] == limit + 1
        m.d.comb += [
            rounded.eq((total >> config.fraction) + total[config.fraction - 1]),
            self.o.p.x.eq(x),
        ]
        with m.If(enable):
            m.d.sync += x.eq(Mux(beyond | lowest, Mux(rounded[-1], -limit, limit), rounded))
