# SPDX-License-Identifier: Apache-2.0
"""Transformer engine of one multiplier and eight ternary lanes, for the smallest FPGAs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Widen, credit
from ..config import Config, param
from ..mac.ternary_gemv import TernaryGemv, TernaryGemvConfig
from ._micro_core import ANSWER, CODE, TAP, TOKEN, WORD, WORDS, Core
from ._routines import LANES

QUEUED = 4
"""Words on their way from the store to the lanes."""


@dataclass(frozen=True, kw_only=True)
class MicroEngineConfig(Config):
    store: int = param(
        65536, "words of 16 bits for the model and its keys and values", ge=1024, le=65536
    )
    local: int = param(1024, "words of 32 bits for vectors", ge=128, le=4096)
    longest: int = param(
        256, "most elements of a vector that projections take, a multiple of 8", ge=16, le=4096
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"store": 4096, "local": 256, "longest": 32},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "BitNet b1.58, arXiv 2402.17764",
        "VitaLLM, arXiv 2604.27396",
    )

    def faults(self) -> Iterator[str]:
        for name in ("store", "local"):
            value = getattr(self, name)
            if value & (value - 1):
                yield f"{name} must be a power of two, not {value}"
        if self.longest % LANES:
            yield f"longest must be a multiple of {LANES}, not {self.longest}"

    @property
    def product(self) -> TernaryGemvConfig:
        """The core of the projections."""
        return TernaryGemvConfig(
            k_lanes=LANES, max_k=self.longest, act_width=8, memory_stage=False, stage=2
        )


IMAGE = data.StructLayout({"word": unsigned(WORD), "last": unsigned(1)})


class MicroEngine(wiring.Component):
    """Decoder-only transformer in microcode: embedding, ternary projections, attention, argmax.

    The same arithmetic as ``engine``, bit for bit (``docs/model.md``), on one multiplier, one
    adder and one shifter, an instruction in one cycle or two; eight ternary lanes beside them, fed
    a word a cycle.  One memory, the store, holds all of a model: ``docs/blocks/micro_engine.md``
    says how.  The microcode does not depend on the model.

    After reset the store is written from its first word on, up to the word marked ``last``; then
    tokens are taken.  A token whose ``sample`` is set is answered by the likeliest next one, the
    lowest among equals; the others fill the KV store.  A token that the context has no place for is
    taken and dropped.  Results are the same bits however the streams stall; what saturates says
    ``docs/model.md``, and nothing else overflows for models that the compiler takes.  Reset ends
    the token at work; the store is to be written again.

    Throughput and latency: ``sim/engine/micro_engine.py`` counts the instructions of a token.

    Members
    -------
    image_i : ``word``, ``last``: the store from address 0 on.
    token_i : ``token``, ``restart`` (a new text begins), ``sample``.
    token_o : ``token``: the likeliest next one.
    tap_o : ``value``: every element of a vector, every scale and every sum of the head, as they
        are made.

    Source: structure ours; the ternary core is that of VitaLLM.
    """

    image_i: stream.Interface
    token_i: stream.Interface
    token_o: stream.Interface
    tap_o: stream.Interface

    def __init__(self, config: MicroEngineConfig):
        self.config = config
        super().__init__({
            "image_i": In(stream.Signature(IMAGE)),
            "token_i": In(stream.Signature(TOKEN)),
            "token_o": Out(stream.Signature(ANSWER)),
            "tap_o": Out(stream.Signature(TAP)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = Store(self.config.store)
        m.submodules.projection = projection = Projection(self.config, store.address.shape())
        m.submodules.core = core = Core(self.config)

        # The core comes first at the store, then the projection.
        loaded, at = Signal(), Signal(range(self.config.store))
        m.d.comb += [
            self.image_i.ready.eq(~loaded),
            core.run.eq(loaded),
            core.data.eq(store.read),
            projection.data.eq(store.read),
            projection.free.eq(loaded & ~core.uses),
            store.written.eq(Mux(loaded, core.written, self.image_i.valid.replicate(2))),
            store.write.eq(Mux(loaded, core.write, self.image_i.p.word)),
            store.address.eq(Mux(loaded, Mux(core.uses, core.address, projection.address), at)),
        ]
        with m.If(self.image_i.valid & self.image_i.ready):
            m.d.sync += [at.eq(at + 1), loaded.eq(self.image_i.p.last)]
        wiring.connect(m, core.code_o, projection.code_i)
        wiring.connect(m, core.words_o, projection.words_i)
        wiring.connect(m, projection.o, core.sum_i)
        wiring.connect(m, wiring.flipped(self.token_i), core.token_i)
        wiring.connect(m, core.token_o, wiring.flipped(self.token_o))
        wiring.connect(m, core.tap_o, wiring.flipped(self.tap_o))
        return m


class Store(wiring.Component):
    """Words with one port: ``read`` is the word that was at ``address`` when nothing was written.

    ``written``: which bytes.  What a word holds before it is written is not defined.
    """

    address: Signal
    write: Signal
    written: Signal
    read: Signal

    def __init__(self, words: int):
        self.words = words
        super().__init__({
            "address": In(range(words)),
            "write": In(WORD),
            "written": In(2),
            "read": Out(WORD),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=unsigned(WORD), depth=self.words, init=[], attrs={"uninitialised": "yes"}
        )
        read, write = memory.read_port(), memory.write_port(granularity=WORD // 2)
        m.d.comb += [
            read.addr.eq(self.address),
            write.addr.eq(self.address),
            read.en.eq(~self.written.any()),
            write.en.eq(self.written),
            write.data.eq(self.write),
            self.read.eq(read.data),
        ]
        return m


class Projection(wiring.Component):
    """Ternary lanes and what fetches their weights when the store is ``free``.

    ``code_i`` brings a vector; each of ``words_i`` a projection of it, the last one with ``ends``.
    ``o`` are the sums of its rows.
    """

    code_i: stream.Interface
    words_i: stream.Interface
    o: stream.Interface
    free: Signal
    address: Signal
    data: Signal

    def __init__(self, config: MicroEngineConfig, address: Any):
        self.config = config
        super().__init__({
            "code_i": In(stream.Signature(CODE)),
            "words_i": In(stream.Signature(WORDS)),
            "o": Out(stream.Signature(signed(config.product.acc_width))),
            "free": In(1),
            "address": Out(address),
            "data": In(WORD),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.gemv = gemv = TernaryGemv(self.config.product)
        m.submodules.tiles = tiles = Widen(signed(8), 1, LANES)
        m.submodules.words = words = Queue(unsigned(WORD + 1), QUEUED)
        m.d.comb += [
            tiles.i.valid.eq(self.code_i.valid),
            self.code_i.ready.eq(tiles.i.ready),
            tiles.i.p.x[0].eq(self.code_i.p.code),
            tiles.i.p.first.eq(0),
            tiles.i.p.last.eq(self.code_i.p.last),
            gemv.acts_i.valid.eq(tiles.o.valid),
            tiles.o.ready.eq(gemv.acts_i.ready),
            gemv.acts_i.p.acts.eq(tiles.o.p.x),
            gemv.acts_i.p.first.eq(0),
            gemv.acts_i.p.last.eq(tiles.o.p.last),
            self.o.valid.eq(gemv.o.valid),
            gemv.o.ready.eq(self.o.ready),
            self.o.p.eq(gemv.o.p.sums[0]),
        ]
        at, left, ends = Signal(WORD), Signal(WORD), Signal()
        taken = words.o.valid & words.o.ready
        goes, read, final = Signal(), Signal(), Signal()
        room = credit(m, "room", QUEUED, taken, goes)
        m.d.comb += [
            self.words_i.ready.eq(left == 0),
            self.address.eq(at),
            goes.eq(self.free & room & (left != 0)),
            words.i.valid.eq(read),
            words.i.p.eq(Cat(self.data, final)),
            gemv.weights_i.valid.eq(words.o.valid),
            words.o.ready.eq(gemv.weights_i.ready),
            gemv.weights_i.p.weights.as_value().eq(words.o.p),
            gemv.weights_i.p.first.eq(0),
            gemv.weights_i.p.last.eq(words.o.p[-1]),
        ]
        m.d.sync += [read.eq(goes), final.eq(ends & (left == 1))]
        with m.If(self.words_i.valid & self.words_i.ready):
            given = self.words_i.p
            m.d.sync += [at.eq(given.address), left.eq(given.words), ends.eq(given.ends)]
        with m.If(goes):
            m.d.sync += [at.eq(at + 1), left.eq(left - 1)]
        return m
