# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulate of small floats and integers: exact, or in float32."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import accumulated
from .._once import place
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ..formats._formats import Special
from ._booth import BoothProduct, BoothProductConfig
from ._element_dot import (
    ELEMENTS,
    HALVES,
    ElementDot,
    ElementDotConfig,
    Flags,
    element_named,
    held_flags,
    parts_of,
    specials_of,
    sum_bits,
    sum_fields,
)
from ._float_accumulate import FloatAccumulate, FloatAccumulateConfig

EXACT = 127
"""Bits of the widest exact sum."""


@dataclass(frozen=True, kw_only=True)
class FpMacConfig(Config):
    format: str = param("fp8_e4m3", "operands", choices=(*ELEMENTS, *HALVES))
    accumulate: str = param("exact", "fixed point or float32", choices=("exact", "fp32"))
    max_k: int = param(4096, "most products of one exact sum", ge=1, le=1 << 20)
    stage: int = param(1, "1 for pipeline registers in the multiplier, 0 for none", ge=0, le=1)
    steps: int = param(4, "registers in the loop of the fp32 accumulator: 1, 2 or 4", ge=1, le=4)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"format": "fp4_e2m1", "max_k": 16},
        "e5m2": {"format": "fp8_e5m2"},
        "e2m3": {"format": "fp6_e2m3", "stage": 0},
        "e3m2": {"format": "fp6_e3m2"},
        "int4": {"format": "int4"},
        "int8": {"format": "int8"},
        "fp16": {"format": "fp16"},
        "bf16": {"format": "bf16", "accumulate": "fp32"},
        "bf16_each_cycle": {"format": "bf16", "accumulate": "fp32", "steps": 1},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "OCP 8-bit Floating Point (OFP8) v1.0",
        "INT v.s. FP, arXiv 2510.25602",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        *tuple(
            Rate(name, name, 1, {"format": name})
            for name in (
                *(
                    "int8",
                    "int4",
                    "fp4_e2m1",
                    "fp6_e2m3",
                    "fp6_e3m2",
                    "fp8_e4m3",
                    "fp8_e5m2",
                    "fp16",
                ),
            )
        ),
        Rate("bf16", "bf16", 1, {"format": "bf16", "accumulate": "fp32", "steps": 1}),
    )

    def faults(self) -> Iterator[str]:
        if self.steps == 3:
            yield "steps must be 1, 2 or 4, not 3"
        if self.accumulate == "exact" and self.sum_width > EXACT:
            yield (
                f"an exact sum of {self.max_k} products of {self.format} has {self.sum_width} "
                f"bits, more than {EXACT}; take accumulate fp32"
            )

    @property
    def sum_width(self) -> int:
        """Bits that hold ``max_k`` products of the largest magnitudes, and no fewer do."""
        return (self.max_k * element_named(self.format).top ** 2).bit_length() + 1

    @property
    def unit(self) -> int:
        """An exact sum counts ``2**unit``."""
        return 2 * element_named(self.format).unit

    @property
    def special(self) -> Special:
        """What is no number in the format."""
        return element_named(self.format).special

    @property
    def dot(self) -> ElementDotConfig:
        """The multiplier of exact sums: a dot product of one lane."""
        return ElementDotConfig(
            lanes=1, a_format=self.format, b_format=self.format, stage=self.stage
        )

    @property
    def booth(self) -> BoothProductConfig:
        """The multiplier of float32 sums: a significand with its sign by one with a zero."""
        element = element_named(self.format)
        digits = element.significand // 2 + 1
        return BoothProductConfig(
            a_width=element.significand + 1,
            digits=digits,
            stage=4 if self.stage else 0,
            structure="booth",
        )

    @property
    def float(self) -> FloatAccumulateConfig:
        """Sums products in float32."""
        element = element_named(self.format)
        low, high = (2 * (end - element.low) + self.unit for end in (element.low, element.high))
        return FloatAccumulateConfig(
            width=self.booth.y_width,
            low=low,
            high=high,
            steps=self.steps,
            registered=self.stage > 0,
        )

    @property
    def beats(self) -> int:
        """Cycles of a product: an addition in float32 waits for the one before it."""
        return self.steps if self.accumulate == "fp32" else 1

    @property
    def latency(self) -> int:
        """Cycles from the last cycle of a run's input to the first its sum is offered in."""
        if self.accumulate == "fp32":
            return 1 + self.booth.latency + self.float.latency
        return 1 + self.dot.latency + 1


def results_layout(config: FpMacConfig) -> data.StructLayout:
    if config.accumulate == "fp32":
        return data.StructLayout({"sum": unsigned(32)})
    nan = {"nan": unsigned(1)} if config.special is not Special.NONE else {}
    infinite = {"plus": unsigned(1), "minus": unsigned(1)}
    infinite = infinite if config.special is Special.IEEE else {}
    return data.StructLayout({**sum_fields(config.sum_width), **nan, **infinite})


