# SPDX-License-Identifier: Apache-2.0
"""Sums of the activations whose bit in a plane is set: one bit of every weight at a time.

A lane is an AND, and the carry chain that adds the lane has it inside.  The lane that a chain
starts from has none; its activation comes from a register, whose reset input is the AND.
"""

from amaranth.hdl import Cat, Const, Module

from .._once import place
from .._pipeline import held
from ._select_tree import SelectTree, SelectTreeConfig


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
