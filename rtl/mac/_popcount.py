# SPDX-License-Identifier: Apache-2.0
"""How many of the bits are set."""

from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, param

STRUCTURES = ("counters", "adders")
IN_LUTS = 3
"""Most bits of a number that is added without a carry chain: measured on ECP5."""


@dataclass(frozen=True, kw_only=True)
class PopcountConfig(Config):
    bits: int = param(64, "bits to count, a power of two", ge=4)
    stage: int = param(2, "adder levels between registers; 0 for none", ge=0)
    structure: str = param("counters", "how bits are added", choices=STRUCTURES)

    def faults(self) -> Iterator[str]:
        if self.bits & (self.bits - 1):
            yield f"bits must be a power of two, not {self.bits}"

    @property
    def count_width(self) -> int:
        """Bits of a count of all but one."""
        return ceil_log2(self.bits)

    @property
    def latency(self) -> int:
        """Registers from ``bits`` to ``count``."""
        return (self.count_width - 1) // self.stage if self.stage else 0

    def registered(self, level: int) -> bool:
        """Whether there are registers behind a level of adders, counted from 1."""
        return bool(self.stage) and level < self.count_width and level % self.stage == 0


class Popcount(wiring.Component):
    """``count + pending`` is how many of ``bits`` are set; ``config.latency`` registers.

    One bit stays ``pending``, as the carry-in of whoever uses the count: ``2**k - 1`` bits are a
    number of ``k`` bits that uses its whole range.

    ``structure`` is how bits are added; the count is the same:

    ======== =====================================================================================
    counters two counts of ``2**n - 1`` bits, and one more bit as their carry, make one of
             ``2**(n + 1) - 1``: no adder lacks a carry and none is wider than its count
    adders   pairs of bits, then pairs of sums
    ======== =====================================================================================

    Members
    -------
    bits : :py:`In(config.bits)`
    enable : :py:`In(1)`
        Registers advance while it is high.  Unused without registers.
    count : :py:`Out(config.count_width)`
    pending : :py:`Out(1)`
    """

    bits: Signal
    enable: Signal
    count: Signal
    pending: Signal

    def __init__(self, config: PopcountConfig):
        self.config = config
        super().__init__({
            "bits": In(config.bits),
            "enable": In(1),
            "count": Out(config.count_width),
            "pending": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bits = list(self.bits)
        counters = self.config.structure == "counters"
        half = self.config.bits // 2
        counts, carries = (bits[:half], bits[half:]) if counters else (bits[:-1], bits[-1:])
        for level in range(1, self.config.count_width + (not counters)):
            pairs = list(zip(counts[::2], counts[1::2], strict=False))
            rest = counts[2 * len(pairs) :]
            if counters:
                used, carries = carries[: len(pairs)], carries[len(pairs) :]
                counts = [added(m, f"{level}_{n}", *pair, used[n]) for n, pair in enumerate(pairs)]
            else:
                counts = [a + b for a, b in pairs] + rest
            if self.config.registered(level):
                counts = self._registered(m, f"count_{level}", counts)
                carries = self._registered(m, f"carry_{level}", carries)
        m.d.comb += [self.count.eq(counts[0]), self.pending.eq(carries[0])]
        return m

    def _registered(self, m: Module, name: str, values):
        late = [
            Signal(len(value), name=f"x_{name}_{n}", reset_less=True)
            for n, value in enumerate(values)
        ]
        with m.If(self.enable):
            m.d.sync += [x.eq(value) for x, value in zip(late, values, strict=True)]
        return late


def added(m: Module, name: str, a, b, carry):
    """``a + b + carry`` of numbers of one width, one bit wider.

    Of few bits in LUTs, where ``carry`` may be a function of two inputs for nothing; of more in a
    carry chain, whose ends cost less than what it saves then.
    """
    if len(a) > IN_LUTS:
        return (Cat(Const(1, 1), a) + Cat(carry, b))[1 : len(a) + 2]
    total = []
    for one, other in zip(a, b, strict=True):
        total.append(one ^ other ^ carry)
        carry = (one & other) | (carry & (one ^ other))
    y = Signal(len(a) + 1, name=f"y_{name}")
    m.d.comb += y.eq(Cat(total, carry))
    return y
