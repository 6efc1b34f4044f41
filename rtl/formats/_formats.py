# SPDX-License-Identifier: Apache-2.0
"""Number formats as objects that hardware and models share; ``sim/formats`` has their arithmetic.

Sources: OCP OFP8 and Microscaling Formats v1.0 (FP8, FP6, FP4, E8M0), IEEE 754 (fp16), Gustafson
and Yonemoto 2017 (posits with any exponent size), BitNet b1.58 (trits), sheets of this project.
"""

import functools
import re
from dataclasses import dataclass
from enum import Enum

from ..errors import AtriplexError, unknown


class FormatError(AtriplexError, ValueError):
    """A format that is none, or a value that it cannot hold; one sentence."""


class Special(Enum):
    """What the largest exponent of a floating-point format is for."""

    IEEE = "infinity with a mantissa of 0, else NaN"
    NAN = "numbers, but for one NaN whose bits are all ones"
    NONE = "numbers"


@dataclass(frozen=True)
class Format:
    """Any format: a name, and the bits of a code."""

    name: str

    @property
    def width(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class IntegerFormat(Format):
    """Two's complement integers of ``bits`` bits; if ``symmetric``, none becomes the lowest."""

    bits: int
    symmetric: bool = True

    @property
    def width(self) -> int:
        return self.bits

    @property
    def top(self) -> int:
        """The largest value."""
        return (1 << self.bits - 1) - 1

    @property
    def bottom(self) -> int:
        """The smallest value that is encoded."""
        return -self.top if self.symmetric else -self.top - 1


@dataclass(frozen=True)
class TernaryFormat(Format):
    """-1, 0, 1 as two's complement numbers of 2 bits; code 2 is none."""

    @property
    def width(self) -> int:
        return 2


@dataclass(frozen=True)
class BipolarFormat(Format):
    """Odd integers: bit ``i`` stands for ``2**i`` where it is set, else for ``-2**i``."""

    bits: int

    @property
    def width(self) -> int:
        return self.bits


@dataclass(frozen=True)
class FloatFormat(Format):
    """Sign, ``exponent`` and ``mantissa`` bits, with subnormals and two zeros."""

    exponent: int
    mantissa: int
    bias: int
    special: Special

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> int:
        """The code of the largest finite value."""
        top = (1 << self.exponent + self.mantissa) - 1
        if self.special is Special.IEEE:
            return top - (1 << self.mantissa)
        return top - (self.special is Special.NAN)

    @property
    def nan(self) -> int | None:
        """The code that NaNs are encoded as; None where there is none."""
        if self.special is Special.NONE:
            return None
        top = (1 << self.exponent + self.mantissa) - 1
        if self.special is Special.NAN:
            return top
        return self.largest + 1 | 1 << self.mantissa - 1

    @property
    def infinity(self) -> int | None:
        """The code of plus infinity; None where there is none."""
        return self.largest + 1 if self.special is Special.IEEE else None


@dataclass(frozen=True)
class PositFormat(Format):
    """Posits of ``bits`` bits with ``es`` exponent bits; the only exception is NaR, ``10...0``."""

    bits: int
    es: int

    @property
    def width(self) -> int:
        return self.bits


@dataclass(frozen=True)
class ScaleFormat(Format):
    """E8M0: ``2**(code - 127)``, 255 is NaN; there is no zero and no sign."""

    @property
    def width(self) -> int:
        return 8


_FLOATS = {
    "fp4_e2m1": (2, 1, 1, Special.NONE),
    "fp6_e2m3": (2, 3, 1, Special.NONE),
    "fp6_e3m2": (3, 2, 3, Special.NONE),
    "fp8_e4m3": (4, 3, 7, Special.NAN),
    "fp8_e5m2": (5, 2, 15, Special.IEEE),
    "bf16": (8, 7, 127, Special.IEEE),
    "fp16": (5, 10, 15, Special.IEEE),
}
_POSITS = {"posit4_1": (4, 1), "posit8_0": (8, 0), "posit16_1": (16, 1)}
_SHOWN = (
    *("int2", "int4", "int8", "int16", "ternary", "bipolar1", "bipolar4", "bipolar8", "e8m0"),
    *_FLOATS,
    *_POSITS,
)


@functools.cache
def format_named(name: str) -> Format:
    """The format of a name: ``int8``, ``bipolar3``, ``posit8_0``, ``fp8_e4m3`` ...

    Integers have 2 to 16 bits, bipolar ones 1 to 8, posits 3 to 16 with up to 3 exponent bits.
    Raises :class:`FormatError`.
    """
    if name in _FLOATS:
        return FloatFormat(name, *_FLOATS[name])
    if name == "ternary":
        return TernaryFormat(name)
    if name == "e8m0":
        return ScaleFormat(name)
    if (found := re.fullmatch(r"int(\d+)", name)) and 2 <= int(found[1]) <= 16:
        return IntegerFormat(name, int(found[1]))
    if (found := re.fullmatch(r"bipolar(\d+)", name)) and 1 <= int(found[1]) <= 8:
        return BipolarFormat(name, int(found[1]))
    found = re.fullmatch(r"posit(\d+)_(\d)", name)
    if found and 3 <= int(found[1]) <= 16 and int(found[2]) <= 3:
        return PositFormat(name, int(found[1]), int(found[2]))
    raise FormatError(unknown("format", name, _SHOWN))
