# SPDX-License-Identifier: Apache-2.0
"""Matrix products of bipolar integers of any width, one pair of bit planes at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from .._pipeline import delayed, held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._popcount import Popcount, PopcountConfig


@dataclass(frozen=True, kw_only=True)
class BipolarGemmConfig(Config):
    lanes: int = param(64, "bits of a row in a transfer, a power of two", ge=4, le=4096)
    rows: int = param(4, "rows of weights in a transfer", ge=1, le=64)
    columns: int = param(1, "columns of activations in a transfer", ge=1, le=64)
    w_bits: int = param(8, "most planes of the weights", ge=1, le=8)
    x_bits: int = param(8, "most planes of the activations", ge=1, le=8)
    max_k: int = param(2048, "most products of one sum", ge=4, le=1 << 20)
    ternary: bool = param(True, "sums can be halved, for weights of two planes that count the same")
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "lanes": 8,
            "rows": 2,
            "columns": 2,
            "w_bits": 2,
            "x_bits": 3,
            "max_k": 64,
        },
        "square": {"lanes": 32, "rows": 3, "columns": 3, "max_k": 1024},
        "flat": {"lanes": 4, "rows": 1, "max_k": 50, "ternary": False, "stage": 0},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "Bipolar-INT, arXiv 2409.17870",
        "APT-LLM, arXiv 2508.19087",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        Rate(
            *("bipolar4", "bipolar8", 32),
            {"lanes": 64, "rows": 4, "columns": 4, "w_bits": 4, "max_k": 2048, "ternary": False},
        ),
    )

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.max_k < self.lanes:
            yield f"max_k must be at least lanes ({self.lanes}), not {self.max_k}"

    @property
    def sum_width(self) -> int:
        """Bits that hold ``max_k`` products of ``2**w_bits - 1`` and ``2**x_bits - 1``."""
        most = self.max_k * ((1 << self.w_bits) - 1) * ((1 << self.x_bits) - 1)
        return most.bit_length() + 1

    @property
    def count_width(self) -> int:
        """Bits of the number of lanes that count, 0 to ``lanes``."""
        return self.lanes.bit_length()

    @property
    def popcount(self) -> PopcountConfig:
        """Counts the lanes that differ."""
        return PopcountConfig(bits=self.lanes, stage=self.stage)

    @property
    def counted(self) -> int:
        """Registers from the input to the balance of a transfer."""
        return max(1, self.popcount.latency) + bool(self.stage)

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first cycle its sums are offered."""
        return self.counted + 1


