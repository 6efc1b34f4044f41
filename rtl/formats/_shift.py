# SPDX-License-Identifier: Apache-2.0
"""Shifters in logarithmic stages, each a multiplexer per bit."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value


def normalised(
    m: Module, name: str, value, most: int | None = None, fill: Any = 0
) -> tuple[Value, Value]:
    """``value`` shifted left until its highest bit is set, and by how much; ``fill`` comes in.

    Each stage tests as many of the highest bits as it shifts by, so there is no count of zeros
    beside the shifter.  ``most`` is the longest shift there may be, which is one less than the
    width for a value that is not 0.
    """
    width, count = len(value), []
    for stage in reversed(range((width - 1 if most is None else most).bit_length())):
        step = 1 << stage
        none, after = Signal(name=f"{name}_none_{step}"), Signal(width, name=f"{name}_{step}")
        moved = Cat(Value.cast(fill).replicate(step), value[: width - step])
        m.d.comb += [
            none.eq(~value[width - step :].any()),
            after.eq(Mux(none, moved, value)),
        ]
        value = after
        count.insert(0, none)
    return value, Cat(count)


def shifted_right(m: Module, name: str, value, amount, most: int, fill: Any = 0, sticky: Any = 0):
    """``value`` shifted right by ``amount``, which is at most ``most``; ``fill`` comes in.

    With it comes whether any bit that left was set, or ``sticky`` was.  The long shifts come first,
    for who uses only low bits.  The two longest are one stage of three inputs where they never
    come together.
    """
    width, stages = len(value), most.bit_length()
    joined = stages > 1 and most < 3 << stages - 2

    def moved(step: int) -> Value:
        return Cat(value[step:], Value.cast(fill).replicate(min(step, width)))

    lost = Signal(name=f"{name}_sticky_in")
    m.d.comb += lost.eq(sticky)
    for stage in reversed(range(stages - joined)):
        step, by = 1 << stage, amount[stage]
        after = Signal(width, name=f"{name}_{step}")
        gone = Signal(name=f"{name}_sticky_{step}")
        m.d.comb += [
            after.eq(Mux(by, moved(step), value)),
            gone.eq(lost | (by & value[:step].any())),
        ]
        if joined and stage == stages - 2:
            with m.If(amount[stages - 1]):
                m.d.comb += [
                    after.eq(moved(2 * step)),
                    gone.eq(lost | value[: 2 * step].any()),
                ]
        value, lost = after, gone
    return value, lost


def shifted_left(m: Module, name: str, value, amount, most: int):
    """``value``, signed or not, shifted left by ``amount``, which is at most ``most``; exact.

    The short shifts come first, for each stage makes the value as much longer as it shifts.
    """
    for stage in range(most.bit_length()):
        step, longest = 1 << stage, len(value) + most - ((1 << stage) - 1)
        shape = Shape(min(len(value) + step, longest), value.shape().signed)
        after = Signal(shape, name=f"{name}_{step}")
        m.d.comb += after.eq(Mux(amount[stage], value << step, value))
        value = after
    return value


def cut(value, width: int) -> tuple[Value, Value]:
    """The highest ``width`` bits of ``value``, with zeros below if it is shorter; any bit below."""
    spare = len(value) - width
    if spare <= 0:
        return Cat(Const(0, -spare), value), Const(0, 1)
    return value[spare:], value[:spare].any()


def late(m: Module, stage: int, enable, name: str, value, clear: Any = 0) -> Signal:
    """``value`` as a signal of its own, behind a register with ``stage``; 0 where ``clear``.

    A register does that by its reset, which costs no LUT.
    """
    x = Signal(value.shape(), name=f"x_{name}", reset_less=True)
    domain = m.d.sync if stage else m.d.comb
    with m.If(enable if stage else 1):
        domain += x.eq(value)
        with m.If(clear):
            domain += x.eq(0)
    return x
