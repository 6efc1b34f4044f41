# SPDX-License-Identifier: Apache-2.0
"""Walks the heads and tokens of attention: operations for the unit, addresses for the stores."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue


def walk(
    m: Module, op: Any, ends: Any, written: Signal, width: int
) -> tuple[Signal, Signal, Signal]:
    """Head under way, its slot, and whether an operation is over: the next head after ``ends``.

    ``width``: bits of a head's number.  ``written`` counts the vectors of all operations before,
    modulo its width.
    """
    head, slot, done = Signal(width, name="head"), Signal(len(op.slot), name="slot"), Signal()
    # How many heads there were with this one, of the operation and of the slot.
    number, member = (Signal(width + 1, name=name, init=1) for name in ("number", "member"))
    m.d.comb += done.eq(ends & (number == op.heads[: width + 1]))
    with m.If(ends):
        m.d.sync += [head.eq(head + 1), number.eq(number + 1), member.eq(member + 1)]
        with m.If(member == op.group[: width + 1]):
            m.d.sync += [member.eq(1), slot.eq(slot + 1)]
    with m.If(done):
        m.d.sync += [head.eq(0), number.eq(1), member.eq(1), slot.eq(0)]
        with m.If(op.newest):
            m.d.sync += written.eq(written + slot + 1)
    return head, slot, done


def chosen_layout(operation: data.StructLayout) -> data.StructLayout:
    """A token to read; ``last`` of a head."""
    return data.StructLayout({
        "token": unsigned(operation["position"].width),
        "last": unsigned(1),
    })


class Attend(wiring.Component):
    """For every head of an operation: what attention shall do, and which tokens it gets for it.

    An operation for the old tokens opens every head with the keys and values of positions 0 ..
    ``position - 1``; one for the newest gives each its last pair and closes it.  Head ``n`` reads
    slot ``slot + n // group``.  One read a cycle, without gaps between heads.

    With ``keep`` an old token is read only where ``chosen_i`` names it: for every head ``keep``
    tokens, or as many as there are, the newest one among them and last.

    Members
    -------
    op_i : what the sequencer hands out.
    attention_o : operations of the attention unit.
    key_read_o, value_read_o : the same reads for both stores; ``after`` counts the vectors that
        were written up to the one wanted.
    chosen_i : with ``keep``: tokens to read, ``last`` of each head.
    done : an operation has been handed on whole.
    """

    op_i: stream.Interface
    attention_o: stream.Interface
    key_read_o: stream.Interface
    value_read_o: stream.Interface
    done: Signal

    def __init__(
        self,
        operation: data.StructLayout,
        unit: Any,
        read: data.StructLayout,
        keep: int = 0,
    ):
        self.operation, self.unit, self.read, self.keep = operation, unit, read, keep
        chosen = stream.Signature(chosen_layout(operation))
        ports = {"chosen_i": In(chosen)} if keep else {}
        super().__init__({
            **ports,
            "op_i": In(stream.Signature(operation)),
            "attention_o": Out(stream.Signature(unit)),
            "key_read_o": Out(stream.Signature(read)),
            "value_read_o": Out(stream.Signature(read)),
            "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.key_reads = key_reads = Queue(self.read, 8)
        # Values are wanted when their scores are known; keys must not wait for that.
        m.submodules.value_reads = value_reads = Queue(self.read, 32)
        m.submodules.ops = ops = Queue(self.unit, 8)
        # The sequencer goes on to the projections that this operation runs beside.
        m.submodules.todo = todo = Queue(self.operation, 2)
        wiring.connect(m, wiring.flipped(self.op_i), todo.i)
        wiring.connect(m, key_reads.o, wiring.flipped(self.key_read_o))
        wiring.connect(m, value_reads.o, wiring.flipped(self.value_read_o))
        wiring.connect(m, ops.o, wiring.flipped(self.attention_o))

        held, op = Signal(), Signal(self.operation, reset_less=True)
        written = Signal(len(self.key_read_o.p.after))
        told, tells, reads, ends, known = Signal(), Signal(), Signal(), Signal(), Signal()
        head, slot, done = walk(m, op, ends, written, self.unit["context"].width)
        # What is left of a head is known without counting: all heads of an operation have as much.
        token, count = Signal(len(op.position)), Signal(len(op.position) + 1, reset_less=True)
        left = Signal.like(count, reset_less=True)
        some, final = Signal(), Signal(reset_less=True)
        whole_some, whole_final = Signal(reset_less=True), Signal(reset_less=True)
        old = Signal(len(op.position))
        self._old(m, op, reads, known, old, token)
        m.d.comb += [
            ops.i.valid.eq(held & ~told),
            ops.i.p.context.eq(head),
            ops.i.p.count.eq(count),
            ops.i.p.opens.eq(~op.newest),
            ops.i.p.closes.eq(op.newest),
            tells.eq(told | ops.i.ready),
            reads.eq(some & known & key_reads.i.ready & value_reads.i.ready),
            ends.eq(held & tells & (~some | (final & reads))),
            self.done.eq(done),
            todo.o.ready.eq(~held | done),
        ]
        with m.If(held):
            m.d.sync += told.eq(tells & ~ends)
        with m.If(reads):
            m.d.sync += [
                token.eq(token + 1),
                left.eq(left - 1),
                some.eq(~final),
                final.eq(left == 2),
            ]
        with m.If(ends):
            m.d.sync += [token.eq(0), left.eq(count), some.eq(whole_some), final.eq(whole_final)]
        with m.If(todo.o.ready):
            given, reading = todo.o.p, Signal.like(count)
            m.d.comb += reading.eq(Mux(given.newest, 1, self._count(given.position)))
            m.d.sync += [held.eq(todo.o.valid), op.eq(given)]
            m.d.sync += [value.eq(reading) for value in (count, left)]
            m.d.sync += [value.eq(reading == 1) for value in (whole_final, final)]
            m.d.sync += whole_some.eq(reading != 0)
            m.d.sync += some.eq(todo.o.valid & (reading != 0))
        for queue in (key_reads, value_reads):
            m.d.comb += [
                queue.i.valid.eq(reads),
                queue.i.p.address.eq(
                    Cat(
                        Mux(op.newest, op.position, old),
                        (op.slot + slot)[: len(slot)],
                    )
                ),
                queue.i.p.after.eq(written + Mux(op.newest, slot + 1, 0)),
            ]
        return m

    def _count(self, position: Any) -> Any:
        """Old tokens that a head reads: the newest one makes up ``keep``."""
        return Mux(position >= self.keep, self.keep - 1, position) if self.keep else position

    def _old(self, m: Module, op: Any, reads: Any, known: Any, old: Any, token: Any) -> None:
        """The old token to read now, and whether it is ``known``."""
        if not self.keep:
            m.d.comb += [known.eq(1), old.eq(token)]
            return
        chosen: Any = self.chosen_i  # pyright: ignore[reportAttributeAccessIssue]
        m.d.comb += [
            old.eq(chosen.p.token),
            known.eq(op.newest | (chosen.valid & ~chosen.p.last)),
            # The last one is the newest, which has an operation of its own.
            chosen.ready.eq(chosen.p.last | (reads & ~op.newest)),
        ]
