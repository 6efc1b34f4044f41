# SPDX-License-Identifier: Apache-2.0
"""Dot products with weights of any width, one bit of every weight at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, accumulated
from .._once import place
from .._pipeline import delayed, held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._planes import plane_sums
from ._select_tree import SelectTreeConfig


@dataclass(frozen=True, kw_only=True)
class BitSerialDotConfig(Config):
    lanes: int = param(64, "weights in a transfer, a power of two", ge=2, le=1024)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    max_bits: int = param(8, "most planes of a run, which are the bits of a weight", ge=2, le=16)
    max_k: int = param(4096, "most weights of one sum", ge=2, le=1 << 20)
    order: str = param("msb", "which plane of a run comes first", choices=("lsb", "msb"))
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(4, "lanes in series at each leaf of a tree, a power of two", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 4, "act_width": 4, "max_bits": 4, "max_k": 64},
        "lsb": {"order": "lsb"},
        "flat": {"lanes": 16, "max_bits": 5, "max_k": 100, "order": "lsb", "stage": 0},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "Bi-Mamba, arXiv 2411.11843",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        Rate("int8", "int8", 32, {"lanes": 256}),
        Rate("int4", "int8", 32, {"lanes": 128, "max_bits": 4}),
    )

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.max_k < self.lanes:
            yield f"max_k must be at least lanes ({self.lanes}), not {self.max_k}"

    @property
    def sum_width(self) -> int:
        """Bits that hold ``max_k`` products below ``2**(act_width + max_bits - 1)``."""
        return self.act_width + self.max_bits + ceil_log2(self.max_k)

    @property
    def shift_width(self) -> int:
        """Bits of the number of a plane."""
        return ceil_log2(self.max_bits)

    @property
    def tree(self) -> SelectTreeConfig:
        """Sums one plane of a transfer."""
        return SelectTreeConfig(
            lanes=self.lanes, act_width=self.act_width, stage=self.stage, chain=self.chain
        )

    @property
    def shift_latency(self) -> int:
        """Registers of the shifter that LSB first needs."""
        return int(self.order == "lsb" and self.stage > 0)

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first cycle its sum is offered."""
        return 1 + self.tree.latency + self.shift_latency + 1


class BitSerialDot(wiring.Component):
    """Dot product of integers with weights that come one bit plane at a time.

    A run of transfers is one dot product.  A transfer brings ``lanes`` activations and one bit of
    as many weights: ``t = sum(bits[n] * acts[n])``.  All transfers of one plane come together, then
    those of the next; ``plane`` marks the first transfer of each plane but the first, where it is
    not looked at.  With ``b`` planes and ``order`` ``"msb"`` they count ``2**(b - 1)`` to 1, and
    with ``"lsb"`` 1 to ``2**(b - 1)``.  With ``sign`` a transfer is subtracted: the top bit of
    weights in two's complement.  Without, weights are unsigned.

    So the width of the weights is chosen by the run, from 1 to ``max_bits``, and takes as many
    times the cycles.  ``sign`` may stand with any plane.

    Exact: no rounding.  No overflow up to ``max_k`` weights and ``max_bits`` planes: the weights of
    the planes add up to less than ``2**max_bits``, so a sum is less than
    ``max_k * 2**(act_width - 1 + max_bits)`` in magnitude, which ``sum_width`` bits hold.  Beyond
    ``max_k``, sums wrap to ``sum_width`` bits; a run of more planes gives an unspecified sum.

    Throughput is one transfer per cycle, runs follow without a gap.  Latency is ``config.latency``
    cycles after a run's last transfer.  All stages stop while an offered sum is not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed.  ``bits``: one bit of each weight.  ``plane``: begins a new plane.
        ``sign``: subtract.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: signed.

    Source: bit-serial weights as in BoothFlex-BS of VitaLLM, whose details are not public, and the
    one-bit products of Bi-Mamba; the structure is ours (docs/blocks/bit_serial_dot.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: BitSerialDotConfig):
        self.config = config
        payload = data.StructLayout({
            "acts": data.ArrayLayout(signed(config.act_width), config.lanes),
            "bits": data.ArrayLayout(unsigned(1), config.lanes),
            "plane": unsigned(1),
            "sign": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        enable = run.enable
        (total,) = plane_sums(
            m, platform, config.tree, list(payload.acts), {"bits": payload.bits}, enable
        )
        planes = delayed(m, enable, payload.plane, "plane", config.latency)
        signs = delayed(m, enable, payload.sign, "sign", config.latency)

        at = config.tree.latency
        if config.order == "msb":
            acc = self._doubling(m, platform, total, planes[at], signs[at], run, at)
        else:
            number = self._number(m, run, planes[0])
            numbers = [number, *delayed(m, enable, number, "number", config.latency)]
            total = self._shifted(m, total, numbers[at], signs[at])
            if config.stage:
                total, at = held(m, enable, total, "shifted"), at + 1
            acc = accumulated(
                m,
                platform,
                config.sum_width,
                total,
                signs[at],
                run.opens[at],
                enable & run.moves[at],
            )
        m.d.comb += self.o.p.sum.eq(acc)
        return m

    def _doubling(self, m: Module, platform, total, plane, sign, run, at: int):
        """The register of sums, which a new plane doubles: a LUT before the chain that adds."""
        width = self.config.sum_width
        acc = Signal(signed(width), name="acc", reset_less=True)
        kept = Mux(plane, Cat(0, acc)[:width], acc) & (~run.opens[at]).replicate(width)
        add = place(
            m,
            platform,
            "accumulate",
            AddSelect(AddSelectConfig(width=width)),
            a=kept.as_signed(),
            b=total,
            enable=1,
            invert=sign,
            carry=sign,
        )
        with m.If(run.enable & run.moves[at]):
            m.d.sync += acc.eq(add.y)
        return acc

    def _number(self, m: Module, run, plane):
        """Which plane of its run a transfer is of, one register behind the input."""
        before, number = Signal(self.config.shift_width), Signal(self.config.shift_width)
        m.d.comb += number.eq(Mux(run.opens[0], 0, before + plane))
        with m.If(run.enable & run.moves[0]):
            m.d.sync += before.eq(number)
        return number

    def _shifted(self, m: Module, total, number, sign):
        """``total << number``, or with ``sign`` its complement, which lacks one to the negative."""
        value = total ^ sign.replicate(len(total)).as_signed()
        for bit in range(self.config.shift_width):
            ones = sign.replicate(1 << bit)
            value = Mux(number[bit], Cat(ones, value).as_signed(), value)
            level = Signal.like(value, name=f"shifted_{bit}")
            m.d.comb += level.eq(value)
            value = level
        return value
