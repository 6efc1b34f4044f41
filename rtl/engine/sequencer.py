# SPDX-License-Identifier: Apache-2.0
"""Hands the operations of a program to the engine's units, once a token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import bits_for
from ..config import Config, param
from ._program import MODE, OPERATION, Kind, When


@dataclass(frozen=True, kw_only=True)
class SequencerConfig(Config):
    depth: int = param(64, "operations that the program memory holds", ge=2, le=4096)
    context: int = param(256, "most tokens of a text", ge=2, le=1 << 20)
    vocab: int = param(512, "tokens that there are", ge=2, le=1 << 20)
    rows: int = param(1, "tokens of a group, a power of two", ge=1, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"depth": 8, "context": 4, "vocab": 16},
        "rows": {"depth": 8, "context": 8, "vocab": 16, "rows": 4},
        "bitnet_2b": {"depth": 512, "context": 4096, "vocab": 128256},
    }
    papers: ClassVar[tuple[str, ...]] = ("VitaLLM, arXiv 2604.27396",)

    def faults(self) -> Iterator[str]:
        if self.rows & (self.rows - 1):
            yield f"rows must be a power of two, not {self.rows}"
        elif self.rows > self.context:
            yield f"rows must be at most context, {self.context}, not {self.rows}"

    @property
    def position_width(self) -> int:
        """Bits of a token's place in its text."""
        return bits_for(self.context)

    @property
    def row_width(self) -> int:
        """Bits of a token's place in its group."""
        return (self.rows - 1).bit_length()


def program_layout(config: SequencerConfig) -> data.StructLayout:
    """A write into the program memory; ``last`` completes the program."""
    return data.StructLayout({
        "at": unsigned(bits_for(config.depth)),
        **OPERATION.members,
        "last": unsigned(1),
    })


def token_layout(config: SequencerConfig) -> data.StructLayout:
    return data.StructLayout({
        "token": unsigned(bits_for(config.vocab)),
        "restart": unsigned(1),
        "sample": unsigned(1),
    })


def embed_layout(config: SequencerConfig) -> data.StructLayout:
    """What is asked of the embedding."""
    return data.StructLayout({
        "token": unsigned(bits_for(config.vocab)),
        "rows": unsigned(20),
        "shift": unsigned(5),
    })


def embedding_layout(config: SequencerConfig) -> data.StructLayout:
    """The same, and which vector it is for."""
    row = {"row": unsigned(config.row_width)} if config.rows > 1 else {}
    return data.StructLayout({**embed_layout(config).members, **row})


def norm_layout(config: SequencerConfig) -> data.StructLayout:
    return data.StructLayout({
        "source": unsigned(2),
        "plain": unsigned(1),
        "rows": unsigned(20),
        "address": unsigned(32),
        "eps": unsigned(32),
        **({"again": unsigned(1), "final": unsigned(1)} if config.rows > 1 else {}),
    })


def linear_layout(config: SequencerConfig) -> data.StructLayout:
    return data.StructLayout({
        "target": unsigned(3),
        "fresh": unsigned(1),
        "ends": unsigned(1),
        "slot": unsigned(12),
        "position": unsigned(config.position_width),
        "rows": unsigned(20),
        "words": unsigned(28),
        "address": unsigned(32),
        "mantissa": unsigned(16),
        "shift": unsigned(6),
        "mode": unsigned(MODE),
        **({"count": unsigned(config.row_width + 1)} if config.rows > 1 else {}),
    })


def attend_layout(config: SequencerConfig) -> data.StructLayout:
    return data.StructLayout({
        "newest": unsigned(1),
        "slot": unsigned(12),
        "position": unsigned(config.position_width),
        "heads": unsigned(20),
        "group": unsigned(20),
    })


