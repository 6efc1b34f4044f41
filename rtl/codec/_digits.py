# SPDX-License-Identifier: Apache-2.0
"""Combinational decoders of packed trits: from a byte to 2-bit two's complement codes."""

from amaranth.hdl import Cat, Const, Module, Signal, Value

TQ1_ZEROS = 128
"""The TQ1_0 byte of five zero trits; its digit chain returns to itself."""

TQ1_HOLES = (1, 20, 40, 60, 79, 99, 119, 138, 158, 178, 197, 217, 237)
"""Bytes that ``ceil(256 * Q / 243)`` never gives."""


def at_least(value: Value, bound: int) -> Value:
    """``value >= bound`` as plain logic: for small constants half the size of a carry chain."""
    result: Value = Const(1, 1)
    for bit in range(len(value)):
        result = value[bit] & result if bound >> bit & 1 else value[bit] | result
    return result


def from_twos(code: Value) -> tuple[Value, Value]:
    """Trit and fault flag of a two's complement code: 2 is no trit and becomes 0."""
    bad = code[1] & ~code[0]
    return Cat(code[0], code[1] & code[0]), bad


def from_offset(code: Value) -> tuple[Value, Value]:
    """Trit and fault flag of a code that is trit + 1: 3 is no trit and becomes 0."""
    return Cat(~code[0], ~code[0] & ~code[1]), code[1] & code[0]


def base3_ninths(byte: Value) -> tuple[Value, Value]:
    """``t0 + 3 t1 + ... + 81 t4``, at most 242, over 9 and the rest, for :func:`ninths_trits`."""
    product = (byte << 6) - (byte << 3) + byte  # 57 * byte; 57 / 512 is near enough to 1 / 9
    over = product[9:14]
    return over, (byte - over - (over << 3))[:4]


def ninths_trits(m: Module, over: Value, rest: Value, name: str) -> Value:
    """The five trits, first one lowest, by table."""
    low, high = Signal(4, name=f"{name}_low"), Signal(6, name=f"{name}_high")
    code = (0, 1, 3)
    with m.Switch(rest):
        for value in range(9):
            with m.Case(value):
                m.d.comb += low.eq(code[value % 3] | code[value // 3] << 2)
    with m.Switch(over):
        for value in range(27):
            with m.Case(value):
                digits = value % 3, value // 3 % 3, value // 9
                m.d.comb += high.eq(sum(code[each] << 2 * at for at, each in enumerate(digits)))
    return Cat(low, high)


def tq1_step(byte: Value) -> tuple[Value, Value]:
    """Next digit (0, 1, 2) of a TQ1_0 byte and what is left for the digit after it."""
    tripled = byte + Cat(Const(0, 1), byte)  # as a product it might become a DSP block
    return tripled[8:10], tripled[:8]


def tq2_step(byte: Value) -> tuple[Value, Value]:
    """Next code of a TQ2_0 byte, lowest bits first."""
    return byte[:2], byte[2:]


def i2_s_step(byte: Value) -> tuple[Value, Value]:
    """Next code of an I2_S byte, highest bits first."""
    return byte[6:8], Cat(Const(0, 2), byte[:6])
