# SPDX-License-Identifier: Apache-2.0
"""Matrix times a batch of vectors by tables of sums of weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, Rate, param
from ._bit_rows import BitRows
from ._feed import DataFeed, acts_layout
from ._plane_sum import sums_layout
from ._slices import Slices
from ._weight_table import weights_layout

ROWS = 63
"""Most rows of a table: those of six weights."""

BITS = 1 << 18
"""Most bits of the tables of one block."""


@dataclass(frozen=True, kw_only=True)
class SailSramConfig(Config):
    wb: int = param(4, "bits of a weight", ge=1, le=8)
    ab: int = param(8, "bits of an activation", ge=1, le=16)
    w_signed: bool = param(True, "weights are two's complement numbers")
    a_signed: bool = param(True, "activations are two's complement numbers")
    nbw: int = param(4, "weights of a table, which has 2**nbw - 1 rows", ge=1, le=16)
    cols: int = param(16, "outputs computed side by side", ge=1, le=1024)
    batch: int = param(8, "activation vectors that a table serves", ge=1, le=64)
    max_k: int = param(4096, "most products of one sum", ge=1, le=1 << 20)
    acc: int = param(0, "bits of a sum; 0 for those that hold every sum of max_k", ge=0, le=48)
    style: str = param(
        "word", "table read by words, or bit rows added one a cycle", choices=("word", "serial")
    )
    double: bool = param(False, "build the next table in a second memory while one is read")
    access: int = param(1, "cycles of the memory that reading a row takes", ge=1, le=8)
    stage: int = param(1, "registers between product and sum: 0 or 1", ge=0, le=1)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"wb": 2, "ab": 3, "nbw": 2, "cols": 2, "batch": 2, "max_k": 64},
        "serial": {
            "wb": 3,
            "ab": 4,
            "nbw": 3,
            "cols": 8,
            "batch": 4,
            "max_k": 256,
            "style": "serial",
        },
        "double": {
            "wb": 2,
            "nbw": 3,
            "batch": 1,
            "a_signed": False,
            "double": True,
            "access": 2,
        },
        "bits": {
            "wb": 1,
            "ab": 1,
            "w_signed": False,
            "nbw": 6,
            "batch": 3,
            "max_k": 600,
            "acc": 16,
            "double": True,
            "stage": 0,
        },
    }
    papers: ClassVar[tuple[str, ...]] = ("SAIL, arXiv 2509.25853",)
    rates: ClassVar[tuple[Rate, ...]] = tuple(
        Rate(
            *(weights, "int8", 32),
            {"wb": bits, "cols": 64, "batch": 2, "max_k": 2560, "double": True},
            rows=64,
        )
        for weights, bits in (("ternary", 2), ("int4", 4), ("int8", 8))
    )

    def faults(self) -> Iterator[str]:
        rows, bits = self.table_rows, self.table_bits
        if rows > ROWS or bits > BITS:
            yield (
                f"tables of {rows} rows of {self.cols} x {self.entry_width} bits are {bits} bits; "
                f"at most {ROWS} rows (nbw 6) and {BITS} bits are made"
            )
        if self.max_k < self.nbw:
            yield f"max_k must be at least nbw ({self.nbw}), not {self.max_k}"
        if self.acc and self.acc < self.needed:
            yield (
                f"sums of {self.max_k} products of {self.wb} by {self.ab} bits need "
                f"{self.needed} bits, and acc is {self.acc}"
            )
        if self.style == "serial" and self.double:
            yield (
                "double needs style=word: the one write port of style=serial is busy with the sums"
            )
        if self.style == "serial" and self.access > 1:
            yield "access needs style=word: style=serial reads two rows a cycle; set access=1"

    @property
    def entry_width(self) -> int:
        """Bits that hold every sum of ``nbw`` weights, signed."""
        return self.wb + ceil_log2(self.nbw) + (not self.w_signed)

    @property
    def table_rows(self) -> int:
        """Rows of a table: all sums but the empty one."""
        return (1 << self.nbw) - 1

    @property
    def table_bits(self) -> int:
        """Bits of the tables."""
        return self.table_rows * self.entry_width * self.cols * (1 + self.double)

    @property
    def sum_bits(self) -> int:
        """Bits of the sums of the batch."""
        return self.batch * self.acc_width * self.cols

    @property
    def adds(self) -> int:
        """Adds that build a table."""
        return self.table_rows - self.nbw

    @property
    def needed(self) -> int:
        """Bits that hold every sum of ``max_k`` products, signed."""
        weights, acts = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
            for bits, is_signed in ((self.wb, self.w_signed), (self.ab, self.a_signed))
        )
        products = [weight * act for weight in weights for act in acts]
        low, high = min(products) * self.max_k, max(products) * self.max_k
        return max((-low - 1).bit_length(), high.bit_length()) + 1

    @property
    def acc_width(self) -> int:
        """Bits of a sum."""
        return self.acc or self.needed

    @property
    def sum_latency(self) -> int:
        """Registers from a looked-up value to the sum."""
        return 1 + self.stage

    @property
    def latency(self) -> int:
        """Cycles from the look-up of a vector's highest bits to the first its sum is offered."""
        if self.style == "serial":
            return self.acc_width - self.ab + 2 + self.acc_width + 1
        return max(1, self.access - 1) + self.sum_latency


