# SPDX-License-Identifier: Apache-2.0
"""What joins units: queues, and elements gathered into rows."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

QUEUE_LATENCY = 1
"""Edges from taking a transfer of :class:`Queue` to offering it, the queue being empty."""

WIDEN_LATENCY = 1
"""Edges from taking the last element of a row of :class:`Widen` to offering the row."""


def rows_layout(element: Any, lanes: int) -> data.StructLayout:
    """A row of a vector: ``lanes`` elements, and where the vector begins and ends."""
    return data.StructLayout({
        "x": data.ArrayLayout(element, lanes),
        "first": unsigned(1),
        "last": unsigned(1),
    })


class Queue(wiring.Component):
    """Holds up to ``depth`` transfers, a power of two; the oldest is offered a cycle after it came.

    Both ends are registered: ``ready`` and ``valid`` depend on the fill alone.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, layout: Any, depth: int):
        self.layout, self.depth = layout, depth
        super().__init__({
            "i": In(stream.Signature(layout)),
            "o": Out(stream.Signature(layout)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.layout, depth=self.depth, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        head, tail = Signal(range(self.depth)), Signal(range(self.depth))
        fill = Signal(range(self.depth + 1))
        put, take = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.comb += [
            self.i.ready.eq(fill != self.depth),
            self.o.valid.eq(fill != 0),
            write.addr.eq(tail),
            write.data.eq(self.i.p),
            write.en.eq(put),
            read.addr.eq(head),
            self.o.p.eq(read.data),
        ]
        with m.If(put):
            m.d.sync += tail.eq(tail + 1)
        with m.If(take):
            m.d.sync += head.eq(head + 1)
        m.d.sync += fill.eq(fill + put - take)
        return m


class Hold(wiring.Component):
    """One transfer in registers: a cut through ``valid`` and payload, not through ``ready``."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, layout: Any):
        self.layout = layout
        super().__init__({
            "i": In(stream.Signature(layout)),
            "o": Out(stream.Signature(layout)),
        })

    def elaborate(self, platform):
        m = Module()
        valid, held = Signal(), Signal(self.layout, reset_less=True)
        m.d.comb += [
            self.i.ready.eq(~valid | self.o.ready),
            self.o.valid.eq(valid),
            self.o.p.eq(held),
        ]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), held.eq(self.i.p)]
        return m


class Widen(wiring.Component):
    """Gathers transfers of ``few`` elements into rows of ``many``, element 0 first.

    A row goes out once it is full or its vector ends; what is missing then is zero.  The row is
    offered a cycle after its last element was taken; no transfer is lost to that.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, element: Any, few: int, many: int):
        self.element, self.few, self.many = element, few, many
        super().__init__({
            "i": In(stream.Signature(rows_layout(element, few))),
            "o": Out(stream.Signature(rows_layout(element, many))),
        })

    def elaborate(self, platform):
        m = Module()
        parts = self.many // self.few
        if parts == 1:
            wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
            return m
        x = Signal.like(self.o.p.x, reset_less=True)
        valid, opened, first, last = (
            Signal(name="row_valid"),
            Signal(name="opened"),
            Signal(name="row_first", reset_less=True),
            Signal(name="row_last", reset_less=True),
        )
        count = Signal(range(parts))
        full = Signal()
        take = Signal()
        m.d.comb += [
            self.i.ready.eq(~valid | self.o.ready),
            take.eq(self.i.valid & self.i.ready),
            full.eq(self.i.p.last | (count == parts - 1)),
            self.o.valid.eq(valid),
            self.o.p.x.eq(x),
            self.o.p.first.eq(first),
            self.o.p.last.eq(last),
        ]
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(take):
            m.d.sync += [
                valid.eq(full),
                count.eq(Mux(full, 0, count + 1)),
                last.eq(self.i.p.last),
                opened.eq(~full),
                first.eq(Mux(opened, first | self.i.p.first, self.i.p.first)),
            ]
            for part in range(parts):
                at = slice(part * self.few, (part + 1) * self.few)
                lanes = range(self.many)[at]
                with m.If(count == part):
                    m.d.sync += [x[lane].eq(self.i.p.x[index]) for index, lane in enumerate(lanes)]
                with m.Elif(count == 0):
                    m.d.sync += [x[lane].eq(0) for lane in lanes]
        return m


def fork(m: Module, source: Any, targets: Sequence[Any], name: str) -> list[Any]:
    """One condition for each of ``targets``: its transfer of ``source`` may be offered.

    The source is taken once every target has its transfer; targets take theirs in any order.
    Drive each target's ``valid`` with the condition; payloads are up to the caller.
    """
    had = [Signal(name=f"{name}_had_{index}") for index in range(len(targets))]
    offers, dones = [], []
    for target, one in zip(targets, had, strict=True):
        offers.append(source.valid & ~one)
        dones.append(one | target.ready)
    done = Signal(name=f"{name}_done")
    whole = dones[0]
    for more in dones[1:]:
        whole = whole & more
    m.d.comb += [done.eq(whole), source.ready.eq(done)]
    for target, one in zip(targets, had, strict=True):
        with m.If(source.valid):
            m.d.sync += one.eq(Mux(done, 0, one | target.ready))
    return offers


def bits_for(count: int) -> int:
    """Bits that hold every index below ``count``, at least one."""
    return max(ceil_log2(count), 1)
