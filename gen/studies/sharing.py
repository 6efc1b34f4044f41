# SPDX-License-Identifier: Apache-2.0
"""What one Booth array saves: the two arrays that it replaces, built and measured beside it."""

import dataclasses
import operator
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ...rtl._add_select import accumulated
from ...rtl._once import place
from ...rtl._pipeline import held
from ...rtl._runs import run_pipeline
from ...rtl.config import Config, param
from ...rtl.mac._booth import BoothProduct, BoothProductConfig
from ...rtl.mac._select_tree import SelectTree, SelectTreeConfig
from .. import blocks, measure
from ..verilog import Design, emit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotArrayConfig(Config):
    lanes: int = param(16, "products per cycle, a power of two", ge=2)
    a_width: int = param(8, "bits of one signed activation", ge=2)
    b_width: int = param(8, "bits of one signed operand; 2 for ternary weights", ge=2)
    max_k: int = param(2560, "most products of one sum", ge=2)
    product: str = param(
        "multiply", "what a lane is made of", choices=("multiply", "rows", "booth", "select")
    )
    ternary: bool = param(False, "four ternary products beside each lane, for a mode of their own")

    @property
    def stage(self) -> int:
        return 2

    @property
    def acc_width(self) -> int:
        return self.a_width + self.b_width + ceil_log2(self.max_k)


class DotArray(wiring.Component):
    """Dot products of one kind, with streams, registers and accumulator as `boothflex` has them.

    ``product``: ``multiply`` leaves ``a * b`` to the synthesis, ``rows`` and ``booth`` are our
    ``BoothProduct``, each with a register behind it and a tree of adders; ``select`` is the tree of
    the ternary blocks.  Latency and contract otherwise as for the integer mode of `boothflex`.

    ``ternary`` puts the tree of the ternary blocks beside it, four lanes for one, behind the same
    input registers and before the same accumulator: two arrays that share all but their arithmetic.
    Transfers are those of `boothflex`, the activations of a lane side by side.
    """

    def __init__(self, config: DotArrayConfig):
        self.config = config
        slots = config.lanes * (config.b_width // 2 if config.ternary else 1)
        payload = data.StructLayout({
            "a": data.ArrayLayout(signed(config.a_width), slots),
            "b": data.ArrayLayout(signed(config.b_width), config.lanes),
            **({"mode": unsigned(1)} if config.ternary else {}),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(32)}))),
        })

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        payload: Any = self.i.p  # pyright: ignore[reportAttributeAccessIssue]
        i: Any = self.i  # pyright: ignore[reportAttributeAccessIssue]
        o: Any = self.o  # pyright: ignore[reportAttributeAccessIssue]
        enable = Signal()

        registered = partial(held, m, enable)
        a, b = (
            [registered(value, f"{name}_{lane}") for lane, value in enumerate(field)]
            for name, field in (("a", payload.a), ("b", payload.b))
        )
        each = len(a) // len(b)
        if config.product == "select":
            total, pending, latency = self._selected(m, platform, a, b, enable)
        else:
            total, pending, latency = self._multiplied(
                m, platform, a[::each], b, enable, registered
            )
        if config.ternary:
            kinds = [(total, pending, latency), self._selected(m, platform, a, b, enable)]
            latency = max(kind[2] for kind in kinds)
            for index, (total, pending, early) in enumerate(kinds):
                for n in range(latency - early):
                    total = registered(total, f"total_{index}_{n}")
                    pending = registered(pending, f"pending_{index}_{n}") if index else pending
                kinds[index] = total, pending, latency
            mode = registered(payload.mode, "mode")
            for n in range(latency):
                mode = registered(mode, f"mode_{n}")
            total = Mux(mode, kinds[1][0], kinds[0][0])
            pending = mode & kinds[1][1]

        run = run_pipeline(m, i, o, latency + 2)
        m.d.comb += enable.eq(run.enable)
        acc = accumulated(
            m,
            platform,
            config.acc_width,
            total,
            pending,
            run.opens[latency],
            enable & run.moves[latency],
        )
        m.d.comb += o.p.sum.eq(acc)
        return m

    def _selected(self, m: Module, platform: Any, a: Any, b: Any, enable: Any) -> Any:
        config = SelectTreeConfig(
            lanes=len(a), act_width=self.config.a_width, stage=self.config.stage
        )
        tree = SelectTree(config)
        place(m, platform, "tree", tree, acts=Cat(a), weights=Cat(b), enable=enable)
        return tree.sum, tree.pending, config.latency

    def _multiplied(
        self, m: Module, platform: Any, a: Any, b: Any, enable: Any, registered: Any
    ) -> Any:
        config, terms = self.config, []
        latency = 1
        for lane in range(config.lanes):
            if config.product == "multiply":
                terms.append(registered(a[lane] * b[lane], f"product_{lane}"))
                continue
            part = BoothProduct(
                BoothProductConfig(
                    a_width=config.a_width,
                    digits=config.b_width // 2,
                    structure=config.product,
                    stage=4,
                )
            )
            latency = part.config.latency
            place(m, platform, f"product_{lane}", part, a=a[lane], b=b[lane], enable=enable)
            terms.append(part.y)
        level = 0
        while len(terms) > 1:
            level += 1
            terms = [operator.add(*pair) for pair in zip(terms[::2], terms[1::2], strict=True)]
            if level % config.stage == 0:
                latency += 1
                terms = [registered(term, f"sum_{level}_{n}") for n, term in enumerate(terms)]
        return terms[0], 0, latency


