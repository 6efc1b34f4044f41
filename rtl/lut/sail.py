# SPDX-License-Identifier: Apache-2.0
"""Batched matrix-vector products by look-up: slices of tables behind one instruction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, ConfigError, param
from ._feed import DataFeed, acts_layout
from ._plane_sum import sums_layout
from ._slices import Slices
from ._weight_table import weights_layout
from .pattern_reuse import PatternReuseConfig
from .sail_sram import SailSramConfig


@dataclass(frozen=True, kw_only=True)
class SailConfig(Config):
    wb: int = param(4, "bits of a weight", ge=1, le=8)
    ab: int = param(8, "bits of an activation", ge=1, le=16)
    w_signed: bool = param(True, "weights are two's complement numbers")
    a_signed: bool = param(True, "activations are two's complement numbers")
    nbw: int = param(4, "weights of a table, which has 2**nbw - 1 rows", ge=1, le=16)
    cols: int = param(16, "outputs of a slice", ge=1, le=1024)
    slices: int = param(2, "tables side by side, which look up the same patterns", ge=1, le=64)
    batch: int = param(8, "most activation vectors that a table serves", ge=1, le=64)
    max_k: int = param(4096, "most products of one sum", ge=1, le=1 << 20)
    max_tables: int = param(256, "most tables of one instruction", ge=1, le=1 << 16)
    entries: int = param(0, "patterns whose values are kept for reuse; 0 for none", ge=0, le=256)
    double: bool = param(True, "build the next table in a second memory while one is read")
    access: int = param(2, "cycles of the memory that reading a row takes", ge=1, le=8)
    stage: int = param(1, "registers between product and sum: 0 or 1", ge=0, le=1)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "wb": 2,
            "ab": 3,
            "nbw": 3,
            "cols": 2,
            "batch": 2,
            "max_k": 96,
            "max_tables": 4,
            "entries": 3,
        },
        "reuse": {"nbw": 6, "slices": 1, "entries": 32},
        "alone": {
            "wb": 8,
            "nbw": 2,
            "slices": 1,
            "cols": 4,
            "batch": 1,
            "a_signed": False,
            "max_tables": 1,
            "entries": 4,
            "double": False,
            "access": 3,
            "stage": 0,
        },
    }
    papers: ClassVar[tuple[str, ...]] = ("SAIL, arXiv 2509.25853",)

    def faults(self) -> Iterator[str]:
        try:
            part = self.part
        except ConfigError as error:
            yield str(error).partition(": ")[2]
            return
        if self.entries > part.table_rows + 1:
            yield (
                f"entries must be at most {part.table_rows + 1}, the patterns of nbw={self.nbw}, "
                f"not {self.entries}"
            )
        if self.columns > 4096:
            yield f"slices * cols must be at most 4096, not {self.columns}"

    @property
    def part(self) -> SailSramConfig:
        """A slice."""
        names = ("wb", "ab", "w_signed", "a_signed", "nbw", "cols", "batch", "max_k")
        names += ("double", "access", "stage")
        return SailSramConfig(**{name: getattr(self, name) for name in names})

    @property
    def columns(self) -> int:
        """Outputs of all slices."""
        return self.slices * self.cols

    @property
    def acc_width(self) -> int:
        """Bits of a sum."""
        return self.part.acc_width

    @property
    def array_bits(self) -> int:
        """Bits of the memory arrays: tables and sums of all slices."""
        return self.slices * (self.part.table_bits + self.part.sum_bits)

    @property
    def reuse_bits(self) -> int:
        """Bits of the pattern reuse table."""
        if not self.entries:
            return 0
        return PatternReuseConfig(
            pattern=self.nbw,
            width=self.part.entry_width,
            cols=self.columns,
            entries=self.entries,
        ).storage

    @property
    def latency(self) -> int:
        """Cycles from the look-up of a vector's highest bits to the first its sum is offered."""
        return (1 if self.entries else max(1, self.access - 1)) + self.part.sum_latency


