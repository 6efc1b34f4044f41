# SPDX-License-Identifier: Apache-2.0
"""The matrix-vector socket: codes and weights in, sums out, one an output row."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Widen, fork
from ..codec._digits import base3
from ..mac.ternary_gemv import TernaryGemv, TernaryGemvConfig
from ._feed import FETCH

WORDS = data.StructLayout({"words": unsigned(28), "ends": unsigned(1)})


class TernaryMatvec(wiring.Component):
    """Ternary projections on a ``ternary_gemv``.

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

    def __init__(self, config: TernaryGemvConfig, norm: Any, operation: Any, packing: str):
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

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = self.rows.members["codes"].length
        m.submodules.gemv = gemv = TernaryGemv(config)
        m.submodules.tiles = tiles = Widen(signed(config.act_width), lanes, config.k_lanes)
        m.submodules.words = words = Queue(WORDS, 4)
        m.submodules.fetches = fetches = Queue(FETCH, 4)
        wiring.connect(m, fetches.o, wiring.flipped(self.fetch_o))
        to_words, to_fetches = fork(m, self.op_i, [words.i, fetches.i], "op")
        m.d.comb += [
            words.i.valid.eq(to_words),
            words.i.p.words.eq(self.op_i.p.words),
            words.i.p.ends.eq(self.op_i.p.ends),
            fetches.i.valid.eq(to_fetches),
            fetches.i.p.address.eq(self.op_i.p.address),
            fetches.i.p.count.eq(self.op_i.p.words),
            tiles.i.valid.eq(self.codes_i.valid),
            self.codes_i.ready.eq(tiles.i.ready),
            tiles.i.p.x.eq(self.codes_i.p.codes),
            tiles.i.p.first.eq(self.codes_i.p.first),
            tiles.i.p.last.eq(self.codes_i.p.last),
            gemv.acts_i.valid.eq(tiles.o.valid),
            tiles.o.ready.eq(gemv.acts_i.ready),
            gemv.acts_i.p.acts.eq(tiles.o.p.x),
            gemv.acts_i.p.first.eq(tiles.o.p.first),
            gemv.acts_i.p.last.eq(tiles.o.p.last),
            self.o.valid.eq(gemv.o.valid),
            gemv.o.ready.eq(self.o.ready),
            self.o.p.sum.eq(gemv.o.p.sums[0]),
        ]
        left = Signal(28)
        fresh = Signal(init=1)
        now, final = Signal(28), Signal()
        weights = self._unpacked(m)
        m.d.comb += [
            now.eq(Mux(fresh, words.o.p.words, left)),
            final.eq(now == 1),
            gemv.weights_i.valid.eq(weights.valid & words.o.valid),
            weights.ready.eq(gemv.weights_i.ready & words.o.valid),
            gemv.weights_i.p.weights.eq(weights.p.weights),
            gemv.weights_i.p.first.eq(0),
            gemv.weights_i.p.last.eq(final & words.o.p.ends),
            self.moves.eq(gemv.weights_i.valid & gemv.weights_i.ready),
            words.o.ready.eq(self.moves & final),
        ]
        with m.If(self.moves):
            m.d.sync += [left.eq(now - 1), fresh.eq(final)]
        return m

    def _unpacked(self, m: Module) -> Any:
        """The stream of words with two's complement codes."""
        if self.packing == "trit2":
            return self.weights_i
        m.submodules.unpacked = unpacked = Queue(word_layout(self.config.lanes, "trit2"), 2)
        count = len(self.weights_i.p.bytes.as_value()) // 8
        fives = [base3(m, self.weights_i.p.bytes[at], f"byte{at}")[0] for at in range(count)]
        m.d.comb += [
            unpacked.i.valid.eq(self.weights_i.valid),
            self.weights_i.ready.eq(unpacked.i.ready),
            unpacked.i.p.weights.eq(Cat(fives)),
        ]
        return unpacked.o


def word_layout(lanes: int, packing: str) -> data.StructLayout:
    """A word of weights: 2-bit codes, or five trits a byte (``trit5``, the code of ``base3``)."""
    if packing == "trit2":
        return data.StructLayout({"weights": data.ArrayLayout(unsigned(2), lanes)})
    return data.StructLayout({"bytes": data.ArrayLayout(unsigned(8), -(-lanes // 5))})