class SailSram(wiring.Component):
    """Matrix times a batch of vectors by tables of sums of weights.

    ``nbw`` weights of each of ``cols`` columns make a table: row ``p`` is the sum of the weights
    whose bit of ``p`` is set.  It is built by ``2**nbw - nbw - 1`` adds, each of an earlier row and
    a weight.  Bit ``j`` of ``nbw`` activations is a pattern, and what the table says for it counts
    ``2**j``, that of the highest bit of signed activations less than nothing: ``ab`` look-ups
    multiply ``nbw`` activations with ``nbw * cols`` weights.  A table serves ``batch`` vectors.

    Weights come ``nbw`` transfers a table, those of one input in each; activations ``batch``
    transfers a table, those of one vector in each, item 0 first.  Items keep a sum each, over the
    tables from ``first`` to ``last``; a sum is offered after its ``last``.

    Sums are exact: no rounding, and no overflow up to ``max_k`` products in a sum, of all values
    of weights and activations; beyond that they wrap to ``acc_width`` bits.

    ``style`` is how tables are kept:

    word
        A word of the memory is a row of the table.  Building takes ``2**nbw`` cycles: one an add,
        one a weight, and one until the last row can be read; a look-up takes ``access`` cycles.
        With ``double`` tables are built while others are read.
    serial
        A word of the memory is one bit of every column, of weights, tables and sums alike, and each
        column has an adder of one bit.  Assumed of the memory: two rows are read and one is written
        in each cycle.  An addition of ``n`` bits takes ``n + 1`` cycles.  Building takes
        ``nbw * e + adds * (e + 1)`` cycles of ``e = entry_width``, the look-up of bit ``j``
        ``acc_width - j + 1``, and showing a sum ``acc_width + 1``.

    Throughput is that; nothing else waits.  Latency is ``config.latency`` cycles from the look-up
    of the highest bits.  An offered sum that is not taken stops what would replace it.  Reset drops
    tables and sums.

    Restart: ``first`` drops an unfinished sum and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    weights_i : :py:`In(stream.Signature(StructLayout))`
        ``w``: one weight for each column.
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``a``: ``nbw`` activations.  ``first``, ``last``: of the item's sum.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: signed, one for each column.

    Source: LUT-GEMV of SAIL, in which tables are made of weights inside compute-capable SRAM and
    indexed by bits of activations, the lowest first; the rest is ours (docs/blocks/sail_sram.md).
    """

    weights_i: stream.Interface
    acts_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: SailSramConfig):
        self.config = config
        super().__init__({
            "weights_i": In(stream.Signature(weights_layout(config))),
            "acts_i": In(stream.Signature(acts_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.feed = feed = DataFeed(self.config)
        wiring.connect(m, wiring.flipped(self.acts_i), feed.acts_i)
        m.d.comb += feed.items.eq(self.config.batch - 1)
        m.submodules.rows = rows = (
            BitRows(self.config) if self.config.style == "serial" else Slices(self.config)
        )
        wiring.connect(m, wiring.flipped(self.weights_i), rows.weights_i)
        wiring.connect(m, feed.o, rows.look_i)
        wiring.connect(m, rows.o, wiring.flipped(self.o))
        return m
