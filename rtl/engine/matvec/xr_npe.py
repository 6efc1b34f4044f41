# SPDX-License-Identifier: Apache-2.0
"""Projections of FP4 and posit weights on ``xr_npe`` cores, activations in the weights' format."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data

from ..._once import place
from ...formats._decode import Decode, DecodeConfig
from ...formats._encode import Encode, EncodeConfig
from ...mac._modes import LANES
from ...mac.xr_npe import XrNpe, XrNpeConfig
from ._socket import CODE, Tiled, tree_latency

if TYPE_CHECKING:
    from ..engine import EngineConfig

MODES = {"fp4_e2m1": 4, "posit4_1": 3, "posit8_0": 5, "posit16_1": 0}
"""Formats in the order of the modes, and how many bits an int8 activation is shifted to the right
before it is rounded to the format."""
UNIT = 56
"""The bit of a posit(16,1) accumulator that counts 1."""
FRONT = 2
PRODUCTS = 4
"""Most products of a core in a cycle."""


class Core(Tiled):
    """A core for each four codes of a tile: it takes all four in a step with 4-bit weights, two in
    each of two steps with 8-bit ones, one in each of four with those of 16 bits.  A word is 16 bits
    for each core.

    Int8 activations become values of the weights' format: rounded in FP4, posit(4,1) and
    posit(8,0), exact in posit(16,1).  There integers and trits are exact as well, and so are sums.
    """

    FORMATS = (
        *("posit8_0", "posit4_1", "fp4_e2m1", "ternary"),
        *(f"int{bits}" for bits in range(8, 1, -1)),
    )
    FRONT = FRONT

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        if engine.lanes < PRODUCTS:
            yield f"lanes must be at least {PRODUCTS} with xr_npe, not {engine.lanes}"
        yield from super().faults(engine)

    @classmethod
    def product(cls, engine: "EngineConfig") -> XrNpeConfig:
        return XrNpeConfig()

    @classmethod
    def acc_width(cls, engine: "EngineConfig") -> int:
        return 32

    @classmethod
    def latency(cls, engine: "EngineConfig") -> int:
        terms = engine.lanes // PRODUCTS * len(LANES)
        return super().latency(engine) + tree_latency(terms)

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return data.StructLayout({"words": data.ArrayLayout(unsigned(16), engine.lanes // 4)})

    def elaborate(self, platform):
        m = Module()
        cores = [XrNpe(self.config) for _ in range(self.engine.lanes // PRODUCTS)]
        first = cores[0]
        ready, valid = Signal(), Signal()
        x = self._walk(m, ready, steps=lambda mode: Cat(mode[1], mode[:2] == 3))
        m.d.comb += ready.eq(~valid | first.i.ready)
        opens, ends = (Signal(name=f"x_{name}_1", reset_less=True) for name in ("first", "last"))
        mode = Signal(2, name="x_mode_1", reset_less=True)
        with m.If(ready):
            m.d.sync += [valid.eq(x.valid), opens.eq(x.first), ends.eq(x.last), mode.eq(x.mode)]
        # What a sum's mode was: it is read when the sum is there.
        late = mode
        for stage in range(self.config.latency):
            before, late = late, Signal(2, name=f"x_mode_{stage + 2}", reset_less=True)
            with m.If(first.i.ready):
                m.d.sync += late.eq(before)

        terms = []
        for number, core in enumerate(cores):
            m.submodules[f"core_{number}"] = core
            codes = [
                x.acts.word_select(PRODUCTS * number + at, CODE).as_signed()
                for at in range(PRODUCTS)
            ]
            a, b = (Signal(16, name=f"{name}_{number}", reset_less=True) for name in "ab")
            with m.If(ready):
                m.d.sync += [
                    a.eq(self._activations(m, platform, number, codes, x)),
                    b.eq(x.word.words[number]),
                ]
            m.d.comb += [
                core.i.valid.eq(valid),
                core.i.p.a.eq(a),
                core.i.p.b.eq(b),
                core.i.p.mode.eq(mode),
                core.i.p.first.eq(opens),
                core.i.p.last.eq(ends),
            ]
            terms += self._sums(core.o.p.acc, late)
        total = self._added(m, first.o, terms, signed(32))
        for core in cores[1:]:  # all do the same at the same time
            m.d.comb += core.o.ready.eq(first.o.ready)
        m.d.comb += self.o.p.sum.eq(total)
        return m

    def _activations(self, m: Module, platform: Any, number: int, codes: Any, x: Any) -> Any:
        """A core's word of activations in the mode of the step."""

        def rounded(format_: str, name: str, code: Any) -> Any:
            decode = Decode(DecodeConfig(format=f"int{CODE}"))
            place(m, platform, f"decode_{number}_{name}", decode, code=code)
            span, shift = decode.config.span, MODES[format_]
            config = EncodeConfig(
                format=format_, bits=span.bits, low=span.low - shift, high=span.high - shift
            )
            encode = Encode(config)
            place(
                m,
                platform,
                f"encode_{number}_{name}",
                encode,
                zero=decode.zero,
                sign=decode.sign,
                exponent=decode.exponent - shift,
                significand=decode.significand,
            )
            return encode.code

        words = []
        for format_ in MODES:
            lanes = LANES["fp4" if format_ == "fp4_e2m1" else format_]
            turns = PRODUCTS // lanes
            parts = []
            for lane in range(lanes):
                steps = Array(codes[turn * lanes + lane] for turn in range(turns))
                code = Signal(signed(CODE), name=f"code_{number}_{format_}_{lane}")
                m.d.comb += code.eq(steps[x.step[:2]] if turns > 1 else codes[lane])
                parts.append(rounded(format_, f"{format_}_{lane}", code))
            words.append(Cat(parts))
        return Array(words)[x.mode[:2]]

    def _sums(self, acc: Any, mode: Any) -> list[Any]:
        """The sums of a core's lanes, low 32 bits each: those of all cores together fit."""
        quarters = [acc[at] for at in range(4)]
        whole = Cat(quarters)
        wide, widest = mode == 2, mode == 3
        return [
            Mux(widest, whole[UNIT : UNIT + 32], quarters[0]).as_signed(),
            Mux(wide | widest, 0, quarters[1]).as_signed(),
            Mux(widest, 0, quarters[2]).as_signed(),
            Mux(wide | widest, 0, quarters[3]).as_signed(),
        ]
