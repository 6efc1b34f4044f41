# SPDX-License-Identifier: Apache-2.0
"""Dot products of posits, summed exactly in a quire and rounded once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import accumulated
from .._once import place
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ..formats._decode import Decode, DecodeConfig, Span
from ..formats._encode import Encode, EncodeConfig
from ..formats._shift import cut, late, normalised, shifted_left
from ._posit import linear, linear_code, product

WORD = 32  # bits of a word of a quire that is read out


@dataclass(frozen=True, kw_only=True)
class PositMacConfig(Config):
    bits: int = param(8, "bits of a posit", ge=4, le=16)
    es: int = param(0, "exponent bits of a posit", ge=0, le=3)
    carry: int = param(7, "bits of the quire above the largest product", ge=1, le=31)
    raw: bool = param(False, "the quire goes out as well")
    stage: int = param(2, "registers: 1 behind the product, 2 decoders, 3 shifter too", ge=1, le=3)
    rows: int = param(
        4, "bits of a factor between registers in the product; 0 for none", ge=0, le=13
    )
    round_stage: int = param(1, "registers inside the rounding", ge=0, le=1)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"bits": 4, "es": 1, "carry": 3, "raw": True, "round_stage": 0},
        "raw": {"raw": True, "stage": 1, "rows": 0},
        "posit8_2": {"es": 2, "stage": 3},
        "posit16_1": {"bits": 16, "es": 1, "carry": 15, "raw": True, "stage": 3},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "XR-NPE, arXiv 2508.13049",
        "Gustafson and Yonemoto 2017, Beating Floating Point at its Own Game",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        Rate("posit8_0", "posit8_0", 1),
        Rate("posit8_2", "posit8_2", 1, {"es": 2, "stage": 3}),
        Rate("posit4_1", "posit4_1", 1, {"bits": 4, "es": 1}),
        Rate("posit16_1", "posit16_1", 1, {"bits": 16, "es": 1, "carry": 15, "stage": 3}),
    )

    def faults(self) -> Iterator[str]:
        if self.bits - self.es < 3:
            yield f"es must be at most bits - 3 ({self.bits - 3}), not {self.es}"

    @property
    def format(self) -> str:
        """Name of the format of operands and results."""
        return f"posit{self.bits}_{self.es}"

    @property
    def span(self) -> Span:
        """What exponents and significands operands have."""
        return DecodeConfig(format=self.format).span

    @property
    def max_k(self) -> int:
        """Most products of one sum: so many of the largest fit."""
        return (1 << self.carry) - 1

    @property
    def product_width(self) -> int:
        """Bits of a product in steps of the square of the smallest posit, with its sign."""
        return 4 * self.span.high + 2

    @property
    def quire_width(self) -> int:
        """A sign, ``carry`` bits, and those of the largest product."""
        return 1 + self.carry + 4 * self.span.high

    @property
    def words(self) -> int:
        """Words of a quire that is read out."""
        return -(-self.quire_width // WORD)

    @property
    def linear(self) -> bool:
        """Without exponent bits, posits up to 1 are fixed-point numbers, which is cheaper."""
        return self.es == 0

    @property
    def factor(self) -> int:
        """Bits of a factor of the product."""
        return self.bits - 1 if self.linear else self.span.bits

    @property
    def product_latency(self) -> int:
        """Registers inside the product."""
        return (self.factor - 1) // self.rows if self.rows else 0

    @property
    def quire_latency(self) -> int:
        """Registers before the quire."""
        return self.stage + self.product_latency

    @property
    def latency(self) -> int:
        """Cycles from the last transfer of a run to the first in which its sum is offered."""
        return self.quire_latency + 1 + self.round_stage + 1


class PositMac(wiring.Component):
    """Dot products of posits, summed exactly in a quire and rounded once.

    A run of transfers is one dot product, of which each adds ``a * b``; its sum is offered after
    the run, as the nearest posit.

    Products and sums are exact, two's complement in steps of the square of the smallest posit.
    With ``E = (bits - 2) * 2**es`` the largest product is ``2**(4 * E)`` of these.  So the sum of
    ``max_k = 2**carry - 1`` products is below ``2**(carry + 4 * E)`` and above the negative of it,
    which the quire's ``1 + carry + 4 * E`` bits hold: no overflow.  Longer runs wrap.

    The sum is rounded to nearest, ties to the even code, where the string of regime, exponent and
    fraction is cut.  What is beyond the largest posit becomes it, with its sign; no sum but 0
    becomes 0, and none becomes NaR.  One NaR among the operands of a run makes its result NaR; the
    next run starts without.

    Throughput is one transfer per cycle, runs follow without a gap.  Latency is ``config.latency``
    cycles after a run's last transfer.  All stages stop while an offered sum is not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``, ``b``: posits.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``y``: posit.  ``quire``, with ``raw``: the exact sum, sign extended, in words of 32 bits of
        which the lowest is first; for NaR only the highest bit of ``quire_width`` is set, which no
        sum is.

    Source: the posit modes of XR-NPE's multiply-accumulate unit, and the quire of posits, of which
    the legacy sizes are the presets' (32 bits for 8, 128 for 16); the structure is ours
    (docs/blocks/posit_mac.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: PositMacConfig):
        self.config = config
        posit = unsigned(config.bits)
        given = data.StructLayout({"a": posit, "b": posit, "first": 1, "last": 1})
        words = {"quire": data.ArrayLayout(unsigned(WORD), config.words)} if config.raw else {}
        super().__init__({
            "i": In(stream.Signature(given)),
            "o": Out(stream.Signature(data.StructLayout({"y": posit, **words}))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        run = run_pipeline(m, self.i, self.o, config.latency)
        self._enable = run.enable
        terms = self._linear_term if config.linear else self._term
        total, negative, bad = terms(m, platform)

        at = config.quire_latency - 1
        moves = run.enable & run.moves[at]
        acc = accumulated(m, platform, config.quire_width, total, negative, run.opens[at], moves)
        nar = Signal()
        with m.If(moves):
            m.d.sync += nar.eq(bad | (nar & ~run.opens[at]))

        code = (
            linear_code(m, config.bits, acc, nar, config.round_stage, run.enable)
            if config.linear
            else late(m, 1, run.enable, "y", self._code(m, platform, acc, nar))
        )
        m.d.comb += self.o.p.y.eq(code)
        if config.raw:
            sum_ = Mux(nar, 1 << config.quire_width - 1, acc)[: config.quire_width]
            for step in range(config.round_stage + 1):
                sum_ = late(m, 1, run.enable, f"quire_{step}", sum_)
            wide = Signal(WORD * config.words)
            m.d.comb += [wide.eq(sum_.as_signed()), self.o.p.quire.as_value().eq(wide)]
        return m

    def _late(self, m: Module, stage: int, name: str, value, clear: Any = 0):
        """``value`` behind a register if there are ``stage`` registers around the product."""
        name = f"{name}_{stage}"
        return late(m, self.config.stage >= stage, self._enable, name, value, clear)

    def _beside(self, m: Module, name: str, value):
        """``value`` behind as many registers as the product has, and that behind it."""
        for step in range(self.config.product_latency):
            value = late(m, 1, self._enable, f"{name}_beside_{step}", value)
        return self._late(m, 1, name, value)

    def _linear_term(self, m: Module, platform):
        """The product, signed, in its place in the quire; nothing to add; whether it is NaR."""
        config = self.config
        a, b = (linear(m, name, self.i.p[name]) for name in ("a", "b"))
        # The sum of two shifts: its lowest bit is done here, where numbers are shortest.
        odd, even = a.odd ^ b.odd, a.odd & b.odd
        factor = Signal(signed(config.bits))
        m.d.comb += factor.eq(Mux(odd, a.significand << 1, a.significand))
        x_a, x_b = self._late(m, 2, "a", factor), self._late(m, 2, "b", b.significand)
        lowest = self._late(m, 2, "lowest", factor, clear=~b.significand[0])
        ranks = [self._late(m, 2, f"rank_{n}", p.rank) for n, p in zip("ab", (a, b), strict=True)]
        even = self._late(m, 2, "even", even)
        rank = (Cat(Const(1, 1), ranks[0]) + Cat(even, ranks[1]))[1:]  # of three, in one chain
        bad = self._beside(m, "bad", self._late(m, 2, "bad", a.nar | b.nar))

        whole = product(m, platform, self._enable, x_a, x_b, config.rows, lowest)
        whole, rank = self._late(m, 1, "product", whole), self._beside(m, "rank", rank)
        term = shifted_left(m, "term", whole, Cat(Const(0, 1), rank), 4 * config.bits - 10)
        term = self._late(m, 3, "term", term[: config.product_width].as_signed())
        return term, 0, self._late(m, 3, "bad", bad)

    def _term(self, m: Module, platform):
        """The product in its place in the quire, its bits flipped if it is negative and with one
        to add then; whether it is NaR."""
        config, span = self.config, self.config.span
        a, b = (
            place(
                m,
                platform,
                f"decode_{name}",
                Decode(DecodeConfig(format=config.format)),
                code=self.i.p[name],
                enable=self._enable,
            )
            for name in ("a", "b")
        )
        negative = self._beside(m, "negative", self._late(m, 2, "negative", a.sign ^ b.sign))
        bad = self._beside(m, "bad", self._late(m, 2, "bad", a.nan | b.nan))
        x_a = self._late(m, 2, "a", a.significand)
        x_b = self._late(m, 2, "b", b.significand, clear=a.zero | b.zero)
        powers = [
            self._late(m, 2, f"exponent_{n}", p.exponent) for n, p in zip("ab", (a, b), strict=True)
        ]
        amount = Signal(range(4 * span.high + 1))
        m.d.comb += amount.eq(powers[0] + powers[1] + 2 * span.high)

        whole = product(m, platform, self._enable, x_a, x_b, config.rows)
        whole, amount = self._late(m, 1, "product", whole), self._beside(m, "amount", amount)
        # The bits of the fractions that are left below are 0: no product is between two steps.
        spare = 2 * (span.bits - 1)
        term = shifted_left(m, "term", whole, amount, 4 * span.high)[spare:]
        term = Cat(term, Const(0, 1)) ^ negative.replicate(len(term) + 1)
        term = self._late(m, 3, "term", term.as_signed())
        return term, self._late(m, 3, "negative", negative), self._late(m, 3, "bad", bad)

    def _code(self, m: Module, platform, acc, nar):
        """The nearest posit: magnitude, leading one, and then as all numbers are encoded."""
        config, high = self.config, self.config.span.high
        size = Signal(config.quire_width)
        m.d.comb += size.eq((acc ^ acc[-1].replicate(len(acc))) + acc[-1])
        beyond, kept = size[3 * high + 1 :].any(), size[: 3 * high + 1]
        most = 2 * high + 1  # zeros in front of what is below the smallest
        value, count = normalised(m, "size", kept, most=most)
        low = high - (1 << len(count)) + 1
        exponent = Signal(Span(1, low, high).exponent_width + 1)
        m.d.comb += exponent.eq(Mux(beyond, high, high - count))
        significand, spare = cut(value, config.bits)

        def x(name: str, value) -> Signal:
            return late(m, config.round_stage, self._enable, name, value)

        encode = place(
            m,
            platform,
            "encode",
            Encode(EncodeConfig(format=config.format, bits=config.bits, low=low, high=high)),
            zero=x("zero", ~acc.any()),
            nan=x("nar", nar),
            inf=0,
            sign=x("sign", acc[-1]),
            exponent=x("exponent", exponent),
            significand=x("significand", significand),
            sticky=x("sticky", spare),
            enable=self._enable,
        )
        return encode.code
