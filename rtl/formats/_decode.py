# SPDX-License-Identifier: Apache-2.0
"""From a code of any format to sign, exponent and significand."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatchmethod

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config, param
from ._formats import (
    BipolarFormat,
    FloatFormat,
    Format,
    FormatError,
    IntegerFormat,
    PositFormat,
    ScaleFormat,
    Special,
    TernaryFormat,
    format_named,
)
from ._shift import late, normalised


@dataclass(frozen=True)
class Span:
    """Numbers ``significand * 2**(exponent - (bits - 1))``: 1.f times a power of two.

    The significand has ``bits`` bits, of which the highest is set; exponents are ``low`` to
    ``high``.
    """

    bits: int
    low: int
    high: int

    @property
    def exponent_width(self) -> int:
        """Bits of the signed exponent."""
        return max(self.high, ~self.low, 0).bit_length() + 1


def span_of(format_: Format) -> Span:
    """The smallest span with all numbers of a format."""
    match format_:
        case IntegerFormat(bits=bits):  # the lowest is a power of two
            return Span(bits - 1, 0, bits - 1)
        case TernaryFormat():
            return Span(1, 0, 0)
        case BipolarFormat(bits=bits):
            return Span(bits, 0, bits - 1)
        case FloatFormat(mantissa=mantissa, bias=bias):
            high = (format_.largest >> mantissa) - bias
            return Span(1 + mantissa, 1 - bias - mantissa, high)
        case PositFormat(bits=bits, es=es):
            most = bits - 2 << es
            return Span(max(bits - 2 - es, 1), -most, most)
        case ScaleFormat():
            return Span(1, -127, 127)
    raise NotImplementedError(format_.name)


def name_faults(name: str) -> Iterator[str]:
    """A sentence if there is no format of this name."""
    try:
        format_named(name)
    except FormatError as error:
        yield str(error)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Config):
    format: str = param("fp16", "name of the format")
    stage: int = param(0, "1 for a register in front of the shifter", ge=0, le=1)

    def faults(self) -> Iterator[str]:
        return name_faults(self.format)

    @property
    def of_format(self) -> Format:
        return format_named(self.format)

    @property
    def span(self) -> Span:
        """What exponents and significands there are."""
        return span_of(self.of_format)

    @property
    def latency(self) -> int:
        """Registers between the code and what it means."""
        return self.stage


class Decode(wiring.Component):
    """What a code of ``format`` means: ``(-1)**sign * significand * 2**(exponent - (bits - 1))``.

    All numbers come normalised, subnormal ones too: the highest bit of ``significand`` is set, and
    ``bits`` are its bits.  ``exponent`` and ``significand`` are unspecified beside ``zero``,
    ``nan`` and ``inf``; ``sign`` is that of the code, for NaR too.  NaR of posits is ``nan``.
    Codes that stand for nothing (2 of trits) are unspecified.

    Members
    -------
    code : :py:`In(width)`
    enable : :py:`In(1)`
        The register advances while it is high.  Unused without one.
    zero, nan, inf, sign : :py:`Out(1)`
    exponent : :py:`Out(signed(span.exponent_width))`
    significand : :py:`Out(span.bits)`

    Instantiate it with ``place(m, platform, name, Decode(config), code=, enable=)``.
    """

    code: Signal
    enable: Signal
    zero: Signal
    nan: Signal
    inf: Signal
    sign: Signal
    exponent: Signal
    significand: Signal

    def __init__(self, config: DecodeConfig):
        self.config = config
        super().__init__({
            "code": In(config.of_format.width),
            "enable": In(1),
            "zero": Out(1),
            "nan": Out(1),
            "inf": Out(1),
            "sign": Out(1),
            "exponent": Out(signed(config.span.exponent_width)),
            "significand": Out(unsigned(config.span.bits)),
        })

    def elaborate(self, platform):
        m = Module()
        self._decode(self.config.of_format, m)
        return m

    @singledispatchmethod
    def _decode(self, format_: Format, m: Module) -> None:
        raise NotImplementedError(format_.name)

    @_decode.register
    def _(self, format_: IntegerFormat, m: Module) -> None:
        sign = self.code[-1]
        self._whole(m, sign, _magnitude(m, self.code, sign))

    @_decode.register
    def _(self, format_: TernaryFormat, m: Module) -> None:
        self._flags(m, sign=self.code[1], zero=~self.code[0])
        m.d.comb += [self.exponent.eq(0), self.significand.eq(1)]

    @_decode.register
    def _(self, format_: BipolarFormat, m: Module) -> None:
        sign = ~self.code[-1]
        low = self.code[:-1] ^ sign.replicate(format_.bits - 1)
        self._whole(m, sign, Cat(Const(1, 1), low))

    def _whole(self, m: Module, sign, magnitude) -> None:
        """An integer: the lowest bit leaves where only a power of two could have set it."""
        self._flags(m, sign=sign, zero=~magnitude.any())
        x_magnitude = self._late(m, "magnitude", magnitude)
        shifted, count = normalised(m, "shifted", x_magnitude)
        m.d.comb += [
            self.exponent.eq(len(magnitude) - 1 - count),
            self.significand.eq(shifted[len(magnitude) - self.config.span.bits :]),
        ]

    @_decode.register
    def _(self, format_: FloatFormat, m: Module) -> None:
        bits = format_.exponent + format_.mantissa
        mantissa, exponent = self.code[: format_.mantissa], self.code[format_.mantissa : bits]
        nan, inf = Const(0, 1), Const(0, 1)
        if format_.special is Special.IEEE:
            nan, inf = exponent.all() & mantissa.any(), exponent.all() & ~mantissa.any()
        elif format_.special is Special.NAN:
            nan = self.code[:bits].all()
        self._flags(m, sign=self.code[-1], zero=~self.code[:bits].any(), nan=nan, inf=inf)
        x_mantissa = self._late(m, "mantissa", mantissa)
        x_exponent = self._late(m, "exponent", exponent)
        x_subnormal = self._late(m, "subnormal", ~exponent.any())
        shifted, count = normalised(m, "shifted", x_mantissa)
        m.d.comb += [
            self.exponent.eq(Mux(x_subnormal, -count, x_exponent) - format_.bias),
            self.significand.eq(
                Mux(x_subnormal, Cat(Const(0, 1), shifted), Cat(x_mantissa, Const(1, 1)))
            ),
        ]

    @_decode.register
    def _(self, format_: PositFormat, m: Module) -> None:
        """Behind the sign a run of ``first``, ended by its complement, is the regime.

        With ``first`` taken off all bits, the run's end is the leading one.
        """
        bits, es = format_.bits, format_.es
        sign, none = self.code[-1], ~self.code[:-1].any()
        self._flags(m, sign=sign, zero=none & ~sign, nan=none & sign)
        size = self._late(m, "size", _magnitude(m, self.code, sign)[:-1])
        first = size[-1]
        plain = size[:-1] ^ first.replicate(bits - 2)
        shifted, count = normalised(m, "shifted", plain, most=bits - 2, fill=first)
        rest = shifted[:-1] ^ first.replicate(bits - 3)  # exponent and fraction
        rest = Cat(Const(0, max(es - len(rest), 0)), rest)
        above = len(rest) - es
        m.d.comb += [
            self.exponent.eq(Cat(rest[above:], count ^ ~first.replicate(len(count)), ~first)),
            self.significand.eq(Cat(rest[:above], Const(1, 1))),
        ]

    @_decode.register
    def _(self, format_: ScaleFormat, m: Module) -> None:
        self._flags(m, nan=self.code.all())
        code = self._late(m, "code", self.code)
        m.d.comb += [self.exponent.eq(code - 127), self.significand.eq(1)]

    def _flags(self, m: Module, **flags: Value) -> None:
        for name in ("sign", "zero", "nan", "inf"):
            value = self._late(m, name, flags[name]) if name in flags else Const(0, 1)
            m.d.comb += getattr(self, name).eq(value)

    def _late(self, m: Module, name: str, value) -> Value:
        """``value``, through a register if there are any."""
        return late(m, self.config.stage, self.enable, name, value)


def _magnitude(m: Module, code, sign) -> Signal:
    """The two's complement number without its sign, as wide."""
    size = Signal(len(code), name="absolute")
    m.d.comb += size.eq((code ^ sign.replicate(len(code))) + sign)
    return size
