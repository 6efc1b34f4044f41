# SPDX-License-Identifier: Apache-2.0
"""Exact sum of products of small numbers: integers, trits, and floats of up to 16 bits.

A float is ``sign * significand * 2**exponent``, with the least exponent for subnormals.  Products
of significands are narrow; what costs is to bring them to a common point and to add the long words
that come of it.  Here the exponent of a product is split: its low bits shift the product, its high
bits choose one of a few *buckets*.  A bucket is a tree that sums all lanes whose product belongs
there and skips the others inside its carry chains (``SelectTree``), so its words stay short and
choosing costs nothing.  The sums of the buckets are joined once, behind the trees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, add_carry, select
from .._once import place
from .._pipeline import held
from ..config import Config, param
from ..formats._formats import FloatFormat, IntegerFormat, Special, TernaryFormat, format_named
from ._booth import BoothProduct, BoothProductConfig
from ._select_tree import SelectTree, SelectTreeConfig

INTEGERS = ("ternary", *(f"int{bits}" for bits in range(2, 9)))
FLOATS = ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2")
HALVES = ("fp16", "bf16")
ELEMENTS = (*INTEGERS, *FLOATS)
STRUCTURES = ("aligned", "integer")
NARROW = 4
"""Bits of a float's significand up to which rows without registers between them make a product."""
WORD, LOW = 64, 48
"""Bits of the widest sum that is one field of a payload, and of the lower field of a wider one."""
SMALL = 2
"""Bits of an exponent that a LUT takes together with another's; more are not made to begin at 0."""


@dataclass(frozen=True)
class Element:
    """What a datapath has to know of an element format: integers have exponent 0.

    ``top`` is the largest magnitude and ``unit`` the exponent of its unit: a float's smallest
    subnormal, an integer's 1.  ``low`` and ``high`` are the exponents of finite numbers; the
    significand is two's complement if ``signed``.
    """

    width: int
    signed: bool
    significand: int
    low: int
    high: int
    top: int
    unit: int
    special: Special

    @property
    def magnitude(self) -> int:
        """Bits of a float's magnitude as an integer."""
        return self.significand + self.high - self.low


def element_named(name: str) -> Element:
    """The element of a format's name."""
    format_ = format_named(name)
    if isinstance(format_, FloatFormat):
        shift = (format_.largest >> format_.mantissa) - 1
        last = format_.largest & (1 << format_.mantissa) - 1 | 1 << format_.mantissa
        unit = 1 - format_.bias - format_.mantissa
        low = int(format_.exponent > SMALL)
        bits = format_.mantissa + 1
        return Element(
            format_.width, False, bits, low, low + shift, last << shift, unit, format_.special
        )
    assert isinstance(format_, IntegerFormat | TernaryFormat)
    top = 1 if isinstance(format_, TernaryFormat) else 1 << format_.width - 1
    return Element(format_.width, True, format_.width, 0, 0, top, 0, Special.NONE)


class Parts(NamedTuple):
    """An element taken apart; ``zero``, ``nan`` and ``infinite`` where its format has infinities
    or NaNs."""

    sign: Value
    significand: Value
    exponent: Value
    zero: Value
    nan: Value
    infinite: Value


def parts_of(format_name: str, code: Value) -> Parts:
    """Takes the ``code`` of an element apart."""
    element, format_ = element_named(format_name), format_named(format_name)
    none = Const(0, 1)
    if not isinstance(format_, FloatFormat):
        return Parts(none, code.as_signed(), none, none, none, none)
    mantissa = code[: format_.mantissa]
    biased = code[format_.mantissa : -1]
    normal = biased.any()
    # Subnormals and the smallest normal numbers have the same.
    exponent = Cat(biased[0] | ~normal, biased[1:])
    if not element.low:
        exponent = Mux(normal, biased - 1, 0)[: format_.exponent]
    highest, nan, infinite, zero = biased.all(), none, none, none
    if element.special is Special.NAN:
        nan = code[:-1].all()
    elif element.special is Special.IEEE:
        nan, infinite = highest & mantissa.any(), highest & ~mantissa.any()
        zero = ~code[:-1].any()
    return Parts(code[-1], Cat(mantissa, normal), exponent, zero, nan, infinite)


def sum_fields(width: int) -> dict[str, Any]:
    """Fields of a payload for a sum: one that is too wide for int64 is cut into two."""
    if width <= WORD:
        return {"sum": signed(width)}
    return {"low": unsigned(LOW), "sum": signed(width - LOW)}


def sum_bits(payload: Any) -> Value:
    """What to assign the sum to."""
    return Cat(payload.low, payload.sum) if "low" in payload.shape().members else payload.sum


class Flags(NamedTuple):
    """What a sum is where it is no number."""

    nan: Value
    plus: Value
    minus: Value


