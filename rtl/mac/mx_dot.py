# SPDX-License-Identifier: Apache-2.0
"""Dot products of blocks whose elements share a scale: MX and NVIDIA's formats."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._add_select import accumulated
from .._once import place
from .._pipeline import Pipeline
from ..config import Config, Rate, param
from ..formats._formats import IntegerFormat, Special, format_named
from ._booth import BoothProduct, BoothProductConfig
from ._element_dot import (
    ELEMENTS,
    ElementDot,
    ElementDotConfig,
    Flags,
    held_flags,
    parts_of,
    sum_bits,
    sum_fields,
)
from ._float_accumulate import FloatAccumulate, FloatAccumulateConfig, exponent_width

SCALES = ("e8m0", "fp8_e4m3")
ACCUMULATES = ("fp32", "block")
SCALE_BIAS = 127  # of E8M0


@dataclass(frozen=True, kw_only=True)
class MxDotConfig(Config):
    format: str = param("fp8_e4m3", "elements of a", choices=ELEMENTS)
    b_format: str = param("same", "elements of b, or same", choices=("same", *ELEMENTS))
    block: int = param(32, "elements that share a scale, a power of two", ge=2, le=1024)
    lanes: int = param(8, "pairs of elements per transfer, a power of two", ge=2, le=1024)
    scale: str = param("e8m0", "format of the scales", choices=SCALES)
    accumulate: str = param("fp32", "what comes out: dot products or blocks", choices=ACCUMULATES)
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(4, "lanes in series at each leaf of a tree, a power of two", ge=2, le=16)
    fine: int = param(4, "bits of an exponent that shift; those above choose a bucket", ge=0, le=8)
    steps: int = param(4, "registers in the loop of the fp32 accumulator: 1, 2 or 4", ge=1, le=4)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"format": "fp4_e2m1", "block": 4, "lanes": 2, "chain": 2},
        "mxint8": {"format": "int8"},
        "mxfp8": {"format": "fp8_e4m3", "lanes": 32, "accumulate": "block"},
        "mxfp8_e5m2": {"format": "fp8_e5m2"},
        "e5m2_blocks": {"format": "fp8_e5m2", "lanes": 4, "accumulate": "block"},
        "mxfp6": {"format": "fp6_e2m3"},
        "mxfp6_e3m2": {"format": "fp6_e3m2", "accumulate": "block"},
        "mxfp4": {
            "format": "fp4_e2m1",
            "lanes": 32,
            "stage": 1,
            "chain": 2,
            "accumulate": "block",
        },
        "nvfp4": {"format": "fp4_e2m1", "block": 16, "lanes": 4, "scale": "fp8_e4m3"},
        "nvint4": {"format": "int4", "block": 16, "scale": "fp8_e4m3", "accumulate": "block"},
        "mixed": {"format": "int8", "b_format": "fp4_e2m1", "stage": 0, "steps": 1},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "INT v.s. FP, arXiv 2510.25602",
        "OCP Microscaling Formats v1.0",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        *tuple(
            Rate(name, name, block, {"lanes": block, "accumulate": "block", **values})
            for name, block, values in (
                ("mxint8", 32, {"format": "int8"}),
                ("mxfp8", 32, {"format": "fp8_e4m3"}),
                ("mxfp8_e5m2", 32, {"format": "fp8_e5m2"}),
                ("mxfp6", 32, {"format": "fp6_e2m3"}),
                ("mxfp6_e3m2", 32, {"format": "fp6_e3m2"}),
                ("mxfp4", 32, {"format": "fp4_e2m1", "stage": 1, "chain": 2}),
                ("nvfp4", 16, {"format": "fp4_e2m1", "block": 16, "scale": "fp8_e4m3"}),
                ("nvint4", 16, {"format": "int4", "block": 16, "scale": "fp8_e4m3"}),
            )
        ),
        Rate(
            *("mxfp4", "int8", 32),
            {"lanes": 32, "accumulate": "block", "format": "int8", "b_format": "fp4_e2m1"},
        ),
    )

    def faults(self) -> Iterator[str]:
        for name in ("block", "lanes", "chain"):
            if getattr(self, name) & (getattr(self, name) - 1):
                yield f"{name} must be a power of two, not {getattr(self, name)}"
        if self.lanes > self.block:
            yield f"lanes must be at most block ({self.block}), not {self.lanes}"
        if self.steps == 3:
            yield "steps must be 1, 2 or 4, not 3"
        if self.sum_width + (self.scale != "e8m0") * SCALE_WIDTH > 100:
            yield (
                f"blocks of {self.block} products of {self.format} by {self.b} with scales of "
                f"{self.scale} are too wide; take smaller blocks or scales of e8m0"
            )

    @property
    def b(self) -> str:
        """Format of the elements of b."""
        return self.format if self.b_format == "same" else self.b_format

    @property
    def groups(self) -> int:
        """Transfers that a block takes."""
        return self.block // self.lanes

    @property
    def beats(self) -> int:
        """Cycles of a transfer: terms of the fp32 accumulator come ``steps`` cycles apart."""
        return -(-self.steps // self.groups) if self.accumulate == "fp32" else 1

    @property
    def dot(self) -> ElementDotConfig:
        """Sums the products of a transfer."""
        return ElementDotConfig(
            lanes=self.lanes,
            a_format=self.format,
            b_format=self.b,
            stage=self.stage,
            chain=self.chain,
            fine=self.fine,
        )

    @property
    def sum_width(self) -> int:
        """Bits that hold every sum of ``block`` products, and no fewer do."""
        return (self.block * self.dot.a.top * self.dot.b.top).bit_length() + 1

    @property
    def scaled_width(self) -> int:
        """Bits of that times the significands of the scales, where these have some."""
        return self.sum_width + (0 if self.scale == "e8m0" else SCALE_WIDTH)

    @property
    def unit(self) -> int:
        """What to add to the exponents of the scales."""
        total = self.dot.unit
        if self.scale == "e8m0":
            for name in (self.format, self.b):
                format_ = format_named(name)
                if isinstance(format_, IntegerFormat):
                    total += 2 - format_.width  # the largest is just below 2
            return total - 2 * SCALE_BIAS
        return total - 20  # a scale of E4M3 is significand * 2**(exponent - 10)

    @property
    def exponents(self) -> tuple[int, int]:
        """The least and the largest exponent of a block."""
        low, high = (0, 2 * 254) if self.scale == "e8m0" else (2, 30)
        return low + self.unit, high + self.unit

    @property
    def exponent_width(self) -> int:
        """Bits of a signed exponent."""
        return exponent_width(*self.exponents)

    @property
    def special(self) -> bool:
        """Whether elements may be infinite."""
        return Special.IEEE in (self.dot.a.special, self.dot.b.special)

    @property
    def product(self) -> BoothProductConfig:
        """Multiplies a block's sum by the significands of its scales."""
        return BoothProductConfig(
            a_width=self.sum_width, digits=SCALE_WIDTH // 2, stage=2 if self.stage else 0
        )

    @property
    def float(self) -> FloatAccumulateConfig:
        """Sums blocks."""
        low, high = self.exponents
        return FloatAccumulateConfig(
            width=self.scaled_width,
            low=low,
            high=high,
            steps=self.steps,
            registered=self.stage > 0,
        )

    @property
    def block_latency(self) -> int:
        """Cycles from a block's last transfer until its scaled sum is there."""
        scaling = self.product.latency if self.scale != "e8m0" else 0
        return self.dot.latency + 1 + scaling

    @property
    def latency(self) -> int:
        """Cycles from the last cycle of a result's input to the first it is offered in."""
        return self.block_latency + (self.float.latency if self.accumulate == "fp32" else 0)


