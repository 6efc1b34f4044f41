# SPDX-License-Identifier: Apache-2.0
"""Adder tree over activations that are added, subtracted or skipped, for one LUT a lane.

A chain of adders can select all of its lanes but the one that it starts from.  So that one is never
negated: the others get their sign relative to it, and the whole sum has its sign.  Two sums join
the same way: the second is inverted where their signs differ.
"""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from ._select_tree import SelectTreeConfig


class SignTree(wiring.Component):
    """``sum + pending``, or with ``negative`` minus that, is the sum of the lanes.

    Lane 0 of each leaf, which has ``config.leaf`` lanes, is its activation as it is; the caller
    clears those that are skipped.  ``minus`` of these lanes is the sign of the leaf.  The others
    are skipped without ``used``, and their ``minus`` is their sign relative to that of their leaf.

    Members
    -------
    acts : :py:`In(lanes * act_width)`
        Signed, lane 0 lowest.
    used, minus : :py:`In(lanes)`
    enable : :py:`In(1)`
        Registers advance while it is high.
    sum : :py:`Out(signed(config.sum_width))`
    pending, negative : :py:`Out(1)`

    It has the config, and with it the leaves and the registers, of ``SelectTree``.
    """

    acts: Signal
    used: Signal
    minus: Signal
    enable: Signal
    sum: Signal
    pending: Signal
    negative: Signal

    def __init__(self, config: SelectTreeConfig):
        self.config = config
        super().__init__({
            "acts": In(config.lanes * config.act_width),
            "used": In(config.lanes),
            "minus": In(config.lanes),
            "enable": In(1),
            "sum": Out(signed(config.sum_width)),
            "pending": Out(1),
            "negative": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        parts = [self._leaf(m, platform, lane) for lane in range(0, config.lanes, config.leaf)]
        level = ceil_log2(config.leaf)
        parts = self._registered(m, level, parts)
        while len(parts) > 1:
            pairs = enumerate(zip(parts[::2], parts[1::2], strict=True))
            level += 1
            parts = [self._joined(m, platform, f"{level}_{n}", *pair) for n, pair in pairs]
            parts = self._registered(m, level, parts)
        total, pending, negative = parts[0]
        m.d.comb += [self.sum.eq(total), self.pending.eq(pending), self.negative.eq(negative)]
        return m

    def _leaf(self, m: Module, platform, first: int):
        width = self.config.act_width
        acts = [
            self.acts.word_select(first + n, width).as_signed() for n in range(self.config.leaf)
        ]
        total, pending = acts[0], Const(0, 1)
        for lane, act in enumerate(acts[1:], 1):
            minus = self.minus[first + lane]
            add = place(
                m,
                platform,
                f"add_{first + lane}",
                AddSelect(AddSelectConfig(width=width + ceil_log2(lane))),
                a=total,
                b=act,
                enable=self.used[first + lane],
                invert=minus,
                carry=pending,
            )
            total, pending = add.y[: width + ceil_log2(lane + 1)].as_signed(), minus
        return total, pending, self.minus[first]

    def _joined(self, m: Module, platform, name: str, low, high):
        """``low + high``, with the sign of ``low``; minus ``h + p`` is ``~h + 1 - p``."""
        invert = Signal(name=f"invert_{name}")
        m.d.comb += invert.eq(low[2] ^ high[2])
        add = place(
            m,
            platform,
            f"join_{name}",
            AddSelect(AddSelectConfig(width=len(low[0]))),
            a=low[0],
            b=high[0],
            enable=1,
            invert=invert,
            carry=low[1],
        )
        return add.y, high[1] ^ invert, low[2]

    def _registered(self, m: Module, level: int, parts):
        if not self.config.registers(level):
            return parts
        late = []
        for n, (total, pending, negative) in enumerate(parts):
            x_part = Signal(len(total) + 2, name=f"x_part_{level}_{n}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += x_part.eq(Cat(pending, negative, total))
            late.append((x_part[2:].as_signed(), x_part[0], x_part[1]))
        return late
