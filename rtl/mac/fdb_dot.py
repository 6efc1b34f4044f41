# SPDX-License-Identifier: Apache-2.0
"""Dot products with weights of two binary planes, each plane with a scale for each group."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import accumulated
from .._once import place
from .._pipeline import delayed, held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._booth import BoothProduct, BoothProductConfig
from ._planes import plane_sums
from ._select_tree import SelectTreeConfig


@dataclass(frozen=True, kw_only=True)
class FdbDotConfig(Config):
    lanes: int = param(64, "weights per transfer, a power of two", ge=2, le=1024)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    scale_width: int = param(16, "bits of one signed scale", ge=2, le=18)
    max_group: int = param(128, "most weights that share their scales", ge=2, le=1 << 16)
    max_k: int = param(4096, "most weights of one sum", ge=2, le=1 << 20)
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(4, "lanes in series at each leaf of a tree, a power of two", ge=2, le=16)
    product: str = param(
        "multiply",
        "scales by the synthesis' multipliers, or by rows of adders",
        choices=("multiply", "rows"),
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 4, "act_width": 4, "scale_width": 6, "max_group": 16, "max_k": 64},
        "flat": {"lanes": 8, "max_group": 64, "max_k": 1024, "stage": 0},
        "adders": {"lanes": 32, "product": "rows"},
    }
    papers: ClassVar[tuple[str, ...]] = ("DB-LLM, arXiv 2402.11960",)

    rates: ClassVar[tuple[Rate, ...]] = (
        Rate("fdb", "int8", 32, {"lanes": 32, "scale_width": 8, "product": "rows"}),
    )

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.max_group < self.lanes:
            yield f"max_group must be at least lanes ({self.lanes}), not {self.max_group}"
        if self.max_k < self.max_group:
            yield f"max_k must be at least max_group ({self.max_group}), not {self.max_k}"
        if self.product == "rows" and self.scale_width % 2:
            yield f"scale_width must be even with product rows, not {self.scale_width}"

    @property
    def group_width(self) -> int:
        """Bits of the sum of a group and plane: ``max_group`` times ``-2**(act_width - 1)``."""
        return self.act_width + ceil_log2(self.max_group)

    @property
    def sum_width(self) -> int:
        """Bits that hold the largest sum, ``max_k * 2**(act_width + scale_width - 1)``."""
        return self.act_width + self.scale_width + self.max_k.bit_length()

    @property
    def tree(self) -> SelectTreeConfig:
        """Sums one plane."""
        return SelectTreeConfig(
            lanes=self.lanes, act_width=self.act_width, stage=self.stage, chain=self.chain
        )

    @property
    def rows(self) -> BoothProductConfig:
        """The sum of a group times a scale, with ``product="rows"``."""
        return BoothProductConfig(
            a_width=self.group_width, digits=self.scale_width // 2, stage=self.stage
        )

    @property
    def product_latency(self) -> int:
        """Registers from the sum of a group to its scaled one."""
        return 1 if self.product == "multiply" else self.rows.latency

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first cycle its sum is offered."""
        return 1 + self.tree.latency + 1 + self.product_latency + bool(self.stage) + 1


class FdbDot(wiring.Component):
    """Dot product of integers with weights ``alpha1 * b1 + alpha2 * b2``, scales per group.

    A run of transfers is one dot product and is made of groups.  A transfer brings ``lanes``
    activations and the bits ``b1`` and ``b2`` of as many weights.  With ``ends`` it is the last of
    its group and brings the scales of the group.  Over a group

        ``D1 = sum(b1[k] * acts[k])``, ``D2 = sum(b2[k] * acts[k])``

    and the run's ``sum`` is ``alpha1 * D1 + alpha2 * D2`` added over its groups.  So there are two
    products for a group and none for a weight.  ``last`` ends the group too.  Without ``ends`` and
    ``last`` the scales are not looked at.

    Exact: no rounding.  No overflow up to ``max_group`` weights in a group and ``max_k`` in a run:
    ``|D1|, |D2|`` are at most ``n * 2**(act_width - 1)`` for a group of ``n`` weights, which
    ``group_width`` bits hold.  The scales are at most ``2**(scale_width - 1)``, so the two products
    and all groups together are at most ``max_k * 2**(act_width + scale_width - 1)``, which
    ``sum_width`` bits hold.  Beyond that, sums wrap to these widths.

    Throughput is one transfer per cycle, whatever the length of groups; runs follow without a gap.
    Latency is ``config.latency`` cycles after a run's last transfer.  All stages stop while an
    offered sum is not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and group and begins new ones; after ``last`` it may
    be left out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed.  ``b1``, ``b2``: one bit a weight.  ``alpha1``, ``alpha2``: signed.
        ``ends``: last transfer of a group.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: signed, in units of an activation's times a scale's.

    Source: Flexible Dual Binarization of DB-LLM, which proposes no hardware; the structure is ours
    (docs/blocks/fdb_dot.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: FdbDotConfig):
        self.config = config
        payload = data.StructLayout({
            "acts": data.ArrayLayout(signed(config.act_width), config.lanes),
            "b1": data.ArrayLayout(unsigned(1), config.lanes),
            "b2": data.ArrayLayout(unsigned(1), config.lanes),
            "alpha1": signed(config.scale_width),
            "alpha2": signed(config.scale_width),
            "ends": unsigned(1),
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

        planes = {"b1": payload.b1, "b2": payload.b2}
        sums = plane_sums(m, platform, config.tree, list(payload.acts), planes, enable)
        at = config.tree.latency  # registers behind the first one

        ends = delayed(m, enable, payload.ends | payload.last, "ends", config.latency)
        group_opens, run_opens = self._opens(m, run, ends[0])
        group_opens = [group_opens, *delayed(m, enable, group_opens, "group_opens", at + 1)]
        run_opens = [run_opens, *delayed(m, enable, run_opens, "run_opens", config.latency)]

        scaled = []
        for name, total in zip(("alpha1", "alpha2"), sums, strict=True):
            group = accumulated(
                m,
                platform,
                config.group_width,
                total,
                0,
                group_opens[at],
                enable & run.moves[at],
                name=f"_{name}",
            )
            scale = delayed(m, enable, getattr(payload, name), name, at + 2)[-1]
            scaled.append(self._scaled(m, platform, name, group, scale, enable))
        at += 1 + config.product_latency

        total = Signal(signed(config.group_width + config.scale_width + 1))
        m.d.comb += total.eq(scaled[0] + scaled[1])
        if config.stage:
            total, at = held(m, enable, total, "total"), at + 1
        acc = accumulated(
            m,
            platform,
            config.sum_width,
            total,
            0,
            run_opens[at],
            enable & run.moves[at] & ends[at],
        )
        m.d.comb += self.o.p.sum.eq(acc)
        return m

    def _opens(self, m: Module, run, ends):
        """Whether a transfer opens a group, and whether its group is the first of the run."""
        inside, later = Signal(), Signal()  # a group is open; a group of the run has ended
        group_opens, run_opens = Signal(), Signal()
        m.d.comb += [
            group_opens.eq(run.opens[0] | ~inside),
            run_opens.eq(run.opens[0] | ~later),
        ]
        with m.If(run.enable & run.moves[0]):
            m.d.sync += [inside.eq(~ends), later.eq(ends | ~run_opens)]
        return group_opens, run_opens

    def _scaled(self, m: Module, platform, name: str, group, scale, enable):
        if self.config.product == "multiply":
            return held(m, enable, group * scale, f"scaled_{name}")
        part = BoothProduct(self.config.rows)
        return place(m, platform, f"scale_{name}", part, a=group, b=scale, enable=enable).y
