# SPDX-License-Identifier: Apache-2.0
"""Shift, round and saturate in three registers."""

from amaranth.hdl import Cat, Const, Signal, signed

REGISTERS = 3


def requantised(m, name: str, enable, value, shift, low: int, bits: int):
    """Signed ``value * 2**-(low + shift)`` to nearest, ties upwards, saturated symmetrically.

    ``low`` is a constant of at least 1.  Registers: shifted by eights, by ones, rounded.
    """
    # A bit below keeps what the result is rounded by.
    source = value[low - 1 :].as_signed()
    width = max(len(source), bits + 2)
    coarse = Signal(signed(width), name=f"{name}_coarse", reset_less=True)
    fine = Signal(signed(width), name=f"{name}_fine")
    x_fine = Signal(min(3, len(shift)), name=f"{name}_by", reset_less=True)
    near = Signal(signed(bits), name=f"{name}_near", reset_less=True)
    up, beyond, negative = (
        Signal(name=f"{name}_{part}", reset_less=True) for part in ("up", "beyond", "negative")
    )
    total = Signal(bits, name=f"{name}_total")
    y = Signal(signed(bits), name=f"{name}_y", reset_less=True)
    limit = (1 << bits - 1) - 1
    m.d.comb += [fine.eq(coarse >> x_fine), total.eq(near + up)]
    with m.If(enable):
        m.d.sync += [
            coarse.eq(source >> Cat(Const(0, len(x_fine)), shift[len(x_fine) :])),
            x_fine.eq(shift[: len(x_fine)]),
            near.eq(fine[1 : bits + 1]),
            up.eq(fine[0]),
            beyond.eq(Cat(bit != fine[-1] for bit in fine[bits:-1]).any()),
            negative.eq(fine[-1]),
            y.eq(total),
        ]
        # The one total to saturate: the lowest, or one more than the highest, same bits.
        with m.If(beyond | (total == limit + 1)):
            m.d.sync += y.eq(Cat(*([~negative | 1] + [~negative] * (bits - 2)), negative))
    return y


def delay(m, name: str, value, cycles: int, *, enable=None, reset_less: bool = True):
    """``value`` as it was ``cycles`` cycles (with ``enable``) ago."""
    for cycle in range(1, cycles + 1):
        later = Signal.like(value, name=f"{name}_{cycle}", reset_less=reset_less)
        with m.If(Const(1, 1) if enable is None else enable):
            m.d.sync += later.eq(value)
        value = later
    return value