def designs(pes: int = 16) -> dict[str, tuple[Design, ...]]:
    """Designs by what they are called: the Booth core, and pairs of arrays of its rates."""
    boothflex = blocks.find("boothflex")

    def array(**values: Any) -> Design:
        block = blocks.Block("dot_array", "mac", __name__, Path(__file__))
        return emit(block, DotArrayConfig(**values))

    ternary = array(lanes=4 * pes, b_width=2, product="select")
    return {
        "boothflex": (emit(boothflex, boothflex.config(pes=pes)),),
        "boothflex, int2=False": (emit(boothflex, boothflex.config(pes=pes, int2=False)),),
        "boothflex, ternary=False": (emit(boothflex, boothflex.config(pes=pes, ternary=False)),),
        "INT8 array of a * b": (array(lanes=pes),),
        "INT8 array of our rows": (array(lanes=pes, product="rows"),),
        "INT8 array of our Booth products": (array(lanes=pes, product="booth"),),
        "ternary array": (ternary,),
        "INT8 array of a * b + ternary array": (array(lanes=pes), ternary),
        "INT8 array of our rows + ternary array": (array(lanes=pes, product="rows"), ternary),
        "both of a * b, shared ends": (array(lanes=pes, ternary=True),),
        "both of our rows, shared ends": (array(lanes=pes, product="rows", ternary=True),),
    }


def sharing() -> Iterator[dict[str, Any]]:
    """One Booth array and the two it replaces: 16 INT8 or 64 ternary products; ECP5 without DSP.

    All have streams, input registers, adder trees with a register at every second level and an
    accumulator for 2560 products; two arrays are the sum of their parts, or with shared ends one
    design with one set of input registers and one accumulator.
    """
    from ...asic.library import library
    from ...fpga.boards import board

    ulx3s, cells = board("ulx3s-85f"), library("osu018")
    whole = 0
    for name, parts in designs().items():
        placed = [measure.placed(part, ulx3s, out_of_context=False) for part in parts]
        mapped = [measure.mapped(part, cells) for part in parts]
        lut, area = sum(each.lut for each in placed), sum(each.area for each in mapped)
        whole = whole or (lut, area)
        yield {
            "block": "boothflex",
            "design": name,
            "LUT4": lut,
            "FF": sum(each.ff for each in placed),
            "MHz": min(each.mhz for each in placed),
            "osu018 um2": round(area),
            "osu018 MHz": min(each.mhz for each in mapped),
            "LUT4 to boothflex": f"{lut / whole[0]:.2f}",
            "area to boothflex": f"{area / whole[1]:.2f}",
        }
