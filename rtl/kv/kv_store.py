# SPDX-License-Identifier: Apache-2.0
"""Quantised vectors of earlier tokens in block RAM: written in rows, read whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from .._streams import bits_for
from ..config import Config, param


@dataclass(frozen=True, kw_only=True)
class KvStoreConfig(Config):
    head_dim: int = param(32, "codes of a vector, a multiple of lanes", ge=1, le=1024)
    lanes: int = param(4, "codes written per transfer", ge=1, le=256)
    slots: int = param(6, "runs of vectors: layers times KV heads", ge=1, le=4096)
    context: int = param(256, "vectors of a slot", ge=1, le=1 << 20)
    code_width: int = param(8, "bits of a signed code", ge=1, le=16)
    scale_width: int = param(17, "bits of a vector's unsigned scale", ge=1, le=32)
    order_width: int = param(12, "bits of the count of written vectors", ge=2, le=32)
    block_bits: int = param(
        18432, "bits of a block RAM; words are cut to its width at full depth; 0: not cut", ge=0
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "head_dim": 4,
            "lanes": 2,
            "slots": 2,
            "context": 48,
            "code_width": 3,
            "scale_width": 4,
            "order_width": 14,
        },
        "rows": {"head_dim": 8, "lanes": 8, "slots": 3, "context": 100, "order_width": 15},
    }
    papers: ClassVar[tuple[str, ...]] = ("VitaLLM, arXiv 2604.27396",)

    def faults(self) -> Iterator[str]:
        if self.head_dim % self.lanes:
            yield f"head_dim must be a multiple of lanes ({self.lanes}), not {self.head_dim}"

    @property
    def rows(self) -> int:
        """Transfers that bring one vector."""
        return self.head_dim // self.lanes

    @property
    def vectors(self) -> int:
        """Vectors that the memory holds."""
        return self.slots * self.context

    @property
    def word_width(self) -> int:
        """Bits of a vector and its scale."""
        return self.head_dim * self.code_width + self.scale_width

    @property
    def memory_width(self) -> int:
        """Bits of one memory: what a block RAM has where it is as deep as all vectors."""
        depth = 1 << (self.vectors - 1).bit_length()
        return max(self.block_bits // depth, 1) if self.block_bits else self.word_width


def vector_layout(config: KvStoreConfig) -> data.StructLayout:
    """A whole vector as it is stored and read."""
    return data.StructLayout({
        "codes": data.ArrayLayout(signed(config.code_width), config.head_dim),
        "scale": unsigned(config.scale_width),
    })


class KvStore(wiring.Component):
    """Keeps ``slots * context`` vectors of ``head_dim`` codes with a scale each.

    A vector comes as ``head_dim // lanes`` rows on ``write_i``, row 0 first, with one transfer on
    ``scale_i`` and one on ``at_i``; the n-th of each belong together.  When all are there it is
    written at once, under ``at_i``'s address, and ``written_o`` names the address.

    Order: a read waits until ``after`` vectors have been written since reset, modulo
    ``2**order_width``, and gives what was last written to its address.  So a read whose ``after``
    counts the vector it wants needs nothing else to wait for.  Whoever writes sees to the other
    direction: an address may be written again when the reads of its former vector have been taken.
    ``after`` must lie less than ``2**(order_width - 1)`` from the count of written vectors.

    Throughput: a row and a vector read per cycle.  Latency: a vector is written one edge after its
    last row was taken and can be read at the next one; a read is offered on ``o`` two edges after
    it was taken (the memory, and a register behind it).  Reads stop while ``o`` is not taken,
    writes while ``written_o`` is not.  Reset drops the rows of an unfinished vector and the counts;
    vectors stay where they are.

    Errors: an address of ``slots * context`` or more, and one that was never written, read an
    unspecified vector.

    Members
    -------
    write_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: signed, ``lanes`` of them.
    scale_i : :py:`In(stream.Signature(StructLayout))`
        ``scale``: unsigned, of any unit.
    at_i : :py:`In(stream.Signature(StructLayout))`
        ``address``: where it goes; ``slot * context + token`` by convention.
    written_o : :py:`Out(stream.Signature(StructLayout))`
        ``address``: of a vector that can be read now.
    read_i : :py:`In(stream.Signature(StructLayout))`
        ``address``.  ``after``: vectors that must have been written before.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``codes``: all ``head_dim`` of them.  ``scale``.

    Source: the KV cache of VitaLLM, whose form its sheet does not give; int8 with an absmax scale
    is its hand-over between cores.
    """

    write_i: stream.Interface
    scale_i: stream.Interface
    at_i: stream.Interface
    written_o: stream.Interface
    read_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: KvStoreConfig):
        self.config = config
        row = data.ArrayLayout(signed(config.code_width), config.lanes)
        address = unsigned(max((config.vectors - 1).bit_length(), 1))
        super().__init__({
            "write_i": In(stream.Signature(data.StructLayout({"codes": row}))),
            "scale_i": In(
                stream.Signature(data.StructLayout({"scale": unsigned(config.scale_width)}))
            ),
            "at_i": In(stream.Signature(data.StructLayout({"address": address}))),
            "written_o": Out(stream.Signature(data.StructLayout({"address": address}))),
            "read_i": In(
                stream.Signature(
                    data.StructLayout({"address": address, "after": unsigned(config.order_width)})
                )
            ),
            "o": Out(stream.Signature(vector_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        memories = []
        for at in range(0, config.word_width, config.memory_width):
            width = min(config.memory_width, config.word_width - at)
            memory = Memory(shape=unsigned(width), depth=config.vectors, init=[])
            m.submodules[f"memory_{at}"] = memory
            memories.append(memory)
        written = Signal(config.order_width)
        self._write(m, [memory.write_port() for memory in memories], written)
        self._read(m, [memory.read_port() for memory in memories], written)
        return m

    def _write(self, m, ports, written):
        """Rows move through a register from its top; a full one is written in one go."""
        config = self.config
        vector = Signal(config.head_dim * config.code_width, reset_less=True)
        row, full, commit = Signal(bits_for(config.rows)), Signal(), Signal()
        m.d.comb += [
            self.write_i.ready.eq(~full | commit),
            commit.eq(
                full
                & self.scale_i.valid
                & self.at_i.valid
                & (~self.written_o.valid | self.written_o.ready)
            ),
            self.scale_i.ready.eq(commit),
            self.at_i.ready.eq(commit),
            Cat(port.data for port in ports).eq(Cat(vector, self.scale_i.p.scale)),
        ]
        for port in ports:
            m.d.comb += [port.en.eq(commit), port.addr.eq(self.at_i.p.address)]
        with m.If(self.written_o.ready):
            m.d.sync += self.written_o.valid.eq(0)
        with m.If(commit):
            m.d.sync += [
                full.eq(0),
                written.eq(written + 1),
                self.written_o.valid.eq(1),
                self.written_o.p.address.eq(self.at_i.p.address),
            ]
        with m.If(self.write_i.valid & self.write_i.ready):
            rows = Cat(vector, self.write_i.p.codes.as_value())
            m.d.sync += [vector.eq(rows[-len(vector) :]), row.eq(row + 1)]
            with m.If(row == config.rows - 1):
                m.d.sync += [row.eq(0), full.eq(1)]

    def _read(self, m, ports, written):
        """A read a cycle, unless it must wait for what it wants or for its taker."""
        m.submodules.pipeline = pipeline = Pipeline(2)
        behind, due = Signal(self.config.order_width), Signal()
        m.d.comb += [
            behind.eq(written - self.read_i.p.after),
            due.eq(~behind[-1]),
            pipeline.i_valid.eq(self.read_i.valid & due),
            self.read_i.ready.eq(pipeline.i_ready & due),
            self.o.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(self.o.ready),
        ]
        for port in ports:
            m.d.comb += [port.en.eq(pipeline.enable), port.addr.eq(self.read_i.p.address)]
        vector = Signal(self.config.word_width, reset_less=True)
        with m.If(pipeline.enable):
            m.d.sync += vector.eq(Cat(port.data for port in ports))
        m.d.comb += self.o.payload.as_value().eq(vector)
