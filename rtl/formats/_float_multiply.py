# SPDX-License-Identifier: Apache-2.0
"""Product of two numbers of one floating-point format, rounded once."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from ..config import param
from ._decode import Decode, DecodeConfig
from ._encode import Encode, EncodeConfig
from ._float_add import FloatAddConfig
from ._shift import late


@dataclass(frozen=True, kw_only=True)
class FloatMultiplyConfig(FloatAddConfig):
    stages: int = param(0, "1 for a register between product and rounding", ge=0, le=1)

    @property
    def decode(self) -> DecodeConfig:
        """From a code to sign, exponent and significand."""
        return DecodeConfig(format=self.format)

    @property
    def encode(self) -> EncodeConfig:
        """From the exact product to its code."""
        span = self.decode.span
        return EncodeConfig(
            format=self.format,
            bits=2 * span.bits,
            low=2 * span.low,
            high=2 * span.high + 1,
            saturate=False,
        )


class FloatMultiply(wiring.Component):
    """``y`` is the code of ``a * b``, rounded to nearest, ties to even: IEEE 754.

    Subnormals are numbers like others, overflow makes an infinity.  ``y`` is the format's NaN that
    is not negative if one of the two is NaN or an infinity meets a zero.

    Members
    -------
    a, b : :py:`In(width)`
    enable : :py:`In(1)`
        The register advances while it is high.  Unused without one.
    y : :py:`Out(width)`

    Instantiate it with ``place(m, platform, name, FloatMultiply(config), a=, b=, enable=)``.
    """

    a: Signal
    b: Signal
    enable: Signal
    y: Signal

    def __init__(self, config: FloatMultiplyConfig):
        self.config = config
        width = config.of_format.width
        super().__init__({"a": In(width), "b": In(width), "enable": In(1), "y": Out(width)})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        a, b = (
            place(m, platform, f"decode_{name}", Decode(config.decode), code=code, enable=0)
            for name, code in (("a", self.a), ("b", self.b))
        )
        bits = 2 * config.decode.span.bits
        product = Signal(bits)
        m.d.comb += product.eq(a.significand * b.significand)
        top = product[-1]  # a product of two from 1 to 2 is from 1 to 4
        parts = {
            "sign": a.sign ^ b.sign,
            "exponent": a.exponent + b.exponent + top,
            "significand": Mux(top, product, Cat(Const(0, 1), product))[:bits],
            "zero": (a.zero | b.zero) & ~(a.inf | b.inf | a.nan | b.nan),
            "inf": (a.inf | b.inf) & ~(a.zero | b.zero | a.nan | b.nan),
            "nan": a.nan | b.nan | (a.inf & b.zero) | (a.zero & b.inf),
        }
        parts = {
            name: late(m, config.stages, self.enable, name, value) for name, value in parts.items()
        }
        made = place(m, platform, "encode", Encode(config.encode), sticky=0, enable=0, **parts)
        m.d.comb += self.y.eq(made.code)
        return m
