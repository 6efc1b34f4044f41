# SPDX-License-Identifier: Apache-2.0
"""What joins units: queues, and elements gathered into rows."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal, unsigned
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

    ``ready`` and ``valid`` are registers.
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
        fill, room, some = Signal(range(self.depth + 1)), Signal(init=1), Signal()
        put, take = self.i.valid & room, some & self.o.ready
        m.d.comb += [
            self.i.ready.eq(room),
            self.o.valid.eq(some),
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
        m.d.sync += [
            fill.eq(fill + put - take),
            # What is compared with the fill does not wait for the other side.
            some.eq(put | (fill > 1) | (some & ~take)),
            room.eq(take | (fill < self.depth - 1) | (room & ~put)),
        ]
        return m


class Skid(wiring.Component):
    """Up to two transfers in registers: ``valid``, payload and ``ready`` are all registers."""

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
        held, spare = (
            Signal(self.layout, name=name, reset_less=True) for name in ("held", "spare")
        )
        valid, room = Signal(), Signal(init=1)  # without room, both are there
        m.d.comb += [self.i.ready.eq(room), self.o.valid.eq(valid), self.o.p.eq(held)]
        with m.If(room):
            m.d.sync += spare.eq(self.i.p)
        with m.If(~valid | self.o.ready):
            m.d.sync += [valid.eq(self.i.valid | ~room), held.eq(Mux(room, self.i.p, spare))]
            m.d.sync += room.eq(1)
        with m.Else():
            m.d.sync += room.eq(room & ~self.i.valid)
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


class Parts(wiring.Component):
    """Cuts each row of ``many`` elements into ``count`` rows of ``few``, element 0 first.

    What a row has no elements for is zero.  The row is taken with its last part; no register.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, element: Any, many: int, few: int, count: int):
        self.count = count
        super().__init__({
            "i": In(stream.Signature(rows_layout(element, many))),
            "o": Out(stream.Signature(rows_layout(element, few))),
        })

    def elaborate(self, platform):
        m = Module()
        part = Signal(range(max(self.count, 2)))
        final = Signal()
        width = len(self.o.p.x.as_value())
        x = self.i.p.x.as_value()
        parts = [x[at * width :][:width] for at in range(self.count)]
        m.d.comb += [
            final.eq(part == self.count - 1),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready & final),
            self.o.p.x.eq(Array(parts)[part]),
            self.o.p.first.eq(self.i.p.first & (part == 0)),
            self.o.p.last.eq(self.i.p.last & final),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += part.eq(Mux(final, 0, part + 1))
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


class Unless:
    """A target of :func:`fork` that a transfer passes by unless ``needs``."""

    def __init__(self, port: Any, needs: Any):
        self.ready = port.ready | ~needs


def last_move(m: Module, count: Any, moved: Any, name: str = "") -> Signal:
    """Whether a move is the last of ``count``, at least one; ``moved``: one is made now.

    ``count`` is heeded with a run's first move, and the next run's follows the last one.
    """
    width = len(count)
    left, fresh = Signal(width, name=f"{name}left"), Signal(name=f"{name}fresh", init=1)
    now, final = Signal(width, name=f"{name}now"), Signal(name=f"{name}final")
    m.d.comb += [now.eq(Mux(fresh, count, left)), final.eq(now == 1)]
    with m.If(moved):
        m.d.sync += [left.eq(now - 1), fresh.eq(final)]
    return final


def credit(m: Module, name: str, most: int, back: Any, spent: Any) -> Signal:
    """A register that says whether any of ``most`` places is free."""
    free, some = Signal(range(most + 1), name=name, init=most), Signal(name=f"{name}_some", init=1)
    m.d.sync += [
        free.eq(free + back - spent),
        some.eq(back | (free > 1) | (some & ~spent)),
    ]
    return some


def bits_for(count: int) -> int:
    """Bits that hold every index below ``count``, at least one."""
    return max(ceil_log2(count), 1)
