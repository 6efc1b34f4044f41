# SPDX-License-Identifier: Apache-2.0
"""Vectors of integers into int8 codes by their largest magnitude, rounded exactly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config, param
from ._quantiser import Quantiser, QuantiserConfig, codes_layout


@dataclass(frozen=True, kw_only=True)
class AbsmaxQuantiseConfig(Config):
    lanes: int = param(8, "elements per transfer", ge=1, le=256)
    max_len: int = param(192, "elements of the longest vector", ge=1, le=65536)
    x_width: int = param(24, "bits of a signed element", ge=2, le=62)
    code_width: int = param(8, "bits of a signed code", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 1, "max_len": 5, "x_width": 6, "code_width": 4},
        "wide": {"lanes": 32, "max_len": 2560, "x_width": 18},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "BitNet b1.58, arXiv 2402.17764",
        "VitaLLM, arXiv 2604.27396",
    )

    def faults(self) -> Iterator[str]:
        if self.max_len % self.lanes:
            yield f"max_len must be a multiple of lanes = {self.lanes}, not {self.max_len}"

    @property
    def quantiser(self) -> QuantiserConfig:
        """The two-pass core."""
        return QuantiserConfig(
            lanes=self.lanes,
            rows=self.max_len // self.lanes,
            width=self.x_width,
            code_width=self.code_width,
        )


class AbsmaxQuantise(wiring.Component):
    """Quantises vectors of integers by their largest magnitude, exactly rounded.

    ``amax = max |x|`` and ``code = round(top * x / amax)`` with ``top = 2**(code_width - 1) - 1``,
    rounded to nearest, ties to even, as if computed on rationals.  A vector of zeros gives codes 0
    and ``amax`` 0.  The code ``-top - 1`` does not occur; nothing overflows.

    Vectors have 1 to ``max_len // lanes`` transfers; at that length ``last`` is implied.  All
    elements of a transfer count: fill up with zeros.

    A vector's codes begin when all of it is in, and leave while the next comes in: throughput is
    one transfer per cycle for vectors of at least ``(log2(lanes) + 3) / 2`` transfers.  Latency:
    the scale is offered ``log2(lanes) + 2`` edges after the vector's last transfer was taken, the
    first codes ``code_width + 2`` edges later, 3 with a single lane.  ``scale_o`` must be taken:
    two vectors later the input waits for it.  Reset drops whatever is in flight.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``x``: signed.  ``first``: a vector starts here, an unfinished one is dropped.  ``last``.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``codes``: signed.  ``first``, ``last``.
    scale_o : :py:`Out(stream.Signature(StructLayout))`
        ``amax``: unsigned, ``x_width`` bits, one per vector; ``x`` is about ``code * amax / top``.

    Source: activation quantiser of BitNet b1.58; the rounding's ties from its CPU runtime.
    """

    i: stream.Interface
    o: stream.Interface
    scale_o: stream.Interface

    def __init__(self, config: AbsmaxQuantiseConfig):
        self.config = config
        given = data.StructLayout({
            "x": data.ArrayLayout(signed(config.x_width), config.lanes),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        scale = data.StructLayout({"amax": unsigned(config.x_width)})
        super().__init__({
            "i": In(stream.Signature(given)),
            "o": Out(stream.Signature(codes_layout(config.code_width, config.lanes))),
            "scale_o": Out(stream.Signature(scale)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantiser = core = Quantiser(self.config.quantiser)
        wiring.connect(m, wiring.flipped(self.o), core.o)
        m.d.comb += [
            core.valid.eq(self.i.valid),
            core.first.eq(self.i.p.first),
            core.last.eq(self.i.p.last),
            self.i.ready.eq(core.ready),
            self.scale_o.valid.eq(core.peak_o.valid),
            self.scale_o.p.amax.eq(core.peak_o.p.peak),
            core.peak_o.ready.eq(self.scale_o.ready),
        ]
        magnitudes, signs = Signal.like(core.magnitudes, reset_less=True), []
        for lane in range(self.config.lanes):
            x = self.i.p.x[lane]
            m.d.sync += magnitudes[lane].eq(Mux(x < 0, -x, x))
            signs.append(x < 0)
        x_signs = Signal(self.config.lanes, reset_less=True)
        m.d.sync += x_signs.eq(Cat(signs))
        m.d.comb += [core.magnitudes.eq(magnitudes), core.signs.eq(x_signs)]
        return m
