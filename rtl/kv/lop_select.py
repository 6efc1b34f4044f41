# SPDX-License-Identifier: Apache-2.0
"""Leading One Prediction: the tokens worth attending to, by scores of powers of two."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from .._tree import reduce_tree
from ..config import Config, param


@dataclass(frozen=True, kw_only=True)
class LopSelectConfig(Config):
    head_dim: int = param(32, "elements of a vector, a multiple of lanes", ge=1, le=1024)
    lanes: int = param(4, "query codes per transfer", ge=1, le=256)
    code_width: int = param(8, "bits of a signed code", ge=2, le=16)
    context: int = param(256, "most tokens to choose from", ge=2, le=1 << 16)
    recent: int = param(1, "newest tokens, always chosen", ge=1, le=1024)
    detail: int = param(1, "bits of a score below its leading one that matter", ge=0, le=4)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "head_dim": 3,
            "lanes": 1,
            "code_width": 4,
            "context": 12,
            "recent": 2,
            "detail": 0,
        },
        "vitallm": {"head_dim": 128, "lanes": 8, "context": 2048},
    }
    papers: ClassVar[tuple[str, ...]] = ("VitaLLM, arXiv 2604.27396",)

    def faults(self) -> Iterator[str]:
        if self.head_dim % self.lanes:
            yield f"head_dim must be a multiple of lanes ({self.lanes}), not {self.head_dim}"

    @property
    def rows(self) -> int:
        """Transfers that bring one query."""
        return self.head_dim // self.lanes

    @property
    def one_width(self) -> int:
        """Bits of a leading-one index plus one, 0 standing for a code of 0."""
        return ceil_log2(self.code_width)

    @property
    def lead_width(self) -> int:
        """Bits of a leading-one code: sign and ``one_width``."""
        return 1 + self.one_width

    @property
    def score_bits(self) -> int:
        """Bits of the largest magnitude of a score."""
        return (self.head_dim << 2 * (self.code_width - 2)).bit_length()

    @property
    def buckets(self) -> int:
        """Classes of scores: sign, leading one and ``detail`` bits, and zero."""
        return 2 * (self.score_bits << self.detail) + 1

    @property
    def count_width(self) -> int:
        """Bits of a number of tokens."""
        return self.context.bit_length()

    @property
    def levels(self) -> int:
        """Registered levels of the tree that adds up a score."""
        return ceil_log2(self.head_dim)

    @property
    def count_latency(self) -> int:
        """Edges from the transfer of a key until its token is counted."""
        return self.levels + 5


def leading_one(code: Any, config: LopSelectConfig) -> Value:
    """Leading-one code of a signed code: sign on top of the leading one's index plus one."""
    negative = code[-1]
    magnitude = Mux(negative, -code, code)[: config.code_width]
    index = Const(0, config.one_width)
    for bit in range(config.code_width):  # the most negative code counts as the one above it
        index = Mux(magnitude[bit], min(bit, config.code_width - 2) + 1, index)
    return Cat(index[: config.one_width], negative)


