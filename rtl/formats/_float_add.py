# SPDX-License-Identifier: Apache-2.0
"""Sum of two numbers of one floating-point format, rounded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config, param
from ._decode import name_faults
from ._formats import FloatFormat, Special, format_named
from ._shift import late, shifted_right

SINGLE = FloatFormat("fp32", 8, 23, 127, Special.IEEE)
"""Float32, which is no format of elements."""

BELOW = 3
"""Bits below the last place: two, and one for all that is under them.

They are enough.  Where cancellation takes more than the highest bit, the two numbers were at most
one place apart, and nothing had been shifted out.
"""


@dataclass(frozen=True, kw_only=True)
class FloatAddConfig(Config):
    format: str = param("fp16", "name of the format, one with infinities, or fp32")
    stages: int = param(
        0,
        "registers: behind addition, alignment, shifter, comparison, half the shifter",
        ge=0,
        le=5,
    )

    def faults(self) -> Iterator[str]:
        if self.format == SINGLE.name:
            return
        wrong = list(name_faults(self.format))
        yield from wrong
        if not wrong and getattr(format_named(self.format), "special", None) is not Special.IEEE:
            yield f"format must have infinities, as fp16, bf16 and fp8_e5m2, not {self.format}"

    @property
    def of_format(self) -> FloatFormat:
        found = SINGLE if self.format == SINGLE.name else format_named(self.format)
        assert isinstance(found, FloatFormat)
        return found

    @property
    def latency(self) -> int:
        """Registers between the two numbers and their sum."""
        return self.stages


class FloatAdd(wiring.Component):
    """``y`` is the code of ``a + b``, rounded to nearest, ties to even: IEEE 754.

    Subnormals are numbers like others, overflow makes an infinity.  A sum of 0 is +0, but -0 of two
    -0.  ``y`` is the format's NaN that is not negative if one of the two is NaN or they are
    infinities of both signs.  To subtract, flip the highest bit of ``b``.

    Members
    -------
    a, b : :py:`In(width)`
    enable : :py:`In(1)`
        Registers advance while it is high; there are ``stages`` in a row.  Unused without.
    y : :py:`Out(width)`

    Instantiate it with ``place(m, platform, name, FloatAdd(config), a=, b=, enable=)``.
    """

    a: Signal
    b: Signal
    enable: Signal
    y: Signal

    def __init__(self, config: FloatAddConfig):
        self.config = config
        width = config.of_format.width
        super().__init__({"a": In(width), "b": In(width), "enable": In(1), "y": Out(width)})

    def elaborate(self, platform):
        m = Module()
        format_, stages = self.config.of_format, self.config.stages
        mantissa, fields = format_.mantissa, format_.exponent + format_.mantissa

        # The larger one, and the other one brought to its exponent.
        swap = Signal()
        m.d.comb += swap.eq(self.b[:fields] > self.a[:fields])
        large, small = Signal(fields), Signal(fields)
        m.d.comb += [
            large.eq(Mux(swap, self.b, self.a)),
            small.eq(Mux(swap, self.a, self.b)),
        ]
        sign = Mux(swap, self.b[-1], self.a[-1])
        differ = self.a[-1] ^ self.b[-1]
        large_normal, small_normal = large[mantissa:].any(), small[mantissa:].any()
        # The exponent of subnormal numbers is that of the smallest normal ones.
        tops, specials, nans = [], [], []
        for number in (self.a, self.b):
            field = number[mantissa:fields]
            tops.append(Cat(field[0] | ~field.any(), field[1:]))
            specials.append(field.all())
            nans.append(field.all() & number[:mantissa].any())
        top, distance = Signal(format_.exponent), Signal(format_.exponent)
        # Beside the comparison, not behind it.
        m.d.comb += [
            top.eq(Mux(swap, tops[1], tops[0])),
            distance.eq(Mux(swap, tops[1] - tops[0], tops[0] - tops[1])),
        ]
        special = specials[0] | specials[1]
        nan = nans[0] | nans[1] | (specials[0] & specials[1] & differ)
        parts = {
            "large": Cat(large[:mantissa], large_normal),
            "small": Cat(small[:mantissa], small_normal),
            "distance": distance,
            "top": top,
            "sign": sign,
            "differ": differ,
            "special": special,
            "nan": nan,
        }
        parts = self._late(m, "compared", stages >= 4, parts)
        aligned, lost = self._aligned(m, parts.pop("small"), parts.pop("distance"))
        parts = {**parts, "aligned": Cat(lost, aligned)}
        parts = self._late(m, "aligned", stages >= 2, parts)

        differ, width = parts["differ"], mantissa + 1 + BELOW
        total = Signal(width + 1)
        term = parts["aligned"] ^ differ.replicate(width)
        low = Cat(Const(1, 1), Const(0, BELOW), parts["large"]) + Cat(differ, term)
        m.d.comb += total.eq(Cat(low[1 : width + 1], low[width + 1] & ~differ))
        kept = {name: parts[name] for name in ("top", "sign", "differ", "special", "nan")}
        parts = self._late(m, "added", stages >= 1, {"total": total, **kept})

        shifted, count, parts = self._normalised(m, parts)
        field = Signal(format_.exponent)
        m.d.comb += field.eq(parts["top"] + 1 - count)
        rest = {name: parts[name] for name in ("sign", "special", "nan")}
        parts = self._late(m, "shifted", stages >= 3, {"shifted": shifted, "field": field, **rest})

        # Without a leading one it is subnormal or 0.  A carry out of the mantissa is the field's.
        shifted, special, nan = parts["shifted"], parts["special"], parts["nan"]
        normal = shifted[-1].replicate(format_.exponent)
        field = (parts["field"] & normal) | special.replicate(format_.exponent)
        finite = ~field.all()
        up = shifted[BELOW] & (shifted[BELOW + 1] | shifted[:BELOW].any()) & finite
        kept = shifted[BELOW + 1 : -1] & finite.replicate(mantissa)
        rounded = Signal(fields)
        m.d.comb += rounded.eq(Cat(kept[:-1], kept[-1] | nan, field) + up)
        m.d.comb += self.y.eq(Cat(rounded, parts["sign"] & ~nan))
        return m

    def _normalised(self, m: Module, parts: dict[str, Any]) -> tuple[Value, Value, dict[str, Any]]:
        """The sum with its leading one at the top, by how much it was moved, and the other parts.

        It is moved by ``top`` at most, for there subnormal numbers begin.  Each step asks whether
        the highest bits are zeros and the step is below what is left of ``top``: that is so once
        one of its bits was set and its step not taken, else if its own bit is.
        """
        parts = dict(parts)
        value, top, count = parts.pop("total"), parts["top"], []
        exact = value.any()
        parts["sign"] &= exact | ~parts.pop("differ")
        steps = (len(value) - 1).bit_length()
        free = top[steps:].any()
        for bit in reversed(range(steps)):
            step = 1 << bit
            moves, after = Signal(name=f"moves_{step}"), Signal(len(value), name=f"moved_{step}")
            within = top[bit] if bit < len(top) else Const(0, 1)
            m.d.comb += [
                moves.eq(~value[len(value) - step :].any() & (free | within)),
                after.eq(Mux(moves, value << step, value)),
            ]
            free = free | (within & ~moves)
            value = after
            count.insert(0, moves)
            if bit == steps // 2:
                half = {"value": value, "free": free, "count": Cat(count), **parts}
                parts = self._late(m, "half", self.config.stages >= 5, half)
                value, free, top = parts.pop("value"), parts.pop("free"), parts["top"]
                count = [parts.pop("count")]
        return value, Cat(count), parts

    def _aligned(self, m: Module, value: Value, distance: Value) -> tuple[Value, Value]:
        """The smaller number moved down, with two bits more, and whether any bit left."""
        value = Cat(Const(0, BELOW - 1), value)
        stages = (len(value) - 1).bit_length()
        far = distance[stages:].any()
        near = Signal(len(value))
        m.d.comb += near.eq(Mux(far, 0, value))
        lost = far & value.any()
        return shifted_right(m, "small", near, distance[:stages], (1 << stages) - 1, 0, lost)

    def _late(self, m: Module, where: str, stage: bool, values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: late(m, stage, self.enable, f"{name}_{where}", Value.cast(value))
            for name, value in values.items()
        }


def twice(format_: FloatFormat, code: Value) -> Value:
    """The code of ``2 * a``: exact, or infinite; zeros, infinities and NaNs stay what they are.

    A subnormal number moves up by a place, and one that becomes normal carries into its field.
    """
    mantissa, fields = format_.mantissa, format_.exponent + format_.mantissa
    field = code[mantissa:fields]
    next_field = (field + 1)[: format_.exponent]
    normal = Cat(code[:mantissa] & (~next_field.all()).replicate(mantissa), next_field)
    finite = Mux(field.any(), normal, Cat(Const(0, 1), code[: fields - 1]))
    return Cat(Mux(field.all(), code[:fields], finite), code[-1])
