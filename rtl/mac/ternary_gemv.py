# SPDX-License-Identifier: Apache-2.0
"""Ternary matrix times integer vector: the TINT core of VitaLLM."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from .._pipeline import Pipeline
from ..config import Config, Rate, param
from ._select_tree import SelectTree, SelectTreeConfig
from ._vectors import Vectors, walk_tiles


@dataclass(frozen=True, kw_only=True)
class TernaryGemvConfig(Config):
    k_lanes: int = param(64, "columns multiplied per cycle, a power of two", ge=2, le=4096)
    n_lanes: int = param(1, "rows multiplied per cycle", ge=1, le=1024)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    max_k: int = param(2560, "longest vector, a multiple of k_lanes", ge=2, le=1 << 20)
    resident: bool = param(False, "keep the weights in the core and replay them")
    weight_words: int = param(1024, "resident words of k_lanes * n_lanes weights", ge=1, le=1 << 20)
    memory_stage: bool = param(True, "register what memories give; block RAM is slow to read")
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    select: str = param("fused", "how a lane is negated", choices=("fused", "invert", "mux"))
    chain: int = param(
        4, "lanes in series at each leaf of a fused tree, a power of two", ge=2, le=16
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"k_lanes": 4, "n_lanes": 2, "act_width": 4, "max_k": 16, "stage": 0},
        "rows": {"k_lanes": 16, "n_lanes": 4, "max_k": 384},
        "resident": {
            "k_lanes": 16,
            "n_lanes": 4,
            "max_k": 384,
            "resident": True,
        },
        "storybook": {"max_k": 384, "memory_stage": False},
        "vitallm": {"k_lanes": 64, "n_lanes": 4},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "BitNet b1.58, arXiv 2402.17764",
    )

    rates: ClassVar[tuple[Rate, ...]] = tuple(
        Rate(
            *("ternary", f"int{bits}", lanes * rows),
            {"k_lanes": lanes, "n_lanes": rows, "act_width": bits, "max_k": 1280},
            rows=rows,
            label=f"sign-select, {lanes} lanes",
            family="lut",
        )
        for lanes, rows, bits in (
            *((8, 1, 8), (8, 4, 8), (8, 16, 8), (64, 1, 8), (8, 4, 4), (8, 4, 16)),
        )
    )

    def faults(self) -> Iterator[str]:
        if self.k_lanes & (self.k_lanes - 1):
            yield f"k_lanes must be a power of two, not {self.k_lanes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.max_k % self.k_lanes:
            yield f"max_k must be a multiple of k_lanes ({self.k_lanes}), not {self.max_k}"
        elif self.acc_width > self.sum_width:
            yield (
                f"sums of {self.max_k} activations of {self.act_width} bits need "
                f"{self.acc_width} bits and int32 has {self.sum_width}"
            )

    @property
    def lanes(self) -> int:
        """Multiply-accumulates per cycle."""
        return self.k_lanes * self.n_lanes

    @property
    def max_tiles(self) -> int:
        """Transfers that hold the longest vector."""
        return self.max_k // self.k_lanes

    @property
    def sum_width(self) -> int:
        """Bits of one output sum."""
        return 32

    @property
    def acc_width(self) -> int:
        """Bits that hold every sum: ``max_k`` terms of magnitude ``2**(act_width - 1)``."""
        return self.act_width + ceil_log2(self.max_k) + 1

    @property
    def tree(self) -> SelectTreeConfig:
        return SelectTreeConfig(
            lanes=self.k_lanes,
            act_width=self.act_width,
            stage=self.stage,
            select=self.select,
            chain=self.chain,
        )

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a row's last weights to the first cycle it is offered."""
        return 1 + self.memory_stage + self.tree.latency + 1


def acts_layout(config: TernaryGemvConfig) -> data.StructLayout:
    load = {"load": unsigned(1)} if config.resident else {}
    acts = data.ArrayLayout(signed(config.act_width), config.k_lanes)
    return data.StructLayout({"acts": acts, "first": unsigned(1), "last": unsigned(1), **load})


def weights_layout(config: TernaryGemvConfig) -> data.StructLayout:
    row = data.ArrayLayout(unsigned(2), config.k_lanes)
    weights = data.ArrayLayout(row, config.n_lanes)
    return data.StructLayout({"weights": weights, "first": unsigned(1), "last": unsigned(1)})


