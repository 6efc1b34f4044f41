# SPDX-License-Identifier: Apache-2.0
"""What runs the micro engine's microcode."""

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import bits_for
from ._microcode import ARGUMENT, DATA, INDEXED, INSTRUCTION, Op, Register, Source
from ._routines import microcode

WORD = 16
"""Bits of a word of the store."""
LOCAL = 32
"""Bits of a word of local memory."""
ACC = 56
"""Bits of the accumulator: the gate's product has 52."""
X = 48
"""Bits of the multiplicand; the other factor has :data:`FACTOR`."""
FACTOR = 18
DIVISOR = 24
"""Bits that quotients have room for, one of them behind the point."""

TOKEN = data.StructLayout({"token": unsigned(14), "restart": unsigned(1), "sample": unsigned(1)})
ANSWER = data.StructLayout({"token": unsigned(14)})
TAP = data.StructLayout({"value": signed(LOCAL)})
CODE = data.StructLayout({"code": signed(8), "last": 1})
WORDS = data.StructLayout({"address": unsigned(WORD), "words": unsigned(WORD), "ends": 1})
"""A projection: where its weights are, and whether it is the last one of its vector."""


class Arithmetic(wiring.Component):
    """Accumulator and multiplicand: one adder behind a shifter on one side, products on the other.

    Members
    -------
    op, b : the instruction and its operand.
    amount : how far is shifted.
    acts, done : the instruction is carried out in this cycle; it ends with it.
    acc : the accumulator.
    """

    op: Signal
    b: Signal
    amount: Signal
    acts: Signal
    done: Signal
    acc: Signal

    def __init__(self) -> None:
        super().__init__({
            "op": In(6),
            "b": In(signed(LOCAL)),
            "amount": In(6),
            "acts": In(1),
            "done": In(1),
            "acc": Out(signed(ACC)),
        })

    def elaborate(self, platform):
        m = Module()
        acc, b, x = self.acc, self.b, Signal(signed(X))
        product, shifted = Signal(signed(ACC)), Signal(signed(ACC + 1))
        m.d.sync += product.eq(x * b[:FACTOR].as_signed())
        m.d.comb += shifted.eq(Cat(0, acc).as_signed() >> self.amount)
        doubled, quotient = acc[:-1] << 1, acc[1:DIVISOR]
        up = acc[0] & (acc[1] | acc[DIVISOR:].any())

        one, other, carry = Signal(signed(ACC)), Signal(signed(ACC)), Signal()
        with m.Switch(self.op):
            with m.Case(Op.LD):
                m.d.comb += other.eq(b)
            with m.Case(Op.ADD):
                m.d.comb += [one.eq(acc), other.eq(b)]
            with m.Case(Op.SUB, Op.MIN, Op.MAX):
                m.d.comb += [one.eq(acc), other.eq(~b), carry.eq(1)]
            with m.Case(Op.MUL):
                m.d.comb += other.eq(product)
            with m.Case(Op.MAC):
                m.d.comb += [one.eq(acc), other.eq(product)]
            with m.Case(Op.MSC):
                m.d.comb += [one.eq(acc), other.eq(~product), carry.eq(1)]
            with m.Case(Op.ABS):
                m.d.comb += [other.eq(~acc), carry.eq(1)]
            with m.Case(Op.SHR, Op.RND):
                m.d.comb += one.eq(shifted[1:].as_signed())
                m.d.comb += carry.eq(shifted[0] & (self.op == Op.RND))
            with m.Case(Op.DIV):
                m.d.comb += [one.eq(doubled), other.eq(~(x << DIVISOR)), carry.eq(1)]
            with m.Case(Op.EVEN):
                m.d.comb += [one.eq(quotient), carry.eq(up)]

        total, after, changes = Signal(signed(ACC)), Signal(signed(ACC)), Signal()
        negative = total[-1]
        m.d.comb += [
            total.eq(one + other + carry),
            after.eq(total),
            changes.eq(self.done & (self.op <= Op.EVEN)),
        ]
        with m.Switch(self.op):
            with m.Case(Op.MIN):
                m.d.comb += [after.eq(b), changes.eq(self.done & ~negative)]
            with m.Case(Op.MAX):
                m.d.comb += [after.eq(b), changes.eq(self.done & negative)]
            with m.Case(Op.ABS):
                m.d.comb += changes.eq(self.done & acc[-1])
            with m.Case(Op.DIV):
                m.d.comb += [after.eq(Mux(negative, doubled, total | 1)), changes.eq(self.acts)]
        with m.If(changes):
            m.d.sync += acc.eq(after)
        with m.If(self.done & (self.op == Op.LDX)):
            m.d.sync += x.eq(b)
        with m.If(self.done & (self.op == Op.MVX)):
            m.d.sync += x.eq(acc)
        return m


