# SPDX-License-Identifier: Apache-2.0
"""Transformer engine: tokens in, tokens out, weights as they come."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Unless, Widen, bits_for, fork
from ..config import Config, param
from ..kv.kv_store import KvStore, KvStoreConfig
from ..kv.lop_select import LopSelectConfig
from ..vector.absmax_quantise import AbsmaxQuantiseConfig
from ..vector.gate import Gate, GateConfig
from ..vector.rescale import Rescale, RescaleConfig
from ..vector.residual import Residual, ResidualConfig
from ..vector.rms_norm import RmsNorm, RmsNormConfig
from ..vector.rope import RopeConfig, table_layout
from ..vector.sampler import Sampler, SamplerConfig, choice_layout
from ._attend import Attend
from ._feed import FETCH, Feed
from ._heads import Heads, element_layout
from ._program import Source, Target
from ._rows import Replay, RowsMatvec, Turns
from ._select import Select, share
from .attention import Attention, AttentionConfig
from .matvec import core, names
from .matvec._socket import CODE, Socket
from .sequencer import (
    Sequencer,
    SequencerConfig,
    attend_layout,
    embed_layout,
    embedding_layout,
    linear_layout,
    norm_layout,
    program_layout,
    token_layout,
)

WIDTH = 18


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    lanes: int = param(64, "ternary products per cycle, a power of two", ge=4, le=1024)
    norm_lanes: int = param(16, "elements a cycle that a norm quantises", ge=1, le=64)
    head_lanes: int = param(8, "elements a cycle that are quantised in a head", ge=1, le=64)
    dim: int = param(192, "most elements of the residual stream", ge=4, le=1 << 16)
    hidden: int = param(384, "most elements of any vector", ge=4, le=1 << 16)
    heads: int = param(6, "most query heads", ge=1, le=64)
    head_dim: int = param(32, "elements of a head", ge=2, le=256)
    slots: int = param(6, "K and V heads of all layers", ge=1, le=4096)
    context: int = param(256, "most tokens of a text, a power of two", ge=4, le=1 << 20)
    vocab: int = param(512, "most tokens that there are", ge=2, le=1 << 20)
    program: int = param(64, "operations of a program", ge=8, le=4096)
    memory: int = param(
        0, "KiB for weights, gains and embedding; 0: as many as it takes", ge=0, le=1 << 32
    )
    matvec: str = param("ternary", "core of the projections", choices=names())
    weights: str = param("", "format of the weights; empty: the one that the core takes first")
    packing: str = param("trit2", "how weights come in", choices=("trit2", "trit5"))
    gate: str = param("relu2", "activation of the gate", choices=("relu2", "silu"))
    stage: int = param(2, "adder levels of the matvec between registers", ge=0, le=12)
    watchdog: int = param(20, "stuck after 2**watchdog cycles without a move", ge=4, le=32)
    select: str = param("all", "tokens that a head reads", choices=("all", "lop"))
    keep: int = param(16, "with lop: tokens that a head reads, up to context", ge=1, le=1 << 16)
    recent: int = param(1, "with lop: newest tokens, always read", ge=1, le=1024)
    rows: int = param(1, "prompt tokens to a pass over the weights, a power of two", ge=1, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "lanes": 8,
            "norm_lanes": 4,
            "head_lanes": 2,
            "dim": 16,
            "hidden": 32,
            "heads": 2,
            "head_dim": 8,
            "slots": 2,
            "context": 16,
            "vocab": 32,
        },
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "BitNet b1.58, arXiv 2402.17764",
    )

    def faults(self) -> Iterator[str]:
        if self.context & (self.context - 1):
            yield f"context must be a power of two, not {self.context}"
        for name in ("dim", "hidden"):
            if getattr(self, name) % self.norm_lanes:
                yield f"{name} must be a multiple of norm_lanes, {self.norm_lanes}"
        if self.head_dim & (self.head_dim - 1):
            yield f"head_dim must be a power of two, not {self.head_dim}"
        if self.head_dim % self.head_lanes:
            yield f"head_dim must be a multiple of head_lanes, {self.head_lanes}"
        if self.norm_lanes > self.lanes:
            yield f"norm_lanes must be at most lanes, {self.lanes}"
        if self.norm_lanes % self.head_lanes:
            yield f"norm_lanes must be a multiple of head_lanes, {self.head_lanes}"
        if self.rows & (self.rows - 1):
            yield f"rows must be a power of two, not {self.rows}"
        elif self.rows > self.context:
            yield f"rows must be at most context, {self.context}, not {self.rows}"
        formats = self.socket.FORMATS
        if self.weights and self.weights not in formats:
            yield (
                f"weights must be one of {', '.join(formats)} with {self.matvec}, "
                f"not {self.weights!r}"
            )
        else:
            yield from self.socket.faults(self)
        if self.select == "lop":
            for name in ("keep", "recent"):
                if getattr(self, name) > self.context:
                    yield f"{name} must be at most context, {self.context}"

    @property
    def longest(self) -> int:
        """Elements of the longest vector, filled up to whole words of weights."""
        return -(-max(self.dim, self.hidden, self.heads * self.head_dim) // self.lanes) * self.lanes

    @property
    def socket(self) -> type[Socket]:
        """The component in the matvec socket."""
        return core(self.matvec)

    @property
    def format(self) -> str:
        """Of the weights."""
        return self.weights or self.socket.FORMATS[0]

    @property
    def product(self) -> Any:
        """The configuration of the core in the socket."""
        return self.socket.product(self)

    @property
    def acc_width(self) -> int:
        """Bits of a sum of the matvec, at most 32."""
        return self.socket.acc_width(self)

    @property
    def sum_latency(self) -> int:
        """Edges from a row's last word of weights to the first cycle in which its sum is there."""
        return self.socket.latency(self)

    @property
    def norm(self) -> RmsNormConfig:
        return RmsNormConfig(
            lanes=self.norm_lanes,
            max_len=max(self.dim, self.hidden, self.heads * self.head_dim),
            x_width=WIDTH,
            gain_width=16,
            product_width=WIDTH,
            eps_width=32,
            code_width=CODE,
        )

    @property
    def sequencer(self) -> SequencerConfig:
        return SequencerConfig(
            depth=self.program, context=self.context, vocab=self.vocab, rows=self.rows
        )

    @property
    def sums(self) -> int:
        """Sums of each token of a group that are kept until the last of them have left; 0: none."""
        most = max(3 * self.heads * self.head_dim, 2 * self.hidden, self.dim)
        return 1 << (most - 1).bit_length() if self.rows > 1 else 0

    @property
    def slot_width(self) -> int:
        return bits_for(self.slots)

    @property
    def tag_width(self) -> int:
        """Bits that an element brings along: its target, slot and position."""
        return 3 + self.slot_width + self.sequencer.position_width

    @property
    def rescale(self) -> RescaleConfig:
        return RescaleConfig(sum_width=self.acc_width, out_width=WIDTH, tag_width=self.tag_width)

    @property
    def residual(self) -> ResidualConfig:
        return ResidualConfig(
            lanes=self.norm_lanes, max_len=self.dim, x_width=WIDTH, vectors=self.rows
        )

    @property
    def gating(self) -> GateConfig:
        """Hidden values keep 4 bits of fraction of a squared ReLU's 30, 8 of a SiLU's 20."""
        return GateConfig(
            width=WIDTH, activation=self.gate, shift=26 if self.gate == "relu2" else 12
        )

    @property
    def rope(self) -> RopeConfig:
        return RopeConfig(head_dim=self.head_dim, context=self.context, x_width=WIDTH)

    @property
    def quantiser(self) -> AbsmaxQuantiseConfig:
        return AbsmaxQuantiseConfig(
            lanes=self.head_lanes, max_len=self.head_dim, x_width=WIDTH, code_width=CODE
        )

    @property
    def attention(self) -> AttentionConfig:
        return AttentionConfig(
            head_dim=self.head_dim,
            heads=self.heads,
            lanes=self.head_lanes,
            max_tokens=self.context,
            ahead=32,
        )

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(
            vocab=self.vocab, sum_width=self.acc_width, logit_width=WIDTH, fraction=8
        )

    @property
    def kept(self) -> int:
        """Most tokens that a head reads; 0: all of them."""
        return max(self.keep, self.recent) if self.select == "lop" else 0

    @property
    def choice(self) -> LopSelectConfig:
        """Of the selection of tokens."""
        return LopSelectConfig(
            head_dim=self.head_dim,
            lanes=self.head_lanes,
            code_width=CODE,
            context=self.context,
            recent=self.recent,
        )

    @property
    def pair_bits(self) -> int:
        """Bits of a key and a value with their scales."""
        unit = self.attention
        return 2 * CODE * self.head_dim + unit.key_scale_width + unit.value_scale_width

    @property
    def lead_bits(self) -> int:
        """Bits of a key's leading-one codes; 0 where there are none."""
        return self.choice.lead_width * self.head_dim if self.kept else 0

    def store(self, scale_width: int, code_width: int = CODE) -> KvStoreConfig:
        return KvStoreConfig(
            head_dim=self.head_dim,
            lanes=self.head_lanes,
            slots=max(self.slots, 2),  # an address has a bit for the slot
            context=self.context,
            code_width=code_width,
            scale_width=scale_width,
        )


