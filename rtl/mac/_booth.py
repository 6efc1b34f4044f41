# SPDX-License-Identifier: Apache-2.0
"""Radix-4 digits of a two's complement operand, and the product of a value with them.

A digit of the bits ``b1, b0`` and the bit ``below`` is ``-2 * b1 + b0 + below``, one of -2 to 2.
With ``below = 0`` it is the two's complement value of the two bits, so the codes 0, 1, 3 of
ternary weights are the digits 0, +1, -1, and code 2 is -2: one selector serves both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig, select
from .._once import place
from ..config import Config, param

STRUCTURES = ("rows", "booth")


class Digit(NamedTuple):
    """How a digit selects: ``(enable ? (two ? 2 * a : a) ^ invert : 0) + invert``.

    These are the ports of ``AddSelect`` with ``doubled(a, two)`` as its ``b`` and ``invert`` as its
    ``carry``; ``Cat(enable, invert)`` is a weight of ``SelectTree``.
    """

    enable: Signal
    two: Signal
    invert: Signal


def digit(m: Module, name: str, bits, below) -> Digit:
    """The digit of two ``bits`` and the bit ``below`` them (0 for a digit that stands alone)."""
    enable, two, invert = (Signal(name=f"{name}_{part}") for part in Digit._fields)
    m.d.comb += [
        enable.eq((bits[1] != bits[0]) | (bits[0] != below)),
        two.eq(bits[0] == below),
        invert.eq(bits[1] & ~(bits[0] & below)),
    ]
    return Digit(enable, two, invert)


def doubled(value, two):
    """``two ? 2 * value : value``, one bit wider than the signed ``value``."""
    wide = Cat(value, value[-1])
    return Mux(two, Cat(0, value), wide).as_signed()


@dataclass(frozen=True, kw_only=True)
class BoothProductConfig(Config):
    a_width: int = param(8, "bits of the signed multiplicand", ge=2, le=100)
    digits: int = param(4, "radix-4 digits of the multiplier, which has twice as many bits", ge=1)
    stage: int = param(0, "bits of the multiplier between pipeline registers; 0 for none", ge=0)
    structure: str = param("rows", "how a digit is made", choices=STRUCTURES)

    @property
    def b_width(self) -> int:
        return 2 * self.digits

    @property
    def y_width(self) -> int:
        """Bits that hold every product."""
        return self.a_width + self.b_width

    def faults(self) -> Iterator[str]:
        if self.structure == "booth" and self.stage % 2:
            yield f"stage must be even with structure booth, not {self.stage}"

    @property
    def latency(self) -> int:
        """Registers from ``a`` and ``b`` to ``y``: after every ``stage`` bits of ``b``."""
        return self.b_width // self.stage if self.stage else 0


class BoothProduct(wiring.Component):
    """``y = a * b``: exact, every value of both allowed, ``config.latency`` registers.

    ``structure`` is how a radix-4 digit is made; the product is the same bits:

    ===== ========================================================================================
    rows  a digit is two rows, each added or not inside its carry chain (one ``AddSelect``), and
          only the top one is inverted: no digit needs a selector.  Smaller where a carry chain
          has a LUT of its own in front.
    booth a digit is one row: a selector doubles, a carry chain adds, subtracts or skips.  Half the
          adders and half as deep, with a LUT per bit in front.
    ===== ========================================================================================

    8 by 8 bits on ECP5, LUT4 with a CCU2C as two: 78 with rows, 84 with booth; what yosys makes of
    ``a * b`` without DSP takes 184.

    Members
    -------
    a : :py:`In(signed(a_width))`
        Multiplicand.
    b : :py:`In(signed(2 * digits))`
        Multiplier.
    enable : :py:`In(1)`
        Registers advance while it is high.  Unused without registers.
    y : :py:`Out(signed(a_width + 2 * digits))`

    Instantiate it with ``place(m, platform, name, BoothProduct(config), a=, b=, enable=)``.
    """

    a: Signal
    b: Signal
    enable: Signal
    y: Signal

    def __init__(self, config: BoothProductConfig):
        self.config = config
        super().__init__({
            "a": In(signed(config.a_width)),
            "b": In(signed(config.b_width)),
            "enable": In(1),
            "y": Out(signed(config.y_width)),
        })

    def elaborate(self, platform):
        m = Module()
        if self.config.structure == "rows":
            self._rows(m, platform)
        else:
            self._digits(m, platform)
        return m

    def _rows(self, m: Module, platform) -> None:
        """``above`` is the sum of the rows so far, without the ``low`` bits that are final."""
        a, b, low = self.a, self.b, Cat()
        above = select(a, b[0], Const(0, 1))
        above, a, b, low = self._registered(m, 1, above, a, b[1:], low)
        for row in range(1, self.config.b_width):
            top = row == self.config.b_width - 1
            add = place(
                m,
                platform,
                f"row_{row}",
                AddSelect(AddSelectConfig(width=self.config.a_width)),
                a=above[1:].as_signed(),
                b=a,
                enable=b[0],
                invert=int(top),
                carry=b[0] if top else 0,
            )
            low = Cat(low, above[0])
            above, a, b, low = self._registered(m, row + 1, add.y, a, b[1:], low)
        m.d.comb += self.y.eq(Cat(low, above))

    def _digits(self, m: Module, platform) -> None:
        """The lowest digit is two rows, for it has a carry of its own; then a row per digit."""
        a, b = self.a, self.b
        first = place(
            m,
            platform,
            "digit_0",
            AddSelect(AddSelectConfig(width=self.config.a_width)),
            a=select(a, b[0], Const(0, 1))[1:].as_signed(),
            b=a,
            enable=b[1],
            invert=1,
            carry=b[1],
        )
        above, low = Cat(a[0] & b[0], first.y).as_signed(), Cat()
        above, a, b, low = self._registered(m, 2, above, a, b[1:], low)
        for index in range(1, self.config.digits):
            by = digit(m, f"d_{index}", b[1:3], b[0])
            add = place(
                m,
                platform,
                f"digit_{index}",
                AddSelect(AddSelectConfig(width=self.config.a_width + 1)),
                a=above[2:].as_signed(),
                b=doubled(a, by.two),
                enable=by.enable,
                invert=by.invert,
                carry=by.invert,
            )
            low = Cat(low, above[:2])
            above, a, b, low = self._registered(m, 2 * index + 2, add.y, a, b[2:], low)
        m.d.comb += self.y.eq(Cat(low, above))

    def _registered(self, m: Module, bit: int, *values):
        """``values``, through registers where ``stage`` asks for some after ``bit`` bits of b."""
        if not self.config.stage or bit % self.config.stage:
            return values
        late = []
        for name, value in zip(("above", "a", "b", "low"), values, strict=True):
            if not len(value):  # no bits of b are left behind the last row
                late.append(value)
                continue
            x = Signal.like(value, name=f"x_{name}_{bit}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += x.eq(value)
            late.append(x)
        return tuple(late)