class BipolarGemm(wiring.Component):
    """Products of ``rows`` rows of weights with ``columns`` columns, of bipolar integers.

    The ``n`` bits ``u[0]`` to ``u[n - 1]`` of a bipolar integer are worth ``-2**i`` or ``+2**i``
    each: ``sum((2 * u[i] - 1) * 2**i)``, the odd numbers from ``-(2**n - 1)`` to ``2**n - 1``.

    A run of transfers makes one block of ``rows`` by ``columns`` sums.  A transfer brings ``lanes``
    bits of one plane of every row and of one plane of every column.  For each row ``m`` and column
    ``n`` it adds

        ``count - 2 * popcount(w[m] ^ x[n])``

    which is the dot product of the signs in the first ``count`` lanes; in the other lanes all bits
    of ``w`` and ``x`` are to be equal, say 0.  Before it adds, a transfer with ``double`` doubles
    the sums so far.  So a run for weights of ``p`` bits and activations of ``q`` bits takes the
    pairs of planes ``(i, j)`` by falling ``i + j``, doubles where that falls, and ends with

        ``sum over k of w[m][k] * x[n][k]``

    after ``p * q * ceil(K / lanes)`` transfers.  ``p`` and ``q`` are chosen by the run.  Over it
    the counts add up to the format's constant ``K * (2**p - 1) * (2**q - 1)``, and with them
    padding is exact.

    With ``ternary``, ``halve`` at the last transfer halves the sums, rounding down.  Weights of two
    planes that both count 1 are -2, 0 or 2, so halved sums are those of ternary weights.

    Exact.  No overflow up to ``max_k`` products of ``w_bits`` by ``x_bits``: none is more than
    ``(2**w_bits - 1) * (2**x_bits - 1)`` in magnitude, and ``sum_width`` bits hold ``max_k`` of
    these.  Beyond that, sums wrap.

    Throughput is one transfer per cycle, runs follow without a gap.  Latency is ``config.latency``
    cycles after a run's last transfer.  All stages stop while offered sums are not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``w``: ``lanes`` bits for each of ``rows``.  ``x``: for each of ``columns``.  ``count``:
        lanes that are no padding.  ``double``: before adding.  ``halve``, with ``ternary``.
        ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: signed, ``columns`` for each of ``rows``.

    Source: the bipolar format and the recovery from one-bit products of Bipolar-INT and APT-LLM,
    kernels for GPUs; the array is ours (docs/blocks/bipolar_gemm.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: BipolarGemmConfig):
        self.config = config
        bits = data.ArrayLayout(unsigned(1), config.lanes)
        payload = data.StructLayout({
            "w": data.ArrayLayout(bits, config.rows),
            "x": data.ArrayLayout(bits, config.columns),
            "count": unsigned(config.count_width),
            "double": unsigned(1),
            **({"halve": unsigned(1)} if config.ternary else {}),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        sums = data.ArrayLayout(signed(config.sum_width), config.columns)
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(
                stream.Signature(data.StructLayout({"sums": data.ArrayLayout(sums, config.rows)}))
            ),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        enable = run.enable
        at = config.counted - 1
        control = Cat(payload.double, payload.halve) if config.ternary else payload.double
        control = delayed(m, enable, control, "control", config.latency)
        counts = delayed(m, enable, payload.count, "valid", config.counted)

        for row in range(config.rows):
            for column in range(config.columns):
                name = f"{row}_{column}"
                balance = self._balance(m, platform, name, enable, row, column, counts)
                acc = Signal(signed(config.sum_width), name=f"acc_{name}", reset_less=True)
                kept = Mux(control[at][0], Cat(0, acc)[: config.sum_width], acc)
                add = place(
                    m,
                    platform,
                    f"accumulate_{name}",
                    AddSelect(AddSelectConfig(width=config.sum_width)),
                    a=kept & (~run.opens[at]).replicate(config.sum_width),
                    b=balance,
                    enable=1,
                    invert=0,
                    carry=0,
                )
                with m.If(enable & run.moves[at]):
                    m.d.sync += acc.eq(add.y)
                total = Mux(control[at + 1][1], acc >> 1, acc) if config.ternary else acc
                m.d.comb += self.o.p.sums[row][column].eq(total)
        return m

    def _balance(self, m: Module, platform, name: str, enable, row: int, column: int, counts):
        """``count - 2 * popcount`` of a transfer, in a register."""
        config = self.config
        differ = self.i.p.w[row].as_value() ^ self.i.p.x[column].as_value()
        counter = Popcount(config.popcount)
        place(m, platform, f"count_{name}", counter, bits=differ, enable=enable)
        count, pending, valid = counter.count, counter.pending, counts[config.popcount.latency - 1]
        if not config.popcount.latency:
            count = held(m, enable, count, f"count_{name}")
            pending, valid = held(m, enable, pending, f"pending_{name}"), counts[0]
        # -2 * (count + pending) is ~(2 * count + pending) + 1 - pending
        balance = place(
            m,
            platform,
            f"balance_{name}",
            AddSelect(AddSelectConfig(width=config.count_width + 1)),
            a=valid,
            b=Cat(pending, count),
            enable=1,
            invert=1,
            carry=~pending,
        ).y[: config.count_width + 1]
        balance = balance.as_signed()
        return held(m, enable, balance, f"balance_{name}") if config.stage else balance
