# SPDX-License-Identifier: Apache-2.0
"""From the lanes of an accumulator to codes, rounded once."""

from collections.abc import Mapping, Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from .._once import place
from ..formats._encode import Encode, EncodeConfig
from ..formats._shift import cut, late, normalised
from ._modes import LANES, Modes

NAMES = {"fp4": "fp4_e2m1"}
KEPT = {"fp4": 4, "posit4_1": 3, "posit8_0": 8, "posit16_1": 15}
"""Bits of a significand that an encoder looks at one by one: two more than a code can have."""


def read_out(
    m: Module,
    platform: Any,
    acc: Any,
    nar: Any,
    widths: Mapping[str, int],
    weights: Mapping[str, int],
    modes: Modes,
    enable: Any,
) -> Any:
    """A word of codes, behind one register: lane by lane the code nearest to the sum.

    ``widths`` are the bits of a sum by format, ``weights`` the power of two of its lowest bit.
    Lanes of formats with as many share what finds the highest bit.
    """
    found: dict[str, list[Any]] = {}
    behind = modes.later(enable)
    for lanes in sorted({LANES[f] for f in modes.formats}):
        formats = [f for f in modes.formats if LANES[f] == lanes]
        width = max(widths[f] for f in formats)
        for lane in range(lanes):
            start = lane * len(acc) // lanes
            name = f"read_{lanes}_{lane}"
            value = acc[start : start + width]
            sign, size = value[-1], Signal(width - 1, name=f"{name}_size")
            m.d.comb += size.eq(Mux(sign, -value, value))
            whole, count = normalised(m, name, size)
            given = {
                "sign": late(m, 1, enable, f"{name}_sign", sign),
                "zero": late(m, 1, enable, f"{name}_zero", ~size.any()),
                "nan": late(m, 1, enable, f"{name}_nar", _bit(nar, lane)),
            }
            whole = late(m, 1, enable, f"{name}_whole", whole)
            count = late(m, 1, enable, f"{name}_count", count)
            for f in formats:
                found.setdefault(f, []).append(
                    _code(m, platform, f"{name}_{f}", f, whole, count, given, weights[f])
                )
    bits = [Const(0, 1)] * 16
    for f, codes in found.items():
        word = Cat(codes)
        on = behind.is_(f)
        bits = [old | (word[n] & on) for n, old in enumerate(bits)]
    return Cat(bits)


def _bit(nar: Sequence[Any], lane: int) -> Any:
    return nar[lane] if lane < len(nar) else Const(0, 1)


def _code(
    m: Module,
    platform: Any,
    name: str,
    format_: str,
    whole: Any,
    count: Any,
    given: Mapping[str, Any],
    weight: int,
) -> Any:
    """The code of ``whole``, whose highest bit is set after a shift by ``count``."""
    top = weight + len(whole) - 1
    config = EncodeConfig(
        format=NAMES.get(format_, format_),
        bits=min(KEPT[format_], len(whole)),
        low=weight,
        high=top,
    )
    kept, sticky = cut(whole, config.bits)
    exponent = Signal(config.span.exponent_width, name=f"{name}_exponent")
    m.d.comb += exponent.eq(top - count)
    return place(
        m,
        platform,
        name,
        Encode(config),
        **{**given, "nan": Const(0, 1) if format_ == "fp4" else given["nan"]},
        inf=Const(0, 1),
        exponent=exponent,
        significand=kept,
        sticky=sticky,
        enable=Const(1, 1),
    ).code