def command_layout(config: SailConfig) -> data.StructLayout:
    """The instruction ``lutmm``: its operands, the lowest bits first."""
    counts = {"tables": ceil_log2(config.max_tables), "items": ceil_log2(config.batch)}
    return data.StructLayout({
        **{name: unsigned(width) for name, width in counts.items() if width},
        "opens": unsigned(1),
        "closes": unsigned(1),
    })


class Sail(wiring.Component):
    """Batched matrix-vector products by look-up: slices of tables behind one instruction.

    ``lutmm tables, items, opens, closes`` multiplies ``(tables + 1) * nbw`` inputs of each of
    ``items + 1`` vectors with the weights of all columns, and adds the products to the vectors'
    sums; with ``opens`` sums begin at zero, with ``closes`` they are offered, vector 0 first.  The
    data feeding module makes patterns of one bit of each of ``nbw`` activations; all slices look
    them up in their tables of weights (see :class:`SailSram`).  With ``entries`` the pattern reuse
    table (:class:`PatternReuse`) is asked first; it forgets all with each table.

    Operands have no other streams than these: weights come table by table, ``nbw`` transfers
    each, and activations table by table, one transfer for each vector.

    Sums are exact: no rounding, and no overflow up to ``max_k`` products in a sum; beyond that they
    wrap to ``acc_width`` bits.

    Building a table takes ``2**nbw`` cycles.  A look-up takes ``access`` cycles, in which the array
    is busy; with ``entries`` one cycle if its value is there, else the larger of 2 and ``access``.
    With ``double`` building and looking up go on side by side, the next table being built in a
    second memory; else one after the other.  Instructions follow without a gap.  Latency is
    ``config.latency`` cycles from the look-up of the highest bits.  An offered sum that is not
    taken stops all look-ups.  Reset drops tables and sums.

    Restart: ``opens`` drops unfinished sums of the vectors that take part; after ``closes`` it may
    be left out.  Errors: none; every instruction is valid.

    Members
    -------
    cmd_i : :py:`In(stream.Signature(StructLayout))`
        ``tables``, ``items``: less one, where there may be several.  ``opens``, ``closes``.
    weights_i : :py:`In(stream.Signature(StructLayout))`
        ``w``: one weight for each column, slice after slice.
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``a``: ``nbw`` activations.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: signed, one for each column.

    Source: SAIL: slices of compute-capable SRAM beside those of a cache, each with a data feeding
    module and a pattern reuse table, and one new instruction; its encoding is not given, and is
    ours, as the structure is (docs/blocks/sail.md).
    """

    cmd_i: stream.Interface
    weights_i: stream.Interface
    acts_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: SailConfig):
        self.config = config
        part = config.part
        whole = replace(part, cols=config.columns)
        super().__init__({
            "cmd_i": In(stream.Signature(command_layout(config))),
            "weights_i": In(stream.Signature(weights_layout(whole))),
            "acts_i": In(stream.Signature(acts_layout(part, marks=False))),
            "o": Out(stream.Signature(sums_layout(whole))),
        })

    def elaborate(self, platform):
        m = Module()
        config, command = self.config, self.cmd_i
        m.submodules.feed = feed = DataFeed(config.part)
        m.submodules.slices = slices = Slices(config.part, config.slices, config.entries)
        wiring.connect(m, wiring.flipped(self.weights_i), slices.weights_i)
        wiring.connect(m, feed.o, slices.look_i)
        wiring.connect(m, slices.o, wiring.flipped(self.o))

        table, final, done = Signal(range(config.max_tables)), Signal(), Signal()
        m.d.comb += [
            final.eq(table == command.p.tables if config.max_tables > 1 else 1),
            feed.items.eq(command.p.items if config.batch > 1 else 0),
            feed.acts_i.valid.eq(self.acts_i.valid & command.valid),
            self.acts_i.ready.eq(feed.acts_i.ready & command.valid),
            feed.acts_i.p.a.eq(self.acts_i.p.a),
            feed.acts_i.p.first.eq(command.p.opens & (table == 0)),
            feed.acts_i.p.last.eq(command.p.closes & final),
            done.eq(feed.o.valid & feed.o.ready & feed.o.p.closes),
            command.ready.eq(done & final),
        ]
        with m.If(done):
            m.d.sync += table.eq(Mux(final, 0, table + 1))
        return m