def specials_of(a: Parts, b: Parts) -> Flags:
    """What the product of two elements is where it is no number."""
    infinite, sign = a.infinite | b.infinite, a.sign ^ b.sign
    invalid = a.infinite & b.zero | a.zero & b.infinite
    return Flags(a.nan | b.nan | invalid, infinite & ~sign, infinite & sign)


def held_flags(m: Module, flags: Flags, starts, moves, total) -> Flags:
    """Registers of what a sum of several transfers is where it is no number; ``total`` is then 0.

    ``moves``: there is a transfer with these ``flags``; ``starts``: it is the first of a sum.
    ``total`` is the register of the sum, assigned to before.
    """
    held = Flags(*(Signal(name=f"held_{name}", reset_less=True) for name in Flags._fields))
    now = Flags(*(flag | old & ~starts for flag, old in zip(flags, held, strict=True)))
    now = now._replace(nan=now.nan | now.plus & now.minus)
    with m.If(moves):
        m.d.sync += [register.eq(flag) for register, flag in zip(held, now, strict=True)]
        with m.If(Cat(*now).any()):
            m.d.sync += total.eq(0)
    return held


@dataclass(frozen=True, kw_only=True)
class ElementDotConfig(Config):
    lanes: int = param(32, "products summed, a power of two", ge=1, le=1024)
    a_format: str = param("fp8_e4m3", "format of one operand", choices=(*ELEMENTS, *HALVES))
    b_format: str = param("fp8_e4m3", "format of the other", choices=(*ELEMENTS, *HALVES))
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0)
    chain: int = param(4, "lanes in series at each leaf of a tree", ge=2)
    structure: str = param("aligned", "how floats are multiplied", choices=STRUCTURES)
    fine: int = param(4, "bits of the exponent that shift; those above choose a bucket", ge=0)

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if "bf16" in (self.a_format, self.b_format) and self.sum_width > 128:
            yield "exact sums of bf16 products are too wide; fp_mac has a float accumulator"

    @property
    def a(self) -> Element:
        return element_named(self.a_format)

    @property
    def b(self) -> Element:
        return element_named(self.b_format)

    @property
    def sum_width(self) -> int:
        """Bits of the exact sum: ``lanes`` products of the largest magnitudes there are."""
        return (self.lanes * self.a.top * self.b.top).bit_length() + 1

    @property
    def unit(self) -> int:
        """The sum counts ``2**unit``."""
        return self.a.unit + self.b.unit

    @property
    def low(self) -> int:
        """The least exponent of a product."""
        return self.a.low + self.b.low

    @property
    def high(self) -> int:
        """The largest exponent of a product of finite numbers."""
        return self.a.high + self.b.high

    @property
    def shifts(self) -> bool:
        """Whether products are brought to a common point."""
        return self.structure == "aligned" and self.high > 0

    @property
    def product_width(self) -> int:
        """Bits of a product before it is shifted; a sign bit only if one of the two is signed."""
        if self.shifts:
            return self.a.significand + self.b.significand
        a, b = ((e.magnitude if not e.signed else e.significand) for e in (self.a, self.b))
        return a + b

    @property
    def signed(self) -> bool:
        """Whether products have a sign bit."""
        return self.a.signed or self.b.signed

    @property
    def shift_bits(self) -> int:
        """Low bits of the exponent that shift; a lane alone has one bucket."""
        return self.fine if self.lanes > 1 else self.high.bit_length()

    @property
    def buckets(self) -> tuple["Bucket", ...]:
        """Where sums of products of like exponents are made, the lowest first."""
        if not self.shifts:
            return (Bucket(0, 0, 0, self.product_width),)
        found, bits = [], self.shift_bits
        for index in range(self.low >> bits, (self.high >> bits) + 1):
            start = index << bits
            most = min((1 << bits) - 1, self.high - start)
            cut = max(0, self.low - start)
            found.append(Bucket(index, start + cut - self.low, cut, self.product_width + most))
        return tuple(found)

    def tree(self, bucket: "Bucket") -> SelectTreeConfig:
        """Sums one bucket."""
        width = bucket.width - bucket.cut + (not self.signed)
        return SelectTreeConfig(
            lanes=self.lanes, act_width=width, stage=self.stage, chain=self.chain
        )

    @property
    def latency(self) -> int:
        """Registers from ``a`` and ``b`` to ``sum``."""
        if not self.stage:
            return 0
        tree = self.tree(self.buckets[0]).latency if self.lanes > 1 else 0
        return self.product_latency + self.shifts + tree + ceil_log2(len(self.buckets))

    @property
    def multiplies(self) -> bool:
        """Whether products are made by the multiplier of two's complement numbers."""
        wide = min(self.a.significand, self.b.significand) > NARROW
        return (self.a.signed and self.b.signed) or (self.shifts and wide)

    @property
    def booth(self) -> BoothProductConfig:
        """That multiplier; floats' significands get a sign bit for it."""
        a, b = (e.significand + (not e.signed) for e in (self.a, self.b))
        digits = (b + 1) // 2
        every = 2 * digits if digits % 2 or digits == 2 else digits
        if digits % 3 == 0 and digits > 3:
            every = 4
        return BoothProductConfig(
            a_width=a, digits=digits, stage=every if self.stage else 0, structure="booth"
        )

    @property
    def product_latency(self) -> int:
        """Registers from ``a`` and ``b`` to the products."""
        return self.booth.latency if self.multiplies else int(self.stage > 0)


