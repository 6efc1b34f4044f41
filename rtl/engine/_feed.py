# SPDX-License-Identifier: Apache-2.0
"""Rows for the norm: from whichever unit the program says, with the norm's gains."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, fork, rows_layout
from ._program import Source
from .sequencer import NORM

FETCH = data.StructLayout({"address": unsigned(32), "count": unsigned(28)})
"""Asks a memory for ``count`` words from ``address`` on."""


class Feed(wiring.Component):
    """Sends the rows of one source after the other to the norm, as operations say.

    Each operation takes ``rows`` rows of its source, which are a vector for the norm; those of
    ``DISCARD`` go nowhere.  Gains are asked for as soon as the operation is known and numbered on
    their way in.

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

    def __init__(self, x_width: int, lanes: int, norm: Any):
        """``norm``: the norm, for the layouts of its streams."""
        rows = rows_layout(signed(x_width), lanes)
        gains = norm.gain_i.signature.members["payload"].shape.members["gains"]
        super().__init__({
            "op_i": In(stream.Signature(NORM)),
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
        m.submodules.ops = ops = Queue(NORM, 4)
        m.submodules.fetches = fetches = Queue(FETCH, 4)
        wiring.connect(m, fetches.o, wiring.flipped(self.fetch_o))
        needs = self.op_i.p.source != Source.DISCARD
        to_ops, to_fetches = fork(m, self.op_i, [ops.i, _Unless(fetches.i, needs)], "op")
        m.d.comb += [
            ops.i.valid.eq(to_ops),
            ops.i.p.eq(self.op_i.p),
            fetches.i.valid.eq(to_fetches & needs),
            fetches.i.p.address.eq(self.op_i.p.address),
            fetches.i.p.count.eq(self.op_i.p.rows),
        ]

        op, discard = ops.o.p, Signal()
        row, gain = Signal(20), Signal(20)
        last, offered = Signal(), Signal()
        x = Signal.like(self.o.p.x)
        m.d.comb += [
            discard.eq(op.source == Source.DISCARD),
            last.eq(row == op.rows - 1),
            self.o.valid.eq(offered & ops.o.valid & ~discard),
            self.o.p.x.eq(x),
            self.o.p.eps.eq(op.eps),
            self.o.p.plain.eq(op.plain),
            self.o.p.first.eq(row == 0),
            self.o.p.last.eq(last),
            self.o.p.load.eq(1),
        ]
        take = Signal()
        m.d.comb += take.eq(ops.o.valid & (self.o.ready | discard))
        moved = Signal()
        m.d.comb += moved.eq(take & offered)
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
        with m.If(moved):
            m.d.sync += row.eq(Mux(last, 0, row + 1))
        m.d.comb += [
            ops.o.ready.eq(moved & last),
            self.discarded.eq(moved & last & discard),
        ]

        m.d.comb += [
            self.gain_o.valid.eq(self.gains_i.valid & ops.o.valid),
            self.gains_i.ready.eq(self.gain_o.ready & ops.o.valid),
            self.gain_o.p.gains.eq(self.gains_i.p.gains),
            self.gain_o.p.first.eq(gain == 0),
            self.gain_o.p.last.eq(gain == op.rows - 1),
        ]
        with m.If(self.gain_o.valid & self.gain_o.ready):
            m.d.sync += gain.eq(Mux(self.gain_o.p.last, 0, gain + 1))
        return m


class _Unless:
    """A target that a transfer passes by unless ``needs``."""

    def __init__(self, port: Any, needs: Any):
        self.ready = port.ready | ~needs
