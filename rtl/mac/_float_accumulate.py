# SPDX-License-Identifier: Apache-2.0
"""A float32 accumulator of integers that count powers of two, rounded once for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import select
from .._pipeline import held
from ..config import Config, param

BIAS, SIGNIFICAND, INFINITE = 127, 24, 255
NAN = 0x7FC00000
HALFWAY = 3
"""Bits of a shift that are in the later one of two stages."""


@dataclass(frozen=True, kw_only=True)
class FloatAccumulateConfig(Config):
    width: int = param(21, "bits of one signed term", ge=2, le=128)
    low: int = param(-266, "least exponent of a term's unit", ge=-600, le=600)
    high: int = param(242, "largest exponent of a term's unit", ge=-600, le=600)
    steps: int = param(4, "registers in the loop, and cycles between terms: 1, 2 or 4", ge=1, le=4)
    registered: bool = param(True, "registers before the loop")

    def faults(self) -> Iterator[str]:
        if self.steps == 3:
            yield "steps must be 1, 2 or 4, not 3"
        if self.low > self.high:
            yield f"low ({self.low}) must not be above high ({self.high})"

    @property
    def precision(self) -> int:
        """Bits of a significand in the loop: those of a term or of float32, and three more.

        Three are enough to round a sum of two: where cancellation takes more than one bit away,
        the two were at most one place apart and nothing was shifted out.
        """
        return max(self.width, SIGNIFICAND) + 3

    @property
    def latency(self) -> int:
        """Registers from ``term`` to ``sum``."""
        return 4 * self.registered + self.steps


class FloatAccumulate(wiring.Component):
    """``sum`` is float32: each term is added to it and the exact sum rounded to nearest even.

    A term is ``term * 2**exponent``, with ``low <= exponent <= high``.  ``opens`` begins a sum from
    zero.  Subnormals are kept, overflow makes an infinity, an exact zero is +0.  An infinity stays
    until NaN or an infinity of the other sign comes, which make NaN (0x7fc00000) for the rest of
    the sum; ``nan``, ``plus`` and ``minus`` say that a term is no number.

    Terms that belong to one sum come at least ``steps`` enabled cycles apart; ``moves`` says that
    there is one.  ``sum`` has it ``config.latency`` enabled cycles later.

    Members
    -------
    term : :py:`In(signed(width))`
    exponent : :py:`In(signed)`
    nan, plus, minus, opens, moves, enable : :py:`In(1)`
    sum : :py:`Out(32)`
    """

    term: Signal
    exponent: Signal
    nan: Signal
    plus: Signal
    minus: Signal
    opens: Signal
    moves: Signal
    enable: Signal
    sum: Signal

    def __init__(self, config: FloatAccumulateConfig):
        self.config = config
        super().__init__({
            "term": In(signed(config.width)),
            "exponent": In(signed(exponent_width(config.low, config.high))),
            **{name: In(1) for name in ("nan", "plus", "minus", "opens", "moves", "enable")},
            "sum": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        flags = {name: getattr(self, name) for name in ("nan", "plus", "minus", "opens", "moves")}
        before = config.registered

        # Sign and magnitude.
        sign = self.term[-1]
        size = (select(self.term, Const(1, 1), sign).as_unsigned() + sign)[: config.width]
        exponent, sign, size, flags = self._late(
            m, "size", before, exponent=self.exponent, sign=sign, size=size, flags=flags
        )

        # ``top`` is the exponent that float32 has for the leading one, which goes to the top.
        zeros, none = leading_zeros(m, "term_zeros", size)
        zeros, none, exponent, sign, size, flags = self._late(
            m,
            "zeros",
            before,
            zeros=zeros,
            none=none,
            exponent=exponent,
            sign=sign,
            size=size,
            flags=flags,
        )
        top = exponent + (config.width - 1 + BIAS) - zeros
        # Below the normal numbers, what is too low goes into the last bit.
        small, amount = top < 1, 1 - top
        if config.low + BIAS >= 1:
            small = Const(0, 1)
        size = Cat(Const(0, config.precision - config.width), (size << zeros)[: config.width])
        amount = Mux(small, amount, 0)[: len(top)]
        top = Mux(small | none, 1, top)[: ceil_log2(config.high + config.width + BIAS + 1)]
        amount, top, sign, size, flags = self._late(
            m, "normal", before, amount=amount, top=top, sign=sign, size=size, flags=flags
        )
        if config.low + BIAS < 1:
            size = jammed(m, "term", size, amount)
        top, sign, size, flags = self._late(
            m, "term", before, top=top, sign=sign, size=size, flags=flags
        )
        self._loop(m, flags, top.as_unsigned(), sign, size)
        return m

    def _loop(self, m: Module, flags, top, sign, size) -> None:
        config, steps = self.config, self.config.steps
        acc_sign, acc_top = Signal(reset_less=True), Signal(8, reset_less=True)
        acc_size = Signal(SIGNIFICAND, reset_less=True)
        acc_nan, acc_infinite = Signal(reset_less=True), Signal(reset_less=True)

        # The larger one, and the other one brought to its exponent.
        opens = flags["opens"]
        own_size = Mux(opens, 0, acc_size)[:SIGNIFICAND]
        own_top = Mux(opens, 1, acc_top)
        own = Cat(Const(0, config.precision - SIGNIFICAND), own_size)
        term_larger = Signal()
        m.d.comb += term_larger.eq(Cat(size, top) > Cat(own, own_top))
        larger, smaller = Mux(term_larger, size, own), Mux(term_larger, own, size)
        large_sign = Mux(term_larger, sign, acc_sign)
        large_top = Mux(term_larger, top, own_top)
        distance = Mux(term_larger, top - own_top, own_top - top)[: len(large_top)]
        smaller = jammed(m, "coarse", smaller, distance, HALFWAY)
        differ = (sign ^ acc_sign) & ~opens
        held_nan, held_infinite = acc_nan & ~opens, acc_infinite & ~opens
        clash = flags["plus"] & flags["minus"]
        clash |= held_infinite & Mux(acc_sign, flags["plus"], flags["minus"])
        nan = held_nan | flags["nan"] | clash
        infinite = held_infinite | flags["plus"] | flags["minus"]
        infinite_sign = Mux(held_infinite, acc_sign, flags["minus"])
        rest = {
            "sign": large_sign,
            "nan": nan,
            "infinite": infinite,
            "infinite_sign": infinite_sign,
            "moves": flags["moves"],
        }
        larger, smaller, fine, top, differ, rest = self._late(
            m,
            "aligned",
            steps == 4,
            larger=larger,
            smaller=smaller,
            fine=distance[:HALFWAY],
            top=large_top,
            differ=differ,
            rest=rest,
        )

        smaller = jammed(m, "fine", smaller, fine)
        total = larger + select(smaller, Const(1, 1), differ).as_unsigned() + differ
        total = Cat(total[: config.precision], total[config.precision] & ~differ)
        # A one where the exponent of subnormals is, for the leading one to go no further up.
        width = len(total)
        limit = Signal(width)
        m.d.comb += limit.eq(Cat(top == width - 1 - at for at in range(width)))
        total, limit, top, rest = self._late(
            m, "added", steps >= 2, total=total, limit=limit, top=top, rest=rest
        )

        bounded = Signal(width)
        m.d.comb += bounded.eq(total | limit)
        zeros, _ = leading_zeros(m, "sum_zeros", bounded)
        exact = total.any()
        fine = zeros[:HALFWAY]
        total = (total << Cat(Const(0, HALFWAY), zeros[HALFWAY:]))[:width]
        top = (top + 1 - zeros)[: len(top) + 1]
        total, fine, exact, top, rest = self._late(
            m, "normal_sum", steps == 4, total=total, fine=fine, exact=exact, top=top, rest=rest
        )
        total = (total << fine)[:width]

        # One of the places that are left is the carry's: the top 24 bits count.
        kept, half = total[-SIGNIFICAND:], total[-SIGNIFICAND - 1]
        up = half & (kept[0] | total[: -SIGNIFICAND - 1].any())
        rounded = Signal(SIGNIFICAND + 1)
        m.d.comb += rounded.eq(kept + up)
        over = rounded[-1]
        # Beside the rounding, not behind it.
        new_top = Mux(over, (top + 1)[: len(top)], top)
        too_large = (top >= INFINITE) | (top == INFINITE - 1) & over
        infinite = rest["infinite"]
        with m.If(self.enable & rest["moves"]):
            m.d.sync += [
                acc_nan.eq(rest["nan"]),
                acc_infinite.eq(infinite | too_large),
                acc_sign.eq(Mux(infinite, rest["infinite_sign"], rest["sign"] & exact)),
                acc_top.eq(Mux(exact, new_top, 1)),  # zero hides no smaller term
                acc_size.eq(Mux(over, rounded[1:], rounded[:SIGNIFICAND])),
            ]
        field = Mux(acc_size[-1], acc_top, 0)[:8]
        finite = Cat(acc_size[:-1], field, acc_sign)
        infinity = Cat(Const(0, SIGNIFICAND - 1), Const(INFINITE, 8), acc_sign)
        m.d.comb += self.sum.eq(Mux(acc_nan, NAN, Mux(acc_infinite, infinity, finite)))

    def _late(self, m: Module, where: str, registered: bool, **values: Any):
        """``values`` (Values, or mappings of them) behind a register each."""
        if not registered:
            return tuple(values.values())
        late = []
        for name, value in values.items():
            if isinstance(value, dict):
                names = list(value)
                late.append(dict(zip(names, self._late(m, where, True, **value), strict=True)))
                continue
            late.append(held(m, self.enable, value, f"{name}_{where}"))
        return tuple(late)


def exponent_width(low: int, high: int) -> int:
    """Bits of a signed number in ``low .. high``."""
    return max(low.bit_length() if low >= 0 else (~low).bit_length(), high.bit_length()) + 1


def leading_zeros(m: Module, name: str, value) -> tuple[Any, Any]:
    """How many zeros are above the leading one, and whether there is no one at all."""
    if len(value) == 1:
        return Const(0, 0), ~value
    upper = 1 << ceil_log2(len(value)) - 1
    high, none = leading_zeros(m, f"{name}h", value[-upper:])
    if len(value) == upper:
        return high, none
    low, empty = leading_zeros(m, f"{name}l", value[:-upper])
    zeros = Signal(max(len(high), len(low)) + 1, name=name)
    neither = Signal(name=f"{name}_none")
    below = len(zeros) - 1  # none of two bits
    m.d.comb += zeros.eq(Cat(Mux(none, low, high)[:below], none) if below else none)
    m.d.comb += neither.eq(none & empty)
    return zeros, neither


def jammed(m: Module, name: str, value, amount, lowest: int = 0):
    """``value >> amount``, with all that is shifted out ORed into the lowest bit.

    Bits of ``amount`` below ``lowest`` do not count.
    """
    width = len(value)
    stages = min(ceil_log2(width), len(amount))
    lost = Const(0, 1)
    if stages < len(amount):
        far = amount[stages:].any()
        kept = Signal(width, name=f"{name}_near")
        m.d.comb += kept.eq(Mux(far, value.any(), value))
        value = kept
    for power in reversed(range(lowest, stages)):
        step = 1 << power
        shifted = Signal(width, name=f"{name}_right_{step}")
        m.d.comb += shifted.eq(Mux(amount[power], value[step:], value))
        out = Signal(name=f"{name}_lost_{step}")
        m.d.comb += out.eq(lost | amount[power] & value[:step].any())
        value, lost = shifted, out
    return Cat(value[0] | lost, value[1:])
