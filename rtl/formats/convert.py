# SPDX-License-Identifier: Apache-2.0
"""Conversion of numbers from one format to another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from .._pipeline import Pipeline
from ..config import Config, param
from ._decode import Decode, DecodeConfig, name_faults
from ._encode import Encode, EncodeConfig
from ._formats import ScaleFormat, format_named
from ._shift import late


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    source: str = param("fp16", "format of the codes that come in")
    target: str = param("fp8_e4m3", "format of the codes that go out")
    lanes: int = param(8, "codes converted per transfer", ge=1, le=1024)
    saturate: bool = param(True, "too large: the largest finite code; without, infinity or NaN")
    stage: int = param(
        1, "registers: 0 behind, 1 between as well, 2 in both halves too", ge=0, le=2
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"source": "fp8_e4m3", "target": "posit4_1", "lanes": 1, "stage": 0},
        "fp16_to_fp8_e4m3_nan": {"saturate": False},
        "fp16_to_fp8_e5m2": {"target": "fp8_e5m2", "saturate": False, "stage": 2},
        "fp16_to_fp6_e3m2": {"target": "fp6_e3m2", "stage": 0},
        "fp16_to_fp6_e2m3": {"target": "fp6_e2m3"},
        "fp16_to_fp4": {"target": "fp4_e2m1"},
        "fp16_to_posit8_0": {"target": "posit8_0"},
        "fp16_to_posit16_1": {"target": "posit16_1", "stage": 2},
        "fp16_to_bf16": {"target": "bf16"},
        "fp16_to_int8": {"target": "int8"},
        "fp16_to_ternary": {"target": "ternary"},
        "fp16_to_bipolar4": {"target": "bipolar4"},
        "bf16_to_fp16": {"source": "bf16", "target": "fp16", "saturate": False},
        "posit16_1_to_posit8_0": {"source": "posit16_1", "target": "posit8_0", "stage": 2},
        "posit16_1_to_fp16": {"source": "posit16_1", "target": "fp16"},
        "posit8_2_to_fp8_e5m2": {"source": "posit8_2", "target": "fp8_e5m2"},
        "int8_to_posit8_0": {"source": "int8", "target": "posit8_0"},
        "int16_to_fp16": {"source": "int16", "target": "fp16"},
        "bipolar8_to_fp8_e4m3": {"source": "bipolar8", "target": "fp8_e4m3"},
        "e8m0_to_bf16": {"source": "e8m0", "target": "bf16"},
        "ternary_to_fp4": {"source": "ternary", "target": "fp4_e2m1"},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "OCP Microscaling Formats v1.0",
        "Gustafson and Yonemoto 2017, Beating Floating Point at its Own Game",
        "XR-NPE, arXiv 2508.13049",
    )

    def faults(self) -> Iterator[str]:
        wrong = [*name_faults(self.source), *name_faults(self.target)]
        yield from wrong
        if not wrong and self.source == self.target:
            yield f"source and target are both {self.source}, and nothing is to be converted"
        elif not wrong and isinstance(format_named(self.target), ScaleFormat):
            yield (
                f"{self.source} to e8m0 is no conversion: e8m0 has no code for 0 and for negative "
                "numbers; targets are integers, ternary, bipolar, floating-point and posit formats"
            )

    @property
    def decode(self) -> DecodeConfig:
        """From a code to sign, exponent and significand."""
        return DecodeConfig(format=self.source, stage=int(self.stage == 2))

    @property
    def encode(self) -> EncodeConfig:
        """From there to a code of the target."""
        span = self.decode.span
        return EncodeConfig(
            format=self.target,
            bits=span.bits,
            low=span.low,
            high=span.high,
            saturate=self.saturate,
            stage=int(self.stage == 2),
        )

    @property
    def latency(self) -> int:
        """Cycles from taking codes to the first in which they are offered converted."""
        return self.decode.latency + int(self.stage > 0) + self.encode.latency + 1


class Convert(wiring.Component):
    """Conversion of numbers from one format to another, ``lanes`` at a time.

    Each code becomes the code nearest to its value, ties to the even code; rounded once.
    Subnormal numbers are numbers like others, in both formats.

    What the target lacks:

    too large
        The largest finite number of that sign.  Without ``saturate`` a floating-point target gives
        infinity, or, with no infinity, NaN of that sign; with neither, and in all other formats,
        it is the largest number still.
    infinity
        NaR in posits; in all others as what is too large.
    NaN and NaR
        The one NaN of the target that is not negative, or NaR; signs and payloads are not kept.  0
        where there is none (in bipolar formats as 0).
    -0
        Kept in floating-point formats, 0 elsewhere.
    0
        In bipolar formats, which have none, the even code of -1 and 1; so it is with all numbers
        half way.

    A posit is never rounded to 0 or to NaR.  Integers are symmetric: the lowest code is never made.

    Throughput is one transfer per cycle, latency ``config.latency``.  All stages stop while an
    offered transfer is not taken.  Reset drops whatever is in flight.  Errors: a code that stands
    for nothing (2 of trits) gives an unspecified one; others are all valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``code``: of the source format, ``lanes`` of them.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``code``: of the target format.

    Source: OCP Microscaling and OFP8 formats, IEEE 754, posits of Gustafson and Yonemoto; the
    conversions of the formats of XR-NPE.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: ConvertConfig):
        self.config = config

        def codes(name: str) -> stream.Signature:
            shape = unsigned(format_named(name).width)
            return stream.Signature(
                data.StructLayout({"code": data.ArrayLayout(shape, config.lanes)})
            )

        super().__init__({"i": In(codes(config.source)), "o": Out(codes(config.target))})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        enable = pipeline.enable
        m.d.comb += [
            self.i.ready.eq(pipeline.i_ready),
            pipeline.i_valid.eq(self.i.valid),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]
        for lane in range(config.lanes):
            number = place(
                m,
                platform,
                f"decode_{lane}",
                Decode(config.decode),
                code=self.i.p.code[lane],
                enable=enable,
            )
            parts = {
                name: late(m, config.stage, enable, f"{name}_{lane}", getattr(number, name))
                for name in ("zero", "nan", "inf", "sign", "exponent", "significand")
            }
            made = place(
                m,
                platform,
                f"encode_{lane}",
                Encode(config.encode),
                **parts,
                sticky=0,
                enable=enable,
            )
            x_code = Signal.like(made.code, name=f"x_code_{lane}", reset_less=True)
            with m.If(enable):
                m.d.sync += x_code.eq(made.code)
            m.d.comb += self.o.p.code[lane].eq(x_code)
        return m
