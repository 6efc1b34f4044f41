# SPDX-License-Identifier: Apache-2.0
"""Sums of integers times scales: one multiplier for many sums, or a shifter, or float32."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .._add_select import AddSelect, AddSelectConfig, select
from .._once import place
from .._pipeline import delayed, held
from .._streams import bits_for
from ..config import Config, param
from ..formats._float_add import FloatAdd, FloatAddConfig
from ..mac._booth import BoothProduct, BoothProductConfig
from ..mac._float_accumulate import leading_zeros

SCALES = ("fp16", "fixed", "pow2")
PRODUCTS = ("multiply", "rows")
MANTISSA, BIAS, EXPONENT = 10, 15, 5  # of fp16
SINGLE, SINGLE_BIAS = 24, 127  # significand of float32


@dataclass(frozen=True, kw_only=True)
class ScaleSumConfig(Config):
    value_width: int = param(16, "bits of one signed value", ge=2)
    scale: str = param("fp16", "what a scale is", choices=SCALES)
    scale_width: int = param(16, "fixed: bits of one signed scale", ge=2, le=18)
    shift_width: int = param(3, "pow2: bits of a scale's power", ge=1, le=5)
    slots: int = param(16, "sums, which take turns", ge=1)
    sum_width: int = param(40, "bits of one sum of integers", ge=2)
    product: str = param("multiply", "who multiplies", choices=PRODUCTS)
    stage: int = param(1, "0 for no registers within products and additions", ge=0)

    def faults(self) -> Iterator[str]:
        if self.slots < self.beats:
            yield f"slots must be at least {self.beats}, not {self.slots}"

    @property
    def code_width(self) -> int:
        """Bits of a scale as it comes."""
        return {"fp16": 16, "fixed": self.scale_width, "pow2": self.shift_width + 2}[self.scale]

    @property
    def out_width(self) -> int:
        """Bits of a sum as it leaves."""
        return 32 if self.scale == "fp16" else self.sum_width

    @property
    def factor(self) -> int:
        """Bits of the factor that values are multiplied with, an even number for rows of adders."""
        width = MANTISSA + 2 if self.scale == "fp16" else self.scale_width
        return width + width % 2

    @property
    def rows(self) -> BoothProductConfig:
        """The multiplier, with ``product="rows"``."""
        return BoothProductConfig(
            a_width=self.value_width, digits=self.factor // 2, stage=4 if self.stage else 0
        )

    @property
    def product_latency(self) -> int:
        """Registers from a value to its product with a scale."""
        if self.scale == "pow2":
            return 1
        return 1 if self.product == "multiply" else self.rows.latency

    @property
    def add(self) -> FloatAddConfig:
        """Adds in float32."""
        return FloatAddConfig(format="fp32", stages=5 if self.stage else 0)

    @property
    def beats(self) -> int:
        """Cycles from one addition to a sum to the next that may follow."""
        return 1 + 2 * self.beside + self.add.latency if self.scale == "fp16" else 1

    @property
    def beside(self) -> int:
        """Registers behind the memory of sums, and as many before it."""
        return int(self.scale == "fp16" and self.stage > 0)

    @property
    def round_latency(self) -> int:
        """Registers from a product to the float32 that it is rounded to."""
        return 4 if self.scale == "fp16" and self.stage else 0

    @property
    def latency(self) -> int:
        """Registers from a value to its sum."""
        return 1 + self.product_latency + self.round_latency + self.beats - self.beside


class ScaleSum(wiring.Component):
    """``sums[slot]`` gains ``value * scale``; ``opens`` begins it from zero.

    ===== ========================================================================================
    fp16  the product is rounded to float32, added in float32, both to nearest even.  A scale's
          exponent of 31 is one like others: there are no infinities and no NaN, and none arise.
    fixed exact; scales are signed integers.
    pow2  exact; a scale is ``(some, negative, power)``, highest first: 0 or plus or minus
          ``2**power``.  No multiplier.
    ===== ========================================================================================

    Terms of one slot come at least ``config.beats`` enabled cycles apart.  ``sum`` is the one that
    gained ``config.latency`` enabled cycles ago.

    Members
    -------
    value, scale, slot, opens, moves, enable : a term is there with ``moves``.
    sum : :py:`Out(config.out_width)`
    """

    value: Signal
    scale: Signal
    slot: Signal
    opens: Signal
    moves: Signal
    enable: Signal
    sum: Signal

    def __init__(self, config: ScaleSumConfig):
        self.config = config
        super().__init__({
            "value": In(signed(config.value_width)),
            "scale": In(config.code_width),
            "slot": In(bits_for(config.slots)),
            **{name: In(1) for name in ("opens", "moves", "enable")},
            "sum": Out(config.out_width),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        value = held(m, self.enable, self.value, "value")
        scale = held(m, self.enable, self.scale, "scale")
        before = config.latency - config.beats + config.beside
        late = {
            name: delayed(m, self.enable, getattr(self, name), name, config.latency)
            for name in ("slot", "opens", "moves")
        }
        m.submodules.sums = sums = Memory(
            shape=unsigned(config.out_width), depth=1 << bits_for(config.slots), init=[]
        )
        write, read = sums.write_port(), sums.read_port(domain="comb")
        so_far = Signal(config.out_width)
        m.d.comb += [
            read.addr.eq(late["slot"][before - 1]),
            so_far.eq(read.data),
            write.addr.eq(late["slot"][config.beside - 2]),
            write.en.eq(self.enable & late["moves"][config.beside - 2]),
        ]
        opens = late["opens"][before - 1]
        match config.scale:
            case "fp16":
                if config.beside:
                    so_far = held(m, self.enable, so_far, "so_far", zero=opens)
                else:
                    so_far = Mux(opens, 0, so_far)
                total = self._float(m, platform, value, scale, so_far)
            case "fixed":
                term = self._multiplied(m, platform, value, scale.as_signed())
                total = self._added(m, platform, term, so_far, ~opens, Const(0, 1))
            case _:
                power, negative, some = (
                    scale[: config.shift_width],
                    scale[-2],
                    scale[-1],
                )
                wide = signed(config.sum_width)
                shifted = Signal(wide)
                m.d.comb += shifted.eq(value << power)
                negate = held(m, self.enable, some & negative, "negate")
                term = held(m, self.enable, shifted, "term", ~some)
                term = select(term, Const(1, 1), negate)
                total = self._added(m, platform, term, so_far, ~opens, negate)
        m.d.comb += self.sum.eq(held(m, self.enable, total, "sum"))
        m.d.comb += write.data.eq(self.sum if config.beside else total)
        return m

    def _multiplied(self, m: Module, platform: Any, value: Any, factor: Any) -> Any:
        if self.config.product == "multiply":
            return held(m, self.enable, value * factor, "product")
        part = BoothProduct(self.config.rows)
        wide = Signal(signed(self.config.factor))
        m.d.comb += wide.eq(factor)
        return place(m, platform, "multiplier", part, a=value, b=wide, enable=self.enable).y

    def _added(
        self, m: Module, platform: Any, term: Any, so_far: Any, enable: Any, carry: Any
    ) -> Any:
        """``term + carry``, and what there is so far with ``enable``."""
        width = self.config.sum_width
        add = place(
            m,
            platform,
            "add",
            AddSelect(AddSelectConfig(width=width)),
            a=term,
            b=so_far.as_signed(),
            enable=enable,
            invert=0,
            carry=carry,
        )
        return add.y[:width]

    def _float(self, m: Module, platform: Any, value: Any, scale: Any, so_far: Any) -> Any:
        config = self.config
        late = bool(config.stage)
        field = scale[MANTISSA : MANTISSA + EXPONENT]
        factor = Cat(scale[:MANTISSA], field.any(), Const(0, 1)).as_signed()
        product = self._multiplied(m, platform, value, factor)
        # Subnormals have the exponent of the smallest normal numbers.
        beside = Cat(field[0] | ~field.any(), field[1:], scale[-1])
        beside = [beside, *delayed(m, self.enable, beside, "beside", config.product_latency)][-1]

        def kept(name: str, value: Any) -> Any:
            return held(m, self.enable, value, name) if late else value

        negative = product[-1]
        size = (select(product, Const(1, 1), negative).as_unsigned() + negative)[: len(product)]
        size, exponent = kept("size", size), kept("exponent", beside[:EXPONENT])
        sign = kept("sign", negative ^ beside[-1])

        # The leading one goes to the top; a product of the least unit is far from subnormal.
        zeros, none = leading_zeros(m, "zeros", size)
        size, zeros, none = kept("sized", size), kept("zeros", zeros), kept("none", none)
        exponent, sign = kept("exponent_sized", exponent), kept("sign_sized", sign)
        offset = SINGLE_BIAS - BIAS - MANTISSA + len(size) - 1
        top = kept("top", (exponent + offset - zeros)[:8])
        size = kept("normal", (size << zeros)[: len(size)])
        sign, none = kept("normal_sign", sign), kept("normal_none", none)

        # The mantissa carries into the exponent.
        spare = Const(0, max(SINGLE - len(size), 0))
        size = Cat(spare, size)
        below = len(size) - SINGLE
        up: Any = 0
        if below:
            up = size[below - 1] & (size[below] | size[: below - 1].any())
        code = (Cat(size[below:-1], top) + up)[:31]
        code = kept("rounded", Cat(code & ~none.replicate(31), sign))
        if config.beside:
            code = held(m, self.enable, code, "term")
        return place(
            m, platform, "add", FloatAdd(config.add), a=so_far, b=code, enable=self.enable
        ).y