class Core(wiring.Component):
    """What runs the microcode.

    An instruction whose operand is in local memory or the store takes a cycle to read it, and then,
    as all others, a cycle to change registers and memories; products take one more, quotients one
    a bit, streams as long as they are awaited.

    Members
    -------
    run : the store is written.
    uses, address, write, written, data : the store; ``data`` is what was read a cycle before.
    """

    run: Signal
    uses: Signal
    address: Signal
    write: Signal
    written: Signal
    data: Signal
    token_i: stream.Interface
    token_o: stream.Interface
    code_o: stream.Interface
    words_o: stream.Interface
    sum_i: stream.Interface
    tap_o: stream.Interface

    def __init__(self, config: Any):
        self.config = config
        super().__init__({
            "run": In(1),
            "uses": Out(1),
            "address": Out(range(config.store)),
            "write": Out(WORD),
            "written": Out(2),
            "data": In(WORD),
            "token_i": In(stream.Signature(TOKEN)),
            "token_o": Out(stream.Signature(ANSWER)),
            "code_o": Out(stream.Signature(CODE)),
            "words_o": Out(stream.Signature(WORDS)),
            "sum_i": In(stream.Signature(signed(config.product.acc_width))),
            "tap_o": Out(stream.Signature(TAP)),
        })

    def elaborate(self, platform):
        m = Module()
        words = microcode().words
        depth = 1 << bits_for(len(words))
        m.submodules.program = program = Memory(
            shape=unsigned(INSTRUCTION.size), depth=depth, init=words
        )
        m.submodules.arithmetic = arithmetic = Arithmetic()
        fetch = program.read_port()
        i = data.View(INSTRUCTION, fetch.data)
        begun, acts, done = Signal(), Signal(), Signal()
        shown, reads, found = Signal(), Signal(), Signal()  # found: the operand was read
        m.d.comb += [
            shown.eq(~self.tap_o.valid | self.tap_o.ready),
            reads.eq(begun & ~found & self._is_read(i)),
            acts.eq(begun & shown & ~reads),
        ]
        m.d.sync += [begun.eq(begun | self.run), found.eq(Mux(found, ~done, reads & shown))]

        acc, b, far = arithmetic.acc, arithmetic.b, Signal(6)
        registers = self._memories(m, i, reads, done, acc, b)
        self._operand(m, i, acc, registers, b)
        m.d.comb += [
            arithmetic.op.eq(i.op),
            arithmetic.amount.eq(Mux(i.source == Source.NUMBER, i.argument[:6], far)),
            arithmetic.acts.eq(acts),
            arithmetic.done.eq(done),
            done.eq(acts & self._ready(m, i, acts)),
            self.code_o.p.last.eq(registers["c0"] == 1),
        ]
        with m.If(self._sets(i, Register.N) & done):
            large = (b[6:-1] != 0) & ~b[-1]
            m.d.sync += far.eq(Mux(b[-1], 0, Mux(large, 63, b[:6])))

        # Streams.
        m.d.comb += [
            self.sum_i.ready.eq(done & (i.source == Source.SUM)),
            self.token_i.ready.eq(acts & (i.op == Op.TAKE)),
            self.token_o.valid.eq(acts & (i.op == Op.OUT)),
            self.token_o.p.token.eq(acc),
            self.code_o.valid.eq(acts & (i.op == Op.CODE)),
            self.code_o.p.code.eq(acc),
            self.words_o.valid.eq(acts & self._sets(i, Register.WORDS)),
            self.words_o.p.words.eq(b),
            self.tap_o.p.value.eq(acc),
        ]
        with m.If(self._sets(i, Register.PW) & done):
            m.d.sync += self.words_o.p.address.eq(b)
        with m.If(self._sets(i, Register.ENDS) & done):
            m.d.sync += self.words_o.p.ends.eq(b)
        with m.If(done | self.tap_o.ready):
            m.d.sync += self.tap_o.valid.eq(done & i.tap)

        after = self._next(m, i, begun, done, acc, b, registers["again"], depth)
        m.d.comb += [fetch.addr.eq(after), fetch.en.eq(done | ~begun)]
        return m

    def _is_read(self, i: Any) -> Any:
        """The operand is one of a memory."""
        memories = (Source.LOCAL, Source.INDEXED, Source.THREAD, Source.DATA)
        return (i.op != Op.ST) & i.source.matches(*memories)

    def _sets(self, i: Any, register: Register) -> Any:
        return i.op == Op.SET + register

    def _loops(self, i: Any) -> Any:
        return (i.op >= Op.LOOP) & (i.op < Op.SET)

    def _ready(self, m: Module, i: Any, acts: Any) -> Signal:
        """Nothing is waited for: a product, quotients, or one of the streams."""
        ready, multiplied, steps = Signal(), Signal(), Signal(range(DIVISOR + 1))
        multiplies, divides = Signal(), i.op == Op.DIV
        last = steps == i.argument[: len(steps)] - 1
        m.d.comb += [
            multiplies.eq((i.op >= Op.MUL) & (i.op <= Op.MSC)),
            ready.eq(
                (~multiplies | multiplied)
                & (~divides | last)
                & ((i.source != Source.SUM) | self.sum_i.valid)
                & ((i.source != Source.TOKEN) | self.token_i.valid)
                & ((i.op != Op.OUT) | self.token_o.ready)
                & ((i.op != Op.CODE) | self.code_o.ready)
                & (~self._sets(i, Register.WORDS) | self.words_o.ready)
            ),
        ]
        with m.If(acts):
            m.d.sync += [
                multiplied.eq(multiplies & ~multiplied),
                steps.eq(Mux(divides & ~last, steps + 1, 0)),
            ]
        return ready

    def _next(
        self, m: Module, i: Any, begun: Any, done: Any, acc: Any, b: Any, again: Any, depth: int
    ) -> Signal:
        """Where the instruction after this one is."""
        pc, follows, after = Signal(range(depth)), Signal(range(depth)), Signal(range(depth))
        link, deeper, jumps = Signal.like(pc), Signal.like(pc), Signal()
        m.d.comb += [
            follows.eq(pc + 1),
            jumps.eq(
                (i.op == Op.JMP)
                | (i.op == Op.CALL)
                | ((i.op == Op.BRN) & acc[-1])
                | ((i.op == Op.BRZ) & (acc == 0))
                | (self._loops(i) & again)
            ),
            after.eq(follows),
        ]
        with m.If(~begun):
            m.d.comb += after.eq(0)
        with m.Elif(jumps):
            m.d.comb += after.eq(i.argument)
        with m.Elif(i.op == Op.RET):
            m.d.comb += after.eq(link)
        with m.Elif(i.op == Op.GO):
            m.d.comb += after.eq(b)
        with m.If(done):
            m.d.sync += pc.eq(after)
            with m.If(i.op == Op.CALL):
                m.d.sync += [link.eq(follows), deeper.eq(link)]
            with m.Elif(i.op == Op.RET):
                m.d.sync += link.eq(deeper)
        return after

    def _memories(
        self, m: Module, i: Any, reads: Any, done: Any, acc: Any, b: Any
    ) -> dict[str, Any]:
        """Local memory, the store's port, and the registers that address them or count."""
        config = self.config
        m.submodules.local = local = Memory(shape=signed(LOCAL), depth=config.local, init=[])
        read, write = local.read_port(), local.write_port()
        index = data.View(INDEXED, i.argument[: INDEXED.size])
        where = data.View(DATA, i.argument[: DATA.size])
        indices = Array(Signal(range(config.local), name=f"i{at}") for at in range(4))
        counters = Array(Signal(ARGUMENT, name=f"c{at}") for at in range(4))
        thread = Signal(range(config.store))
        pointers = [Signal(len(thread) + 1, name=f"p{at}") for at in (1, 2)]
        stores = (i.op == Op.ST) & done
        counted = Signal(ARGUMENT)
        pointer, moved = Signal.like(pointers[0]), Signal.like(pointers[0])
        at = Signal(range(config.local))
        indexed, follows = i.source == Source.INDEXED, i.source == Source.THREAD
        elsewhere, writes = i.source == Source.DATA, Signal()
        m.d.comb += [
            at.eq(Mux(indexed, indices[index.index], i.argument)),
            read.addr.eq(at),
            read.en.eq(reads),
            write.addr.eq(at),
            write.data.eq(acc),
            write.en.eq(stores & ~elsewhere),
            pointer.eq(Mux(where.second, pointers[1], pointers[0])),
            moved.eq(pointer + Mux(where.word, 2, 1)),
            writes.eq(stores & elsewhere),
            self.uses.eq(writes | (reads & (follows | elsewhere))),
            self.address.eq(Mux(follows, thread, pointer[1:])),
            self.write.eq(Mux(where.word, acc[:WORD], acc[:8].replicate(2))),
            self.written.eq(Mux(writes, Cat(~pointer[0], pointer[0]) | where.word.replicate(2), 0)),
            counted.eq(counters[i.op[:2]] - 1),
        ]
        with m.If(done & indexed & index.step):
            m.d.sync += indices[index.index].eq(at + 1)
        with m.If(done & follows):
            m.d.sync += thread.eq(thread + 1)
        with m.If(done & elsewhere & where.step):
            m.d.sync += pointers[0].eq(moved)
        with m.If(done & self._loops(i)):
            m.d.sync += counters[i.op[:2]].eq(counted)
        for name, register, value in (
            *((f"I{at}", indices[at], b) for at in range(4)),
            *((f"C{at}", counters[at], b) for at in range(4)),
            ("P0", thread, b),
            ("P1", pointers[0], Cat(0, b)),
            ("P2", pointers[1], Cat(0, b)),
        ):
            with m.If(done & self._sets(i, Register[name])):
                m.d.sync += register.eq(value)
        return {
            "local": read.data,
            "byte": pointer[0],
            "again": counted != 0,
            "c0": counters[0],
        }

    def _operand(self, m: Module, i: Any, acc: Any, found: Mapping[str, Any], b: Any) -> None:
        """``b``: what the instruction says."""
        where = data.View(DATA, i.argument[: DATA.size])
        byte, token = self.data.word_select(found["byte"], 8), self.token_i.p
        with m.Switch(i.source):
            with m.Case(Source.NUMBER):
                m.d.comb += b.eq(i.argument.as_signed())
            with m.Case(Source.LOCAL, Source.INDEXED):
                m.d.comb += b.eq(found["local"])
            with m.Case(Source.THREAD):
                m.d.comb += b.eq(Cat(self.data, self.data[-1] & ~i.argument[0]).as_signed())
            with m.Case(Source.DATA):
                word = Cat(self.data, self.data[-1] & ~where.unsigned).as_signed()
                m.d.comb += b.eq(Mux(where.word, word, byte.as_signed()))
            with m.Case(Source.SUM):
                m.d.comb += b.eq(self.sum_i.p)
            with m.Case(Source.REGISTER):
                m.d.comb += b.eq(acc)
            with m.Case(Source.TOKEN):
                one = Mux(i.argument[0], token.restart, token.sample)
                m.d.comb += b.eq(Mux(i.argument[:2] == 0, token.token, one))