def sums_layout(config: TernaryGemvConfig) -> data.StructLayout:
    sums = data.ArrayLayout(signed(config.sum_width), config.n_lanes)
    return data.StructLayout({"sums": sums, "last": unsigned(1)})


class TernaryGemv(wiring.Component):
    """Product of a ternary matrix and an integer vector, lanes along K and along N.

    ``sums[n] = sum over k of weights[n, k] * acts[k]`` in int32: exact, no rounding, no overflow
    (the configuration proves it), activations may take every value.

    A vector arrives as up to ``max_tiles`` transfers on ``acts_i`` and waits in one of two banks.
    A pass multiplies it: ``n_lanes`` rows at a time, one transfer of ``k_lanes * n_lanes`` weights
    per cycle in the order of the vector's tiles; after each row group's last tile the group's sums
    are offered on ``o``.  The transfer marked ``last`` ends the pass and frees the bank; a row
    group it leaves unfinished is dropped.

    While weights arrive, all lanes work in every cycle: the next vector loads during the pass, and
    its pass follows without a gap.  Latency is ``config.latency`` cycles after a group's last
    weights.  The core stops while offered sums are not taken.  Reset drops vectors, partial sums
    and resident weights.

    Restart: ``first`` on ``acts_i`` drops the tiles that came since the last complete vector;
    ``first`` on ``weights_i`` drops the unfinished row group and begins the next one (of a
    ``load`` pass: begins the resident words anew).  Both are allowed but not needed elsewhere.

    Errors: a vector of more than ``max_tiles`` transfers keeps its first ``max_tiles - 1`` and its
    last transfer; a weight code of 2 gives an unspecified sum; resident words beyond
    ``weight_words`` overwrite the last one.

    Members
    -------
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed, ``k_lanes`` of them.  ``first``, ``last``: bounds of the vector.  With
        ``resident``, ``load`` on the last transfer: this vector's pass takes new weights from
        ``weights_i`` and keeps them; otherwise it replays the ones kept.
    weights_i : :py:`In(stream.Signature(StructLayout))`
        ``weights``: ``n_lanes`` rows of ``k_lanes`` two's complement codes, 0, 1, 3 for 0, +1, -1.
        ``first``, ``last``: bounds of the pass.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: ``n_lanes`` times int32.  ``last``: the pass ends with these.

    Source: TINT core of VitaLLM; both orientations of its sheet's open choice 3, output stationary.
    """

    acts_i: stream.Interface
    weights_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TernaryGemvConfig):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "weights_i": In(stream.Signature(weights_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        m.submodules.vectors = vectors = Vectors(acts_layout(config), config.max_tiles)
        m.submodules.passes = passes = _Passes(config)
        wiring.connect(m, wiring.flipped(self.acts_i), vectors.acts_i)
        wiring.connect(m, wiring.flipped(self.weights_i), passes.weights_i)
        m.d.comb += [
            vectors.enable.eq(pipeline.enable),
            vectors.tile.eq(passes.tile),
            vectors.release.eq(passes.ending),
            passes.enable.eq(pipeline.enable),
            passes.vector_valid.eq(vectors.valid),
            passes.last_tile.eq(vectors.last_tile),
            passes.load.eq(vectors.load),
            pipeline.i_valid.eq(passes.completes),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]

        acts, weights = vectors.acts, passes.weights
        if config.memory_stage:
            x_acts = Signal.like(acts, name="x_acts", reset_less=True)
            x_weights = Signal.like(weights, name="x_weights", reset_less=True)
            with m.If(pipeline.enable):
                m.d.sync += [x_acts.eq(acts), x_weights.eq(weights)]
            acts, weights = x_acts, x_weights

        # What a step is travels beside its sums: reading and the tree take these many registers.
        step = data.StructLayout({"moves": 1, "opens": 1, "last": 1})
        steps = [Signal(step, name=f"x_step_{n}", reset_less=True) for n in range(config.latency)]
        with m.If(pipeline.enable):
            m.d.sync += [
                steps[0].moves.eq(passes.moves),
                steps[0].opens.eq(passes.tile == 0),
                steps[0].last.eq(passes.ending),
                *(late.eq(early) for early, late in pairwise(steps)),
            ]
        *_, summing, done = steps

        for row in range(config.n_lanes):
            tree = place(
                m,
                platform,
                f"tree_{row}",
                SelectTree(config.tree),
                acts=acts,
                weights=weights.word_select(row, 2 * config.k_lanes),
                enable=pipeline.enable,
            )
            acc = Signal(signed(config.acc_width), name=f"acc_{row}", reset_less=True)
            add = place(
                m,
                platform,
                f"add_{row}",
                AddSelect(AddSelectConfig(width=config.acc_width)),
                a=tree.sum,
                b=acc,
                enable=~summing.opens,
                invert=0,
                carry=tree.pending,
            )
            m.d.comb += self.o.p.sums[row].eq(acc)
            with m.If(pipeline.enable & summing.moves):
                m.d.sync += acc.eq(add.y)
        m.d.comb += self.o.p.last.eq(done.last)

        return m


class _Passes(wiring.Component):
    """Walks a vector's tiles with weights from the stream or, resident, from memory.

    In a cycle with ``moves`` one word of weights meets tile ``tile``; the word is on ``weights`` a
    cycle of ``enable`` later, beside the tile.
    """

    weights_i: stream.Interface
    enable: Signal
    vector_valid: Signal
    last_tile: Signal
    load: Signal
    tile: Signal
    moves: Signal
    completes: Signal
    ending: Signal
    weights: Signal

    def __init__(self, config: TernaryGemvConfig):
        self.config = config
        super().__init__({
            "weights_i": In(stream.Signature(weights_layout(config))),
            "enable": In(1),
            "vector_valid": In(1),
            "last_tile": In(1),
            "load": In(1),
            "tile": Out(range(config.max_tiles)),
            "moves": Out(1),
            "completes": Out(1),
            "ending": Out(1),
            "weights": Out(2 * config.lanes),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.weights_i.p

        first, last, offered = (Signal(name=name) for name in ("first", "last", "offered"))
        m.d.comb += [
            first.eq(payload.first),
            last.eq(payload.last),
            offered.eq(self.weights_i.valid),
            self.weights_i.ready.eq(self.enable & self.vector_valid & self.load),
        ]
        x_weights = Signal(len(self.weights), reset_less=True)
        with m.If(self.enable):
            m.d.sync += x_weights.eq(payload.weights.as_value())
        m.d.comb += self.weights.eq(x_weights)
        if config.resident:
            self._replay(m, first, last, offered)

        m.d.comb += self.moves.eq(self.enable & self.vector_valid & offered)
        walk_tiles(m, self.tile, self.moves, first, last, self.last_tile)
        m.d.comb += [
            self.completes.eq(self.moves & self.last_tile),
            self.ending.eq(self.moves & last),
        ]

        return m

    def _replay(self, m: Module, first: Signal, last: Signal, offered: Signal) -> None:
        """Keep the words of a pass that loads; in other passes offer them again."""
        words = self.config.weight_words
        m.submodules.words = kept = Memory(shape=unsigned(len(self.weights)), depth=words, init=[])
        write, read = kept.write_port(), kept.read_port()
        count, word, end = (Signal(range(words), name=name) for name in ("count", "word", "end"))
        x_replayed = Signal(reset_less=True)
        m.d.comb += [
            word.eq(Mux(first, 0, count)),
            write.addr.eq(word),
            write.data.eq(self.weights_i.p.weights.as_value()),
            write.en.eq(self.moves & self.load),
            read.addr.eq(count),
            read.en.eq(self.enable),
        ]
        with m.If(~self.load):
            m.d.comb += [first.eq(0), last.eq(count == end), offered.eq(1)]
        with m.If(self.enable):
            m.d.sync += x_replayed.eq(~self.load)
        with m.If(x_replayed):
            m.d.comb += self.weights.eq(read.data)
        with m.If(self.ending):
            m.d.sync += count.eq(0)
            with m.If(self.load):
                m.d.sync += end.eq(word)
        with m.Elif(self.moves & (word != words - 1)):
            m.d.sync += count.eq(word + 1)
