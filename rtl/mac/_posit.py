# SPDX-License-Identifier: Apache-2.0
"""Posits without exponent bits as the fixed-point numbers that half of them are.

A posit of ``n`` bits with ``es = 0`` and a magnitude of at most 1 is the two's complement number
``code * 2**-(n - 2)``.  Above 1 the regime is a run of 1 to ``n - 1`` bits unlike the sign, and
every bit of it but the first costs two places.  So a code needs neither absolute value nor
leading-zero count nor shifter to become a significand and a shift, and a sum no normalisation to
become a code.
"""

from functools import reduce
from itertools import accumulate
from operator import and_, or_, xor
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed

from .._add_select import AddSelect, AddSelectConfig, select
from .._once import place
from ..formats._shift import late, shifted_right


class Linear(NamedTuple):
    """``significand << odd + 2 * rank``, in steps of the smallest posit; signed."""

    nar: Signal
    significand: Signal
    odd: Signal
    rank: Any


def linear(m: Module, name: str, code) -> Linear:
    """What a posit without exponent bits means.

    ``run[i]``: all bits from bit ``i + 1`` up are unlike the sign.  Such a bit belongs to the
    regime, and is taken off by XOR; so the regime's end becomes the leading bit.
    """
    bits, sign = len(code), code[-1]
    nar, odd = Signal(name=f"{name}_nar"), Signal(name=f"{name}_odd")
    significand = Signal(signed(bits - 1), name=f"{name}_significand")
    run = Signal(bits - 2, name=f"{name}_run")
    unlike = code[1:-1] ^ sign.replicate(bits - 2)
    m.d.comb += [
        run.eq(Cat(*reversed(list(accumulate(reversed(unlike), and_))))),
        odd.eq(run[-1]),
        nar.eq(sign & run[0] & ~code[0]),
        significand.eq(Cat(code[:-2] ^ run, sign)),
    ]
    with m.If(run[0] & code[0] & ~sign):  # the largest: no end to its regime
        m.d.comb += significand[1].eq(1)
    return Linear(nar, significand, odd, _rank(run[:-1]))


def _rank(run) -> Any:
    """How many bits of ``run`` are set, which are its highest ones, as a number."""
    at_least = [run[at] for at in reversed(range(len(run)))]
    return Cat(
        reduce(xor, at_least[(1 << bit) - 1 :: 1 << bit])
        for bit in range(len(at_least).bit_length())
    )


def linear_code(m: Module, bits: int, acc, nar, stage: int, enable) -> Any:
    """The posit without exponent bits nearest to ``acc``, counted in squares of the smallest.

    The inverse of :func:`linear`: bits at 1 and above that are unlike the sign give the run, the
    sum is shifted right by what the run costs, and the run is put into the bits by XOR.  With
    ``stage`` there is a register in front of the shifter, and always one behind.
    """
    unit, sign = bits - 2, acc[-1]  # of a posit's step, in bits of acc
    unlike = acc[:-1] ^ sign.replicate(len(acc) - 1)
    beyond, tiny, run = Signal(), Signal(), Signal(unit)
    m.d.comb += [
        beyond.eq(unlike[3 * unit :].any()),
        run.eq(Cat(accumulate(reversed(unlike[2 * unit : 3 * unit]), or_))),
        tiny.eq(~(beyond | unlike[unit : 3 * unit].any())),
    ]

    def x(name: str, value) -> Signal:
        return late(m, stage, enable, name, value)

    # Beyond the largest the run is full, and what is left of the sum is put at nothing: the code is
    # the largest.
    x_kept = late(m, stage, enable, "kept", acc[unit - 1 : 3 * unit], clear=beyond)
    x_sign, x_tiny, x_nar = x("sign", sign), x("tiny", tiny), x("nar", nar)
    full = run | beyond.replicate(unit)
    x_run, x_rank = x("run", full), x("rank", _rank(full[:-1]))
    below = x("below", acc[: unit - 1].any())
    window, amount = Cat(x_kept, x_sign), Cat(x_run[-1], x_rank)
    shifted, lost = shifted_right(m, "round", window, amount, 2 * unit - 1, x_sign, below)
    code, up, guard = Signal(bits), Signal(), shifted[0]
    m.d.comb += [
        code.eq(Cat(shifted[1 : bits - 1] ^ x_run, x_run[-1] ^ x_sign, x_sign)),
        # What is not 0 becomes no 0: up from 0, and not up from the one below.
        up.eq(Mux(x_tiny, ~code[0] & (guard | lost), guard & (code[0] | lost))),
    ]
    y = Signal(bits, reset_less=True)
    with m.If(enable):
        m.d.sync += y.eq(code + up)
        with m.If(x_nar):
            m.d.sync += y.eq(1 << bits - 1)
    return y


def product(m: Module, platform: Any, enable, a, b, rows: int, lowest=None) -> Any:
    """``a * b``, exact: a row for each bit of ``b``, added or not inside a carry chain.

    Both are signed, or both not.  Behind every ``rows`` rows but the last ones is a register; 0 for
    none.  ``lowest`` is the row of bit 0, if that is there already.
    """
    is_signed, width, first = b.shape().signed, len(a) + len(b), b[0]
    if not is_signed:
        a = Cat(a, Const(0, 1)).as_signed()
    above, low = select(a, first, Const(0, 1)) if lowest is None else lowest, Cat()
    b = b[1:].as_unsigned()
    for row in range(1, len(b) + 1):
        if rows and row % rows == 0:
            parts = {"above": above, "a": a, "b": b, "low": low}
            above, a, b, low = (
                late(m, 1, enable, f"{name}_{row}", part) for name, part in parts.items()
            )
        top = is_signed and len(b) == 1
        add = place(
            m,
            platform,
            f"row_{row}",
            AddSelect(AddSelectConfig(width=len(a))),
            a=above[1:].as_signed(),
            b=a,
            enable=b[0],
            invert=int(top),
            carry=b[0] if top else 0,
        )
        low, above, b = Cat(low, above[0]), add.y, b[1:]
    whole = Cat(low, above)[:width]
    return whole.as_signed() if is_signed else whole
