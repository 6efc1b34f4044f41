# SPDX-License-Identifier: Apache-2.0
"""Matrix co-processor on AXI: an array of FP4 and posit multiply-accumulate engines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from .._pipeline import Pipeline
from .._streams import Queue
from ..bus._axi import Channel, Registers, lite
from ..config import Config, param
from ..mac.xr_npe import XrNpe, XrNpeConfig

ADDRESS = 8
"""Bits of a register's address in bytes."""
IDENTITY = 0xA7584E51  # any number with both end bits set
VERSION = 1
ID, SHAPE, MODE, START, STATUS, DONE = range(0, 24, 4)
"""Addresses of the registers."""
JOBS = 4
"""Jobs that wait in the queue."""
FLIGHT = 16
"""Jobs whose data have gone in and whose results have not come out, a power of two."""
SUM = 128
"""Bits of a result."""
EDGE = 1
"""Registers from the operands' stream to the engines."""
READ = 2
"""Registers from the kept results to the stream."""


@dataclass(frozen=True, kw_only=True)
class XrNpeArrayConfig(Config):
    rows: int = param(4, "rows of the array", ge=1, le=16)
    columns: int = param(4, "columns of the array", ge=1, le=16)
    max_k: int = param(32767, "most products that a lane sums in a job", ge=1, le=32767)
    gate: bool = param(True, "parts of an engine that a mode does not use get zeros")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"rows": 2, "columns": 2, "max_k": 100},
        "row": {"rows": 1, "columns": 8},
    }
    papers: ClassVar[tuple[str, ...]] = ("XR-NPE, arXiv 2508.13049",)

    def faults(self) -> Iterator[str]:
        if self.engines > 64:
            yield f"an array has at most 64 engines, not {self.rows} x {self.columns}"

    @property
    def engines(self) -> int:
        """Engines of the array, and results of a job."""
        return self.rows * self.columns

    @property
    def words(self) -> int:
        """Words of 16 bits in a transfer of operands: one a row and one a column."""
        return self.rows + self.columns

    @property
    def engine(self) -> XrNpeConfig:
        """One element of the array."""
        return XrNpeConfig(max_k=self.max_k, gate=self.gate)

    @property
    def latency(self) -> int:
        """Cycles from a job's last operands to the first that its first result is offered."""
        return EDGE + self.engine.latency + 1 + READ