SCALE_WIDTH = 10
"""Bits of a product of two significands of E4M3, with their sign, as digits of radix 4."""


def operands_layout(config: MxDotConfig) -> data.StructLayout:
    return data.StructLayout({
        "a": data.ArrayLayout(unsigned(config.dot.a.width), config.lanes),
        "b": data.ArrayLayout(unsigned(config.dot.b.width), config.lanes),
        "a_scale": unsigned(8),
        "b_scale": unsigned(8),
        "first": unsigned(1),
        "last": unsigned(1),
    })


def results_layout(config: MxDotConfig) -> data.StructLayout:
    if config.accumulate == "fp32":
        return data.StructLayout({"sum": unsigned(32)})
    infinities = {"plus": unsigned(1), "minus": unsigned(1)} if config.special else {}
    return data.StructLayout({
        **sum_fields(config.scaled_width),
        "exponent": signed(config.exponent_width),
        "nan": unsigned(1),
        **infinities,
        "last": unsigned(1),
    })


class MxDot(wiring.Component):
    """Dot products of blocks whose elements share a scale: MX and NVIDIA's formats.

    ``block / lanes`` transfers are a block, counted from a ``first``.  Its value is the product of
    both scales and of the exact sum of the products of its elements: an integer that cannot
    overflow, for ``sum_width`` is what the largest elements need.  The scales of a block's last
    transfer count, those of the others are not looked at.

    ``scale``: *e8m0*, ``2**(code - 127)`` with 255 for NaN; or *fp8_e4m3*, whose sign counts too.
    With e8m0, integers of n bits count ``2**(2 - n)`` as in MXINT8; with fp8_e4m3 they count 1, as
    in NVINT4.  All codes of elements are numbers, the lowest integer as well, but for code 2 of
    ternary, which must not occur, and those that their format has for NaN and infinity.

    ``accumulate`` says what comes out:

    fp32
        After a run of blocks their sum as a float32 code.  Blocks are added in the order they come
        in, and each time the exact sum of the block and the float32 so far is rounded once, to
        nearest even.  Subnormals are kept; overflow makes an infinity, which stays; a NaN or an
        infinite element, or an infinity that meets one of the other sign, counts as in IEEE 754,
        and every NaN is 0x7fc00000.  An exact zero is +0.
    block
        After each block ``sum * 2**exponent``, exactly.  ``nan``: a scale or an element is NaN, an
        infinite element meets a zero or another of the other sign.  ``plus``, ``minus``: the block
        is infinite.  With one of these ``sum`` is 0, and ``exponent`` what the bits of the scales
        would give.  ``last`` is that of the block's last transfer.

    Throughput is one transfer per cycle; in fp32 a transfer takes ``config.beats`` cycles, which is
    1 if a block has ``steps`` transfers or more.  Latency is ``config.latency`` cycles.  All stages
    stop while an offered result is not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run (its unfinished block too) and begins a new one;
    after the end of a run it may be left out.  ``last`` ends a run, in the last transfer of a
    block; in others it is not looked at.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``, ``b``: codes of ``lanes`` elements.  ``a_scale``, ``b_scale``.  ``first``, ``last``.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: float32.  In block signed (of more than 64 bits the lowest 48 are ``low``), with
        ``exponent``, ``nan``, ``last``, and ``plus`` and ``minus`` where elements may be infinite.

    Source: OCP Microscaling Formats v1.0 (values of scales and elements, dot products of blocks);
    arXiv 2510.25602 (the formats compared, NVINT4); the structure is ours (docs/blocks/mx_dot.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: MxDotConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(operands_layout(config))),
            "o": Out(stream.Signature(results_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        payload = self.i.p
        fp32 = config.accumulate == "fp32"

        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        enable = pipeline.enable

        # Which cycle of its transfer this is, and which transfer of its block.
        done, starts, ends = Signal(init=1), Signal(init=1), Signal(init=1)
        if config.beats > 1:
            beat = Signal(range(config.beats))
            m.d.comb += done.eq(beat == config.beats - 1)
            with m.If(self.i.valid & enable):
                m.d.sync += beat.eq(Mux(done, 0, beat + 1))
        if config.groups > 1:
            group = Signal(range(config.groups))
            at = Mux(payload.first, 0, group)
            m.d.comb += [starts.eq(at == 0), ends.eq(at == config.groups - 1)]
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += group.eq(at + 1)
        begun = Signal()  # a block of this run has been taken
        opens = payload.first | ~begun

        m.d.comb += [
            self.i.ready.eq(enable & done),
            pipeline.i_valid.eq(self.i.valid & done & ends & (payload.last if fp32 else 1)),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += begun.eq(Mux(ends, ~payload.last, begun & ~payload.first))

        # The exact sum of a block; a 0 where it is no number.
        dot = place(
            m,
            platform,
            "dot",
            ElementDot(config.dot),
            a=payload.a.as_value(),
            b=payload.b.as_value(),
            enable=enable,
        )
        known = {
            "moves": self.i.valid & done,
            "starts": starts,
            "ends": ends,
            "opens": opens,
            "last": payload.last,
            **self._scales(),
        }
        known = self._late(m, enable, "dot", config.dot.latency, known)
        moves = enable & known["moves"]
        total = accumulated(
            m, platform, config.sum_width, dot.sum, dot.pending, known["starts"], moves
        )
        nan = dot.nan | known.pop("nan") & known["ends"]
        flags = Flags(nan, dot.plus, dot.minus)
        flags = held_flags(m, flags, known["starts"], moves, total)
        known = self._late(m, enable, "block", 1, known) | flags._asdict()

        # Times the significands of the scales.
        if config.scale != "e8m0":
            product = place(
                m,
                platform,
                "scaled",
                BoothProduct(config.product),
                a=total,
                b=known.pop("significand"),
                enable=enable,
            )
            known = self._late(m, enable, "scaled", config.product.latency, known)
            total = product.y

        if fp32:
            accumulate = place(
                m,
                platform,
                "accumulate_fp32",
                FloatAccumulate(config.float),
                term=total,
                moves=known["moves"] & known["ends"],
                enable=enable,
                **{name: known[name] for name in ("exponent", "nan", "plus", "minus", "opens")},
            )
            m.d.comb += self.o.p.sum.eq(accumulate.sum)
            return m
        m.d.comb += [
            sum_bits(self.o.p).eq(total),
            self.o.p.exponent.eq(known["exponent"]),
            self.o.p.nan.eq(known["nan"]),
            self.o.p.last.eq(known["last"]),
        ]
        if config.special:
            m.d.comb += [
                self.o.p.plus.eq(known["plus"] & ~known["nan"]),
                self.o.p.minus.eq(known["minus"] & ~known["nan"]),
            ]
        return m

    def _scales(self) -> dict[str, Any]:
        """The exponent of the product of both scales, whether it is NaN, and its significand."""
        config = self.config
        codes = (self.i.p.a_scale, self.i.p.b_scale)
        if config.scale == "e8m0":
            exponent = codes[0] + codes[1] + config.unit
            nan = codes[0].all() | codes[1].all()
            return {"exponent": exponent[: config.exponent_width].as_signed(), "nan": nan}
        a, b = (parts_of(config.scale, code) for code in codes)
        exponent = a.exponent + b.exponent + config.unit
        size, negative = a.significand * b.significand, a.sign ^ b.sign
        significand = (size ^ negative.replicate(SCALE_WIDTH)) + negative
        return {
            "exponent": exponent[: config.exponent_width].as_signed(),
            "nan": a.nan | b.nan,
            "significand": significand[:SCALE_WIDTH].as_signed(),
        }

    def _late(self, m: Module, enable, where: str, stages: int, values: dict[str, Any]):
        """``values`` behind ``stages`` registers each."""
        for stage in range(stages):
            late = {}
            for name, value in values.items():
                x = Signal(value.shape(), name=f"x_{name}_{where}_{stage}", reset_less=True)
                with m.If(enable):
                    m.d.sync += x.eq(value)
                late[name] = x
            values = late
        return values
