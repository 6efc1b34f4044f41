# SPDX-License-Identifier: Apache-2.0
"""Conversion of columns of integers to floats and back, one bit of every column at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, param

FLOATS = {"float32": (8, 23), "float16": (5, 10)}
"""Exponent and mantissa bits."""


@dataclass(frozen=True, kw_only=True)
class TypeConvertConfig(Config):
    to: str = param("float", "what integers or floats become", choices=("float", "int"))
    bits: int = param(32, "bits of a two's complement integer", ge=4, le=32)
    format: str = param("float32", "the float", choices=tuple(FLOATS))
    cols: int = param(64, "columns converted side by side", ge=1, le=1024)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"bits": 5, "format": "float16", "cols": 2},
        "half": {"bits": 24, "format": "float16", "cols": 16},
        "quantise": {"to": "int", "bits": 8},
        "quantise_half": {"to": "int", "bits": 13, "format": "float16", "cols": 16},
    }
    papers: ClassVar[tuple[str, ...]] = ("SAIL, arXiv 2509.25853",)

    @property
    def exponent(self) -> int:
        """Bits of a float's exponent."""
        return FLOATS[self.format][0]

    @property
    def mantissa(self) -> int:
        """Bits of a float's mantissa."""
        return FLOATS[self.format][1]

    @property
    def bias(self) -> int:
        return (1 << self.exponent - 1) - 1

    @property
    def float_rows(self) -> int:
        """Bit rows of a float."""
        return 1 + self.exponent + self.mantissa

    @property
    def rows_in(self) -> int:
        """Transfers that bring the operands of all columns."""
        return self.bits if self.to == "float" else self.float_rows

    @property
    def rows_out(self) -> int:
        """Transfers of the results of all columns."""
        return self.float_rows if self.to == "float" else self.bits

    @property
    def moves(self) -> int:
        """Conditional moves of the number: by each power of two below ``bits``."""
        return ceil_log2(self.bits)

    @property
    def rounds(self) -> bool:
        """Whether integers have more bits than a significand."""
        return self.bits > self.mantissa + 1

    @property
    def overflows(self) -> bool:
        """Whether an integer may be beyond ``2**(bias + 1)``, which makes infinity by itself."""
        return self.bits - 2 > self.bias

    @property
    def max_scale(self) -> int:
        """To int, larger scales count as this: the smallest normal float is no larger integer."""
        return self.bits - 3 + self.bias

    @property
    def depth(self) -> int:
        """Rows of the memory: the number, and above it its exponent."""
        return self.bits + self.exponent

    @property
    def program(self) -> tuple["Step", ...]:
        """What is done to the rows when all operands are there, a step each cycle."""
        return tuple(_to_float(self) if self.to == "float" else _to_int(self))

    @property
    def period(self) -> int:
        """Cycles of one conversion of all columns."""
        return self.rows_in + len(self.program)

    @property
    def latency(self) -> int:
        """Cycles from taking the last row of operands to the first row of results."""
        return len(self.program) - self.rows_out + 2


class Kind(Enum, shape=unsigned(3)):
    """What a step does with the bits ``a`` and ``b`` of each column; see the methods below."""

    HEAD = 0
    MOVE = 1
    ROUND = 2
    OUT = 3
    SIGN = 4
    CARRY = 5
    FIELD = 6
    PREPARE = 7


class Step(NamedTuple):
    """One cycle: two rows to read, the first of which may be written, and what is done to them.

    ``a`` and ``b`` may be None, for rows of zeros; then ``row`` is what is written.
    """

    kind: Kind
    a: int | None = None
    b: int | None = None
    row: int = 0
    writes: bool = False
    one: bool = False  # bit of a constant that is added
    seen: bool = False  # goes into ``seen``, where an OR or AND of rows is made
    lost: bool = False  # goes into ``lost``
    final: bool = False


