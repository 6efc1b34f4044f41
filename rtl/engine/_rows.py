# SPDX-License-Identifier: Apache-2.0
"""Several tokens to a pass over the weights: a core for each, and their sums in turn."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Unless, credit, fork, last_move

OPERATIONS = 4
"""Most linear operations on a vector."""

REPLAY_LATENCY = 2
"""Edges from taking sums to offering the first token's, if nothing is in their way."""


class RowsMatvec(wiring.Component):
    """A core of the matvec socket for each token of a group; every word of weights goes to all.

    Vector ``n`` of a group is for core ``n``; an operation is for the first ``count`` cores, the
    others rest.  A word is taken when the last of them takes it; once each has had its first word,
    that is the same cycle for all.

    Members
    -------
    op_i, codes_i, weights_i, fetch_o, moves : as of one core; ``op_i`` has a ``count``.
    finals_i : for each vector, whether it is the last one of its group.
    o : ``sums``, one of each core; those of cores that rest are unspecified.
    """

    op_i: stream.Interface
    codes_i: stream.Interface
    finals_i: stream.Interface
    weights_i: stream.Interface
    fetch_o: stream.Interface
    o: stream.Interface
    moves: Signal

    def __init__(self, core: Callable[[], Any], rows: int):
        self.cores = [core() for _ in range(rows)]
        ports = self.cores[0].signature.members
        self.op = ports["op_i"].signature.members["payload"].shape
        sums = data.ArrayLayout(signed(self.cores[0].engine.acc_width), rows)
        super().__init__({
            **{name: ports[name] for name in ("op_i", "codes_i", "weights_i", "fetch_o", "moves")},
            "finals_i": In(stream.Signature(unsigned(1))),
            "o": Out(stream.Signature(data.StructLayout({"sums": sums}))),
        })

    def elaborate(self, platform):
        m = Module()
        for row, core in enumerate(self.cores):
            m.submodules[f"core_{row}"] = core
            m.d.comb += [core.op_i.p.eq(self.op_i.p), core.weights_i.p.eq(self.weights_i.p)]
            m.d.comb += core.codes_i.p.eq(self.codes_i.p)
            if row:  # core 0 asks for all
                m.d.comb += core.fetch_o.ready.eq(1)
        first = self.cores[0]
        wiring.connect(m, first.fetch_o, wiring.flipped(self.fetch_o))
        m.d.comb += self.moves.eq(first.moves)
        self._vectors(m)

        words, sums = (
            Queue(data.StructLayout({"left": unsigned(28), "count": self.op["count"].shape}), 4)
            for _ in range(2)
        )
        m.submodules.words, m.submodules.sums = words, sums
        ports = [core.op_i for core in self.cores]
        active = self._active(self.op_i.p.count)
        offers = fork(m, self.op_i, [words.i, sums.i, *self._awaited(ports, active)], "op")
        for port, offer, one in zip(
            [words.i, sums.i, *ports], offers, [1, 1, *active], strict=True
        ):
            m.d.comb += port.valid.eq(offer & one)
        for queue, left in ((words, self.op_i.p.words), (sums, self.op_i.p.rows)):
            m.d.comb += [queue.i.p.left.eq(left), queue.i.p.count.eq(self.op_i.p.count)]

        source = _Source(m, "word", self.weights_i.valid & words.o.valid)
        ports = [core.weights_i for core in self.cores]
        active = self._active(words.o.p.count)
        offers = fork(m, source, self._awaited(ports, active), "word")
        for port, offer, one in zip(ports, offers, active, strict=True):
            m.d.comb += port.valid.eq(offer & one)
        m.d.comb += self.weights_i.ready.eq(source.ready & words.o.valid)
        moved = source.valid & source.ready
        m.d.comb += words.o.ready.eq(moved & last_move(m, words.o.p.left, moved, "words_"))

        taken, there = Signal(), sums.o.valid
        for row, (core, one) in enumerate(
            zip(self.cores, self._active(sums.o.p.count), strict=True)
        ):
            there = there & (core.o.valid | ~one) if row else there & core.o.valid
            m.d.comb += [core.o.ready.eq(taken & one), self.o.p.sums[row].eq(core.o.p.sum)]
        m.d.comb += [self.o.valid.eq(there), taken.eq(self.o.valid & self.o.ready)]
        m.d.comb += sums.o.ready.eq(taken & last_move(m, sums.o.p.left, taken, "sums_"))
        return m

    def _vectors(self, m: Module) -> None:
        """Each vector to its core."""
        row = Signal(range(len(self.cores)))
        take = Signal()
        m.d.comb += [
            self.codes_i.ready.eq(
                Array(core.codes_i.ready for core in self.cores)[row] & self.finals_i.valid
            ),
            take.eq(self.codes_i.valid & self.codes_i.ready),
            self.finals_i.ready.eq(take & self.codes_i.p.last),
        ]
        for at, core in enumerate(self.cores):
            m.d.comb += core.codes_i.valid.eq(
                self.codes_i.valid & self.finals_i.valid & (row == at)
            )
        with m.If(self.finals_i.ready):
            m.d.sync += row.eq(Mux(self.finals_i.p, 0, row + 1))

    def _active(self, count: Any) -> list[Any]:
        """For each core whether it is one of the first ``count``; one always is."""
        return [1, *(count > row for row in range(1, len(self.cores)))]

    def _awaited(self, ports: list[Any], active: list[Any]) -> list[Any]:
        return [ports[0], *(Unless(*each) for each in zip(ports[1:], active[1:], strict=True))]


