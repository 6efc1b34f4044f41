# SPDX-License-Identifier: Apache-2.0
"""A peak over a square root, as mantissa and shift, two bits a cycle."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

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
    def peak_bits(self) -> int:
        """Bits of the aligned peak: one below the mantissa at least, to round by."""
        return max(self.peak_width, MANTISSA) + 1

    @property
    def square_bits(self) -> int:
        """Bits of the aligned radicand: an even number, twice the mantissa's at least."""
        return max(self.square_width + self.square_width % 2, 2 * MANTISSA)

    @property
    def powers(self) -> int:
        """Shifts that align the two: the peak by 1, 2, 4 ..., the radicand by twice as much."""
        return max(bits_for(self.peak_width - 1), bits_for(self.square_bits // 2 - 1))

    @property
    def latency(self) -> int:
        """Edges from taking a peak to the transfer of its scale, if that is taken at once."""
        return self.powers + MANTISSA // 2 + (MANTISSA + 2) // 2 + 1 + 1

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
    The shift is 0 or more where the true scale is at most ``2**15``, and always below 64; where it
    is below 0 it is given modulo 64.

    Shifting takes 5 cycles, or 6 for wide numbers (by 16, 8, ... 1 as needed, both at once), the
    root 8, the quotient 9, rounding it 1.  One scale at a time.
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
        peak = Signal(self.config.peak_bits, reset_less=True)
        square = Signal(self.config.square_bits, reset_less=True)
        is_zero = Signal(reset_less=True)
        shift = Signal(SHIFT, reset_less=True)  # modulo 2**SHIFT while it is made
        count = Signal(range(MANTISSA))
        root = Signal(MANTISSA, reset_less=True)
        rest = Signal(MANTISSA + 2, reset_less=True)
        ratio = Signal(MANTISSA + 2, reset_less=True)  # the lowest bit is there to round by
        mantissa = Signal(MANTISSA, reset_less=True)
        m.d.comb += [self.o.p.mantissa.eq(mantissa), self.o.p.shift.eq(shift)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    peak.eq(self.i.p.peak << (len(peak) - self.config.peak_width)),
                    square.eq(Mux(self.i.p.square == 0, 1, self.i.p.square)),
                    is_zero.eq(self.i.p.peak == 0),
                    # The shift of the mantissa over the root if neither is moved.
                    shift.eq(
                        Mux(self.i.p.peak == 0, 2 * MANTISSA, MANTISSA - self.config.peak_width)
                        + (len(square) // 2)
                    ),
                    count.eq(self.config.powers - 1),
                ]
                with m.If(self.i.valid):
                    m.next = "ALIGN"
            with m.State("ALIGN"):
                self._align(m, count, peak, square, shift, is_zero)
                m.d.sync += count.eq(count - 1)
                with m.If(count == 0):
                    m.d.sync += [count.eq(MANTISSA // 2 - 1), root.eq(0), rest.eq(0)]
                    m.next = "ROOT"
            with m.State("ROOT"):
                new_root, new_rest = root, rest
                for bit in range(2):
                    trial = Cat(square[len(square) - 2 * bit - 2 :][:2], new_rest[:MANTISSA])
                    less = trial - Cat(Const(1, 2), new_root)
                    new_rest, fits = self._unless_below(m, less, trial, f"root_{bit}")
                    new_root = Cat(fits, new_root)
                m.d.sync += [
                    rest.eq(new_rest),
                    root.eq(new_root),
                    square.eq(square << 4),
                    count.eq(count - 1),
                ]
                with m.If(count == 0):
                    m.d.sync += [
                        rest.eq(self._rounded(m, peak, shift)),
                        count.eq(MANTISSA // 2),
                    ]
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                new_rest, new_ratio = rest, ratio
                for bit in range(2):
                    left, fits = self._unless_below(m, new_rest - root, new_rest, f"ratio_{bit}")
                    new_rest = Cat(Const(0, 1), left[: MANTISSA + 1])
                    new_ratio = Cat(fits, new_ratio)
                m.d.sync += [rest.eq(new_rest), ratio.eq(new_ratio), count.eq(count - 1)]
                with m.If(count == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                # The quotient is no odd half: twice the dividend has more factors of two than 16
                # bits hold.  So the next digit rounds it.
                whole = Signal(MANTISSA + 1)
                m.d.comb += whole.eq(ratio[1:] + ratio[0])
                m.d.sync += mantissa.eq(Mux(whole[-1], whole[1:] + whole[0], whole))
                with m.If(whole[-1]):
                    m.d.sync += shift.eq(shift - 1)
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        return m

    def _align(self, m, count, peak, square, shift, is_zero):
        """Shift peak left by ``2**count`` and square by twice as much where that loses no bit."""
        moves, step = Signal(2), Signal(SHIFT)
        for power in range(self.config.powers):
            amount = 1 << power
            with m.If(count == power):
                m.d.comb += step.eq(amount)
                if amount < len(peak):
                    with m.If(~peak[-amount:].any() & ~is_zero):
                        m.d.comb += moves[0].eq(1)
                        m.d.sync += peak.eq(peak << amount)
                if 2 * amount < len(square):
                    with m.If(~square[-2 * amount :].any()):
                        m.d.comb += moves[1].eq(1)
                        m.d.sync += square.eq(square << 2 * amount)
        # Up for the peak, down for half of the square's: nothing where both move.
        with m.If(moves[0] & ~moves[1]):
            m.d.sync += shift.eq(shift + step)
        with m.Elif(moves[1] & ~moves[0]):
            m.d.sync += shift.eq(shift - step)

    def _unless_below(self, m, less, otherwise, name):
        """``less`` unless it is negative, and whether it is not."""
        held = Signal(signed(MANTISSA + 3), name=f"{name}_less")
        chosen = Signal(MANTISSA + 2, name=f"{name}_rest")
        m.d.comb += [held.eq(less), chosen.eq(Mux(held < 0, otherwise, held))]
        return chosen, held >= 0

    def _rounded(self, m, peak, shift):
        """The top bits of an aligned peak, ties upwards; a carry out moves ``shift``."""
        total = Signal(MANTISSA + 1, name="rounded")
        m.d.comb += total.eq(peak[-MANTISSA:] + peak[-MANTISSA - 1])
        with m.If(total[-1]):
            m.d.sync += shift.eq(shift - 1)
        return Mux(total[-1], 1 << (MANTISSA - 1), total)
