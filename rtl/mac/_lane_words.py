# SPDX-License-Identifier: Apache-2.0
"""A word of 16 bits taken apart: 4 lanes of FP4 or posit(4,1), 2 of posit(8,0), 1 of posit(16,1).

All posits wider than 4 bits go through one decoder.  It negates and normalises 15 bits, and in
mode posit(8,0) is cut in two where bit 7 is: the carry of the negation and the bits that a shift
would bring over are stopped.
"""

from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from .._add_mask import AddMask, AddMaskConfig
from .._once import place
from ._modes import Modes

BIASED_8 = 1
"""What is added to the scale of a posit(8,0), so that two of them count from the lowest bit."""


class Word(NamedTuple):
    """``significands``: 14 bits, of mode posit(16,1) the low 13; of posit(8,0) lane 0 the low 6 and
    lane 1 the high 6; of FP4 two bits of every four; 0 in mode posit(4,1).

    ``scales`` of the four adders of scales, ``signs`` of the four nibbles, ``set`` (posit(4,1)):
    nibbles that are neither 0 nor NaR; ``nars`` of the lanes.
    """

    significands: Any
    scales: list[Any]
    signs: list[Any]
    set_: list[Any]
    nars: list[Any]


def taken_apart(m: Module, platform: Any, name: str, word: Any, modes: Modes, gate: bool) -> Word:
    """Decodes ``word``; with ``gate`` the decoder of wide posits gets zeros in the other modes."""
    f4, p4, p8, p16 = (modes.is_(f) for f in ("fp4", "posit4_1", "posit8_0", "posit16_1"))
    wide = modes.any_of("posit8_0", "posit16_1")
    narrow = modes.any_of("fp4", "posit4_1")

    def named(value: Any, what: str, width: int | None = None) -> Signal:
        signal = Signal(len(value) if width is None else width, name=f"{name}_{what}")
        m.d.comb += signal.eq(value)
        return signal

    above = named(word[8:15].any(), "set_above")
    below = named(word[0:7].any(), "set_below")
    some = named(above | below | word[7], "set_16")
    x = _magnitudes(m, platform, name, word, modes, wide if gate else Const(1, 1))
    first_high, first_low = x[14], x[6]
    z, count_high, count_low = _normalised(m, name, x, modes)

    # Significands: what stands there of a wide posit, hidden ones, and those of FP4.
    # In mode FP4 the other bits must be 0; in mode posit(4,1) nothing of them is looked at.
    open_ = Const(1, 1) if gate or not _any(modes, "fp4") else wide
    bits: list[Any] = [z[j] & open_ if j != 5 else z[5] & p16 for j in range(12)]
    bits[5] |= p8 & below
    for j in (6, 7):
        bits[j] = z[j] & p16
    bits += [p16 & some | p8 & z[12], p8 & above]
    four = f4 if gate else narrow
    for lane in range(4):
        nibble = word.word_select(lane, 4)
        bits[4 * lane] |= four & nibble[0]
        bits[4 * lane + 1] |= four & nibble[1:3].any()
    significands = named(Cat(bits), "significands", 14)

    # Scales
    scale_16 = Cat(z[12], Cat(count_high) ^ (~first_high).replicate(4), ~first_high)
    small = []
    for first, count in ((first_low, count_low), (first_high, count_high)):
        magnitude = Cat(count[:3], Const(0, 1))
        biased = Mux(first, magnitude + BIASED_8, BIASED_8 + ~magnitude)
        small.append(named(biased, f"scale_8_{len(small)}", 4))
    scales: list[Any] = []
    set_, nars = [], []
    for lane in range(4):
        nibble = word.word_select(lane, 4)
        size = named(Mux(nibble[3], -nibble[:3], nibble[:3]), f"size_{lane}", 3)
        # Scales, counted from the lowest: of posit(4,1) 1 to 7 have 0, 2, 3, 4, 5, 6, 8; of FP4
        # exponents 0 to 3 have 0, 0, 1, 2.
        posit = Mux(size == 7, 8, Mux(size == 1, 0, size))
        fp4 = Cat(nibble[2] & ~nibble[1], nibble[2] & nibble[1], Const(0, 2))
        scale = Mux(p4, posit[:4], fp4) if _any(modes, "posit4_1") else fp4
        set_.append(named(nibble[:3].any() & p4, f"set_{lane}"))
        nars.append(nibble[3] & ~nibble[:3].any() & p4)
        if lane == 0:
            scale = Mux(p8, Cat(small[0], small[0][3]), Cat(scale, Const(0, 1)))
        elif lane == 3:
            high = Cat(small[1], small[1][3].replicate(2))
            scale = Mux(p16, scale_16, Mux(p8, high, Cat(scale, Const(0, 2))))
        else:
            scale = Cat(scale, Const(0, 1))
        scales.append(named(scale, f"scale_{lane}"))
    nars[0] |= p16 & word[15] & ~some | p8 & word[7] & ~below
    nars[1] |= p8 & word[15] & ~above
    return Word(
        significands,
        scales,
        [word[4 * lane + 3] for lane in range(4)],
        set_,
        [named(nar, f"nar_{lane}") for lane, nar in enumerate(nars)],
    )