class XrNpeArray(wiring.Component):
    """Products of matrices of FP4 and posit words, output stationary, behind AXI4-Lite and -Stream.

    A job multiplies ``rows`` rows of A by ``columns`` columns of B.  A transfer of operands has a
    word of 16 bits for each row and for each column; a word is 4, 4, 2 or 1 numbers along K, as in
    :class:`.XrNpe`, and every engine multiplies its row's word by its column's.  ``tlast`` ends the
    job, so K is how many transfers it has.  Then ``rows * columns`` results come out, row by row.

    A result is the exact sum over all lanes of an engine, two's complement, 128 bits, in units of
    the mode's smallest product: 2**-2 for FP4, 2**-8 for posit(4,1), 2**-12 for posit(8,0), 2**-56
    for posit(16,1).  No rounding.  A lane's sum is exact up to ``max_k`` products; the four or two
    lanes together are less than four times that, which 128 bits hold with room, and a single lane
    of posit(16,1) needs all 128.  ``tuser`` bit 0: a number was NaR; bit 1: the job had more than
    ``max_k`` transfers, so that sums may have wrapped.

    Words of operands whose bytes are not both kept (``tkeep``) count as 0.

    Registers, 32 bits each, at byte addresses:

    ==== ======= === ==============================================================================
    0x00 ID      r   0xA7584E51
    0x04 SHAPE   r   rows, columns << 8, version << 16
    0x08 MODE    rw  bits 0 and 1: 0 FP4, 1 posit(4,1), 2 posit(8,0), 3 posit(16,1); 0 after reset
    0x0C START   w   a job in this mode joins the queue; its results have ``tid`` = bits 0 to 7
    0x10 STATUS  r   bits 0 to 7: jobs that have begun or wait; bit 8: results are offered
    0x14 DONE    r   jobs whose last result was taken since reset
    ==== ======= === ==============================================================================

    A write to START waits while the queue of four jobs is full.  Other addresses, writes to
    registers that are only read, reads of START, and a MODE above 3 are answered with SLVERR and do
    nothing.  An address counts as that of the word it lies in.  Byte strobes are heeded: without
    the lowest byte a write to MODE or START is OKAY and does nothing.  Operands wait until there is
    a job for them.

    Throughput: a transfer of operands and a result a cycle.  Jobs follow without a gap while each
    has at least ``rows * columns`` transfers.  Latency is ``config.latency`` cycles from a job's
    last operands to its first result.  Results that are not taken stop the engines once the next
    job's are there.  Reset drops all jobs.

    Members
    -------
    s_axil_aw, s_axil_w, s_axil_b, s_axil_ar, s_axil_r : AXI4-Lite, 32 bits.
    s_axis_t : operands.  ``data``: words of the rows, then of the columns, the first one lowest;
        ``keep``; ``last``.
    m_axis_t : results.  ``data``: 128 bits; ``keep``: all; ``last``: of the job; ``id``; ``user``.

    Source: the co-processor of XR-NPE (arXiv 2508.13049), whose array, bus widths and registers are
    not public; these are ours (docs/blocks/xr_npe_array.md).
    """

    s_axil_aw: stream.Interface
    s_axil_w: stream.Interface
    s_axil_b: stream.Interface
    s_axil_ar: stream.Interface
    s_axil_r: stream.Interface
    s_axis_t: stream.Interface
    m_axis_t: stream.Interface

    def __init__(self, config: XrNpeArrayConfig):
        self.config = config
        operands = Channel({
            "data": data.ArrayLayout(unsigned(16), config.words),
            "keep": unsigned(2 * config.words),
            "last": unsigned(1),
        })
        results = Channel({
            "data": data.ArrayLayout(unsigned(32), SUM // 32),
            "keep": unsigned(SUM // 8),
            "last": unsigned(1),
            "id": unsigned(8),
            "user": unsigned(2),
        })
        super().__init__({
            **lite("s_axil", ADDRESS),
            "s_axis_t": In(stream.Signature(operands)),
            "m_axis_t": Out(stream.Signature(results)),
        })

    def elaborate(self, platform):
        m = Module()
        assert 4 * self.config.engine.quarter == SUM  # for every max_k
        job = data.StructLayout({"mode": unsigned(2), "tag": unsigned(8)})
        flight = data.StructLayout({"mode": unsigned(2), "tag": unsigned(8), "long": unsigned(1)})
        m.submodules.jobs = jobs = Queue(job, JOBS)
        m.submodules.flights = flights = Queue(flight, FLIGHT)
        finished = Signal()
        self._control(m, jobs, finished)
        engines = self._operands(m, platform, jobs.o, flights.i)
        self._results(m, engines, flights.o, finished)
        return m

    def _control(self, m: Module, jobs: Queue, finished: Any) -> None:
        registers = Registers(m, self, "s_axil")
        mode, begun, done = Signal(2), Signal(8), Signal(32)
        lowest, address = registers.strobe[0], registers.address
        sets, starts, good = Signal(), Signal(), Signal()
        m.d.comb += [
            sets.eq((address == MODE) & lowest),
            starts.eq((address == START) & lowest),
            good.eq(
                (address == START) | ((address == MODE) & ~(lowest & registers.data[2:8].any()))
            ),
            jobs.i.valid.eq(registers.write & starts),
            jobs.i.p.mode.eq(mode),
            jobs.i.p.tag.eq(registers.data[:8]),
        ]
        with m.If(registers.write & sets & good):
            m.d.sync += mode.eq(registers.data[:2])
        m.d.sync += [begun.eq(begun + jobs.i.valid - finished), done.eq(done + finished)]
        config = self.config
        registers.connect(
            good,
            starts & ~jobs.i.ready,
            {
                ID: IDENTITY,
                SHAPE: config.rows | config.columns << 8 | VERSION << 16,
                MODE: mode,
                STATUS: Cat(begun, self.m_axis_t.valid),
                DONE: done,
            },
        )

    def _operands(self, m: Module, platform: Any, job: Any, flight: Any) -> list["_Engine"]:
        """Words to the engines, while there is a job and room for its results' description."""
        config, port = self.config, self.s_axis_t
        engines = [_Engine(config.engine) for _ in range(config.engines)]
        first, moves = engines[0], Signal()
        count, long = Signal(range(config.max_k + 1)), Signal()
        m.d.comb += [
            port.ready.eq(job.valid & flight.ready & first.ready),
            moves.eq(port.valid & job.valid & flight.ready),
            long.eq(count == config.max_k),
            job.ready.eq(moves & first.ready & port.p.last),
            flight.valid.eq(job.ready),
            flight.p.mode.eq(job.p.mode),
            flight.p.tag.eq(job.p.tag),
            flight.p.long.eq(long),
        ]
        with m.If(moves & first.ready):
            m.d.sync += count.eq(Mux(port.p.last, 0, count + ~long))
        words = []
        for at in range(config.words):
            word = Signal(16, name=f"word_{at}")
            kept = port.p.keep.bit_select(2 * at, 2).all()
            m.d.comb += word.eq(port.p.data[at] & kept.replicate(16))
            words.append(word)
        # Masks and the queue's memory end here; decoders begin.
        x_valid, x_last = Signal(), Signal(reset_less=True)
        x_mode = Signal(2, reset_less=True)
        x_words = [Signal(16, name=f"x_word_{at}", reset_less=True) for at in range(config.words)]
        with m.If(first.ready):
            m.d.sync += [x_valid.eq(moves), x_last.eq(port.p.last), x_mode.eq(job.p.mode)]
            m.d.sync += [late.eq(word) for late, word in zip(x_words, words, strict=True)]
        self.takes = Signal(name="takes")
        for number, engine in enumerate(engines):
            row, column = divmod(number, config.columns)
            place(
                m,
                platform,
                f"engine_{number}",
                engine,
                valid=x_valid,
                a=x_words[row],
                b=x_words[config.rows + column],
                mode=x_mode,
                last=x_last,
                take=self.takes,
            )
        return engines

    def _results(self, m: Module, engines: list["_Engine"], flight: Any, finished: Any) -> None:
        """Results of a job are kept together and leave one after the other."""
        config, port = self.config, self.m_axis_t
        m.submodules.read = pipeline = Pipeline(READ)
        kept = [
            (
                Signal(SUM, name=f"acc_{n}", reset_less=True),
                Signal(name=f"nar_{n}", reset_less=True),
            )
            for n in range(config.engines)
        ]
        held, at = Signal(), Signal(range(config.engines))
        mode, tag, long = (
            Signal(width, name=f"kept_{name}", reset_less=True)
            for name, width in (("mode", 2), ("tag", 8), ("long", 1))
        )
        final, leaves, takes = Signal(), Signal(), self.takes
        m.d.comb += [
            final.eq(at == config.engines - 1),
            leaves.eq(pipeline.enable & held),
            takes.eq((~held | (leaves & final)) & engines[0].offered & flight.valid),
            flight.ready.eq(takes),
            pipeline.i_valid.eq(held),
            port.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(port.ready),
        ]
        with m.If(leaves):
            m.d.sync += at.eq(Mux(final, 0, at + 1))
            with m.If(final):
                m.d.sync += held.eq(0)
        with m.If(takes):
            m.d.sync += [held.eq(1), mode.eq(flight.p.mode), tag.eq(flight.p.tag)]
            m.d.sync += long.eq(flight.p.long)
            for engine, (acc, nar) in zip(engines, kept, strict=True):
                m.d.sync += [acc.eq(engine.acc), nar.eq(engine.nar)]

        x_acc, x_mode = Signal(SUM, reset_less=True), Signal(2, reset_less=True)
        x_tag, x_user = Signal(8, reset_less=True), Signal(2, reset_less=True)
        x_last = Signal(reset_less=True)
        total = Signal(signed(SUM))
        m.d.comb += total.eq(self._joined(x_acc, x_mode))
        with m.If(pipeline.enable):
            m.d.sync += [
                x_acc.eq(Array(acc for acc, _ in kept)[at]),
                x_user.eq(Cat(Array(nar for _, nar in kept)[at], long)),
                x_mode.eq(mode),
                x_tag.eq(tag),
                x_last.eq(final),
                port.p.data.as_value().eq(total),
                port.p.id.eq(x_tag),
                port.p.user.eq(x_user),
                port.p.last.eq(x_last),
            ]
        m.d.comb += [
            port.p.keep.eq(~0),
            finished.eq(port.valid & port.ready & port.p.last),
        ]

    def _joined(self, acc: Any, mode: Any) -> Any:
        """The sum of the lanes of an accumulator."""
        half, quarter = SUM // 2, SUM // 4
        two = acc[:half].as_signed() + acc[half:].as_signed()
        parts = [acc.word_select(n, quarter).as_signed() for n in range(4)]
        four = (parts[0] + parts[1]) + (parts[2] + parts[3])
        return Mux(mode[1], Mux(mode[0], acc.as_signed(), two), four)


class _Engine(wiring.Component):
    """An ``xr_npe`` with plain ports, so that all of an array are one module."""

    valid: Signal
    a: Signal
    b: Signal
    mode: Signal
    last: Signal
    take: Signal
    ready: Signal
    offered: Signal
    acc: Signal
    nar: Signal

    def __init__(self, config: XrNpeConfig):
        self.config = config
        super().__init__({
            "valid": In(1),
            "a": In(16),
            "b": In(16),
            "mode": In(2),
            "last": In(1),
            "take": In(1),
            "ready": Out(1),
            "offered": Out(1),
            "acc": Out(SUM),
            "nar": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = engine = XrNpe(self.config)
        m.d.comb += [
            engine.i.valid.eq(self.valid),
            engine.i.p.a.eq(self.a),
            engine.i.p.b.eq(self.b),
            engine.i.p.mode.eq(self.mode),
            engine.i.p.first.eq(0),
            engine.i.p.last.eq(self.last),
            engine.o.ready.eq(self.take),
            self.ready.eq(engine.i.ready),
            self.offered.eq(engine.o.valid),
            self.acc.eq(engine.o.p.acc.as_value()),
            self.nar.eq(engine.o.p.nar.any()),
        ]
        return m
