# SPDX-License-Identifier: Apache-2.0
"""Transformer engine of one multiplier and eight ternary lanes, for the smallest FPGAs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Widen, bits_for, credit
from ..config import Config, param
from ..mac.ternary_gemv import TernaryGemv, TernaryGemvConfig
from ._microcode import ARGUMENT, DATA, INDEXED, INSTRUCTION, Op, Register, Source
from ._routines import microcode

LANES = 8
"""Trits in a word of the store."""
WORD = 16
ACC = 56
"""Bits of the accumulator: the gate's product has 52."""
X = 48
"""Bits of the multiplicand; the other factor has :data:`FACTOR`."""
FACTOR = 18
LOCAL = 32
DIVISOR = 24
"""Bits that quotients have room for, one of them behind the point."""


@dataclass(frozen=True, kw_only=True)
class MicroEngineConfig(Config):
    store: int = param(
        65536, "words of 16 bits for the model and its keys and values", ge=1024, le=65536
    )
    local: int = param(1024, "words of 32 bits for vectors", ge=128, le=4096)
    longest: int = param(
        256, "most elements of a vector that projections take, a multiple of 8", ge=16, le=4096
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"store": 4096, "local": 256, "longest": 32},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "BitNet b1.58, arXiv 2402.17764",
        "VitaLLM, arXiv 2604.27396",
    )

    def faults(self) -> Iterator[str]:
        for name in ("store", "local"):
            value = getattr(self, name)
            if value & (value - 1):
                yield f"{name} must be a power of two, not {value}"
        if self.longest % LANES:
            yield f"longest must be a multiple of {LANES}, not {self.longest}"

    @property
    def product(self) -> TernaryGemvConfig:
        """The core of the projections."""
        return TernaryGemvConfig(
            k_lanes=LANES, max_k=self.longest, act_width=8, memory_stage=False, stage=2
        )


TOKEN = data.StructLayout({"token": unsigned(14), "restart": unsigned(1), "sample": unsigned(1)})
ANSWER = data.StructLayout({"token": unsigned(14)})
IMAGE = data.StructLayout({"word": unsigned(WORD), "last": unsigned(1)})
TAP = data.StructLayout({"value": signed(LOCAL)})


