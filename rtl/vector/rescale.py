# SPDX-License-Identifier: Apache-2.0
"""Integer sums to fixed point: times two scales, rounded once, saturated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from ..config import Config, param
from ._scale import MANTISSA, SCALE, SHIFT

HALF = 17
"""Bits of the low part of a sum that one multiplier does not hold."""


@dataclass(frozen=True, kw_only=True)
class RescaleConfig(Config):
    sum_width: int = param(18, "bits of a signed sum", ge=2, le=32)
    out_width: int = param(18, "bits of a signed element", ge=2, le=32)
    rows_width: int = param(20, "bits of the number of sums of an operation", ge=1, le=32)
    tag_width: int = param(4, "bits handed from an operation to its elements", ge=1, le=64)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"sum_width": 6, "out_width": 5, "rows_width": 3, "tag_width": 1},
        "int32": {"sum_width": 32, "rows_width": 24},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "BitNet b1.58, arXiv 2402.17764",
        "VitaLLM, arXiv 2604.27396",
    )

    def faults(self) -> Iterator[str]:
        if self.out_width > self.product_width:
            yield (
                f"out_width must be at most sum_width + {MANTISSA} = {self.product_width}, "
                f"not {self.out_width}"
            )

    @property
    def product_width(self) -> int:
        """Bits of a sum times a mantissa; shifts from here on give 0."""
        return self.sum_width + MANTISSA

    @property
    def multipliers(self) -> int:
        """Multipliers of 18 x 18 bits."""
        return 1 + (self.sum_width > HALF + 1)

    @property
    def latency(self) -> int:
        """Edges from taking a sum to the transfer of its element, if that is taken at once."""
        return 4 + self.multipliers

    @property
    def interval(self) -> int:
        """Edges from taking an operation to taking its first sum, and to the next operation."""
        return MANTISSA + 4


def operation_layout(config: RescaleConfig) -> data.StructLayout:
    """An operation as it is given."""
    return data.StructLayout({
        "mantissa": unsigned(MANTISSA),
        "shift": unsigned(SHIFT),
        "rows": unsigned(config.rows_width),
        "fresh": unsigned(1),
        "tag": unsigned(config.tag_width),
    })


def made_layout(config: RescaleConfig) -> data.StructLayout:
    """An operation whose scale is made."""
    return data.StructLayout({
        "mantissa": unsigned(MANTISSA),
        "shift": unsigned(SHIFT),
        "rows": unsigned(config.rows_width),
        "tag": unsigned(config.tag_width),
    })


class Rescale(wiring.Component):
    """Multiplies sums by a scale, rounds them and saturates.

    Scales are ``mantissa * 2**-shift``, the mantissa 0 or with its top bit set.  An operation takes
    a scale and ``rows`` sums.  Its scale is the product of the operation's own one and the norm's,
    rounded to 16 bits, ties upwards; the norm's is the next of ``norm_i`` where the operation is
    ``fresh``, else the one before.  A norm scale that never was is 0.  Then

    ``y = floor(sum * mantissa * 2**-shift + 1/2)``

    to nearest, ties upwards, exact before the rounding, saturated to
    ``+-(2**(out_width - 1) - 1)``.  A mantissa of 0 gives 0; so does a shift beyond the product's
    bits; a product whose shift is negative is taken with shift 0.  The sum goes along unchanged.

    One sum per cycle.  Latency is ``config.latency`` edges from a sum to its element, and
    ``config.interval`` (20) edges from an operation to its first sum; the scale of the next
    operation is made meanwhile, so operations of 20 sums or more follow each other without a gap if
    they and the norm's scales come early enough.  An operation of 0 rows gives nothing, but takes a
    scale if it is ``fresh``.  Everything stops while offered elements are not taken, except the
    making of scales.  Reset drops whatever is in flight, and the norm's scale.

    Errors: a mantissa that is not 0 and lacks its top bit gives elements that are not specified.

    Members
    -------
    norm_i : :py:`In(stream.Signature(StructLayout))`
        ``mantissa``, ``shift``: unsigned.
    op_i : :py:`In(stream.Signature(StructLayout))`
        ``mantissa``, ``shift``, ``rows``, ``tag``: unsigned.  ``fresh``.
    i : :py:`In(stream.Signature(StructLayout))`
        ``sum``: signed.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``y``, ``sum``: signed.  ``tag``.  ``first``, ``last``: of the operation.

    Source: dequantisation of BitNet b1.58, between the cores and the buffers of VitaLLM.
    """

    norm_i: stream.Interface
    op_i: stream.Interface
    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: RescaleConfig):
        self.config = config
        element = data.StructLayout({
            "y": signed(config.out_width),
            "sum": signed(config.sum_width),
            "tag": unsigned(config.tag_width),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "norm_i": In(stream.Signature(SCALE)),
            "op_i": In(stream.Signature(operation_layout(config))),
            "i": In(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
            "o": Out(stream.Signature(element)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        m.submodules.scales = scales = _Scales(config)
        wiring.connect(m, wiring.flipped(self.norm_i), scales.norm_i)
        wiring.connect(m, wiring.flipped(self.op_i), scales.op_i)

        active, opening = Signal(), Signal(reset_less=True)
        now = Signal(made_layout(config), reset_less=True)
        take, ends = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(pipeline.enable & active),
            take.eq(self.i.valid & self.i.ready),
            ends.eq(now.rows == 1),
            scales.take.eq(~active | (take & ends)),
            pipeline.i_valid.eq(take),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]
        with m.If(take):
            m.d.sync += [now.rows.eq(now.rows - 1), opening.eq(0)]
        with m.If(scales.take):
            m.d.sync += [now.eq(scales.made), opening.eq(1), active.eq(scales.valid)]

        # What an element is, and how far it is still to be shifted, goes along with it.
        about = data.StructLayout({
            "sum": signed(config.sum_width),
            "tag": unsigned(config.tag_width),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        steps = [Signal(about, name=f"x_{n}", reset_less=True) for n in range(config.latency)]
        x_mantissa = Signal(MANTISSA, reset_less=True)
        shifts = [Signal(SHIFT, name=f"x_shift_{n}", reset_less=True) for n in range(3)]
        with m.If(pipeline.enable):
            m.d.sync += [
                steps[0].sum.eq(self.i.p.sum),
                steps[0].tag.eq(now.tag),
                steps[0].first.eq(opening),
                steps[0].last.eq(ends),
                x_mantissa.eq(now.mantissa),
                shifts[0].eq(now.shift),
                *(late.eq(early) for early, late in pairwise(steps)),
                *(late.eq(early) for early, late in pairwise(shifts)),
            ]
        m.d.comb += [
            self.o.p.sum.eq(steps[-1].sum),
            self.o.p.tag.eq(steps[-1].tag),
            self.o.p.first.eq(steps[-1].first),
            self.o.p.last.eq(steps[-1].last),
        ]
        product = self._product(m, pipeline.enable, steps[0].sum, x_mantissa)
        shift = shifts[config.multipliers]
        self._shifted(m, pipeline.enable, product, shift)
        return m

    def _product(self, m, enable, value, mantissa):
        """Sum times mantissa behind a register, or two where that takes two multipliers."""
        product = Signal(signed(self.config.product_width), reset_less=True)
        if self.config.multipliers == 1:
            with m.If(enable):
                m.d.sync += product.eq(value * mantissa)
            return product
        low = Signal(HALF + MANTISSA, reset_less=True)
        high = Signal(signed(self.config.product_width - HALF), reset_less=True)
        with m.If(enable):
            m.d.sync += [
                low.eq(value[:HALF] * mantissa),
                high.eq(value[HALF:].as_signed() * mantissa),
                product.eq(Cat(low[:HALF], high + low[HALF:])),
            ]
        return product

    def _shifted(self, m, enable, product, shift):
        """Shift right by eights, then by ones, then round and saturate: three registers."""
        width, out = self.config.product_width, self.config.out_width
        # A bit below keeps what the result is rounded by.
        coarse = Signal(signed(width + 1), reset_less=True)
        fine = Signal(signed(width + 1))
        near = Signal(signed(out), reset_less=True)
        names = ("up", "beyond", "negative")
        up, beyond, negative = (Signal(name=name, reset_less=True) for name in names)
        x_fine = Signal(3, reset_less=True)
        total = Signal(out)
        limit = (1 << out - 1) - 1
        y = Signal(signed(out), reset_less=True)
        m.d.comb += [
            fine.eq(coarse >> x_fine),
            total.eq(near + up),
            self.o.p.y.eq(y),
        ]
        with m.If(enable):
            m.d.sync += [
                coarse.eq(Cat(Const(0, 1), product).as_signed() >> Cat(Const(0, 3), shift[3:])),
                x_fine.eq(shift[:3]),
                near.eq(fine[1 : out + 1]),
                up.eq(fine[0]),
                beyond.eq(Cat(bit != fine[-1] for bit in fine[out:-1]).any()),
                negative.eq(fine[-1]),
                y.eq(total),
            ]
            # The one total to saturate: the lowest, or one more than the highest, same bits.
            with m.If(beyond | (total == limit + 1)):
                m.d.sync += y.eq(Mux(negative, -limit, limit))


class _Scales(wiring.Component):
    """The product of two scales for each operation that has rows, one bit a cycle.

    ``valid``: ``made`` holds one, until ``take``.  Its shift is within ``0 .. product_width``.
    """

    norm_i: stream.Interface
    op_i: stream.Interface
    take: Signal
    valid: Signal
    made: data.View

    def __init__(self, config: RescaleConfig):
        self.config = config
        super().__init__({
            "norm_i": In(stream.Signature(SCALE)),
            "op_i": In(stream.Signature(operation_layout(config))),
            "take": In(1),
            "valid": Out(1),
            "made": Out(made_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        given = self.op_i.p
        norm = Signal(SCALE)  # reset to 0, which gives elements 0
        factor = Signal(MANTISSA, reset_less=True)
        product = Signal(2 * MANTISSA, reset_less=True)
        shift = Signal(signed(SHIFT + 2), reset_less=True)
        count = Signal(range(MANTISSA), reset_less=True)
        rows = Signal(self.config.rows_width, reset_less=True)
        tag = Signal(self.config.tag_width, reset_less=True)
        limit = self.config.product_width
        m.d.comb += [
            self.made.mantissa.eq(product[MANTISSA:]),
            self.made.shift.eq(Mux(shift < 0, 0, Mux(shift > limit, limit, shift))),
            self.made.rows.eq(rows),
            self.made.tag.eq(tag),
        ]
        with m.FSM():
            with m.State("IDLE"):
                ready = ~given.fresh | self.norm_i.valid
                m.d.comb += [
                    self.op_i.ready.eq(ready),
                    self.norm_i.ready.eq(self.op_i.valid & given.fresh),
                ]
                m.d.sync += [
                    factor.eq(given.mantissa),
                    shift.eq(given.shift),
                    rows.eq(given.rows),
                    tag.eq(given.tag),
                    count.eq(MANTISSA - 1),
                ]
                with m.If(self.op_i.valid & ready):
                    with m.If(given.fresh):
                        m.d.sync += norm.eq(self.norm_i.p)
                    with m.If(given.rows != 0):
                        m.next = "LOAD"
            with m.State("LOAD"):
                # Of the two factors one is added, the other leaves through the product's low end.
                m.d.sync += [
                    product.eq(norm.mantissa),
                    shift.eq(shift + norm.shift - MANTISSA),
                ]
                m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                added = Signal(MANTISSA + 1)
                m.d.comb += added.eq(product[MANTISSA:] + Mux(product[0], factor, 0))
                m.d.sync += [product.eq(Cat(product[1:MANTISSA], added)), count.eq(count - 1)]
                with m.If(count == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                # The product has 31 or 32 bits; the top 16 stay, and one to 32 bits is halved.
                wide, rounded = product[-1], Signal(MANTISSA + 1)
                m.d.comb += rounded.eq(
                    Mux(wide, product[MANTISSA:], product[MANTISSA - 1 : -1])
                    + Mux(wide, product[MANTISSA - 1], product[MANTISSA - 2])
                )
                m.d.sync += [
                    product[MANTISSA:].eq(rounded[:MANTISSA] | (rounded[-1] << (MANTISSA - 1))),
                    shift.eq(shift + ~(wide | rounded[-1]) - (wide & rounded[-1])),
                ]
                m.next = "MADE"
            with m.State("MADE"):
                m.d.comb += self.valid.eq(1)
                with m.If(self.take):
                    m.next = "IDLE"
        return m
