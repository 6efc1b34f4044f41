# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulate of FP4 and posit lanes in a word of 16 bits, exact, on one datapath."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_mask import AddMask, AddMaskConfig
from .._once import place
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._lane_align import BLOCK, adder_of, enables, lane_of, read_bits, rotated
from ._lane_product import LaneArray
from ._lane_words import taken_apart
from ._modes import LANES, Modes, any_bit
from ._read_out import read_out

BOUNDS = {"fp4": 144, "posit4_1": 1 << 16, "posit8_0": 1 << 24, "posit16_1": 1 << 112}
"""The largest product, in units of the smallest: 6 * 6 of halves squared, ``maxpos**2`` else."""
SMALLEST = {"fp4": -2, "posit4_1": -8, "posit8_0": -12, "posit16_1": -56}
"""Weight of an accumulator's lowest bit, a power of 2: that of the smallest product."""


@dataclass(frozen=True, kw_only=True)
class XrNpeConfig(Config):
    formats: str = param(
        "fp4+posit4_1+posit8_0+posit16_1", "formats that a word can have, joined by +"
    )
    max_k: int = param(32767, "most products that one lane sums in a run", ge=1, le=1 << 24)
    pipeline: int = param(
        3, "registers before the accumulator: 2 multiplied, aligned; 3 and decoded", ge=2, le=3
    )
    rows: int = param(3, "rows of the multiplier between more registers; 0 for none", ge=0, le=13)
    out: str = param("raw", "results: accumulators, or codes", choices=("raw", "codes"))
    gate: bool = param(True, "parts that a mode does not use get zeros")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"formats": "fp4+posit8_0", "max_k": 100, "pipeline": 2, "rows": 2},
        "fp4": {"formats": "fp4"},
        "posit4": {"formats": "posit4_1"},
        "posit8": {"formats": "posit8_0"},
        "posit16": {"formats": "posit16_1"},
        "short": {"pipeline": 2, "rows": 0},
        "posits": {"formats": "posit4_1+posit8_0+posit16_1", "rows": 5},
        "ungated": {"gate": False},
        "codes": {"out": "codes"},
    }
    papers: ClassVar[tuple[str, ...]] = ("XR-NPE, arXiv 2508.13049",)

    rates: ClassVar[tuple[Rate, ...]] = tuple(
        Rate(name, name, lanes, fields={"mode": mode})
        for mode, (name, lanes) in enumerate((
            *(("fp4_e2m1", 4), ("posit4_1", 4)),
            *(("posit8_0", 2), ("posit16_1", 1)),
        ))
    )

    def faults(self) -> Iterator[str]:
        names = self.formats.split("+")
        if wrong := [name for name in names if name not in LANES]:
            yield f"formats are {', '.join(LANES)}, joined by +; {wrong[0]!r} is none of them"
        elif names != [name for name in LANES if name in names]:
            yield (
                f"formats must be named once each and in the order {', '.join(LANES)}, "
                f"not {self.formats}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The formats; a word's ``mode`` counts them."""
        return tuple(self.formats.split("+"))

    @property
    def lanes(self) -> int:
        """Most lanes of a word."""
        return max(LANES[name] for name in self.names)

    @property
    def nar_lanes(self) -> int:
        """Most lanes of a word that can be NaR; FP4 has no such code."""
        return max((LANES[name] for name in self.names if name != "fp4"), default=0)

    def acc_width(self, name: str) -> int:
        """Bits that hold every sum of ``max_k`` products of a format, in two's complement."""
        return (BOUNDS[name] * self.max_k).bit_length() + 1

    @property
    def quarter(self) -> int:
        """Bits of a quarter of the accumulator, so that its lanes hold all sums of any format."""
        most = max(-(-LANES[name] * self.acc_width(name) // 4) for name in self.names)
        return -(-most // BLOCK) * BLOCK

    @property
    def latency(self) -> int:
        """Cycles from the last transfer of a run to the first that its sums are offered."""
        rows = LaneArray(self.names).rows
        breaks = [row for row in rows if self.breaks_after(row)]
        return self.pipeline + len(breaks) + 1 + (2 if self.out == "codes" else 0)

    def breaks_after(self, row: int) -> bool:
        """Whether there is a register behind a row of the multiplier."""
        rows = LaneArray(self.names).rows
        return bool(self.rows) and (row + 1) % self.rows == 0 and row in rows and row < max(rows)


class XrNpe(wiring.Component):
    """Multiply-accumulate of FP4 and posit lanes in a word of 16 bits, exact, on one datapath.

    A transfer brings two words; lane by lane their products are added to that lane's accumulator.
    A run of transfers makes one result for each lane.  The ``mode`` says what a word is, counting
    the configuration's ``formats``:

    ========= ===== ============================== ================================
    format    lanes values                         accumulator's lowest bit
    ========= ===== ============================== ================================
    fp4       4     OCP FP4 E2M1                   2**-2
    posit4_1  4     posits of 4 bits, es = 1       2**-8
    posit8_0  2     posits of 8 bits, es = 0       2**-12
    posit16_1 1     posits of 16 bits, es = 1      2**-56
    ========= ===== ============================== ================================

    Lane 0 is lowest.  The accumulator is ``4 * quarter`` bits, two's complement: a lane of a
    format with ``n`` lanes is ``4 / n`` quarters of it, joined.  With the defaults it is one quire
    of 128 bits, two of 64 or four of 32.

    Exact: every product is a multiple of the lowest bit and every sum is kept whole, so there is no
    rounding and the order of the products does not matter.  A product is at most ``P`` units of
    the lowest bit, which is 144, 2**16, 2**24 or 2**112, so a sum of ``max_k`` products is at most
    ``max_k * P``, and ``acc_width`` is one bit more than that number has; beyond ``max_k`` sums
    wrap within their lane.

    NaR: a lane whose operand was NaR anywhere in the run says so in ``nar``, by lane of the run's
    format; the product counts as 0.  FP4 has no NaN.

    With ``out = "codes"`` the result is a word again: each lane's sum as the nearest code of its
    format, ties to the even code, what is too large as the largest, NaR as NaR, and a posit never
    rounded to 0 or NaR.  Formats that are no posits keep the sign of what they round to 0.

    The mode is to be the same in all transfers of a run; else the run's result is unspecified, and
    nothing but that result.  A mode that counts no format must not
    occur.

    Throughput is one transfer per cycle, runs follow without a gap.  Latency is ``config.latency``
    cycles after a run's last transfer.  All stages stop while an offered result is not taken.
    Reset drops whatever is in flight.  Restart: ``first`` drops an unfinished run and begins a new
    one; after ``last`` it may be left out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``, ``b``: words.  ``mode``, with several formats.  ``first``, ``last``: bounds of the
        run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``acc``: quarters, the lowest first.  ``nar``: a bit per lane that
        can be NaR; not with FP4 alone.  With ``out = "codes"`` instead ``code``, a word.

    Source: RMMEC of XR-NPE (arXiv 2508.13049), one multiplier and exponent datapath for these four
    formats; the structure is ours (docs/blocks/xr_npe.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: XrNpeConfig):
        self.config = config
        several = len(config.names) > 1
        mode = {"mode": unsigned(ceil_log2(len(config.names)))} if several else {}
        operands = data.StructLayout({
            "a": unsigned(16),
            "b": unsigned(16),
            **mode,
            "first": unsigned(1),
            "last": unsigned(1),
        })
        nar = {"nar": unsigned(config.nar_lanes)} if config.nar_lanes else {}
        result = data.StructLayout(
            {"code": unsigned(16)}
            if config.out == "codes"
            else {"acc": data.ArrayLayout(unsigned(config.quarter), 4), **nar}
        )
        super().__init__({
            "i": In(stream.Signature(operands)),
            "o": Out(stream.Signature(result)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        run = run_pipeline(m, self.i, self.o, config.latency)
        stage = 0
        ends = self.i.p.last
        mode = self.i.p.mode if len(config.names) > 1 else Const(0, 1)
        modes = Modes(m, config.names, mode)

        def stepped(**values):
            """``values`` through a register each, and with them what every stage needs."""
            nonlocal stage, modes, ends
            stage += 1
            late = {}
            for name, value in {**values, "last": ends}.items():
                if not len(value):
                    late[name] = value
                    continue
                late[name] = Signal(len(value), name=f"x_{name}_{stage}", reset_less=True)
                with m.If(run.enable):
                    m.d.sync += late[name].eq(value)
            ends, modes = late.pop("last"), modes.later(run.enable)
            return late

        a, b = (
            taken_apart(m, platform, name, word, modes, config.gate)
            for name, word in (("a", self.i.p.a), ("b", self.i.p.b))
        )
        signs = Cat(x ^ y for x, y in zip(a.signs, b.signs, strict=True))
        ones = Cat(x & y for x, y in zip(a.set_, b.set_, strict=True))
        nars = Cat(x | y for x, y in zip(a.nars, b.nars, strict=True))[: config.nar_lanes]
        scales = [Cat(a.scales), Cat(b.scales)]
        widths = [len(scale) for scale in a.scales]
        array, factor = LaneArray(config.names), b.significands
        masks = array.masks(modes)
        columns = array.needed()
        if config.pipeline > 2:
            # Columns are cleared in their registers, which costs no LUT.
            array.columns = {
                c: Signal(name=f"x_column_{n}", reset_less=True) for n, c in enumerate(columns)
            }
            for c, x in array.columns.items():
                with m.If(run.enable):
                    m.d.sync += x.eq(a.significands[c.at])
                    with m.If(~masks[c] if c in masks else 0):
                        m.d.sync += x.eq(0)
            factor, *scales, signs, ones, nars = stepped(
                factor=factor,
                a_scales=scales[0],
                b_scales=scales[1],
                signs=signs,
                ones=ones,
                nars=nars,
            ).values()
        else:
            for n, c in enumerate(columns):
                array.columns[c] = Signal(name=f"column_{n}")
                m.d.comb += array.columns[c].eq(a.significands[c.at] & masks.get(c, 1))

        for row in array.rows:
            array.add(m, platform, row, factor[row])
            if config.breaks_after(row):
                late = stepped(
                    **array.state(row + 1),
                    factor=Cat(Const(0, row + 1), factor[row + 1 :]),
                    a_scales=scales[0],
                    b_scales=scales[1],
                    signs=signs,
                    ones=ones,
                    nars=nars,
                )
                array.resume(row + 1, late)
                factor, *scales, signs, ones, nars = list(late.values())[-6:]
        product = array.product
        if not config.gate and "posit4_1" in config.names:
            product = product & (~modes.is_("posit4_1")).replicate(len(product))
        rows = [self._split(row, widths) for row in scales]
        adders = sorted({
            adder_of(f, lane_of(f, quarter)) for f in config.names for quarter in range(4)
        })
        sums = []
        for adder in adders:
            x, y = (row[adder] for row in rows)
            wide = 7 if "posit16_1" in config.names and adder == 3 else 5
            total = Signal(wide, name=f"sum_{adder}")
            m.d.comb += total.eq(x.as_signed() + y.as_signed())
            sums.append(total)
        widths = [len(total) for total in sums]
        product, joined, signs, ones, nars = stepped(
            product=product, sums=Cat(sums), signs=signs, ones=ones, nars=nars
        ).values()
        sums = dict(zip(adders, self._split(joined, widths), strict=True))

        # A posit(4,1) product is a 1 in the lowest bit of its lane's byte.
        products = Signal(32)
        bits = [product[n] if n < len(product) else Const(0, 1) for n in range(len(products))]
        if "posit4_1" in config.names:
            for lane in range(4):
                bits[8 * lane] = bits[8 * lane] | ones[lane]
        m.d.comb += products.eq(Cat(bits))
        window, live = rotated(m, products, sums, modes)
        inverts = []
        for quarter in range(4):
            by_nibble: dict[int, list[str]] = {}
            for f in config.names:
                lane = lane_of(f, quarter)
                by_nibble.setdefault(4 * (lane + 1) // LANES[f] - 1, []).append(f)
            inverts.append(
                any_bit(signs[nibble] & modes.any_of(*fs) for nibble, fs in by_nibble.items())
            )
        window, blocks, inverts, nars = stepped(
            window=window,
            blocks=Cat(enables(m, sums, config.quarter, modes)),
            inverts=Cat(inverts),
            nars=nars,
        ).values()

        acc = Signal(4 * config.quarter, reset_less=True)
        total = self._added(m, platform, acc, window, live, blocks, inverts, modes)
        kept, found = [acc], [total]
        if config.nar_lanes:
            nar, either = Signal.like(nars, reset_less=True), Signal.like(nars)
            m.d.comb += either.eq(nar | nars)
            kept, found = [acc, nar], [total, either]
        if config.out == "raw":
            shown = [self.o.p.acc, self.o.p.nar] if config.nar_lanes else [self.o.p.acc]
        else:
            shown = [Signal.like(x, name=f"sums_{n}") for n, x in enumerate(kept)]
        with m.If(run.enable & run.moves[stage - 1]):
            m.d.sync += [x.eq(y) for x, y in zip(kept, found, strict=True)]
            with m.If(ends):
                m.d.sync += [x.eq(y) for x, y in zip(shown, found, strict=True)]
        with m.If(run.enable & run.moves[stage - 2] & run.opens[stage - 2]):
            m.d.sync += [x.eq(0) for x in kept]  # the transfer behind begins a run
        if config.out == "codes":
            code = read_out(
                m,
                platform,
                shown[0],
                shown[1] if config.nar_lanes else Const(0, 0),
                {f: config.acc_width(f) for f in config.names},
                SMALLEST,
                modes.later(run.enable),
                run.enable,
            )
            with m.If(run.enable):
                m.d.sync += self.o.p.code.eq(code)
        return m

    @staticmethod
    def _split(joined: Any, widths: list[int]) -> list[Any]:
        parts, at = [], 0
        for width in widths:
            parts.append(joined[at : at + width])
            at += width
        return parts

    def _added(
        self,
        m: Module,
        platform: Any,
        acc: Signal,
        window: Any,
        live: Any,
        blocks: Any,
        inverts: Any,
        modes: Modes,
    ) -> Any:
        """``acc`` with the window's product added, or taken away, in each lane.

        One carry chain for quarters that some mode joins.  Where another mode cuts it there is a
        position of its own: it hands the carry on, or drops it and begins with that of the quarter
        above, which is 1 where that quarter is inverted.
        """
        config = self.config
        size = config.quarter
        reads = read_bits(window, live, size, modes)
        chains: list[list[int]] = []
        joins = {0: Const(0, 1)}
        for quarter in range(1, 4):
            whole = [f for f in config.names if lane_of(f, quarter) == lane_of(f, quarter - 1)]
            joins[quarter] = modes.any_of(*whole)
        for quarter in range(4):
            if quarter and any(
                lane_of(f, quarter) == lane_of(f, quarter - 1) for f in config.names
            ):
                chains[-1].append(quarter)
            else:
                chains.append([quarter])
        sums: list[Any] = []
        for chain in chains:
            a, b, on, invert, at = [], [], [], [], 0
            found = []
            for quarter in chain:
                join = joins[quarter]
                cut = quarter != chain[0] and not isinstance(join, Const)
                if cut:
                    a.append(join | inverts[quarter])
                    b.append(inverts[quarter])
                    on.append(~join)
                    invert.append(Const(0, 1))
                    at += 1
                bits = slice(size * quarter, size * (quarter + 1))
                a.append(acc[bits])
                b += reads[bits]
                on += [blocks[n // BLOCK] for n in range(size * quarter, size * (quarter + 1))]
                invert.append(inverts[quarter].replicate(size))
                found.append((at, at + size))
                at += size
            add = place(
                m,
                platform,
                f"accumulate_{chain[0]}",
                AddMask(AddMaskConfig(width=at)),
                a=Cat(a),
                b=Cat(b),
                enable=Cat(on),
                invert=Cat(invert),
                carry=inverts[chain[0]],
            )
            sums += [add.y[low:high] for low, high in found]
        return Cat(sums)