def _to_float(config: TypeConvertConfig) -> Iterator[Step]:
    """Magnitude; leading one to the top; is it too large; rounding; out, the lowest bits first."""
    n, mantissa, exponent = config.bits, config.mantissa, config.exponent
    top = n - 1 - mantissa  # the significand's lowest row

    def tested(row: int, step: int) -> bool:
        """Whether a row decides on the move by ``2**step``; the top one on whether there is a 1."""
        return row >= n - ((1 << step) if step >= 0 else 1)

    for row in range(n):
        yield Step(Kind.CARRY, row, writes=True, seen=tested(row, config.moves - 1))
    for step in reversed(range(config.moves)):
        yield Step(Kind.HEAD, row=n + step, writes=True)
        for row in reversed(range(n)):
            other = row - (1 << step)
            yield Step(
                Kind.MOVE,
                row,
                other if other >= 0 else None,
                writes=True,
                seen=tested(row, step - 1),
                lost=step == 0 and row < top - 1,
            )
    yield Step(Kind.HEAD)
    # The exponent is that of the highest row less the zeros above: a constant and the moves' bits.
    constant = n + config.bias - (1 << config.moves)
    if config.overflows:
        for k in range(exponent):
            one = bool(constant + 1 >> k & 1)  # this overflows where the exponent is the highest
            row = n + k if k < config.moves else None
            yield Step(Kind.PREPARE, row, one=one, final=k == exponent - 1)
    if config.rounds:
        yield Step(Kind.ROUND, top - 1, top)
    for row in range(top, n - 1):
        yield Step(Kind.OUT, row if row >= 0 else None)
    for k in range(exponent):
        row = n + k if k < config.moves else None
        yield Step(Kind.FIELD, row, one=bool(constant >> k & 1))
    yield Step(Kind.SIGN, final=True)


def _to_int(config: TypeConvertConfig) -> Iterator[Step]:
    """Hidden bit; how far the highest row is too high; moves down; rounding; out.

    Row ``n - 1`` counts ``2**(n - 2)`` and row 0 a half.
    """
    n, exponent = config.bits, config.exponent
    low = max(0, n - 1 - config.mantissa)  # rows below have no bits yet
    yield Step(Kind.PREPARE, row=n - 1, writes=True)
    for k in range(exponent + 3):
        yield Step(
            Kind.CARRY,
            n + k if k < exponent else None,
            writes=k < config.moves,
            one=k == 0,
            lost=config.moves <= k < exponent + 2,
            final=k == exponent + 2,
        )
    for step in range(config.moves):
        yield Step(Kind.HEAD, n + step)
        for row in range(max(0, low - (1 << step)), n):
            other = row + (1 << step)
            yield Step(
                Kind.MOVE,
                row if row >= low else None,
                other if other < n else None,
                row=row,
                writes=True,
                seen=row > 0,
                lost=row < 1 << step,
                final=step == config.moves - 1,
            )
        low = max(0, low - (1 << step))
    yield Step(Kind.ROUND, 0, 1)
    for row in range(1, n):
        yield Step(Kind.OUT, row)
    yield Step(Kind.SIGN, final=True)


def rows_layout(config: TypeConvertConfig) -> data.StructLayout:
    scale = {"scale": signed(config.exponent + 1)} if config.to == "int" else {}
    return data.StructLayout({
        "bits": data.ArrayLayout(unsigned(1), config.cols),
        **scale,
        "first": unsigned(1),
    })


