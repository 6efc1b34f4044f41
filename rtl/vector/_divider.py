# SPDX-License-Identifier: Apache-2.0
"""Rounded quotient of an element by the largest one, a bit per pipeline stage."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from ..config import Config, param


@dataclass(frozen=True, kw_only=True)
class DividerConfig(Config):
    width: int = param(24, "bits of magnitude and divisor, at most 2**(width - 1)", ge=2, le=62)
    code_width: int = param(8, "bits of the signed quotient", ge=2, le=16)

    @property
    def latency(self) -> int:
        """Registers between the magnitude and the code."""
        return self.code_width + 1

    @property
    def divisors(self) -> int:
        """Registers that the divisor runs through beside the magnitude's."""
        return self.code_width


class Divider(wiring.Component):
    """``code = sign * round_half_even(top * magnitude / divisor)``, exact, all stages at once.

    ``top = 2**(code_width - 1) - 1``, ``magnitude <= divisor``,
    ``0 < divisor <= 2**(width - 1)``: magnitudes of signed numbers.

    With ``e = 2 * magnitude - divisor``, the code is the quotient of ``top * e``, a signed
    remainder, by ``2 * divisor``, plus half its range: its first bit is the sign of ``e``, each
    further one that of the remainder after adding or subtracting (non-restoring).  The lowest bit
    is 1 only if the remainder is above 0: at 0 there is a tie, and the even code is one less.

    Members
    -------
    enable : moves all stages.
    magnitude, sign : unsigned, and 1 for negative.
    divisors : ``divisors[k]`` belongs to the magnitude of ``k`` enabled cycles ago.
    code : of ``config.latency`` enabled cycles ago.
    """

    enable: Signal
    magnitude: Signal
    sign: Signal
    divisors: data.View
    code: Signal

    def __init__(self, config: DividerConfig):
        self.config = config
        super().__init__({
            "enable": In(1),
            "magnitude": In(config.width),
            "sign": In(1),
            "divisors": In(data.ArrayLayout(unsigned(config.width), config.divisors)),
            "code": Out(signed(config.code_width)),
        })

    def elaborate(self, platform):
        m = Module()
        width, bits = self.config.width, self.config.code_width - 1
        excess = Signal(signed(width + 1), reset_less=True)
        rest = Signal(signed(width + bits), name=f"rest_{bits}", reset_less=True)
        signs = Signal(bits + 1, reset_less=True)
        with m.If(self.enable):
            m.d.sync += [
                excess.eq(Cat(Const(0, 1), self.magnitude) - self.divisors[0]),
                rest.eq(Cat(Const(0, bits), excess).as_signed() - excess),
                signs.eq(Cat(self.sign, signs)),
            ]
        quotient = Const(0, 0)
        for bit in reversed(range(bits - 1)):
            positive = ~rest[-1]
            step = place(
                m,
                platform,
                f"step_{bit}",
                AddSelect(AddSelectConfig(width=width + 1)),
                a=rest[bit + 1 :].as_signed(),
                b=self.divisors[bits - bit],
                enable=1,
                invert=positive,
                carry=positive,
            )
            found = Signal(bits - 1 - bit, name=f"quotient_{bit}", reset_less=True)
            left = Signal(signed(width + 1 + bit), name=f"rest_{bit}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += [
                    left.eq(Cat(rest[: bit + 1], step.y)),
                    found.eq(Cat(positive, quotient)),
                ]
            rest, quotient = left, found
        whole = Signal(bits)
        code = Signal(signed(bits + 1), reset_less=True)
        m.d.comb += [
            whole.eq(Cat(~rest[-1] & rest[:-1].any(), quotient)),
            self.code.eq(code),
        ]
        with m.If(self.enable):
            m.d.sync += code.eq(Mux(signs[-1], -whole, whole))
        return m
