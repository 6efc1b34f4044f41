# SPDX-License-Identifier: Apache-2.0
"""Serial scale arithmetic of attention: a peak times a constant, a constant over a total."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..vector._online import OnlineConfig, total_layout
from ._constants import MANTISSA, Scale


class PeakScale(wiring.Component):
    """``product(normalise(peak), scale)`` for a constant ``scale``, one bit a cycle.

    The mantissa has its top bit set, or is 0 for a peak of 0.  The shift is given above ``low``,
    its smallest value.  ``latency`` cycles from taking a peak to offering the result, and as many
    more as the peak has zeros above its top bit (of ``width`` bits).
    """

    LATENCY = 1 + 1 + MANTISSA + 1

    i: stream.Interface
    o: stream.Interface

    def __init__(self, peak_width: int, scale: Scale):
        self.peak_width, self.scale = peak_width, scale
        self.width = max(peak_width, MANTISSA + 1)
        self.low, _ = shift_range(peak_width, scale)
        super().__init__({
            "i": In(stream.Signature(unsigned(peak_width))),
            "o": Out(stream.Signature(peak_scale_layout(peak_width, scale))),
        })

    def elaborate(self, platform):
        m = Module()
        x = Signal(self.width, reset_less=True)
        shift = Signal(signed(10), reset_less=True)
        is_zero = Signal(reset_less=True)
        count = Signal(range(MANTISSA))
        sum, low = Signal(MANTISSA, reset_less=True), Signal(2, reset_less=True)
        added = Signal(MANTISSA + 1)
        factor = Array(Const(self.scale[0] >> at & 1, 1) for at in range(MANTISSA))
        m.d.comb += added.eq(sum + Mux(factor[count], x[-MANTISSA:], 0))
        m.d.comb += [self.o.p.mantissa.eq(sum), self.o.p.shift.eq(shift)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    x.eq(self.i.payload),
                    is_zero.eq(self.i.payload == 0),
                    # Mantissa of the peak and of the product, relative to ``low``.
                    shift.eq(MANTISSA - self.width + self.scale[1] - MANTISSA - self.low),
                ]
                with m.If(self.i.valid):
                    m.next = "NORMALISE"
            with m.State("NORMALISE"):
                m.d.sync += [count.eq(0), sum.eq(0), low.eq(0)]
                with m.If(x[-1] | is_zero):
                    near = Signal(MANTISSA + 1)
                    m.d.comb += near.eq(x[-MANTISSA:] + x[-MANTISSA - 1])
                    m.d.sync += x[-MANTISSA:].eq(Mux(near[-1], 1 << MANTISSA - 1, near))
                    with m.If(near[-1]):
                        m.d.sync += shift.eq(shift - 1)
                    m.next = "MULTIPLY"
                with m.Else():
                    m.d.sync += [x.eq(x << 1), shift.eq(shift + 1)]
            with m.State("MULTIPLY"):
                m.d.sync += [
                    sum.eq(added[1:]),
                    low.eq(Cat(low[1], added[0])),
                    count.eq(count + 1),
                ]
                with m.If(count == MANTISSA - 1):
                    m.next = "ROUND"
            with m.State("ROUND"):
                near_product = Signal(MANTISSA + 1)
                m.d.comb += near_product.eq(
                    Mux(sum[-1], sum, Cat(low[1], sum[:-1])) + Mux(sum[-1], low[1], low[0])
                )
                m.d.sync += [
                    sum.eq(Mux(near_product[-1], 1 << MANTISSA - 1, near_product)),
                    shift.eq(shift + ~sum[-1] - near_product[-1]),
                ]
                with m.If(is_zero):
                    m.d.sync += [sum.eq(0), shift.eq(0)]
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        return m


def shift_range(peak_width: int, scale: Scale) -> tuple[int, int]:
    """Smallest and largest shift of ``product(normalise(peak), scale)``, peaks of 0 aside."""
    carry = peak_width > MANTISSA  # a wider peak may round up to the next power of two
    return (
        MANTISSA - peak_width - carry + scale[1] - MANTISSA - 1,
        MANTISSA - 1 + scale[1] - MANTISSA + 1,
    )


def peak_scale_layout(peak_width: int, scale: Scale) -> data.StructLayout:
    low, high = shift_range(peak_width, scale)
    return data.StructLayout({
        "mantissa": unsigned(MANTISSA),
        "shift": unsigned((high - low).bit_length()),
    })


def reciprocal_layout(config: OnlineConfig) -> data.StructLayout:
    shift = signed(config.octave_width + 2)
    return data.StructLayout({"mantissa": unsigned(MANTISSA), "shift": shift})


class Reciprocal(wiring.Component):
    """``quotient(scale, normalise(total))`` for a constant ``scale``, one bit a cycle.

    The octave of ``i`` is added to the shift, ``low`` taken off.  A total of 0 gives any mantissa.
    ``LATENCY`` cycles from taking a total to offering the result, and as many more as the total has
    zeros above its top bit (of ``width`` bits).
    """

    LATENCY = 1 + 1 + (MANTISSA + 1) + 2

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: OnlineConfig, scale: Scale, low: int):
        self.scale, self.low = scale, low
        self.width = max(config.total_width, MANTISSA + 1)
        super().__init__({
            "i": In(stream.Signature(total_layout(config))),
            "o": Out(stream.Signature(reciprocal_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        x = Signal(self.width, reset_less=True)
        is_zero = Signal(reset_less=True)
        shift = Signal(self.o.p.shift.shape(), reset_less=True)
        divisor = Signal(MANTISSA, reset_less=True)
        rest = Signal(MANTISSA + 2, reset_less=True)
        ratio = Signal(MANTISSA + 1, reset_less=True)
        count = Signal(range(MANTISSA + 1))
        m.d.comb += [self.o.p.mantissa.eq(ratio), self.o.p.shift.eq(shift)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    x.eq(self.i.p.total),
                    is_zero.eq(self.i.p.total == 0),
                    # Less the shift of the normalised total, which is MANTISSA - width if its top
                    # bit is set.
                    shift.eq(self.i.p.octave + (self.scale[1] + self.width - self.low)),
                ]
                with m.If(self.i.valid):
                    m.next = "NORMALISE"
            with m.State("NORMALISE"):
                near = Signal(MANTISSA + 1)
                m.d.comb += near.eq(x[-MANTISSA:] + x[-MANTISSA - 1])
                m.d.sync += [
                    divisor.eq(Mux(near[-1], 1 << MANTISSA - 1, near)),
                    rest.eq(self.scale[0]),
                    count.eq(MANTISSA),
                ]
                with m.If(x[-1] | is_zero):
                    with m.If(near[-1]):
                        m.d.sync += shift.eq(shift + 1)
                    m.next = "DIVIDE"
                with m.Else():
                    m.d.sync += [x.eq(x << 1), shift.eq(shift - 1)]
            with m.State("DIVIDE"):
                taken = Signal(signed(MANTISSA + 2))
                m.d.comb += taken.eq(rest[: MANTISSA + 1] - divisor)
                m.d.sync += [
                    rest.eq(Cat(Const(0, 1), Mux(taken < 0, rest, taken)[: MANTISSA + 1])),
                    ratio.eq(Cat(taken >= 0, ratio)),
                    count.eq(count - 1),
                ]
                with m.If(count == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                # ``rest`` is the remainder doubled; it never equals the divisor, as twice the
                # dividend has more factors of two than 16 bits hold.
                m.d.sync += ratio.eq(ratio + (rest > divisor))
                m.next = "SHORTEN"
            with m.State("SHORTEN"):
                with m.If(ratio[-1]):
                    m.d.sync += [ratio.eq(ratio[1:] + ratio[0]), shift.eq(shift - 1)]
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        return m


class Reciprocals(wiring.Component):
    """Two :class:`Reciprocal` that take turns, so that results stay in order."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: OnlineConfig, scale: Scale, low: int):
        self.units = [Reciprocal(config, scale, low) for _ in range(2)]
        super().__init__({
            "i": In(stream.Signature(total_layout(config))),
            "o": Out(stream.Signature(reciprocal_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        given, taken = Signal(), Signal()
        for index, unit in enumerate(self.units):
            m.submodules[f"unit_{index}"] = unit
            m.d.comb += [
                unit.i.p.eq(self.i.p),
                unit.i.valid.eq(self.i.valid & (given == index)),
                unit.o.ready.eq(self.o.ready & (taken == index)),
            ]
        m.d.comb += [
            self.i.ready.eq(Mux(given, self.units[1].i.ready, self.units[0].i.ready)),
            self.o.valid.eq(Mux(taken, self.units[1].o.valid, self.units[0].o.valid)),
            self.o.p.eq(Mux(taken, self.units[1].o.p.as_value(), self.units[0].o.p.as_value())),
        ]
        m.d.sync += [
            given.eq(given ^ (self.i.valid & self.i.ready)),
            taken.eq(taken ^ (self.o.valid & self.o.ready)),
        ]
        return m
