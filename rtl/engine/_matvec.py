# SPDX-License-Identifier: Apache-2.0
"""The matrix-vector socket: codes and weights in, sums out, one an output row."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from .._streams import Queue, Widen, fork, last_move
from ..codec._digits import base3_ninths, ninths_trits
from ..mac.boothflex import Boothflex, BoothflexConfig
from ..mac.ternary_gemv import TernaryGemv, TernaryGemvConfig, _Vectors
from ._feed import FETCH
from ._program import Mode

WORDS = data.StructLayout({"words": unsigned(28), "ends": unsigned(1), "mode": unsigned(2)})


class _Matvec(wiring.Component):
    """What every core in the socket has around it.

    An operation multiplies ``words`` words of weights with the codes of the current vector;
    with ``ends`` the vector has done its service and the next one takes its place.

    Members
    -------
    op_i : what the sequencer hands out; rows, tiles and all.
    codes_i : a vector's codes, ``first`` and ``last``.
    weights_i, fetch_o : words from memory, and the request for them.
    o : ``sum``, one an output row.
    moves : a word of weights is used in this cycle.
    """

    op_i: stream.Interface
    codes_i: stream.Interface
    weights_i: stream.Interface
    fetch_o: stream.Interface
    o: stream.Interface
    moves: Signal

    def __init__(self, config: Any, norm: Any, operation: Any, packing: str):
        self.config, self.packing = config, packing
        self.rows = norm.o.signature.members["payload"].shape
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "codes_i": In(stream.Signature(self.rows)),
            "weights_i": In(stream.Signature(word_layout(config.lanes, packing))),
            "fetch_o": Out(stream.Signature(FETCH)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.acc_width)}))),
            "moves": Out(1),
        })

    def _front(self, m: Module, acts_i: Any, width: int) -> Any:
        """Codes to ``acts_i`` in tiles; the operations, less what memory was asked for."""
        lanes = self.rows.members["codes"].length
        m.submodules.tiles = tiles = Widen(signed(width), lanes, self.config.lanes)
        m.submodules.words = words = Queue(WORDS, 4)
        m.submodules.fetches = fetches = Queue(FETCH, 4)
        wiring.connect(m, fetches.o, wiring.flipped(self.fetch_o))
        to_words, to_fetches = fork(m, self.op_i, [words.i, fetches.i], "op")
        m.d.comb += [
            words.i.valid.eq(to_words),
            words.i.p.words.eq(self.op_i.p.words),
            words.i.p.ends.eq(self.op_i.p.ends),
            words.i.p.mode.eq(self.op_i.p.mode),
            fetches.i.valid.eq(to_fetches),
            fetches.i.p.address.eq(self.op_i.p.address),
            fetches.i.p.count.eq(self.op_i.p.words),
            tiles.i.valid.eq(self.codes_i.valid),
            self.codes_i.ready.eq(tiles.i.ready),
            tiles.i.p.x.eq(self.codes_i.p.codes),
            tiles.i.p.first.eq(self.codes_i.p.first),
            tiles.i.p.last.eq(self.codes_i.p.last),
            acts_i.valid.eq(tiles.o.valid),
            tiles.o.ready.eq(acts_i.ready),
            acts_i.p.acts.eq(tiles.o.p.x),
            acts_i.p.first.eq(tiles.o.p.first),
            acts_i.p.last.eq(tiles.o.p.last),
        ]
        return words.o

    def _count(self, m: Module, words: Any, used: Any) -> Signal:
        """Whether this is the operation's last word; ``used``: its last use is in this cycle."""
        final = last_move(m, words.p.words, used)
        m.d.comb += words.ready.eq(used & final)
        return final