class FpMac(wiring.Component):
    """Multiply-accumulate of small floats and integers: exact, or in float32.

    A run of transfers is one sum of products ``a * b``, offered after the run.  All codes of
    ``format`` are allowed, subnormals are numbers like others; code 2 of ternary must not occur.

    ``accumulate`` says how products are summed:

    exact
        ``sum`` is the exact sum in units of ``2**unit``: no rounding, and no overflow up to
        ``max_k`` products, for which ``sum_width`` is what the largest ones need; longer runs wrap.
        Where the format has them, flags say that the sum is no number, and then ``sum`` is 0:
        ``nan`` if an operand is NaN, an infinity met a zero or another of the other sign, else
        ``plus`` or ``minus`` if an operand was infinite.
    fp32
        ``sum`` is a float32 code.  Products are added in order, and each time the exact product
        plus the float32 so far is rounded once, to nearest even (a fused multiply-add).  Subnormals
        are kept, overflow makes an infinity, every NaN is 0x7fc00000, an exact zero is +0.

    Throughput is one product per cycle; in fp32 a product takes ``steps`` cycles, so 1 with the
    whole addition in one cycle.  Latency is ``config.latency`` cycles after a run's last transfer.
    All stages stop while an offered sum is not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``, ``b``: codes.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum`` (of more than 64 bits the lowest 48 are ``low``), and in exact ``nan``, ``plus``
        and ``minus`` where the format has these.

    Source: formats of OCP OFP8 and MX v1.0 and IEEE 754; exact accumulation as in Kulisch's long
    accumulator, which these formats make short; the structure is ours (docs/blocks/fp_mac.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: FpMacConfig):
        self.config = config
        width = element_named(config.format).width
        payload = {"a": unsigned(width), "b": unsigned(width), "first": 1, "last": 1}
        super().__init__({
            "i": In(stream.Signature(data.StructLayout(payload))),
            "o": Out(stream.Signature(results_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        ends = Signal(init=1)
        run = run_pipeline(m, self.i, self.o, config.latency, ends)
        if config.beats > 1:
            beat = Signal(range(config.beats))
            m.d.comb += ends.eq(beat == config.beats - 1)
            with m.If(self.i.valid & run.enable):
                m.d.sync += beat.eq(Mux(ends, 0, beat + 1))
        a, b = Signal.like(self.i.p.a), Signal.like(self.i.p.b)
        with m.If(run.enable):
            m.d.sync += [a.eq(self.i.p.a), b.eq(self.i.p.b)]
        if config.accumulate == "exact":
            self._exact(m, platform, run, a, b)
        else:
            self._float(m, platform, run, a, b)
        return m

    def _exact(self, m: Module, platform, run, a, b) -> None:
        config, at = self.config, self.config.dot.latency
        dot = place(m, platform, "product", ElementDot(config.dot), a=a, b=b, enable=run.enable)
        moves = run.enable & run.moves[at]
        acc = accumulated(m, platform, config.sum_width, dot.sum, dot.pending, run.opens[at], moves)
        m.d.comb += sum_bits(self.o.p).eq(acc)
        if config.special is Special.NONE:
            return
        flags = Flags(dot.nan, dot.plus, dot.minus)
        held = held_flags(m, flags, run.opens[at], moves, acc)
        m.d.comb += self.o.p.nan.eq(held.nan)
        if config.special is Special.IEEE:
            m.d.comb += self.o.p.plus.eq(held.plus & ~held.nan)
            m.d.comb += self.o.p.minus.eq(held.minus & ~held.nan)

    def _float(self, m: Module, platform, run, a, b) -> None:
        config, at = self.config, self.config.booth.latency
        x, y = (parts_of(config.format, code) for code in (a, b))
        if element_named(config.format).signed:
            left, right = x.significand, y.significand
        else:
            # With its sign the multiplicand makes a signed product.
            negative = x.sign ^ y.sign
            left = (Cat(x.significand, 0) ^ negative.replicate(len(x.significand) + 1)) + negative
            right = Cat(y.significand, 0)
        product = place(
            m,
            platform,
            "product",
            BoothProduct(config.booth),
            a=left[: config.booth.a_width].as_signed(),
            b=right.as_signed(),
            enable=run.enable,
        )
        exponent = x.exponent + y.exponent + (config.unit - 2 * element_named(config.format).low)
        late = {"exponent": exponent, **specials_of(x, y)._asdict()}
        for step in range(at):
            for name, value in late.items():
                if isinstance(value, Const):
                    continue
                late[name] = Signal(value.shape(), name=f"x_{name}_{step}", reset_less=True)
                with m.If(run.enable):
                    m.d.sync += late[name].eq(value)
        accumulate = place(
            m,
            platform,
            "accumulate_fp32",
            FloatAccumulate(config.float),
            term=product.y,
            opens=run.opens[at],
            moves=run.moves[at],
            enable=run.enable,
            **late,
        )
        m.d.comb += self.o.p.sum.eq(accumulate.sum)