class _Source:
    """What ``fork`` distributes."""

    def __init__(self, m: Module, name: str, valid: Any):
        self.valid, self.ready = Signal(name=f"{name}_valid"), Signal(name=f"{name}_ready")
        m.d.comb += self.valid.eq(valid)


class Replay(wiring.Component):
    """Sums of a group's tokens come side by side and leave token by token.

    What follows sees the operations on a vector of the first token, then those of the second.  The
    first token's sums leave while they come; sums stay until the last token's have left.  ``depth``
    is a power of two and at least the sums of one token in all operations on a vector, up to
    ``OPERATIONS`` from one with ``fresh`` to one with ``ends``; a group of one token may have more.

    Throughput: an operation and a sum a cycle.  Latency: ``REPLAY_LATENCY``.

    Members
    -------
    op_i : what the sequencer hands out.
    sums_i : ``sums``, one of each token.
    op_o : the same operations for each token, with its position.
    o : ``sum``.
    done : the last sum of an operation's first token leaves.
    """

    op_i: stream.Interface
    sums_i: stream.Interface
    op_o: stream.Interface
    o: stream.Interface
    done: Signal

    def __init__(self, operation: data.StructLayout, sums: data.StructLayout, depth: int):
        self.operation, self.depth = operation, depth
        self.lanes: Any = sums["sums"].shape
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "sums_i": In(stream.Signature(sums)),
            "op_o": Out(stream.Signature(operation)),
            "o": Out(stream.Signature(data.StructLayout({"sum": self.lanes.elem_shape}))),
            "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        run = data.StructLayout({
            "left": unsigned(20),
            "row": unsigned((self.lanes.length - 1).bit_length()),
            "ends": unsigned(1),  # the last one of its token
            "frees": unsigned(1),  # of the last token
        })
        m.submodules.runs = runs = Queue(run, 4)
        self._operations(m, runs.i)
        self._sums(m, run, runs.o)
        return m

    def _operations(self, m: Module, runs: Any) -> None:
        """Hands on the operations from ``start`` again and again, until all tokens had them."""
        m.submodules.operations = kept = Memory(shape=self.operation, depth=OPERATIONS, init=[])
        write, read = kept.write_port(), kept.read_port(domain="comb")
        put, at, start = (
            Signal(range(2 * OPERATIONS), name=f"op_{name}") for name in ("put", "at", "start")
        )
        op, row = read.data, Signal.like(runs.p.row, name="op_row")
        source, frees = _Source(m, "op", at != put), Signal()
        offers = fork(m, source, [self.op_o, runs], "op")
        m.d.comb += [
            self.op_i.ready.eq((put ^ start) != OPERATIONS),
            write.addr.eq(put),
            write.data.eq(self.op_i.p),
            write.en.eq(self.op_i.valid & self.op_i.ready),
            read.addr.eq(at),
            frees.eq(row == op.count - 1),
            self.op_o.valid.eq(offers[0]),
            self.op_o.p.eq(op),
            runs.valid.eq(offers[1]),
            runs.p.left.eq(op.rows),
            runs.p.row.eq(row),
            runs.p.ends.eq(op.ends),
            runs.p.frees.eq(frees),
        ]
        m.d.comb += self.op_o.p.position.eq(op.position + row)
        with m.If(write.en):
            m.d.sync += put.eq(put + 1)
        with m.If(source.valid & source.ready):
            m.d.sync += at.eq(Mux(op.ends & ~frees, start, at + 1))
            with m.If(frees):
                m.d.sync += start.eq(start + 1)
            with m.If(op.ends):
                m.d.sync += row.eq(Mux(frees, 0, row + 1))

    def _sums(self, m: Module, layout: data.StructLayout, runs: Any) -> None:
        """A ring of sums, from ``start`` on those that are still to leave."""
        m.submodules.memory = memory = Memory(shape=self.lanes, depth=self.depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        put, at, start = (
            Signal(range(2 * self.depth), name=f"sum_{name}") for name in ("put", "at", "start")
        )
        run, held, final = Signal(layout, reset_less=True), Signal(), Signal(reset_less=True)
        goes, frees, lane = Signal(), Signal(), Signal.like(run.row, name="lane", reset_less=True)
        room = credit(m, "room", self.depth, frees, write.en)
        m.d.comb += [
            self.sums_i.ready.eq(room),
            write.addr.eq(put),
            write.data.eq(self.sums_i.p.sums),
            write.en.eq(self.sums_i.valid & room),
            goes.eq(held & (at != put) & (~self.o.valid | self.o.ready)),
            frees.eq(goes & run.frees),
            read.addr.eq(at),
            read.en.eq(goes),
            self.o.p.sum.eq(Array(read.data[row] for row in range(self.lanes.length))[lane]),
            self.done.eq(goes & final & (run.row == 0)),
            runs.ready.eq(~held | (goes & final)),
        ]
        with m.If(write.en):
            m.d.sync += put.eq(put + 1)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += self.o.valid.eq(goes)
        with m.If(goes):
            m.d.sync += [
                lane.eq(run.row),
                at.eq(Mux(final & run.ends & ~run.frees, start, at + 1)),
                run.left.eq(run.left - 1),
                final.eq(run.left == 2),
            ]
        with m.If(frees):
            m.d.sync += start.eq(start + 1)
        with m.If(runs.ready):
            m.d.sync += [held.eq(runs.valid), run.eq(runs.p), final.eq(runs.p.left == 1)]


class Turns(wiring.Component):
    """Operations of attention, those on old tokens and those on the newest in turn.

    They come in runs of up to ``depth``, a power of two; a token must have both before the next.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, operation: data.StructLayout, depth: int):
        self.operation, self.depth = operation, depth
        super().__init__({
            "i": In(stream.Signature(operation)),
            "o": Out(stream.Signature(operation)),
        })

    def elaborate(self, platform):
        m = Module()
        newest = Signal()
        for turn, name in enumerate(("old", "new")):
            queue = Queue(self.operation, self.depth)
            m.submodules[name] = queue
            mine = self.i.p.newest == turn
            m.d.comb += [queue.i.valid.eq(self.i.valid & mine), queue.i.p.eq(self.i.p)]
            with m.If(mine):
                m.d.comb += self.i.ready.eq(queue.i.ready)
            with m.If(newest == turn):
                m.d.comb += [
                    self.o.valid.eq(queue.o.valid),
                    self.o.p.eq(queue.o.p),
                    queue.o.ready.eq(self.o.ready),
                ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += newest.eq(~newest)
        return m
