# SPDX-License-Identifier: Apache-2.0
"""Attention over a stream of keys and values, for several heads at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._once import place
from .._streams import QUEUE_LATENCY, Queue, Skid, bits_for, credit
from ..config import Config, param
from ..mac._booth import BoothProduct, BoothProductConfig
from ..vector._online import (
    CHANCE_BITS,
    OnlineConfig,
    Total,
    Weights,
    rounded_up,
    token_layout,
    total_layout,
    weight_layout,
)
from ._constants import MANTISSA, Scale, mix_scale, score_scale
from ._round import REGISTERS, delay, requantised
from ._scales import (
    PeakScale,
    Reciprocal,
    Reciprocals,
    peak_scale_layout,
    reciprocal_layout,
    shift_range,
)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    head_dim: int = param(32, "elements of a head", ge=2, le=256)
    heads: int = param(6, "contexts", ge=1, le=256)
    lanes: int = param(4, "elements of a query or result that move per cycle", ge=1, le=256)
    max_tokens: int = param(256, "pairs of a context", ge=1, le=32768)
    code_width: int = param(8, "bits of a signed code, even", ge=4, le=8)
    key_scale_width: int = param(17, "bits of the peak of a query or key", ge=2, le=20)
    value_scale_width: int = param(13, "bits of the logarithm of a value's peak", ge=2, le=20)
    score_width: int = param(18, "bits of a signed score", ge=4, le=24)
    score_fraction: int = param(8, "bits of fraction of a score", ge=1, le=12)
    activation_fraction: int = param(10, "bits of fraction of a peak", ge=0, le=10)
    weight_bits: int = param(7, "bits of an unsigned weight", ge=2, le=7)
    out_width: int = param(18, "bits of a signed result", ge=2, le=24)
    ahead: int = param(16, "keys that may be ahead of their values, a power of two", ge=2, le=1024)
    products: str = param("rows", "how codes are multiplied", choices=("rows", "booth", "multiply"))
    stage: int = param(2, "adder levels of the dot product between registers", ge=1, le=8)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "head_dim": 4,
            "heads": 2,
            "lanes": 2,
            "max_tokens": 8,
            "code_width": 4,
            "key_scale_width": 6,
            "value_scale_width": 7,
            "score_width": 9,
            "score_fraction": 4,
            "activation_fraction": 3,
            "weight_bits": 3,
            "out_width": 7,
            "ahead": 8,
        },
        "bitnet_2b": {"head_dim": 128, "heads": 20, "max_tokens": 4096, "ahead": 32},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "Softermax, arXiv 2103.09301",
    )

    def faults(self) -> Iterator[str]:
        if self.head_dim & (self.head_dim - 1):
            yield f"head_dim must be a power of two, not {self.head_dim}"
        if self.lanes & (self.lanes - 1) or self.lanes > self.head_dim:
            yield f"lanes must be a power of two up to head_dim = {self.head_dim}, not {self.lanes}"
        if self.code_width % 2:
            yield f"code_width must be even, not {self.code_width}"
        if self.weight_bits >= self.code_width:
            limit = f"code_width = {self.code_width}"
            yield f"weight_bits must be below {limit}, not {self.weight_bits}"
        if self.ahead & (self.ahead - 1):
            yield f"ahead must be a power of two, not {self.ahead}"
        if self.value_log_top >= 1 << self.value_scale_width:
            yield (
                f"value_scale_width must hold the logarithm of a peak, up to {self.value_log_top},"
                f" not {self.value_scale_width} bits"
            )
        if self.score_shifts[0] < 1 or self.mix_shifts[0] < 1:
            yield "the fractions must leave scores and results a shift to the right"

    @property
    def rows(self) -> int:
        """Transfers of a query or a result."""
        return self.head_dim // self.lanes

    @property
    def code_top(self) -> int:
        """The code of a peak."""
        return (1 << self.code_width - 1) - 1

    @property
    def value_log_top(self) -> int:
        """The logarithm of the largest peak."""
        return self.key_scale_width << self.score_fraction

    @property
    def online(self) -> OnlineConfig:
        """Formats of the softmax."""
        return OnlineConfig(
            score_width=self.score_width,
            fraction=self.score_fraction,
            log_width=self.value_scale_width,
            weight_bits=self.weight_bits,
            contexts=self.heads,
            max_tokens=self.max_tokens,
            ahead=self.ahead,
        )

    @property
    def closings(self) -> int:
        """Contexts whose result may be outstanding."""
        return max(2, 1 << ceil_log2(self.heads))

    @property
    def dot_width(self) -> int:
        """Bits of a signed dot product of codes."""
        return 2 * self.code_width + ceil_log2(self.head_dim)

    @property
    def sum_width(self) -> int:
        """Bits of a signed sum of values times weights."""
        top = (1 << self.weight_bits) - 1
        return (self.max_tokens * top << self.code_width - 1).bit_length() + 1

    @property
    def score_scale(self) -> Scale:
        """From dot product times peaks to a score."""
        return score_scale(
            self.head_dim, self.code_top, self.score_fraction, self.activation_fraction
        )

    @property
    def mix_scale(self) -> Scale:
        """From sums over a total to results."""
        return mix_scale(self.code_top, self.weight_bits, CHANCE_BITS)

    @property
    def score_shifts(self) -> tuple[int, int]:
        """Least and largest shift of a score."""
        return shift_range(self.key_scale_width, self.score_scale)

    @property
    def mix_shifts(self) -> tuple[int, int]:
        """Least and largest shift of a result.

        A total has 15 bits at least, or is 0; octaves of levels are those of scores or up to
        ``key_scale_width`` more.
        """
        shift = self.mix_scale[1]
        return (
            shift + CHANCE_BITS - 1 - self.key_scale_width,
            shift + self.online.total_width + 1,
        )

    @property
    def score_latency(self) -> int:
        """Cycles from taking a key to the score, which then waits for its value."""
        return 3 + self.tree_registers + 2 + REGISTERS

    @property
    def query_latency(self) -> int:
        """Cycles from a query's peak to its first score, and as many more as the peak has zeros."""
        return PeakScale.LATENCY + 2

    @property
    def closing_latency(self) -> int:
        """Cycles that a closing context occupies a divider, and the zeros of its total."""
        return Reciprocal.LATENCY + 1

    @property
    def results(self) -> int:
        """Results on their way out: as many as it takes for their rows to leave every cycle."""
        return 1 - (-(2 * self.rows + _Finish.LATENCY + 1) // (self.rows + 1))

    @property
    def result_latency(self) -> int:
        """Cycles from a row of sums to a row of the result."""
        return _Finish.LATENCY + QUEUE_LATENCY

    @property
    def tree_registers(self) -> int:
        return -(-ceil_log2(self.head_dim) // self.stage)


def codes_layout(config: AttentionConfig, count: int, **fields: Any) -> data.StructLayout:
    codes = data.ArrayLayout(signed(config.code_width), count)
    return data.StructLayout({"codes": codes, **fields})


def operation_layout(config: AttentionConfig) -> data.StructLayout:
    return data.StructLayout({
        "context": unsigned(bits_for(config.heads)),
        "count": unsigned(config.max_tokens.bit_length()),
        "opens": unsigned(1),
        "closes": unsigned(1),
    })


def pair_layout(config: AttentionConfig) -> data.StructLayout:
    """A value with its weight."""
    return codes_layout(config, config.head_dim, token=weight_layout(config.online))


def head_layout(config: OnlineConfig) -> data.StructLayout:
    """What decides whether the sums are those of a pair."""
    return data.StructLayout({
        "context": unsigned(config.context_width),
        "first": unsigned(1),
    })


BEFORE_SUMS = 8
"""Pairs that the registers between the queue of scores and the sums hold."""


class Attention(wiring.Component):
    """Mixes values by the softmax of their keys' products with a query, several heads at a time.

    With the functions of ``sim/_fixed.py``, and constants ``score_scale`` and ``mix_scale`` that
    follow from the formats, for each pair of a key and a value, in order:

        scale = product(normalise(query peak), score_scale)
        score = saturate(requantise(query . key * key peak, scale), score_width)
        total, weight, shift: as ``softmax`` gives them for score and the value's logarithm
        sums  = (sums >> shift) + weight * value        (floor, exact)

    and when the context closes, with ``octave`` as ``softmax`` gives them:

        scale = quotient(mix_scale, normalise(total))
        x     = saturate(requantise(sums, scale 2**(weight octave - total octave)), out_width)

    All of it is exact but for the roundings named; nothing overflows.  A context that closes
    without any pair gives zeros.

    An operation takes ``count`` pairs for a context.  One with ``opens`` forgets what the context
    had and takes the next query, which serves until the operation that ``closes``; that one puts
    the result out.  Operations of other contexts may come between.  With ``count`` 0 an operation
    takes no pair.  There are ``heads`` slots for queries, taken in turn: a context must be closed
    before the query that comes ``heads`` after its own is needed.

    Throughput: a pair a cycle, but for turns of the sums, ``rows = head_dim / lanes`` cycles where
    the context changes, and a cycle for each octave beyond the first by which the largest level
    rises.  A query takes 20 to 36 cycles in the background (its scale, one bit a cycle), or
    ``rows`` if that is more; so does the quotient of a closing context, 22 to 31, from its last
    key on.

    Latency: with all else there, the first row of a result is offered 14 edges after the context's
    last value was taken, then one a cycle; the next context's follow after one cycle if its last
    value is there.  Keys may be ``ahead`` pairs ahead of values; scores, totals and quotients are
    made without values.  Reset drops everything.

    Errors: more than ``max_tokens`` pairs in a context, an operation after ``closes`` without
    ``opens``, ``opens`` in a context that is not closed, or a logarithm above
    ``key_scale_width << score_fraction`` give unspecified results.

    Members
    -------
    query_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: signed, ``lanes`` of a query, ``rows`` transfers each, in the order in which
        operations open contexts.
    query_scale_i : :py:`In(stream.Signature(StructLayout))`
        ``peak``: unsigned, one a query: the magnitude of its largest code.
    op_i : :py:`In(stream.Signature(StructLayout))`
        ``context``.  ``count``: pairs to take.  ``opens``.  ``closes``.
    key_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: signed, ``head_dim``.  ``scale``: unsigned, the peak.
    value_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: signed, ``head_dim``.  ``scale``: unsigned binary logarithm of the peak with
        ``score_fraction`` bits of fraction.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``x``: signed, ``lanes`` elements.  ``first``, ``last``: bounds of a result.

    Source: VitaLLM multiplies queries, keys and values in INT8 and hides softmax behind linear
    work; its papers give no arithmetic for it.  This one is Softermax's with a scale per value.
    """

    query_i: stream.Interface
    query_scale_i: stream.Interface
    op_i: stream.Interface
    key_i: stream.Interface
    value_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: AttentionConfig):
        self.config = config
        peak, log = unsigned(config.key_scale_width), unsigned(config.value_scale_width)
        result = data.StructLayout({
            "x": data.ArrayLayout(signed(config.out_width), config.lanes),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "query_i": In(stream.Signature(codes_layout(config, config.lanes))),
            "query_scale_i": In(stream.Signature(data.StructLayout({"peak": peak}))),
            "op_i": In(stream.Signature(operation_layout(config))),
            "key_i": In(stream.Signature(codes_layout(config, config.head_dim, scale=peak))),
            "value_i": In(stream.Signature(codes_layout(config, config.head_dim, scale=log))),
            "o": Out(stream.Signature(result)),
        })

    def elaborate(self, platform):
        m = Module()
        config, online = self.config, self.config.online
        m.submodules.queries = queries = _Queries(config)
        m.submodules.pairs = pairs = _Pairs(config)
        m.submodules.scores = scores = _Scores(config)
        m.submodules.total = total = Total(online)
        m.submodules.mixer = mixer = _Mixer(config)
        waiting = token_layout(online, up=signed(online.score_width + 1))
        m.submodules.waiting = waits = Queue(waiting, config.ahead)
        # The oldest score decides what the mixer does: in registers, or memory is in every path.
        m.submodules.oldest = queue = Skid(waiting)
        m.submodules.heads = heads = Queue(head_layout(online), BEFORE_SUMS)
        m.submodules.head = head = Skid(head_layout(online))
        m.submodules.weighted = weighted = Skid(pair_layout(config))
        wiring.connect(m, waits.o, queue.i)
        wiring.connect(m, heads.o, head.i)
        wiring.connect(m, head.o, mixer.head_i)
        wiring.connect(m, weighted.o, mixer.i)
        m.submodules.totals = totals = Queue(total_layout(online), config.closings)
        m.submodules.reciprocal = reciprocal = Reciprocals(
            online, config.mix_scale, config.mix_shifts[0]
        )
        m.submodules.scales = scales = Queue(reciprocal_layout(online), config.closings)
        m.submodules.weights = weights = Weights(online)
        m.submodules.finish = finish = _Finish(config)

        wiring.connect(m, wiring.flipped(self.query_i), queries.query_i)
        wiring.connect(m, wiring.flipped(self.query_scale_i), queries.query_scale_i)
        wiring.connect(m, wiring.flipped(self.op_i), pairs.op_i)
        m.d.comb += [
            queries.slot.eq(pairs.slot),
            queries.slot_next.eq(pairs.slot_next),
            queries.release.eq(pairs.release),
            pairs.loaded.eq(queries.loaded),
            pairs.key_valid.eq(self.key_i.valid),
            self.key_i.ready.eq(pairs.key_ready),
            pairs.context_left.eq(mixer.scale_i.valid & mixer.scale_i.ready),
            scores.key.eq(self.key_i.p),
            scores.query.eq(queries.codes),
            scores.scale.eq(queries.scale),
            scores.i_valid.eq(pairs.o_valid),
            scores.i.eq(pairs.o),
            # There is room: ``pairs`` counts.
            waits.i.valid.eq(scores.o_valid),
            waits.i.payload.eq(scores.o),
            total.enable.eq(1),
            total.valid.eq(scores.o_valid),
            total.i.eq(scores.o),
            totals.i.valid.eq(total.o_valid),
            totals.i.payload.eq(total.o),
        ]
        # A cycle late: whether the oldest score leaves is decided at the end of its way.
        m.d.sync += pairs.pair_left.eq(queue.o.valid & queue.o.ready)
        wiring.connect(m, totals.o, reciprocal.i)
        wiring.connect(m, reciprocal.o, scales.i)
        wiring.connect(m, scales.o, mixer.scale_i)
        wiring.connect(m, queue.o, weights.i)
        m.d.comb += [
            heads.i.valid.eq(waits.o.valid & queue.i.ready),
            heads.i.p.context.eq(waits.o.p.context),
            heads.i.p.first.eq(waits.o.p.first),
            weights.log_i.valid.eq(self.value_i.valid),
            weights.log_i.payload.eq(self.value_i.p.scale),
            self.value_i.ready.eq(weights.log_i.ready),
            weighted.i.valid.eq(weights.o.valid),
            weights.o.ready.eq(weighted.i.ready),
            weighted.i.p.token.eq(weights.o.p),
        ]
        codes = self.value_i.p.codes
        for index in range(Weights.STAGES):
            codes = delay(m, f"codes_{index}", codes, 1, enable=weights.enables[index])
        m.d.comb += [
            weighted.i.p.codes.eq(codes),
            mixer.room.eq(finish.room),
            finish.begins.eq(mixer.drain),
            finish.i_valid.eq(mixer.o_valid),
            finish.i.eq(mixer.o),
            finish.mantissa.eq(mixer.mantissa),
            finish.shift.eq(mixer.shift),
        ]
        wiring.connect(m, finish.o, wiring.flipped(self.o))
        return m


class _Queries(wiring.Component):
    """Queries and their scales in ``heads`` slots, which are filled in turn.

    ``loaded`` says whether ``slot`` holds a query, ``codes`` and ``scale`` are its; ``release``
    gives the slot back.  ``slot_next`` is what ``slot`` will be in the next cycle.
    """

    query_i: stream.Interface
    query_scale_i: stream.Interface
    slot: Signal
    slot_next: Signal
    release: Signal
    loaded: Signal
    codes: data.View
    scale: data.View

    def __init__(self, config: AttentionConfig):
        self.config = config
        peak = data.StructLayout({"peak": unsigned(config.key_scale_width)})
        super().__init__({
            "query_i": In(stream.Signature(codes_layout(config, config.lanes))),
            "query_scale_i": In(stream.Signature(peak)),
            "slot": In(bits_for(config.heads)),
            "slot_next": In(bits_for(config.heads)),
            "release": In(1),
            "loaded": Out(1),
            "codes": Out(data.ArrayLayout(signed(config.code_width), config.head_dim)),
            "scale": Out(peak_scale_layout(config.key_scale_width, config.score_scale)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.peak = peak = PeakScale(config.key_scale_width, config.score_scale)
        loaded, loaded_next = Signal(config.heads), Signal(config.heads)
        filling, filling_next = Signal.like(self.slot), Signal.like(self.slot)
        row, whole = Signal(range(config.rows)), Signal()
        free, done = Signal(init=1), Signal()
        m.submodules.scales = scales = Memory(shape=self.scale.shape(), depth=config.heads, init=[])
        scale_in, scale_out = scales.write_port(), scales.read_port(domain="comb")
        m.d.comb += [
            done.eq(peak.o.valid & whole),
            self.query_i.ready.eq(free & ~whole),
            self.query_scale_i.ready.eq(free & peak.i.ready),
            peak.i.valid.eq(free & self.query_scale_i.valid),
            peak.i.payload.eq(self.query_scale_i.p.peak),
            peak.o.ready.eq(whole),
            scale_in.addr.eq(filling),
            scale_in.data.eq(peak.o.p),
            scale_in.en.eq(done),
            scale_out.addr.eq(self.slot),
            self.scale.eq(scale_out.data),
        ]
        codes = []
        for index in range(config.rows):
            memory = Memory(shape=self.query_i.p.codes.shape(), depth=config.heads, init=[])
            m.submodules[f"row_{index}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(filling),
                write.data.eq(self.query_i.p.codes),
                write.en.eq(self.query_i.valid & self.query_i.ready & (row == index)),
                read.addr.eq(self.slot),
            ]
            codes.append(read.data)
        m.d.comb += self.codes.eq(Cat(codes))
        with m.If(self.query_i.valid & self.query_i.ready):
            m.d.sync += row.eq(row + 1)
            with m.If(row == config.rows - 1):
                m.d.sync += [row.eq(0), whole.eq(1)]
        m.d.comb += [loaded_next.eq(loaded), filling_next.eq(filling)]
        with m.If(self.release):
            m.d.comb += loaded_next.bit_select(self.slot, 1).eq(0)
        with m.If(done):
            m.d.comb += [
                loaded_next.bit_select(filling, 1).eq(1),
                filling_next.eq(Mux(filling == config.heads - 1, 0, filling + 1)),
            ]
            m.d.sync += whole.eq(0)
        m.d.sync += [
            loaded.eq(loaded_next),
            filling.eq(filling_next),
            free.eq(~loaded_next.bit_select(filling_next, 1)),
            self.loaded.eq(loaded_next.bit_select(self.slot_next, 1)),
        ]
        return m


class _Pairs(wiring.Component):
    """Operations, one pair at a time: which context it belongs to, which query it meets.

    ``o_valid``: a pair, or an operation without any, begins its way in this cycle.  No more begin
    than there is room for at the end of the way: ``pair_left`` and ``context_left`` make room.
    """

    op_i: stream.Interface
    slot: Signal
    slot_next: Signal
    loaded: Signal
    release: Signal
    key_valid: Signal
    key_ready: Signal
    pair_left: Signal
    context_left: Signal
    o_valid: Signal
    o: data.View

    def __init__(self, config: AttentionConfig):
        self.config = config
        super().__init__({
            "op_i": In(stream.Signature(operation_layout(config))),
            "slot": Out(bits_for(config.heads)),
            "slot_next": Out(bits_for(config.heads)),
            "loaded": In(1),
            "release": Out(1),
            "key_valid": In(1),
            "key_ready": Out(1),
            "pair_left": In(1),
            "context_left": In(1),
            "o_valid": Out(1),
            "o": Out(token_layout(config.online)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        op = Signal(operation_layout(config), reset_less=True)  # count: what is left of it
        valid, started = Signal(), Signal()
        may, goes, idle = Signal(), Signal(), Signal()
        none, ends = Signal(reset_less=True), Signal(reset_less=True)  # count is 0, at most 1
        room = credit(m, "room", config.ahead, self.pair_left, self.o_valid)
        contexts = credit(m, "contexts", config.closings, self.context_left, self.release)
        m.d.comb += [
            may.eq(valid & self.loaded & room & (contexts | ~(op.closes & ends))),
            idle.eq(valid & ~op.opens & ~op.closes & none & ~started),
            goes.eq(may & (self.key_valid | none) & ~idle),
            self.key_ready.eq(may & ~none),
            self.slot_next.eq(self.slot),
            self.release.eq(self.o_valid & self.o.last),
            self.o_valid.eq(goes),
            self.o.context.eq(op.context),
            self.o.first.eq(op.opens & ~started),
            self.o.last.eq(op.closes & ends),
            self.o.skip.eq(none),
            self.op_i.ready.eq(~valid | ((goes | idle) & ends)),
        ]
        with m.If(goes):
            m.d.sync += [
                op.count.eq(op.count - 1),
                ends.eq(op.count <= 2),
                none.eq(op.count == 1),
                started.eq(1),
            ]
        # Queries come in the order of the operations that open.
        m.submodules.slots = slots = Memory(shape=self.slot.shape(), depth=config.heads, init=[])
        write, read = slots.write_port(), slots.read_port(domain="comb")
        opened = Signal.like(self.slot)
        m.d.comb += [
            write.addr.eq(self.op_i.p.context),
            write.data.eq(opened),
            write.en.eq(self.op_i.valid & self.op_i.ready & self.op_i.p.opens),
            read.addr.eq(self.op_i.p.context),
        ]
        with m.If(self.op_i.ready):
            m.d.sync += [
                valid.eq(self.op_i.valid),
                started.eq(0),
                op.eq(self.op_i.p),
                ends.eq(self.op_i.p.count <= 1),
                none.eq(self.op_i.p.count == 0),
            ]
            m.d.comb += self.slot_next.eq(Mux(self.op_i.p.opens, opened, read.data))
        m.d.sync += self.slot.eq(self.slot_next)
        with m.If(write.en):
            m.d.sync += opened.eq(Mux(opened == config.heads - 1, 0, opened + 1))
        return m


class _Scores(wiring.Component):
    """Scores of keys, ``config.score_latency`` cycles after they came; nothing waits.

    Registers: inputs, half and whole products, tree, halves of the product with the scale, their
    sum, and the three of the rounding.
    """

    key: data.View
    query: data.View
    scale: data.View
    i_valid: Signal
    i: data.View
    o_valid: Signal
    o: data.View

    def __init__(self, config: AttentionConfig):
        self.config = config
        codes = data.ArrayLayout(signed(config.code_width), config.head_dim)
        peak = unsigned(config.key_scale_width)
        scale = peak_scale_layout(config.key_scale_width, config.score_scale)
        super().__init__({
            "key": In(codes_layout(config, config.head_dim, scale=peak)),
            "query": In(codes),
            "scale": In(scale),
            "i_valid": In(1),
            "i": In(token_layout(config.online)),
            "o_valid": Out(1),
            "o": Out(token_layout(config.online, up=signed(config.score_width + 1))),
        })

    def elaborate(self, platform):
        m = Module()
        config, one = self.config, Const(1, 1)
        valid = delay(m, "valid", self.i_valid, config.score_latency, reset_less=False)
        token = delay(m, "token", self.i, config.score_latency)
        key = delay(m, "key", self.key, 1)
        query = delay(m, "query", self.query, 1)
        scale = delay(m, "scale", self.scale, 1)

        terms = []
        for lane in range(config.head_dim):
            y = product(m, platform, f"product_{lane}", config, one, key.codes[lane], query[lane])
            terms.append(delay(m, f"term_{lane}", y, 1))
        level = 0
        while len(terms) > 1:
            level += 1
            terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
            if level % config.stage == 0 or len(terms) == 1:
                terms = [delay(m, f"sum_{level}_{n}", term, 1) for n, term in enumerate(terms)]
        dot = terms[0]

        # Peak of the key times the query's scale, beside the products.
        both = Signal(config.key_scale_width + MANTISSA, name="both", reset_less=True)
        m.d.sync += both.eq(key.scale * scale.mantissa)
        both = delay(m, "factor", both, config.tree_registers + 1)
        shift = delay(m, "shift", scale.shift, config.tree_registers + 4)
        whole = multiplied(m, "score", one, dot, both)
        score = requantised(
            m, "score", one, whole, shift, config.score_shifts[0], config.score_width
        )
        m.d.comb += [
            self.o_valid.eq(valid),
            self.o.up.eq(rounded_up(score, config.score_fraction)),
            *(self.o[name].eq(token[name]) for name in ("context", "first", "last", "skip")),
        ]
        return m


HALF = 17
"""Bits of the lower part of a factor: signed and unsigned parts both fit a multiplier."""


def multiplied(m, name: str, enable, a, b):
    """Signed ``a`` times unsigned ``b``, in two registers, out of halves."""

    def parts(value):
        if len(value) <= HALF + value.shape().signed:
            return [(value, 0)]
        high = value[HALF:].as_signed() if value.shape().signed else value[HALF:]
        return [(value[:HALF], 0), (high, HALF)]

    total = Signal(signed(len(a) + len(b)), name=f"{name}_product", reset_less=True)
    partial = []
    for one, up in parts(a):
        for other, more in parts(b):
            y = one * other
            held = Signal(y.shape(), name=f"{name}_part_{len(partial)}", reset_less=True)
            partial.append(held << up + more)
            with m.If(enable):
                m.d.sync += held.eq(y)
    with m.If(enable):
        m.d.sync += total.eq(sum(partial[1:], partial[0]))
    return total


def product(m, platform, name: str, config: AttentionConfig, enable, a, b):
    """Product of two signed values of ``code_width`` bits, with a register half way."""
    if config.products == "multiply":
        y = Signal(signed(len(a) + len(b)), name=name, reset_less=True)
        with m.If(enable):
            m.d.sync += y.eq(a * b)
        return y
    half = len(b) // 2 + 1
    part = BoothProductConfig(
        a_width=len(a),
        digits=len(b) // 2,
        structure=config.products,
        stage=half if config.products == "rows" else half + half % 2,
    )
    return place(m, platform, name, BoothProduct(part), a=a, b=b, enable=enable).y


class _Mixer(wiring.Component):
    """Sums of values times weights, for one context at a time; the others lie in memory.

    The sums are a ring of rows of ``lanes``.  In a turn every row leaves at the bottom and one
    enters at the top: that of another context, or zeros.  Rows that leave go to memory, or, of a
    context that closes, out, where there must be ``room`` for all of them as they ``drain``.
    Otherwise a pair is added every cycle, all sums shifted right before by one bit where the level
    rises; more bits take a cycle each.

    A turn is made for the oldest pair there is, even if its value has not come: ``head_i`` has it
    since its score is known.  The pair that is added next waits in registers, half multiplied.
    """

    i: stream.Interface
    head_i: stream.Interface
    scale_i: stream.Interface
    o_valid: Signal
    o: data.View
    room: Signal
    drain: Signal
    mantissa: Signal
    shift: Signal

    def __init__(self, config: AttentionConfig):
        self.config = config
        online = config.online
        made = reciprocal_layout(online)
        low, high = config.mix_shifts
        super().__init__({
            "i": In(stream.Signature(pair_layout(config))),
            "head_i": In(stream.Signature(head_layout(online))),
            "scale_i": In(stream.Signature(made)),
            "o_valid": Out(1),
            "o": Out(row_layout(config)),
            "room": In(1),
            "drain": Out(1),
            "mantissa": Out(MANTISSA),
            "shift": Out((high - low).bit_length()),
        })

    def elaborate(self, platform):
        m = Module()
        config, online = self.config, self.config.online
        pair = data.View(
            weight_layout(online), Signal(weight_layout(online).size, name="pair", reset_less=True)
        )
        valid = Signal(name="pair_valid")
        some, more = Signal(reset_less=True), Signal(reset_less=True)  # of shift: any, above 1
        context = Signal.like(pair.context, reset_less=True)  # whose sums these are, if held
        held, clean, closing = Signal(), Signal(), Signal()
        turning, draining = Signal(), Signal(reset_less=True)
        ends = Signal()  # a turn does, registered
        step = Signal(range(config.rows))
        to = Signal.like(context)
        to_any, to_first = Signal(reset_less=True), Signal(reset_less=True)
        lowers = Signal()  # with the term that it comes before

        head, token = self.head_i, self.i.p.token
        fits, here, lower = Signal(), Signal(), Signal()
        enable, accept, begin = Signal(), Signal(), Signal()
        m.d.comb += [
            fits.eq(held & (context == head.p.context) & (~head.p.first | clean)),
            here.eq(
                Mux(
                    turning,
                    ends & to_any,  # the turn was made for this pair
                    ~closing & fits & head.valid,
                )
            ),
            accept.eq(valid & here & ~more),
            lower.eq(valid & here & some),
            enable.eq(~valid | accept),
            self.i.ready.eq(enable),
            head.ready.eq(accept),
            self.scale_i.ready.eq(~turning & closing & self.room),
            self.drain.eq(self.scale_i.valid & self.scale_i.ready),
            begin.eq(
                Mux(
                    closing,
                    self.drain,
                    ~turning & head.valid & ~fits,
                )
            ),
        ]
        octave = Signal.like(pair.octave, reset_less=True)
        with m.If(begin):
            m.d.sync += [
                turning.eq(1),
                draining.eq(closing),
                closing.eq(0),
                step.eq(0),
                ends.eq(config.rows == 1),
                to.eq(head.p.context),
                to_first.eq(head.p.first),
                to_any.eq(head.valid),
            ]
        with m.If(self.drain):
            m.d.sync += [
                self.mantissa.eq(self.scale_i.p.mantissa),
                self.shift.eq(self.scale_i.p.shift - octave),
            ]
        with m.If(turning):
            m.d.sync += [step.eq(step + 1), ends.eq(step == config.rows - 2)]
        with m.If(ends):
            m.d.sync += [
                turning.eq(0),
                context.eq(to),
                held.eq(to_any),
                clean.eq(to_first),
            ]
        m.d.sync += lowers.eq(lower)
        with m.If(lower):
            m.d.sync += [pair.shift.eq(pair.shift - 1), more.eq(pair.shift > 2)]
        with m.If(accept):
            m.d.sync += [clean.eq(0), closing.eq(pair.last), octave.eq(pair.octave)]
        with m.If(enable):
            m.d.sync += [
                valid.eq(self.i.valid),
                pair.eq(token),
                some.eq(token.shift != 0),
                more.eq(token.shift > 1),
            ]

        row = data.ArrayLayout(signed(config.sum_width), config.lanes)
        m.submodules.memory = memory = Memory(shape=row, depth=config.heads << len(step), init=[])
        write, read = memory.write_port(), memory.read_port()
        bottom, top = Signal(row), Signal(row)
        after = Signal.like(step)
        m.d.comb += [
            after.eq(step + turning),
            write.addr.eq(Cat(step, context)),
            write.data.eq(bottom),
            write.en.eq(turning & held & ~draining),
            read.addr.eq(Mux(turning, Cat(after, to), Cat(Const(0, len(step)), head.p.context))),
            self.o_valid.eq(turning & draining),
            self.o.x.eq(bottom),
            self.o.first.eq(step == 0),
            self.o.last.eq(step == config.rows - 1),
        ]
        sums = []
        for lane in range(config.lanes):
            m.d.comb += top[lane].eq(Mux(to_first, 0, read.data[lane]))
        rest = Const(0, config.code_width - config.weight_bits)
        weight = Cat(token.weight, rest).as_signed()
        for index in range(config.head_dim):
            y = product(
                m, platform, f"product_{index}", config, enable, self.i.p.codes[index], weight
            )
            term = Signal(signed(len(y)), name=f"term_{index}", reset_less=True)
            m.d.sync += term.eq(Mux(accept, y, 0))
            total = Signal(signed(config.sum_width), name=f"sum_{index}", reset_less=True)
            sums.append((total, term))
        for index, (total, term) in enumerate(sums):
            above = index + config.lanes
            enters = sums[above][0] if above < len(sums) else top[above - len(sums)]
            kept = Signal.like(total, name=f"kept_{index}")
            m.d.comb += kept.eq(Mux(lowers, total >> 1, total))
            m.d.sync += total.eq(Mux(turning, enters, kept + term))
        m.d.comb += [bottom[lane].eq(sums[lane][0]) for lane in range(config.lanes)]
        return m


def row_layout(config: AttentionConfig) -> data.StructLayout:
    return data.StructLayout({
        "x": data.ArrayLayout(signed(config.sum_width), config.lanes),
        "first": unsigned(1),
        "last": unsigned(1),
    })


class _Finish(wiring.Component):
    """Rows of sums times a scale, rounded and saturated.

    The scale is that of the row that came a cycle before.  ``room`` for all rows of a result: from
    where it ``begins`` on nothing waits.
    """

    begins: Signal
    room: Signal
    i_valid: Signal
    i: data.View
    mantissa: Signal
    shift: Signal
    o: stream.Interface

    LATENCY = 3 + REGISTERS

    def __init__(self, config: AttentionConfig):
        self.config = config
        low, high = config.mix_shifts
        self.result = data.StructLayout({
            "x": data.ArrayLayout(signed(config.out_width), config.lanes),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "begins": In(1),
            "room": Out(1),
            "i_valid": In(1),
            "i": In(row_layout(config)),
            "mantissa": In(MANTISSA),
            "shift": In((high - low).bit_length()),
            "o": Out(stream.Signature(self.result)),
        })

    def elaborate(self, platform):
        m = Module()
        config, one = self.config, Const(1, 1)
        depth = 1 << ceil_log2(config.results * config.rows)
        m.submodules.results = results = Queue(self.result, depth)
        wiring.connect(m, results.o, wiring.flipped(self.o))
        leaves = results.o.valid & results.o.ready & results.o.p.last
        m.d.comb += self.room.eq(credit(m, "places", depth // config.rows, leaves, self.begins))
        valid = delay(m, "valid", self.i_valid, self.LATENCY, reset_less=False)
        marks = delay(m, "marks", Cat(self.i.first, self.i.last), self.LATENCY)
        m.d.comb += [
            results.i.valid.eq(valid),
            results.i.p.first.eq(marks[0]),
            results.i.p.last.eq(marks[1]),
        ]
        row = delay(m, "row", self.i.x, 1)
        shift = delay(m, "shift", self.shift, 2)
        for lane in range(config.lanes):
            y = multiplied(m, f"x_{lane}", one, row[lane], self.mantissa)
            m.d.comb += results.i.p.x[lane].eq(
                requantised(m, f"x_{lane}", one, y, shift, config.mix_shifts[0], config.out_width)
            )
        return m