class Bucket(NamedTuple):
    """Products of the exponents whose high bits are ``number``.

    Of their ``width`` bits the lowest ``cut`` are never used; those above count ``2**weight``.
    """

    number: int
    weight: int
    cut: int
    width: int


class ElementDot(wiring.Component):
    """``sum + pending`` is the exact sum of the products ``a[n] * b[n]``, in units of ``2**unit``.

    Every code is a number, but for code 2 of ternary, which must not occur, and those of NaN and
    infinity: with one of these among the operands a flag is high and the sum is unspecified.
    ``nan``: an operand is NaN, an infinity meets a zero, or infinities of both signs are summed.
    ``plus`` and ``minus``: there is an infinite product of that sign; not together unless ``nan``.

    ``structure`` and ``fine`` are how it is built; the result is the same bits:

    aligned
        products of significands, shifted by the low ``fine`` bits of their exponent, summed in
        one bucket for each value of the high bits.  With a large ``fine`` there is one bucket, and
        a full shifter in each lane.
    integer
        each operand is made an integer first, and integers are multiplied.

    Members
    -------
    a, b : :py:`In(lanes * width)`
        Codes, lane 0 lowest.
    enable : :py:`In(1)`
        Registers advance while it is high; there are ``config.latency`` in a row.
    sum : :py:`Out(signed(sum_width))`
    pending, nan, plus, minus : :py:`Out(1)`
    """

    a: Signal
    b: Signal
    enable: Signal
    sum: Signal
    pending: Signal
    nan: Signal
    plus: Signal
    minus: Signal

    def __init__(self, config: ElementDotConfig):
        self.config = config
        super().__init__({
            "a": In(config.lanes * config.a.width),
            "b": In(config.lanes * config.b.width),
            "enable": In(1),
            "sum": Out(signed(config.sum_width)),
            **{name: Out(1) for name in ("pending", "nan", "plus", "minus")},
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = [self._lane(m, platform, lane) for lane in range(config.lanes)]
        sums = []
        for bucket in config.buckets:
            acts = [value[bucket.cut : bucket.width] for value, _ in lanes]
            weights = [weight[bucket.number] for _, weight in lanes]
            if not config.signed:
                alone = config.lanes == 1
                acts = [
                    Cat(act, weight[1] & alone) for act, weight in zip(acts, weights, strict=True)
                ]
            sums.append((bucket.weight, *self._summed(m, platform, bucket, acts, weights)))
        total, pending = self._joined(m, sums)
        m.d.comb += [self.sum.eq(total), self.pending.eq(pending)]
        self._flags(m)
        return m

    def _parts(self, lane: int) -> tuple[Parts, Parts]:
        config = self.config
        return (
            parts_of(config.a_format, self.a.word_select(lane, config.a.width)),
            parts_of(config.b_format, self.b.word_select(lane, config.b.width)),
        )

    def _lane(self, m: Module, platform, lane: int):
        """The product, shifted, and by bucket its weight there: 0, 1 or -1.

        A lane alone negates by itself: it complements before it shifts, and shifts ones in.
        """
        config = self.config
        alone = config.lanes == 1
        a, b = self._parts(lane)
        sign = a.sign ^ b.sign
        if config.shifts:
            x, y = a.significand, b.significand
        else:
            x, y = (
                p.significand
                if e.signed
                else (p.significand << (p.exponent - e.low)[: p_width(e)])[: e.magnitude]
                for p, e in ((a, config.a), (b, config.b))
            )
        product = self._product(m, platform, f"product_{lane}", x, y)
        exponent = Signal(range(config.high + 3), name=f"exponent_{lane}")
        m.d.comb += exponent.eq(a.exponent + b.exponent)
        if config.multiplies:
            for step in range(config.product_latency):
                sign, exponent = self._late(m, f"{lane}_{step}", sign=sign, exponent=exponent)
        else:
            product, sign, exponent = self._late(
                m, f"{lane}", product=product, sign=sign, exponent=exponent
            )
        if alone:
            product = product.as_unsigned() ^ sign.replicate(len(product))
        if not config.shifts:
            return product, {0: Cat(1, sign)}

        fine = exponent[: config.shift_bits]
        width = max(bucket.width for bucket in config.buckets)
        shifted = Signal(signed(width) if config.signed else width, name=f"shifted_{lane}")
        if alone:
            ones = sign.replicate((1 << len(fine)) - 1)
            top = product[-1] if config.signed else sign
            wide = Cat(ones, product, top).as_signed()
            m.d.comb += shifted.eq((wide << fine)[len(ones) :])
        else:
            m.d.comb += shifted.eq(product << fine)
        weights = {}
        for index, *_ in config.buckets:
            chosen = exponent[config.fine :] == index if len(config.buckets) > 1 else Const(1, 1)
            weights[index] = Cat(chosen, sign & chosen)
        names = [f"weight_{index}" for index in weights]
        shifted, *late = self._late(
            m, f"{lane}", shifted=shifted, **dict(zip(names, weights.values(), strict=True))
        )
        return shifted, dict(zip(weights, late, strict=True))

    def _product(self, m: Module, platform, name: str, x, y):
        """``x * y`` in rows, each added or not inside its carry chain."""
        config = self.config
        if config.multiplies:
            part = BoothProduct(config.booth)
            place(m, platform, name, part, a=x, b=y, enable=self.enable)
            product = part.y[: config.product_width]
            return product.as_signed() if config.signed else product
        if config.b.signed or len(x) < len(y):
            x, y = y, x
        if len(x) + len(y) <= 4:
            products = Array(n * k for n in range(1 << len(x)) for k in range(1 << len(y)))
            product = Signal(len(x) + len(y), name=name)
            m.d.comb += product.eq(products[Cat(y, x)])
            return product
        x = x if config.signed else Cat(x, 0).as_signed()
        above, low = select(x, y[0], Const(0, 1)), Cat()
        for row in range(1, len(y)):
            add = place(
                m,
                platform,
                f"{name}_{row}",
                AddSelect(AddSelectConfig(width=len(x))),
                a=above[1:].as_signed(),
                b=x,
                enable=y[row],
                invert=0,
                carry=0,
            )
            low, above = Cat(low, above[0]), add.y
        product = Cat(low, above)[: config.product_width]
        return product.as_signed() if config.signed else product

    def _summed(self, m: Module, platform, bucket: Bucket, acts, weights):
        if self.config.lanes == 1:
            return acts[0].as_signed(), weights[0][1]
        part = SelectTree(self.config.tree(bucket))
        place(
            m,
            platform,
            f"bucket_{bucket.number}",
            part,
            acts=Cat(acts),
            weights=Cat(weights),
            enable=self.enable,
        )
        return part.sum, part.pending

    def _joined(self, m: Module, sums):
        """One sum of the buckets': an upper one begins where it counts, its pending one with it."""
        level = 0
        while len(sums) > 1:
            joined = []
            for (weight, low, kept), (above, high, pending) in zip(
                sums[::2], sums[1::2], strict=False
            ):
                at = above - weight
                total = Cat(low[:at], add_carry(low[at:].as_signed(), high, pending)).as_signed()
                joined.append((weight, total, kept))
            joined += sums[2 * len(joined) :]
            sums = []
            for number, (weight, total, kept) in enumerate(joined):
                total, kept = self._late(m, f"join_{level}_{number}", total=total, pending=kept)
                sums.append((weight, total, kept))
            level += 1
        ((_, total, pending),) = sums
        return total, pending

    def _late(self, m: Module, where: str, **values: Any):
        """``values`` behind a register, with ``stage``."""
        if not self.config.stage:
            return tuple(values.values())
        late = []
        for name, value in values.items():
            if isinstance(value, Const):
                late.append(value)
                continue
            late.append(held(m, self.enable, value, f"{name}_{where}"))
        return tuple(late)

    def _flags(self, m: Module) -> None:
        config = self.config
        specials = {config.a.special, config.b.special}
        flags = Flags(
            *map(
                Cat,
                zip(
                    *(specials_of(*self._parts(lane)) for lane in range(config.lanes)), strict=True
                ),
            )
        )
        flags = Flags(*(lanes.any() for lanes in flags))
        if Special.IEEE not in specials:
            flags = Flags(flags.nan, Const(0, 1), Const(0, 1))
        if specials == {Special.NONE}:
            flags = Flags(*[Const(0, 1)] * 3)
        for step in range(config.latency):
            flags = Flags(*self._late(m, f"flag_{step}", **flags._asdict()))
        m.d.comb += [
            self.nan.eq(flags.nan | flags.plus & flags.minus),
            self.plus.eq(flags.plus),
            self.minus.eq(flags.minus),
        ]


def p_width(element: Element) -> int:
    """Bits of a shift that makes a float an integer."""
    return ceil_log2(element.high - element.low + 1)
