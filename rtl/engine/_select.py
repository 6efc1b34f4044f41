# SPDX-License-Identifier: Apache-2.0
"""Token selection for attention: leading-one codes of all keys, and which tokens a head reads."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, bits_for, fork
from ..kv.kv_store import KvStore, KvStoreConfig
from ..kv.lop_select import LopSelect, LopSelectConfig, leading_one
from ._attend import chosen_layout, walk


class Select(wiring.Component):
    """Chooses the tokens that each head reads, as ``lop_select`` does, from leading ones of keys.

    For an operation on the old tokens each head's query is tried on the codes of positions 0 ..
    ``position - recent``; one for the newest only moves the count of written vectors.

    Members
    -------
    op_i : what the sequencer hands out, the same as for ``Attend``.
    query_i : rows of a query's codes, all heads of an operation one after the other; room for all.
    keys : what the key store takes in this cycle: a row of codes, an address.
    o : tokens, ``last`` of each head.
    reads : the codes of a key go into the choice.
    """

    op_i: stream.Interface
    query_i: stream.Interface
    keys: data.View
    o: stream.Interface
    reads: Signal

    def __init__(
        self,
        operation: data.StructLayout,
        row: data.StructLayout,
        at: data.StructLayout,
        heads: int,
        keep: int,
        choice: LopSelectConfig,
        store: KvStoreConfig,
    ):
        self.operation, self.heads, self.keep = operation, heads, keep
        self.choice, self.store = choice, store
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "query_i": In(stream.Signature(row)),
            "keys": In(data.StructLayout({"row_valid": 1, "row": row, "at_valid": 1, "at": at})),
            "o": Out(stream.Signature(chosen_layout(operation))),
            "reads": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.lop = lop = LopSelect(self.choice)
        m.submodules.leads = leads = KvStore(self.store)
        rows = self.heads * self.choice.rows
        m.submodules.queries = queries = Queue(self.query_i.p.shape(), 1 << (rows - 1).bit_length())
        m.submodules.todo = todo = Queue(self.operation, 2)
        m.submodules.lop_ops = lop_ops = Queue(lop.op_i.p.shape(), 2)
        wiring.connect(m, wiring.flipped(self.op_i), todo.i)
        wiring.connect(m, wiring.flipped(self.query_i), queries.i)
        wiring.connect(m, queries.o, lop.query_i)
        wiring.connect(m, lop_ops.o, lop.op_i)
        wiring.connect(m, lop.o, wiring.flipped(self.o))
        self._write(m, leads)

        op = todo.o.p
        written = Signal(len(leads.read_i.p.after))
        token, old = Signal(len(op.position) + 1), Signal(len(op.position) + 1)
        told, tells, reads, ends = Signal(), Signal(), Signal(), Signal()
        _, slot, done = walk(m, op, ends, written, bits_for(self.heads))
        count, recent = op.position + 1, self.choice.recent
        m.d.comb += [
            # Tokens that are always chosen have no code to try, the newest one among them.
            old.eq(Mux(op.newest | (count < recent), 0, count - recent)),
            lop_ops.i.valid.eq(todo.o.valid & ~op.newest & ~told),
            lop_ops.i.p.count.eq(count),
            lop_ops.i.p.keep.eq(self.keep),
            tells.eq(told | lop_ops.i.ready | op.newest),
            leads.read_i.valid.eq(todo.o.valid & (token != old)),
            leads.read_i.p.address.eq(
                Cat(token[: len(op.position)], (op.slot + slot)[: len(slot)])
            ),
            leads.read_i.p.after.eq(written),
            reads.eq(leads.read_i.valid & leads.read_i.ready),
            ends.eq(todo.o.valid & tells & (token + reads == old)),
            todo.o.ready.eq(done),
            lop.key_i.valid.eq(leads.o.valid),
            leads.o.ready.eq(lop.key_i.ready),
            self.reads.eq(leads.o.valid & leads.o.ready),
        ]
        m.d.comb += [
            lop.key_i.p.leads[at].eq(code.as_unsigned()) for at, code in enumerate(leads.o.p.codes)
        ]
        with m.If(todo.o.valid):
            m.d.sync += [token.eq(token + reads), told.eq(tells)]
        with m.If(ends):
            m.d.sync += [token.eq(0), told.eq(0)]
        return m

    def _write(self, m: Module, leads: Any) -> None:
        """Beside the key store: what that takes, this store takes in the same cycle.

        It is never behind, as it has no scale to wait for and nobody holds up its ``written_o``.
        """
        m.d.comb += [
            leads.write_i.valid.eq(self.keys.row_valid),
            leads.at_i.valid.eq(self.keys.at_valid),
            leads.at_i.p.eq(self.keys.at),
            leads.scale_i.valid.eq(1),
            leads.written_o.ready.eq(1),
        ]
        m.d.comb += [
            leads.write_i.p.codes[lane].eq(leading_one(code, self.choice).as_signed())
            for lane, code in enumerate(self.keys.row.codes)
        ]


def share(m: Module, source: Any, targets: list[Any], name: str) -> None:
    """Each transfer of ``source`` goes to all ``targets``."""
    for target, offer in zip(targets, fork(m, source, targets, name), strict=True):
        m.d.comb += [target.valid.eq(offer), target.p.eq(source.p)]