def _any(modes: Modes, *formats: str) -> bool:
    return any(f in modes.formats for f in formats)


def _magnitudes(m: Module, platform: Any, name: str, word: Any, modes: Modes, enable: Any) -> Any:
    """The 15 bits below the sign, those of each lane negated if it is negative.

    One carry chain; between the lanes it hands the carry on or begins anew.
    """
    p8, p16 = modes.is_("posit8_0"), modes.is_("posit16_1")
    if not _any(modes, "posit8_0", "posit16_1"):
        return Const(0, 15)
    high, low = Signal(name=f"{name}_minus_high"), Signal(name=f"{name}_minus_low")
    m.d.comb += [
        high.eq(word[15] & enable),
        low.eq(Mux(p16, word[15], word[7]) & enable),
    ]

    def negated(part: str, a: Any, b: Any, invert: Any, carry: Any, middle: Any = None) -> Any:
        on = [enable] * len(b)
        if middle is not None:
            on[7] = middle
        return place(
            m,
            platform,
            f"{name}_{part}",
            AddMask(AddMaskConfig(width=len(b))),
            a=a,
            b=b,
            enable=Cat(on),
            invert=invert,
            carry=carry,
        ).y

    if not _any(modes, "posit8_0"):
        return negated("minus", Const(0, 15), word[:15], high.replicate(15), high)
    if not _any(modes, "posit16_1"):
        parts = [(f"minus_{n}", word[8 * n : 8 * n + 7], s) for n, s in enumerate((low, high))]
        x = [negated(part, Const(0, 7), b, s.replicate(7), s) for part, b, s in parts]
        return Cat(x[0], Const(0, 1), x[1])
    # Bit 7 is a sign in mode posit(8,0) and not looked at, so its position is where the chain ends.
    return negated(
        "minus",
        Cat(Const(0, 7), p8 & high, Const(0, 7)),
        word[:15],
        Cat(low.replicate(7), high.replicate(8)),
        low,
        middle=enable & p16,
    )


def _normalised(m: Module, name: str, x: Any, modes: Modes) -> tuple[Any, list[Any], list[Any]]:
    """Shifts out the bits by which a regime is longer than one; the shifts, lowest bit first.

    Afterwards the regime's last bit and its end are bits 14 and 13, in mode posit(8,0) of the low
    lane 6 and 5.
    """
    p16 = modes.is_("posit16_1")
    if not _any(modes, "posit8_0", "posit16_1"):
        return Const(0, 15), [Const(0, 1)] * 4, [Const(0, 1)] * 3
    high: list[Any] = []
    low: list[Any] = []
    for by in (8, 4, 2, 1):
        top, bottom = Signal(name=f"{name}_by_{by}_high"), Signal(name=f"{name}_by_{by}_low")
        m.d.comb += top.eq(_equal(x[14 - by : 15]) & (p16 if by == 8 else 1))
        if by < 8:
            m.d.comb += bottom.eq(_equal(x[6 - by : 7]))
            low.insert(0, bottom)
        high.insert(0, top)
        if by == 8 and not _any(modes, "posit16_1"):
            continue
        below = top if by == 8 else Mux(p16, top, bottom)
        bits = []
        for j in range(15):
            over = x[j - by] if j >= by else Const(0, 1)
            if j >= 8 > j - by and by < 8:
                over = over & p16
            bits.append(Mux(top if j >= 8 else below, over, x[j]))
        z = Signal(15, name=f"{name}_after_{by}")
        m.d.comb += z.eq(Cat(bits))
        x = z
    return x, high, low


def _equal(bits: Any) -> Any:
    return bits.all() | ~bits.any()
