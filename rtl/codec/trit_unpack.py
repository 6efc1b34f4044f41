# SPDX-License-Identifier: Apache-2.0
"""Packed ternary weights into two's complement trits in natural order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from ..config import Config, param
from . import _digits


@dataclass(frozen=True)
class Packing:
    """A byte layout: bytes and trits of a block, and its windows.

    A window of ``(size, digits)`` is ``size`` bytes in a row; their first digits, byte by byte, are
    the window's first ``size`` trits, their second digits the next, and so on.  A packing of one
    window of one byte needs no buffer.
    """

    block_bytes: int
    windows: tuple[tuple[int, int], ...]
    most_lanes: int = 0
    scale: bool = False

    @property
    def block_trits(self) -> int:
        return sum(size * digits for size, digits in self.windows)


PACKINGS: Mapping[str, Packing] = {
    "twos2": Packing(1, ((1, 4),)),
    "i2_s": Packing(32, ((32, 4),), most_lanes=32),
    "base3": Packing(1, ((1, 5),)),
    "tq1_0": Packing(54, ((32, 5), (16, 5), (4, 4)), most_lanes=16, scale=True),
    "tq2_0": Packing(66, ((32, 4), (32, 4)), most_lanes=32, scale=True),
}


@dataclass(frozen=True, kw_only=True)
class TritUnpackConfig(Config):
    packing: str = param("twos2", "layout of the packed bytes", choices=tuple(PACKINGS))
    bytes_in: int = param(4, "bytes per input transfer", ge=1, le=1024)
    lanes: int = param(16, "trits per output transfer", ge=1, le=5120)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "i2_s": {"packing": "i2_s", "bytes_in": 8, "lanes": 32},
        "base3": {"packing": "base3", "bytes_in": 4, "lanes": 20},
        "tq1_0": {"packing": "tq1_0", "bytes_in": 6, "lanes": 16},
        "tq2_0": {"packing": "tq2_0", "bytes_in": 11, "lanes": 32},
    }
    papers: ClassVar[tuple[str, ...]] = ("BitNet b1.58, arXiv 2402.17764",)

    def faults(self) -> Iterator[str]:
        layout = self.layout
        if not self.buffered:
            if self.lanes != self.bytes_in * layout.block_trits:
                yield (
                    f"lanes must be {layout.block_trits} * bytes_in ="
                    f" {layout.block_trits * self.bytes_in} for {self.packing}, not {self.lanes}"
                )
            return
        if layout.block_bytes % self.bytes_in:
            yield (
                f"bytes_in must divide the {layout.block_bytes} bytes of a {self.packing} block,"
                f" not be {self.bytes_in}"
            )
        if self.lanes & (self.lanes - 1) or self.lanes > layout.most_lanes:
            yield (
                f"lanes must be a power of two up to {layout.most_lanes} for {self.packing},"
                f" not {self.lanes}"
            )

    @property
    def layout(self) -> Packing:
        """The byte layout that ``packing`` names."""
        return PACKINGS[self.packing]

    @property
    def stages(self) -> int:
        """Registers behind each other from bytes, or a full block, to trits."""
        return 2 if self.packing == "base3" else 1

    @property
    def buffered(self) -> bool:
        """Whether natural order needs a whole block in a buffer first."""
        return self.layout.block_bytes > 1

    @property
    def fill(self) -> int:
        """Input transfers per block of a buffered packing."""
        return self.layout.block_bytes // self.bytes_in

    @property
    def drain(self) -> int:
        """Output transfers per block of a buffered packing."""
        return self.layout.block_trits // self.lanes


class TritUnpack(wiring.Component):
    """Unpacks ternary weights from bytes, in natural order, faults flagged.

    Packings (``PACKINGS``; digits of a byte in the order in which they leave):

    ====== ===== ===== ============================================================================
    name   bytes trits a byte's digits
    ====== ===== ===== ============================================================================
    twos2      1     4 bits 1:0, 3:2, 5:4, 7:6, each in two's complement: 0, 1, 3 for 0, +1, -1
    i2_s      32   128 byte j: trits j, j+32, j+64, j+96 in bits 7:6, 5:4, 3:2, 1:0, trit + 1 each
    base3      1     5 ``t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4`` with 0, 1, 2 for 0, +1, -1
    tq1_0     54   256 windows of 32, 16 (five digits) and 4 bytes (four): ``ceil(256 Q / 243)``
    tq2_0     66   two windows of 32 bytes: bits 1:0, 3:2, 5:4, 7:6, trit + 1 each
    ====== ===== ===== ============================================================================

    A code that is no trit (2 in twos2, 3 in i2_s and tq2_0, bytes above 242 in base3, the 13 bytes
    that tq1_0 never makes) gives 0 and sets ``invalid`` for every trit it stands for.  The fifth
    digit of the last four bytes of tq1_0 is ignored.

    twos2 and base3: one transfer in, one out, one cycle of latency, two with base3.  The others
    collect a block of ``fill`` transfers while the block before leaves in ``drain``:
    ``max(fill, drain)`` cycles per block; the first trits are offered three edges after the block's
    last byte was taken.
    Reset drops whatever is in flight.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``bytes``: in the order of the file.  ``first``: a run starts here, at the start of a block;
        an unfinished block is dropped.  ``last``: a run ends here; heeded where a block ends.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``trits``: two's complement, 0, 1, 3 for 0, +1, -1.  ``invalid``: one flag per trit.
        ``first``, ``last``: of the run.  ``scale``: tq1_0 and tq2_0 only, the block's fp16 scale.

    Source: layouts of BitNet's and llama.cpp's ternary formats; structure ours.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TritUnpackConfig):
        self.config = config
        given = data.StructLayout({
            "bytes": data.ArrayLayout(unsigned(8), config.bytes_in),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        taken = data.StructLayout({
            "trits": data.ArrayLayout(unsigned(2), config.lanes),
            "invalid": data.ArrayLayout(unsigned(1), config.lanes),
            "first": unsigned(1),
            "last": unsigned(1),
            **({"scale": unsigned(16)} if config.layout.scale else {}),
        })
        super().__init__({
            "i": In(stream.Signature(given)),
            "o": Out(stream.Signature(taken)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.pipeline = pipeline = Pipeline(self.config.stages)
        m.d.comb += [self.o.valid.eq(pipeline.o_valid), pipeline.o_ready.eq(self.o.ready)]
        held = Signal.like(self.o.payload, name="held", reset_less=True)
        m.d.comb += self.o.payload.eq(held)
        decoded = Signal.like(self.o.payload, name="decoded")
        with m.If(pipeline.enable):
            m.d.sync += held.eq(decoded)
        if self.config.buffered:
            self._by_block(m, pipeline, decoded)
        else:
            self._by_byte(m, pipeline, decoded)
        return m

    def _by_byte(self, m, pipeline, decoded):
        """Every byte stands for its own trits."""
        m.d.comb += [pipeline.i_valid.eq(self.i.valid), self.i.ready.eq(pipeline.i_ready)]
        of_byte = self._five if self.config.packing == "base3" else self._four
        found = [of_byte(m, pipeline, index) for index in range(self.config.bytes_in)]
        bounds = Cat(self.i.p.first, self.i.p.last)
        for stage in range(1, self.config.stages):
            early, bounds = bounds, Signal(2, name=f"bounds_{stage}", reset_less=True)
            with m.If(pipeline.enable):
                m.d.sync += bounds.eq(early)
        m.d.comb += [
            Cat(decoded.first, decoded.last).eq(bounds),
            Cat(decoded.trits).eq(Cat(trits for trits, _ in found)),
            Cat(decoded.invalid).eq(Cat(flags for _, flags in found)),
        ]

    def _four(self, m, pipeline, index):
        """Trits and flags of a byte of two's complement codes."""
        byte = self.i.p.bytes[index]
        found = [_digits.from_twos(byte[at : at + 2]) for at in range(0, 8, 2)]
        return Cat(trit for trit, _ in found), Cat(bad for _, bad in found)

    def _five(self, m, pipeline, index):
        """Trits and flags of a byte in base 3: its ninths are registered, then looked up."""
        byte = self.i.p.bytes[index]
        over = Signal(5, name=f"over_{index}", reset_less=True)
        rest = Signal(4, name=f"rest_{index}", reset_less=True)
        bad = Signal(name=f"bad_{index}", reset_less=True)
        with m.If(pipeline.enable):
            m.d.sync += [
                Cat(over, rest).eq(Cat(_digits.base3_ninths(byte))),
                bad.eq(_digits.at_least(byte, 3**5)),
            ]
        five = _digits.ninths_trits(m, over, rest, f"trits_{index}")
        return five & ~bad.replicate(10), bad.replicate(5)

    def _by_block(self, m, pipeline, decoded):
        """One block is collected in ``next_*`` while the one before leaves from ``ring_*``."""
        config = self.config
        is_tq1 = config.packing == "tq1_0"
        width = 9 if is_tq1 else 8  # bit 8 of a tq1_0 byte: it was none
        next_bytes = [
            Signal(width, name=f"next_{index}", reset_less=True)
            for index in range(config.layout.block_bytes)
        ]
        next_first, next_last = Signal(reset_less=True), Signal(reset_less=True)
        next_full, move, take = Signal(), Signal(), Signal()

        # Collect.
        at, here = Signal(range(config.fill)), Signal(range(config.fill))
        m.d.comb += [
            self.i.ready.eq(~next_full | move),
            take.eq(self.i.valid & self.i.ready),
            here.eq(Mux(self.i.p.first, 0, at)),
        ]
        with m.If(move):
            m.d.sync += next_full.eq(0)
        with m.If(take):
            m.d.sync += at.eq(Mux(here == config.fill - 1, 0, here + 1))
            with m.If(here == 0):
                m.d.sync += next_first.eq(self.i.p.first)
            with m.If(here == config.fill - 1):
                m.d.sync += [next_full.eq(1), next_last.eq(self.i.p.last)]
        checked = []
        for lane in range(config.bytes_in):
            byte = self.i.p.bytes[lane]
            if is_tq1:
                hole = Signal(name=f"hole_{lane}")
                m.d.comb += hole.eq(byte.matches(*_digits.TQ1_HOLES))
                checked.append(Cat(Mux(hole, _digits.TQ1_ZEROS, byte), hole))
            else:
                checked.append(byte)
        for part in range(config.fill):
            with m.If(take & (here == part)):
                for lane in range(config.bytes_in):
                    raw = part * config.bytes_in + lane >= config.layout.block_bytes - 2
                    value = self.i.p.bytes[lane] if is_tq1 and raw else checked[lane]
                    m.d.sync += next_bytes[part * config.bytes_in + lane].eq(value)

        # Leave: one digit of each of the first bytes of a ring, which then turns.
        busy, step = Signal(), Signal(range(config.drain))
        first, last = Signal(reset_less=True), Signal(reset_less=True)
        go, final = Signal(), Signal()
        m.d.comb += [
            pipeline.i_valid.eq(busy),
            go.eq(busy & pipeline.i_ready),
            final.eq(step == config.drain - 1),
            move.eq(next_full & (~busy | (go & final))),
            decoded.first.eq(first & (step == 0)),
            decoded.last.eq(last & final),
        ]
        with m.If(go):
            m.d.sync += step.eq(step + 1)
            with m.If(final):
                m.d.sync += [busy.eq(0), step.eq(0)]
        with m.If(move):
            m.d.sync += [busy.eq(1), first.eq(next_first), last.eq(next_last)]
        if config.layout.scale:
            scale = Signal(16, reset_less=True)
            m.d.comb += decoded.scale.eq(scale)
            with m.If(move):
                m.d.sync += scale.eq(Cat(byte[:8] for byte in next_bytes[-2:]))

        start = done = 0
        for number, (size, digits) in enumerate(config.layout.windows):
            given = next_bytes[start : start + size]
            ring = [
                Signal(width, name=f"ring{number}_{index}", reset_less=True)
                for index in range(size)
            ]
            turned, trits, flags = self._turn(m, ring, f"ring{number}")
            start, until = start + size, done + size * digits // config.lanes
            since = step >= done if done else Const(1, 1)
            with m.If(since & (step < until)):
                m.d.comb += [
                    Cat(decoded.trits).eq(Cat(trits)),
                    Cat(decoded.invalid).eq(Cat(flags)),
                ]
                with m.If(go):
                    m.d.sync += Cat(ring).eq(Cat(turned))
            with m.If(move):
                m.d.sync += Cat(ring).eq(Cat(given))
            done = until

    def _turn(self, m, ring, name):
        """The ring after this transfer, and the transfer's trits and fault flags."""
        step = {
            "tq1_0": _digits.tq1_step,
            "tq2_0": _digits.tq2_step,
            "i2_s": _digits.i2_s_step,
        }[self.config.packing]
        heads, trits, flags = ring[: self.config.lanes], [], []
        for depth in range(self.config.lanes // len(heads)):
            after = []
            for lane, head in enumerate(heads):
                code, rest = step(head[:8])
                trit, bad = _digits.from_offset(code)
                trits.append(trit)
                flags.append(head[8] if len(head) > 8 else bad)
                left = Signal(len(head), name=f"{name}_left{depth}_{lane}")
                m.d.comb += [left[:8].eq(rest), left[8:].eq(head[8:])]
                after.append(left)
            heads = after
        return [*ring[len(heads) :], *heads], trits, flags