STATUS = data.StructLayout({
    "program": 1,
    "weights": 1,
    "gains": 1,
    "embedding": 1,
    "choice": 1,
    "taker": 1,
    "stuck": 1,
})
"""Streams that are awaited: the writes of the program, the memories, how to choose, who takes the
answer; and whether the watchdog has given up."""


class Engine(wiring.Component):
    """Decoder-only transformer: embedding, ternary projections, attention, sampler.

    Runs the program once for every token, or with ``rows`` once for up to as many tokens of a
    prompt, which then share what is fetched and wait for each other: ``docs/engine.md`` says which
    units there are and what order they keep, ``docs/model.md`` what they compute, bit for bit.
    Weights, gains and embedding rows are asked for and come in as streams; a memory needs one word
    a cycle of weights and little else.

    A token whose ``sample`` is set is answered by one on ``token_o``; the others fill the KV store.
    Results are the same bits however the streams stall; nothing overflows that ``docs/model.md``
    does not say saturates.  Reset ends the token at work and forgets the text; program and rotary
    table are to be written again.

    Throughput: a word of weights a cycle while a projection is at work.  Latency: a token is
    answered when all its words are used, and what its vectors wait for in between, some 5 % more;
    ``sim/engine/timing.py`` says how many cycles.  A token that the context has no place for is
    taken and dropped.

    Members
    -------
    token_i : ``token``, ``restart`` (a new text begins), ``sample``.
    token_o : ``token``: the likeliest next one.
    sampler_i : how to choose, one for each token with ``sample``; see ``sampler``.
    program_i, table_i : writes of the program and of the rotary table, before the first token.
    weights_fetch_o, weights_i : ``address``, ``count`` of words, and the words in order.
    gains_fetch_o, gains_i : the same for rows of gains.
    embed_fetch_o, embed_i : ``token`` and ``rows``, and the rows of ``codes``.
    status : which streams are awaited, and ``stuck``: a token is at work, and for ``2**watchdog``
        cycles nothing has come in, gone out, or met a query.  It goes on if the stream does.
    taps : what the units hand on, for those who watch; see :class:`Taps`.

    Source: composition of VitaLLM; structure and arithmetic ours.
    """

    program_i: stream.Interface
    table_i: stream.Interface
    token_i: stream.Interface
    weights_i: stream.Interface
    gains_i: stream.Interface
    embed_i: stream.Interface
    weights_fetch_o: stream.Interface
    gains_fetch_o: stream.Interface
    embed_fetch_o: stream.Interface
    token_o: stream.Interface
    sampler_i: stream.Interface
    status: data.View
    taps: data.View

    def __init__(self, config: EngineConfig):
        self.config = config
        gains = data.StructLayout({"gains": data.ArrayLayout(signed(16), config.norm_lanes)})
        codes = data.StructLayout({"codes": data.ArrayLayout(signed(CODE), config.norm_lanes)})
        token = data.StructLayout({"token": unsigned(bits_for(config.vocab))})
        super().__init__({
            "program_i": In(stream.Signature(program_layout(config.sequencer))),
            "table_i": In(stream.Signature(table_layout(config.rope))),
            "token_i": In(stream.Signature(token_layout(config.sequencer))),
            "weights_i": In(stream.Signature(config.socket.word(config))),
            "gains_i": In(stream.Signature(gains)),
            "embed_i": In(stream.Signature(codes)),
            "weights_fetch_o": Out(stream.Signature(FETCH)),
            "gains_fetch_o": Out(stream.Signature(FETCH)),
            "embed_fetch_o": Out(stream.Signature(embed_layout(config.sequencer))),
            "token_o": Out(stream.Signature(token)),
            "sampler_i": In(stream.Signature(choice_layout(config.sampler))),
            "status": Out(STATUS),
            "taps": Out(taps_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.sequencer = sequencer = Sequencer(config.sequencer)
        m.submodules.norm = norm = RmsNorm(config.norm)
        m.submodules.feed = feed = Feed(
            WIDTH, config.norm_lanes, norm, norm_layout(config.sequencer)
        )
        socket = partial(config.socket, config, norm, linear_layout(config.sequencer))
        matvec = RowsMatvec(socket, config.rows) if config.rows > 1 else socket()
        m.submodules.matvec = matvec
        m.submodules.rescale = rescale = Rescale(config.rescale)
        m.submodules.residual = residual = Residual(config.residual)
        m.submodules.gate = gate = Gate(config.gating)
        m.submodules.heads = heads = Heads(
            element_layout(WIDTH, config.slot_width, config.sequencer.position_width),
            config.rope,
            config.quantiser,
        )
        m.submodules.sampler = sampler = Sampler(config.sampler)
        m.submodules.attention = attention = Attention(config.attention)
        key_store = KvStore(config.store(WIDTH - 1))
        value_store = KvStore(config.store(len(heads.value_scale_o.p.scale)))
        m.submodules.key_store, m.submodules.value_store = key_store, value_store
        m.submodules.attend = attend = Attend(
            attend_layout(config.sequencer),
            attention.op_i.p.shape(),
            key_store.read_i.p.shape(),
            config.kept,
        )
        join = partial(wiring.connect, m)

        join(wiring.flipped(self.program_i), sequencer.program_i)
        join(wiring.flipped(self.token_i), sequencer.token_i)
        join(wiring.flipped(self.table_i), heads.table_i)
        join(wiring.flipped(self.sampler_i), sampler.op_i)
        join(wiring.flipped(self.weights_i), matvec.weights_i)
        join(matvec.fetch_o, wiring.flipped(self.weights_fetch_o))
        join(wiring.flipped(self.gains_i), feed.gains_i)
        join(feed.fetch_o, wiring.flipped(self.gains_fetch_o))
        if config.rows == 1:
            join(sequencer.norm_o, feed.op_i)
        join(feed.o, norm.i)
        join(feed.gain_o, norm.gain_i)
        join(norm.o, matvec.codes_i)
        if config.rows == 1:
            join(norm.scale_o, rescale.norm_i)
        else:
            self._norms(m, sequencer, feed, norm, matvec, rescale)
        join(attend.attention_o, attention.op_i)
        join(attend.key_read_o, key_store.read_i)
        join(attend.value_read_o, value_store.read_i)
        join(key_store.o, attention.key_i)
        # A value is wanted when its score is known: what decides that need not reach the store.
        m.submodules.values = values = Queue(value_store.o.p.shape(), 2)
        join(value_store.o, values.i)
        join(values.o, attention.value_i)
        join(heads.query_scale_o, attention.query_scale_i)
        for store, name in ((key_store, "key"), (value_store, "value")):
            join(getattr(heads, f"{name}_o"), store.write_i)
            join(getattr(heads, f"{name}_scale_o"), store.scale_i)
            join(getattr(heads, f"{name}_at_o"), store.at_i)
            m.d.comb += store.written_o.ready.eq(1)
        walks = sequencer.attend_o
        if config.rows > 1:
            m.submodules.turns = turns = Turns(attend_layout(config.sequencer), config.rows)
            join(sequencer.attend_o, turns.i)
            walks = turns.o
        if config.kept:
            self._select(m, walks, heads, key_store, attend, attention)
        else:
            join(walks, attend.op_i)
            join(heads.query_o, attention.query_i)

        linear_done = self._linear(m, sequencer, matvec, rescale)
        self._embed(m, sequencer, residual)
        self._route(m, rescale, heads, gate, sampler)
        rows = self._rows(m, gate, attention, residual)
        join(rows["gate"], feed.gate_i)
        join(rows["attention"], feed.attention_i)
        # Whether the norm takes a row need not reach back to what is added.
        m.submodules.added = added = Queue(residual.o.p.shape(), 2)
        join(residual.o, added.i)
        join(added.o, feed.residual_i)
        norm_done = (norm.o.valid & norm.o.ready & norm.o.p.last) | feed.discarded
        units = Cat(norm_done, linear_done, attend.done)
        m.d.comb += [sequencer.done_i.valid.eq(units.any()), sequencer.done_i.p.units.eq(units)]
        m.d.comb += [self.token_o.valid.eq(sampler.o.valid), sampler.o.ready.eq(self.token_o.ready)]
        m.d.comb += self.token_o.p.token.eq(sampler.o.p.token)
        self._tap(m, sequencer, matvec, norm, rescale, attention, heads)
        self._watch(m, attention)
        return m

    def _select(
        self, m: Module, walks: Any, heads: Any, key_store: Any, attend: Any, attention: Any
    ) -> None:
        """Old tokens that a head reads are chosen beside the attention unit."""
        config = self.config
        m.submodules.select = select = Select(
            attend_layout(config.sequencer),
            heads.key_o.p.shape(),
            heads.key_at_o.p.shape(),
            config.heads,
            config.keep,
            config.choice,
            config.store(1, config.choice.lead_width),
        )
        share(m, walks, [attend.op_i, select.op_i], "attend")
        share(m, heads.query_o, [attention.query_i, select.query_i], "query")
        wiring.connect(m, select.o, attend.chosen_i)
        row, at = key_store.write_i, key_store.at_i
        m.d.comb += [
            select.keys.row_valid.eq(row.valid & row.ready),
            select.keys.row.eq(row.p),
            select.keys.at_valid.eq(at.valid & at.ready),
            select.keys.at.eq(at.p),
            self.taps.leads.eq(select.reads),
        ]

    def _norms(
        self, m: Module, sequencer: Any, feed: Any, norm: Any, matvec: Any, rescale: Any
    ) -> None:
        """Operations of the norm, and what tells apart the vectors of a group and their scales."""
        join = partial(wiring.connect, m)
        # As many as there can be vectors between the operation and the matvec, and more.
        m.submodules.finals = finals = Queue(unsigned(1), 16)
        m.submodules.scales = scales = Queue(norm.scale_o.p.shape(), self.config.rows)
        op = sequencer.norm_o
        needs = op.p.source != Source.DISCARD
        to_feed, to_finals = fork(m, op, [feed.op_i, Unless(finals.i, needs)], "norm")
        m.d.comb += [
            feed.op_i.valid.eq(to_feed),
            feed.op_i.p.eq(op.p),
            finals.i.valid.eq(to_finals & needs),
            finals.i.p.eq(op.p.final),
        ]
        join(finals.o, matvec.finals_i)
        join(norm.scale_o, scales.i)
        join(scales.o, rescale.norm_i)

    def _linear(self, m: Module, sequencer: Any, matvec: Any, rescale: Any) -> Any:
        """A linear operation is one for the matvec and one for the rescaler; whether one is done.

        With several rows, the rescaler has one for each token, and an operation is done with the
        first: attention must not wait for the others, as they wait for it.
        """
        op, config = sequencer.linear_o, self.config
        if config.rows > 1:
            m.submodules.replay = replay = Replay(op.p.shape(), matvec.o.p.shape(), config.sums)
            to_matvec, to_replay = fork(m, op, [matvec.op_i, replay.op_i], "linear")
            m.d.comb += [
                matvec.op_i.valid.eq(to_matvec),
                matvec.op_i.p.eq(op.p),
                replay.op_i.valid.eq(to_replay),
                replay.op_i.p.eq(op.p),
            ]
            m.d.comb += self._scaled(replay.op_o, rescale, replay.op_o.valid)
            m.d.comb += replay.op_o.ready.eq(rescale.op_i.ready)
            wiring.connect(m, matvec.o, replay.sums_i)
            wiring.connect(m, replay.o, rescale.i)
            return replay.done
        to_matvec, to_rescale = fork(m, op, [matvec.op_i, rescale.op_i], "linear")
        # Sums come while the norm's scale is still being made.
        m.submodules.sums = sums = Queue(signed(config.acc_width), 16)
        m.d.comb += [
            matvec.op_i.valid.eq(to_matvec),
            matvec.op_i.p.eq(op.p),
            *self._scaled(op, rescale, to_rescale),
            sums.i.valid.eq(matvec.o.valid),
            matvec.o.ready.eq(sums.i.ready),
            sums.i.p.eq(matvec.o.p.sum),
            rescale.i.valid.eq(sums.o.valid),
            sums.o.ready.eq(rescale.i.ready),
            rescale.i.p.sum.eq(sums.o.p),
        ]
        return rescale.o.valid & rescale.o.ready & rescale.o.p.last

    def _scaled(self, op: Any, rescale: Any, valid: Any) -> list[Any]:
        """What the rescaler is told of an operation."""
        slot = op.p.slot[: self.config.slot_width]
        return [
            rescale.op_i.valid.eq(valid),
            rescale.op_i.p.mantissa.eq(op.p.mantissa),
            rescale.op_i.p.shift.eq(op.p.shift),
            rescale.op_i.p.rows.eq(op.p.rows),
            rescale.op_i.p.fresh.eq(op.p.fresh),
            rescale.op_i.p.tag.eq(Cat(op.p.target, slot, op.p.position)),
        ]

    def _embed(self, m: Module, sequencer: Any, residual: Any) -> None:
        """Rows of an embedding replace what the residual stream holds; others are added."""
        # Queued: the operations behind it must go out for its rows to find their way.
        rows = self.config.rows
        m.submodules.embeds = embeds = Queue(embedding_layout(self.config.sequencer), max(rows, 2))
        wiring.connect(m, sequencer.embed_o, embeds.i)
        op, fetch = embeds.o, self.embed_fetch_o
        setting, left, shift = Signal(), Signal(20, reset_less=True), Signal(4, reset_less=True)
        first, last = Signal(reset_less=True), Signal(reset_less=True)
        m.submodules.add_rows = self.add_rows = Widen(signed(WIDTH), 1, self.config.norm_lanes)
        add = self.add_rows.o
        m.d.comb += [
            fetch.valid.eq(op.valid & ~setting),
            fetch.p.as_value().eq(op.p),  # its low fields
            op.ready.eq(fetch.ready & ~setting),
            residual.i.p.set.eq(setting),
            residual.i.p.first.eq(Mux(setting, first, add.p.first)),
            residual.i.p.last.eq(Mux(setting, last, add.p.last)),
            residual.i.valid.eq(Mux(setting, self.embed_i.valid, add.valid)),
            self.embed_i.ready.eq(setting & residual.i.ready),
            add.ready.eq(~setting & residual.i.ready),
        ]
        for lane in range(self.config.norm_lanes):
            shifted = (self.embed_i.p.codes[lane] << shift)[:WIDTH].as_signed()
            m.d.comb += residual.i.p.x[lane].eq(Mux(setting, shifted, add.p.x[lane]))
        if rows > 1:
            row_width = self.config.sequencer.row_width
            set_vector = Signal(row_width, reset_less=True)
            self.add_vector = Signal(row_width, name="add_vector")
            vector = Signal(row_width)
            m.d.comb += vector.eq(Mux(setting, set_vector, self.add_vector))
            m.d.comb += residual.i.p.vector.eq(vector)
            with m.If(op.valid & op.ready):
                m.d.sync += set_vector.eq(op.p.row)
        with m.If(op.valid & op.ready):
            m.d.sync += [setting.eq(1), first.eq(1), last.eq(op.p.rows == 1)]
            m.d.sync += [left.eq(op.p.rows), shift.eq(op.p.shift)]
        with m.If(self.embed_i.valid & self.embed_i.ready):
            m.d.sync += [first.eq(0), last.eq(left == 2), left.eq(left - 1)]
            m.d.sync += setting.eq(~last)

    def _route(self, m: Module, rescale: Any, heads: Any, gate: Any, sampler: Any) -> None:
        """Elements to where their operation sends them."""
        m.submodules.elements = elements = Queue(rescale.o.p.shape(), 2)
        wiring.connect(m, rescale.o, elements.i)
        out, add = elements.o, self.add_rows.i
        target = out.p.tag[:3]
        slot = out.p.tag[3 : 3 + self.config.slot_width]
        position = out.p.tag[3 + self.config.slot_width :]
        if self.config.rows > 1:
            self._added(m, add, position)
        m.d.comb += [
            heads.i.p.x.eq(out.p.y),
            heads.i.p.target.eq(target),
            heads.i.p.slot.eq(slot),
            heads.i.p.position.eq(position),
            gate.i.p.x.eq(out.p.y),
            add.p.x[0].eq(out.p.y),
            sampler.i.p.sum.eq(out.p.sum),
            sampler.i.p.logit.eq(out.p.y),
        ]
        with m.Switch(target):
            for port, targets in (
                (gate.i, [Target.GATE]),
                (add, [Target.ADD]),
                (sampler.i, [Target.HEAD]),
                (heads.i, None),
            ):
                m.d.comb += [port.p.first.eq(out.p.first), port.p.last.eq(out.p.last)]
                with m.Case(*targets) if targets else m.Default():
                    m.d.comb += [port.valid.eq(out.valid), out.ready.eq(port.ready)]

    def _added(self, m: Module, add: Any, position: Any) -> None:
        """The vector that a row is added to: positions of a group differ in their low bits."""
        if self.config.norm_lanes == 1:
            m.d.comb += self.add_vector.eq(position)
        else:  # a row that is offered is of the last element that was taken
            with m.If(add.valid & add.ready):
                m.d.sync += self.add_vector.eq(position)

    def _rows(self, m: Module, gate: Any, attention: Any, residual: Any) -> dict[str, Any]:
        """Elements and short rows gathered into rows of the norm."""
        lanes = self.config.norm_lanes
        m.submodules.gate_rows = gate_rows = Widen(signed(WIDTH), 1, lanes)
        m.submodules.attention_rows = attention_rows = Widen(
            signed(WIDTH), self.config.head_lanes, lanes
        )
        m.d.comb += [
            gate_rows.i.valid.eq(gate.o.valid),
            gate.o.ready.eq(gate_rows.i.ready),
            gate_rows.i.p.x[0].eq(gate.o.p.x),
            gate_rows.i.p.first.eq(gate.o.p.first),
            gate_rows.i.p.last.eq(gate.o.p.last),
            attention_rows.i.valid.eq(attention.o.valid),
            attention.o.ready.eq(attention_rows.i.ready),
            attention_rows.i.p.x.eq(attention.o.p.x),
            attention_rows.i.p.first.eq(attention.o.p.first),
            attention_rows.i.p.last.eq(0),  # heads follow each other in the norm's rows
        ]
        return {"gate": gate_rows.o, "attention": attention_rows.o}

    def _watch(self, m: Module, attention: Any) -> None:
        awaited = {
            "program": self.program_i,
            "weights": self.weights_i,
            "gains": self.gains_i,
            "embedding": self.embed_i,
            "choice": self.sampler_i,
        }
        moves = [
            port.valid & port.ready
            for port in (*awaited.values(), self.token_i, self.token_o, attention.key_i)
        ]
        quiet = Signal(self.config.watchdog + 1)
        with m.If(Cat(moves).any() | self.token_i.ready):
            m.d.sync += quiet.eq(0)
        with m.Elif(~quiet[-1]):
            m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += [
            self.status.stuck.eq(quiet[-1]),
            self.status.taker.eq(self.token_o.valid & ~self.token_o.ready),
            *(self.status[name].eq(port.ready & ~port.valid) for name, port in awaited.items()),
        ]

    def _tap(
        self,
        m: Module,
        sequencer: Any,
        matvec: Any,
        norm: Any,
        rescale: Any,
        attention: Any,
        heads: Any,
    ) -> None:
        taps = self.taps
        m.d.comb += [
            taps.input_valid.eq(norm.i.valid & norm.i.ready),
            taps.input.eq(norm.i.p.x),
            taps.codes_valid.eq(norm.o.valid & norm.o.ready),
            taps.codes.eq(norm.o.p.codes),
            taps.scale_valid.eq(norm.scale_o.valid & norm.scale_o.ready),
            taps.mantissa.eq(norm.scale_o.p.mantissa),
            taps.shift.eq(norm.scale_o.p.shift),
            taps.element_valid.eq(rescale.o.valid & rescale.o.ready),
            taps.sum.eq(rescale.o.p.sum),
            taps.element.eq(rescale.o.p.y),
            taps.target.eq(rescale.o.p.tag[:3]),
            taps.head_valid.eq(heads.tap.codes_valid),
            taps.head.eq(heads.tap.codes),
            taps.peak_valid.eq(heads.tap.peak_valid),
            taps.peak.eq(heads.tap.peak),
            taps.linear.eq(matvec.moves),
            taps.starved.eq(self.weights_i.ready & ~self.weights_i.valid),
            taps.attention.eq(attention.key_i.valid & attention.key_i.ready),
        ]


def taps_layout(config: EngineConfig) -> data.StructLayout:
    """What passes between the units in a cycle.

    ``input``, ``codes``, ``mantissa`` and ``shift`` are of the norm; ``sum`` and ``element`` of a
    projection; ``head`` and ``peak`` of the head quantiser.  ``linear``: a word of weights is
    used; ``starved``: one is missing; ``attention``: a pair of key and value enters; ``leads``: the
    leading ones of a key are tried.
    """
    return data.StructLayout({
        "input_valid": 1,
        "input": data.ArrayLayout(signed(WIDTH), config.norm_lanes),
        "codes_valid": 1,
        "codes": data.ArrayLayout(signed(CODE), config.norm_lanes),
        "scale_valid": 1,
        "mantissa": unsigned(16),
        "shift": unsigned(6),
        "element_valid": 1,
        "sum": signed(config.acc_width),
        "element": signed(WIDTH),
        "target": unsigned(3),
        "head_valid": 1,
        "head": data.ArrayLayout(signed(CODE), config.head_lanes),
        "peak_valid": 1,
        "peak": unsigned(WIDTH - 1),
        "linear": 1,
        "starved": 1,
        "attention": 1,
        "leads": 1,
    })