class LopSelect(wiring.Component):
    """Chooses the ``keep`` of ``count`` tokens whose keys seem to go best with a query.

    Scores: ``sum over d of sign(q * k) * 2**(lo(q) + lo(k))`` with ``lo`` the index of the leading
    one, elements that are 0 left out; exact.  Buckets: a score's sign, its leading one and
    ``detail`` bits below it.  The newest ``recent`` tokens are always chosen and have no key here;
    of the ``count - recent`` older ones those in the highest buckets are, and from the bucket in
    which their number reaches ``keep - recent`` the oldest ones, as many as are missing.  So
    ``min(count, max(keep, recent))`` tokens are chosen, given in order of their index.

    A query comes as ``head_dim // lanes`` rows of codes, with one ``op_i`` and
    ``max(count - recent, 0)`` keys, oldest token first.  A key is given by its leading-one codes,
    see :func:`leading_one`; the query's are made here.

    Two passes, without a comparison of scores: one counts a histogram, the second starts at the
    threshold found in it.  The first pass of a query runs while the second of the one before does.
    Throughput: a key per cycle in the first pass and a cycle for the operation; ``buckets +
    count + 5`` cycles in the second.  Latency: the first token is offered ``buckets + 6`` edges or
    more after the last key was counted, which takes ``log2(head_dim) + 5`` edges.  The keys wait
    only between queries; the second pass stops while ``o`` is not taken.  Reset drops everything;
    the first query waits ``buckets`` cycles after it.

    Errors: ``count`` above ``context`` gives unspecified tokens.  ``count`` 0 gives none.

    Members
    -------
    query_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: signed; the most negative one counts as the one above it.
    op_i : :py:`In(stream.Signature(StructLayout))`
        ``count``: tokens to choose from.  ``keep``: tokens to choose.
    key_i : :py:`In(stream.Signature(StructLayout))`
        ``leads``: leading-one codes, ``head_dim`` of them.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``token``: index of a chosen one.  ``last`` of its query.

    Source: Leading One Prediction of VitaLLM.  Its sheet gives the surrogate and calls the choice
    comparison-free; the histogram is ours.
    """

    query_i: stream.Interface
    op_i: stream.Interface
    key_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: LopSelectConfig):
        self.config = config
        codes = data.ArrayLayout(signed(config.code_width), config.lanes)
        leads = data.ArrayLayout(unsigned(config.lead_width), config.head_dim)
        count = unsigned(config.count_width)
        token = unsigned((config.context - 1).bit_length())
        super().__init__({
            "query_i": In(stream.Signature(data.StructLayout({"codes": codes}))),
            "op_i": In(stream.Signature(data.StructLayout({"count": count, "keep": count}))),
            "key_i": In(stream.Signature(data.StructLayout({"leads": leads}))),
            "o": Out(stream.Signature(data.StructLayout({"token": token, "last": unsigned(1)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        # Two banks: a query fills one while the other is read.  ``busy`` from its operation until
        # its last token was read, ``ready`` from its last key on.
        self.busy, self.ready = Signal(2, init=0b11), Signal(2)
        width = config.count_width
        self.counts, self.olds, self.wants = (
            Array(Signal(width, name=f"{name}_{bank}", reset_less=True) for bank in range(2))
            for name in ("count", "old", "want")
        )
        self.walking, self.clearing = Signal(), Signal()
        self.walk_bank, self.walk_at = Signal(), Signal(range(config.buckets))

        found = self._first(m, platform)
        tallies = self._histogram(m, found)
        m.submodules.places = places = Memory(
            shape=unsigned(len(self.walk_at)), depth=2 << len(self.o.p.token), init=[]
        )
        self._record(m, found, places.write_port())
        self._second(m, tallies, places.read_port())
        return m

    def _first(self, m, platform):
        """Takes queries and keys; the bucket of each key, what bank it is for, and the end."""
        config = self.config
        loaded, active = (
            Signal(config.head_dim * config.lead_width, name=name, reset_less=True)
            for name in ("loaded", "active")
        )
        row, full = Signal(range(config.rows)), Signal()
        m.d.comb += self.query_i.ready.eq(~full)
        with m.If(self.query_i.valid & self.query_i.ready):
            codes = [
                leading_one(self.query_i.p.codes[lane], config) for lane in range(config.lanes)
            ]
            m.d.sync += [
                loaded.eq(Cat(loaded, *codes)[-len(loaded) :]),
                row.eq(Mux(row == config.rows - 1, 0, row + 1)),
                full.eq(row == config.rows - 1),
            ]

        bank, running, left = Signal(), Signal(), Signal(config.count_width)
        begin, take, close = Signal(), Signal(), Signal()
        old, want = Signal(config.count_width), Signal(config.count_width)
        op = self.op_i.p
        m.d.comb += [
            self.op_i.ready.eq(~running & full & ~self.busy.bit_select(bank, 1)),
            begin.eq(self.op_i.valid & self.op_i.ready),
            old.eq(Mux(op.count > config.recent, op.count - config.recent, 0)),
            want.eq(Mux(op.keep > config.recent, op.keep - config.recent, 0)),
            self.key_i.ready.eq(running),
            take.eq(running & self.key_i.valid),
            close.eq(Mux(running, take & (left == 1), begin & (old == 0))),
        ]
        with m.If(begin):
            m.d.sync += [
                active.eq(loaded),
                full.eq(0),
                left.eq(old),
                running.eq(old != 0),
                self.counts[bank].eq(op.count),
                self.olds[bank].eq(old),
                self.wants[bank].eq(want),
                self.busy.bit_select(bank, 1).eq(1),
            ]
        with m.If(take):
            m.d.sync += [left.eq(left - 1), running.eq(left != 1)]
        with m.If(close):
            m.d.sync += bank.eq(~bank)

        flags = Cat(take, close, bank)
        for cycle in range(config.count_latency - 1):
            later = Signal(3, name=f"flags_{cycle}")
            m.d.sync += later.eq(flags)
            flags = later
        return self._bucket(m, *self._score(m, platform, active)), *flags

    def _score(self, m, platform, active):
        """The score of the key taken ``levels + 1`` cycles ago: a value and whether to negate it.

        A sum has the sign of its first term put aside, so that every adder adds or subtracts and
        terms need no sign of their own.
        """
        config, width = self.config, self.config.lead_width
        level = []
        for lane in range(config.head_dim):
            one, other = active.word_select(lane, width), self.key_i.p.leads[lane]
            present = one[:-1].any() & other[:-1].any()
            # Exponents from 2; smaller means that there is no term.
            exponent = Signal(config.one_width + 1, name=f"exponent_{lane}", reset_less=True)
            negative = Signal(name=f"negative_{lane}", reset_less=True)
            m.d.sync += [
                exponent.eq(Mux(present, one[:-1] + other[:-1], 0)),
                negative.eq(one[-1] ^ other[-1]),
            ]
            term = Signal(signed(2 * config.code_width - 2), name=f"term_{lane}")
            bits = [exponent == bit + 2 for bit in range(len(term) - 1)]
            m.d.comb += term.eq(Cat(bits))
            level.append((term, negative))

        depth = 0
        while len(level) > 1:
            level = [
                self._joined(m, platform, f"{depth}_{at}", *level[at : at + 2])
                for at in range(0, len(level), 2)
            ]
            depth += 1
        return level[0]

    def _joined(self, m, platform, name, one, other=None):
        """Sum of two values with signs aside, or one such value, a cycle later."""
        total, negative = one
        if other:
            opposite = negative ^ other[1]
            add = AddSelect(AddSelectConfig(width=max(len(total), len(other[0]))))
            add = place(
                m,
                platform,
                f"add_{name}",
                add,
                a=total,
                b=other[0],
                enable=1,
                invert=opposite,
                carry=opposite,
            )
            total = add.y
        held = Signal(signed(len(total)), name=f"sum_{name}", reset_less=True)
        held_negative = Signal(name=f"negative_{name}", reset_less=True)
        m.d.sync += [held.eq(total), held_negative.eq(negative)]
        return held, held_negative

    def _bucket(self, m, value, negated):
        """The bucket of a score, three cycles later."""
        config, bits = self.config, self.config.score_bits
        magnitude, negative = Signal(bits, reset_less=True), Signal(2, reset_less=True)
        m.d.sync += [
            magnitude.eq(Mux(value < 0, -value, value)),
            negative.eq(Cat((value < 0) ^ negated, negative[0])),
        ]
        # Which bit leads, by position; index of the class among those of its sign.
        choices = []
        for bit in range(bits):
            leads = magnitude[bit] & ~magnitude[bit + 1 :].any()
            below = Cat(Const(0, config.detail), magnitude)[bit : bit + config.detail]
            choices.append(Mux(leads, Cat(below, Const(bit, ceil_log2(bits))), 0))
        index, some = Signal(len(choices[0]), reset_less=True), Signal(reset_less=True)
        m.d.sync += [index.eq(reduce_tree(operator.or_, choices)), some.eq(magnitude.any())]
        bucket = Signal(range(config.buckets), reset_less=True)
        zero = config.buckets // 2
        m.d.sync += bucket.eq(
            Mux(~some, zero, Mux(negative[1], zero - 1 - index, zero + 1 + index))
        )
        return bucket

    def _histogram(self, m, found):
        """Tokens of each bucket, a memory a bank; what the walk reads of each.

        A tally is read in one cycle and written in the next; the one that is being written is used
        where the next key falls into the same bucket.
        """
        config = self.config
        bucket, counted, _, bank = found
        reads, tally, raised = [], Signal(config.count_width), Signal(config.count_width)
        at, adds, of_bank = Signal.like(bucket), Signal(), Signal()
        m.d.sync += [at.eq(bucket), adds.eq(counted), of_bank.eq(bank)]
        for index in range(2):
            memory = Memory(shape=unsigned(config.count_width), depth=config.buckets, init=[])
            m.submodules[f"tallies_{index}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            writes, clears = Signal(), Signal()
            m.d.comb += [
                writes.eq(adds & (of_bank == index)),
                clears.eq(self.clearing | (self.walking & (self.walk_bank == index))),
                read.addr.eq(Mux(self.busy[index] & ~self.ready[index], bucket, self.walk_at)),
                write.addr.eq(Mux(writes, at, self.walk_at)),
                write.en.eq(writes | clears),
                write.data.eq(Mux(writes, raised, 0)),
            ]
            reads.append(read.data)
        again = adds & (at == bucket) & (of_bank == bank)
        m.d.sync += tally.eq(Mux(again, raised, Mux(bank, reads[1], reads[0])))
        m.d.comb += raised.eq(tally + 1)
        return reads

    def _record(self, m, found, port):
        """The bucket of every token, for the second pass; ends the first one."""
        bucket, counted, closes, bank = found
        token, closed = Signal.like(self.o.p.token), Signal(2)
        m.d.comb += [
            port.en.eq(counted),
            port.addr.eq(Cat(token, bank)),
            port.data.eq(bucket),
        ]
        with m.If(counted):
            m.d.sync += token.eq(token + 1)
        with m.If(closes):
            m.d.sync += token.eq(0)
        m.d.sync += closed.eq(Cat(closes & ~bank, closes & bank))
        with m.If(closed.any()):
            m.d.sync += self.ready.eq(self.ready | closed)

    def _second(self, m, tallies, port):
        """Finds the threshold from the top bucket down, then the tokens above it."""
        config = self.config
        top, width = config.buckets - 1, config.count_width
        bank, at = self.walk_bank, self.walk_at
        need, quota = (Signal(width, name=name, reset_less=True) for name in ("need", "quota"))
        tally, bucket = Signal(width, reset_less=True), Signal.like(at, reset_less=True)
        threshold, reached = Signal.like(at, reset_less=True), Signal()
        weighing = Signal()
        token = Signal(width)
        count, old = Signal(width), Signal(width)
        m.d.comb += [count.eq(self.counts[bank]), old.eq(self.olds[bank])]

        # Beside the bucket of a token, two cycles after its address: index, last, always chosen.
        step = data.StructLayout({
            "valid": 1,
            "token": len(self.o.p.token),
            "last": 1,
            "fresh": 1,
        })
        issued, read, held = (Signal(step, name=name) for name in ("issued", "read", "held"))
        place = Signal.like(at, name="place", reset_less=True)
        enable, equal, chosen = Signal(), Signal(), Signal()
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            port.en.eq(enable),
            port.addr.eq(Cat(issued.token, bank)),
            issued.token.eq(token),
            issued.last.eq(token + 1 == count),
            issued.fresh.eq(token >= old),
            equal.eq(place == threshold),
            chosen.eq(held.fresh | (place > threshold) | (equal & (quota != 0))),
        ]
        with m.If(enable):
            m.d.sync += [
                read.eq(issued),
                held.eq(read),
                place.eq(port.data),
                self.o.valid.eq(held.valid & chosen),
                self.o.p.token.eq(held.token),
                self.o.p.last.eq(held.last),
            ]
            with m.If(issued.valid):
                m.d.sync += token.eq(token + 1)
            with m.If(held.valid & ~held.fresh & equal & (quota != 0)):
                m.d.sync += quota.eq(quota - 1)

        m.d.sync += [
            tally.eq(Mux(bank, tallies[1], tallies[0])),
            bucket.eq(at),
            weighing.eq(self.walking),
        ]
        with m.If(weighing & ~reached):
            with m.If((tally >= need) | (bucket == 0)):
                m.d.sync += [reached.eq(1), threshold.eq(bucket), quota.eq(need)]
            with m.Else():
                m.d.sync += need.eq(need - tally)

        with m.FSM():
            with m.State("CLEAR"):
                m.d.comb += self.clearing.eq(1)
                m.d.sync += at.eq(at + 1)
                with m.If(at == top):
                    m.d.sync += self.busy.eq(0)
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += [
                    at.eq(top),
                    need.eq(self.wants[bank]),
                    reached.eq(0),
                    token.eq(0),
                ]
                with m.If(self.ready.bit_select(bank, 1)):
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += self.walking.eq(1)
                m.d.sync += at.eq(at - 1)
                with m.If(at == 0):
                    m.next = "WEIGH"
            with m.State("WEIGH"):
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.comb += issued.valid.eq(token != count)
                with m.If(~issued.valid & ~read.valid & ~held.valid):
                    m.d.sync += [
                        self.busy.bit_select(bank, 1).eq(0),
                        self.ready.bit_select(bank, 1).eq(0),
                        bank.eq(~bank),
                    ]
                    m.next = "WAIT"
