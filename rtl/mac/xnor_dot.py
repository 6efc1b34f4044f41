# SPDX-License-Identifier: Apache-2.0
"""Dot products of binary activations with binary weights: XNOR and a count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig, accumulated
from .._once import place
from .._pipeline import delayed, held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._popcount import STRUCTURES, Popcount, PopcountConfig


@dataclass(frozen=True, kw_only=True)
class XnorDotConfig(Config):
    lanes: int = param(256, "products per transfer, a power of two", ge=4, le=4096)
    max_k: int = param(4096, "most products of one sum", ge=4, le=1 << 20)
    mask: bool = param(False, "a bit for each lane that says whether it counts")
    threshold: bool = param(False, "compare the sum with a threshold that comes with the run")
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    structure: str = param("counters", "how bits are counted", choices=STRUCTURES)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 8, "max_k": 64, "mask": True, "threshold": True},
        "mask": {"lanes": 64, "mask": True},
        "bnn": {"lanes": 64, "threshold": True},
        "adders": {"structure": "adders"},
        "flat": {"lanes": 4, "max_k": 30, "mask": True, "stage": 0},
    }
    papers: ClassVar[tuple[str, ...]] = ("BiBench, arXiv 2301.11233",)

    rates: ClassVar[tuple[Rate, ...]] = (Rate("bipolar1", "bipolar1", 256),)

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.max_k < self.lanes:
            yield f"max_k must be at least lanes ({self.lanes}), not {self.max_k}"

    @property
    def sum_width(self) -> int:
        """Bits that hold ``-max_k`` to ``max_k``."""
        return self.max_k.bit_length() + 1

    @property
    def unit(self) -> int:
        """What one in the register of sums counts: without ``mask`` all sums are even."""
        return 1 if self.mask else 2

    @property
    def count(self) -> PopcountConfig:
        """Counts the bits of a transfer: one of every lane, or two with ``mask``."""
        bits = self.lanes * (2 if self.mask else 1)
        return PopcountConfig(bits=bits, stage=self.stage, structure=self.structure)

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first cycle its sum is offered."""
        return max(1, self.count.latency) + 1 + self.threshold


class XnorDot(wiring.Component):
    """Dot product of signs with signs, as bits that are 1 for +1 and 0 for -1.

    A run of transfers is one dot product.  A transfer adds for each lane +1 where ``a`` and ``w``
    are equal and -1 where they differ; with ``mask`` only where the lane's ``mask`` is 1.  Over
    ``K`` lanes that count, the ``sum`` is ``K - 2 * popcount(a ^ w)``.

    With ``threshold`` the output has a ``bit`` too: ``sum >= threshold``, inverted by ``flip``;
    both come with the last transfer.  Scale, batch norm and sign of a layer of signs fold into
    these: ``flip`` is for a negative scale, whose ``sum <= t`` is not ``sum >= t + 1``.

    Exact.  No overflow up to ``max_k`` lanes in a run, masked ones included: a sum is at most
    ``max_k`` in magnitude, which ``sum_width`` bits hold.  Beyond that, sums wrap.

    Throughput is one transfer per cycle, runs follow without a gap.  Latency is ``config.latency``
    cycles after a run's last transfer.  All stages stop while an offered sum is not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``, ``w``: a bit for each lane.  ``mask``, with ``mask``.  ``threshold``, signed, and
        ``flip``, with ``threshold``.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: signed.  ``bit``, with ``threshold``.

    Source: the binary operators that BiBench compares, all of which are this sum but for scales;
    the structure is ours (docs/blocks/xnor_dot.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: XnorDotConfig):
        self.config = config
        bits = data.ArrayLayout(unsigned(1), config.lanes)
        threshold = {"threshold": signed(config.sum_width), "flip": unsigned(1)}
        payload = data.StructLayout({
            "a": bits,
            "w": bits,
            **({"mask": bits} if config.mask else {}),
            **(threshold if config.threshold else {}),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        result = {"bit": unsigned(1)} if config.threshold else {}
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(
                stream.Signature(data.StructLayout({"sum": signed(config.sum_width), **result}))
            ),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        enable = run.enable

        a, w = payload.a.as_value(), payload.w.as_value()
        bits = ~(a ^ w)
        if config.mask:  # a masked lane has one of its two bits set, one that counts both or none
            bits = Cat(bits & payload.mask.as_value(), bits | ~payload.mask.as_value())
        counted = place(m, platform, "count", Popcount(config.count), bits=bits, enable=enable)
        count, pending = counted.count, counted.pending
        if not config.count.latency:
            count, pending = held(m, enable, count, "count"), held(m, enable, pending, "pending")
        at = config.latency - config.threshold - 2

        # Less half of the bits: the top bit of a count of 2**k - 1 bits, inverted, is its sign.
        balance = Cat(count[:-1], ~count[-1]).as_signed()
        acc = accumulated(
            m,
            platform,
            config.sum_width - (config.unit == 2),
            balance,
            pending,
            run.opens[at],
            enable & run.moves[at],
        )
        total = Cat(0, acc).as_signed() if config.unit == 2 else acc
        if config.threshold:
            total = self._compared(m, platform, enable, total)
        m.d.comb += self.o.p.sum.eq(total)
        return m

    def _compared(self, m: Module, platform, enable, total):
        """``total`` and beside it whether it is at least the threshold, a register later."""
        before = self.config.latency - 1
        threshold = delayed(m, enable, self.i.p.threshold, "threshold", before)[-1]
        flip = delayed(m, enable, self.i.p.flip, "flip", before)[-1]
        less = place(
            m,
            platform,
            "compare",
            AddSelect(AddSelectConfig(width=self.config.sum_width)),
            a=total,
            b=threshold,
            enable=1,
            invert=1,
            carry=1,
        )
        m.d.comb += self.o.p.bit.eq(held(m, enable, less.y[-1] ^ ~flip, "bit"))
        return held(m, enable, total, "sum")
