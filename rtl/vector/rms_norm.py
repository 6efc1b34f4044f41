# SPDX-License-Identifier: Apache-2.0
"""RMS norm and quantiser in one: the norm cancels in the codes and appears in the scale."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..config import Config, param
from ._quantiser import Quantiser, QuantiserConfig, codes_layout, delayed, registered_tree
from ._scale import SCALE, Scale, ScaleConfig

FACTOR = 18
"""Bits of a signed factor that one multiplier of an FPGA takes."""


@dataclass(frozen=True, kw_only=True)
class RmsNormConfig(Config):
    lanes: int = param(8, "elements per transfer", ge=1, le=256)
    max_len: int = param(192, "elements of the longest vector", ge=1, le=65536)
    x_width: int = param(24, "bits of a signed element", ge=2, le=30)
    gain_width: int = param(16, "bits of a signed gain", ge=2, le=16)
    product_width: int = param(0, "bits that products are rounded to; 0 keeps all", ge=0, le=45)
    eps_width: int = param(56, "bits of the term added to the sum of squares", ge=1, le=60)
    code_width: int = param(8, "bits of a signed code", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "lanes": 2,
            "max_len": 6,
            "x_width": 5,
            "gain_width": 3,
            "eps_width": 4,
            "code_width": 4,
        },
        "bitnet_2b": {"max_len": 2560, "lanes": 16},
        "engine": {"max_len": 384, "x_width": 18, "product_width": 18, "eps_width": 32},
    }
    papers: ClassVar[tuple[str, ...]] = ("BitNet b1.58, arXiv 2402.17764",)

    def faults(self) -> Iterator[str]:
        if self.max_len % self.lanes:
            yield f"max_len must be a multiple of lanes = {self.lanes}, not {self.max_len}"
        if self.square_width > 61:
            yield (
                f"the sum of max_len = {self.max_len} squares of {self.x_width} bits must fit 61,"
                f" not {self.square_width} bits"
            )
        if self.product_width and not 2 <= self.product_width <= self.exact_width:
            yield (
                f"product_width must be 0 or in 2..{self.exact_width}, as wide as x * gain,"
                f" not {self.product_width}"
            )

    @property
    def exact_width(self) -> int:
        """Bits of a product of element and gain."""
        return self.x_width + self.gain_width - 1

    @property
    def drop(self) -> int:
        """Bits that a product loses when it is rounded."""
        return self.exact_width - (self.product_width or self.exact_width)

    @property
    def halves(self) -> bool:
        """Whether elements are too wide for one multiplier and are multiplied in halves."""
        return self.x_width > FACTOR

    @property
    def square_width(self) -> int:
        """Bits of the largest sum of squares and ``eps``."""
        squares = self.max_len << 2 * (self.x_width - 1)
        return (squares + (1 << self.eps_width) - 1).bit_length()

    @property
    def quantiser(self) -> QuantiserConfig:
        """The two-pass core; magnitudes are those of the products with the gains."""
        return QuantiserConfig(
            lanes=self.lanes,
            rows=self.max_len // self.lanes,
            width=self.exact_width - self.drop,
            code_width=self.code_width,
            front=4 + self.halves,
            tag_width=self.square_width,
        )

    @property
    def scale(self) -> ScaleConfig:
        """The unit that makes the scale."""
        return ScaleConfig(peak_width=self.quantiser.width, square_width=self.square_width)

    @property
    def scale_latency(self) -> int:
        """Edges from taking a vector's last transfer to the transfer of its scale."""
        return self.quantiser.commit + 1 + self.scale.latency


