# SPDX-License-Identifier: Apache-2.0
"""Sums of the activations whose bit in a plane is set: one bit of every weight at a time.

A lane is an AND, and the carry chain that adds the lane has it inside.  The lane that a chain
starts from has none; its activation comes from a register, whose reset input is the AND.
"""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Signal

from .._once import place
from ._select_tree import SelectTree, SelectTreeConfig


def held(m: Module, enable, value, name: str, zero=0):
    """``value`` in a register that is cleared instead if ``zero``, which costs no LUT."""
    x = Signal.like(value, name=f"x_{name}", reset_less=True)
    with m.If(enable):
        m.d.sync += x.eq(value)
        with m.If(zero):
            m.d.sync += x.eq(0)
    return x


def delayed(m: Module, enable, value, name: str, count: int):
    """``value`` after each of ``count`` registers: index ``n`` is ``n + 1`` behind it."""
    steps = [Signal.like(value, name=f"x_{name}_{n}", reset_less=True) for n in range(count)]
    with m.If(enable):
        m.d.sync += steps[0].eq(value)
        m.d.sync += [late.eq(early) for early, late in pairwise(steps)]
    return steps


def plane_sums(m: Module, platform, config: SelectTreeConfig, acts, planes, enable):
    """For each of ``planes`` (names and lists of bits) the sum of the ``acts`` whose bit is set.

    ``1 + config.latency`` registers.
    """
    shared = {
        lane: held(m, enable, act, f"act_{lane}")
        for lane, act in enumerate(acts)
        if lane % config.leaf
    }
    sums = []
    for name, bits in planes.items():
        values, weights = [], []
        for lane, (act, bit) in enumerate(zip(acts, bits, strict=True)):
            if lane in shared:
                values.append(shared[lane])
                weights.append(Cat(held(m, enable, bit, f"{name}_{lane}"), Const(0, 1)))
            else:
                values.append(held(m, enable, act, f"{name}_act_{lane}", zero=~bit))
                weights.append(Const(1, 2))
        tree = SelectTree(config)
        inputs = {"acts": Cat(values), "weights": Cat(weights), "enable": enable}
        place(m, platform, f"tree_{name}", tree, **inputs)
        sums.append(tree.sum)  # nothing is inverted, so nothing is pending
    return sums