class MicroEngine(wiring.Component):
    """Decoder-only transformer in microcode: embedding, ternary projections, attention, argmax.

    The same arithmetic as ``engine``, bit for bit (``docs/model.md``), on one multiplier, one
    adder and one shifter, an instruction every two cycles; eight ternary lanes beside them, fed a
    word a cycle.  One memory, the store, holds all of a model: ``docs/blocks/micro_engine.md``
    says how.  The microcode does not depend on the model.

    After reset the store is written from its first word on, up to the word marked ``last``; then
    tokens are taken.  A token whose ``sample`` is set is answered by the likeliest next one, the
    lowest among equals; the others fill the KV store.  A token that the context has no place for is
    taken and dropped.  Results are the same bits however the streams stall; what saturates says
    ``docs/model.md``, and nothing else overflows for models that the compiler takes.  Reset ends
    the token at work; the store is to be written again.

    Throughput and latency: ``sim/engine/micro_engine.py`` counts the instructions of a token.

    Members
    -------
    image_i : ``word``, ``last``: the store from address 0 on.
    token_i : ``token``, ``restart`` (a new text begins), ``sample``.
    token_o : ``token``: the likeliest next one.
    tap_o : ``value``: every element of a vector, every scale and every sum of the head, as they
        are made.

    Source: structure ours; the ternary core is that of VitaLLM.
    """

    image_i: stream.Interface
    token_i: stream.Interface
    token_o: stream.Interface
    tap_o: stream.Interface

    def __init__(self, config: MicroEngineConfig):
        self.config = config
        super().__init__({
            "image_i": In(stream.Signature(IMAGE)),
            "token_i": In(stream.Signature(TOKEN)),
            "token_o": Out(stream.Signature(ANSWER)),
            "tap_o": Out(stream.Signature(TAP)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = Store(self.config.store)
        m.submodules.projection = projection = Projection(self.config, store.address.shape())
        m.submodules.core = core = Core(self.config)

        # The core comes first at the store, then the projection.
        loaded, at = Signal(), Signal(range(self.config.store))
        m.d.comb += [
            self.image_i.ready.eq(~loaded),
            core.run.eq(loaded),
            core.data.eq(store.read),
            projection.data.eq(store.read),
            projection.free.eq(loaded & ~core.uses),
            store.written.eq(Mux(loaded, core.written, self.image_i.valid.replicate(2))),
            store.write.eq(Mux(loaded, core.write, self.image_i.p.word)),
            store.address.eq(Mux(loaded, Mux(core.uses, core.address, projection.address), at)),
        ]
        with m.If(self.image_i.valid & self.image_i.ready):
            m.d.sync += [at.eq(at + 1), loaded.eq(self.image_i.p.last)]
        wiring.connect(m, core.code_o, projection.code_i)
        wiring.connect(m, core.words_o, projection.words_i)
        wiring.connect(m, projection.o, core.sum_i)
        wiring.connect(m, wiring.flipped(self.token_i), core.token_i)
        wiring.connect(m, core.token_o, wiring.flipped(self.token_o))
        wiring.connect(m, core.tap_o, wiring.flipped(self.tap_o))
        return m


class Store(wiring.Component):
    """Words with one port: ``read`` is the word that was at ``address`` when nothing was written.

    ``written``: which bytes.  What a word holds before it is written is not defined.
    """

    address: Signal
    write: Signal
    written: Signal
    read: Signal

    def __init__(self, words: int):
        self.words = words
        super().__init__({
            "address": In(range(words)),
            "write": In(WORD),
            "written": In(2),
            "read": Out(WORD),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=unsigned(WORD), depth=self.words, init=[], attrs={"uninitialised": "yes"}
        )
        read, write = memory.read_port(), memory.write_port(granularity=WORD // 2)
        m.d.comb += [
            read.addr.eq(self.address),
            write.addr.eq(self.address),
            read.en.eq(~self.written.any()),
            write.en.eq(self.written),
            write.data.eq(self.write),
            self.read.eq(read.data),
        ]
        return m


WORDS = data.StructLayout({"address": unsigned(WORD), "words": unsigned(WORD), "ends": 1})
QUEUED = 4


class Projection(wiring.Component):
    """Ternary lanes and what fetches their weights when the store is ``free``.

    ``code_i`` brings a vector; each of ``words_i`` a projection of it, the last one with ``ends``.
    ``o`` are the sums of its rows.
    """

    code_i: stream.Interface
    words_i: stream.Interface
    o: stream.Interface
    free: Signal
    address: Signal
    data: Signal

    def __init__(self, config: MicroEngineConfig, address: Any):
        self.config = config
        code = data.StructLayout({"code": signed(8), "last": 1})
        super().__init__({
            "code_i": In(stream.Signature(code)),
            "words_i": In(stream.Signature(WORDS)),
            "o": Out(stream.Signature(signed(config.product.acc_width))),
            "free": In(1),
            "address": Out(address),
            "data": In(WORD),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.gemv = gemv = TernaryGemv(self.config.product)
        m.submodules.tiles = tiles = Widen(signed(8), 1, LANES)
        m.submodules.words = words = Queue(unsigned(WORD + 1), QUEUED)
        m.d.comb += [
            tiles.i.valid.eq(self.code_i.valid),
            self.code_i.ready.eq(tiles.i.ready),
            tiles.i.p.x[0].eq(self.code_i.p.code),
            tiles.i.p.first.eq(0),
            tiles.i.p.last.eq(self.code_i.p.last),
            gemv.acts_i.valid.eq(tiles.o.valid),
            tiles.o.ready.eq(gemv.acts_i.ready),
            gemv.acts_i.p.acts.eq(tiles.o.p.x),
            gemv.acts_i.p.first.eq(0),
            gemv.acts_i.p.last.eq(tiles.o.p.last),
            self.o.valid.eq(gemv.o.valid),
            gemv.o.ready.eq(self.o.ready),
            self.o.p.eq(gemv.o.p.sums[0]),
        ]
        at, left, ends = Signal(WORD), Signal(WORD), Signal()
        taken = words.o.valid & words.o.ready
        goes, read, final = Signal(), Signal(), Signal()
        room = credit(m, "room", QUEUED, taken, goes)
        m.d.comb += [
            self.words_i.ready.eq(left == 0),
            self.address.eq(at),
            goes.eq(self.free & room & (left != 0)),
            words.i.valid.eq(read),
            words.i.p.eq(Cat(self.data, final)),
            gemv.weights_i.valid.eq(words.o.valid),
            words.o.ready.eq(gemv.weights_i.ready),
            gemv.weights_i.p.weights.as_value().eq(words.o.p),
            gemv.weights_i.p.first.eq(0),
            gemv.weights_i.p.last.eq(words.o.p[-1]),
        ]
        m.d.sync += [read.eq(goes), final.eq(ends & (left == 1))]
        with m.If(self.words_i.valid & self.words_i.ready):
            given = self.words_i.p
            m.d.sync += [at.eq(given.address), left.eq(given.words), ends.eq(given.ends)]
        with m.If(goes):
            m.d.sync += [at.eq(at + 1), left.eq(left - 1)]
        return m


class Core(wiring.Component):
    """What runs the microcode: an instruction is read, then carried out.

    In the first cycle its operand is read from local memory or the store, in the second, or more
    of them for products, quotients and what is awaited, registers and memories change.

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

    def __init__(self, config: MicroEngineConfig):
        self.config = config
        code = data.StructLayout({"code": signed(8), "last": 1})
        super().__init__({
            "run": In(1),
            "uses": Out(1),
            "address": Out(range(config.store)),
            "write": Out(WORD),
            "written": Out(2),
            "data": In(WORD),
            "token_i": In(stream.Signature(TOKEN)),
            "token_o": Out(stream.Signature(ANSWER)),
            "code_o": Out(stream.Signature(code)),
            "words_o": Out(stream.Signature(WORDS)),
            "sum_i": In(stream.Signature(signed(config.product.acc_width))),
            "tap_o": Out(stream.Signature(TAP)),
        })

    def elaborate(self, platform):
        m = Module()
        code = microcode()
        depth = 1 << bits_for(len(code.words))
        m.submodules.program = program = Memory(
            shape=unsigned(INSTRUCTION.size), depth=depth, init=code.words
        )
        fetch = program.read_port()
        i = data.View(INSTRUCTION, fetch.data)
        pc, after = Signal(range(depth)), Signal(range(depth))
        begun, acts, done = Signal(), Signal(), Signal()  # acts: the second cycle
        m.d.comb += [fetch.addr.eq(after), fetch.en.eq(done | ~begun)]
        with m.If(~begun):
            m.d.sync += begun.eq(self.run)
        with m.Elif(~acts):
            m.d.sync += acts.eq(~self.tap_o.valid | self.tap_o.ready)
        with m.Elif(done):
            m.d.sync += acts.eq(0)

        acc, x, far = Signal(signed(ACC)), Signal(signed(X)), Signal(6)
        b, argument = Signal(signed(LOCAL)), i.argument
        registers = self._memories(m, i, begun & ~acts, done, acc, b)
        self._operand(m, i, acc, registers, b)

        op = Op
        is_op = {each: Signal(name=f"is_{each.name.lower()}") for each in Op}
        m.d.comb += [is_op[each].eq(i.op == each) for each in Op]
        loops = (i.op >= op.LOOP) & (i.op < op.SET)

        def sets(register: Register) -> Any:
            return (i.op == op.SET + register) & done

        # What is waited for.
        multiplies = is_op[op.MUL] | is_op[op.MAC] | is_op[op.MSC]
        multiplied, steps = Signal(), Signal(range(DIVISOR + 1))
        last_step = steps == argument[: len(steps)] - 1
        starts = i.op == op.SET + Register.WORDS
        ready = Signal()
        m.d.comb += [
            ready.eq(
                (~multiplies | multiplied)
                & (~is_op[op.DIV] | last_step)
                & ((i.source != Source.SUM) | self.sum_i.valid)
                & ((i.source != Source.TOKEN) | self.token_i.valid)
                & (~is_op[op.OUT] | self.token_o.ready)
                & (~is_op[op.CODE] | self.code_o.ready)
                & (~starts | self.words_o.ready)
            ),
            done.eq(acts & ready),
            self.sum_i.ready.eq(done & (i.source == Source.SUM)),
            self.token_i.ready.eq(acts & is_op[op.TAKE]),
            self.token_o.valid.eq(acts & is_op[op.OUT]),
            self.token_o.p.token.eq(acc),
            self.code_o.valid.eq(acts & is_op[op.CODE]),
            self.code_o.p.code.eq(acc),
            self.code_o.p.last.eq(registers["c0"] == 1),
            self.words_o.valid.eq(acts & starts),
            self.words_o.p.words.eq(b),
        ]
        with m.If(acts):
            m.d.sync += [
                multiplied.eq(multiplies & ~multiplied),
                steps.eq(Mux(is_op[op.DIV] & ~last_step, steps + 1, 0)),
            ]
        with m.If(sets(Register.PW)):
            m.d.sync += self.words_o.p.address.eq(b)
        with m.If(sets(Register.ENDS)):
            m.d.sync += self.words_o.p.ends.eq(b)
        with m.If(sets(Register.N)):
            large = (b[6:-1] != 0) & ~b[-1]
            m.d.sync += far.eq(Mux(b[-1], 0, Mux(large, 63, b[:6])))

        self._arithmetic(m, i, is_op, acts, ready, acc, x, b, far)

        # Where to go on.
        link, deeper = Signal.like(pc), Signal.like(pc)
        follows = Signal.like(pc)
        m.d.comb += [follows.eq(pc + 1), after.eq(follows)]
        jumps = (
            is_op[op.JMP]
            | is_op[op.CALL]
            | (is_op[op.BRN] & acc[-1])
            | (is_op[op.BRZ] & (acc == 0))
            | (loops & registers["again"])
        )
        with m.If(~begun):
            m.d.comb += after.eq(0)
        with m.Elif(jumps):
            m.d.comb += after.eq(argument)
        with m.Elif(is_op[op.RET]):
            m.d.comb += after.eq(link)
        with m.Elif(is_op[op.GO]):
            m.d.comb += after.eq(b)
        with m.If(done):
            m.d.sync += pc.eq(after)
            with m.If(is_op[op.CALL]):
                m.d.sync += [link.eq(follows), deeper.eq(link)]
            with m.Elif(is_op[op.RET]):
                m.d.sync += link.eq(deeper)
        with m.If(done | self.tap_o.ready):
            m.d.sync += self.tap_o.valid.eq(done & i.tap)
        m.d.comb += self.tap_o.p.value.eq(acc)
        return m

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
        loops = (i.op >= Op.LOOP) & (i.op < Op.SET)
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
        with m.If(done & loops):
            m.d.sync += counters[i.op[:2]].eq(counted)
        for name, register, value in (
            *((f"I{at}", indices[at], b) for at in range(4)),
            *((f"C{at}", counters[at], b) for at in range(4)),
            ("P0", thread, b),
            ("P1", pointers[0], Cat(0, b)),
            ("P2", pointers[1], Cat(0, b)),
        ):
            with m.If(done & (i.op == Op.SET + Register[name])):
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

    def _arithmetic(
        self,
        m: Module,
        i: Any,
        is_op: Any,
        acts: Any,
        ready: Any,
        acc: Any,
        x: Any,
        b: Any,
        far: Any,
    ) -> None:
        """One adder for everything, behind a shifter on one side and products on the other."""
        product = Signal(signed(ACC))
        m.d.sync += product.eq(x * b[:FACTOR].as_signed())
        amount = Mux(i.source == Source.NUMBER, i.argument[:6], far)
        shifted = Signal(signed(ACC + 1))
        m.d.comb += shifted.eq(Cat(0, acc).as_signed() >> amount)
        doubled, quotient = acc[:-1] << 1, acc[1:DIVISOR]
        up = acc[0] & (acc[1] | acc[DIVISOR:].any())
        one, other, carry = Signal(signed(ACC)), Signal(signed(ACC)), Signal()
        total, after, changes = Signal(signed(ACC)), Signal(signed(ACC)), Signal()
        with m.Switch(i.op):
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
                m.d.comb += [one.eq(shifted[1:].as_signed())]
                m.d.comb += carry.eq(shifted[0] & is_op[Op.RND])
            with m.Case(Op.DIV):
                m.d.comb += [one.eq(doubled), other.eq(~(x << DIVISOR)), carry.eq(1)]
            with m.Case(Op.EVEN):
                m.d.comb += [one.eq(quotient), carry.eq(up)]
        negative = total[-1]
        m.d.comb += [
            total.eq(one + other + carry),
            after.eq(total),
            changes.eq((i.op <= Op.EVEN) & ready),
        ]
        with m.Switch(i.op):
            with m.Case(Op.MIN):
                m.d.comb += [after.eq(b), changes.eq(~negative & ready)]
            with m.Case(Op.MAX):
                m.d.comb += [after.eq(b), changes.eq(negative & ready)]
            with m.Case(Op.ABS):
                m.d.comb += changes.eq(acc[-1])
            with m.Case(Op.DIV):
                m.d.comb += [after.eq(Mux(negative, doubled, total | 1)), changes.eq(1)]
        with m.If(acts & changes):
            m.d.sync += acc.eq(after)
        with m.If(acts & ready & is_op[Op.LDX]):
            m.d.sync += x.eq(b)
        with m.If(acts & ready & is_op[Op.MVX]):
            m.d.sync += x.eq(acc)
