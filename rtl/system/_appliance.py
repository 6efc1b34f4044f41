# SPDX-License-Identifier: Apache-2.0
"""The engine with a model inside and a serial line outside: what goes onto a board."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Shape, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import Queue, credit
from ..bus._uart import HIGH, UartReceiver, UartSender
from ..engine.engine import Engine, EngineConfig
from ._host import answer, receive

QUEUED = 8
"""Words on their way from a memory: as many as it takes for one to leave every cycle."""


class Rom(wiring.Component):
    """Words from a memory that is never written: runs of them, asked for by address and count.

    One word a cycle, three cycles of latency; the next request is taken while the last word is
    read.  Block RAM lies all over a chip: it never waits, what comes out has its place in a queue.

    Members
    -------
    fetch_i : ``address``, ``count``; those of no words are dropped.
    o : the words.
    """

    fetch_i: stream.Interface
    o: stream.Interface

    def __init__(self, fetch: Any, word: Any, words: Sequence[int]):
        self.word, self.words = word, words
        super().__init__({
            "fetch_i": In(stream.Signature(fetch)),
            "o": Out(stream.Signature(word)),
        })

    def elaborate(self, platform):
        m = Module()
        depth = len(self.words)
        width = Shape.cast(self.word).width
        m.submodules.memory = memory = Memory(shape=unsigned(width), depth=depth, init=self.words)
        read = memory.read_port()
        m.submodules.words = words = Queue(self.word, QUEUED)
        wiring.connect(m, words.o, wiring.flipped(self.o))
        at, left = Signal(range(depth)), Signal.like(self.fetch_i.p.count)
        some, final, goes = Signal(), Signal(reset_less=True), Signal()  # of left; a word is read
        room = credit(m, "room", QUEUED, words.o.valid & words.o.ready, goes)
        first, second, word = Signal(), Signal(), Signal(width, reset_less=True)
        m.d.comb += [
            goes.eq(some & room),
            self.fetch_i.ready.eq(~some | (goes & final)),
            read.addr.eq(at),
            read.en.eq(1),
            words.i.valid.eq(second),
            words.i.p.eq(word),
        ]
        m.d.sync += [first.eq(goes), second.eq(first), word.eq(read.data)]
        with m.If(goes):
            m.d.sync += [
                at.eq(at + 1),
                left.eq(left - 1),
                some.eq(~final),
                final.eq(left == 2),
            ]
        with m.If(self.fetch_i.valid & self.fetch_i.ready):
            given = self.fetch_i.p
            m.d.sync += [
                at.eq(given.address),
                left.eq(given.count),
                some.eq(given.count != 0),
                final.eq(given.count == 1),
            ]
        return m


class Appliance(wiring.Component):
    """An engine whose memories hold a model, on a serial line.

    After reset program and rotary table are copied into the engine.  What host and line say to
    each other is in ``_host.py``.  The likeliest token is chosen.

    ``contents`` are the words of the memories as integers: ``weights``, ``gains``, ``embedding``,
    ``program`` and ``table``.
    """

    host_in: Signal
    host_out: Signal

    def __init__(self, config: EngineConfig, contents: dict[str, Sequence[int]], divisor: int):
        self.config, self.contents, self.divisor = config, contents, divisor
        super().__init__({"host_in": In(1, **HIGH), "host_out": Out(1, **HIGH)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = engine = Engine(self.config)
        m.submodules.receiver = receiver = UartReceiver(self.divisor)
        m.submodules.sender = sender = UartSender(self.divisor)
        m.d.comb += [receiver.line.eq(self.host_in), self.host_out.eq(sender.line)]
        for name in ("weights", "gains"):
            fetch, given = getattr(engine, f"{name}_fetch_o"), getattr(engine, f"{name}_i")
            rom = Rom(fetch.p.shape(), given.p.shape(), self.contents[name])
            m.submodules[name] = rom
            wiring.connect(m, fetch, rom.fetch_i)
            wiring.connect(m, rom.o, given)
        fetch, given = engine.embed_fetch_o, engine.embed_i
        rows = self.config.dim // self.config.norm_lanes
        m.submodules.embedding = rom = Rom(
            engine.weights_fetch_o.p.shape(), given.p.shape(), self.contents["embedding"]
        )
        m.d.comb += [
            rom.fetch_i.valid.eq(fetch.valid),
            fetch.ready.eq(rom.fetch_i.ready),
            rom.fetch_i.p.address.eq(fetch.p.token * rows),
            rom.fetch_i.p.count.eq(fetch.p.rows),
        ]
        wiring.connect(m, rom.o, given)
        for name in ("program", "table"):
            target = getattr(engine, f"{name}_i")
            words = self.contents[name]
            rom = Rom(engine.weights_fetch_o.p.shape(), target.p.shape(), words)
            m.submodules[name] = rom
            asked = Signal(name=f"{name}_asked")
            m.d.comb += [rom.fetch_i.valid.eq(~asked), rom.fetch_i.p.count.eq(len(words))]
            with m.If(rom.fetch_i.ready):
                m.d.sync += asked.eq(1)
            wiring.connect(m, rom.o, target)
        receive(m, engine.token_i, receiver)
        m.d.comb += engine.sampler_i.valid.eq(1)
        answer(m, engine.token_i, engine.token_o, sender)
        return m
