# SPDX-License-Identifier: Apache-2.0
"""From sign, exponent and significand to the nearest code of any format."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config, param
from ._decode import Span, name_faults
from ._formats import (
    BipolarFormat,
    FloatFormat,
    Format,
    IntegerFormat,
    PositFormat,
    ScaleFormat,
    Special,
    TernaryFormat,
    format_named,
)
from ._shift import cut, late, shifted_right


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(Config):
    format: str = param("fp8_e4m3", "name of the format")
    bits: int = param(11, "bits of a significand that comes in", ge=1, le=256)
    low: int = param(-24, "lowest exponent that comes in", ge=-4096, le=4096)
    high: int = param(15, "highest exponent that comes in", ge=-4096, le=4096)
    saturate: bool = param(True, "too large: the largest finite code; without, infinity or NaN")
    stage: int = param(0, "1 for a register in front of the rounding", ge=0, le=1)

    def faults(self) -> Iterator[str]:
        yield from name_faults(self.format)
        if self.low > self.high:
            yield f"low must be at most high ({self.high}), not {self.low}"

    @property
    def of_format(self) -> Format:
        return format_named(self.format)

    @property
    def span(self) -> Span:
        """What exponents and significands may come in."""
        return Span(self.bits, self.low, self.high)

    @property
    def latency(self) -> int:
        """Registers between a number and its code."""
        return self.stage


class Encode(wiring.Component):
    """The code of ``format`` nearest to a number, ties to the even code; rounded once.

    The number is ``(-1)**sign * (significand + s) * 2**(exponent - (bits - 1))``: the highest bit
    of ``significand`` is set, and ``s``, if ``sticky``, is something between 0 and 1, else 0 (there
    is no use in ``sticky`` unless ``bits`` is more than the format's own).
    ``exponent`` is within ``low .. high``; what cannot happen between them costs nothing.  With
    ``zero``, ``nan`` or ``inf``, of which at most one is set, neither counts.

    ======== ====================== ===================== =======================================
    format   too large              inf                   nan
    ======== ====================== ===================== =======================================
    integers largest of its sign    largest of its sign   0
    bipolar  largest of its sign    largest of its sign   as zero: the even one of -1 and 1
    floating largest of its sign;   as too large          NaN, not negative; +0 where there is none
             infinity or NaN
             without ``saturate``
    posits   largest of its sign    NaR                   NaR
    E8M0     254; 255 without       as too large          255
             ``saturate``
    ======== ====================== ===================== =======================================

    A posit is never rounded to 0 or to NaR.  A zero keeps its sign in floating-point formats.
    E8M0 does not look at ``sign``; what is below its range, and zero, become its smallest.

    Members
    -------
    zero, nan, inf, sign, sticky : :py:`In(1)`
    exponent : :py:`In(signed(span.exponent_width))`
    significand : :py:`In(bits)`
    enable : :py:`In(1)`
        The register advances while it is high.  Unused without one.
    code : :py:`Out(width)`

    Instantiate it with ``place(m, platform, name, Encode(config), zero=, ..., enable=)``.
    """

    zero: Signal
    nan: Signal
    inf: Signal
    sign: Signal
    exponent: Signal
    significand: Signal
    sticky: Signal
    enable: Signal
    code: Signal

    def __init__(self, config: EncodeConfig):
        self.config = config
        super().__init__({
            "zero": In(1),
            "nan": In(1),
            "inf": In(1),
            "sign": In(1),
            "exponent": In(signed(config.span.exponent_width)),
            "significand": In(unsigned(config.bits)),
            "sticky": In(1),
            "enable": In(1),
            "code": Out(config.of_format.width),
        })

    def elaborate(self, platform):
        m = Module()
        self._encode(self.config.of_format, m)
        return m

    @singledispatchmethod
    def _encode(self, format_: Format, m: Module) -> None:
        raise NotImplementedError(format_.name)

    @_encode.register
    def _(self, format_: IntegerFormat, m: Module) -> None:
        self._integer(m, format_.bits)

    @_encode.register
    def _(self, format_: TernaryFormat, m: Module) -> None:
        self._integer(m, 2)

    def _integer(self, m: Module, bits: int) -> None:
        """Symmetric two's complement: ``bits - 1`` bits and the one below are kept."""
        top = bits - 2  # the exponent of a number that needs no shift
        value, lost = self._aligned(m, bits, top, bits)
        over = self._late(m, "over", self._above(top) | self.inf)
        sign, zero = self._late(m, "sign", self.sign), self._late(m, "zero", self.zero | self.nan)
        kept, up = self._rounding(m, value, lost)
        rail = Cat(Const(1, 1), (~sign).replicate(bits - 2), sign)
        with m.If(zero):
            m.d.comb += self.code.eq(0)
        with m.Elif(over | (kept.all() & up)):
            m.d.comb += self.code.eq(rail)
        with m.Else():
            m.d.comb += self.code.eq(_signed(kept, up, sign))

    @_encode.register
    def _(self, format_: BipolarFormat, m: Module) -> None:
        """Half of a number, rounded down, is its code less that of 1; of -1, with all bits flipped.

        An even number is a tie, and its half exact: with an odd code it becomes the one below,
        which is the code one nearer to 0 of a positive number, one farther of a negative one.
        """
        bits = format_.bits
        half, inexact = self._aligned(m, bits - 1, bits - 1, bits - 1)
        over = self._late(m, "over", self._above(bits - 1) | self.inf)
        sign, zero = self._late(m, "sign", self.sign), self._late(m, "zero", self.zero | self.nan)
        half, inexact = self._late(m, "half", half), self._late(m, "inexact", inexact)
        low = Signal(max(bits - 1, 0))
        with m.If(sign):
            m.d.comb += low.eq(~half + (~inexact & ~half[:1].any()))
        with m.Else():
            m.d.comb += low.eq(Cat(half[:1] & inexact, half[1:]))
        with m.If(zero):
            m.d.comb += self.code.eq(1 << bits - 1 if bits > 1 else 0)
        with m.Elif(over):
            m.d.comb += self.code.eq((~sign).replicate(bits))
        with m.Else():
            m.d.comb += self.code.eq(Cat(low, ~sign))

    @_encode.register
    def _(self, format_: FloatFormat, m: Module) -> None:
        mantissa, fields = format_.mantissa, format_.exponent + format_.mantissa
        span, bias = self.config.span, format_.bias
        value, lost = self._aligned(m, mantissa + 2, 1 - bias, mantissa + 2)
        # The hidden bit of a subnormal number has left its place, and its field is 0.
        field = Signal(format_.exponent)
        m.d.comb += field.eq(self.exponent + bias)
        if span.low < 1 - bias:
            with m.If(self.exponent < 1 - bias):
                m.d.comb += field.eq(0)
        field = self._late(m, "field", field)
        above = self._above((1 << format_.exponent) - 1 - bias)
        over, zero = self._late(m, "over", above | self.inf), self._late(m, "zero", self.zero)
        sign, nan = self._late(m, "sign", self.sign), self._late(m, "nan", self.nan)
        kept, up = self._rounding(m, value, lost)
        rounded = Signal(fields + 1)
        m.d.comb += rounded.eq(Cat(kept[:mantissa], field) + up)
        beyond = format_.largest
        if not self.config.saturate:
            specials = (format_.infinity, format_.nan, beyond)
            beyond = next(code for code in specials if code is not None)
        special = Const(0, 1)
        if format_.special is Special.IEEE:
            special = rounded[mantissa:fields].all()
        elif format_.special is Special.NAN:
            special = rounded[:fields].all()
        with m.If(nan):
            m.d.comb += self.code.eq(format_.nan or 0)
        with m.Else():
            m.d.comb += self.code[-1].eq(sign)
            with m.If(zero):
                m.d.comb += self.code[:-1].eq(0)
            with m.Elif(over | special | rounded[-1]):
                m.d.comb += self.code[:-1].eq(beyond)
            with m.Else():
                m.d.comb += self.code[:-1].eq(rounded)

    @_encode.register
    def _(self, format_: PositFormat, m: Module) -> None:
        """``10`` or ``01``, exponent, fraction: shifted right, this is the string to be cut.

        The shift fills in the regime's run.  A longer one than there is room for leaves the
        largest code, or 0 and a one just below, which is rounded up.
        """
        bits, es, span = format_.bits, format_.es, self.config.span
        scale, regime = self.exponent[:es], self.exponent[es:]
        small, most = self.exponent[-1], bits - 2
        longest = max(span.high >> es, ~(span.low >> es), 0)
        amount = Signal(range(min(longest, most) + 1))
        run = regime ^ small.replicate(len(regime))
        m.d.comb += amount.eq(run)
        if longest > most:
            with m.If(run > most):
                m.d.comb += amount.eq(most)
        text = Cat(self.significand[:-1], scale, small, ~small)
        text, spare = cut(text, bits)
        value, lost = shifted_right(
            m, "shifted", text, amount, min(longest, most), ~small, spare | self.sticky
        )
        tiny = self._late(m, "tiny", small & (amount == most)) if longest >= most else Const(0, 1)
        sign, zero = self._late(m, "sign", self.sign), self._late(m, "zero", self.zero)
        nar = self._late(m, "nar", self.nan | self.inf)
        kept, up = self._rounding(m, value, lost, always=tiny)
        with m.If(nar):
            m.d.comb += self.code.eq(1 << bits - 1)
        with m.Elif(~zero):
            m.d.comb += self.code.eq(_signed(kept, up, sign))

    @_encode.register
    def _(self, format_: ScaleFormat, m: Module) -> None:
        first, below = cut(self.significand[:-1], 1)
        up = self._late(m, "up", first & (below | self.sticky | ~self.exponent[0]))
        place = Signal.like(self.exponent, name="x_place", reset_less=True)
        m.d.comb += place.eq(late(m, self.config.stage, self.enable, "exponent", self.exponent))
        zero, nan = self._late(m, "zero", self.zero), self._late(m, "nan", self.nan)
        inf = self._late(m, "inf", self.inf)
        code = Signal(signed(len(place) + 9))
        m.d.comb += code.eq(place + up + 127)
        with m.If(nan):
            m.d.comb += self.code.eq(255)
        with m.Elif(inf | (~zero & (code > 254))):
            m.d.comb += self.code.eq(254 if self.config.saturate else 255)
        with m.Elif(~zero & (code > 0)):
            m.d.comb += self.code.eq(code)

    def _aligned(self, m: Module, width: int, top: int, most: int):
        """The highest ``width`` bits of the number shifted right by what its exponent lacks of
        ``top``, by ``most`` at most; and whether any bit was set below."""
        value, spare = cut(self.significand, width)
        lost = spare | self.sticky
        needed = top - self.config.low
        if needed <= 0 or most <= 0:
            return value, lost | (self.exponent < top if needed > 0 else 0)
        most = min(needed, most)
        amount = Signal(range(most + 1))
        with m.If(self.exponent < top - most):
            m.d.comb += amount.eq(most)
        with m.Elif(self.exponent < top):
            m.d.comb += amount.eq(top - self.exponent)
        return shifted_right(m, "shifted", value, amount, most, 0, lost)

    def _above(self, top: int):
        """Whether the exponent is above ``top``, where it may be."""
        return self.exponent > top if self.config.high > top else Const(0, 1)

    def _rounding(self, m: Module, value, lost, always: Any = 0):
        """All bits but the lowest, and whether one is to be added to them."""
        value, lost = self._late(m, "value", value), self._late(m, "lost", lost)
        up = Signal()
        m.d.comb += up.eq(value[0] & (value[1] | lost | always))
        return value[1:], up

    def _late(self, m: Module, name: str, value) -> Signal:
        return late(m, self.config.stage, self.enable, name, value)


def _signed(kept, up, sign):
    """``kept + up``, or that negated, with one bit more."""
    return (Cat(kept, Const(0, 1)) ^ sign.replicate(len(kept) + 1)) + (up ^ sign)
