# SPDX-License-Identifier: Apache-2.0
"""Dot product of integer activations with ternary weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._once import place
from .._pipeline import Pipeline
from ..config import Config, Rate, param
from ._select_tree import SELECTS, SelectTree, SelectTreeConfig


@dataclass(frozen=True, kw_only=True)
class TernaryDotConfig(Config):
    lanes: int = param(64, "products summed per transfer, a power of two", ge=2, le=4096)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    select: str = param("fused", "how a lane is negated", choices=SELECTS)
    chain: int = param(
        4, "lanes in series at each leaf of a fused tree, a power of two", ge=2, le=16
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 4, "act_width": 4, "stage": 0},
        "wide": {"lanes": 512, "stage": 1},
        "invert": {"select": "invert"},
        "mux": {"select": "mux"},
        "unsigned": {"select": "unsigned"},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "BitNet b1.58, arXiv 2402.17764",
    )

    rates: ClassVar[tuple[Rate, ...]] = (Rate("ternary", "int8", 32, {"lanes": 32}),)

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"

    @property
    def sum_width(self) -> int:
        """Bits that hold every sum: ``lanes`` terms of magnitude ``2**(act_width - 1)``."""
        return self.act_width + ceil_log2(self.lanes) + 1

    @property
    def tree(self) -> SelectTreeConfig:
        return SelectTreeConfig(
            lanes=self.lanes,
            act_width=self.act_width,
            stage=self.stage,
            select=self.select,
            chain=self.chain,
        )

    @property
    def latency(self) -> int:
        """Cycles from an input transfer to the first cycle its sum is offered."""
        return self.tree.latency + 1


class TernaryDot(wiring.Component):
    """Dot product of signed activations with ternary weights, lanes in parallel along K.

    ``sum = acts[0] * weights[0] + ... + acts[lanes - 1] * weights[lanes - 1]``, exact: no rounding
    and no overflow, activations may take every value including the most negative one.

    Latency is ``config.latency`` cycles, throughput one transfer per cycle.  All stages stop while
    an offered sum is not taken.  Reset drops whatever is in flight.

    ``select`` is the structure of a lane; results are the same bits:

    ======== =====================================================================================
    fused    complement and skip inside the carry chain (one operand), missing +1 as carry-ins
    invert   complement and skip in front of the adders, missing +1 as carry-ins
    mux      negate, then choose among +a, -a and 0
    unsigned multiply by weight + 1 (0, 1, 2), subtract the sum of all activations
    ======== =====================================================================================

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed.  ``weights``: two's complement, 0, 1 and 3 for 0, +1 and -1; code 2 is no
        weight and gives an unspecified sum.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: signed, ``config.sum_width`` bits.

    Source: the TINT lane of VitaLLM (multiplier-free ternary by integer), structure ours.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TernaryDotConfig):
        self.config = config
        payload = data.StructLayout({
            "acts": data.ArrayLayout(signed(config.act_width), config.lanes),
            "weights": data.ArrayLayout(unsigned(2), config.lanes),
        })
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.pipeline = pipeline = Pipeline(self.config.latency)
        m.d.comb += [
            pipeline.i_valid.eq(self.i.valid),
            self.i.ready.eq(pipeline.i_ready),
            self.o.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(self.o.ready),
        ]

        inputs = {"acts": self.i.p.acts, "enable": pipeline.enable}
        tree = SelectTree(self.config.tree)
        place(m, platform, "tree", tree, weights=self.i.p.weights, **inputs)
        if self.config.select == "unsigned":
            plain = SelectTree(self.config.tree)  # weight code 0 counts once
            place(m, platform, "plain", plain, **inputs)
            total = tree.sum - plain.sum
        else:
            total = tree.sum + tree.pending

        x_sum = Signal(signed(self.config.sum_width), reset_less=True)
        with m.If(pipeline.enable):
            m.d.sync += x_sum.eq(total)
        m.d.comb += self.o.p.sum.eq(x_sum)

        return m
