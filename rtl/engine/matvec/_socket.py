# SPDX-License-Identifier: Apache-2.0
"""The matrix-vector socket: codes and weights in, sums out, one an output row."""

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..._pipeline import Pipeline
from ..._streams import Parts, Queue, Widen, fork, last_move
from ..._tree import reduce_tree
from ...mac._vectors import Vectors
from .._feed import FETCH
from .._program import MODE

if TYPE_CHECKING:
    from ..engine import EngineConfig

CODE = 8
"""Bits of an activation."""

WORDS = data.StructLayout({"words": unsigned(28), "ends": unsigned(1), "mode": unsigned(MODE)})


class Socket(wiring.Component):
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

    FORMATS: ClassVar[tuple[str, ...]] = ()
    """Formats of weights that ``EngineConfig.weights`` may name, the one taken unasked first."""
    FRONT: ClassVar[int] = 0
    """Registers before the core."""

    op_i: stream.Interface
    codes_i: stream.Interface
    weights_i: stream.Interface
    fetch_o: stream.Interface
    o: stream.Interface
    moves: Signal

    def __init__(self, engine: "EngineConfig", norm: Any, operation: Any):
        self.engine, self.config = engine, engine.product
        self.rows = norm.o.signature.members["payload"].shape
        super().__init__({
            "op_i": In(stream.Signature(operation)),
            "codes_i": In(stream.Signature(self.rows)),
            "weights_i": In(stream.Signature(self.word(engine))),
            "fetch_o": Out(stream.Signature(FETCH)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(engine.acc_width)}))),
            "moves": Out(1),
        })

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        """A sentence for every rule between the engine's parameters and this core."""
        if engine.packing != "trit2":
            yield f"packing must be trit2 with {engine.matvec}, not {engine.packing}"

    @classmethod
    def product(cls, engine: "EngineConfig") -> Any:
        """The core's own configuration."""
        raise NotImplementedError

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        """Bits of a sum."""
        return cls.product(engine).sum_width

    @classmethod
    def latency(cls, engine: "EngineConfig") -> int:
        """Edges from a row's last word of weights to the first cycle in which its sum is there."""
        return cls.product(engine).latency + cls.FRONT

    @classmethod
    def preparation(cls, engine: "EngineConfig", width: int) -> int:
        """Cycles from a vector's last codes to its first word of weights, beyond a tile's place.

        Cores that multiply the codes as they are need none.
        """
        return 0

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        """A word of weights as it comes from memory; it has one field."""
        raise NotImplementedError

    def elaborate(self, platform: Any) -> Module:
        raise NotImplementedError

    def _front(self, m: Module, acts_i: Any, parts: int = 1, *, rows: bool = False) -> Any:
        """Codes to ``acts_i``, in tiles or each tile in so many ``parts``; the operations, less
        what memory was asked for.

        With ``rows`` they say how many rows they have.
        """
        m.submodules.tiles = tiles = Widen(signed(CODE), *widening(self.engine, parts))
        tiled = tiles.o
        few = acts_i.p.acts.shape().length
        if len(tiled.p.x) != few:
            m.submodules.parts = cut = Parts(signed(CODE), len(tiled.p.x), few, parts)
            wiring.connect(m, tiled, cut.i)
            tiled = cut.o
        layout = WORDS
        if rows:
            layout = data.StructLayout({**WORDS.members, "rows": unsigned(len(self.op_i.p.rows))})
        m.submodules.words = words = Queue(layout, 4)
        m.submodules.fetches = fetches = Queue(FETCH, 4)
        wiring.connect(m, fetches.o, wiring.flipped(self.fetch_o))
        to_words, to_fetches = fork(m, self.op_i, [words.i, fetches.i], "op")
        m.d.comb += [
            words.i.valid.eq(to_words),
            words.i.p.words.eq(self.op_i.p.words),
            words.i.p.ends.eq(self.op_i.p.ends),
            words.i.p.mode.eq(self.op_i.p.mode),
            *([words.i.p.rows.eq(self.op_i.p.rows)] if rows else []),
            fetches.i.valid.eq(to_fetches),
            fetches.i.p.address.eq(self.op_i.p.address),
            fetches.i.p.count.eq(self.op_i.p.words),
            tiles.i.valid.eq(self.codes_i.valid),
            self.codes_i.ready.eq(tiles.i.ready),
            tiles.i.p.x.eq(self.codes_i.p.codes),
            tiles.i.p.first.eq(self.codes_i.p.first),
            tiles.i.p.last.eq(self.codes_i.p.last),
            acts_i.valid.eq(tiled.valid),
            tiled.ready.eq(acts_i.ready),
            acts_i.p.acts.eq(tiled.p.x),
            acts_i.p.first.eq(tiled.p.first),
            acts_i.p.last.eq(tiled.p.last),
        ]
        return words.o

    def _vectors(self, m: Module) -> Vectors:
        """A memory of two vectors' tiles."""
        lanes = self.engine.lanes
        acts = data.StructLayout({
            "acts": data.ArrayLayout(signed(CODE), lanes),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        m.submodules.vectors = vectors = Vectors(acts, self.engine.longest // lanes)
        return vectors

    def _count(self, m: Module, words: Any, used: Any) -> Signal:
        """Whether this is the operation's last word; ``used``: its last use is in this cycle."""
        final = last_move(m, words.p.words, used)
        m.d.comb += words.ready.eq(used & final)
        return final

    def _streamed(self, m: Module, gemv: Any, words: Any, weights: Any, taken: Any) -> None:
        """A core that takes a word of ``weights`` a cycle, in its field ``taken``."""
        (given,) = (getattr(weights.p, name) for name in weights.p.shape().members)
        final = self._count(m, words, self.moves)
        m.d.comb += [
            self.o.valid.eq(gemv.o.valid),
            gemv.o.ready.eq(self.o.ready),
            self.o.p.sum.eq(gemv.o.p.sums[0]),
            gemv.weights_i.valid.eq(weights.valid & words.valid),
            weights.ready.eq(gemv.weights_i.ready & words.valid),
            taken.eq(given),
            gemv.weights_i.p.first.eq(0),
            gemv.weights_i.p.last.eq(final & words.p.ends),
            self.moves.eq(gemv.weights_i.valid & gemv.weights_i.ready),
        ]


def widening(engine: "EngineConfig", parts: int) -> tuple[int, int]:
    """Codes of a row as it comes, and as it goes on: a tile, or a part that is whole rows."""
    lanes, part = engine.norm_lanes, -(-engine.lanes // parts)
    whole = engine.lanes % parts == 0 and part % lanes == 0
    return lanes, part if whole else engine.lanes


def bytes_layout(layout: data.StructLayout) -> data.StructLayout:
    """The bytes of a word that is a record of several fields."""
    return data.StructLayout({"bytes": data.ArrayLayout(unsigned(8), -(-layout.size // 8))})


def record(layout: data.StructLayout, word: Any) -> Any:
    """The record in a word of bytes."""
    return data.View(layout, word.as_value()[: layout.size])


FAN_IN = 4
"""Terms that are added between registers."""


def tree_latency(terms: int) -> int:
    """Registers of a sum of so many terms."""
    count = 1
    while (terms := -(-terms // FAN_IN)) > 1:
        count += 1
    return count


def added(m: Module, enable: Any, name: str, terms: list[Any], shape: Any = None) -> Any:
    """Sum of the ``terms`` behind ``tree_latency`` registers, of ``shape`` or as wide as it is."""
    for stage in range(tree_latency(len(terms))):
        sums = [
            reduce_tree(operator.add, terms[at : at + FAN_IN])
            for at in range(0, len(terms), FAN_IN)
        ]
        terms = [
            Signal(shape or total.shape(), name=f"x_{name}_{stage}_{n}", reset_less=True)
            for n, total in enumerate(sums)
        ]
        with m.If(enable):
            m.d.sync += [term.eq(total) for term, total in zip(terms, sums, strict=True)]
    (total,) = terms
    return total


class Step(NamedTuple):
    """What a core is to do in a cycle, in registers; ``acts`` are lanes' codes, lowest first.

    ``first`` and ``last`` of an output row; ``opens``: first of a turn; ``step`` of a tile;
    ``mode`` of the operation; ``word`` of weights.
    """

    valid: Signal
    first: Signal
    last: Signal
    opens: Signal
    turn: Signal
    step: Signal
    mode: Signal
    word: Any
    acts: Signal


def _one(mode: Any) -> Any:
    return 0


class Tiled(Socket):
    """A socket in which a row of weights meets the tiles of a vector that waits in a memory."""

    FRONT = 1

    def _walk(
        self,
        m: Module,
        ready: Any,
        *,
        steps: Callable[[Any], Any] = _one,
        uses: Callable[[Any], Any] = _one,
        turns: Callable[[Any], Any] = _one,
    ) -> Step:
        """One step after the other, of which the core takes one when it is ``ready``.

        Of an operation's mode, less one: how many ``steps`` a tile takes, how many steps ``uses``
        a word, and how many ``turns`` through all tiles make a row.
        """
        vectors = self._vectors(m)
        words = self._front(m, vectors.acts_i)
        op, tile = words.p, Signal.like(vectors.tile)
        step, use, turn = (Signal(4, name=name) for name in ("step", "use", "turn"))
        last_step, last_use, last_turn = (
            Signal(name=f"last_{name}") for name in ("step", "use", "turn")
        )
        enable = Signal()
        final = self._count(m, words, self.moves & last_use)
        m.d.comb += [
            last_step.eq(step == steps(op.mode)),
            last_use.eq(use == uses(op.mode)),
            last_turn.eq(turn == turns(op.mode)),
            self.moves.eq(enable & words.valid & vectors.valid & self.weights_i.valid),
            self.weights_i.ready.eq(enable & words.valid & vectors.valid & last_use),
            vectors.enable.eq(enable),
            vectors.tile.eq(tile),
            vectors.release.eq(self.moves & last_use & final & op.ends),
        ]
        with m.If(self.moves):
            m.d.sync += [
                step.eq(Mux(last_step, 0, step + 1)),
                use.eq(Mux(last_use, 0, use + 1)),
            ]
            with m.If(last_step):
                m.d.sync += tile.eq(Mux(vectors.last_tile, 0, tile + 1))
                with m.If(vectors.last_tile):
                    m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))

        # The tile comes out of memory beside what is registered here.
        opens = (tile == 0) & (step == 0)
        x = Step(
            valid=Signal(name="x_valid"),
            word=Signal(self.weights_i.p.shape(), name="x_word", reset_less=True),
            acts=vectors.acts,
            **{
                name: Signal.like(value, name=f"x_{name}", reset_less=True)
                for name, value in (
                    *(("first", last_step), ("last", last_step), ("opens", last_step)),
                    *(("turn", turn), ("step", step), ("mode", op.mode)),
                )
            },
        )
        m.d.comb += enable.eq(ready | ~x.valid)
        with m.If(enable):
            m.d.sync += [
                x.valid.eq(self.moves),
                x.first.eq(opens & (turn == 0)),
                x.last.eq(vectors.last_tile & last_step & last_turn),
                x.opens.eq(opens),
                x.turn.eq(turn),
                x.step.eq(step),
                x.mode.eq(op.mode),
                x.word.eq(self.weights_i.p),
            ]
        return x

    def _added(self, m: Module, source: Any, terms: list[Any], shape: Any) -> Any:
        """Sum of the ``terms`` of a stream's transfers, which become those of the socket."""
        latency = tree_latency(len(terms))
        m.submodules.added = pipeline = Pipeline(latency)
        m.d.comb += [
            pipeline.i_valid.eq(source.valid),
            source.ready.eq(pipeline.i_ready),
            self.o.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(self.o.ready),
        ]
        return added(m, pipeline.enable, "added", terms, shape)

    def _joined(self, m: Module, core: Any, x: Step) -> None:
        """The core's stream ``i`` moves with the steps, its sums are the socket's."""
        m.d.comb += [
            core.i.valid.eq(x.valid),
            core.i.p.last.eq(x.last),
            core.i.p.first.eq(x.first),
            self.o.valid.eq(core.o.valid),
            core.o.ready.eq(self.o.ready),
            self.o.p.sum.eq(core.o.p.sum),
        ]
