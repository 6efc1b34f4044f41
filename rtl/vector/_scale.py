# SPDX-License-Identifier: Apache-2.0
"""A peak over a square root, as mantissa and shift, one bit a cycle."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config, param

MANTISSA = 16
"""Bits of a mantissa; the radicand has twice as many."""

SHIFT = 6
"""Bits of the unsigned shift."""

SCALE = data.StructLayout({"mantissa": unsigned(MANTISSA), "shift": unsigned(SHIFT)})
"""A number ``mantissa * 2**-shift``; the mantissa has its top bit set, or is 0."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(Config):
    peak_width: int = param(39, "bits of the unsigned peak", ge=1, le=61)
    square_width: int = param(57, "bits of the unsigned radicand", ge=1, le=61)

    @property
    def latency(self) -> int:
        """Edges from taking a peak to the transfer of its scale, if that is taken at once."""
        return 6 + MANTISSA + (MANTISSA + 1) + 2 + 1

    @property
    def interval(self) -> int:
        """Edges from taking a peak to taking the next one."""
        return self.latency + 1


class Scale(wiring.Component):
    """``peak / sqrt(square)``, rounded in three steps, each of which is exact.

    1. ``peak`` to 16 bits, to nearest, ties upwards.
    2. ``square``, shifted by an even amount to 31 or 32 bits, bits beyond dropped; the floor of its
       root, 16 bits.  A ``square`` of 0 counts as 1.
    3. ``(peak << 16) / root`` to the nearest integer (there are no ties), then to 16 bits, ties
       upwards.

    A ``peak`` of 0 gives mantissa 0, and the shift counts peak and quotient as having no bits.
    The shift is 0 or more where the true scale is at most ``2**15``, and always below 64.

    Shifting takes 6 cycles (by 32, 16, ... 1 as needed, both at once), the root 16, the quotient 17
    and rounding it 2.  One scale at a time.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: ScaleConfig):
        self.config = config
        given = data.StructLayout({
            "peak": unsigned(config.peak_width),
            "square": unsigned(config.square_width),
        })
        super().__init__({
            "i": In(stream.Signature(given)),
            "o": Out(stream.Signature(SCALE)),
        })

    def elaborate(self, platform):
        m = Module()
        wide = 2 * MANTISSA
        # One more bit below the mantissa than the peak has, so that there is one to round by.
        peak_width = max(self.config.peak_width, MANTISSA) + 1
        square_width = max(self.config.square_width + self.config.square_width % 2, wide)
        peak = Signal(peak_width, reset_less=True)
        square = Signal(square_width, reset_less=True)
        is_zero = Signal(reset_less=True)
        shift = Signal(SHIFT, reset_less=True)  # modulo 2**SHIFT while it is made
        count = Signal(range(MANTISSA + 1))
        root = Signal(MANTISSA, reset_less=True)
        rest = Signal(MANTISSA + 2, reset_less=True)
        ratio = Signal(MANTISSA + 1, reset_less=True)
        mantissa = Signal(MANTISSA, reset_less=True)
        m.d.comb += [self.o.p.mantissa.eq(mantissa), self.o.p.shift.eq(shift)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    peak.eq(self.i.p.peak << (peak_width - self.config.peak_width)),
                    square.eq(Mux(self.i.p.square == 0, 1, self.i.p.square)),
                    is_zero.eq(self.i.p.peak == 0),
                    # The shift of the mantissa over the root if neither is moved.
                    shift.eq(
                        Mux(self.i.p.peak == 0, 2 * MANTISSA, MANTISSA - self.config.peak_width)
                        + (MANTISSA + (square_width - wide) // 2)
                    ),
                    count.eq(5),
                ]
                with m.If(self.i.valid):
                    m.next = "ALIGN"
            with m.State("ALIGN"):
                self._align(m, count, peak, square, shift, is_zero)
                m.d.sync += count.eq(count - 1)
                with m.If(count == 0):
                    m.d.sync += [count.eq(MANTISSA - 1), root.eq(0), rest.eq(0)]
                    m.next = "ROOT"
            with m.State("ROOT"):
                trial, less = Signal(MANTISSA + 2), Signal(signed(MANTISSA + 3))
                m.d.comb += [
                    trial.eq(Cat(square[-2:], rest[:MANTISSA])),
                    less.eq(trial - Cat(Const(1, 2), root)),
                ]
                m.d.sync += [
                    rest.eq(Mux(less < 0, trial, less)),
                    root.eq(Cat(less >= 0, root)),
                    square.eq(square << 2),
                    count.eq(count - 1),
                ]
                with m.If(count == 0):
                    m.d.sync += [rest.eq(self._rounded(m, peak, shift)), count.eq(MANTISSA)]
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                taken = Signal(signed(MANTISSA + 2))
                m.d.comb += taken.eq(rest[: MANTISSA + 1] - root)
                m.d.sync += [
                    rest.eq(Cat(Const(0, 1), Mux(taken < 0, rest, taken)[: MANTISSA + 1])),
                    ratio.eq(Cat(taken >= 0, ratio)),
                    count.eq(count - 1),
                ]
                with m.If(count == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                # ``rest`` is the remainder doubled.  It never equals ``root``: twice the dividend
                # has more factors of two than 16 bits hold, so the quotient is no odd half.
                m.d.sync += ratio.eq(ratio + (rest > root))
                m.next = "NORMALISE"
            with m.State("NORMALISE"):
                with m.If(ratio[-1]):
                    m.d.sync += [mantissa.eq(ratio[1:] + ratio[0]), shift.eq(shift - 1)]
                with m.Else():
                    m.d.sync += mantissa.eq(ratio)
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        return m

    def _align(self, m, count, peak, square, shift, is_zero):
        """Shift peak and square left by ``2**count`` where that loses no bit, square if even."""
        moves = Signal(2)
        for power in range(6):
            amount = 1 << power
            with m.If(count == power):
                if amount < len(peak):
                    with m.If(~peak[-amount:].any() & ~is_zero):
                        m.d.comb += moves[0].eq(1)
                        m.d.sync += peak.eq(peak << amount)
                if power and amount < len(square):
                    with m.If(~square[-amount:].any()):
                        m.d.comb += moves[1].eq(1)
                        m.d.sync += square.eq(square << amount)
        up, down = Signal(6), Signal(5)
        m.d.comb += [
            up.eq(Mux(moves[0], Const(1, 6) << count, 0)),
            down.eq(Mux(moves[1], (Const(1, 6) << count)[1:], 0)),
        ]
        m.d.sync += shift.eq(shift + up - down)

    def _rounded(self, m, peak, shift):
        """The top bits of an aligned peak, ties upwards; a carry out moves ``shift``."""
        total = Signal(MANTISSA + 1, name="rounded")
        m.d.comb += total.eq(peak[-MANTISSA:] + peak[-MANTISSA - 1])
        with m.If(total[-1]):
            m.d.sync += shift.eq(shift - 1)
        return Mux(total[-1], 1 << (MANTISSA - 1), total)
