# SPDX-License-Identifier: Apache-2.0
"""Residual stream: a vector that is held and added to."""

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


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(Config):
    lanes: int = param(8, "elements per transfer", ge=1, le=256)
    max_len: int = param(192, "elements held", ge=1, le=65536)
    x_width: int = param(18, "bits of a signed element", ge=2, le=32)
    vectors: int = param(1, "vectors held, a power of two", ge=1, le=256)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 2, "max_len": 10, "x_width": 5},
        "bitnet_2b": {"lanes": 16, "max_len": 2560},
        "four": {"lanes": 2, "max_len": 10, "x_width": 5, "vectors": 4},
    }
    papers: ClassVar[tuple[str, ...]] = ("BitNet b1.58, arXiv 2402.17764",)

    def faults(self) -> Iterator[str]:
        if self.max_len % self.lanes:
            yield f"max_len must be a multiple of lanes = {self.lanes}, not {self.max_len}"
        if self.vectors & (self.vectors - 1):
            yield f"vectors must be a power of two, not {self.vectors}"

    @property
    def rows(self) -> int:
        """Rows of a vector."""
        return self.max_len // self.lanes

    @property
    def latency(self) -> int:
        """Edges from taking a row to the transfer of the new one, if that is taken at once."""
        return 3


class Residual(wiring.Component):
    """Holds vectors; rows that come in replace their rows or are added to them.

    There is one vector, or ``vectors`` of them, of which each row that comes names its own.

    A row with ``set`` replaces what is held, any other is added to it, lane by lane.  The new row
    is saturated to ``+-(2**(x_width - 1) - 1)`` and offered.

    A vector starts at row 0, with ``first`` and after an end; it ends at ``last`` and at
    ``max_len // lanes`` rows.  Rows that it does not reach keep their values.  What is held is
    unspecified until it was set; reset drops what is in flight, of which rows may be held already,
    and starts at row 0.

    Latency is 3 edges.  One row per cycle; a row that was given less than 3 cycles ago, as in
    vectors of 1 or 2 rows, waits for that.  Everything stops while offered rows are not taken.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``x``: signed, ``lanes`` of them.  ``set``: replace instead of add.  ``first``, ``last``.
        ``vector``, where there are several: which one.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``x``: signed, the new row.  ``first``: it is row 0.  ``last``: the vector ends with it.

    Source: residual connections of BitNet b1.58, in integers.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: ResidualConfig):
        self.config = config
        row = data.ArrayLayout(signed(config.x_width), config.lanes)
        marks = {"first": unsigned(1), "last": unsigned(1)}
        which = (
            {"vector": unsigned((config.vectors - 1).bit_length())} if config.vectors > 1 else {}
        )
        given = data.StructLayout({"x": row, "set": unsigned(1), **marks, **which})
        super().__init__({
            "i": In(stream.Signature(given)),
            "o": Out(stream.Signature(data.StructLayout({"x": row, **marks}))),
        })

    def elaborate(self, platform):
        m = Module()
        config, given = self.config, self.i.p
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        bits = (config.rows - 1).bit_length()  # of a row; a vector's rows begin at a power of two
        m.submodules.held = held = Memory(
            shape=data.ArrayLayout(signed(config.x_width), config.lanes),
            depth=config.rows if config.vectors == 1 else config.vectors << bits,
            init=[],
        )
        read, write = held.read_port(), held.write_port()

        count = Signal(range(config.rows))
        at, ends, take = Signal.like(count), Signal(), Signal()

        def of_vector(row):
            return row if config.vectors == 1 else Cat(row, given.vector)

        place = of_vector(at)
        step = data.StructLayout({
            "row": unsigned(len(place)),
            "set": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        steps = [Signal(step, name=f"x_step_{n}", reset_less=True) for n in range(config.latency)]
        # A row is read with the first register and written with the third.
        moves = [Signal(name=f"x_moves_{n}") for n in range(config.latency - 1)]
        clashes = Signal()

        def moving(row):
            return (moves[0] & (steps[0].row == row)) | (moves[1] & (steps[1].row == row))

        m.d.comb += [
            at.eq(Mux(given.first, 0, count)),
            ends.eq(given.last | (at == config.rows - 1)),
            # ``first`` comes late.
            clashes.eq(
                Mux(given.first, moving(of_vector(Const(0, bits))), moving(of_vector(count)))
            ),
            self.i.ready.eq(pipeline.enable & ~clashes),
            take.eq(self.i.valid & self.i.ready),
            pipeline.i_valid.eq(take),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
            read.en.eq(pipeline.enable),
            read.addr.eq(place),
        ]
        with m.If(take):
            m.d.sync += count.eq(Mux(ends, 0, at + 1))

        x_given = [Signal(given.x.shape(), name=f"x_given_{n}", reset_less=True) for n in (0, 1)]
        x_held = Signal(given.x.shape(), reset_less=True)
        x = Signal(given.x.shape(), reset_less=True)
        with m.If(pipeline.enable):
            m.d.sync += [
                steps[0].row.eq(place),
                steps[0].set.eq(given.set),
                steps[0].first.eq(at == 0),
                steps[0].last.eq(ends),
                *(late.eq(early) for early, late in pairwise(steps)),
                moves[0].eq(take),
                moves[1].eq(moves[0]),
                x_given[0].eq(given.x),
                x_given[1].eq(x_given[0]),
                x_held.eq(Mux(steps[0].set, 0, read.data)),
                x.eq(write.data),
            ]
        m.d.comb += [
            write.en.eq(pipeline.enable & moves[1]),
            write.addr.eq(steps[1].row),
            self.o.p.x.eq(x),
            self.o.p.first.eq(steps[2].first),
            self.o.p.last.eq(steps[2].last),
        ]
        limit = (1 << config.x_width - 1) - 1
        for lane in range(config.lanes):
            total = Signal(signed(config.x_width + 1), name=f"total_{lane}")
            one, other = x_given[1][lane], x_held[lane]
            beyond = (total[-1] != total[-2]) | (total == -limit - 1)
            m.d.comb += [
                total.eq(one + other),
                write.data[lane].eq(Mux(beyond, Mux(total[-1], -limit, limit), total)),
            ]
        return m
