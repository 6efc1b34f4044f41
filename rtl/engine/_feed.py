# SPDX-License-Identifier: Apache-2.0
"""Rows for the norm: from whichever unit the program says, with the norm's gains."""

from typing import Any

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Unless, fork, rows_layout
from ._program import Source

FETCH = data.StructLayout({"address": unsigned(32), "count": unsigned(28)})
"""Asks a memory for ``count`` words from ``address`` on."""


class Feed(wiring.Component):
    """Sends the rows of one source after the other to the norm, as operations say.

    Each operation takes ``rows`` rows of its source, which are a vector for the norm; those of
    ``DISCARD`` go nowhere.  Gains are asked for as soon as the operation is known and numbered on
    their way in; one with ``again`` takes those of the operation before it.

    Members
    -------
    op_i : what the sequencer hands out.
    residual_i, attention_i, gate_i : rows; their ``first`` and ``last`` are not heeded.
    gains_i, fetch_o : ``gains`` from memory, and the request for them.
    o, gain_o : to the norm's ``i`` and ``gain_i``.
    discarded : the last row of an operation for ``DISCARD`` goes.
    """

    op_i: stream.Interface
    residual_i: stream.Interface
    attention_i: stream.Interface
    gate_i: stream.Interface
    gains_i: stream.Interface
    fetch_o: stream.Interface
    o: stream.Interface
    gain_o: stream.Interface
    discarded: Signal

    def __init__(self, x_width: int, lanes: int, norm: Any, operation: data.StructLayout):
        """``norm``: the norm, for the layouts of its streams; ``operation``: of ``op_i``."""
        self.operation = operation
        rows = rows_layout(signed(x_width), lanes)
        gains = norm.gain_i.signature.members["payload"].shape.members["gains"]
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "residual_i": In(stream.Signature(rows)),
            "attention_i": In(stream.Signature(rows)),
            "gate_i": In(stream.Signature(rows)),
            "gains_i": In(stream.Signature(data.StructLayout({"gains": gains}))),
            "fetch_o": Out(stream.Signature(FETCH)),
            "o": Out(norm.i.signature.flip()),
            "gain_o": Out(norm.gain_i.signature.flip()),
            "discarded": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.ops = ops = Queue(self.operation, 4)
        m.submodules.fetches = fetches = Queue(FETCH, 4)
        wiring.connect(m, fetches.o, wiring.flipped(self.fetch_o))
        groups = "again" in self.operation.members
        needs = self.op_i.p.source != Source.DISCARD
        if groups:
            needs = needs & ~self.op_i.p.again
        to_ops, to_fetches = fork(m, self.op_i, [ops.i, Unless(fetches.i, needs)], "op")
        m.d.comb += [
            ops.i.valid.eq(to_ops),
            ops.i.p.eq(self.op_i.p),
            fetches.i.valid.eq(to_fetches & needs),
            fetches.i.p.address.eq(self.op_i.p.address),
            fetches.i.p.count.eq(self.op_i.p.rows),
        ]

        # The operation at work is in registers, and so is what depends on its number of rows: from
        # here every unit before the norm learns whether it may move.
        op, held, loads = Signal(self.operation, reset_less=True), Signal(), Signal()
        discard, take, moved, offered = Signal(), Signal(), Signal(), Signal()
        rows, gains = _Count("row"), _Count("gain")
        x = Signal.like(self.o.p.x)
        m.d.comb += [
            ops.o.ready.eq(~held | (moved & rows.last)),
            loads.eq(ops.o.valid & ops.o.ready),
            self.o.valid.eq(offered & held & ~discard),
            self.o.p.x.eq(x),
            self.o.p.eps.eq(op.eps),
            self.o.p.plain.eq(op.plain),
            self.o.p.first.eq(rows.first),
            self.o.p.last.eq(rows.last),
            self.o.p.load.eq(~op.again if groups else 1),
            take.eq(held & (self.o.ready | discard)),
            moved.eq(take & offered),
            self.discarded.eq(moved & rows.last & discard),
        ]
        sources = {
            Source.ATTENTION: self.attention_i,
            Source.GATE: self.gate_i,
            None: self.residual_i,
        }
        with m.Switch(op.source):
            for source, port in sources.items():
                with m.Case(source) if source is not None else m.Default():
                    m.d.comb += [
                        offered.eq(port.valid),
                        port.ready.eq(take),
                        x.eq(port.p.x),
                    ]
        with m.If(ops.o.ready):
            m.d.sync += [
                held.eq(ops.o.valid),
                op.eq(ops.o.p),
                discard.eq(ops.o.p.source == Source.DISCARD),
            ]
        rows.advance(m, moved, loads, ops.o.p.rows)

        m.d.comb += [
            self.gain_o.valid.eq(self.gains_i.valid & held),
            self.gains_i.ready.eq(self.gain_o.ready & held),
            self.gain_o.p.gains.eq(self.gains_i.p.gains),
            self.gain_o.p.first.eq(gains.first),
            self.gain_o.p.last.eq(gains.last),
        ]
        gains.advance(m, self.gain_o.valid & self.gain_o.ready, loads, ops.o.p.rows)
        return m


class _Count:
    """Where in a run of rows the next one is: ``first`` and ``last`` are registers."""

    def __init__(self, name: str):
        self.left = Signal(20, name=f"{name}s_left", reset_less=True)
        self.first = Signal(name=f"{name}_first", reset_less=True)
        self.last = Signal(name=f"{name}_last", reset_less=True)

    def advance(self, m: Module, moved: Any, loads: Any, rows: Any) -> None:
        """One further where a row ``moved``; a run of ``rows`` begins with ``loads``."""
        with m.If(loads):
            m.d.sync += [self.left.eq(rows), self.first.eq(1), self.last.eq(rows == 1)]
        with m.Elif(moved):
            m.d.sync += [
                self.left.eq(self.left - 1),
                self.first.eq(0),
                self.last.eq(self.left == 2),
            ]