class Sequencer(wiring.Component):
    """Walks the program once for every group of tokens and hands each operation to its unit.

    With one of ``rows`` every token is a group.

    After reset a program is written, up to the write marked ``last``; then tokens are taken, and no
    more writes until the next reset.  A token is taken when the one before has ended.  ``restart``
    makes it the first of a text, otherwise its position is one more than the last token's; a token
    that the context has no place for is taken and dropped.

    Then the operations are handed out in order, one a cycle: each when its unit takes it and none
    of the units in ``waits`` has work.  Operations whose ``when`` is ``SAMPLE`` or ``PREFILL`` are
    left out for tokens without or with ``sample``.  ``END`` waits until all units have finished.

    With more ``rows`` tokens are gathered, one a cycle, until there are ``rows``, one has
    ``sample``, or the context is full; a token with ``restart`` is not taken while others wait for
    their group to fill, it sends them off.  The tokens of a group have positions in a row.  An
    operation for the norm, the embedding or attention is handed out once for each of them in turn;
    one for the linear unit once, with their ``count`` and the position of the first.  Of a group
    that ends with ``sample``, operations of ``SAMPLE`` are for the last token alone and those of
    ``PREFILL`` for the ones before it; of a group without, as above.

    A unit has work from the cycle after an operation was handed to it until its transfer on
    ``done_i``; a transfer there waits until all units that it names have work.

    Latency: the first operation is offered 4 cycles after the last token of a group was taken, or
    3 after ``restart`` was offered to others that wait; throughput one a cycle.  Reset ends the
    tokens at work, the text, and the program's service.  Unknown kinds count as ``END``.

    Members
    -------
    program_i : :py:`In(stream.Signature(StructLayout))`
        ``at``, the fields of an operation that is written there, ``last``.
    token_i : :py:`In(stream.Signature(StructLayout))`
        ``token``, ``restart``, ``sample``.
    done_i : :py:`In(stream.Signature(StructLayout))`
        ``units``: bit 0 norm, 1 linear, 2 attend: one operation of each has been finished.
    embed_o, norm_o, linear_o, attend_o : :py:`Out(stream.Signature(StructLayout))`
        Operations of each unit, with the token or its position where they need it.  With more
        ``rows``: ``row`` is the position modulo ``rows``; ``again``, the operation was handed out
        for this group before; ``final``, it is not any more; ``count`` of tokens.

    Source: dependency-aware scheduling of VitaLLM; the form of the program is ours.
    """

    program_i: stream.Interface
    token_i: stream.Interface
    done_i: stream.Interface
    embed_o: stream.Interface
    norm_o: stream.Interface
    linear_o: stream.Interface
    attend_o: stream.Interface

    def __init__(self, config: SequencerConfig):
        self.config = config
        done = data.StructLayout({"units": unsigned(3)})
        super().__init__({
            "program_i": In(stream.Signature(program_layout(config))),
            "token_i": In(stream.Signature(token_layout(config))),
            "done_i": In(stream.Signature(done)),
            "embed_o": Out(stream.Signature(embedding_layout(config))),
            "norm_o": Out(stream.Signature(norm_layout(config))),
            "linear_o": Out(stream.Signature(linear_layout(config))),
            "attend_o": Out(stream.Signature(attend_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.program = program = Memory(shape=OPERATION, depth=config.depth, init=[])
        write, read = program.write_port(), program.read_port()
        op, ahead = Signal(OPERATION, reset_less=True), Signal(range(config.depth))
        position = Signal(config.position_width)
        room = Signal(init=1)  # the context has a place for one more token
        begun = Signal()  # a text is under way
        complete = Signal()  # the program is
        token, sample = Signal.like(self.token_i.p.token, reset_less=True), Signal(reset_less=True)

        # An operation is in a register, the next one is what the memory gives, the one after that
        # is what it is asked for: what decides whether to go on is in no address.
        advance = Signal()
        m.d.comb += [
            write.addr.eq(self.program_i.p.at),
            *(write.data[name].eq(self.program_i.p[name]) for name in OPERATION.members),
            write.en.eq(self.program_i.valid & self.program_i.ready),
            read.addr.eq(ahead),
            read.en.eq(advance),
        ]
        group = _Group(m, config, op, sample) if config.rows > 1 else None
        if group:
            self._hand_out(m, op, group.position, group.token)
            m.d.comb += [
                self.embed_o.p.row.eq(group.position),
                self.norm_o.p.again.eq(group.again),
                self.norm_o.p.final.eq(~group.more),
                self.linear_o.p.count.eq(group.tokens),
            ]
        else:
            self._hand_out(m, op, position, token)
        given = {
            Kind.EMBED: self.embed_o,
            Kind.NORM: self.norm_o,
            Kind.LINEAR: self.linear_o,
            Kind.ATTEND: self.attend_o,
        }
        offer, issued = Signal(), Signal(5)
        for kind, port in given.items():
            m.d.comb += port.valid.eq(offer & (op.kind == kind))
            m.d.comb += issued[kind].eq(port.valid & port.ready)
        if group:
            with m.If(issued.any()):
                m.d.sync += group.row.eq(Mux(group.more, group.row + 1, 0))
        busy = self._busy(m, issued[Kind.NORM : Kind.ATTEND + 1])

        with m.FSM():
            with m.State("IDLE"):
                sent_off = group.count.any() & self.token_i.p.restart if group else 0
                m.d.comb += [
                    self.program_i.ready.eq(~complete),
                    # Not a function of a payload that nobody offers: who has none to offer may go
                    # by what is said here.
                    self.token_i.ready.eq(
                        complete & ~(self.token_i.valid & sent_off) if group else complete
                    ),
                ]
                m.d.sync += ahead.eq(0)
                if group:
                    with m.If(self.token_i.valid & sent_off):
                        m.next = "FETCH"
                with m.If(write.en & self.program_i.p.last):
                    m.d.sync += complete.eq(1)
                with m.If(self.token_i.valid & self.token_i.ready):
                    fits = self.token_i.p.restart | ~begun | room
                    opens = self.token_i.p.restart | ~begun
                    m.d.sync += [
                        token.eq(self.token_i.p.token),
                        sample.eq(self.token_i.p.sample),
                        begun.eq(1),
                        position.eq(Mux(opens, 0, position + 1)),
                    ]
                    with m.If(fits):
                        another = opens | (position != config.context - 2)
                        m.d.sync += room.eq(another)
                        if group:
                            group.take(m, self.token_i.p.token, Mux(opens, 0, position + 1))
                            with m.If(group.fills | self.token_i.p.sample | ~another):
                                m.next = "FETCH"
                        else:
                            m.next = "FETCH"
                    with m.Else():
                        m.d.sync += position.eq(position)
            with m.State("FETCH"):
                m.d.comb += advance.eq(1)
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += advance.eq(1)
                m.next = "ISSUE"
            with m.State("ISSUE"):
                others = op.when == When.PREFILL  # if any
                if group:
                    others = others & (group.count == 1)
                skips = ((op.when == When.SAMPLE) & ~sample) | (others & sample)
                with m.If(skips):
                    m.d.comb += advance.eq(1)
                with m.Elif((op.kind >= Kind.END) & (busy == 0)):
                    if group:
                        m.d.sync += group.count.eq(0)
                    m.next = "IDLE"
                with m.Elif(op.kind < Kind.END):
                    m.d.comb += [
                        offer.eq((busy & op.waits) == 0),
                        advance.eq(issued.any() & ~group.more if group else issued.any()),
                    ]
        with m.If(advance):
            m.d.sync += [ahead.eq(ahead + 1), op.eq(read.data)]
        return m

    def _hand_out(self, m: Module, op: Any, position: Any, token: Any) -> None:
        m.d.comb += [
            self.embed_o.p.token.eq(token),
            self.embed_o.p.rows.eq(op.rows),
            self.embed_o.p.shift.eq(op.value),
            self.norm_o.p.source.eq(op.unit),
            self.norm_o.p.plain.eq(op.flag),
            self.norm_o.p.rows.eq(op.rows),
            self.norm_o.p.address.eq(op.address),
            self.norm_o.p.eps.eq(op.value),
            self.linear_o.p.target.eq(op.unit),
            self.linear_o.p.fresh.eq(op.fresh),
            self.linear_o.p.ends.eq(op.flag),
            self.linear_o.p.slot.eq(op.slot),
            self.linear_o.p.position.eq(position),
            self.linear_o.p.rows.eq(op.rows),
            self.linear_o.p.words.eq(op.words),
            self.linear_o.p.address.eq(op.address),
            self.linear_o.p.mantissa.eq(op.value[:16]),
            self.linear_o.p.shift.eq(op.value[16:]),
            self.linear_o.p.mode.eq(op.value[24:]),
            self.attend_o.p.newest.eq(op.unit),
            self.attend_o.p.slot.eq(op.slot),
            self.attend_o.p.position.eq(position),
            self.attend_o.p.heads.eq(op.rows),
            self.attend_o.p.group.eq(op.words),
        ]

    def _busy(self, m: Module, issued: Any) -> Any:
        """Whether each unit has work; ``issued`` is what it gets now."""
        counts = [Signal(8, name=f"work_{unit}") for unit in range(3)]
        busy = Signal(3)
        done = Signal(3)
        m.d.comb += [
            self.done_i.ready.eq((self.done_i.p.units & ~busy) == 0),
            done.eq(Mux(self.done_i.valid & self.done_i.ready, self.done_i.p.units, 0)),
        ]
        for unit, count in enumerate(counts):
            m.d.sync += [
                count.eq(count + issued[unit] - done[unit]),
                busy[unit].eq(issued[unit] | (busy[unit] & ~(done[unit] & (count == 1)))),
            ]
        return busy


class _Group:
    """Tokens that share a walk through the program, and the one that an operation is for now.

    ``count`` of them are there; ``fills``: the next one completes the group.  ``row``: how often
    the operation was handed out; ``again``: it was; ``more``: it will be.  ``tokens``: for how many
    it is.  ``token`` and ``position`` are those of the one it is handed out for.
    """

    def __init__(self, m: Module, config: SequencerConfig, op: Any, sample: Signal):
        m.submodules.tokens = tokens = Memory(
            shape=unsigned(bits_for(config.vocab)), depth=config.rows, init=[]
        )
        self.write, read = tokens.write_port(), tokens.read_port(domain="comb")
        self.count = Signal(config.row_width + 1, name="group_count")
        self.row = Signal(config.row_width, name="group_row")
        self.tokens = Signal.like(self.count, name="group_tokens")
        self.more = Signal(name="group_more")
        self.first = Signal(config.position_width, name="group_first", reset_less=True)
        self.position = Signal.like(self.first, name="group_position")
        self.token, self.fills = read.data, self.count == config.rows - 1
        at, single = Signal(config.row_width, name="group_at"), Signal(name="group_single")
        self.again = Signal(name="group_again")
        m.d.comb += [
            single.eq(op.when == When.SAMPLE),
            at.eq(Mux(single, self.count - 1, self.row)),
            read.addr.eq(at),
            self.position.eq(self.first + at),
            self.tokens.eq(Mux(single, 1, self.count - (sample & (op.when == When.PREFILL)))),
            self.again.eq(self.row != 0),
            self.more.eq((op.kind != Kind.LINEAR) & (self.row != self.tokens - 1)),
        ]

    def take(self, m: Module, token: Any, position: Any) -> None:
        """One more token joins."""
        m.d.comb += [
            self.write.en.eq(1),
            self.write.addr.eq(self.count),
            self.write.data.eq(token),
        ]
        m.d.sync += self.count.eq(self.count + 1)
        with m.If(self.count == 0):
            m.d.sync += self.first.eq(position)
