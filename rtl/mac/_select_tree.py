# SPDX-License-Identifier: Apache-2.0
"""Adder tree over activations that ternary weights add, subtract or skip.

``-a`` is ``~a + 1``.  A negative weight complements its activation, and the missing one enters as
the carry of an adder further up: a tree of ``n`` lanes has ``n - 1`` adders, so ``n - 1``
corrections are free and one stays ``pending`` for whoever uses the sum.
"""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, add_carry, select
from .._once import once
from ..config import Config, param

SELECTS = ("fused", "invert", "mux", "unsigned")


@dataclass(frozen=True, kw_only=True)
class SelectTreeConfig(Config):
    lanes: int = param(2, "leaves of the tree, a power of two", ge=2)
    act_width: int = param(8, "bits of one signed activation", ge=2)
    stage: int = param(2, "adder levels between registers; 0 for none", ge=0)
    select: str = param("fused", "how a lane is negated", choices=SELECTS)

    @property
    def levels(self) -> int:
        return ceil_log2(self.lanes)

    @property
    def latency(self) -> int:
        """Registers from inputs to ``sum``."""
        return self.levels // self.stage if self.stage else 0

    @property
    def registered(self) -> bool:
        """Whether the root of this (sub)tree ends in a register."""
        return bool(self.stage) and self.levels % self.stage == 0

    @property
    def sum_width(self) -> int:
        """``lanes`` terms in ``-2**(act_width-1) .. 2**(act_width-1) - 1``, one pending.

        Exact negation and doubled terms need one bit more.
        """
        return self.act_width + self.levels + (self.select in ("mux", "unsigned"))


class SelectTree(wiring.Component):
    """``sum + pending`` is the sum of ``acts`` weighted by the two's complement ``weights``.

    Weight code 2 is no weight and must not occur.  With ``select="unsigned"`` the result is the
    sum weighted by ``weight + 1`` instead.  Registers advance while ``enable`` is high.  Lane 0 is
    lowest in ``acts`` and ``weights``, which are plain bits: fields of an array would each become
    a wire in the Verilog.
    """

    def __init__(self, config: SelectTreeConfig):
        self.config = config
        super().__init__({
            "acts": In(config.lanes * config.act_width),
            "weights": In(config.lanes * 2),
            "enable": In(1),
            "sum": Out(signed(config.sum_width)),
            "pending": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        build = self._leaf if self.config.lanes == 2 else self._node
        total, pending = build(m, platform)
        if self.config.registered:
            x_sum = Signal.like(self.sum, reset_less=True)
            x_pending = Signal(reset_less=True)
            with m.If(self.enable):
                m.d.sync += [x_sum.eq(total), x_pending.eq(pending)]
            total, pending = x_sum, x_pending
        m.d.comb += [self.sum.eq(total), self.pending.eq(pending)]
        return m

    def _leaf(self, m: Module, platform):
        a, b = (self.acts.word_select(lane, self.config.act_width).as_signed() for lane in (0, 1))
        v, w = (self.weights.word_select(lane, 2) for lane in (0, 1))
        match self.config.select:
            case "mux":
                terms = [Mux(w == 1, x, Mux(w == 3, -x, 0)) for x, w in ((a, v), (b, w))]
                return terms[0] + terms[1], 0
            case "unsigned":
                terms = [Mux(w == 0, x, Mux(w == 1, x << 1, 0)) for x, w in ((a, v), (b, w))]
                return terms[0] + terms[1], 0
            case "invert":
                terms = [select(x, w[0], w[1]) for x, w in ((a, v), (b, w))]
                return add_carry(*terms, v[1]), w[1]
        add = AddSelect(AddSelectConfig(width=self.config.act_width))
        m.submodules.add = once(platform, add)
        m.d.comb += [
            add.a.eq(select(a, v[0], v[1])),
            add.carry.eq(v[1]),
            add.b.eq(b),
            add.enable.eq(w[0]),
            add.invert.eq(w[1]),
        ]
        return add.y, w[1]

    def _node(self, m: Module, platform):
        half = SelectTreeConfig.of({**self.config.values(), "lanes": self.config.lanes // 2})
        halves = []
        for at, name in enumerate(("low", "high")):
            tree = SelectTree(half)
            m.submodules[name] = once(platform, tree)
            m.d.comb += [
                tree.acts.eq(self.acts.word_select(at, len(tree.acts))),
                tree.weights.eq(self.weights.word_select(at, len(tree.weights))),
                tree.enable.eq(self.enable),
            ]
            halves.append(tree)
        low, high = halves
        if self.config.select in ("mux", "unsigned"):
            return low.sum + high.sum, 0
        return add_carry(low.sum, high.sum, low.pending), high.pending