class TypeConvert(wiring.Component):
    """Conversion of columns of integers to floats and back, one bit of every column at a time.

    A transfer is a bit row: one bit of the number of each column, the lowest bits first.
    ``rows_in`` of them are the operands, and ``rows_out`` of them the results; the float's rows are
    mantissa, exponent, sign.

    to float
        Two's complement integers of ``bits`` bits become the nearest float, ties to even; a
        ``float16`` that is too large becomes infinite.  These are the bits of numpy's ``astype``.
    to int
        ``clip(rint(x * 2**scale), -2**(bits - 1), 2**(bits - 1) - 1)``: rounded once to nearest,
        ties to even, then clamped.  ``scale`` is one for all columns, and ``max_scale`` at most:
        larger ones count as that.  Subnormals are numbers like others; infinities are clamped, and
        NaN like an infinity of its sign.

    It works as a memory that computes: bit rows in a memory, of which two are read and one is
    written each cycle, and beside each column a few latches and gates.  All columns do the same;
    where they differ, it is by a latch of theirs.  The row that is written is the first of those
    that were read in the cycle before.

    One conversion takes ``config.period`` cycles, of which ``rows_in`` take operands and
    ``rows_out`` offer results; the next operands are taken behind the last result.  To float it is
    ``bits`` cycles for the magnitude and ``bits + 1`` for each of ``log2(bits)`` conditional moves;
    the ORs that find the leading one are made of the rows on their way.  Latency is
    ``config.latency`` cycles from the last row of operands to the first of results.  All stops
    while an offered row is not taken.  Reset drops what is in flight.

    Restart: ``first`` drops an unfinished operand and begins a new one; behind a whole one it may
    be left out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``bits``: one of each column.  ``scale``, to int: signed, looked at with the first row.
        ``first``: begins an operand.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``bits``: one of each column.  ``last``: ends a result.

    Source: SAIL (arXiv 2509.25853) converts inside the compute memory; the algorithm, the memory's
    ports and the power of two are ours (docs/blocks/type_convert.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TypeConvertConfig):
        self.config = config
        results = data.StructLayout({
            "bits": data.ArrayLayout(unsigned(1), config.cols),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(rows_layout(config))),
            "o": Out(stream.Signature(results)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        program, cols = config.program, config.cols
        address = range(config.depth)
        word: Any = data.StructLayout({
            "kind": Kind,
            "a": address,
            "b": address,
            **dict.fromkeys(("a_some", "b_some", "writes", "one", "seen", "lost", "final"), 1),
        })
        m.submodules.rows = rows = Memory(shape=unsigned(cols), depth=config.depth, init=[])
        write, (a_port, b_port) = rows.write_port(), (rows.read_port(), rows.read_port())
        words: Any = [_word(step) for step in program]
        m.submodules.program = rom = Memory(shape=word, depth=len(program), init=words)
        next_step = rom.read_port()
        enable, runs, takes = Signal(), Signal(), Signal()
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            *(port.en.eq(enable) for port in (a_port, b_port, next_step)),
            self.i.ready.eq(enable & ~runs),
            takes.eq(self.i.valid & self.i.ready),
        ]

        # Operands come into rows of their own; behind the last one the program runs.  Its memory
        # is read two steps ahead: one is in the register behind it.
        count, at = Signal(range(config.rows_in)), Signal(range(config.rows_in))
        place = Signal(range(len(program)))
        loaded = Signal()
        m.d.comb += [
            at.eq(Mux(self.i.p.first, 0, count)),
            loaded.eq(takes & (at == config.rows_in - 1)),
            next_step.addr.eq(Mux((place == 0) | (place == len(program) - 1), loaded, place + 1)),
        ]
        with m.If(takes):
            m.d.sync += count.eq(Mux(loaded, 0, at + 1))
        step: Any = Signal(word, reset_less=True)
        with m.If(enable):
            m.d.sync += [
                runs.eq(loaded | (runs & (place != 0))),
                place.eq(next_step.addr),
                step.eq(next_step.data),
            ]

        # A step reads in one cycle and does the rest in the next.
        valid = Signal()
        does: Any = Signal(word, reset_less=True)
        m.d.comb += [a_port.addr.eq(step.a), b_port.addr.eq(step.b)]
        kinds = {kind: Signal(name=f"does_{kind.name.lower()}", reset_less=True) for kind in Kind}
        with m.If(enable):
            m.d.sync += [does.eq(step), valid.eq(runs)]
            m.d.sync += [flag.eq(step.kind == kind) for kind, flag in kinds.items()]
        a = a_port.data & does.a_some.replicate(cols)
        b = b_port.data & does.b_some.replicate(cols)
        moves = Signal()
        m.d.comb += moves.eq(enable & valid)
        given = Cat(self.i.p.bits)
        columns = self._to_float if config.to == "float" else self._to_int
        row, stored, written, shown = columns(m, takes, at, given, moves, does, kinds, a, b)
        m.d.comb += [
            write.addr.eq(Mux(runs, does.a, row)),
            write.data.eq(Mux(runs, written, given)),
            write.en.eq((moves & does.writes) | (takes & stored)),
        ]
        shows = kinds[Kind.OUT] | kinds[Kind.FIELD] | kinds[Kind.SIGN]
        with m.If(enable):
            m.d.sync += [
                self.o.valid.eq(valid & shows),
                Cat(self.o.p.bits).eq(shown),
                self.o.p.last.eq(does.final),
            ]
        return m

    def _latches(self, *names: str) -> list[Signal]:
        """One bit of each column."""
        return [Signal(self.config.cols, name=name, reset_less=True) for name in names]

    def _to_float(self, m: Module, takes, at, given, moves, does, kinds, a, b):
        """``found``: there is a one where it decides on a move; ``seen``: on the next one."""
        config, cols = self.config, self.config.cols
        sign, carry, found, seen = self._latches("sign", "carry", "found", "seen")
        lost = self._latches("lost")[0] if config.rounds else Const(0, cols)
        over = self._latches("over")[0] if config.overflows else Const(0, cols)
        adds, heads = kinds[Kind.CARRY], kinds[Kind.HEAD]
        term, one = a ^ (sign & adds.replicate(cols)), does.one.replicate(cols)
        total, above = term ^ one ^ carry, (term & one) | (carry & (term | one))
        above = above & ~heads.replicate(cols)
        if config.rounds:
            above = Mux(kinds[Kind.ROUND], a & (b | lost), above)
        written = Signal(cols)
        with m.If(adds):
            m.d.comb += written.eq(total)
        with m.Elif(heads):
            m.d.comb += written.eq(seen)
        with m.Else():
            m.d.comb += written.eq(select_each(found, a, b))
        with m.If(moves):
            m.d.sync += carry.eq(above)
            with m.If(does.seen):
                m.d.sync += seen.eq(seen | written)
            with m.If(heads):
                m.d.sync += [found.eq(seen), seen.eq(0)]
            if config.rounds:
                with m.If(does.lost):
                    m.d.sync += lost.eq(lost | written)
            if config.overflows:
                with m.If(kinds[Kind.PREPARE] & does.final):
                    m.d.sync += over.eq(above)
        with m.If(takes):
            m.d.sync += [sign.eq(given), carry.eq(given), seen.eq(0)]
            m.d.sync += lost.eq(0) if config.rounds else []
        # Of a zero nothing is found, and nothing but zeros is its mantissa.
        field = kinds[Kind.FIELD].replicate(cols)
        finite = select_each(over, field, total & found)
        return at, Const(1, 1), written, Mux(kinds[Kind.SIGN], sign, finite)

    def _to_int(self, m: Module, takes, at, given, moves, does, kinds, a, b):
        """``far``: nothing is left of it; ``over``: it is clamped; ``moved``: a move is made."""
        config, cols = self.config, self.config.cols
        n, mantissa = config.bits, config.mantissa
        first = max(0, mantissa + 1 - n)  # bits below go into ``lost``
        sign, carry, moved, ones, lost, far, over = self._latches(
            "sign", "carry", "moved", "ones", "lost", "far", "over"
        )
        left = Signal(signed(config.exponent + 3))
        in_field, stored, opens = Signal(), Signal(), Signal()
        m.d.comb += [
            opens.eq(at == 0),
            in_field.eq((at >= mantissa) & (at < mantissa + config.exponent)),
            stored.eq((at >= first if first else 1) & (at < mantissa + config.exponent)),
        ]
        row = Mux(in_field, at + (n - mantissa), at + (n - 1 - mantissa))

        # From the exponent of the highest row that of the number, 1 for subnormals.
        adds, heads = kinds[Kind.CARRY], kinds[Kind.HEAD]
        least = does.one.replicate(cols) & ~moved
        term = Mux(adds, ~(a | least), a ^ sign)
        bit = (adds & left[0]).replicate(cols)
        total, above = term ^ bit ^ carry, (term & bit) | (carry & (term | bit))
        up = a & (b | lost)
        kept = select_each(moved, b, a) & ~(far & does.final.replicate(cols))
        written = Signal(cols)
        with m.If(adds):
            m.d.comb += written.eq(total)
        with m.Elif(kinds[Kind.PREPARE]):
            m.d.comb += written.eq(moved)
        with m.Else():
            m.d.comb += written.eq(kept)
        with m.If(moves):
            with m.If(~kinds[Kind.PREPARE]):
                m.d.sync += carry.eq(Mux(kinds[Kind.ROUND], sign ^ up, above))
            with m.If(adds):
                m.d.sync += left.eq(left >> 1)
                with m.If(does.lost):
                    m.d.sync += far.eq(far | total)
                with m.If(does.final):
                    m.d.sync += over.eq(total | ones)
            with m.Elif(does.lost):
                m.d.sync += lost.eq(lost | (moved & a))
            with m.If(kinds[Kind.ROUND]):
                m.d.sync += over.eq(over | (ones & up & ~sign))
            with m.If(heads):
                m.d.sync += [moved.eq(a), ones.eq(~Const(0, cols))]
            with m.If(does.seen):
                m.d.sync += ones.eq(ones & kept)
        with m.If(takes):
            m.d.sync += [sign.eq(given), carry.eq(~Const(0, cols))]
            if first:
                with m.If(at < first):
                    m.d.sync += lost.eq(given | (lost & ~opens.replicate(cols)))
            else:
                m.d.sync += lost.eq(0)
            with m.If(in_field):
                m.d.sync += [moved.eq(moved | given), ones.eq(ones & given)]
            with m.If(opens):
                m.d.sync += [moved.eq(0), ones.eq(~Const(0, cols)), far.eq(0)]
                scale = self.i.p.scale
                m.d.sync += left.eq(
                    n - 2 + config.bias - Mux(scale > config.max_scale, config.max_scale, scale)
                )
        ends = kinds[Kind.SIGN]
        clamped = sign ^ (~ends).replicate(cols)
        return row, stored, written, select_each(over, clamped, total)


def select_each(choice, one, other):
    """Bit by bit ``one`` where ``choice``, else ``other``."""
    return (choice & one) | (~choice & other)


def _word(step: Step) -> dict[str, Any]:
    given = {name: getattr(step, name) for name in ("writes", "one", "seen", "lost", "final")}
    return {
        "kind": step.kind,
        "a": step.row if step.a is None else step.a,
        "b": step.b or 0,
        "a_some": step.a is not None,
        "b_some": step.b is not None,
        **{name: int(value) for name, value in given.items()},
    }