class TernaryMatvec(_Matvec):
    """Ternary projections on a ``ternary_gemv``."""

    config: TernaryGemvConfig

    def elaborate(self, platform):
        m = Module()
        m.submodules.gemv = gemv = TernaryGemv(self.config)
        words = self._front(m, gemv.acts_i, self.config.act_width)
        weights = self._unpacked(m)
        final = self._count(m, words, self.moves)
        m.d.comb += [
            self.o.valid.eq(gemv.o.valid),
            gemv.o.ready.eq(self.o.ready),
            self.o.p.sum.eq(gemv.o.p.sums[0]),
            gemv.weights_i.valid.eq(weights.valid & words.valid),
            weights.ready.eq(gemv.weights_i.ready & words.valid),
            gemv.weights_i.p.weights.eq(weights.p.weights),
            gemv.weights_i.p.first.eq(0),
            gemv.weights_i.p.last.eq(final & words.p.ends),
            self.moves.eq(gemv.weights_i.valid & gemv.weights_i.ready),
        ]
        return m

    def _unpacked(self, m: Module) -> Any:
        """The stream of words with two's complement codes."""
        if self.packing == "trit2":
            return self.weights_i
        m.submodules.unpacked = unpacked = Queue(word_layout(self.config.lanes, "trit2"), 2)
        m.submodules.ninths = pipeline = Pipeline(1)
        fives = []
        for at in range(len(self.weights_i.p.bytes.as_value()) // 8):
            over, rest = Signal(5, name=f"over_{at}"), Signal(4, name=f"rest_{at}")
            with m.If(pipeline.enable):
                m.d.sync += Cat(over, rest).eq(Cat(base3_ninths(self.weights_i.p.bytes[at])))
            fives.append(ninths_trits(m, over, rest, f"trits_{at}"))
        m.d.comb += [
            pipeline.i_valid.eq(self.weights_i.valid),
            self.weights_i.ready.eq(pipeline.i_ready),
            unpacked.i.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(unpacked.i.ready),
            unpacked.i.p.weights.eq(Cat(fives)),
        ]
        return unpacked.o


BOOTH_FRONT = 1
"""Registers of :class:`BoothMatvec` before its core."""


class BoothMatvec(_Matvec):
    """Projections of trits, of 4-bit and of 8-bit integers on the digits of a ``boothflex``.

    A tile of ``lanes`` codes takes one cycle with trits and four with integers, of which each PE
    takes one of its four codes in a cycle.  A word of weights is a byte for each PE: four trits,
    two 4-bit weights, the lower first, or one of 8 bits; so a word of 4-bit weights is used twice.
    """

    config: BoothflexConfig

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.core = core = Boothflex(config)
        gemv = TernaryGemvConfig(
            k_lanes=config.lanes, max_k=config.max_k, act_width=config.a_width, memory_stage=False
        )
        m.submodules.vectors = vectors = _Vectors(gemv)
        words = self._front(m, vectors.acts_i, config.a_width)
        op = words.p

        tile, step = Signal.like(vectors.tile), Signal(2)
        integer, last_step, last_use = Signal(), Signal(), Signal()
        enable, row_ends = Signal(), Signal()
        final = self._count(m, words, self.moves & last_use)
        m.d.comb += [
            integer.eq(op.mode != Mode.TERNARY),
            last_step.eq(~integer | (step == 3)),
            last_use.eq((op.mode != Mode.INT4) | step[0]),
            row_ends.eq(vectors.last_tile & last_step),
            self.moves.eq(enable & words.valid & vectors.valid & self.weights_i.valid),
            self.weights_i.ready.eq(enable & words.valid & vectors.valid & last_use),
            vectors.enable.eq(enable),
            vectors.tile.eq(tile),
            vectors.release.eq(self.moves & last_use & final & op.ends),
        ]
        with m.If(self.moves):
            m.d.sync += step.eq(Mux(last_step, 0, step + 1))
            with m.If(last_step):
                m.d.sync += tile.eq(Mux(vectors.last_tile, 0, tile + 1))

        # The tile comes out of memory beside what is registered here.
        x_valid, x_last = Signal(), Signal(reset_less=True)
        x_word = Signal(2 * config.lanes, reset_less=True)
        x_mode, x_step = Signal(2, reset_less=True), Signal(2, reset_less=True)
        m.d.comb += enable.eq(core.i.ready | ~x_valid)
        with m.If(enable):
            m.d.sync += [
                x_valid.eq(self.moves),
                x_last.eq(row_ends),
                x_word.eq(self.weights_i.p.weights.as_value()),
                x_mode.eq(op.mode),
                x_step.eq(step),
            ]
        m.d.comb += [
            core.i.valid.eq(x_valid),
            core.i.p.mode.eq(x_mode == Mode.TERNARY),
            core.i.p.last.eq(x_last),
            self.o.valid.eq(core.o.valid),
            core.o.ready.eq(self.o.ready),
            self.o.p.sum.eq(core.o.p.sum),
        ]
        for pe in range(config.pes):
            codes = [vectors.acts.word_select(4 * pe + at, config.a_width) for at in range(4)]
            byte = x_word.word_select(pe, 8)
            half = Mux(x_step[0], byte[4:], byte[:4]).as_signed()
            m.d.comb += [
                core.i.p.b[pe].eq(Mux(x_mode == Mode.INT4, half, byte.as_signed())),
                core.i.p.a[pe][0].eq(Array(codes)[x_step].as_signed()),
                *(core.i.p.a[pe][at].eq(codes[at].as_signed()) for at in range(1, 4)),
            ]
        return m


def word_layout(lanes: int, packing: str) -> data.StructLayout:
    """A word of weights: 2-bit codes, or five trits a byte (``trit5``, the code of ``base3``)."""
    if packing == "trit2":
        return data.StructLayout({"weights": data.ArrayLayout(unsigned(2), lanes)})
    return data.StructLayout({"bytes": data.ArrayLayout(unsigned(8), -(-lanes // 5))})