class RmsNorm(wiring.Component):
    """Normalises vectors of integers, applies gains and quantises, exactly rounded.

    With ``y = x * gain / 2**drop``, to nearest, ties upwards, and ``peak = max |y|``:
    ``code = round(top * y / peak)``, ``top = 2**(code_width - 1) - 1``, to nearest, ties to even,
    as if computed on rationals; a peak of 0 gives codes 0.  ``drop`` is 0, and ``y`` exact, without
    ``product_width``; otherwise ``y`` is of that many bits.  The norm cancels in the codes.  It is
    in the scale, ``peak / sqrt(sum(x**2) + eps)`` as ``mantissa * 2**-shift``: 16 bits with the top
    one set, or 0 where the peak is 0.  It is rounded in three steps, see ``Scale``; its relative
    error is below 2**-14.  The value of code ``c`` is ``c * scale`` times ``sqrt(length) / top``
    and the unit of ``y``, constants of the layer that are left to whoever takes the codes; ``eps``
    is the norm's epsilon times the length in units of ``x**2``.

    A vector whose opening transfer has ``plain`` set is quantised without a norm: its squares do
    not count, so its scale is ``peak / sqrt(eps)``.  A scale above ``2**15``, which only such a
    vector can have, has a shift below 0, given modulo 64.

    Vectors have 1 to ``max_len // lanes`` transfers; at that length ``last`` is implied.  All
    elements of a transfer count: fill up with zeros.

    Gains: a vector whose opening transfer has ``load`` set waits until one set of gains was taken
    from ``gain_i``, which then holds until the next such vector.  The first vector after reset
    always does so.  A set ends at ``last``, or at ``max_len // lanes`` transfers; ``first`` starts
    it anew.  Elements beyond the set have gain 0.

    Throughput is one transfer per cycle for vectors of at least 26 transfers; shorter ones are held
    up by the scale, of which one comes every ``config.scale.interval`` cycles, 24 to 26.  Latency:
    the first codes are offered ``code_width + log2(lanes) + 8`` edges after the vector's last
    transfer was taken, ``code_width + log2(lanes) + 7`` if ``x_width`` is at most 18 (one more with
    a single lane); the scale ``config.scale_latency`` edges, 32 in preset ``engine``.
    Both streams must be taken: two vectors later the input waits for them.
    Reset drops whatever is in flight, and the gains.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``x``: signed.  ``eps``: unsigned.  ``first``: a vector starts here, an unfinished one is
        dropped.  ``last``.  ``load``, ``plain``: heeded, as ``eps``, in the transfer that opens a
        vector.
    gain_i : :py:`In(stream.Signature(StructLayout))`
        ``gains``: signed.  ``first``, ``last``.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``codes``: signed.  ``first``, ``last``.
    scale_o : :py:`Out(stream.Signature(StructLayout))`
        ``mantissa``, ``shift``: unsigned.  One per vector.

    Source: RMSNorm and activation quantiser of BitNet b1.58; fusing them is an identity over the
    reals that open FPGA designs use.
    """

    i: stream.Interface
    gain_i: stream.Interface
    o: stream.Interface
    scale_o: stream.Interface

    def __init__(self, config: RmsNormConfig):
        self.config = config
        given = data.StructLayout({
            "x": data.ArrayLayout(signed(config.x_width), config.lanes),
            "eps": unsigned(config.eps_width),
            "first": unsigned(1),
            "last": unsigned(1),
            "load": unsigned(1),
            "plain": unsigned(1),
        })
        gains = data.StructLayout({
            "gains": data.ArrayLayout(signed(config.gain_width), config.lanes),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(given)),
            "gain_i": In(stream.Signature(gains)),
            "o": Out(stream.Signature(codes_layout(config.code_width, config.lanes))),
            "scale_o": Out(stream.Signature(SCALE)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantiser = core = Quantiser(self.config.quantiser)
        m.submodules.scale = scale = Scale(self.config.scale)
        wiring.connect(m, wiring.flipped(self.o), core.o)
        wiring.connect(m, wiring.flipped(self.scale_o), scale.o)
        m.d.comb += [
            scale.i.valid.eq(core.peak_o.valid),
            scale.i.p.peak.eq(core.peak_o.p.peak),
            scale.i.p.square.eq(core.peak_o.p.tag),
            core.peak_o.ready.eq(scale.i.ready),
            core.first.eq(self.i.p.first),
            core.last.eq(self.i.p.last),
        ]
        blocked, gains = self._gains(m, core)
        m.d.comb += [
            core.valid.eq(self.i.valid & ~blocked),
            self.i.ready.eq(core.ready & ~blocked),
        ]
        self._products(m, core, gains)
        self._squares(m, core)
        return m

    def _gains(self, m, core):
        """Whether the input waits for gains, and the gains of the row taken a cycle ago."""
        config = self.config
        rows = config.quantiser.rows
        m.submodules.memory = memory = Memory(
            shape=data.ArrayLayout(signed(config.gain_width), config.lanes), depth=rows, init=[]
        )
        row_in, row_out = memory.write_port(), memory.read_port()
        loaded, fetched, blocked = Signal(), Signal(), Signal()
        at, place, length = Signal(range(rows)), Signal(range(rows)), Signal(range(rows))
        end = self.gain_i.p.last | (place == rows - 1)
        m.d.comb += [
            blocked.eq(core.opens & (self.i.p.load | ~loaded) & ~fetched),
            self.gain_i.ready.eq(self.i.valid & blocked),
            place.eq(Mux(self.gain_i.p.first, 0, at)),
            row_in.en.eq(self.gain_i.valid & self.gain_i.ready),
            row_in.addr.eq(place),
            row_in.data.eq(self.gain_i.p.gains),
            row_out.addr.eq(core.row),
        ]
        with m.If(row_in.en):
            m.d.sync += at.eq(place + 1)
            with m.If(end):
                m.d.sync += [at.eq(0), length.eq(place), loaded.eq(1), fetched.eq(1)]
        with m.If(core.take):
            m.d.sync += fetched.eq(0)

        beyond = Signal(reset_less=True)
        m.d.sync += beyond.eq(core.row > length)
        return blocked, [
            Mux(beyond, 0, row_out.data[lane]).as_signed() for lane in range(config.lanes)
        ]

    def _products(self, m, core, gains):
        """Registers: element, again beside its gain, product (with its halves' before), magnitude.

        Factors and products of the multipliers are registers.
        """
        config = self.config
        x_in = Signal.like(self.i.p.x, name="x_in", reset_less=True)
        self.x = Signal.like(self.i.p.x, name="x", reset_less=True)
        m.d.sync += [x_in.eq(self.i.p.x), self.x.eq(x_in)]
        magnitudes, signs = Signal.like(core.magnitudes, reset_less=True), []
        for lane, fetched in enumerate(gains):
            gain = registered(m, fetched, f"gain_{lane}")
            if config.halves:
                high, low = self._halves(lane)
                parts = [
                    registered(m, high * gain, f"high_gain_{lane}"),
                    registered(m, low * gain, f"low_gain_{lane}"),
                ]
                exact = (parts[0] << len(low)) + parts[1]
            else:
                exact = self.x[lane] * gain
            product = Signal(
                signed(config.x_width + config.gain_width),
                name=f"product_{lane}",
                reset_less=True,
            )
            m.d.sync += product.eq(exact)
            # Rounding half up commutes with this: minus a number is one more than its complement,
            # and that one is what rounding the complement half up makes of it.
            sign = product[-1]
            folded = product ^ sign.replicate(len(product))
            up = folded[config.drop - 1] if config.drop else sign
            m.d.sync += magnitudes[lane].eq(folded[config.drop :] + up)
            signs.append(sign)
        x_signs = Signal(config.lanes, reset_less=True)
        m.d.sync += x_signs.eq(Cat(signs))
        m.d.comb += [core.magnitudes.eq(magnitudes), core.signs.eq(x_signs)]

    def _halves(self, lane):
        """High (signed) and low (unsigned) half of an element: each fits one multiplier."""
        x, low = self.x[lane], self.config.x_width // 2
        return x[low:].as_signed(), x[:low]

    def _squares(self, m, core):
        """Sum of the squares of a vector, and its ``eps``, into the tag in time for the peak."""
        config = self.config
        held, now = Signal(), Signal()
        m.d.comb += now.eq(Mux(core.opens, self.i.p.plain, held))
        with m.If(core.take):
            m.d.sync += held.eq(now)
        plain = delayed(m, now, 2 + config.halves, "plain")
        squares = []
        for lane in range(config.lanes):
            square = Signal(2 * config.x_width - 1, name=f"square_{lane}", reset_less=True)
            if config.halves:
                high, low = self._halves(lane)
                parts = [
                    registered(m, high * high, f"high_high_{lane}"),
                    registered(m, high * low, f"high_low_{lane}"),
                    registered(m, low * low, f"low_low_{lane}"),
                ]
                outer = Cat(parts[2], parts[0][: 2 * len(high)])  # they do not overlap
                exact = outer + (parts[1] << (len(low) + 1))
            else:
                exact = self.x[lane] * self.x[lane]
            m.d.sync += square.eq(Mux(plain, 0, exact))
            squares.append(square)
        row = registered_tree(m, operator.add, squares, "squares")
        cycles = config.quantiser.commit - 1
        flags = delayed(m, Cat(core.take, core.opens), cycles, "adds")
        eps = delayed(m, self.i.p.eps, cycles, "eps", reset_less=True)
        total = Signal(config.square_width, reset_less=True)
        with m.If(flags[0]):
            m.d.sync += total.eq(Mux(flags[1], eps, total) + row)
        m.d.comb += core.tag.eq(total)


def registered(m, value, name):
    """``value`` as it was a cycle ago."""
    held = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += held.eq(value)
    return held
